"""In which state is an env, and is it due to be healed: tables of pure values, one moment."""

import copy
import pathlib
import re
from xml.etree import ElementTree

import judge
import pytest
from clock import Moment
from judge import Facts
from monit import Service
from policy import BUILTIN
from records import Record
from states import STATES

from .conftest import cases

NOW = Moment(1.8e9, 5e4, "boot-1")


def ago(seconds, boot="boot-1"):
    return Moment(NOW.t - seconds, NOW.m - seconds, boot).stamp()


def service(status=0, monitor=1, age=-5, more=""):
    numbers = {"status": status, "monitor": monitor, "collected_sec": int(NOW.t - age)}
    tags = "".join(f"<{tag}>{number}</{tag}>" for tag, number in numbers.items())
    return Service(ElementTree.fromstring(f"<service><name>x</name>{tags}{more}</service>"))


GOOD, BAD, UNMONITORED = service(), service(32), service(32, monitor=0)
ONCE = service(0, more="<port><portnumber>80</portnumber><responsetime>-1</responsetime></port>")
UNASKED = service(16, more="<program><status>75</status><output>rctl says no</output></program>")
FAILS = {"env": GOOD, "http": BAD}
SILENCED = {"until": 4e9, "by": "ann", "reason": "upgrade"}
OP = {"id": "x", "action": "restart", "step": "stop", **ago(10)}
ROW = {"jname": "lb1", "status": "0", "emulator": "jail", "astart": "1", "exec_timeout": ""}


def judged(**given):
    """The Verdict on a healthy lb1 with ``given`` in Facts, row, policy or record by its name."""
    facts = {"up": True, "results": {"env": GOOD, "http": GOOD}}
    parts = {"facts": facts, "row": dict(ROW), "policy": {}, "record": {}}
    for key, value in given.items():
        where = (("facts", Facts._fields), ("row", ROW), ("policy", BUILTIN))
        parts[next((part for part, names in where if key in names), "record")][key] = value
    if facts["results"] is not None:
        facts["results"] = list(facts["results"].items())
    data = {"env": "lb1", "emulator": parts["row"]["emulator"], "state": "unknown"}
    data = {**data, "attempts": [], "boot": "boot-1", "intent": "running", "warm": True}
    record = Record("lb1", {**data, **parts["record"]})
    before = copy.deepcopy(record.data)
    policy = {**BUILTIN, "trouble": "", **parts["policy"]}
    policy["restart"] = {**BUILTIN["restart"], **policy["restart"]}
    found = judge.judge(record, policy, Facts(row=parts["row"], **facts), NOW)
    assert (record.data, record.now, record.transitions) == (before, None, [])
    return found


def outcome(verdict):
    return verdict.env["state"], verdict.due[0] if verdict.due else ""


HTTP = {"type": "http"}
EVENT = {"http": {"type": "http", "on_failure": ["event"]}}
ALIVE = {"alive": {"type": "running", "on_failure": ["alert"]}}
STARTS = {"type": "running", "on_failure": ["start"]}
BOTH = {"env": GOOD, "http": BAD, "acert": BAD}
ALERTED = {"http": HTTP, "acert": {"type": "tls", "on_failure": ["alert"]}}
DELAY = {"attempts": 2, "mode": "delay"}
TWICE = [ago(100), ago(50)]
STARTED = {"warm": False, "started": ago(10), "state": "starting"}
WAITING = {"results": {"http": UNMONITORED}}
BOOTED = {"boot": "boot-0", "op": {**OP, **ago(10, "boot-0")}}
STOPPING = {"intent": "stopped", "phase": "stopping", "phase_since": ago(5)}
HELD = {"next": {"after": ago(10), "seconds": 40}, "state": "backoff", "since": ago(10)}

# what is given, the state, the check that is due, and what the record holds besides
CASES = [
    (dict(), "healthy", "", {"warm": True, "check": None}),
    (dict(results=FAILS), "failing", "http", {"reason": "monit says 32", "check": "http"}),
    (dict(up=False), "failing", "env", {"reason": "jail lb1 does not run", "check": "env"}),
    (dict(up=False, results=None), "failing", "env"),
    (dict(results=None), "unknown", "", {"reason": "monit does not answer"}),
    (dict(up=None, kernel_error="jls: no"), "unknown", "", {"reason": "jls: no"}),
    (dict(up=None, results=FAILS), "unknown", ""),
    (dict(emulator="qemu", up=False), "unknown", "", {"reason": "qemu is not supported"}),
    # what CBSD says of it
    (dict(results=FAILS, status="3"), "maintenance", ""),
    (dict(up=False, status="2"), "slave", "", {"reason": "slave copy"}),
    (dict(status="?"), "healthy", ""),
    (dict(up=False, status="3", phase="stopping", phase_since=ago(5)), "starting", ""),
    # what was intended
    (dict(up=False, intent="stopped"), "stopped", ""),
    (dict(up=False, intent="stopped", intent_why={"cause": "operator", "by": "jstop"}),
     "stopped", "", {"reason": "operator: jstop"}),
    (dict(results=FAILS, intent="stopped"), "failing", "http", {"intent": "running"}),
    (dict(results=FAILS, **STOPPING), "stopped", "", {"intent": "stopped"}),
    (dict(results=FAILS, **{**STOPPING, "phase_since": ago(999)}), "failing", "http",
     {"intent": "running", "phase": None}),
    (dict(up=False, **{**STOPPING, "phase_since": ago(999)}), "stopped", "", {"phase": None}),
    # after a boot
    (dict(up=False, **BOOTED), "starting", "", {"phase": "booting", "op": None, "boot": "boot-1"}),
    (dict(up=False, busy=True, **BOOTED), "starting", "", {"op": None}),
    (dict(up=False, astart="0", **BOOTED), "stopped", "", {"intent": "stopped", "phase": None}),
    (dict(**BOOTED), "healthy", "", {"phase": None}),
    # a heal that goes on, and one that was killed
    (dict(up=False, op=OP, busy=True), "healing", ""),
    (dict(up=False, op=OP, state="healing", status="3"), "failing", "env", {"op": None}),
    (dict(up=False, op=OP, phase="stopping", cause="heal", phase_since=ago(1)), "failing", "env",
     {"phase": None}),
    (dict(op=OP, cause="operator", **STOPPING), "stopped", "", {"op": None, "phase": "stopping"}),
    # silences and quarantine
    (dict(results=FAILS, silence=SILENCED), "silenced", "", {"reason": "by ann: upgrade"}),
    (dict(up=False, silence=SILENCED), "silenced", ""),
    (dict(results=FAILS, quarantined="line 3"), "quarantined", "", {"reason": "line 3"}),
    (dict(up=False, quarantined="line 3"), "failing", "env"),
    # grace
    (dict(results=FAILS, **STARTED), "starting", "", {"reason": "http: monit says 32"}),
    (dict(results=FAILS, **{**STARTED, "warm": True}), "failing", "http"),
    (dict(results=FAILS, **{**STARTED, "started": ago(61)}), "failing", "http"),
    (dict(results=FAILS, start_period=2, checks={"http": {"start_period": 120}}, **STARTED),
     "starting", ""),
    (dict(results=FAILS, start_period=99, checks={"http": {"start_period": 5}}, **STARTED),
     "failing", "http"),
    (dict(up=False, **STARTED), "failing", "env"),
    # what is not known yet
    (dict(**WAITING, **STARTED), "starting", "", {"reason": "waiting for http", "warm": False}),
    (dict(results={"http": None}, **STARTED), "starting", ""),
    (dict(**WAITING, warm=False), "starting", ""),
    (dict(**WAITING, state="healthy"), "healthy", ""),
    (dict(**WAITING, state="failing", started=ago(999), warm=False), "failing", ""),
    (dict(**WAITING, missing={"http"}), "unknown", "", {"reason": "not know lb1's check http"}),
    (dict(results={"env": BAD, "http": GOOD}), "healthy", ""),
    (dict(results={"http": UNASKED}), "unknown", "", {"reason": "http: rctl says no"}),
    (dict(results={"acert": UNASKED, "http": BAD}), "failing", "http"),
    (dict(results={"http": service(age=-1)}, started={**ago(5), "t": NOW.t + 3600}), "healthy", ""),
    (dict(results={"http": service(32, age=30)}, start_period=0, **STARTED), "starting", ""),
    (dict(results={"http": service(32, age=5)}, start_period=0, **STARTED), "failing", "http"),
    # what the policy allows
    (dict(results=FAILS, heal=False), "failing", "", {"reason": "monit says 32; heal: false"}),
    (dict(results=FAILS, on_failure=["alert"]), "failing", ""),
    (dict(results=FAILS, on_failure=["stop"]), "failing", "http"),
    (dict(up=False, on_failure=["stop"]), "failing", ""),
    (dict(up=False, on_failure=["alert"]), "failing", ""),
    (dict(up=False, on_failure=["alert", "stop", "restart"]), "failing", "env"),
    (dict(results=BOTH, checks=ALERTED), "failing", "http"),
    (dict(results=BOTH), "failing", "acert"),
    (dict(up=False, checks=ALIVE), "failing", ""),
    (dict(up=False, on_failure=["alert"], checks={"alive": {"type": "running"}}), "failing", ""),
    (dict(up=False, on_failure=["alert"], checks={"x": STARTS}), "failing", "env"),
    (dict(results=FAILS, checks=EVENT), "failing", ""),
    (dict(results=FAILS, checks=EVENT, recheck=ago(59)), "failing", "http"),
    (dict(results=FAILS, checks=EVENT, recheck=ago(120)), "failing", ""),
    # attempts and waits
    (dict(results=FAILS, gave_up=True), "gave_up", ""),
    (dict(gave_up=True), "gave_up", ""),
    (dict(results=FAILS, attempts=TWICE), "failing", "http"),
    (dict(results=FAILS, attempts=TWICE, restart={"attempts": 2}), "gave_up", "",
     {"gave_up": True, "reason": "2 attempts did not help: monit says 32"}),
    (dict(results=FAILS, attempts=[ago(1801), ago(5)], restart={"attempts": 2}), "failing", "http"),
    (dict(results=FAILS, attempts=TWICE, restart=DELAY), "backoff", "", {"reason": "in 1700 s"}),
    (dict(results=FAILS, restart={"attempts": 0, "mode": "fail"}), "gave_up", ""),
    (dict(results=FAILS, restart={"attempts": 0, "mode": "delay"}), "backoff", ""),
    (dict(results=FAILS, **HELD), "backoff", "", {"reason": "next attempt in 30 s: monit says 32"}),
    (dict(results=FAILS, **{**HELD, "next": {"after": ago(41), "seconds": 40}}), "backoff", "http"),
    (dict(up=False, attempts=[ago(700)] * 3, state="healthy", since=ago(601)), "failing", "env"),
    (dict(up=False, attempts=[ago(700)] * 3, state="healthy", since=ago(500)), "gave_up", ""),
    (dict(state="healthy", since=ago(601), attempts=TWICE, rung=2), "healthy", "",
     {"attempts": [], "rung": 0, "next": None}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: "+".join(case[0]) or "calm")
def test_state_and_what_is_due(case):
    given, state, due, *more = case
    verdict = judged(**given)
    assert outcome(verdict) == (state, due), verdict.env["reason"]
    for key, value in (more or [{}])[0].items():
        found = verdict.env[key]
        assert value in found if key == "reason" else found == value, (key, found)


@cases(
    ("phase", "limit", "given"),
    ("starting", 300, {}),
    ("starting", 7, {"restart": {"timeout": 7}}),
    ("stopping", 210, {}),
    ("stopping", 40, {"exec_timeout": "10"}),
    ("stopping", 90, {"emulator": "bhyve"}),
    ("restarting", 60, {"cause": "restart"}),
    ("restarting", 600, {"cause": "shutdown"}),
    ("removing", 180, {}),
    ("booting", 600, {}),
    ("booting", 9, {"boot_grace": 9}),
)
def test_phase_of_cbsd_is_no_failure_while_it_can_last(phase, limit, given):
    for age, expected in ((limit - 1, ("starting", "")), (limit + 1, ("failing", "env"))):
        verdict = judged(up=False, phase=phase, phase_since=ago(age), **given)
        assert outcome(verdict) == expected
    assert verdict.env["phase"] is None


@cases(
    ("given", "suspect", "ran", "checked"),
    ({}, False, None, True),
    ({"results": {"http": ONCE}}, True, None, True),
    ({"results": {"http": ONCE}, "on_failure": ["alert"]}, False, None, True),
    ({"results": FAILS}, True, NOW.t + 5, True),
    ({"up": False}, True, None, True),
    ({"results": None}, False, None, True),
    ({"up": None}, False, None, False),
    ({"silence": SILENCED}, False, None, True),
)
def test_what_a_storm_is_told_of_an_env(given, suspect, ran, checked):
    verdict = judged(**given)
    assert (verdict.suspect, verdict.ran, verdict.checked) == (suspect, ran, checked)


def test_command_that_outlived_its_agent_is_ended_late():
    limit = 210 + 300 + judge.ORPHAN
    for late, orphan in ((-1, False), (1, True)):
        assert judged(up=False, op={**OP, **ago(limit + late)}, busy=True).orphan == orphan
    assert not judged(up=False, op={**OP, **ago(999)}).orphan


@cases(
    ("given", "transitions"),
    ({"state": "healthy"}, []),
    ({"state": "healthy", "results": FAILS}, [("failing", {})]),
    ({"state": "failing", "results": FAILS, "checks": EVENT}, []),
    ({"state": "healthy", "results": FAILS, "checks": EVENT}, [("failing", {"event": True})]),
    ({**HELD, "results": FAILS, "checks": EVENT}, []),
    ({"state": "backoff", "results": FAILS, "checks": EVENT}, [("failing", {"event": True})]),
    ({"state": "starting", "results": FAILS, "attempts": [ago(5)] * 3}, ["failing", "gave_up"]),
)
def test_transitions_are_told_once_and_again_after_a_back_off(given, transitions):
    found = [(t.name, t.details) for t in judged(**given).env.transitions]
    assert found == [(t, {}) if isinstance(t, str) else t for t in transitions]


EVENTS = {
    "stopped by an operator": {"up": False, "intent": "stopped"},
    "dies": {"up": False},
    "a check fails": {"results": FAILS},
    "all checks succeed": {},
}
BEFORE = {
    "starting": {"warm": False, "started": ago(0)},
    "healing": {"op": {"id": "x", **ago(0)}, "busy": True},
    "backoff": {"next": {"after": ago(0), "seconds": 60}},
    "gave_up": {"gave_up": True},
    "silenced": {"silence": SILENCED},
    "maintenance": {"status": "3"},
    "slave": {"status": "2"},
    "quarantined": {"quarantined": "syntax error"},
}


def test_table_of_states_in_the_contract_is_what_happens():
    """docs/contract.md section 10: what each state becomes when something happens to the env."""
    rows = ["| state | " + " | ".join(EVENTS) + " |", "|---" * (len(EVENTS) + 1) + "|"]
    for name in STATES:
        happens = [{**event, **BEFORE.get(name, {}), "state": name} for event in EVENTS.values()]
        cells = [judged(**given).env["state"] for given in happens]
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    text = (pathlib.Path(__file__).resolve().parents[3] / "docs/contract.md").read_text()
    assert "\n".join(rows) in text, "\n".join(rows)
    assert set(STATES) == set(re.findall(r"^\| `(\w+)`(?: \| \w+){4} \|$", text, re.M))
