"""In which state is an env, and is it due to be healed: tables of pure values, one moment."""

import copy
import pathlib
import re

import judge
import pytest
from clock import Moment
from judge import Facts
from policy import BUILTIN
from proof import Seen
from records import Record
from states import STATES

from .conftest import cases

NOW = Moment(1.8e9, 5e4, "boot-1")


def ago(seconds, boot="boot-1"):
    return Moment(NOW.t - seconds, NOW.m - seconds, boot).stamp()


def seen(result="good", age=1, interval=30, reason="", live=True):
    at, bound = None if age is None else (NOW.t - age, NOW.m - age), interval and interval + 110
    return Seen(result, reason, at, interval, bound, live, result)


GOOD, BAD, ONCE = seen(), seen("bad", reason="connection refused"), seen("failed")
UNMONITORED = seen("unwatched")
UNASKED, NEVER = seen("unasked", reason="rctl says no"), seen("never", None)
ABSENT = seen("absent", None)
DAY = 86400
CERT = {"http": GOOD, "cert": seen("bad", 7200, DAY, "expires in 19 days")}
FAILS = {"env": GOOD, "http": BAD}
SILENCED = {"until": 4e9, "by": "ann", "reason": "upgrade"}
OP = {"id": "x", "action": "restart", "step": "stop", **ago(10)}
ROW = {"jname": "lb1", "status": "0", "emulator": "jail", "astart": "1", "exec_timeout": ""}


def judged(**given):
    """The Verdict on a healthy lb1 with ``given`` in Facts, row, policy or record by its name."""
    facts = {"up": True, "results": {"env": GOOD, "http": GOOD}}
    parts = {"facts": facts, "row": dict(ROW), "policy": {}, "record": {}}
    parts["record"].update(given.pop("record", {}))
    for key, value in given.items():
        where = (("facts", Facts._fields), ("row", ROW), ("policy", BUILTIN))
        parts[next((part for part, names in where if key in names), "record")][key] = value
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
ALERTS = {"http": {"on_failure": ["alert"]}}
ALERTED = {"http": HTTP, "acert": {"type": "tls", "on_failure": ["alert"]}}
DELAY = {"attempts": 2, "mode": "delay"}
TWICE = [ago(100), ago(50)]
STARTED = {"warm": False, "started": ago(10), "state": "starting"}
WAITING = {"results": {"http": UNMONITORED}}
BOOTED = {"boot": "boot-0", "op": {**OP, **ago(10, "boot-0")}}
STOPPING = {"intent": "stopped", "phase": "stopping", "phase_since": ago(5)}
RENEWED = {"started": ago(999), "proof_from": ago(9), "warm": False}
FAILED = {"http": {"since": ago(2000), "start": NOW.m - 999}}  # and still after the start
RELOADED = ONCE._replace(last="bad")
HELD = {"next": {"after": ago(10), "seconds": 40}, "state": "backoff", "since": ago(10)}

# what is given, the state, the check that is due, and what the record holds besides
CASES = [
    (dict(), "healthy", "", {"warm": True, "check": None}),
    (dict(results=FAILS), "failing", "http", {"reason": "connection refused", "check": "http"}),
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
    (dict(quarantined="line 3"), "quarantined", "", {"reason": "line 3"}),
    (dict(results=FAILS, quarantined="line 3"), "failing", "http", {"quarantined": "line 3"}),
    (dict(results=FAILS, quarantined="line 3", **STARTED), "quarantined", ""),
    (dict(results=FAILS, quarantined="x", on_failure=["alert"]), "quarantined", ""),
    (dict(results={"http": UNASKED}, quarantined="line 3"), "quarantined", ""),
    (dict(gave_up=True, quarantined="line 3"), "gave_up", ""),
    (dict(up=False, quarantined="line 3"), "failing", "env"),
    # grace
    (dict(results=FAILS, **STARTED), "starting", "", {"reason": "http: connection refused"}),
    (dict(results=FAILS, **{**STARTED, "warm": True}), "failing", "http"),
    (dict(results=FAILS, **{**STARTED, "started": ago(61)}), "failing", "http"),
    (dict(results=FAILS, start_period=2, checks={"http": {"start_period": 120}}, **STARTED),
     "starting", ""),
    (dict(results=FAILS, start_period=99, checks={"http": {"start_period": 5}}, **STARTED),
     "failing", "http"),
    (dict(up=False, **STARTED), "failing", "env"),
    # what is not known yet
    (dict(**WAITING, **STARTED), "starting", "", {"reason": "waiting for http", "warm": False}),
    (dict(results={"http": NEVER}, **STARTED), "starting", ""),
    (dict(results={"http": NEVER}, **{**STARTED, "started": ago(169)}), "starting", ""),
    (dict(results={"http": NEVER}, **{**STARTED, "started": ago(171)}), "unknown", "",
     {"reason": "http has not run for 171 s"}),
    (dict(**WAITING, warm=False, started=ago(999)), "unknown", ""),
    (dict(**WAITING, state="healthy"), "unknown", "", {"reason": "http: monit does not watch it"}),
    (dict(results={"http": NEVER}, state="failing", **RENEWED, failing=FAILED), "failing", ""),
    (dict(results={"http": NEVER}, state="backoff", **RENEWED, failing=FAILED), "backoff", ""),
    (dict(results={"http": NEVER}, state="failing", **{**RENEWED, "proof_from": ago(999)},
          failing=FAILED), "unknown", ""),
    (dict(results={"http": RELOADED}, state="failing", **RENEWED, failing=FAILED), "failing", ""),
    (dict(results={"http": RELOADED}, state="failing", **RENEWED,
          failing={"http": {**FAILED["http"], "start": 1}}), "starting", ""),
    (dict(results={"http": NEVER}, state="healthy", **RENEWED),
     "starting", "", {"reason": "waiting for http, which has not run since its rules changed"}),
    (dict(results={"http": NEVER}, state="healthy", started=ago(9)), "unknown", ""),
    (dict(results={"http": ABSENT}, **STARTED), "unknown", "", {"reason": "does not know it"}),
    # what a proof is worth
    (dict(results={"http": seen(age=139)}), "healthy", ""),
    (dict(results={"http": seen(age=141)}), "unknown", "", {"reason": "proves it for 140 s"}),
    (dict(results={"http": ONCE}), "healthy", ""),
    (dict(results={"http": ONCE}, **STARTED), "starting", ""),
    (dict(results={"http": seen(age=9e6, interval=None)}), "healthy", ""),
    (dict(results={"env": UNMONITORED, "http": GOOD}), "unknown", ""),
    (dict(results=FAILS, state="healthy", renewed=True), "starting", "", {"warm": False}),
    (dict(results={"http": seen("bad", live=False)}), "failing", ""),
    (dict(results={"http": seen("bad", 141)}), "failing", ""),
    # a check that runs seldom is not waited for, its last result stands
    (dict(results={"http": GOOD, "cert": seen(age=7200, interval=DAY)}, **STARTED), "healthy", ""),
    (dict(results={"cert": seen(age=9e6, interval=DAY)}, **STARTED), "healthy", ""),
    (dict(results={"cert": seen(age=9e4, interval=DAY)}), "unknown", ""),
    (dict(results=CERT, **STARTED), "failing", "", {"reason": "expires in 19 days"}),
    (dict(results=CERT), "failing", "cert"),
    (dict(results=CERT, checks={"cert": {"on_failure": ["alert"]}}, **STARTED), "warning", ""),
    # what was left alone and is no more: what failed before justifies no heal
    (dict(results=FAILS, apart="silenced"), "unknown", "", {"apart": None}),
    (dict(apart="silenced"), "healthy", "", {"apart": None}),
    (dict(apart="maintenance", state="maintenance"), "starting", ""),
    (dict(up=False, apart="maintenance", state="maintenance"), "failing", "env"),
    (dict(results={"env": BAD, "http": GOOD}), "healthy", ""),
    (dict(results={"http": UNASKED}), "unknown", "", {"reason": "http: rctl says no"}),
    (dict(results={"acert": UNASKED, "http": BAD}), "failing", "http"),
    (dict(results={"http": GOOD}, started={**ago(5), "t": NOW.t + 3600}), "healthy", ""),
    (dict(results={"http": seen("bad", 30)}, start_period=0, **STARTED), "starting", ""),
    (dict(results={"http": seen("bad", 5)}, start_period=0, **STARTED), "failing", "http"),
    # what the policy allows
    (dict(results=FAILS, heal=False), "failing", "", {"reason": "refused; heal: false"}),
    (dict(results=FAILS, on_failure=["alert"]), "warning", "", {"check": "http"}),
    (dict(results={**FAILS, "x": UNASKED}, on_failure=["alert"]), "unknown", ""),
    (dict(results=FAILS, on_failure=["alert", "event"]), "failing", ""),
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
     {"gave_up": True, "reason": "2 attempts did not help: connection"}),
    (dict(results=FAILS, attempts=[ago(1801), ago(5)], restart={"attempts": 2}), "failing", "http"),
    (dict(results=FAILS, attempts=TWICE, restart=DELAY), "backoff", "", {"reason": "in 1700 s"}),
    (dict(results=FAILS, restart={"attempts": 0, "mode": "fail"}), "gave_up", ""),
    (dict(results=FAILS, restart={"attempts": 0, "mode": "delay"}), "backoff", ""),
    (dict(results=FAILS, **HELD), "backoff", "", {"reason": "next attempt in 30 s: connection"}),
    (dict(results=FAILS, **{**HELD, "next": {"after": ago(41), "seconds": 40}}), "backoff", "http"),
    (dict(up=False, attempts=[ago(700)] * 3, state="healthy", since=ago(601)), "failing", "env"),
    (dict(up=False, attempts=[ago(700)] * 3, state="warning", since=ago(9), well=ago(601)),
     "failing", "env"),
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
    ({"results": FAILS}, True, NOW.t - 1, True),
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
    "one that only alerts fails": {"results": FAILS, "checks": ALERTS},
    "all checks succeed": {},
}
BEFORE = {
    "starting": {"warm": False, "started": ago(2)},
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
    assert set(STATES) == set(re.findall(r"^\| `(\w+)`(?: \| \w+){5} \|$", text, re.M))


TLS = {"tls": {"type": "tls", "on_failure": ["alert"]}, "dns": {"on_failure": ["alert"]}}
WORN = seen("bad", reason="expires in 19 days")


@cases(
    ("given", "transitions", "failing"),
    (  # a second failure beside a first
        dict(state="warning", check="tls", failing={"tls": {"since": ago(9)}}, checks=TLS,
             results={"tls": WORN, "dns": BAD}),
        [("warning", "dns")], ["dns", "tls"],
    ),
    (
        dict(state="failing", check="http", failing={"http": {"since": ago(9)}}, checks=TLS,
             results={"http": BAD, "tls": WORN}),
        [("warning", "tls")], ["http", "tls"],
    ),
    (  # both at once: the state tells one, the other is told beside it
        dict(state="healthy", failing=None, checks=TLS, results={"http": BAD, "tls": WORN}),
        [("failing", "http"), ("warning", "tls")], ["http", "tls"],
    ),
    (  # one holds again while another fails
        dict(state="warning", failing={"tls": {"since": ago(9)}, "dns": {"since": ago(9)}},
             checks=TLS, results={"tls": GOOD, "dns": BAD}),
        [("warning", "tls")], ["dns"],
    ),
    (  # all hold again: that is what `recovered` says
        dict(state="warning", failing={"tls": {"since": ago(9)}}, checks=TLS,
             results={"tls": GOOD}),
        [("recovered", None), ("healthy", None)], [],
    ),
    (  # nothing new
        dict(state="warning", failing={"tls": {"since": ago(9)}}, checks=TLS,
             results={"tls": WORN}),
        [], ["tls"],
    ),
    (  # what was known before a reload is nothing new
        dict(state="warning", failing={"tls": {"since": ago(9)}}, checks=TLS,
             results={"tls": seen("bad", live=False)}),
        [], ["tls"],
    ),
    (  # an older agent told of it
        dict(state="failing", check="http", checks=TLS, results={"http": BAD, "tls": WORN}),
        [], ["http", "tls"],
    ),
    (dict(state="failing", failing={"env": {"since": ago(9)}}, up=False), [], ["env"]),
    (  # it does not hold again because the env died
        dict(state="failing", failing={"http": {"since": ago(9)}}, up=False,
             results={"http": GOOD}), [("failing", "env")], ["env"],
    ),
    (dict(state="failing", failing={"http": {"since": ago(9)}}, results=None),
     [("unknown", None)], ["http"]),
    (dict(state="healthy", failing=None, quarantined="line 3", results=FAILS),
     [("failing", "http"), ("quarantined", None)], ["http"]),
    (dict(state="failing", failing={"http": {"since": ago(9)}}, quarantined="line 3",
          results=FAILS, record={"quarantined": "line 3"}), [], ["http"]),
)  # fmt: skip
def test_each_check_that_begins_or_ceases_to_fail_is_told_once(given, transitions, failing):
    verdict = judged(**given)
    assert [(t.name, t.check) for t in verdict.env.transitions] == transitions
    rows = verdict.env["failing"] or {}
    assert sorted(rows) == failing
    known = given.get("failing") or {}
    assert {c: rows[c]["since"] for c in rows if c in known} == {
        c: known[c]["since"] for c in rows if c in known
    }
    if given.get("results") and "tls" in rows:
        assert rows["tls"]["warning"] is True
