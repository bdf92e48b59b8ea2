"""
Killed, or the disk full, at every call of a pass that leaves something behind.

What monit would read is good at that very moment, and the next pass publishes what was asked for.
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from faults import SPACE, Faults

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
    """A real monit, stand-ins for CBSD and the kernel, and records that can be put back."""

    def __init__(self, root):
        self.root, self.mutable, self.copy = root, root / "node", root / "before"
        for folder in ("bin", "lib", "run", "vmm", "monit"):
            (root / folder).mkdir(parents=True)
        for folder in ("work/jails-system", "work/var/db"):
            (self.mutable / folder).mkdir(parents=True)
        for name in ("work/nc.inventory", "work/var/db/local.sqlite"):
            (self.mutable / name).touch()
        self._program("cbsd", f"cat {self.mutable}/rows")
        self._program("jls", f"cat {self.mutable}/kernel")
        self._program("../lib/wake", "exit 0")
        (root / "boot_id").write_text("one\n")
        self.monitrc = root / "monitrc"
        lines = [f"set {word}file {root}/monit/{word}" for word in ("pid", "id", "state")]
        self.monitrc.write_text(
            "\n".join(
                [*lines, f"set log {root}/monit/log", f"include {self.mutable}/state/published", ""]
            )
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
            "head": f"set daemon 1\nset httpd unixsocket {root}/monit/sock"
            " permission 0600 allow localhost\n",
        }
        self.conf = root / "conf.json"
        self.conf.write_text(json.dumps(conf))
        self.faults = Faults(
            root / "faults",
            watch={
                "folders": [str(root)],
                "but": ["faults", "before", "agent.log", "log", "state.tmp"],
                "monit": f"{root}/monit/sock",
            },
        )

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
        argv = [sys.executable, "-IS", str(AGENT), str(self.conf), "sync", "--json"]
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL
        )

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
        said = subprocess.run(
            [MONIT, "-t", "-c", str(self.monitrc)], capture_output=True, text=True, check=False
        )
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


@pytest.fixture
def worlds(tmp_path):
    worlds = [World(tmp_path / f"w{number}") for number in range(3)]
    yield worlds
    for world in worlds:
        world.end()


def two_generations(world):
    """One generation is live; the next pass has to change, add, remove and quarantine."""
    world.envs(a=RULE.format(1), b=RULE.format(1), gone=RULE.format(1))
    first = world.sync()
    assert json.loads(first.stdout)["errors"] == {}, first.stdout + first.stderr
    shutil.rmtree(world.mutable / "work/jails-system/gone")
    world.envs(a=RULE.format(2), b=RULE.format(1), bad=BROKEN, new=RULE.format(1))
    world.remember()


def survives(world, mode, point, old, new):
    """A pass that meets the fault, and the next one; whether the fault was met."""
    world.put_back()
    world.sync(mode=mode, point=point)
    met = world.faults.hit() is not None
    (world.faults.folder / "hit").unlink(missing_ok=True)
    world.faults.disarm()
    assert not world.good(), (mode, point)
    # One generation or the other, never a mixture.
    assert world.published() in (old, new), (mode, point)
    after = world.sync()
    answer = json.loads(after.stdout)
    assert list(answer["quarantined"]) == ["bad"], (mode, point, after)
    assert "(monit)" not in answer["errors"], (mode, point, after)
    assert world.published() == new and not world.good(), (mode, point)
    for env in ("a", "b", "new"):
        text = (world.mutable / f"work/jails-system/{env}/monit/monitrc").read_text()
        assert text in new, (mode, point, env)
    return met


def test_every_call_that_writes_killed_or_without_room(worlds):
    first = worlds[0]
    for world in worlds:
        two_generations(world)
    old = first.published()
    traced = first.sync(mode="trace", watch=True)
    answer = json.loads(traced.stdout)
    assert list(answer["quarantined"]) == ["bad"] and answer["reloaded"], traced.stderr
    new = first.published()
    assert set(new.splitlines()) != set(old.splitlines())
    points = [p for p in first.faults.every() if p.call != "log"]
    room = [p for p in first.faults.trace() if p.call in SPACE and p.call != "log"]
    room = [p for p in room if p in points or p.number == 1]
    assert {"write", "replace", "symlink", "fsync", "spawn"} <= {p.call for p in points + room}
    faults = [("kill", p) for p in first.faults.new(points)]
    faults += [("enospc", p) for p in room]
    waiting, met = faults[::-1], []

    def work(world):
        own = [text.replace(str(first.root), str(world.root)) for text in (old, new)]
        while waiting:
            met.append(survives(world, *waiting.pop(), *own))

    with concurrent.futures.ThreadPoolExecutor(len(worlds)) as pool:
        for job in [pool.submit(work, world) for world in worlds]:
            job.result()
    assert sum(met) > 60, met


def services(world):
    sys.path.insert(0, str(AGENT))
    import monit

    class Node:
        conf = json.loads(world.conf.read_text())

    return sorted(n for n in monit.Monit(Node).status().services if "." in n)


def answer_of(done):
    return json.loads(done.stdout)


def rollback(world, *args):
    argv = [sys.executable, "-IS", str(AGENT), str(world.conf), "rollback", *args]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL
    )


def test_rollback_goes_back_stays_and_ends_when_its_inputs_change(world):
    two_generations(world)
    old = world.published()
    assert answer_of(world.sync())["verify_wait_s"] > 0
    new = world.published()
    assert old != new

    back = answer_of(rollback(world))
    assert (
        back["held"]["generation"] == 1
        and back["held"]["why"] == "rolled back by an operator"
        and back["reloaded"]
    )
    assert "a.env" in services(world) and "new.env" not in services(world)
    said = world.published()
    assert "gone" in old and "gone" not in said  # what there no longer is does not come back
    assert (
        "if exist for 1 cycles" in (world.mutable / "work/jails-system/a/monit/monitrc").read_text()
    )
    again = answer_of(world.sync())
    assert (
        again["held"]
        and again["changed"] == []
        and not again["reloaded"]
        and world.published() == said
    )

    assert answer_of(rollback(world, "undo"))["held"] is None and world.published() == new
    assert "new.env" in services(world)

    assert answer_of(rollback(world, "1"))["held"]
    world.envs(a=RULE.format(3), b=RULE.format(1), bad=BROKEN, new=RULE.format(1))
    after = answer_of(world.sync())
    assert after["held"] is None and "if exist for 3 cycles" in world.published()

    none = rollback(world, "77")
    assert none.returncode == 1 and "no generation 77; there are: " in none.stderr
    assert rollback(world, "x").returncode == 1


def test_monit_that_ends_at_what_it_had_accepted_gets_the_generation_before_and_is_not_killed_again(
    world,
):
    two_generations(world)
    world.envs(a=RULE.format(1), b=RULE.format(1), gone=RULE.format(1))
    world.sync()
    old, conf = world.published(), json.loads(world.conf.read_text())
    # monit 5.33 takes this time and ends in its first cycle; only the node's own text can say it.
    deadly = f'{conf["head"]}check file "node-x" with path /\n'
    deadly += '  every ",,, * * * *"\n  if exist then alert\n'
    world.conf.write_text(json.dumps({**conf, "head": deadly}))
    done = answer_of(world.sync())
    assert (
        "monit ended when it read generation" in done["errors"]["(monit)"]
        and "published again" in done["errors"]["(monit)"]
    )
    assert world.published() == old and services(world) == [
        "a.env",
        "a.up",
        "b.env",
        "b.up",
        "gone.env",
        "gone.up",
    ]
    pid = world.pid()
    again = answer_of(world.sync())
    assert (
        again["held"]["why"] == done["held"]["why"] and not again["reloaded"] and world.pid() == pid
    )
    world.conf.write_text(json.dumps({**conf, "head": conf["head"] + "\n# mended\n"}))
    mended = answer_of(world.sync())
    assert (
        mended["held"] is None
        and mended["errors"] == {}
        and mended["reloaded"]
        and "# mended" in world.published()
    )


def test_what_was_quarantined_is_tried_again_when_its_input_changes_and_not_before(world):
    two_generations(world)
    first = answer_of(world.sync())
    assert "syntax error 'ever'" in first["quarantined"]["bad"] and "bad.env" not in services(world)
    mark = (world.mutable / "state/published").resolve().stat().st_mtime_ns
    assert answer_of(world.sync())["quarantined"] == first["quarantined"]
    assert (world.mutable / "state/published").resolve().stat().st_mtime_ns == mark
    world.envs(a=RULE.format(2), b=RULE.format(1), bad=RULE.format(1), new=RULE.format(1))
    assert answer_of(world.sync())["quarantined"] == {} and "bad.env" in services(world)


def test_more_envs_than_monit_includes_one_by_one_are_refused_in_words_and_served_together(world):
    conf = json.loads(world.conf.read_text())
    world.envs(**{f"e{i}": RULE.format(1) for i in range(1025)})
    world.conf.write_text(json.dumps({**conf, "include": "glob"}))
    said = answer_of(world.sync())["errors"]["(monit)"]
    assert (
        "1025 envs are more than monit includes by one glob (1024)" in said
        and "include: publish" in said
    )
    assert not list((world.mutable / "work/jails-system").glob("*/monit/monitrc"))
    world.conf.write_text(json.dumps(conf))
    done = answer_of(world.sync())
    assert done["errors"] == {} and len(services(world)) == 2050
