"""How hooks, and what no hook announced, change what is known of an env."""

import json
import os

import hooks
import passes
import policy
import pytest
import records
import survey
from hooks import HookRecord
from node import Node

from .conftest import cases, deliver, hook_record, remember, tree

pytestmark = pytest.mark.usefixtures("no_monit")
POSTSTART, PRESTOP, POSTSTOP = "master_poststart.d", "master_prestop.d", "master_poststop.d"


CBSD = "/usr/local/bin/cbsd"


def record(kind, ancestors=(), **environ):
    return HookRecord(hook_record(kind, ancestors=ancestors, **environ))


def life(node, *found):
    env = records.load(node, "lb1").at(node.now())
    for hook in found:
        hooks.apply(env, hook)
    return env


JSTOP, BSTOP = f"9 8 {CBSD} jstop lb1", f"9 8 {CBSD} bstop jname=lb1"
PYTHON = "9 8 /usr/bin/python3.11 -IS /x/bin/cbsd"
TYPED = ["10 9 /bin/sh /x", f"9 8 {CBSD} /usr/local/cbsd/sudoexec/jstop jname=lb1", "8 1 -sh"]
ECHO = f"8 7 sh -c {CBSD} jstop lb1; echo next time: {CBSD} jrestart lb1"


@cases(
    ("cause", "ancestors", "ours"),
    ("operator", TYPED, ""),
    ("restart", [f"9 8 {CBSD} sudoexec/jstop lb1", f"8 7 {CBSD} jrestart lb1"], ""),
    ("restart", [BSTOP, f"8 7 {CBSD} /usr/local/cbsd/bhyvectl/brestart lb1"], ""),
    ("rename", [JSTOP, f"8 7 {CBSD} jrename old=lb1 new=lb2 restart=1"], ""),
    ("shutdown", [BSTOP, "8 7 /bin/sh /usr/local/cbsd/rc.d/jails-astart stop"], ""),
    ("shutdown", [BSTOP, "8 1 /bin/sh /etc/rc.shutdown"], ""),
    ("guest", [f"9 8 {CBSD} bstop cbsd_queue_name=none jname=lb1"], ""),
    ("guest", [BSTOP, "8 1 /bin/sh /usr/local/cbsd/share/bhyverun.sh -c x"], ""),
    ("heal", [JSTOP], "heal"),
    ("restart", [JSTOP], "restart"),
    ("operator", [JSTOP], "anything"),
    ("operator", [], ""),
    ("operator", [f"9 8 {CBSD} jstop jname=jrestart-test"], ""),
    ("operator", [JSTOP, ECHO], ""),
    ("operator", [JSTOP, "8 7 -sh", "7 6 vi /etc/rc.shutdown jails-astart"], ""),
    ("operator", [JSTOP, f"8 7 {CBSD} jrestart other"], ""),
    ("restart", [JSTOP, f"8 7 {CBSD} jrestart jname=lb*"], ""),
    ("restart", [f"{PYTHON} jstop lb1", f"{PYTHON} jrestart jname=lb1"], ""),
)
def test_cause_of_a_stop(node, cause, ancestors, ours):
    stop = record(PRESTOP, ancestors, **({"CBSD_MONIT_CAUSE": ours} if ours else {}))
    env = life(node, record(POSTSTART, jid="7"), stop)
    intent = "stopped" if cause == "operator" else "running"
    assert (env["phase"], env["cause"], env["intent"]) == ("stopping", cause, intent)
    hooks.apply(env, record(POSTSTOP))
    again = cause in ("restart", "rename", "shutdown")
    assert (env["phase"], env["intent"]) == ("restarting" if again else None, intent)


@cases(
    ("ancestors", "environ", "by"),
    (TYPED, {}, "cbsd jstop jname=lb1"),
    ([*TYPED, "7 1 /bin/sh /opt/night.sh now"], {}, "cbsd jstop jname=lb1, run by x"),
    ([JSTOP, "8 1 /usr/local/bin/python3 -B /opt/night.py now"], {}, "run by night.py now"),
    ([], {"CBSD_APP": "bsdconfig"}, "bsdconfig"),
)
def test_who_stopped_it_is_told(node, ancestors, environ, by):
    env = life(node, record(POSTSTART, jid="7"), record(PRESTOP, ancestors, **environ))
    assert by in env.why()[1], env.why()


UP, BEGINS = record(POSTSTART, jid="7"), record("master_prestart.d", jid="0")
STOP, DOWN = record(PRESTOP), record(POSTSTOP)
RESTART, REMOVE = record(PRESTOP, [f"8 7 {CBSD} jrestart lb1"]), record("remove.d")
NOT_UP, OURS = record(POSTSTART, jid="0"), record(POSTSTART, jid="0", CBSD_MONIT_CAUSE="heal")


@cases(
    ("life_of_it", "phase", "intent"),
    ([UP, RESTART, DOWN], "restarting", "running"),
    ([UP, RESTART, DOWN, BEGINS], "starting", "running"),
    ([UP, RESTART, DOWN, BEGINS, UP], None, "running"),
    ([BEGINS, NOT_UP, DOWN], None, "running"),
    ([UP, REMOVE, STOP, DOWN], "removing", "stopped"),
    ([UP, STOP, STOP, DOWN, DOWN], None, "stopped"),
    ([UP, STOP, DOWN, OURS], None, "stopped"),
)
def test_hooks_of_a_life_in_their_order(node, life_of_it, phase, intent):
    env = life(node, *life_of_it)
    assert (env["phase"], env["intent"], bool(env["started"])) == (phase, intent, UP in life_of_it)
    assert not env.fresh, "a hook is delivered once, so its record has to be durable"


def test_attempts_are_forgotten_when_somebody_starts_it_but_not_when_we_do(node):
    env = life(node)
    env["attempts"], env["gave_up"] = [node.stamp()], True
    hooks.apply(env, record(POSTSTART, jid="7", CBSD_MONIT_CAUSE="heal"))
    assert len(env["attempts"]) == 1
    hooks.apply(env, record(POSTSTART, jid="8"))
    assert (env["attempts"], env["gave_up"]) == ([], False)


def test_facts_are_the_columns_not_the_shell(node):
    noise = {"PATH": "/x", "NOINTER": "1", "inter": "0"}
    env = life(node, record(POSTSTART, jid="7", ipv4_first="10.0.0.1", **noise))
    assert env["facts"]["ipv4_first"] == "10.0.0.1"
    assert not set(noise) & set(env["facts"])


def test_record_that_a_full_disk_tore_still_says_which_hook_of_which_env(node):
    for number, hook in ((1, POSTSTART), (2, PRESTOP)):
        open(node.in_state("inbox", f"100000000{number}.77:{hook}:lb1"), "wb").close()
    found = [hook for _, hook in hooks.waiting(node)[0]]
    torn = [(hook.hook, hook.env) for hook in found if hook.torn]
    assert torn == [(POSTSTART, "lb1"), (PRESTOP, "lb1")]
    assert life(node, *found)["intent"] == "stopped"


def test_numbers_of_hook_records_never_fall_back(node):
    later, sooner = deliver(node, 6, "master_prestart.d"), deliver(node, 5, "master_prestart.d")
    hooks.drop([later])
    hooks.drop([sooner])
    assert os.listdir(node.in_state("inbox")) == ["1000000006.done"]


def test_unreadable_record_is_set_aside_by_the_pass_that_takes_in(node, capsys, tmp_path):
    path = tmp_path / "state/inbox/1000000001.5"
    path.write_bytes(b"\xff\xfe")
    assert hooks.waiting(node) == ([], [str(path)])
    passes.run(node)
    assert "unreadable hook record 1000000001.5" in capsys.readouterr().err
    assert hooks.waiting(node) == ([], []) and os.path.exists(
        node.in_state("unreadable-hook-record")
    )


def test_hooks_of_an_env_without_a_template_are_told_to_salt(node, world, tmp_path):
    os.mkdir(node.in_state("spool"))
    (world.env("lb1") / "monitrc.tpl").unlink()
    for number, kind in enumerate(("master_create.d", POSTSTART, PRESTOP)):
        deliver(node, number, kind)
    passes.run(node)
    (segment,) = (tmp_path / "state/spool").glob("*.jsonl")
    events = map(json.loads, segment.read_text().splitlines())
    found = [(e["env"], e["transition"], e["reason"]) for e in events]
    assert found == [("lb1", "created", "not watched"), ("lb1", "started", "not watched")]
    assert hooks.waiting(node)[0] == []


def test_taking_in_changes_values_only_and_writing_down_is_another_call(node, world, tmp_path):
    for name in ("a", "old", "gone"):
        world.env(name, policy={})
    passes.run(node)
    (tmp_path / "work/jails-system/old").rename(tmp_path / "work/jails-system/new")
    world.rename("old", "new")
    world.forget("gone")
    world.env("first", up=False)
    deliver(node, 1, PRESTOP, "a")
    folders = tmp_path / "state", tmp_path / "run", tmp_path / "work/jails-system"
    before, seen = tree(*folders), survey.take(node)
    held = {name: (dict(env.data), env.now) for name, env in seen.envs.items()}
    envs, changes = hooks.take_in(seen, node.now())
    assert tree(*folders) == before and len(hooks.waiting(node)[0]) == 1
    assert {name: (env.data, env.now) for name, env in seen.envs.items()} == held
    assert set(envs) == {"a", "new", "first"} and envs["a"]["intent"] == "stopped"
    hooks.write_down(node, seen, changes)
    assert records.names(node) == {"a", "new", "first", "gone"} and not hooks.waiting(node)[0]
    assert records.load(node, "a")["intent"] == "stopped"
    assert records.load(node, "gone")["phase"] == "removing"


def test_taking_in_one_env_leaves_the_hooks_of_others(node, world):
    world.settle("lb1", "lb2")
    for number, name in ((1, "lb1"), (2, "lb2")):
        deliver(node, number, PRESTOP, name)
    hooks.take_in_of(node, records.load(node, "lb1").at(node.now()))
    assert records.load(node, "lb1")["intent"] == "stopped"
    assert [hook.env for _, hook in hooks.waiting(node)[0]] == ["lb2"]


def test_attempts_that_an_env_brings_from_another_node_count(node, world):
    monit = world.env("lb1")
    line = {"env": "lb1", "transition": "healing", "time": 7}
    lines = [line, {**line, "env": "other"}, {**line, "time": "x"}, line]
    (monit / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines) + "torn")
    assert [a["t"] for a in passes.run(node).envs["lb1"]["attempts"]] == [7, 7]


@pytest.mark.parametrize("rules", [None, {}])
def test_rename_keeps_what_is_known_and_a_clone_does_not(node, world, rules):
    """CBSD renames the row, then the directory; a template by hand has no policy that names it."""
    monit = world.settle("old", policy=rules)
    remember(node, "old", attempts=[node.stamp()])
    policy.silence(node, "old", 4e9, "ann", "upgrade", node.now())
    copy = world.env("copy", policy=rules)
    for path in monit.glob("*.json*"):
        (copy / path.name).write_text(path.read_text())
    passes.run(node)
    assert records.history(node, "copy")[0]["transition"] == "created"
    assert records.load(node, "copy")["attempts"] == []
    world.rename("old", "new")
    assert set(passes.run(node).envs) == {"copy"}
    monit.parent.rename(monit.parent.parent / "new")
    seen = passes.run(node)
    env = seen.envs["new"]
    assert (len(env["attempts"]), env["phase"], env["state"]) == (1, None, "silenced")
    steps = [r["transition"] for r in records.history(node, "new")]
    assert steps.count("created") == 1 and "renamed" in steps
    assert set(seen.envs) == records.names(node) == {"new", "copy"}
    assert set(seen.publication.services) == {"new.tcp", "copy.tcp"}


def test_env_that_vanishes_is_forgotten_later_and_a_removed_one_at_once(node, world, monkeypatch):
    monit = world.settle("c", "b", "a")
    deliver(node, 1, "remove.d", "a")
    before = (monit / "history.jsonl").read_text()
    passes.run(node)
    world.forget("a")
    world.forget("b")
    seen = passes.run(node)
    assert (monit / "history.jsonl").read_text() == before, "CBSD is removing it"
    assert set(seen.envs) == {"c"} and set(seen.publication.services) == {"c.tcp"}
    assert records.names(node) == {"b", "c"} and records.load(node, "b")["phase"] == "removing"
    monkeypatch.setattr(hooks, "RENAME_GRACE", 0)
    passes.run(node)
    assert records.names(node) == {"c"}


def test_env_first_seen_down_is_not_started_and_a_start_begins_a_new_grace(node, world):
    world.env("a", up=False)
    assert passes.run(node).envs["a"]["intent"] == "stopped"
    world.start("a")
    env = passes.run(node).envs["a"]
    assert env["intent"] == "running" and env.age("started") < 10
    world.kill("a")
    assert [d.env for d in passes.run(node).due] == ["a"]
    remember(node, "a", gave_up=True, attempts=[node.stamp()])
    world.start("a")
    env = passes.run(node).envs["a"]
    assert (env["gave_up"], env["attempts"], env["warm"]) == (False, [], False)


@pytest.mark.parametrize(
    ("status", "linked", "intent"),
    [("0", False, "stopped"), ("1", False, "running"), ("0", True, "running")],
    ids=["stopped by CBSD, which could not tell", "crashed", "crashed, and listed since"],
)
def test_unannounced_stop_is_no_crash(node, world, monkeypatch, status, linked, intent):
    monit = world.settle("a", status="1", jid="7")
    if not linked:
        (monit.parent / "master_prestop.d/cbsd_monit").unlink()
        assert "a: CBSD cannot tell of its stops" in passes.run(node).warnings[0]
    world.change("a", status=status, jid="7" if status == "1" else "0")
    world.kill("a")
    if not linked:
        assert passes.run(node).due == [], "CBSD writes what it did after it was done"
    monkeypatch.setattr(hooks, "REBOOT", 0)
    seen = passes.run(node)
    assert seen.envs["a"]["intent"] == intent
    assert [d.env for d in seen.due] == (["a"] if intent == "running" else [])


def test_attempts_survive_a_reboot(node, world, tmp_path):
    world.settle("a")
    remember(node, "a", attempts=[node.stamp()], gave_up=True)
    (tmp_path / "boot_id").write_text("boot-2\n")
    node = Node(str(tmp_path / "conf.json"))
    world.kill("a")
    assert passes.run(node).envs["a"]["phase"] == "booting"
    deliver(node, 1, POSTSTART, "a", jid="7")
    world.start("a")
    env = passes.run(node).envs["a"]
    assert (len(env["attempts"]), env["gave_up"], env["phase"]) == (1, False, None)


def test_vm_that_is_gone_may_reboot_and_has_time_to_say_why(node, world, tmp_path, monkeypatch):
    world.env("vm", emulator="bhyve", up=False)
    device = tmp_path / "vmm/vm"
    device.touch()
    passes.run(node)
    deliver(node, 1, "master_reboot.d", "vm", emulator="bhyve")
    device.unlink()
    seen = passes.run(node)
    assert seen.due == [] and not os.path.exists(node.dead_marker("vm"))
    device.touch()
    assert passes.run(node).envs["vm"]["phase"] == "restarting"
    with monkeypatch.context() as patch:
        patch.setattr(hooks, "REBOOT", 0)
        assert passes.run(node).envs["vm"]["phase"] is None
    device.unlink()
    seen = passes.run(node)
    assert (seen.due, seen.envs["vm"]["cause"]) == ([], "gone")
    monkeypatch.setattr(hooks, "REBOOT", 0)
    assert [d.env for d in passes.run(node).due] == ["vm"]
