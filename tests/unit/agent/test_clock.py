"""A moment by both clocks: no jump of one of them changes an age."""

import pytest
from clock import SKEW, Moment

from .conftest import cases

NOW = Moment(1000.0004, 50.0004, "boot-1")


@cases(
    ("stamp", "age"),
    (None, float("inf")),
    ({"t": 990, "m": 40.0004, "b": "boot-1"}, 10),
    ({"t": 990 + 86400 * 365, "m": 40.0004, "b": "boot-1"}, 10),
    ({"t": 990 - 86400, "m": 40.0004, "b": "boot-1"}, 10),
    ({"t": 990.0004, "m": 9999, "b": "boot-0"}, 10),
    ({"t": 1002, "m": 0, "b": "another node's"}, 0),
    ({"t": 1000 + SKEW, "m": 0, "b": "another node's"}, 0),
    ({"t": 1001 + SKEW, "m": 0, "b": "another node's"}, float("inf")),
    ({"t": 990.0004, "m": 9}, 10),
)
def test_age_of_a_stamp(stamp, age):
    assert NOW.age(stamp) == pytest.approx(age)


def test_stamp_is_short_and_its_own_age_is_nothing():
    assert NOW.stamp() == {"t": 1000.0, "m": 50.0, "b": "boot-1"}
    assert NOW.age(NOW.stamp()) < 0.001
