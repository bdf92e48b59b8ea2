"""
Killed, or the disk full, at every call of the states that leaves something behind: each file is the old or the new one, monit
takes what is on disk at that very moment, and the next run ends where an undisturbed one does.
"""

import os
import shutil
import subprocess

import faults
import pytest

from unit.states.test_cbsd_monit import HOOKS, REPO, Host

MONIT = shutil.which("monit")
CHAPTER = "set daemon 30\nset idfile {0}.id\nset statefile {0}.state\ninclude {0}/jails/jails-system/*/monit/monitrc\n"


class Killed(Host):
    """A node on which every state has something to add, to change, to set aside and to take away."""

    def __init__(self, root):
        super().__init__(root)
        for env in ("changed", "gone", "new", "own"):
            self.add(env, hooks=HOOKS if env != "new" else HOOKS[1:])
        upstream = self.workdir / "jails-system/own/master_poststart.d"
        (upstream / "monit.sh").write_text("#!/bin/sh\ncbsd monit start\n")
        (upstream / "monit").symlink_to("/usr/local/cbsd/modules/monit.d/monit")
        self.lookup["monit"] = MONIT
        self.state.mkdir()
        (self.state / "published").write_text("")
        self.rendered = {"changed": "  one", "gone": "  one"}
        assert self.apply("checks_present")["result"]
        own = self.workdir / "jails-system/own/monit"
        own.mkdir()
        (own / "monitrc.tpl").write_text("check host own\n  by hand\n")
        self.rendered = {"changed": "  two", "new": "  one", "own": "  one"}
        self.monitrc.write_text(CHAPTER.format(root))
        self.monitrc.chmod(0o600)

    def _run(self, argv, **kwargs):
        if argv[0] == MONIT and argv[1] == "-t":
            done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            return {"retcode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        return super()._run(argv, **kwargs)

    def all(self, turn):
        """Every state once, as `cbsd_monit` or as `cbsd_monit.clean` has them; the results."""
        present = ("hooks_present", "checks_present", "include_present")
        names = present if turn == "present" else tuple(n.replace("present", "absent") for n in present[::-1])
        return [self.apply(name, **({"name": str(self.monitrc)} if "include" in name else {})) for name in names]

    def disturbed(self, turn, folder, mode="trace", point=None):
        """``all`` in a process of its own that meets the fault; its Faults."""
        folder.mkdir(exist_ok=True)
        plan = faults.Faults(folder)
        plan.arm(mode, point)
        pid = os.fork()
        if pid == 0:
            try:
                faults.install(faults.Plan(folder / "plan", REPO / "_states", REPO / "_modules"))
                self.all(turn)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        return plan


@pytest.mark.parametrize("turn", ["present", "absent"])
def test_every_call_that_writes_killed_or_without_room(tmp_path, turn):
    host = Killed(tmp_path / "node")
    if turn == "absent":
        assert all(ret["result"] for ret in host.all("present"))
    before = host.content()
    subprocess.run(["cp", "-a", str(host.root), str(tmp_path / "before")], check=True)
    points = host.disturbed(turn, tmp_path / "faults").every()
    after = host.content()
    assert before != after and {"write", "replace", "unlink"} <= {p.call for p in points}
    met = 0
    for mode, some in (("kill", points), ("enospc", [p for p in points if p.call in faults.SPACE])):
        for point in some:
            shutil.rmtree(host.root)
            subprocess.run(["cp", "-a", str(tmp_path / "before"), str(host.root)], check=True)
            met += host.disturbed(turn, tmp_path / "faults", mode, point).hit() is not None
            for path, (_, _, said) in host.content().items():
                if path != "state/undo.json" and (path in before or path in after):  # that grows state by state
                    assert said in [found[path][2] for found in (before, after) if path in found], (mode, point, path)
            if host.monitrc.exists():
                done = subprocess.run(
                    [MONIT, "-t", "-c", str(host.monitrc)], capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, (mode, point, done.stderr)
            again = host.all(turn)
            assert all(ret["result"] for ret in again), (mode, point, again)
            assert host.content() == after, (mode, point)
    assert met > 70, met
