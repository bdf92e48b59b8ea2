"""The simulated node does what the real CBSD was recorded to do."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import run as conformance  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="a simulated node needs root, as CBSD does"
)


def test_every_recorded_case_replays_without_a_difference(tmp_path):
    done = conformance.replay([], str(tmp_path / "node"), capture_output=True, text=True)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0 and ", 0 mismatches, " in str(last), done.stdout + done.stderr
