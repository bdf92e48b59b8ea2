"""
Killed, or the disk full, at every call of the states that leaves something behind: each file is the
old or the new one, monit accepts what is on disk at that moment, and the next run ends where an
undisturbed one does.

A kill before which the disk is as it was before the last one is left out, and what follows is tried
once for each content of the disk; ``CBSD_MONIT_POINTS=all`` leaves out nothing.
"""

import hashlib
import os
import shutil
import subprocess

import faults
import pytest

from tests.unit.loaded import REPO
from tests.unit.states.host import HOOKS, Host

MONIT = shutil.which("monit")
ALL = os.environ.get("CBSD_MONIT_POINTS") == "all"
MONITRC = """\
set daemon 30
set idfile {0}.id
set statefile {0}.state
include {0}/jails/jails-system/*/monit/monitrc
"""


class Watched(faults.Plan):
    """A plan whose trace also says what is on disk at each point."""

    def __init__(self, host, folder):
        super().__init__(folder / "plan", REPO / "_states", REPO / "_modules")
        self.host, self.disk = host, os.open(folder / "disk", os.O_WRONLY | os.O_CREAT, 0o600)

    def _where(self, call):
        where = super()._where(call)
        if self.mode == "trace" and where != call:
            self.real["write"](self.disk, f"{self.host.digest()}\n".encode())
        return where


class Killed(Host):
    """A node on which every state has something to add, change, set aside and take away."""

    def __init__(self, root):
        super().__init__(root)
        for env in ("changed", "gone", "new", "own"):
            self.add(env, hooks=HOOKS if env != "new" else HOOKS[1:])
        upstream = self.workdir / "jails-system/own/master_poststart.d"
        (upstream / "monit.sh").write_text("#!/bin/sh\ncbsd monit start\n")
        (upstream / "monit").symlink_to("/usr/local/cbsd/modules/monit.d/monit")
        # A copy, for the states look at its time stamps.
        self.monit = shutil.copy2(MONIT, root.parent / "monit")
        self.lookup["monit"] = str(self.monit)
        self.state.mkdir()
        (self.state / "published").write_text("")
        self.rendered = {"changed": "  one", "gone": "  one"}
        assert self.apply("checks_present")["result"]
        own = self.workdir / "jails-system/own/monit"
        own.mkdir()
        (own / "monitrc.tpl").write_text("check host own\n  by hand\n")
        self.rendered = {"changed": "  two", "new": "  one", "own": "  one"}
        self.monitrc.write_text(MONITRC.format(root))
        self.monitrc.chmod(0o600)

    def _run(self, argv, **kwargs):
        if argv[0] == str(self.monit) and argv[1] == "-t":
            nothing = subprocess.DEVNULL
            done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=nothing)
            return {"retcode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        return super()._run(argv, **kwargs)

    def digest(self, content=None):
        content = self.content() if content is None else content
        return hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()

    def all(self, turn):
        """Every state once, as `cbsd_monit` or as `cbsd_monit.clean` has them; the results."""
        present = ("hooks_present", "checks_present", "include_present")
        names = present
        if turn == "absent":
            names = tuple(n.replace("present", "absent") for n in present[::-1])
        own = {"name": str(self.monitrc)}
        return [self.apply(name, **(own if "include" in name else {})) for name in names]

    def disturbed(self, turn, folder, mode="trace", point=None):
        """``all`` in a process of its own that meets the fault; its Faults."""
        folder.mkdir(exist_ok=True)
        plan = faults.Faults(folder)
        plan.arm(mode, point)
        pid = os.fork()
        if pid == 0:
            try:
                faults.install(Watched(self, folder))
                self.all(turn)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        return plan


def worth(plan):
    """Return the points of a trace that leave something new behind when a run is killed there."""
    disk = (plan.folder / "disk").read_text().split()
    trace = plan.trace()
    assert len(disk) == len(trace)
    same = {p for p, old, new in zip(trace[1:], disk, disk[1:]) if old == new}
    return [p for p in plan.every() if ALL or p not in same or p.call in faults.HALVES]


def differing(one, other):
    return [path for path in {**one, **other} if one.get(path) != other.get(path)]


def put(host, before):
    subprocess.run(["rm", "-rf", str(host.root)], check=True)
    subprocess.run(["cp", "-a", str(before), str(host.root)], check=True)


@pytest.mark.parametrize(
    "turn, then", [(a, b) for a in ("present", "absent") for b in ("present", "absent")]
)
def test_every_call_that_writes_killed_or_without_room(tmp_path, turn, then):
    host = Killed(tmp_path / "node")
    if turn == "absent":
        assert all(ret["result"] for ret in host.all("present"))
    before = host.content()
    subprocess.run(["cp", "-a", str(host.root), str(tmp_path / "before")], check=True)
    plan = host.disturbed(turn, tmp_path / "faults")
    points, room = worth(plan), [p for p in plan.every() if p.call in faults.SPACE]
    after = host.content()
    assert before != after and {"write", "replace", "unlink"} <= {p.call for p in plan.every()}
    host.all(then)
    wanted = host.content()
    met, known = 0, set()
    if turn != then:  # what the one has begun and the other ends: a sample
        points, room = points[::4], room[::8]
    for mode, some in (("kill", points), ("enospc", room)):
        for point in some:
            put(host, tmp_path / "before")
            met += host.disturbed(turn, tmp_path / "faults", mode, point).hit() is not None
            content = host.content()
            for path, (_, _, what) in content.items():
                # undo.json grows state by state; other files are the old or the new one.
                if path != "state/undo.json" and (path in before or path in after):
                    known_as = [found[path][2] for found in (before, after) if path in found]
                    assert what in known_as, (mode, point, path)
            digest = host.digest(content)
            if not ALL and digest in known:
                continue
            known.add(digest)
            if host.monitrc.exists():
                argv = [MONIT, "-t", "-c", str(host.monitrc)]
                done = subprocess.run(argv, capture_output=True, text=True, check=False)
                assert done.returncode == 0, (mode, point, done.stderr)
            again = host.all(then)
            assert all(ret["result"] for ret in again), (mode, point, again)
            assert not differing(host.content(), wanted), (mode, point)
            assert not any(ret["changes"] for ret in host.all(then)), (mode, point)
    assert met > (60 if turn == then else 15), met


def test_what_an_operator_did_after_the_kill_is_theirs(tmp_path):
    """A run was killed after it wrote down what it was going to change, and before it did."""
    host = Killed(tmp_path / "node")
    paths = host.lookup
    made, chosen = host.workdir / "jails-system/gone/monit", host.workdir / "jails-system/own/monit"
    host.all("present")
    host.all("absent")
    undo = host.salt["cbsd_monit_node.remember"]
    undo(paths["state"], "include", {str(host.monitrc): {
        "was": [0o644, 0, 0], "replaced": [], "appended": "",
    }})  # fmt: skip
    undo(paths["state"], "envs", {"gone": {"made": True}, "own": {"was": [0o755, 0, 0]}})
    host.monitrc.chmod(0o640)
    made.mkdir(mode=0o755, exist_ok=True)
    (chosen / "monitrc").write_text("check host mine\n")
    (chosen / "history.jsonl").write_text("mine\n")
    chosen.chmod(0o750)
    before = {k: v for k, v in host.content().items() if not k.startswith("state/")}
    host.all("absent")
    assert {k: v for k, v in host.content().items() if not k.startswith("state/")} == before
    assert not (host.state / "undo.json").exists()


def test_a_hook_is_put_back_without_following_what_lies_in_the_way(tmp_path):
    host = Killed(tmp_path / "node")
    assert all(ret["result"] for ret in host.all("present"))
    env, victim = host.workdir / "jails-system/own", tmp_path / "victim"
    victim.write_text("root's\n")
    for name in ("master_poststart.d/monit.sh.new", ".cbsd_monit.salt"):
        (env / name).symlink_to(victim)
    assert all(ret["result"] for ret in host.all("absent"))
    hook = env / "master_poststart.d/monit.sh"
    assert victim.read_text() == "root's\n"
    assert not hook.is_symlink()
    assert "cbsd monit start" in hook.read_text()
    assert not (env / ".cbsd_monit.salt").is_symlink()


def test_a_hook_that_was_put_back_and_then_deleted_does_not_end_every_later_clean(tmp_path):
    host = Killed(tmp_path / "node")
    assert all(ret["result"] for ret in host.all("present"))
    kept = host.salt["cbsd_monit_node.undo"](host.lookup["state"])["hooks"]["aside"]
    # a kill between the two, by an earlier version
    next(iter((host.state / "aside").iterdir())).unlink()
    assert len(kept) == 2 and all(ret["result"] for ret in host.all("absent"))
    assert not (host.state / "undo.json").exists()


def test_one_env_in_the_way_stops_no_other(tmp_path):
    host = Killed(tmp_path / "node")
    (host.workdir / "jails-system/new/.cbsd_monit.salt").mkdir()
    (host.workdir / "jails-system/new/remove.d/cbsd_monit").symlink_to("elsewhere")
    shutil.rmtree(host.workdir / "jails-system/changed/remove.d")
    (host.workdir / "jails-system/changed/remove.d").write_text("")
    done = host.apply("hooks_present")
    assert done["result"] is False and "changed/remove.d is no directory" in done["comment"]
    assert "new/remove.d/cbsd_monit cannot be linked" in done["comment"]
    assert (host.workdir / "jails-system/own/remove.d/cbsd_monit").is_symlink()
