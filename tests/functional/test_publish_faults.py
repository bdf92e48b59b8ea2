"""
Killed, or the disk full, at every call of a pass that leaves something behind: what monit would read is good at that very moment,
and the next pass publishes what was asked for.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from faults import SPACE, TRACELESS, Faults

AGENT = pathlib.Path(__file__).resolve().parents[2] / "cbsd_monit/files/agent"
MONIT = shutil.which("monit")
RULE = """\
check file "%%ENV%%.env" with path "%%DEAD%%"
  if exist then exec "%%WAKE%% monit %%ENV%%.env" repeat every 3 cycles

check file "%%ENV%%.up" with path "%%DEAD%%"
  depends on "%%ENV%%.env"
  if exist for {} cycles then exec "%%WAKE%% monit %%ENV%%.up" repeat every 3 cycles
"""
BROKEN = RULE.replace("if exist for", "if exists for ever")


class World:
    """A node with a real monit and with stand-ins for CBSD and the kernel, whose records can be put back to a moment before."""

    def __init__(self, root):
        self.root, self.mutable, self.copy = root, root / "node", root / "before"
        for name in ("bin", "node/work/jails-system", "node/work/var/db", "lib", "run", "vmm", "monit"):
            (root / name).mkdir(parents=True)
        for name in ("work/nc.inventory", "work/var/db/local.sqlite"):
            (self.mutable / name).touch()
        self._program("cbsd", f"cat {self.mutable}/rows")
        self._program("jls", f"cat {self.mutable}/kernel")
        self._program("../lib/wake", "exit 0")
        (root / "boot_id").write_text("one\n")
        self.monitrc = root / "monitrc"
        lines = [f"set {word}file {root}/monit/{word}" for word in ("pid", "id", "state")]
        self.monitrc.write_text(
            "\n".join([*lines, f"set log {root}/monit/log", f"include {self.mutable}/state/published", ""])
        )
        self.monitrc.chmod(0o600)
        conf = {
            "schema": 1,
            "node": "hv1",
            "workdir": f"{self.mutable}/work",
            **{name: f"{root}/bin/{name}" for name in ("cbsd", "jls", "jexec")},
            "vmm": f"{root}/vmm",
            "boot_id": f"{root}/boot_id",
            "libexec": f"{root}/lib",
            "state": f"{self.mutable}/state",
            "run": f"{root}/run",
            "monit": MONIT,
            "monitrc": str(self.monitrc),
            "monit_start": [MONIT, "-c", str(self.monitrc)],
            "socket": f"{root}/monit/sock",
            "include": "publish",
            "poll": 1,
            "head": f"set daemon 1\nset httpd unixsocket {root}/monit/sock permission 0600 allow localhost\n",
        }
        self.conf = root / "conf.json"
        self.conf.write_text(json.dumps(conf))
        self.faults = Faults(root / "faults")

    def _program(self, name, body):
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def envs(self, **rules):
        import importlib

        sys.path.insert(0, str(AGENT))
        columns = importlib.import_module("cbsd").COLUMNS
        rows = []
        for name, rule in rules.items():
            folder = self.mutable / "work/jails-system" / name / "monit"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "monitrc.tpl").write_text(rule)
            row = {
                **dict.fromkeys(columns, ""),
                "jname": name,
                "emulator": "jail",
                "status": "1",
                "ip4_addr": "127.77.27.1/8",
            }
            rows.append("|".join(row[c] for c in columns))
        (self.mutable / "rows").write_text("\n".join(rows) + "\n")
        (self.mutable / "kernel").write_text("\n".join(rules) + "\n")

    def sync(self, **plan):
        if plan:
            return self.faults.run(AGENT, self.conf, "sync", "--json", **plan)
        argv = [sys.executable, "-I", str(AGENT), str(self.conf), "sync", "--json"]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)

    def published(self):
        return (self.mutable / "state/published").read_text()

    def remember(self):
        shutil.rmtree(self.copy, ignore_errors=True)
        subprocess.run(["cp", "-a", str(self.mutable), str(self.copy)], check=True)

    def put_back(self):
        shutil.rmtree(self.mutable)
        subprocess.run(["cp", "-a", str(self.copy), str(self.mutable)], check=True)

    def good(self):
        """Why monit would not take what is on disk now, '' if it would."""
        said = subprocess.run([MONIT, "-t", "-c", str(self.monitrc)], capture_output=True, text=True, check=False)
        return said.stderr if said.returncode else ""

    def pid(self):
        return int((self.root / "monit/pid").read_text())

    def end(self):
        try:
            os.kill(self.pid(), signal.SIGTERM)
        except (OSError, ValueError):
            pass


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.end()


def two_generations(world):
    """A node on which one generation is live and the next pass has to change, add, remove and quarantine."""
    world.envs(a=RULE.format(1), b=RULE.format(1), gone=RULE.format(1))
    first = world.sync()
    assert json.loads(first.stdout)["errors"] == {}, first.stdout + first.stderr
    shutil.rmtree(world.mutable / "work/jails-system/gone")
    world.envs(a=RULE.format(2), b=RULE.format(1), bad=BROKEN, new=RULE.format(1))
    world.remember()


def test_every_call_that_writes_killed_or_without_room(world):
    two_generations(world)
    old = world.published()
    traced = world.sync(mode="trace")
    answer = json.loads(traced.stdout)
    assert list(answer["quarantined"]) == ["bad"] and answer["reloaded"], traced.stderr
    new, trace = world.published(), world.faults.trace()
    assert set(new.splitlines()) != set(old.splitlines())
    before = dict(zip(trace[1:], trace))
    points = [p for p in trace if p.call != "log" and (p not in before or before[p].call not in TRACELESS)]
    assert {"write", "replace", "symlink", "fsync", "spawn"} <= {p.call for p in points}
    met = 0
    for mode, some in (("kill", points), ("enospc", [p for p in points if p.call in SPACE])):
        for point in some:
            world.put_back()
            world.sync(mode=mode, point=point)
            met += world.faults.hit() is not None
            (world.faults.folder / "hit").unlink(missing_ok=True)
            world.faults.disarm()
            assert not world.good(), (mode, point)
            assert world.published() in (old, new), (mode, point)  # one generation or the other, never a mixture
            after = world.sync()
            answer = json.loads(after.stdout)
            assert list(answer["quarantined"]) == ["bad"] and "(monit)" not in answer["errors"], (mode, point, after)
            assert world.published() == new and not world.good(), (mode, point)
            for env in ("a", "b", "new"):
                text = (world.mutable / f"work/jails-system/{env}/monit/monitrc").read_text()
                assert text in new, (mode, point, env)
    assert met > 60, met
