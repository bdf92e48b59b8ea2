"""
kill -9 of the agent at every point of a heal; a thousand wakes at once; hooks while it hangs.

Real are the agent, `wake` as hooks, operator and cron run it, and monit (poll 1 s).  CBSD and jls
are small scripts: a jail is a file, what it serves another, and so a heal takes a second and can be
killed some hundred times.  The points come from a heal that is traced first; tests/faults.py says
what a point is.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from faults import SPACE, Faults

REPO = pathlib.Path(__file__).resolve().parents[2]
FILES = REPO / "cbsd_monit/files"
WORLDS = 6

CBSD = """\
#!/bin/sh
# CBSD as far as a heal needs it: `-c` (its inventory), jstart, jstop, with the real hooks.
root={root} work={root}/work
say() {{ echo "$(date +%s.%N) $*" >> $root/log; }}
for word; do case $word in jname=*) name=${{word#jname=}} ;; esac; done
hook() {{
  [ $1 != master_poststart.d ] || jid=$((7 + 0$(cat $root/up/$name 2>/dev/null)))
  env jname=$name emulator=jail jid=${{jid-0}} ip4_addr=127.0.0.1 \\
    $work/jails-system/$name/$1/cbsd_monit < /dev/null
}}
case $1 in
  -c) cat $root/rows ;;
  jstart)
    if [ -e $root/up/$name ]; then
      say jstart $name refused; echo "Jail $name already running"; exit 1
    fi
    if ! mkdir $root/busy/$name 2>/dev/null; then say jstart $name overlapping; exit 1; fi
    say jstart $name began ${{CBSD_MONIT_CAUSE-operator}}
    hook master_prestart.d
    [ ! -e $root/slow ] || sleep "$(cat $root/slow)"
    : > $root/up/$name; : > $root/serving/$name
    hook master_poststart.d
    say jstart $name ended; rmdir $root/busy/$name ;;
  jstop)
    if [ ! -e $root/up/$name ]; then say jstop $name refused; echo "Not Running: $name"; exit 1; fi
    if ! mkdir $root/busy/$name 2>/dev/null; then say jstop $name overlapping; exit 1; fi
    serving=broken; [ ! -e $root/serving/$name ] || serving=serving
    say jstop $name began ${{CBSD_MONIT_CAUSE-operator}} $serving
    hook master_prestop.d
    [ ! -e $root/slow ] || sleep "$(cat $root/slow)"
    rm -f $root/up/$name $root/serving/$name
    hook master_poststop.d
    say jstop $name ended; rmdir $root/busy/$name ;;
esac
"""
# `alert` would be a wake of the agent: here the tests say when it runs.
TEMPLATE = """\
check file "%%ENV%%.env" with path "%%DEAD%%"
  onreboot laststate
  if exist then exec "/bin/true"
check file "%%ENV%%.app" with path "{root}/serving/{name}"
  onreboot laststate
  depends on "%%ENV%%.env"
  if does not exist then exec "/bin/true"
"""
POLICY = {
    "schema": 1,
    "start_period": 8,
    "restart": {"attempts": 100, "interval": 3600, "delay": 0, "jitter": 0, "timeout": 20},
    "checks": {"app": {"type": "file", "interval": 1, "timeout": 1}},
}


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")


def free(lock):
    """Whether nobody holds this lock."""
    with open(lock, "rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class World:
    """A node with one env, lb1, whose service a test can break."""

    def __init__(self, folder):
        self.root = root = pathlib.Path(folder)
        for name in (
            "bin",
            "vmm",
            "up",
            "serving",
            "busy",
            "work/jails-system/lb1/monit",
            "work/var/db",
            "lib",
        ):
            (root / name).mkdir(parents=True)
        for name in ("work/nc.inventory", "work/var/db/local.sqlite", "log"):
            (root / name).touch()
        self.faults = Faults(
            root / "faults",
            watch={
                "folders": [str(root)],
                "but": ["faults", "agent.log", "monit.log", "monit.state", "monit.id"],
                "monit": f"{root}/monit.sock",
            },
        )
        self.name, self.ended = "lb1", set()
        (root / "lib/agent").symlink_to(FILES / "agent")
        self._script("bin/cbsd", CBSD.format(root=root))
        self._script("bin/jls", f"#!/bin/sh\nls {root}/up\n")
        self.conf = self._conf()
        (root / "conf.json").write_text(json.dumps(self.conf))
        self._wake()
        sys.path.insert(0, str(FILES / "agent"))
        import cbsd

        row = {
            **dict.fromkeys(cbsd.COLUMNS, ""),
            "jname": "lb1",
            "status": "0",
            "jid": "0",
            "emulator": "jail",
        }
        row.update(ip4_addr="127.0.0.1", astart="1", exec_timeout="10")
        (root / "rows").write_text("|".join(row[c] for c in cbsd.COLUMNS) + "\n")
        monit = root / "work/jails-system/lb1/monit"
        (monit / "monitrc.tpl").write_text(TEMPLATE.format(root=root, name="lb1"))
        (monit / "policy.json").write_text(json.dumps({**POLICY, "env": "lb1"}))
        for hook in ("prestart", "poststart", "prestop", "poststop"):
            folder = monit.parent / f"master_{hook}.d"
            folder.mkdir()
            (folder / "cbsd_monit").symlink_to(root / "lib/wake")

    def _script(self, name, text):
        path = self.root / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def _conf(self):
        root, monit = str(self.root), shutil.which("monit")
        (self.root / "monitrc").write_text(
            f"set daemon 1\nset log {root}/monit.log\n"
            f"set pidfile {root}/monit.pid\nset idfile {root}/monit.id\n"
            f"set statefile {root}/monit.state\ninclude {root}/state/published\n"
        )
        (self.root / "monitrc").chmod(0o600)
        head = f'set daemon 1\nset httpd unixsocket "{root}/monit.sock"'
        head += " uid root gid root permission 0600 allow localhost\n"
        paths = {n: f"{root}/{n}" for n in ("vmm", "boot_id", "state", "run", "monitrc")}
        paths.update({n: f"{root}/bin/{n}" for n in ("cbsd", "jls", "jexec")})
        (self.root / "boot_id").write_text("boot-1\n")
        return {
            **paths,
            "schema": 1,
            "node": "hv1",
            "workdir": f"{root}/work",
            "libexec": f"{root}/lib",
            "monit": monit,
            "monit_start": [monit, "-c", f"{root}/monitrc"],
            "include": "publish",
            "poll": 1,
            "socket": f"{root}/monit.sock",
            "head": head,
        }

    def _wake(self):
        text = (FILES / "wake.jinja").read_text()
        said = {"python": self.faults.python, "config": self.root / "conf.json"}
        for name in ("python", "libexec", "config", "state", "run"):
            text = text.replace("{{ " + name + " }}", str(said.get(name) or self.conf[name]))
        self.wake = self._script("lib/wake", text)

    def agent(self, *args):
        done = subprocess.run(
            [self.wake, *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.agent_log()

    def cbsd(self, verb):
        argv = [str(self.root / "bin/cbsd"), verb, f"jname={self.name}"]
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL
        )

    def monit(self):
        from monit import Monit
        from node import Node

        return Monit(Node(str(self.root / "conf.json"))).status()

    def begin(self):
        """lb1 runs, is healthy, and no agent is at work."""
        self.agent("sync")
        self.cbsd("jstart")
        self.settled("healthy")
        return self

    def record(self):
        return json.loads((self.root / f"state/envs/{self.name}.json").read_text())

    def agents(self):
        """The pids of the agents that run."""
        found = [pid for pid in self.faults.started() if pid not in self.ended]
        self.ended.update(pid for pid in found if not self._runs(pid))
        return [pid for pid in found if pid not in self.ended]

    def _runs(self, pid):
        found = []
        for name in ("cmdline", "stat"):  # not ps(1): this is asked many times a second
            with contextlib.suppress(OSError):
                found.append((pathlib.Path("/proc") / str(pid) / name).read_text())
        return len(found) == 2 and str(self.root) in found[0] and ") Z " not in found[1]

    def idle(self):
        """No agent runs, is about to, and nothing that one began."""
        begins = False
        with contextlib.suppress(FileNotFoundError):
            begins = time.time() - (self.root / "run/agent.pid").stat().st_mtime < 1
        return not begins and not self.agents() and not os.listdir(self.root / "busy")

    def hurry(self):
        """monit begins its next cycle now."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.root / "monit.pid").read_text()), signal.SIGUSR1)

    def settled(self, state, seconds=60):
        """The env is in ``state`` and nobody works on it any more."""
        moments = [time.monotonic() + pause for pause in (1.2, 0.5, 0.2)]

        def there():
            if self.record()["state"] == state:
                return self.idle()
            if moments and time.monotonic() > moments[-1]:
                moments.pop()
                self.hurry()
            return False

        until(
            there,
            seconds,
            lambda: (
                f"{state}: {json.dumps(self.record(), indent=1)}\n{self.log()}\n{self.agent_log()}"
            ),
        )

    def cron(self, state):
        """Do what cron does each minute, at most three times, until the env is in ``state``."""
        for _ in range(3):
            self.agent("sync")
            try:
                self.settled(state, 20)
                failed = None
            except AssertionError as err:
                failed = err
            ticket = self.root / "run/agent.pid"
            if ticket.exists():
                os.utime(ticket, (time.time() - 60, time.time() - 60))
            elif not failed:
                return
        if failed:
            raise failed

    def log(self):
        return (self.root / "log").read_text()

    def agent_log(self):
        path = self.root / "state/agent.log"
        return path.read_text()[-4000:] if path.exists() else ""

    def history(self):
        text = (self.root / f"work/jails-system/{self.name}/monit/history.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def fail(self, how):
        """``restart``: it does not serve, which monit has seen; ``start``: the kernel lost it."""
        (self.root / "serving" / self.name).unlink()
        if how == "start":
            (self.root / "up" / self.name).unlink()
        else:
            self.hurry()
            until(lambda: self.monit().services[f"{self.name}.app"].failing, 60, "monit sees it")

    def destroy(self):
        for pid in self.agents():
            os.kill(pid, 9)
        pid = self.root / "monit.pid"
        if pid.exists():
            subprocess.run(
                [self.conf["monit"], "-c", str(self.root / "monitrc"), "quit"],
                capture_output=True,
                check=False,
            )
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture(scope="module")
def worlds():
    found = [World(tempfile.mkdtemp(prefix="ck", dir="/tmp")) for _ in range(WORLDS)]
    with concurrent.futures.ThreadPoolExecutor(WORLDS) as pool:
        list(pool.map(World.begin, found))
    yield found
    for world in found:
        world.destroy()


def traced(world, how, **watch):
    """The points of one heal."""
    world.cron("healthy")
    world.fail(how)
    world.faults.arm(**watch)
    world.agent("monit", "x")
    world.settled("healthy")
    return world.faults.points()


def everywhere(worlds, points, scenario):
    """[(point, ``scenario(world, point)``)] for every point, on all worlds side by side."""
    queue, done, errors = list(reversed(points)), [], []

    def work(world):
        while queue and not errors:
            point = queue.pop()
            try:
                done.append((point, scenario(world, point)))
            except BaseException as err:
                errors.append(f"{point.number}. {point.where}\n{err}")
                raise

    with concurrent.futures.ThreadPoolExecutor(len(worlds)) as pool:
        for job in [pool.submit(work, world) for world in worlds]:
            job.exception()
    assert not errors, f"{len(done)} of {len(points)} points: " + "\n".join(errors)
    return done


class Killed:
    """One heal whose agent dies at ``point``; then what became of it."""

    def __init__(self, world, how, point):
        self.world, ran = world, world.faults.folder / "taken"
        for _ in range(3):  # which of two threads takes what a hook said is chance
            self.began, self.log = time.time(), len(world.log())
            self.before = [r["id"] for r in world.history()]
            world.fail(how)
            world.faults.arm("kill", point)
            world.agent("monit", "x")
            until(
                lambda: world.faults.hit() or ran.exists() and not world.agents(),
                60,
                "the agent ends",
            )
            self.pid = world.faults.hit()
            if self.pid:
                return
            world.cron("healthy")

    def verbs(self):
        """[(verb, what happened, …)] of CBSD since the env failed."""
        return [
            tuple(line.split()[1:2] + line.split()[3:])
            for line in self.world.log()[self.log :].splitlines()
        ]

    def check(self, stops, starts):
        """At most so many stops and starts; nothing is held or lost, all is counted."""
        world, verbs = self.world, self.verbs()
        said = f"{verbs}\n{world.log()[self.log :]}\n{world.agent_log()}"
        record = world.record()
        assert not record["op"] and not record["gave_up"], record
        assert not [v for v in verbs if v[1] in ("overlapping", "refused")], said
        assert ("jstop", "began", "heal", "serving") not in verbs, (
            f"a restart that nobody needed: {said}"
        )
        began = [v[0] for v in verbs if v[1] == "began" and v[2] == "heal"]
        assert began.count("jstop") <= stops and began.count("jstart") <= starts, said
        history = world.history()
        ids = [r["id"] for r in history]
        kept = [i for i in self.before if i in ids]
        assert ids[: len(kept)] == kept and len(kept) >= min(
            len(self.before), 200 - (len(ids) - len(kept))
        ), "history is lost"
        assert len(set(ids)) == len(ids)
        healing = [r for r in history[len(kept) :] if r["transition"] == "healing"]
        counted = [a for a in record["attempts"] if a["t"] >= self.began]
        assert bool(began) <= len(counted) <= len(healing) <= 2, said
        for lock in (world.root / "run").rglob("*"):
            if lock.name == "pass.lock" or lock.name == "agent.lock" or lock.parent.name == "lock":
                assert free(lock), lock


@pytest.mark.parametrize("how, stops", [("restart", 1), ("start", 0)])
def test_agent_killed_at_every_point_of_a_heal_is_finished_by_the_next(worlds, how, stops):
    points = traced(worlds[0], how, watch=True)
    assert len({p.where for p in points}) > 100
    # The passes around it: one is like the other, and all are those of the restart.
    around = worlds[0].faults.new([p for p in points if how == "restart" and p.number == 1])
    points = [p for p in points if "heal.py" in p.where or p in around]

    def scenario(world, point):
        killed = Killed(world, how, point)
        world.cron("healthy")
        killed.check(stops, 1)
        return killed.pid

    missed = points
    # Which points a heal passes depends on who is faster: those that it missed, again.
    for _ in range(6):
        missed = [point for point, pid in everywhere(worlds, missed, scenario) if not pid]
    assert len(missed) < len(points) / 20, [point.where for point in missed]


def test_operators_stop_after_the_kill_is_respected(worlds):
    """At every point in the heal after which something else lies there: renamed, or started."""
    points = [
        p
        for p in traced(worlds[0], "restart")
        if p.call in ("replace", "spawned") and "heal.py" in p.where
    ]
    assert len(points) > 5

    def scenario(world, point):
        killed = Killed(world, "restart", point)
        until(lambda: not os.listdir(world.root / "busy"), 60, "what cbsd began ends")
        if world.cbsd("jstop").returncode:
            world.cron(
                "healthy"
            )  # it is down already: CBSD tells nobody that an operator wanted that
            return None
        world.cron("stopped")
        time.sleep(0.5)
        world.cron("stopped")
        began = [v for v in killed.verbs() if v[1] == "began"]
        assert began[-1][:3] == ("jstop", "began", "operator"), began
        world.cbsd("jstart")
        world.settled("healthy")
        return killed.pid

    done = everywhere(worlds, points, scenario)
    assert len([pid for _, pid in done if pid]) > 3, done


@pytest.mark.parametrize("mode", ["enospc", "full"])
def test_disk_that_is_full_keeps_no_env_from_being_healed(worlds, mode):
    """One call fails, or all from there on that need room: this agent or the next heals."""
    points = [p for p in traced(worlds[0], "restart") if p.call in SPACE and p.number == 1]
    points = points[::10] if mode == "full" else [p for p in points if "heal.py" in p.where]

    def scenario(world, point):
        began, log = time.time(), len(world.log())
        world.fail("restart")
        world.faults.arm(mode, point)
        world.agent("monit", "x")
        until(lambda: (world.faults.folder / "taken").exists(), 60, "the agent runs")
        world.cron("healthy")
        began = [line.split()[1] for line in world.log()[log:].splitlines() if "began heal" in line]
        assert began == ["jstop", "jstart"], world.log()[log:] + world.agent_log()
        [
            json.loads(line)
            for line in (world.root / "work/jails-system/lb1/monit/history.jsonl")
            .read_text()
            .splitlines()
        ]
        return world.faults.hit()

    done = everywhere(worlds, points, scenario)
    assert (
        len([pid for _, pid in done if pid]) > len(done) * 0.75
    )  # which of two threads comes first is chance


# Each on a world of its own, side by side.

ALONE = {}


def alone(*cases):
    """A scenario of one world, once for each of ``cases``."""

    def keep(function):
        for case in cases or ((),):
            name = "-".join([function.__name__, *map(str, case)])
            ALONE[name] = functools.partial(function, *case)
        return function

    return keep


@alone(["jstop"], ["jstart"])
def command_that_outlives_its_agent_is_not_run_beside_itself(verb, world):
    """The agent dies while cbsd works, which goes on; the next agent comes long before its end."""
    points = traced(world, "restart")
    (point,) = [p for p in points if p.call == "spawned" and f" {verb} " in p.on]
    (world.root / "slow").write_text("2.5\n")
    try:
        killed = Killed(world, "restart", point)
        until(lambda: os.listdir(world.root / "busy") == ["lb1"], 60, "cbsd works")
        world.cron("healthy")
    finally:
        (world.root / "slow").unlink()
    killed.check(1, 1)


@alone(["pass.lock"], ["agent.lock"], ["lock/lb1"])
def agent_killed_with_a_lock_in_its_hand_loses_none(lock, world):
    """`flock` itself, and the call after it: who holds the lock is written into it."""
    traced(world, "restart")
    trace = world.faults.trace()
    point = next(p for p in trace if p.call == "pwrite" and p.on.endswith(f"/{lock}"))
    killed = Killed(world, "restart", point)
    until(lambda: killed.pid not in world.agents(), 60, "the agent is dead")
    # monit tells of its failure each second, and the next agent may be at work already.
    until(lambda: free(world.root / "run" / lock), 60, f"{lock} is free")
    world.cron("healthy")
    killed.check(1, 1)


@alone(["mkdir", 1000], ["spawn", 300])
def thousand_wakes_at_once_start_one_agent(call, wakes, world):
    """One hangs, before or after it has written its pid, so none can follow; then it looks."""
    point = next(p for p in traced(world, "restart") if p.call == call)
    started = len(world.faults.started())
    world.faults.arm("stop", point)
    calls = [
        subprocess.Popen([world.wake, "monit", "lb1.app"], stdin=subprocess.DEVNULL)
        for _ in range(wakes)
    ]
    pid = until(world.faults.hit, 60, "the agent hangs")
    try:
        assert {call.wait(timeout=120) for call in calls} == {0}
        assert world.agents() == [pid]
        assert len(world.faults.started()) == started + 1
    finally:
        os.kill(pid, signal.SIGCONT)
    until(world.idle, 60, "it ends")
    assert not (world.root / "run/trigger").exists(), "somebody saw what the thousand said"
    assert len(world.faults.started()) == started + 1


@alone()
def hook_ends_though_the_agent_hangs_and_calls_neither_monit_nor_cbsd(world):
    points = traced(world, "restart")
    held = next(p for p in points if p.call == "pwrite" and p.on.endswith("/pass.lock"))
    world.faults.arm("stop", held)
    world.agent("monit", "x")
    pid = until(world.faults.hit, 60, "the agent hangs and holds the pass lock")
    try:
        for hook in ("prestart", "poststart", "prestop", "poststop"):
            path = world.root / f"work/jails-system/lb1/master_{hook}.d/cbsd_monit"
            log = world.log()
            # The shell itself says what it runs, whatever PATH the script sets for itself.
            done = subprocess.run(
                ["sh", "-x", str(path)],
                env={"jname": "lb1", "emulator": "jail", "jid": "7"},
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
                stdin=subprocess.DEVNULL,
            )
            ran = {
                line.lstrip("+ ").split()[0]
                for line in done.stderr.splitlines()
                if line.startswith("+")
            }
            assert "env" in ran and "mv" in ran, "what ran is known"
            assert not [
                c for c in ran if os.path.basename(c) in ("cbsd", "monit", "jls", "jstart", "jstop")
            ], ran
            assert world.log() == log
        assert world.agents() == [pid]
    finally:
        os.kill(pid, signal.SIGCONT)
    world.cbsd("jstop")  # what these hooks said was not so
    world.cbsd("jstart")
    world.settled("healthy")


@pytest.fixture(scope="module")
def results(worlds):
    unused = queue.SimpleQueue()
    for world in worlds:
        unused.put(world)

    def run(scenario):
        world = unused.get()
        try:
            scenario(world=world)
        finally:
            unused.put(world)

    with concurrent.futures.ThreadPoolExecutor(len(worlds)) as pool:
        yield {name: pool.submit(run, scenario) for name, scenario in ALONE.items()}


@pytest.mark.parametrize("name", ALONE)
def test_alone(results, name):
    results[name].result()
