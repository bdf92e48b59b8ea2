"""Policies: merged, checked, and what follows from them; and the silences."""

import json
import pathlib

import policy
from clock import Moment

from .conftest import cases

NOW = Moment(1000.0, 50.0, "boot-1")


def load(node, own):
    return policy.load(node, own if own is None or isinstance(own, str) else json.dumps(own))


def test_own_policy_is_laid_over_the_nodes_and_that_over_the_built_in(node):
    assert load(node, None) == {**policy.BUILTIN, "trouble": ""}
    node.policy = {"start_period": 5, "on_failure": ["alert"]}
    node.policy["restart"] = {"attempts": 7, "delay": 1}
    own = {"on_failure": ["start"], "restart": {"delay": 2}, "checks": {"a": {}}}
    found = load(node, own)
    assert (found["start_period"], found["on_failure"]) == (5, ["start"])
    assert found["checks"] == {"a": {}}
    assert found["restart"] == {**policy.BUILTIN["restart"], "attempts": 7, "delay": 2}


@cases(
    ("own", "trouble"),
    ("{", "Expecting property name"),
    ("[]", "expected a mapping"),
    ("[" * 100000, "recursion"),
    ({"schema": 2}, "policy.json:schema: '2'"),
    ({"restart": {"attempts": "x"}}, ":restart:attempts: 'x'"),
    ({"restart": {"mode": 1}}, ":restart:mode: '1'"),
    ({"restart": []}, ":restart: '[]'"),
    ({"checks": 7}, "expected a mapping with a mapping of checks"),
    ({"checks": {"tcp": []}}, "checks:tcp: '[]'"),
    ({"checks": {"tcp": {"interval": "x"}}}, "checks:tcp:interval: 'x'"),
    ({"checks": {"x": {"failure_threshold": "3"}}}, "checks:x:failure_threshold: '3'"),
    ({"checks": {"x": {"failure_threshold": {"failures": 2}}}}, "failure_threshold:within: 'None'"),
    ({"checks": {"x": {"command": ["/bin/x", 5]}}}, "checks:x:command: "),
    ({"checks": {"x": {"path": 7}}}, "checks:x:path: '7'"),
    ({"on_failure": 3}, ":on_failure: '3'"),
    ({"on_failure": [3]}, ":on_failure: '[3]'"),
    ({"start_period": None}, ":start_period: 'None'"),
    ({"depends_on": 5}, "depends_on: '5'"),
    ({"restart_with": [5]}, "restart_with: '[5]'"),
)
def test_policy_of_nonsense_is_not_used_and_says_where(node, own, trouble):
    found = load(node, own)
    assert trouble in found["trouble"] and {**found, "trouble": ""} == load(node, None)


CHECKS = {
    "http": {"on_failure": ["event"], "restart": {"attempts": 1}},
    "tcp": {"start_period": 90},
}
ALIVE = {"alive": {"type": "running", "on_failure": ["stop"]}}


@cases(
    ("checks", "check", "ladder", "attempts", "acts"),
    (CHECKS, "http", ["event"], 1, False),
    (CHECKS, "tcp", ["restart"], 3, True),
    (CHECKS, "env", ["restart"], 3, True),
    (CHECKS, "gone", ["restart"], 3, True),
    ({**CHECKS, **ALIVE}, "env", ["stop"], 3, True),
    ({"x": {"on_failure": ["alert", "event", "start"]}}, "x", ["alert", "event", "start"], 3, True),
)
def test_ladder_and_restarts_of_a_check(node, checks, check, ladder, attempts, acts):
    found = load(node, {"checks": checks})
    rungs, restart = policy.of_check(found, check)
    assert (rungs, restart["attempts"], policy.acts(found, check)) == (ladder, attempts, acts)
    assert policy.patience(found) == (90 if "tcp" in checks else 60)


@cases(("function", "waits"), ("constant", [10] * 4), ("exponential", [10, 20, 40, 45]))
def test_delay_grows_to_its_cap_and_jitters_around_it(function, waits):
    restart = {"delay": 10, "delay_function": function, "max_delay": 45, "jitter": 0.25}
    for number, share in ((0.5, 1), (1.0, 1.25), (0.0, 0.75)):
        found = [policy.delay(restart, n, lambda number=number: number) for n in range(1, 5)]
        assert found == [wait * share for wait in waits]
    assert policy.delay({**restart, "max_delay": 3}, 99, lambda: 0.5) == 10
    assert 7.5 <= policy.delay(restart, 1) <= 12.5


def test_silences_of_pillar_and_by_command_end_by_themselves_or_by_command(node):
    node.silences = [{"env": "a", "until": 2000, "by": "pillar"}, {"env": "b", "by": "pillar"}]
    node.silences.append({"env": "old", "until": 999})
    policy.silence(node, "a", 1500, "ann", "upgrade", NOW)
    policy.silence(node, "c", 1100, "bob", "", NOW)
    given = {"env": "a", "until": 1500, "by": "ann", "reason": "upgrade"}
    assert policy.silences(node, NOW)["a"] == given, "the later one"
    assert set(policy.silences(node, NOW)) == {"a", "b", "c"}
    later = NOW._replace(t=1200.0)
    assert set(policy.silences(node, later)) == {"a", "b"}
    policy.silence(node, "a", None, "", "", later)
    assert policy.silences(node, later)["a"]["by"] == "pillar"
    assert json.loads(pathlib.Path(node.in_state("silences.json")).read_text()) == []
