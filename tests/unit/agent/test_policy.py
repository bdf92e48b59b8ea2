"""In which state is an env, may it be healed, and when: one table, without CBSD and monit."""

import json
import time

import passes
import policy
import pytest
import state
from monit import Outcome, Service, Status


def service(name, status=0, monitor=1, collected=None):
    stamp = time.time() + 5 if collected is None else collected
    return (
        f'<service type="4"><name>{name}</name><collected_sec>{int(stamp)}</collected_sec><collected_usec>0</collected_usec>'
        f"<status>{status}</status><monitor>{monitor}</monitor><pendingaction>0</pendingaction></service>"
    )


@pytest.fixture
def judged(node, world, monkeypatch):
    """Judge lb1 in a world; returns (state, due checks, env record)."""

    def judge(
        services=(("lb1.env", 0), ("lb1.http", 0)),
        record=None,
        up=True,
        kernel=True,
        pol=None,
        silence=None,
        quarantined=False,
        **row,
    ):
        world.env("lb1", up=up, policy=pol or {}, **row)
        env = state.Env(node, "lb1")
        env.data.update({"intent": "running", "started": None, "warm": True, **(record or {})})
        seen = passes.Pass(node)
        seen.rows = {"lb1": world.rows["lb1"]}
        seen.kernel = {"jail": set(world.up), "bhyve": set()} if kernel else None
        seen.silences = {"lb1": silence} if silence else {}
        xml = "<monit><server><version>5.33.0</version></server>"
        seen.status = (
            Status(xml + "".join(service(n, *a) for n, *a in services) + "</monit>")
            if services is not None
            else None
        )
        seen.envs = {"lb1": env}
        seen.quarantined = {"lb1": {"reason": "syntax error"}} if quarantined else {}
        names = {
            n: n.split(".")[1]
            for n in ("lb1.env", "lb1.http", "lb1.acert")
            if "acert" not in n or len(services or ()) > 2
        }
        policy.judge(seen, env, names)
        return env["state"], [c for _, c, _ in seen.due], env

    return judge


FAILING = (("lb1.env", 0), ("lb1.http", 32))


@pytest.mark.parametrize(
    ("case", "want_state", "want_due"),
    [
        ({}, "healthy", []),
        ({"services": FAILING}, "failing", ["http"]),
        ({"up": False}, "failing", ["env"]),
        ({"up": False, "services": None}, "failing", ["env"]),
        ({"services": None}, "unknown", []),
        ({"kernel": False}, "unknown", []),
        ({"services": FAILING, "kernel": False}, "unknown", []),
        ({"services": (("lb1.http", 32, 0),)}, "starting", []),
        ({"services": FAILING, "status": "3"}, "maintenance", []),
        ({"up": False, "status": "2"}, "slave", []),
        ({"up": False, "record": {"intent": "stopped"}}, "stopped", []),
        ({"services": FAILING, "record": {"intent": "stopped"}}, "failing", ["http"]),
        ({"services": FAILING, "silence": {"until": 4e9, "reason": "x"}}, "silenced", []),
        ({"up": False, "silence": {"until": 4e9, "reason": "x"}}, "silenced", []),
        ({"services": FAILING, "pol": {"heal": False}}, "failing", []),
        ({"services": FAILING, "pol": {"on_failure": ["alert"]}}, "failing", []),
        (
            {
                "services": FAILING,
                "pol": {"checks": {"http": {"type": "http", "on_failure": ["event"]}}},
            },
            "failing",
            [],
        ),
        ({"up": False, "pol": {"on_failure": ["alert"]}}, "failing", []),
        ({"up": False, "pol": {"on_failure": ["stop"]}}, "failing", []),
        ({"up": False, "pol": {"on_failure": ["alert", "stop", "restart"]}}, "failing", ["env"]),
        ({"services": FAILING, "record": {"gave_up": True}}, "gave_up", []),
    ],
)
def test_state_and_what_is_due(judged, case, want_state, want_due):
    if case.get("services") == (("lb1.http", 32, 0),):
        case = {
            **case,
            "record": {
                "warm": False,
                "started": {"t": time.time(), "m": time.monotonic(), "b": "boot-1"},
            },
        }
    found, due, _ = judged(**case)
    assert (found, due) == (want_state, want_due)


def test_phase_of_a_typed_restart_is_not_a_failure(judged, node):
    record = {"phase": "restarting", "cause": "restart", "phase_since": node.stamp()}
    assert judged(up=False, record=record)[:2] == ("starting", [])
    late = {**node.stamp(), "m": time.monotonic() - 61}
    assert judged(up=False, record={**record, "phase_since": late})[:2] == ("failing", ["env"])


def test_stop_that_did_not_happen_is_no_intent(judged, node):
    record = {
        "intent": "stopped",
        "phase": "stopping",
        "phase_since": {**node.stamp(), "m": time.monotonic() - 999},
    }
    found, due, env = judged(services=FAILING, record=record)
    assert (env["intent"], found, due) == ("running", "failing", ["http"])


def test_grace_ends_with_the_first_success_or_with_its_time(judged, node):
    fresh = {"warm": False, "started": node.stamp()}
    old = {"warm": False, "started": {**node.stamp(), "m": time.monotonic() - 61}}
    assert judged(services=FAILING, record=fresh)[:2] == ("starting", [])
    assert judged(services=FAILING, record={**fresh, "warm": True})[:2] == ("failing", ["http"])
    assert judged(services=FAILING, record=old)[:2] == ("failing", ["http"])


def test_attempts_are_bounded_in_their_interval(judged, node):
    now = node.stamp()
    long_ago = {**now, "m": now["m"] - 1801}
    pol = {"restart": {"attempts": 2, "interval": 1800}}
    assert judged(services=FAILING, pol=pol, record={"attempts": [now]})[1] == ["http"]
    assert judged(services=FAILING, pol=pol, record={"attempts": [now, now]})[:2] == ("gave_up", [])
    assert judged(services=FAILING, pol=pol, record={"attempts": [long_ago, now]})[1] == ["http"]
    pol["restart"]["mode"] = "delay"
    assert judged(services=FAILING, pol=pol, record={"attempts": [now, now]})[:2] == ("backoff", [])


def test_backoff_waits(judged, node):
    record = {"next": {"after": node.stamp(), "seconds": 30}, "state": "failing"}
    assert judged(services=FAILING, record=record)[:2] == ("backoff", [])
    record["next"]["after"]["m"] -= 31
    assert judged(services=FAILING, record=record)[1] == ["http"]


@pytest.mark.parametrize(
    ("function", "waits"),
    [("constant", [10, 10, 10, 10]), ("exponential", [10, 20, 40, 45])],
)
def test_delay_grows_to_its_cap_and_jitters_around_it(function, waits):
    restart = {"delay": 10, "delay_function": function, "max_delay": 45, "jitter": 0.25}
    assert [policy.delay(restart, n, lambda: 0.5) for n in range(1, 5)] == waits
    assert [policy.delay(restart, n, lambda: 1.0) for n in range(1, 5)] == [w * 1.25 for w in waits]


def test_node_boot_waits_for_cbsd(judged, node):
    record = {"boot": "boot-0"}
    found, due, env = judged(up=False, record=record, astart="1")
    assert (found, due) == ("starting", [])
    found, due, env = judged(up=False, record=record, astart="0")
    assert (found, due, env["intent"]) == ("stopped", [], "stopped")
    late = {"phase": "booting", "phase_since": {**node.stamp(), "m": time.monotonic() - 601}}
    assert judged(up=False, record=late, astart="1")[:2] == ("failing", ["env"])


def test_killed_heal_is_finished_and_its_maintenance_is_ours(judged, node):
    record = {
        "op": {"id": "x", "action": "restart", "step": "stop", **node.stamp()},
        "state": "healing",
    }
    found, due, env = judged(up=False, status="3", record=record)
    assert (found, due, env["op"]) == ("failing", ["env"], None)


def test_stop_that_an_operator_began_after_the_heal_was_killed_is_meant(judged, node):
    record = {
        "op": {"id": "x", "action": "restart", "step": "start", **node.stamp()},
        "state": "healing",
    }
    record.update(intent="stopped", phase="stopping", cause="operator", phase_since=node.stamp())
    found, due, env = judged(record=record)
    assert (due, env["op"], env["intent"], env["phase"]) == ([], None, "stopped", "stopping")
    record.update(phase="stopping", cause="heal", intent="running")
    assert judged(up=False, record=record)[2]["phase"] is None


def test_running_heal_is_left_alone(judged, node):
    record = {"op": {"id": "x", "action": "restart", "step": "stop", **node.stamp()}}
    with node.env_lock("lb1", "test"):
        assert judged(up=False, record=record)[:2] == ("healing", [])


@pytest.mark.parametrize(
    ("failing", "total", "storms"), [(4, 4, False), (5, 10, False), (6, 10, True), (5, 5, True)]
)
def test_storm_needs_a_share_and_a_number(node, world, failing, total, storms):
    seen = passes.Pass(node)
    seen.envs = {}
    for i in range(total):
        world.env(f"e{i}")
        env = seen.envs[f"e{i}"] = state.Env(node, f"e{i}")
        env["intent"] = "running"
        env.go("failing" if i < failing else "healthy")
    seen.due = [(e, "http", "") for e in seen.envs.values() if e["state"] == "failing"]
    policy.restrain(seen)
    assert (bool(seen.storm), bool(seen.due)) == (storms, not storms)
    if storms:
        assert (
            "fail at once"
            in (world.tmp_path / "work/jails-system/e0/monit/history.jsonl").read_text()
        )
        for env in seen.envs.values():
            env.go("healthy")
        policy.restrain(seen)
        assert not seen.storm


def test_after_a_storm_only_what_failed_once_more_is_healed(node, world):
    """A check may have run last while the network was away."""
    seen = many(node, world, ["failing"] * 6)
    policy.restrain(seen)
    assert seen.storm
    seen = many(node, world, ["healthy"] * 4 + ["failing"] * 2)
    seen.looked = {"e4": time.time() - 1, "e5": time.time() + 1}
    policy.restrain(seen)
    assert not seen.storm and seen.due == [] and seen.soon, (
        "a run takes 2 s: that of e5 began before"
    )
    seen = many(node, world, ["healthy"] * 4 + ["failing"] * 2)
    seen.looked = {"e4": time.time() - 1, "e5": time.time() + 2.1}
    policy.restrain(seen)
    assert [e.name for e, _, _ in seen.due] == ["e5"]
    seen = many(node, world, ["failing"] * 6)
    policy.restrain(seen)
    assert seen.storm, "the next one"


def test_history_is_bounded_and_each_transition_has_an_id(node, world):
    world.env("lb1")
    env = state.Env(node, "lb1")
    for i in range(250):
        env.tell("failing", str(i))
    lines = (world.tmp_path / "work/jails-system/lb1/monit/history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 200 and records[-1]["reason"] == "249"
    assert len({r["id"] for r in records}) == 200


def test_status_zero_is_not_health():
    from xml.etree import ElementTree

    def read(xml):
        return Service(ElementTree.fromstring(xml))

    assert read(service("x")).good_since(0)
    assert not read(service("x", monitor=0)).good_since(0)
    assert not read(service("x", monitor=2)).good_since(0)
    assert not read(service("x", collected=10)).good_since(20)
    assert not read(service("x", status=32)).good_since(0)


def test_check_that_is_acted_on_comes_before_one_that_is_only_told(judged):
    pol = {
        "checks": {
            "http": {"type": "http", "on_failure": ["restart"]},
            "acert": {"type": "tls", "on_failure": ["alert"]},
        }
    }
    both = (("lb1.env", 0), ("lb1.http", 32), ("lb1.acert", 32))
    found, due, env = judged(services=both, pol=pol)
    assert due == ["http"]


def test_grace_of_a_check_is_its_own(judged, node):
    started = {"warm": False, "started": {**node.stamp(), "m": time.monotonic() - 10}}
    pol = {"start_period": 2, "checks": {"http": {"type": "http", "start_period": 120}}}
    assert judged(services=FAILING, pol=pol, record=started)[:2] == ("starting", [])
    pol["checks"]["http"]["start_period"] = 5
    assert judged(services=FAILING, pol=pol, record=started)[1] == ["http"]


def test_dead_envs_are_no_storm_and_are_started_during_one(node, world):
    seen = passes.Pass(node)
    for i in range(8):
        world.env(f"e{i}")
        env = seen.envs[f"e{i}"] = state.Env(node, f"e{i}")
        env["intent"] = "running"
        env.go("failing", "", "env")
    seen.due = [(e, "env", "") for e in seen.envs.values()]
    policy.restrain(seen)
    assert not seen.storm and len(seen.due) == 8
    for env in list(seen.envs.values())[:7]:
        env["check"] = "http"
    seen.due = [(e, e["check"], "") for e in seen.envs.values()]
    policy.restrain(seen)
    assert seen.storm and [e.name for e, _, _ in seen.due] == ["e7"]


def many(node, world, states, **said):
    """A pass in which e0, e1, … are in ``states``, all with the check `http` and the policy ``said``."""
    seen = passes.Pass(node)
    for i, word in enumerate(states):
        world.env(f"e{i}")
        env = seen.envs[f"e{i}"] = state.Env(node, f"e{i}")
        env["intent"], env["state"], env["since"], env["check"] = (
            "running",
            word,
            node.stamp(),
            "http",
        )
        seen.told[f"e{i}"] = {
            **policy.BUILTIN,
            "checks": {"http": {"type": "http", "timeout": 2}},
            **said,
        }
    seen.due = [(e, "http", "x") for e in seen.envs.values() if e["state"] == "failing"]
    return seen


def test_first_of_a_storm_is_held_when_the_others_have_failed_once(node, world):
    seen = many(node, world, ["failing"] + ["healthy"] * 7)
    seen.suspects = {f"e{i}" for i in range(8)}
    policy.restrain(seen)
    assert seen.storm and seen.due == []


def test_with_a_threshold_of_one_the_first_failure_waits_for_the_others(node, world):
    checks = {"http": {"type": "http", "timeout": 2, "failure_threshold": 1}}
    seen = many(node, world, ["failing"] + ["healthy"] * 7, checks=checks)
    policy.restrain(seen)
    assert seen.due == [] and not seen.storm
    assert 14 < seen.soon <= 15, "a cycle of 5 s, and 2 s for each of five"
    seen = many(node, world, ["failing"] + ["healthy"] * 3, checks=checks)
    policy.restrain(seen)
    assert [e.name for e, _, _ in seen.due] == ["e0"], "four can be no storm of five"


@pytest.mark.parametrize(
    ("parent", "suspect", "healed"),
    [
        ("healthy", False, True),
        ("healthy", True, False),
        ("failing", False, False),
        ("gave_up", False, False),
        ("stopped", False, False),
        ("starting", False, False),
        ("maintenance", False, True),
    ],
)
def test_dependent_is_not_healed_while_what_it_depends_on_is_ill(
    node, world, parent, suspect, healed
):
    seen = many(node, world, ["failing", parent])
    seen.told["e0"] = {**policy.BUILTIN, "depends_on": ["e1", "elsewhere"]}
    seen.suspects = {"e1"} if suspect else set()
    policy.restrain(seen)
    assert ("e0" in [e.name for e, _, _ in seen.due]) == healed
    assert ("waits for e1" in (seen.envs["e0"]["reason"] or "")) != healed


def test_dependence_in_a_circle_is_no_dead_lock(node, world):
    seen = many(node, world, ["failing", "failing"])
    seen.told["e0"] = {**policy.BUILTIN, "depends_on": ["e1"]}
    seen.told["e1"] = {**policy.BUILTIN, "depends_on": ["e0"]}
    policy.restrain(seen)
    assert len(seen.due) == 2


def test_dependent_that_asked_is_restarted_once_after_what_it_depends_on(node, world):
    seen = many(node, world, ["healthy", "healthy"])
    seen.told["e0"] = {**policy.BUILTIN, "depends_on": ["e1"], "restart_with": ["e1"]}
    dependent, parent = seen.envs["e0"], seen.envs["e1"]
    dependent["started"] = {**node.stamp(), "m": time.monotonic() - 60}
    policy.restrain(seen)
    assert seen.due == []
    parent["restarted"] = node.stamp()
    policy.restrain(seen)
    assert [(e.name, check) for e, check, _ in seen.due] == [("e0", "depends_on")]
    seen.due, dependent["started"] = [], node.stamp()
    policy.restrain(seen)
    assert seen.due == []


def test_set_clock_hides_no_health(judged, node, monkeypatch):
    now = time.time()
    started = {
        "started": {"t": now + 3600, "m": time.monotonic() - 5, "b": node.boot},
        "warm": False,
    }
    assert (
        judged(services=(("lb1.env", 0), ("lb1.http", 0, 1, now)), record=started)[0] == "healthy"
    )


def test_what_cannot_be_asked_is_neither_health_nor_a_failure(judged, monkeypatch):
    original = service

    def program(name, status=0, monitor=1, collected=None):
        said = (
            "<program><status>75</status><output>cannot be asked: rctl</output></program></service>"
        )
        return original(name, status, monitor, collected).replace("</service>", said)

    monkeypatch.setitem(
        globals(), "service", lambda n, *a: program(n, *a) if n == "lb1.http" else original(n, *a)
    )
    found, due, env = judged(services=(("lb1.env", 0), ("lb1.http", 2097152)))
    assert (found, due) == ("unknown", []) and "rctl" in env["reason"]


def test_event_is_acted_on_only_when_the_fleet_says_so(judged, node):
    pol = {"on_failure": ["event"]}
    assert judged(services=FAILING, pol=pol)[:2] == ("failing", [])
    assert judged(services=FAILING, pol=pol, record={"recheck": node.stamp()})[:2] == (
        "failing",
        ["http"],
    )
    old = {**node.stamp(), "m": time.monotonic() - 120}
    assert judged(services=FAILING, pol=pol, record={"recheck": old})[:2] == ("failing", [])


@pytest.mark.parametrize(
    ("codes", "need", "good", "failing"),
    [
        ([1, 1], 3, 1, False),
        ([1, 1, 1], 3, 1, True),
        ([1, 1, 1, 0], 3, 1, False),
        ([1, 1, 1, 0], 3, 2, True),
        ([1, 1, 1, 0, 0], 3, 2, False),
        ([1, 0, 1], {"failures": 2, "within": 3}, 1, True),
        ([1, 0, 0, 1], {"failures": 2, "within": 3}, 1, False),
        ([1, 75, 1], 2, 1, True),
        ([1, 1, 75], 2, 1, False),
    ],
)
def test_thresholds_of_probes_that_the_agent_runs_itself(node, codes, need, good, failing):
    outcome = Outcome(
        {"failure_threshold": need, "success_threshold": good}, {"codes": codes, "at": node.stamp()}
    )
    assert outcome.failing == failing
    assert outcome.good_since(0) == (not failing and codes[-1] == 0)


def test_check_of_type_running_says_what_is_done_when_the_env_dies(judged):
    alive = {"alive": {"type": "running", "on_failure": ["alert"]}}
    assert judged(up=False, pol={"checks": alive})[:2] == ("failing", [])
    assert (
        judged(up=False, pol={"on_failure": ["alert"], "checks": {"alive": {"type": "running"}}})[1]
        == []
    )
    alive["alive"]["on_failure"] = ["restart"]
    assert judged(up=False, pol={"on_failure": ["alert"], "checks": alive})[1] == ["env"]


@pytest.mark.parametrize(("mode", "found"), [("fail", "gave_up"), ("delay", "backoff")])
def test_no_attempts_at_all(judged, mode, found):
    assert judged(services=FAILING, pol={"restart": {"attempts": 0, "mode": mode}})[:2] == (
        found,
        [],
    )


EVENTS = {
    "stopped by an operator": {"up": False, "record": {"intent": "stopped"}},
    "dies": {"up": False},
    "a check fails": {"services": FAILING},
    "all checks succeed": {},
}


def test_table_of_states_in_the_contract_is_what_happens(judged, node):
    """docs/contract.md section 10: what each state becomes when something happens to the env."""
    import contextlib
    import pathlib

    held = {
        "starting": {"record": {"warm": False, "started": node.stamp()}},
        "healing": {"record": {"op": {"id": "x", **node.stamp()}}, "lock": True},
        "backoff": {"record": {"next": {"after": node.stamp(), "seconds": 60}}},
        "gave_up": {"record": {"gave_up": True}},
        "silenced": {"silence": {"until": 4e9, "reason": "x"}},
        "maintenance": {"status": "3"},
        "slave": {"status": "2"},
        "quarantined": {"quarantined": True},
        "stopped": {},
        "unknown": {},
        "healthy": {},
        "failing": {},
    }
    rows = ["| state | " + " | ".join(EVENTS) + " |", "|---" * (len(EVENTS) + 1) + "|"]
    for name in "starting healthy failing healing backoff gave_up silenced maintenance slave quarantined stopped unknown".split():
        cells = []
        for event in EVENTS.values():
            case = {**event, **{k: v for k, v in held[name].items() if k not in ("record", "lock")}}
            case["record"] = {
                "state": name,
                **held[name].get("record", {}),
                **event.get("record", {}),
            }
            lock = (
                node.env_lock("lb1", "test") if held[name].get("lock") else contextlib.nullcontext()
            )
            with lock:
                cells.append(judged(**case)[0])
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    text = (pathlib.Path(__file__).resolve().parents[3] / "docs/contract.md").read_text()
    assert "\n".join(rows) in text, "\n".join(rows)


def test_failure_that_monit_saw_before_the_start_is_of_the_env_as_it_was(judged, node):
    begun = {"t": time.time() - 10, "m": time.monotonic() - 10, "b": node.boot}
    record = {"started": begun, "warm": False, "state": "stopped"}
    stale = (("lb1.env", 0), ("lb1.http", 32, 1, time.time() - 30))
    state_, due, _ = judged(stale, record, pol={"start_period": 0})
    assert (state_, due) == ("starting", [])
    fresh = (("lb1.env", 0), ("lb1.http", 32, 1, time.time() - 5))
    state_, due, _ = judged(fresh, record, pol={"start_period": 0})
    assert (state_, due) == ("failing", ["http"])


def test_attempts_are_forgotten_after_a_long_health_though_nobody_looked_meanwhile(judged, node):
    def ago(seconds):
        return {"t": time.time() - seconds, "m": time.monotonic() - seconds, "b": node.boot}

    for healthy, state_ in ((601, "failing"), (500, "gave_up")):
        record = {"state": "healthy", "since": ago(healthy), "attempts": [ago(700)] * 3}
        assert judged(FAILING, record)[0] == state_
