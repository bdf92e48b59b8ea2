"""The record of an env: how it changes, when it is written, and what a full disk does to it."""

import os

import files
import pytest
import records
from clock import Moment
from node import AgentError

from .conftest import remember

NOW = Moment(1000.0, 50.0, "boot-1")


def test_copy_to_work_on_leaves_the_original(node):
    first = records.load(node, "lb1")
    copy = first.at(NOW)
    copy.intend("running", "started", "x" * 300)
    copy.enter_phase("starting", "heal")
    copy.go("failing", "port 80", "http", attempt=1)
    copy.go("failing", "port 81")
    assert (first.data, first.transitions) == (records.load(node, "lb1").data, [])
    assert (copy["intent"], copy.why()) == ("running", ("started", "x" * 200))
    assert (copy["phase"], copy["cause"], copy["phase_since"]) == ("starting", "heal", NOW.stamp())
    assert (copy["state"], copy["reason"], copy["check"]) == ("failing", "port 81", "http")
    expected = records.Transition("failing", "port 80", "http", "unknown", True, {"attempt": 1})
    assert copy.transitions == [expected] and copy["since"] == NOW.stamp()
    later = copy.at(NOW._replace(t=1010.0, m=60.0))
    later.intend("running", "again")
    later["next"] = {"after": NOW.stamp(), "seconds": 25}
    assert (later.why()[0], later.age("since"), later.waits()) == ("started", 10, 15)
    assert later.age("none") == float("inf") and copy.waits() == 0
    later.enter_phase("removing")
    later.announce("removed")
    assert not later.transitions[-1].kept and later.transitions[:1] == [expected]
    later.enter_phase(None)
    assert later["phase_since"] is None


def test_history_is_bounded_and_each_transition_has_an_id(node, world):
    world.env("lb1")
    env = records.load(node, "lb1").at(NOW)
    for i in range(250):
        env.announce("failing", str(i))
    records.save(node, env)
    found = records.history(node, "lb1")
    assert len(found) == 200 and found[-1]["reason"] == "249"
    assert len({entry["id"] for entry in found}) == 200
    files.EnvDir(node.sysdir("lb1")).write("history.jsonl", '[1]\ntorn {\n{"env": "x"}\n')
    assert records.history(node, "lb1") == [{"env": "x"}]


def test_record_that_cannot_be_saved_is_written_later(node, world, monkeypatch, capsys):
    world.env("lb1")
    env = records.load(node, "lb1")
    records.save(node, env)
    real = files._put

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("files._put", full)
    for count in (1, 2):
        env["attempts"] = [1] * count
        records.save(node, env)
        again = records.load(node, "lb1")
        assert again["attempts"] == [1] * count
    assert capsys.readouterr().err.count("its record cannot be written") == 1
    monkeypatch.setattr("files._put", real)
    records.save(node, again)
    assert records.UNSAVED == {} and records.load(node, "lb1")["attempts"] == [1, 1]


def test_saved_record_is_written_only_when_it_changed(node, world, monkeypatch):
    world.env("lb1")
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    env = records.load(node, "lb1").at(NOW)
    env.announce("created")
    records.save(node, env)
    assert synced == [], "what is first seen is no loss"
    env.fresh = False  # as a hook leaves it
    env["heals"] = 0
    records.save(node, env)
    assert synced
    path = node.in_state("envs", "lb1.json")
    os.utime(path, (7, 7))
    env = records.load(node, "lb1")
    records.save(node, env)
    assert os.stat(path).st_mtime == 7 and not env.new and records.names(node) == {"lb1"}
    remember(node, "lb1", heals=1)
    assert records.load(node, "lb1")["heals"] == 1 and records.UNSAVED == {}
    remember(node, "unknown", heals=1)
    assert records.names(node) == {"lb1"}
    open(node.dead_marker("lb1"), "w").close()
    records.forget(node, "lb1")
    assert records.names(node) == set() and not os.path.exists(node.dead_marker("lb1"))
    files.write(node.in_state("envs", "lb1.json"), '{"schema": 9}')
    with pytest.raises(AgentError, match="has schema 9, this agent knows 1"):
        records.load(node, "lb1")


def gone(*states, start="unknown"):
    """The transitions of an env that goes through ``states``."""
    env = records.Record("lb1", {"env": "lb1", "emulator": "jail", "state": start}).at(NOW)
    for state in states:
        env.go(state, f"why {state}")
    return [step.name for step in env.transitions], env


@pytest.mark.parametrize("ill", ["warning", "failing", "backoff", "gave_up", "quarantined"])
def test_env_that_becomes_well_without_a_heal_has_recovered(ill):
    assert gone(ill, "healthy")[0] == [ill, "recovered", "healthy"]
    assert gone(ill, "starting", "unknown", "healthy")[0][-2:] == ["recovered", "healthy"]
    assert gone(ill, "unknown", ill, "healthy", "unknown", "healthy")[0].count("recovered") == 1
    for ends in ("healing", "stopped", "silenced", "maintenance"):
        assert "recovered" not in gone(ill, ends, "starting", "healthy")[0]
    _, env = gone(ill, "healthy")
    assert env.transitions[-2].reason == f"why {ill}" and not env["ill"]


def test_state_before_unknown_is_remembered_and_a_warning_is_as_good_as_health():
    _, env = gone("healthy", "unknown")
    assert env["known"] == {"state": "healthy", "reason": "why healthy", "since": NOW.t}
    env.go("healthy")
    assert env["known"] is None
    _, env = gone("healthy", "warning")
    later = env.at(NOW._replace(t=1010.0, m=60.0))
    later.go("healthy")
    assert (later.age("since"), later.age("well")) == (0, 10)


def test_check_that_flaps_pushes_no_heal_out_of_the_history(node, world):
    folder = world.env("lb1")
    env = records.load(node, "lb1").at(node.now())
    env.go("healing")
    for number in range(2 * records.HISTORY):
        env.announce("warning", str(number), "tls")
    records.save(node, env)
    env.announce("healing", "another")
    records.save(node, env)
    kept = records.history(node, "lb1")
    assert [entry["transition"] for entry in kept].count("healing") == 2
    assert len(kept) == records.HISTORY + 1 and kept[0]["transition"] == "healing"
    for _ in range(2 * records.ATTEMPTS):
        env.announce("healing")
    records.save(node, env)
    for number in range(2 * records.HISTORY):
        env.announce("warning", str(number), "tls")
    records.save(node, env)
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert len(lines) == records.HISTORY + records.ATTEMPTS
