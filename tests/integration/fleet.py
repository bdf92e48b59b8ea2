"""
A real master and real minions, each on a simulated CBSD node, as processes that can be killed.

Not salt-factories: an outage is SIGKILL to all processes of a master or minion, the minion restarts
itself through the formula's own command, and the benchmark uses this without pytest.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from node_on_salt import REPO, SaltNode, file_root  # noqa: E402

BIN = pathlib.Path(sys.executable).parent
QUICK = {
    "monit": {"poll": "2s"},  # each cycle is a look on each node
    "defaults": {"interval": "2s", "timeout": "2s", "failure_threshold": 2, "start_period": "20s"},
}
STATES = ("cbsd_monit", "cbsd_monit.events")
RESTART = """\
#!/bin/sh
# What `service salt_minion restart` does: ends the one, starts the other.
echo restart >> {root}/restarts
exec setsid sh -c 'kill $(cat {pid}); while kill -0 $(cat {pid}) 2>/dev/null; do sleep 0.1; done
  setsid {bin}/salt-minion -c {conf} >>{root}/log/minion.out 2>&1 & echo $! > {pid}'
"""


def _ports(count):
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


class Daemon:
    """A Salt daemon in a session of its own; its pid is in a file, as a minion restarts itself."""

    def __init__(self, program, conf, folder):
        self.program, self.conf, self.folder = program, conf, pathlib.Path(folder)
        self.pid_file = self.folder / f"{program}.pid"

    @property
    def pid(self):
        with contextlib.suppress(OSError, ValueError):
            return int(self.pid_file.read_text())
        return None

    def start(self):
        with open(self.folder / f"{self.program}.out", "ab") as out:
            child = subprocess.Popen(
                [str(BIN / self.program), "-c", str(self.conf)],
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
            )
        self.pid_file.write_text(f"{child.pid}\n")
        threading.Thread(
            target=child.wait, daemon=True
        ).start()  # no zombie is taken for a living one

    def kill(self, number=signal.SIGKILL):
        """All its processes at once, as when the host loses power."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill_parents(self):
        """Only the daemon and its first child: whatever else it started goes on without it."""
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        for pid in [self.pid, *map(int, found.stdout.split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def alive(self):
        try:
            os.kill(self.pid or 0, 0)
            return bool(self.pid)
        except ProcessLookupError:
            return False


class Listener:
    """What arrives on the bus, whatever happens to the master: [(time, tag, data)]."""

    CODE = """
import json, os, sys, time
import salt.config, salt.utils.event
opts = salt.config.master_config(sys.argv[1])
path = os.path.join(opts["sock_dir"], "master_event_pub.ipc")
inode = lambda: os.stat(path).st_ino if os.path.exists(path) else None
while True:
    seen = inode()
    if seen is None:
        time.sleep(0.02)
        continue
    try:
        bus = salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=True)
        while not bus.connect_pub(timeout=1) and inode() == seen:
            pass
        print(json.dumps([time.time(), "", {}]), flush=True)
        while inode() == seen:
            event = bus.get_event(wait=0.5, full=True)
            tag, data = (event["tag"], event["data"]) if event else ("", {})
            job = tag.startswith("salt/job/") and tag.endswith("/new")
            job = job and str(data.get("fun")).startswith(("cbsd", "state"))
            if job or tag.startswith("cbsd_monit/"):
                print(json.dumps([time.time(), tag, data], default=str), flush=True)
        bus.destroy()
    except Exception as err:
        print("listener:", type(err).__name__, err, file=sys.stderr, flush=True)
        time.sleep(0.05)
"""

    def __init__(self, fleet):
        self.path = fleet.root / "events.jsonl"
        self.found, self.offset, self.reading = [], 0, threading.Lock()
        with open(self.path, "wb") as out, open(fleet.root / "listener.err", "wb") as err:
            argv = [sys.executable, "-c", self.CODE, str(fleet.conf / "master")]
            self.child = subprocess.Popen(argv, stdout=out, stderr=err, cwd="/")

    def events(self):
        with self.reading:
            with open(self.path, "rb") as lines:
                lines.seek(self.offset)
                for line in lines:
                    if line.endswith(b"\n"):
                        self.offset += len(line)
                        moment, tag, data = json.loads(line)
                        if tag:
                            self.found.append((moment, tag, data))
            return list(self.found)

    def records(self, minion=None):
        """The records of all batches as they arrived, repeats included: [(time, record)]."""
        found = []
        for moment, tag, event in self.events():
            if (
                tag.startswith("cbsd_monit/")
                and tag.endswith("/batch")
                and minion in (None, event.get("id"))
            ):
                said = event.get("data")
                if isinstance(said, dict) and isinstance(
                    said.get("records"), list
                ):  # what is forged may be anything
                    found += [
                        (moment, record) for record in said["records"] if isinstance(record, dict)
                    ]
        return found

    def jobs(self, fun, since=0.0):
        """Targets of the jobs that the master published for ``fun``."""
        return [
            d["tgt"]
            for m, t, d in self.events()
            if t.startswith("salt/job/") and d["fun"] == fun and m >= since
        ]

    def wait(self, condition, seconds):
        """The first true value of ``condition(self)``, or its last."""
        until = time.monotonic() + seconds
        while True:
            found = condition(self)
            if found or time.monotonic() > until:
                return found
            time.sleep(0.1)

    def stop(self):
        self.child.kill()
        self.child.wait()


class Console:
    """`salt -L` and `salt-run` in one process that stays: a call starts no Python and no Salt."""

    CODE = """
import json, os, sys
import salt.client, salt.config, salt.runner
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # runners print
for line in sys.stdin:
    program, fun, args, target, timeout = json.loads(line)
    try:
        if program == "salt":
            opts = salt.config.client_config(sys.argv[1])
            with salt.client.LocalClient(mopts=opts) as client:
                kind = "list" if isinstance(target, list) else "compound"
                found = client.cmd(target, fun, args, timeout=timeout, tgt_type=kind)
        else:
            found = salt.runner.RunnerClient(salt.config.master_config(sys.argv[1])).cmd(fun, args)
        answer = {"found": found}
    except BaseException as err:
        answer = {"error": f"{type(err).__name__}: {err}"}
    print(json.dumps(answer, default=str), file=out, flush=True)
"""

    def __init__(self, fleet):
        argv = [sys.executable, "-c", self.CODE, str(fleet.conf / "master")]
        with open(fleet.root / "console.err", "wb") as err:
            self.child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, cwd="/"
            )
        self.turn = threading.Lock()

    def ask(self, program, fun, args, target=None, timeout=None):
        with self.turn:
            words = [program, fun, args, target, timeout]
            print(json.dumps(words), file=self.child.stdin, flush=True)
            answer = json.loads(self.child.stdout.readline() or '{"error": "it ended"}')
        if "error" in answer:
            raise RuntimeError(f"{fun}: {answer['error']}")
        return answer["found"]

    def stop(self):
        self.child.kill()
        self.child.communicate()


class Fleet:
    """
    Master and ``nodes`` minions hv1, hv2, …, whose highstate is ``states``.

    Their envs have addresses 127.77.NET.*, 127.77.(NET + 1).*, …
    """

    def __init__(self, nodes=3, net=33, reactor=None, master=None, states=STATES):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="cf", dir="/tmp"))
        self.net = net
        self.conf = self.root / "etc"
        self.states = file_root(self.root / "states")
        self.pillars = self.root / "pillar"
        for folder in (self.conf, self.pillars, self.root / "log"):
            folder.mkdir(parents=True, exist_ok=True)
        publish, ret = _ports(2)
        self.ret_port = ret
        conf = {
            "root_dir": str(self.root),
            "user": "root",
            "interface": "127.0.0.1",
            "publish_port": publish,
            "ret_port": ret,
            "auto_accept": True,
            "worker_threads": 3,
            "gather_job_timeout": 3,
            "file_roots": {"base": [str(self.states)]},
            "pillar_roots": {"base": [str(self.pillars)]},
            "runner_dirs": [str(REPO / "_runners")],
            "fileserver_list_cache_time": 0,
            "log_file": str(self.root / "log/master.log"),
            "log_level_logfile": "warning",
            "reactor": reactor or [],
            **(master or {}),
        }
        (self.conf / "master").write_text(json.dumps(conf))
        self.master = Daemon("salt-master", self.conf, self.root)
        names = [f"hv{n}" for n in range(1, nodes + 1)]
        top = {"base": {name: [name] for name in names}}
        (self.pillars / "top.sls").write_text("#!json\n" + json.dumps(top))
        (self.states / "top.sls").write_text(f"base: {{'*': [{', '.join(states)}]}}\n")
        self.nodes, self.minions = {}, {}
        for name in names:
            self._node(name, publish)
        self.listener = self.console = None

    def _node(self, name, publish):
        node = SaltNode(tempfile.mkdtemp(prefix="cm", dir="/tmp"), name)
        node.create()
        root = node.root / "m"
        (root / "log").mkdir(parents=True)
        conf = {
            "id": name,
            "root_dir": str(root),
            "user": "root",
            "master": "127.0.0.1",
            "master_port": self.ret_port,
            "publish_port": publish,
            "log_file": str(root / "log/minion.log"),
            "log_level_logfile": "info",
            "acceptance_wait_time": 1,
            "recon_default": 100,
            "recon_max": 1000,
            "auth_timeout": 5,
        }
        (root / "minion").write_text(json.dumps(conf))
        (root / "minion.d").mkdir()
        self.nodes[name], self.minions[name] = node, Daemon("salt-minion", root, root)
        restart = root / "restart"
        restart.write_text(
            RESTART.format(root=root, pid=root / "salt-minion.pid", bin=BIN, conf=root)
        )
        restart.chmod(0o755)
        node.lookup_of_master = {**node.lookup(), "minion_restart": [str(restart)]}

    def pillar(self, settings, *names):
        """The pillar ``cbsd_monit`` of the nodes ``names`` (default: of all)."""
        for name in names or self.nodes:
            full = {
                **settings,
                "lookup": {**self.nodes[name].lookup_of_master, **settings.get("lookup", {})},
            }
            (self.pillars / f"{name}.sls").write_text("#!json\n" + json.dumps({"cbsd_monit": full}))

    def address(self, name, number):
        return f"127.77.{self.net + list(self.nodes).index(name)}.{10 + number}"

    def jail(self, name, env, number, *words):
        argv = [
            "jcreate",
            f"jname={env}",
            f"ip4_addr={self.address(name, number)}",
            "inter=0",
            *words,
        ]
        done = self.nodes[name].sim.cbsd(*argv)
        assert done.returncode == 0, done.stdout

    def start(self):
        self.master.start()
        self.listener, self.console = Listener(self), Console(self)
        for minion in self.minions.values():
            minion.start()
        self.wait_minions()

    def wait_minions(self, seconds=90):
        until = time.monotonic() + seconds
        answer = {}
        while time.monotonic() < until:
            with contextlib.suppress(RuntimeError):  # the master is not there yet
                answer = self.salt("*", "test.ping", timeout=2)
            if set(self.nodes) <= {name for name, said in answer.items() if said is True}:
                return
            time.sleep(0.1)
        raise RuntimeError(f"minions do not answer: {answer}\n{self.logs()}")

    def cli(self, program, *args, timeout=300):
        argv = [str(BIN / program), "-c", str(self.conf), *map(str, args)]
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=timeout, cwd="/"
        )

    def salt(self, target, fun, *args, timeout=60):
        """{minion: what it returned} of one function; ``*`` is all minions of this fleet."""
        targets = list(self.nodes) if target == "*" else target.split(",")
        return self.console.ask("salt", fun, args, targets, timeout)

    def run(self, fun, *args):
        """What a runner returns."""
        return self.console.ask("salt-run", fun, args)

    def highstate(self, target="*"):
        found = self.salt(target, "state.highstate", timeout=240)
        for name, results in found.items():
            if not isinstance(results, dict):
                raise RuntimeError(f"{name}: {results}\n{self.logs()}")
            bad = [
                f"{r['__id__']}: {r['comment']}"
                for r in results.values()
                if r["result"] is not True
            ]
            if bad:
                raise RuntimeError(f"{name}: {bad}")
        return found

    def switch_on(self, seconds=90):
        """Highstate, and wait for the hello of every minion's engine after its restart."""
        found = self.highstate()

        def hellos(listener):
            return {d.get("id") for _, t, d in listener.events() if t.endswith("/hello")}

        if not self.listener.wait(lambda s: hellos(s) >= set(self.nodes), seconds):
            raise RuntimeError(
                f"no hello of {set(self.nodes) - hellos(self.listener)}\n{self.logs()}"
            )
        self.wait_minions()
        return found

    def logs(self, lines=40):
        paths = [self.root / "log/master.log", self.root / "salt-master.out"]
        for daemon in self.minions.values():
            paths += [daemon.folder / "log/minion.log", daemon.folder / "salt-minion.out"]
        found = []
        for path in filter(pathlib.Path.exists, paths):
            text = path.read_text(errors="replace").splitlines()[-lines:]
            found += [f"== {path}", *(line[:300] for line in text)]
        return "\n".join(found)

    def stop(self):
        for daemon in [*self.minions.values(), self.master]:
            daemon.kill()
        for child in (self.listener, self.console):
            if child:
                child.stop()
        for node in self.nodes.values():
            node.destroy()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc):
        self.stop()


def each(fleet, action):
    """Run ``action(name, node)`` for every node at once; raises what one of them raised."""
    with concurrent.futures.ThreadPoolExecutor(len(fleet.nodes)) as pool:
        return list(pool.map(lambda item: action(*item), fleet.nodes.items()))


def begin(fleet, name, *envs):
    """Start ``envs`` of one node and wait until they are healthy."""
    node = fleet.nodes[name]
    for env in envs:
        node.sim.cbsd("jstart", f"jname={env}", "inter=0")
    for env in envs:
        assert node.wait_state(env, "healthy", 60), node.agent_log()


def told(fleet, since):
    """{(minion, env): [id, …]} of what the agents recorded since then, in its order: the truth."""
    found = {}
    for name, node in fleet.nodes.items():
        for path in pathlib.Path(node.sim.workdir).glob("jails-system/*/monit/history.jsonl"):
            records = [json.loads(line) for line in path.read_text().splitlines()]
            ids = [r["id"] for r in records if r["time"] >= since]
            if ids:
                found[name, path.parts[-3]] = ids
    return found


def arrived(fleet):
    """{(minion, env): [id, …]} of what arrived on the bus, in its order and without repeats."""
    found = {}
    for record in unique(fleet.listener.records()):
        found.setdefault((record["node"], record["env"]), []).append(record["id"])
    return found


def accounted(fleet, since, envs, seconds):
    """
    (what was told, what of it is missing) as soon as nothing is, or after ``seconds``.

    First waits until ``envs`` ({minion: [env]}) are healthy again.  Missing is what has not
    arrived, or not in its order: {(minion, env): ([told], [arrived])}.
    """
    each(
        fleet,
        lambda _, node: [node.wait_state(env, "healthy", 20) for env in envs.get(node.minion, ())],
    )
    until = time.monotonic() + seconds
    while True:
        truth, came = told(fleet, since), arrived(fleet)
        known = {key: set(ids) for key, ids in truth.items()}
        here = {key: [i for i in came.get(key, []) if i in known[key]] for key in truth}
        lost = {key: (ids, here[key]) for key, ids in truth.items() if ids != here[key]}
        if not lost or time.monotonic() > until:
            return truth, lost
        time.sleep(0.5)


def turn(fleet, envs, enough, seconds, pause=0.0):
    """
    Stop and start ``envs`` ({minion: [env]}) until ``enough()`` or ``seconds`` are over.

    There are ``pause`` seconds after each start.
    """
    until = time.monotonic() + seconds

    def one(name, node):
        while not enough() and time.monotonic() < until:
            for env in envs.get(name, ()):
                node.sim.cbsd("jstop", f"jname={env}", "inter=0")
                node.sim.cbsd("jstart", f"jname={env}", "inter=0")
                time.sleep(pause)

    each(fleet, one)


def outage(fleet, envs, seconds=60, transitions=200):
    """
    Kill the master and, while it is away, one minion, each for ``seconds``.

    Meanwhile at least ``transitions`` happen.  Returns ``{"transitions": n, "arrived": n,
    "missing": {…}, "repeats": n}``; ``arrived`` counts each record once and only in its order.
    """
    victim, since = next(iter(fleet.minions)), time.time()
    enough = lambda: sum(map(len, told(fleet, since).values())) >= transitions  # noqa: E731
    fleet.master.kill()
    timers = [
        threading.Timer(min(5, seconds / 4), fleet.minions[victim].kill),
        threading.Timer(seconds, fleet.master.start),
        threading.Timer(min(5, seconds / 4) + seconds, fleet.minions[victim].start),
    ]
    for timer in timers:
        timer.start()
    turn(fleet, envs, enough, 3 * seconds + 60)
    for timer in timers:
        timer.join()
    truth, lost = accounted(fleet, since, envs, 90)
    count = sum(map(len, truth.values()))
    records = [r for _, r in fleet.listener.records() if r["time"] >= since]
    return {
        "transitions": count,
        "arrived": count
        - sum(
            len(ids) - len([i for i in ids if i in came]) if set(ids) != set(came) else 1
            for ids, came in lost.values()
        ),
        "missing": lost,
        "repeats": len(records) - len({r["id"] for r in records}),
    }


def fleet_vs_ping(fleet, envs=300, runs=5):
    """
    Median seconds of ``salt-run cbsd_monit.fleet`` and ``salt '*' test.ping`` by the CLI, in turns.

    Records of ``envs`` envs are laid into the state of each node, whose agent must be idle.
    """
    for name, node in fleet.nodes.items():
        folder = node.state_dir / "envs"
        for number in range(envs):
            record = {
                "schema": 1,
                "env": f"x{number}",
                "emulator": "jail",
                "facts": {},
                "intent": "running",
                "state": "healthy",
            }
            record.update(
                attempts=[],
                boot="",
                since={"t": 1795372240.1, "m": 1.0, "b": ""},
                intent_why={"cause": "started", "by": name},
            )
            (folder / f"x{number}.json").write_text(json.dumps(record))
    times = {"fleet": [], "ping": []}
    for _ in range(runs):
        for what, action in (
            ("ping", lambda: fleet.cli("salt", "*", "test.ping")),
            ("fleet", lambda: fleet.cli("salt-run", "--out=json", "cbsd_monit.fleet")),
        ):
            began = time.monotonic()
            done = action()
            times[what].append(time.monotonic() - began)
        rows = json.loads(done.stdout)["envs"]
        if len([r for r in rows if r["env"].startswith("x")]) != envs * len(fleet.nodes):
            raise RuntimeError(f"{len(rows)} envs: {done.stdout[:500]}{done.stderr[:500]}")
    return {what: statistics.median(found) for what, found in times.items()}


def unique(records):
    """[record] without the repeats, as a consumer would drop them: by id."""
    seen = set()
    return [r for _, r in records if not (r["id"] in seen or seen.add(r["id"]))]


def median(values):
    return round(statistics.median(values), 3) if values else None


def detected(node, service, since, seconds=20):
    """When monit found ``service`` failing, by its own clock; asks until it says so."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            for said in node.services(timeout=5):
                number = lambda key, said=said: float(said.findtext(key) or 0)  # noqa: E731
                moment = number("collected_sec") + number("collected_usec") / 1e6
                if said.findtext("name") == service and number("status") and moment > since:
                    return moment
        time.sleep(0.03)
    return None


def _arrival(name, env, since, listener):
    """When the first `warning` of an env since then arrived, or None."""
    found = [
        m
        for m, r in listener.records(name)
        if (r["env"], r["transition"]) == (env, "warning") and r["time"] >= since
    ]
    return found[0] if found else None


def detection_latencies(fleet, envs, rounds=5):
    """
    Seconds from monit's finding to the record on the master's bus, one per round and env.

    ``envs`` is ``{minion: env}``, jails with nginx and a check `http` that is only alerted.
    """
    found = []

    def one(name, node):
        for _ in range(rounds):
            env, since = envs[name], time.time()
            node.sim.cbsd("jexec", f"jname={env}", "service", "nginx", "stop")
            moment = detected(node, f"{env}.http", since)
            came = fleet.listener.wait(functools.partial(_arrival, name, env, since), 20)
            if not moment or not came:
                raise RuntimeError(
                    f"{name}/{env}: detected {moment}, arrived {came}\n{node.agent_log()}"
                )
            found.append(came - moment)
            node.sim.cbsd("jexec", f"jname={env}", "service", "nginx", "start")
            node.wait_state(env, "healthy", 20)

    each(fleet, one)
    return found


def measure(outage_seconds=60):
    """What `make bench` says of events, in three minutes: three nodes, 60 envs, 900 records."""
    fleet = Fleet(3, net=36)
    groups = {
        "web": {
            "match": "a*",
            "checks": {"http": {"type": "http", "port": 80, "on_failure": "alert"}},
        },
        "plain": {"match": "b*", "checks": {"up": {"type": "running"}}},
    }
    fleet.pillar({**QUICK, "budget": {"storm_min": 50}, "groups": groups})

    def jails(name, node):
        fleet.jail(name, f"a{name[-1]}", 1, "pkglist=nginx", "sysrc=nginx_enable=YES")
        for number in range(2, 21):
            fleet.jail(name, f"b{name[-1]}-{number}", number)

    try:
        each(fleet, jails)
        with fleet:
            fleet.switch_on()
            web = {name: f"a{name[-1]}" for name in fleet.nodes}
            each(fleet, lambda name, node: node.sim.cbsd("jstart", f"jname={web[name]}", "inter=0"))
            each(fleet, lambda name, node: node.wait_state(web[name], "healthy", 30))
            time.sleep(6)
            latency = median(detection_latencies(fleet, web))
            found = outage(
                fleet,
                {n: [f"b{n[-1]}-{k}" for k in range(2, 7)] for n in fleet.nodes},
                outage_seconds,
            )
            fleet.wait_minions()
            each(
                fleet, lambda name, node: node.stop()
            )  # monit and the agent would forget what is laid there next
            times = fleet_vs_ping(fleet)
    finally:
        fleet.stop()
    return {
        "event_latency_s_median": latency,
        "outage_transitions": found["transitions"],
        "outage_events_arrived": found["arrived"],
        "fleet_vs_ping_900": round(times["fleet"] / times["ping"], 2),
        "fleet_s_median": round(times["fleet"], 2),
        "ping_s_median": round(times["ping"], 2),
    }


if __name__ == "__main__":
    print(json.dumps(measure(*map(float, sys.argv[1:2])), indent=1))
