"""What the tests of the states share."""

import os

import pytest

from tests.unit.states.host import Host


@pytest.fixture(autouse=True)
def no_disk(monkeypatch):
    """Sync nothing: it takes most of the time, and a killed process loses no page."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)
