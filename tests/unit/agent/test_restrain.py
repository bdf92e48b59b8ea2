"""What holds heals back: storms, the first failure of one, dependencies; on pure values."""

import copy

import pytest
from clock import Moment
from node import DEFAULT_BUDGET
from policy import BUILTIN
from proof import Seen
from records import Record
from restrain import Due, Judged, restrain

from .conftest import cases

NOW = Moment(1.8e9, 5e4, "boot-1")
SLOW = {"type": "http", "timeout": 2}
ALERT = {"on_failure": ["alert"]}


def ago(seconds):
    return Moment(NOW.t - seconds, NOW.m - seconds, NOW.b).stamp()


def node(states, policies=None, due=None, suspects=(), ran=None, **records):
    """Judged envs e0, e1, … in ``states``; ``policies`` and ``records`` say how one differs."""
    envs, rules = {}, {}
    for number, state in enumerate(states):
        name = f"e{number}"
        data = {"intent": "running", "state": state, "since": ago(0), "check": "http"}
        envs[name] = Record(name, {**data, **records.get(name, {})}).at(NOW)
        rules[name] = {**BUILTIN, "checks": {"http": SLOW}, **(policies or {}).get(name, {})}
    failing = [name for name, env in envs.items() if env["state"] == "failing"]
    due = [Due(name, envs[name]["check"], "x") for name in (failing if due is None else due)]
    return Judged(envs, rules, due, set(suspects), ran or {})


def restrained(judged, storm=None, now=NOW, **budget):
    before = copy.deepcopy({name: env.data for name, env in judged.envs.items()})
    found = restrain(judged, storm or {}, {**DEFAULT_BUDGET, **budget}, 5, now)
    assert {name: env.data for name, env in judged.envs.items()} == before
    return found


def due(found):
    return [heal.env for heal in found.due]


EIGHT = ["failing"] * 8
EVERY = range(8)
OLD = {f"e{i}": {"since": ago(121)} for i in EVERY}
DEAD = {f"e{i}": {"check": "env"} for i in EVERY}
DEPENDENT = {f"e{i}": {"check": "depends_on"} for i in EVERY}


@cases(
    ("states", "given", "budget", "storms"),
    (["failing"] * 4, {}, {}, False),
    (["failing"] * 5 + ["healthy"] * 5, {}, {}, False),
    (["failing"] * 6 + ["healthy"] * 4, {}, {}, True),
    (["failing"] * 5, {}, {}, True),
    (["failing"] * 4, {}, {"storm_min": 4}, True),
    (["failing"] * 5 + ["healthy"] * 5, {}, {"storm_threshold": 0.4}, True),
    (["healing"] * 3 + ["backoff"] * 3, {}, {}, True),
    (["starting"] * 8, {}, {}, False),
    (["gave_up"] * 8, {}, {}, False),
    (EIGHT, OLD, {}, False),
    (EIGHT, OLD, {"storm_window": 300}, True),
    (EIGHT, DEAD, {}, False),
    (EIGHT, DEPENDENT, {}, False),
    (EIGHT, {f"e{i}": {"intent": "stopped"} for i in EVERY}, {}, False),
    (EIGHT, {"policies": {f"e{i}": ALERT for i in EVERY}}, {}, False),
    (["failing"] + ["healthy"] * 7, {"suspects": [f"e{i}" for i in EVERY]}, {}, True),
    (["failing"] + ["stopped"] * 7, {"suspects": [f"e{i}" for i in EVERY]}, {}, False),
)
def test_storm_is_a_share_and_a_number_that_began_to_fail_together(states, given, budget, storms):
    found = restrained(node(states, **given), **budget)
    assert ("envs" in found.storm) == storms
    failing = [f"e{i}" for i, state in enumerate(states) if state == "failing"]
    assert due(found) == ([] if storms else failing)
    up = sum(given.get(f"e{i}", {}).get("intent") != "stopped" for i in range(len(states)))
    ill = 8 if "suspects" in given else sum(s in ("failing", "healing", "backoff") for s in states)
    words = f"{ill} of {up} envs fail at once: nothing is healed until that passes"
    assert found.announcements == ([("storm", words)] if storms else [])
    if storms:
        assert found.storm == {**NOW.stamp(), "envs": [f"e{i}" for i in range(ill)]}


def test_in_a_storm_only_the_dead_are_started_and_it_ends_when_no_longer_so_many_fail():
    storm = restrained(node(EIGHT, e7={"check": "env"}))
    assert due(storm) == ["e7"]
    later = restrained(node(EIGHT, **{**OLD, "e7": {"check": "env"}}), storm.storm)
    assert (later.storm, due(later), later.announcements) == (storm.storm, ["e7"], [])
    calm = restrained(node(["healthy"] * 8), storm.storm)
    assert calm.storm == {"passed": NOW.stamp()}
    assert [transition for transition, _ in calm.announcements] == ["calm"]
    assert restrained(node([]), storm.storm).storm == {"passed": NOW.stamp()}, "all are gone"


@pytest.mark.parametrize(
    ("ran", "check", "healed"),
    [(-1, "http", False), (1, "http", False), (2.1, "http", True), (None, "http", False)]
    + [(None, "env", True), (None, "depends_on", True)],
)
def test_after_a_storm_only_what_failed_once_more_is_healed(ran, check, healed):
    """A check may have run last while the network was away; a run takes up to its time-out, 2 s."""
    passed = {"passed": {**ago(10), "t": 0}}  # by the monotonic clock, should the other be set
    ran = {} if ran is None else {"e0": NOW.t - 10 + ran}
    found = restrained(node(["failing"], ran=ran, e0={"check": check}), passed)
    assert (due(found), found.look_again_in) == ((["e0"], None) if healed else ([], 1))
    assert found.storm == passed and "envs" in restrained(node(EIGHT), passed).storm, "the next one"


ONE = {"checks": {"http": {**SLOW, "failure_threshold": 1}}}
MANY = {f"e{i}": ONE for i in EVERY}
PROGRAMS = {f"e{i}": {"checks": {"http": {"type": "exec", "failure_threshold": 1}}} for i in EVERY}


@cases(
    ("others", "given", "wait"),
    (7, {}, None),
    (7, {"policies": MANY}, 15),  # a cycle of 5 s, and 2 s for each of five
    (7, {"policies": MANY, "e0": {"since": ago(6)}}, 9),
    (7, {"policies": MANY, "e0": {"since": ago(15)}}, None),
    (7, {"policies": MANY, "e0": {"check": "env"}}, None),
    (3, {"policies": MANY}, None),  # four can be no storm of five
    (7, {"policies": {"e0": ONE, "e1": {"checks": {"slow": {"timeout": 90}}}}}, 60),
    (7, {"policies": {**MANY, "e7": {"checks": {}}}, "e6": {"intent": "stopped"}}, 15),
    (7, {"policies": PROGRAMS}, None),
)
def test_with_a_threshold_of_one_the_first_failure_waits_for_the_others(others, given, wait):
    found = restrained(node(["failing"] + ["healthy"] * others, **given))
    assert (due(found), found.look_again_in) == (["e0"] if wait is None else [], wait)


@pytest.mark.parametrize(
    ("parent", "suspect", "healed"),
    [(s, False, False) for s in ("failing", "healing", "backoff", "gave_up", "stopped", "starting")]
    + [(s, False, True) for s in ("healthy", "maintenance", "silenced", "unknown")]
    + [("healthy", True, False)],
)
def test_dependent_is_not_healed_while_what_it_depends_on_is_ill(parent, suspect, healed):
    rules = {"e0": {"depends_on": ["elsewhere", "e1"]}}
    found = restrained(node(["failing", parent], rules, ["e0"], ["e1"] if suspect else []))
    assert due(found) == (["e0"] if healed else [])
    assert found.reasons == ({} if healed else {"e0": f"x; waits for e1, which is {parent}"})


def test_dependence_in_a_circle_is_no_dead_lock():
    for ring in ({"e0": ["e1"], "e1": ["e0"]}, {"e0": ["e1"], "e1": ["e2"], "e2": ["e0"]}):
        rules = {name: {"depends_on": others} for name, others in ring.items()}
        assert due(restrained(node(["failing"] * len(ring), rules))) == sorted(ring)
    rules["e2"] = {}
    assert due(restrained(node(["failing"] * 3, rules))) == ["e2"], "a chain"


@cases(
    ("dependent", "parent", "rules", "restarted"),
    ({}, {}, {}, True),
    ({"state": "failing"}, {}, {}, True),
    ({"state": "starting"}, {}, {}, True),
    ({"state": "silenced"}, {}, {}, False),
    ({"started": ago(0)}, {}, {}, False),
    ({"intent": "stopped"}, {}, {}, False),
    ({"phase": "starting"}, {}, {}, False),
    ({"next": {"after": ago(0), "seconds": 9}}, {}, {}, False),
    ({}, {"restarted": None}, {}, False),
    ({}, {"state": "starting"}, {}, False),
    ({}, {}, {"heal": False}, False),
    ({}, {}, {"restart_with": []}, False),
    ({}, {}, {"restart_with": ["e2"]}, False),
)
def test_dependent_is_restarted_once_after_its_parent(dependent, parent, rules, restarted):
    rules = {"e0": {"depends_on": ["e1"], "restart_with": ["e1"], **rules}}
    envs = {"e0": {"started": ago(60), **dependent}, "e1": {"restarted": ago(10), **parent}}
    found = restrained(node(["healthy"] * 3, rules, [], **envs))
    assert found.due == ([Due("e0", "depends_on", "e1 was restarted")] if restarted else [])
    already = restrained(node(["healthy"] * 3, rules, ["e0"], **envs))
    waits = envs["e1"].get("state") == "starting"
    assert [heal.check for heal in already.due if heal.env == "e0"] == ["http"] * (not waits)


HELD = {"e0": {**BUILTIN, "depends_on": [{"node": "uplink"}], "checks": {"http": SLOW}}}


def uplink(result="good", age=1, bound=100, live=True):
    return {
        "uplink": Seen(result, "ping failed", (NOW.t - age, NOW.m - age), 5, bound, live, result)
    }


@cases(
    ("seen", "began", "words"),
    ({}, 10, ""),  # this node has no such check
    (uplink(), 10, ""),
    (uplink("bad"), 10, "the node's check uplink, which fails: ping failed"),
    (uplink("failed"), 10, "the node's check uplink, which fails: ping failed"),
    (uplink(age=11), 10, "the node's check uplink, which has not run since"),
    (uplink(age=111), 99, ""),  # nobody looks at it any more
    (uplink(age=200), 101, ""),
    (uplink("unwatched", age=11), 10, ""),
    (uplink("unasked", age=1), 10, ""),
)
def test_heal_waits_for_the_nodes_own_check(seen, began, words):
    for check in ("http", "env"):
        rows = {check: {"since": ago(began)}}
        judged = node(["failing"], HELD, e0={"check": check, "failing": rows})
        found = restrained(judged._replace(node=seen))
        assert due(found) == ([] if words else ["e0"])
        assert found.reasons == ({"e0": f"x; waits for {words}"} if words else {})
        assert bool(found.look_again_in) == bool(words)


def test_envs_of_a_small_node_are_not_restarted_because_its_uplink_is_down():
    """Three are too few for the storm guard."""
    policies = {f"e{i}": HELD["e0"] for i in range(3)}
    judged = node(["failing"] * 3, policies, **{f"e{i}": {"since": ago(10)} for i in range(3)})
    assert due(restrained(judged._replace(node=uplink("failed")))) == []
    assert len(due(restrained(judged._replace(node=uplink())))) == 3


def test_dependent_is_restarted_after_a_heal_that_helped_late():
    rules = {"e1": {"depends_on": ["e0"], "restart_with": ["e0"]}}
    late = {"e0": {"restarted": ago(50)}, "e1": {"started": ago(999)}}
    for state, restarted in (("healthy", ["e1"]), ("warning", ["e1"]), ("backoff", [])):
        assert due(restrained(node([state, "healthy"], rules, due=[], **late))) == restarted
