"""What the tests of the execution modules share."""

import pytest

from tests.unit.modules.pillars import load


@pytest.fixture(scope="module")
def monit():
    return load()
