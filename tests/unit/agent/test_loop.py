"""The one agent: passes and heals until nothing is left, whatever fails, and its ticket."""

import os
import threading
import time
from types import SimpleNamespace

import loop
import passes
import policy
import proof
import pytest
import records
from clock import Moment
from node import AgentError
from restrain import Due

from .conftest import cases, remember


@pytest.fixture
def agent(node):
    found = loop.Agent(node, node.in_run("agent.pid"))
    os.mkdir(found.ticket)
    return found


def result(node, due=(), envs=(), **more):
    """A Pass over ``envs``, all running, in which the envs ``due`` are due."""
    survey = SimpleNamespace(kernel={"jail": {env.name for env in envs}})
    rules = {env.name: {**policy.BUILTIN, "checks": {"app": {"type": "exec"}}} for env in envs}
    fields = {"unsettled": False, "look_again_in": None, "warnings": [], "errors": {}, **more}
    due = [Due(name, "http", "x") for name in due]
    named = {env.name: env for env in envs}
    return passes.Pass(survey, named, rules, publication=None, due=due, **fields)


def ago(node, seconds):
    now = node.now()
    return now._replace(t=now.t - seconds, m=now.m - seconds).stamp()


@cases(
    ("record", "given", "waits"),
    ({}, {}, []),
    ({"op": {"id": "x"}}, {}, [0.5]),
    *(({"phase": p}, {}, [1]) for p in ("stopping", "starting", "restarting", "removing")),
    ({"phase": "booting"}, {}, []),
    ({"state": "starting", "started": 1}, {}, [0.5]),
    ({"state": "starting", "started": 91}, {}, []),
    ({"state": "backoff", "next": 30}, {}, [30]),
    ({"state": "backoff", "next": 95}, {}, []),
    ({}, {"due": ["lb1"]}, [1]),
    ({}, {"unsettled": True}, [0.3]),
    ({}, {"look_again_in": 7}, [7]),
    ({"intent": "running"}, {"probes": "agent"}, [0]),
    ({"intent": "running", "probes": 10}, {"probes": "agent"}, [20]),
    ({"op": {"id": "x"}}, {"heals": {"lb1": 0}, "due": ["lb1"]}, [0.5]),
    ({}, {"unsaved": {"path": {}}}, [5]),
)
def test_reasons_to_look_again(node, agent, monkeypatch, record, given, waits):
    started, probed, waits_for = (record.get(key, 0) for key in ("started", "probes", "next"))
    stamps = {"started": ago(node, started), "probes": {"app": {"at": ago(node, probed)}}}
    stamps["next"] = {"after": node.stamp(), "seconds": waits_for}
    record = {**record, **{key: stamps[key] for key in stamps.keys() & record}}
    given = dict(given)
    node.conf["probes"] = given.pop("probes", "monit")
    agent.heals = given.pop("heals", {})
    monkeypatch.setattr(records, "UNSAVED", given.pop("unsaved", {}))
    env = records.Record("lb1", {"emulator": "jail", "state": "healthy", "attempts": [], **record})
    found = list(agent._reasons_to_look(result(node, envs=[env], **given)))
    assert found == [pytest.approx(wait, abs=0.06) for wait in waits]


def test_heals_begin_within_the_budget_and_none_after_quit(node, agent, monkeypatch):
    begun, go_on = [], threading.Event()

    class Heal:
        def __init__(self, node, *due):
            begun.append(due)

        def run(self):
            go_on.wait(20)

    monkeypatch.setattr(loop.heal, "Heal", Heal)
    node.budget["max_concurrent"] = 2
    due = result(node, due=["a", "b", "c"])
    assert (agent._begin(due), agent._begin(due)) == (0.5, 0.5)
    assert begun == [("a", "http", "x"), ("b", "http", "x")]
    threads = list(agent.heals.values())
    open(node.in_run("quit"), "w").close()
    assert agent._begin(due) == 0.5, "it waits for those that it began"
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert agent._begin(due) is None and len(begun) == 2
    os.unlink(node.in_run("quit"))
    agent._begin(result(node, due=["c"]))
    agent.heals["c"].join(20)
    assert begun[2:] == [("c", "http", "x")]


def looping(agent, monkeypatch, *steps):
    """Let the passes of ``agent.loop`` do ``steps``; returns how long it waited after each."""
    waits, steps = [], list(steps)

    def one_pass(node):
        step = steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step()

    monkeypatch.setattr(loop, "one_pass", one_pass)
    monkeypatch.setattr(agent, "_wait", waits.append)
    agent.loop()
    assert steps == []
    return waits


def test_pass_that_fails_is_told_and_the_next_goes_on(node, agent, monkeypatch, capsys):
    try:
        {}["surprise"]
    except KeyError as err:
        bug = err
    waits = looping(agent, monkeypatch, AgentError("no inventory"), bug, lambda: result(node))
    assert (waits, agent.failures) == ([1, 1], 0) and not os.path.exists(agent.ticket)
    logged = capsys.readouterr().err
    assert "pass failed: AgentError: no inventory\n" in logged and logged.count("Traceback") == 1
    assert "pass failed: a bug in cbsd_monit, not your configuration: a pass: KeyError" in logged
    assert "agent.log" in logged.splitlines()[-1] and '{}["surprise"]' in logged


def test_agent_ends_after_three_failures_unless_it_heals(node, agent, monkeypatch):
    agent.heals = {"a": SimpleNamespace(is_alive=lambda: len(agent.heals) and agent.failures < 4)}
    assert looping(agent, monkeypatch, *[OSError("full")] * 4) == [1, 1, 1]


def test_passes_take_at_most_a_fifth_of_the_time(node, agent, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(seconds, **more):
        clock[0] += seconds
        return result(node, **more)

    steps = [lambda: slow(2, unsettled=True), lambda: slow(0.4, unsettled=True), lambda: slow(9)]
    assert looping(agent, monkeypatch, *steps) == [8, 0.3]


def test_ticket_is_taken_again_when_somebody_called(node, agent, monkeypatch, tmp_path):
    def called():
        open(agent.trigger, "w").close()
        return result(node)

    def again():
        assert (tmp_path / "run/agent.pid/pid").read_text() == f"{os.getpid()}\n"
        return result(node)

    looping(agent, monkeypatch, called, again)
    assert not os.path.exists(agent.ticket)
    os.mkdir(agent.ticket)
    open(agent.trigger, "w").close()
    open(node.in_run("quit"), "w").close()
    assert agent._leave() is True and not os.path.exists(agent.ticket)
    os.mkdir(agent.ticket)
    os.unlink(node.in_run("quit"))
    monkeypatch.setattr(os, "rename", lambda *_: os.makedirs(agent.ticket, exist_ok=True))
    assert agent._leave() is True, "the caller took it: the next agent waits for our lock"


def test_there_is_one_agent_with_a_signed_ticket_and_a_bounded_log(node, monkeypatch, tmp_path):
    ran, log, ticket = [], tmp_path / "state/agent.log", tmp_path / "run/agent.pid/pid"
    log.write_text("x" * (loop.LOG_SIZE + 1))
    monkeypatch.setattr(loop.Agent, "loop", lambda agent: ran.append(ticket.read_text()))
    with node.lock(node.in_run("agent.lock"), why="agent"):
        loop.run(node)
    assert ran == [] and log.exists()
    loop.run(node)
    assert ran == [f"{os.getpid()}\n"] and not log.exists() and os.path.exists(f"{log}.1")


def test_ticket_of_an_agent_that_was_killed_before_it_signed_is_freed(node, agent):
    loop.free_stale_ticket(node)
    assert os.path.exists(agent.ticket), "it may just be starting"
    os.utime(agent.ticket, (time.time() - 11, time.time() - 11))
    with node.lock(node.in_run("agent.lock"), why="agent"):
        loop.free_stale_ticket(node)
    assert os.path.exists(agent.ticket), "its agent lives"
    loop.free_stale_ticket(node)
    assert not os.path.exists(agent.ticket)


def test_probes_that_are_due_are_run_between_two_passes(node, monkeypatch):
    env = records.Record("lb1", {"emulator": "jail"})
    found, how, ran, wait = result(node, envs=[env]), [], [], [0.4]
    monkeypatch.setattr(passes, "run", lambda node, **more: how.append(more) or found)
    monkeypatch.setattr(loop.probes, "due", lambda *_: [(wait[0], env, "app"), (9, env, "db")])
    monkeypatch.setattr(loop.probes, "run_all", lambda node, jobs: ran.extend(jobs))
    assert loop.one_pass(node, start_monit=True) is found
    assert (how, ran) == ([{"start_monit": True}, {}], [("lb1", "app")])
    wait[0] = 0.6
    loop.one_pass(node)
    assert (len(how), len(ran)) == (3, 1)


def test_heals_get_the_pass_lock_although_triggers_never_cease(node, agent):
    agent.heals = {"a": threading.current_thread()}
    stop = threading.Event()

    def passes_without_end():
        while not stop.is_set():
            with node.pass_lock():
                open(agent.trigger, "w", encoding="ascii").close()
                time.sleep(0.3)
            agent._wait(5)

    thread = threading.Thread(target=passes_without_end)
    thread.start()
    try:
        for _ in range(3):
            began = time.monotonic()
            with node.lock(node.in_run("pass.lock"), wait=10, why="heal"):
                assert time.monotonic() - began < 3
            time.sleep(0.05)
    finally:
        stop.set()
        thread.join()


def test_passes_that_fail_for_too_long_make_every_env_unknown(node, world, monkeypatch, no_monit):
    """The first failures change nothing: what was known is known until the limit."""
    world.settle("a", "b")
    remember(node, "a", state="healthy", reason="")
    remember(node, "b", state="failing", op={"id": "x", "action": "restart", "step": "stop"})
    (world.tmp_path / "work/nc.inventory").unlink()
    with pytest.raises(AgentError, match="cannot be read"):
        loop.one_pass(node)
    assert records.load(node, "a")["state"] == "healthy"
    late = node.now().m + 2 * proof.WORST + 91
    monkeypatch.setattr(type(node), "now", lambda self: Moment(time.time(), late, self.boot))
    for _ in range(2):
        with pytest.raises(AgentError, match="cannot be read"):
            loop.one_pass(node)
    env = records.load(node, "a")
    assert env["state"] == "unknown" and "inventory" in env["reason"], env.data
    assert env["known"]["state"] == "healthy"
    assert records.load(node, "b")["state"] == "failing", "its heal goes on"
    told = [entry["transition"] for entry in records.history(node, "a")]
    assert told.count("unknown") == 1
