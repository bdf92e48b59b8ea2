"""What is true as of one moment, and that looking at it writes nothing."""

import os

import hooks
import passes
import pytest
import records
import survey
from node import AgentError

from .conftest import cases, claim, deliver, hook_record, script, tree

pytestmark = pytest.mark.usefixtures("no_monit")


def kept(node, tmp_path, *hook, **environ):
    """The path of a hook record that is not there yet; a script may copy `record` to it."""
    (tmp_path / "record").write_bytes(hook_record(*hook, **environ))
    return node.in_state("inbox", f"1000000001.1:{hook[0]}:x")


@cases(("hook", "intent"), ("master_poststart.d", "running"), ("master_prestop.d", "stopped"))
def test_hook_announced_while_the_kernel_was_asked_is_no_crash(node, world, tmp_path, hook, intent):
    world.env("lb1", up=intent == "stopped")
    passes.run(node)
    path, kernel = kept(node, tmp_path, hook, jid="7"), tmp_path / "kernel"
    before, after = ("cat", "echo lb1") if intent == "running" else (":", ":")
    announce = f"[ -e {tmp_path}/once ] || cp {tmp_path}/record {path}\n: > {tmp_path}/once"
    script(tmp_path / "bin/jls", f"{before} {kernel}\n{announce}\n{after} > {kernel}")
    seen = passes.run(node)
    assert (seen.envs["lb1"]["intent"], seen.due) == (intent, [])


def test_envs_whose_hooks_do_not_cease_are_left_to_the_next_pass(node, world, tmp_path):
    world.settle("busy", "calm")
    path = kept(node, tmp_path, "master_prestop.d", "busy")
    world.kill("busy", "calm")
    script(tmp_path / "bin/jls", f"cat {tmp_path}/kernel\ncp {tmp_path}/record {path}.$$")
    seen = passes.run(node)
    assert seen.survey.moving == {"busy"} and seen.unsettled
    assert [d.env for d in seen.due] == ["calm"]
    assert records.load(node, "busy")["intent"] == "running", "nothing is known of it in this pass"
    script(tmp_path / "bin/jls", f"cat {tmp_path}/kernel")
    assert passes.run(node).envs["busy"]["intent"] == "stopped"


def test_env_without_a_template_or_with_a_planted_one_is_none_of_ours(node, world, tmp_path):
    world.env("mine")
    template = world.env("a") / "monitrc.tpl"
    (tmp_path / "secret").write_text(claim("x"))
    for plant in (lambda: template.symlink_to(tmp_path / "secret"), lambda: os.mkfifo(template)):
        template.unlink()
        assert set(passes.run(node).envs) == {"mine"}
        plant()
        assert set(passes.run(node).envs) == {"mine"}


def test_row_that_cannot_be_read_is_neither_removed_nor_dead(node, world, tmp_path):
    world.settle("a", "b")
    before = (tmp_path / "state/published").read_text()
    world.rows["a"]["host_hostname"] = "x|y"
    world.kill("a")
    seen = passes.run(node)
    assert "cannot be read" in seen.errors["a"] and seen.due == []
    assert (tmp_path / "state/published").read_text() == before and "a" in records.names(node)


def test_record_of_one_env_has_the_hooks_that_nobody_has_taken_in(node, world, tmp_path):
    world.settle("lb1")
    deliver(node, 1, "master_prestop.d")
    deliver(node, 2, "master_poststop.d")
    for env in (survey.current(node, "lb1"), survey.one(node, "lb1")[0]):
        assert (env["intent"], env["phase"]) == ("stopped", None)
    _, row, up, _ = survey.one(node, "lb1")
    assert (row["jname"], up) == ("lb1", True)
    world.kill("lb1")
    assert survey.one(node, "lb1")[2] is False
    script(tmp_path / "bin/jls", "exit 1")
    env, row, up, why = survey.one(node, "lb1")
    assert (env["intent"], row["jname"], up) == ("stopped", "lb1", None) and "jls" in why
    seen = survey.take(node)
    assert (seen.kernel, seen.up(env)) == (None, None) and "jls" in seen.errors["(kernel)"]
    (tmp_path / "work/jails-system/lb1/monit/monitrc.tpl").unlink()
    assert survey.one(node, "lb1")[1:3] == (None, None), "nobody watches it"
    assert survey.one(node, "none")[1:3] == (None, None)
    script(tmp_path / "bin/cbsd", "exit 1")
    with pytest.raises(AgentError, match="CBSD's inventory"):
        survey.take(node)


@pytest.mark.parametrize("looks", ["take", "dry", "one", "current"])
def test_a_look_writes_nothing_and_leaves_the_inbox_alone(node, world, tmp_path, looks):
    world.settle("lb1", "new")
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


@cases(
    ("up", "record", "wakes", "marked"),
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
    (True, {"state": "silenced"}, False, False),
    (False, {"state": "silenced"}, False, True),
    (False, {"state": "quarantined"}, True, True),
)
def test_cheap_look_wakes_and_marks_the_dead(node, world, up, record, wakes, marked):
    world.env("lb1", up=up)
    env = records.load(node, "lb1")
    env.data.update({"intent": "running", "state": "healthy", **record})
    if env["next"]:
        env["next"] = {"after": node.stamp(), "seconds": env["next"]}
    records.save(node, env)
    assert (survey.look(node), os.path.exists(node.dead_marker("lb1"))) == (wakes, marked)
    if marked:
        world.start("lb1")
        assert survey.look(node), "its marker has to go"
    open(node.in_run("trigger"), "w").close()
    assert survey.look(node)
