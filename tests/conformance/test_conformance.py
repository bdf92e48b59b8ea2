"""The simulated node does what the real CBSD was recorded to do."""

import concurrent.futures
import os
import re
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import run as conformance  # noqa: E402

REASON = "a simulated node needs root, as CBSD does"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason=REASON)


def test_every_recorded_case_replays_without_a_difference(tmp_path):
    shards = os.cpu_count() or 1

    def replay(number):
        arguments = ["--shard", f"{number}/{shards}"]
        root = str(tmp_path / f"node{number}")
        return conformance.replay(arguments, root, capture_output=True, text=True)

    with concurrent.futures.ThreadPoolExecutor(shards) as pool:
        results = list(pool.map(replay, range(1, shards + 1)))
    output = "".join(done.stdout + done.stderr for done in results)
    assert len(re.findall(r"^ok ", output, re.MULTILINE)) >= 119, output
    assert not any(done.returncode for done in results), output
