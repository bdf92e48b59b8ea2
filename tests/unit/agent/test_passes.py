"""One pass over a node whose CBSD and kernel are scripts: what is read when, and who is adopted."""

import json
import os

import passes
import policy
import pytest
import state


@pytest.fixture(autouse=True)
def no_monit(monkeypatch):
    monkeypatch.setattr("monit.Monit.status", lambda *a, **k: None)


def hook(node, number, kind, env="lb1", **environ):
    body = "\0".join(f"{k}={v}" for k, v in {"jname": env, "emulator": "jail", **environ}.items())
    return node.in_state("inbox", f"{number}.1"), f"1 {kind} {env}\n\n{body}\0"


def test_start_announced_while_the_kernel_was_asked_is_no_crash(node, world, tmp_path):
    world.env("lb1", up=False)
    passes.run(node)
    path, text = hook(node, 1000000001, "master_poststart.d", jid="7")
    (tmp_path / "record").write_text(text)
    (tmp_path / "bin/jls").write_text(
        f"#!/bin/sh\ncat {tmp_path}/kernel\n[ -e {tmp_path}/once ] || cp {tmp_path}/record {path}\n: > {tmp_path}/once\necho lb1 > {tmp_path}/kernel\n"
    )
    seen = passes.run(node)
    assert (seen.envs["lb1"]["intent"], seen.due) == ("running", [])


def test_stop_announced_while_the_kernel_was_asked_is_no_crash(node, world, tmp_path):
    world.env("lb1", up=True)
    passes.run(node)
    path, text = hook(node, 1000000001, "master_prestop.d")
    (tmp_path / "record").write_text(text)
    (tmp_path / "bin/jls").write_text(
        f"#!/bin/sh\n[ -e {path} ] || cp {tmp_path}/record {path}\n: > {tmp_path}/kernel\n"
    )
    seen = passes.run(node)
    assert (seen.envs["lb1"]["intent"], seen.due) == ("stopped", [])


def test_env_first_seen_down_is_not_started_and_first_seen_up_is(node, world):
    world.env("down", up=False)
    world.env("up", up=True)
    seen = passes.run(node)
    assert {n: e["intent"] for n, e in seen.envs.items()} == {"down": "stopped", "up": "running"}
    world.kill("up")
    seen = passes.run(node)
    assert [e.name for e, _, _ in seen.due] == ["up"]


def test_env_without_a_template_is_none_of_ours(node, world, tmp_path):
    world.env("mine")
    (world.env("other") / "monitrc.tpl").unlink()
    seen = passes.run(node)
    assert set(seen.envs) == {"mine"}


def test_rename_keeps_history_and_a_clone_does_not(node, world, tmp_path):
    monit = world.env("old", policy={})
    passes.run(node)
    env = state.Env(node, "old")
    env["attempts"] = [node.stamp()]
    env.save()
    systems = tmp_path / "work/jails-system"
    world.env("copy", policy={})
    for name in ("policy.json", "history.jsonl"):
        (systems / "copy/monit" / name).write_text((monit / name).read_text())
    passes.run(node)
    assert [
        r["transition"] for r in map(json.loads, (systems / "copy/monit/history.jsonl").open())
    ][0] == "created"
    assert state.Env(node, "copy")["attempts"] == []

    (systems / "old").rename(systems / "new")
    world.rows["new"] = {**world.rows.pop("old"), "jname": "new"}
    world.up = {"new", "copy"}
    world.write()
    seen = passes.run(node)
    assert set(seen.envs) == {"new", "copy"}
    assert len(seen.envs["new"]["attempts"]) == 1
    history = [json.loads(line) for line in (systems / "new/monit/history.jsonl").open()]
    assert "renamed" in [r["transition"] for r in history]
    published = (tmp_path / "state/published").read_text()
    assert '"new.tcp"' in published and "old.tcp" not in published


def test_env_that_vanishes_is_unpublished_at_once_and_forgotten_soon(
    node, world, tmp_path, monkeypatch
):
    world.env("a")
    world.env("b")
    passes.run(node)
    world.forget("a")
    seen = passes.run(node)
    assert set(seen.envs) == {"b"}
    assert "a.tcp" not in (tmp_path / "state/published").read_text()
    assert state.Env(node, "a")["phase"] == "removing", (
        "it may be renamed: CBSD moves the directory later than the row"
    )
    monkeypatch.setattr(passes, "GONE", 0)
    passes.run(node)
    assert not (tmp_path / "state/envs/a.json").exists()


def test_removed_env_is_forgotten_at_once_and_nothing_is_written_where_cbsd_removes(
    node, world, tmp_path
):
    monit = world.env("a")
    passes.run(node)
    path, text = hook(node, 1000000001, "remove.d", "a")
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)
    before = (monit / "history.jsonl").read_text()
    passes.run(node)
    world.forget("a")
    passes.run(node)
    assert not (tmp_path / "state/envs/a.json").exists()
    assert (monit / "history.jsonl").read_text() == before


def test_rename_is_recognised_whenever_it_is_looked_at(node, world, tmp_path):
    """CBSD renames the row, then moves the data, then the directory; a template by hand has no policy that names it."""
    monit = world.env("old")
    passes.run(node)
    env = state.Env(node, "old")
    env["attempts"] = [node.stamp()]
    env.save()
    policy.silence(node, "old", 4e9, "ann", "upgrade")
    world.rows["new"] = {**world.rows.pop("old"), "jname": "new"}
    world.write()
    assert set(passes.run(node).envs) == set()
    monit.parent.rename(monit.parent.parent / "new")
    seen = passes.run(node)
    assert set(seen.envs) == {"new"} and not (tmp_path / "state/envs/old.json").exists()
    assert (len(seen.envs["new"]["attempts"]), seen.envs["new"]["phase"]) == (1, None)
    assert seen.envs["new"]["state"] == "silenced"
    told = [r["transition"] for r in seen.envs["new"].history()]
    assert told.count("created") == 1 and "renamed" in told


def test_envs_whose_hooks_do_not_cease_are_left_to_the_next_pass(node, world, tmp_path):
    world.env("busy")
    world.env("calm")
    passes.run(node)
    path, text = hook(node, 1000000001, "master_prestop.d", "busy")
    (tmp_path / "record").write_text(text)
    world.up.clear()
    world.write()
    (tmp_path / "bin/jls").write_text(
        f"#!/bin/sh\ncat {tmp_path}/kernel\ncp {tmp_path}/record {path[:-2]}$$\n"
    )
    seen = passes.run(node)
    assert seen.moving == {"busy"} and seen.unsettled
    assert [e.name for e, _, _ in seen.due] == ["calm"]
    assert state.Env(node, "busy")["intent"] == "running", "nothing is known of it in this pass"
    world.write()
    (tmp_path / "bin/jls").write_text(f"#!/bin/sh\ncat {tmp_path}/kernel\n")
    seen = passes.run(node)
    assert seen.envs["busy"]["intent"] == "stopped"


def test_start_that_no_hook_announced_begins_a_new_grace(node, world):
    world.env("a", up=False)
    assert passes.run(node).envs["a"]["intent"] == "stopped"
    world.up.add("a")
    world.write()
    env = passes.run(node).envs["a"]
    assert env["intent"] == "running" and env.age("started") < 10
    world.kill("a")
    env = passes.run(node).envs["a"]
    env["gave_up"], env["attempts"] = True, [node.stamp()]
    env.save()
    world.up.add("a")
    world.write()
    env = passes.run(node).envs["a"]
    assert (env["gave_up"], env["attempts"], env["warm"]) == (False, [], False)


@pytest.mark.parametrize(
    ("status", "linked", "intent"),
    [("0", False, "stopped"), ("1", False, "running"), ("0", True, "running")],
    ids=[
        "stopped by CBSD, which could not tell",
        "crashed",
        "crashed, and somebody has listed the jails since",
    ],
)
def test_stop_that_no_hook_could_announce_is_no_crash(
    node, world, monkeypatch, status, linked, intent
):
    monit = world.env("a", status="1", jid="7")
    passes.run(node)
    if not linked:
        (monit.parent / "master_prestop.d/cbsd_monit").unlink()
        assert "a: CBSD cannot tell of its stops" in passes.run(node).warnings[0]
    world.rows["a"].update(status=status, jid="7" if status == "1" else "0")
    world.kill("a")
    if not linked:
        assert passes.run(node).due == [], "CBSD writes what it did after it was done"
    monkeypatch.setattr(passes, "REBOOT", 0)
    seen = passes.run(node)
    assert seen.envs["a"]["intent"] == intent
    assert [e.name for e, _, _ in seen.due] == (["a"] if intent == "running" else [])


def test_attempts_survive_a_reboot(node, world, tmp_path):
    world.env("a")
    env = passes.run(node).envs["a"]
    env["attempts"], env["gave_up"] = [node.stamp()], True
    env.save()
    (tmp_path / "boot_id").write_text("boot-2\n")
    from node import Node

    node = Node(str(tmp_path / "conf.json"))
    world.kill("a")
    assert passes.run(node).envs["a"]["phase"] == "booting"
    for number, kind in ((1, "master_prestart.d"), (2, "master_poststart.d")):
        path, text = hook(node, 1000000000 + number, kind, "a", jid="7")
        with open(path, "w", encoding="utf-8") as handle:
            handle.write(text)
    world.up.add("a")
    world.write()
    env = passes.run(node).envs["a"]
    assert (len(env["attempts"]), env["gave_up"], env["phase"]) == (1, False, None)


def test_guest_that_reboots_is_not_dead_while_it_is_gone(node, world, tmp_path, monkeypatch):
    world.env("vm", emulator="bhyve", up=False)
    device = tmp_path / "vmm/vm"
    device.touch()
    passes.run(node)
    path, text = hook(node, 1000000001, "master_reboot.d", "vm", emulator="bhyve")
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)
    device.unlink()
    seen = passes.run(node)
    assert seen.due == [] and not os.path.exists(node.dead_marker("vm"))
    device.touch()
    assert passes.run(node).envs["vm"]["phase"] == "restarting"
    monkeypatch.setattr(passes, "REBOOT", 0)
    assert passes.run(node).envs["vm"]["phase"] is None


def test_vm_that_is_gone_is_dead_only_when_bhyverun_had_time_to_say_why(
    node, world, tmp_path, monkeypatch
):
    world.env("vm", emulator="bhyve", up=False)
    (tmp_path / "vmm/vm").touch()
    passes.run(node)
    (tmp_path / "vmm/vm").unlink()
    seen = passes.run(node)
    assert (seen.due, seen.envs["vm"]["phase"], seen.envs["vm"]["cause"]) == (
        [],
        "stopping",
        "gone",
    )
    monkeypatch.setattr(passes, "REBOOT", 0)
    assert [e.name for e, _, _ in passes.run(node).due] == ["vm"]


def test_look_marks_a_silenced_env_that_is_dead_and_wakes_for_a_quarantined_one(node, world):
    world.env("a")
    world.env("b")
    passes.run(node)
    assert not passes.look(node)
    for name, word in (("a", "silenced"), ("b", "quarantined")):
        env = state.Env(node, name)
        env["state"] = word
        env.save()
    world.kill("a")
    assert not passes.look(node), "nothing is to be done for it"
    assert os.path.exists(node.dead_marker("a")), "its checks cost no time-outs all the same"
    world.kill("b")
    assert passes.look(node)


def test_heals_get_the_pass_lock_although_triggers_never_cease(node):
    import threading
    import time

    import commands

    agent = commands.Agent(node, node.in_run("agent.pid"))
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
        waits = []
        for _ in range(3):
            began = time.monotonic()
            with node.lock(node.in_run("pass.lock"), wait=10, why="heal"):
                waits.append(time.monotonic() - began)
            time.sleep(0.05)
        assert max(waits) < 3
    finally:
        stop.set()
        thread.join()


def test_look_after_a_boot_calls_nobody_dead(node, world, tmp_path):
    world.env("a")
    passes.run(node)
    (tmp_path / "boot_id").write_text("boot-2\n")
    from node import Node

    node = Node(str(tmp_path / "conf.json"))
    world.kill("a")
    assert passes.look(node) and not os.path.exists(node.dead_marker("a"))


def test_second_pass_writes_nothing(node, world, tmp_path):
    for name in ("a", "b"):
        world.env(name)
    passes.run(node)
    passes.run(node)

    def stamps():
        return {
            str(p): p.stat().st_mtime_ns
            for p in tmp_path.rglob("*")
            if p.is_file() and "/run/" not in str(p)
        }

    before = stamps()
    seen = passes.run(node)
    assert stamps() == before
    assert (seen.changed, seen.reloaded) == ([], False)


def test_dry_pass_writes_nothing_and_foretells_the_change(node, world, tmp_path):
    world.env("a")
    passes.run(node)
    before = {str(p): p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    template = (
        'check host "%%ENV%%.web" with address "%%ADDRESS%%"\n  if failed port 80 then alert\n'
    )
    seen = passes.dry(node, {"a": {"monitrc.tpl": template, "policy.json": {}}})
    assert seen.changed == ["a"]
    after = {str(p): p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)} <= {
        str(tmp_path / "run/pass.lock")
    }


def test_env_whose_address_is_lost_keeps_what_was_published(node, world, tmp_path):
    world.env("a")
    passes.run(node)
    before = (tmp_path / "state/published").read_text()
    world.rows["a"]["ip4_addr"] = "DHCP"
    world.write()
    seen = passes.run(node)
    assert "no address yet" in seen.errors["a"]
    assert (tmp_path / "state/published").read_text() == before


def test_templates_behind_planted_links_are_not_read(node, world, tmp_path):
    monit = world.env("a")
    secret = tmp_path / "secret"
    secret.write_text("check host x with address 1.1.1.1\n  if failed port 1 then alert\n")
    (monit / "monitrc.tpl").unlink()
    (monit / "monitrc.tpl").symlink_to(secret)
    assert set(passes.run(node).envs) == set()
    (monit / "monitrc.tpl").unlink()
    os.mkfifo(monit / "monitrc.tpl")
    assert set(passes.run(node).envs) == set()


def test_untrusted_directory_cannot_make_root_run_anything(node, world, tmp_path):
    evil = 'check host "%%ENV%%.x" with address "%%ADDRESS%%"\n  if failed port 1 then exec "/bin/evil"\n'
    monit = world.env("a", template=evil)
    monit.parent.chmod(0o777)
    seen = passes.run(node)
    assert "as root" in seen.errors["a"]
    monit.parent.chmod(0o755)
    assert passes.run(node).foreign == {"a": ["/bin/evil"]}


def test_row_that_cannot_be_read_is_neither_removed_nor_dead(node, world, tmp_path):
    world.env("a")
    world.env("b")
    passes.run(node)
    before = (tmp_path / "state/published").read_text()
    world.rows["a"]["host_hostname"] = "x|y"
    world.kill("a")
    seen = passes.run(node)
    assert "cannot be read" in seen.errors["a"] and seen.due == []
    assert (tmp_path / "state/published").read_text() == before
    assert (tmp_path / "state/envs/a.json").exists()


@pytest.mark.parametrize(
    "policy",
    [
        {"restart": {"attempts": "x"}},
        {"restart": []},
        {"checks": 7},
        {"on_failure": 3},
        {"start_period": None},
        {"depends_on": 5},
        {"checks": {"tcp": []}},
    ],
)
def test_policy_of_nonsense_is_that_envs_trouble_alone(node, world, policy):
    world.env("a", policy=policy)
    world.env("b")
    passes.run(node)
    world.up.clear()
    world.write()
    seen = passes.run(node)
    assert "b" in [e.name for e, _, _ in seen.due]


def test_untrusted_template_cannot_take_another_envs_name(node, world):
    monit = world.env(
        "a", template='check host "b.tcp" with address "1.1.1.1"\n  if failed port 1 then alert\n'
    )
    monit.parent.chmod(0o777)
    world.env("b")
    seen = passes.run(node)
    assert "which is a name of b's" in seen.errors["a"]
    assert set(seen.services) == {"b.tcp"}


def test_directory_where_the_rule_belongs_is_that_envs_trouble_alone(node, world):
    (world.env("a") / "monitrc").mkdir()
    world.env("b")
    passes.run(node)
    world.kill("b")
    seen = passes.run(node)
    assert "cannot be written" in seen.errors["a"]
    assert [e.name for e, _, _ in seen.due] == ["b"]


def test_control_file_that_monit_refuses_keeps_nothing_from_being_healed(node, world, tmp_path):
    world.env("a")
    passes.run(node)
    (tmp_path / "monitrc").write_text("set daemon 5\nset nonsense\n")
    world.rows["a"]["ip4_addr"] = "127.0.0.2"
    world.kill("a")
    seen = passes.run(node)
    assert "does not accept the node's own control file" in seen.errors["(monit)"]
    assert [e.name for e, _, _ in seen.due] == ["a"]


def test_temporary_names_cannot_be_laid_out_in_advance(node, world, tmp_path):
    import files

    seen = set()
    real = os.open

    def spy(path, *args, **kwargs):
        if str(path).endswith(".new"):
            seen.add(str(path))
        return real(path, *args, **kwargs)

    os.open = spy
    try:
        for _ in range(5):
            files.write(str(tmp_path / "x"), "x")
    finally:
        os.open = real
    assert len(seen) == 5


def test_template_and_trust_come_from_the_same_bytes(node, world, tmp_path):
    monit = world.env("a", policy={"on_failure": [{"command": ["/bin/good"]}]})
    env = state.Env(node, "a")
    before = policy.of(node, env)["on_failure"]
    (monit / "policy.json").write_text('{"on_failure": [{"command": ["/bin/evil"]}]}')
    assert policy.of(node, env)["on_failure"] == before == [{"command": ["/bin/good"]}]
