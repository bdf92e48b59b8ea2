"""`docs/pillar.md` is what the schema says, and each function says what it is for."""

import pytest

from tests.unit.loaded import REPO, load, public

SCHEMA = load("_modules/cbsd_monit_schema.py").schema()


def test_the_reference_is_what_the_schema_says():
    made = load("docs/reference.py").reference()
    assert (REPO / "docs/pillar.md").read_text() == made, "run docs/reference.py"


def test_the_reference_has_every_key_and_says_what_it_means():
    text = (REPO / "docs/pillar.md").read_text()
    tables = SCHEMA
    for name, rows in tables["sections"].items():
        part = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for key, row in rows.items():
            assert f"| `{key}`" in part and row["doc"], f"{name}: {key}"
    for kind, check in tables["checks"].items():
        assert check["doc"] and (f"\n### {kind}\n" in text or f"\n| `{kind}` |" in text), kind
        for key, row in check["fields"].items():
            assert f"| `{key}`" in text and row["doc"], f"{kind}: {key}"


def test_who_does_what_is_said_of_every_key_that_has_a_part_in_healing():
    """A new threshold, grace or bound that does not say who keeps it is not finished."""
    table = (REPO / "docs/pillar.md").read_text().split("\n## Who does what\n")[1].split("\n## ")[0]
    sections = SCHEMA["sections"]
    keys = {
        **{key: sections["policy"][key] for key in sections["policy"]},
        "depends_on": sections["env"]["depends_on"],
    }
    for section in ("restart", "budget"):
        keys.update({f"{section}:{key}": row for key, row in sections[section].items()})
    assert len(keys) > 20
    for key, row in keys.items():
        assert row["monit"] or row["agent"], key
        assert table.count(f"\n| `{key}` |") == 1, key


@pytest.mark.parametrize("path", sorted((REPO / "_modules").glob("*.py")), ids=lambda p: p.name)
def test_each_function_is_a_command_with_an_example_or_says_that_it_is_internal(path):
    source = path.read_text()
    for word in ("__pillar__", "__utils__", "import subprocess", '"pillar.', "os.system"):
        assert word not in source
    for name, function in public(load(str(path.relative_to(REPO)))).items():
        text = function.__doc__.strip()
        command = "CLI Example:" in text and ".. code-block:: bash" in text
        assert command is not text.startswith("Internal: "), name
