"""The vocabulary: plain data, and every word of it in `pillar.example`."""

import json
import re

from tests.unit.loaded import REPO


def test_pillar_example_names_every_key(monit):
    """A key that nobody can read about does not exist."""
    text = (REPO / "pillar.example").read_text()
    for section, rows in monit.schema()["sections"].items():
        for key in rows:
            assert re.search(rf"\b{key}\b", text), f"{section}: {key}"
    for kind, row in monit.schema()["checks"].items():
        if row["scope"]:
            assert re.search(rf"\b{kind}\b", text), kind


def test_schema_is_plain_data(monit):
    assert json.loads(json.dumps(monit.schema())) == monit.schema()
