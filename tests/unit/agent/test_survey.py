"""What is true as of one moment, and that looking at it writes nothing."""

import os

import hooks
import passes
import pytest
import records
import survey
from node import AgentError, Node

from .conftest import deliver, hook_record, tree


@pytest.fixture(autouse=True)
def no_monit(monkeypatch):
    monkeypatch.setattr("monit.Monit.status", lambda *a, **k: None)


def kept(node, tmp_path, *hook, **environ):
    """The path of a hook record that is not there yet; a script may copy `record` to it."""
    (tmp_path / "record").write_bytes(hook_record(*hook, **environ))
    return node.in_state("inbox", f"1000000001.1:{hook[0]}:x")


def test_start_announced_while_the_kernel_was_asked_is_no_crash(node, world, tmp_path):
    world.env("lb1", up=False)
    passes.run(node)
    path = kept(node, tmp_path, "master_poststart.d", jid="7")
    (tmp_path / "bin/jls").write_text(
        f"#!/bin/sh\ncat {tmp_path}/kernel\n[ -e {tmp_path}/once ] || cp {tmp_path}/record {path}\n"
        f": > {tmp_path}/once\necho lb1 > {tmp_path}/kernel\n"
    )
    seen = passes.run(node)
    assert (seen.envs["lb1"]["intent"], seen.due) == ("running", [])


def test_stop_announced_while_the_kernel_was_asked_is_no_crash(node, world, tmp_path):
    world.env("lb1", up=True)
    passes.run(node)
    path = kept(node, tmp_path, "master_prestop.d")
    (tmp_path / "bin/jls").write_text(
        f"#!/bin/sh\n[ -e {path} ] || cp {tmp_path}/record {path}\n: > {tmp_path}/kernel\n"
    )
    seen = passes.run(node)
    assert (seen.envs["lb1"]["intent"], seen.due) == ("stopped", [])


def test_env_without_a_template_is_none_of_ours(node, world, tmp_path):
    world.env("mine")
    (world.env("other") / "monitrc.tpl").unlink()
    seen = passes.run(node)
    assert set(seen.envs) == {"mine"}


def test_envs_whose_hooks_do_not_cease_are_left_to_the_next_pass(node, world, tmp_path):
    world.env("busy")
    world.env("calm")
    passes.run(node)
    path = kept(node, tmp_path, "master_prestop.d", "busy")
    world.up.clear()
    world.write()
    (tmp_path / "bin/jls").write_text(
        f"#!/bin/sh\ncat {tmp_path}/kernel\ncp {tmp_path}/record {path}.$$\n"
    )
    seen = passes.run(node)
    assert seen.survey.moving == {"busy"} and seen.unsettled
    assert [d.env for d in seen.due] == ["calm"]
    assert records.load(node, "busy")["intent"] == "running", "nothing is known of it in this pass"
    world.write()
    (tmp_path / "bin/jls").write_text(f"#!/bin/sh\ncat {tmp_path}/kernel\n")
    seen = passes.run(node)
    assert seen.envs["busy"]["intent"] == "stopped"


def test_look_marks_a_silenced_env_that_is_dead_and_wakes_for_a_quarantined_one(node, world):
    world.env("a")
    world.env("b")
    passes.run(node)
    assert not survey.look(node)
    for name, word in (("a", "silenced"), ("b", "quarantined")):
        env = records.load(node, name)
        env["state"] = word
        records.save(node, env)
    world.kill("a")
    assert not survey.look(node), "nothing is to be done for it"
    assert os.path.exists(node.dead_marker("a")), "its checks cost no time-outs all the same"
    world.kill("b")
    assert survey.look(node)


def test_look_after_a_boot_calls_nobody_dead(node, world, tmp_path):
    world.env("a")
    passes.run(node)
    (tmp_path / "boot_id").write_text("boot-2\n")
    node = Node(str(tmp_path / "conf.json"))
    world.kill("a")
    assert survey.look(node) and not os.path.exists(node.dead_marker("a"))


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


def test_survey_holds_what_was_read(node, world, tmp_path):
    world.env("a", policy={"heal": True})
    world.env("b", up=False)
    (world.env("off") / "monitrc.tpl").unlink()
    deliver(node, 1, "master_poststart.d", "a", jid="7")
    deliver(node, 2, "master_poststart.d", "off", jid="7")
    (tmp_path / "state/trust.json").write_text('{"a": {}}')
    seen = survey.take(node)
    assert (set(seen.rows), set(seen.envs), seen.managed) == (
        {"a", "b", "off"},
        {"a", "b"},
        {"a", "b"},
    )
    assert [seen.up(seen.envs[n]) for n in ("a", "b")] == [True, False]
    assert [(hook.hook, hook.env) for _, hook in seen.hooks] == [
        ("master_poststart.d", "a"),
        ("master_poststart.d", "off"),
    ]
    assert seen.found["a"].policy and seen.linked("a") and not seen.linked("none")
    assert (seen.trust, seen.errors, seen.unreadable, seen.moving) == ({"a": {}}, {}, [], set())
    (tmp_path / "bin/jls").write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    seen = survey.take(node)
    assert (seen.kernel, seen.up(seen.envs["a"])) == (None, None) and "no" in seen.errors[
        "(kernel)"
    ]
    (tmp_path / "bin/cbsd").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(AgentError, match="CBSD's inventory"):
        survey.take(node)


def test_overlay_is_what_a_dry_run_would_have(node, world):
    world.env("a")
    (world.env("b") / "monitrc.tpl").unlink()
    deliver(node, 1, "master_prestop.d", "a")
    seen = survey.take(node, {"a": None, "b": {"monitrc.tpl": "x"}}, dry=True)
    assert (seen.managed, seen.hooks) == ({"b"}, [])


def test_record_of_one_env_has_the_hooks_that_nobody_has_taken_in(node, world, tmp_path):
    world.env("lb1")
    passes.run(node)
    deliver(node, 1, "master_prestop.d")
    deliver(node, 2, "master_poststop.d")
    for env in (survey.current(node, "lb1"), survey.one(node, "lb1")[0]):
        assert (env["intent"], env["phase"]) == ("stopped", None)
    _, row, up, _ = survey.one(node, "lb1")
    assert (row["jname"], up) == ("lb1", True)
    world.kill("lb1")
    assert survey.one(node, "lb1")[2] is False
    (tmp_path / "bin/jls").write_text("#!/bin/sh\nexit 1\n")
    env, row, up, why = survey.one(node, "lb1")
    assert (env["intent"], row["jname"], up) == ("stopped", "lb1", None) and "jls" in why
    (tmp_path / "work/jails-system/lb1/monit/monitrc.tpl").unlink()
    assert survey.one(node, "lb1")[1:3] == (None, None), "nobody watches it"
    assert survey.one(node, "none")[1:3] == (None, None)


@pytest.mark.parametrize("looks", ["take", "dry", "one", "current"])
def test_a_look_writes_nothing_and_leaves_the_inbox_alone(node, world, tmp_path, looks):
    world.env("lb1")
    world.env("new")
    passes.run(node)
    world.env("newer")
    deliver(node, 1, "master_prestop.d")
    deliver(node, 2, "master_poststart.d", "newer", jid="7")
    (tmp_path / "state/inbox/1000000003.5").write_bytes(b"\xff")
    left = tmp_path / "work/jails-system/lb1/monit/.x.0123456789ab.new"  # by a killed writer
    left.touch()
    os.utime(left, (0, 0))
    world.kill("lb1")
    world.forget("new")
    folders = tmp_path / "state", tmp_path / "run", tmp_path / "work/jails-system"
    before = tree(*folders)
    {
        "take": lambda: survey.take(node),
        "dry": lambda: survey.take(node, dry=True),
        "one": lambda: survey.one(node, "lb1"),
        "current": lambda: survey.current(node, "lb1"),
    }[looks]()
    assert tree(*folders) == before and len(hooks.waiting(node)[0]) == 2


@pytest.mark.parametrize(
    ("up", "record", "wakes", "marked"),
    [
        (True, {}, False, False),
        (False, {}, True, True),
        (False, {"boot": "boot-0"}, True, False),
        (False, {"op": {"id": "x"}}, True, False),
        (False, {"phase": "stopping"}, False, False),
        (False, {"intent": None}, False, False),
        (False, {"intent": "stopped"}, False, False),
        (True, {"intent": "stopped"}, True, False),
        (True, {"intent": "stopped", "state": "slave"}, False, False),
        (False, {"state": "maintenance"}, False, True),
        (False, {"gave_up": True}, False, True),
        (False, {"next": 60}, False, True),
    ],
)
def test_cheap_look_wakes_for_what_differs_and_marks_the_dead(
    node, world, up, record, wakes, marked
):
    world.env("lb1", up=up)
    env = records.load(node, "lb1")
    env.data.update({"intent": "running", "state": "healthy", **record})
    if env["next"]:
        env["next"] = {"after": node.stamp(), "seconds": env["next"]}
    records.save(node, env)
    assert (survey.look(node), os.path.exists(node.dead_marker("lb1"))) == (wakes, marked)
    if marked:
        world.up.add("lb1")
        world.write()
        assert survey.look(node), "its marker has to go"
    open(node.in_run("trigger"), "w").close()
    assert survey.look(node)
