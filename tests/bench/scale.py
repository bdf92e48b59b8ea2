"""What a highstate costs with many envs: ours, a formula as usual, the least that is possible."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from bench import floor
from bench.nodes import PREFIX, REPO, add_rows, idle, median, reloads, require, say, until

SIZES = (10, 100, 1000)
ROUNDS = 3
ADDRESS = "127.77.23.200"  # of all envs; their checks are looked at after a reload and once an hour
HTTP = {"type": "http", "port": 80, "path": "/"}
CHECKS = {"http": HTTP, "ssh": {"type": "tcp", "port": 22}, "alive": {"type": "running"}}
PILLAR = {"monit": {"poll": "30s"}, "defaults": {"interval": "1h"}}
PILLAR["groups"] = {"all": {"match": "e*", "checks": CHECKS}}
# What always changes: Salt's own cache and logs, locks, the simulated kernel and inventory.
NOT_COUNTED = re.compile(
    r"(salt|log|kernel|var/run|etc/salt|var/db/monit\.|usr/jails/var/db)(/|\Z|.*)|.*/agent\.log\Z"
)


def names(size):
    return [f"e{i:05d}" for i in range(size)]


class Side:
    """One way to do it, on a node of its own with ``size`` running envs and a running monit."""

    sls = ()

    def __init__(self, bench, size):
        self.bench, self.size = bench, size
        bench.serve(ADDRESS, 80, 22)
        self.node = bench.node("hv1")
        add_rows(self.node, names(size), ADDRESS)
        self.node.pillar(PILLAR)
        self.prepare()
        monit = shutil.which("monit")
        quiet = {"stdin": subprocess.DEVNULL, "capture_output": True}
        subprocess.run([monit, "-c", str(self.node.monitrc)], check=True, **quiet)
        until(lambda: (self.node.root / "var/run/monit.pid").exists(), 10, "monit starts")

    def prepare(self):
        shutil.copy(self.node.root / "etc/monitrc.sample", self.node.monitrc)
        self.node.monitrc.chmod(0o600)

    def argv(self, *words):
        salt_call = os.path.join(os.path.dirname(sys.executable), "salt-call")
        conf = str(self.node.root / "etc/salt")
        return [salt_call, "-c", conf, "--local", "--out=json", "-l", "error", *words]

    def run(self, *words, under=()):
        """One salt-call; returns (seconds, megabytes of its largest process, its results)."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
            began = time.perf_counter()
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": log}
            process = subprocess.Popen([*under, *self.argv(*words)], cwd="/", **streams)
            try:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            except BaseException:
                process.kill()
                raise
            took = time.perf_counter() - began
            for stream in (out, log):
                stream.seek(0)
            text, problem = out.read().decode(), log.read().decode()
        try:
            results = json.loads(text)["local"]
        except (ValueError, KeyError):
            raise RuntimeError(f"{' '.join(words)}: {text}{problem}") from None
        return took, usage.ru_maxrss / 1024, results

    def apply(self, under=(), failing=(), settle=True):
        """
        Apply its states; returns (seconds less the wait for monit, megabytes, that wait, results).

        ``under`` is the command that runs salt-call. The states in ``failing`` must fail, and no
        others. An agent that was woken is waited for if ``settle``.
        """
        before = reloads(self.node)
        self.forget_wait()
        took, size, results = self.run("state.apply", *self.sls, under=under)
        require(isinstance(results, dict), f"state.apply {self.sls}: {results}")
        bad = [r["__id__"] for r in results.values() if r["result"] is False]
        ordered = sorted(results.values(), key=lambda r: r["__run_num__"])
        require(sorted(set(bad)) == sorted(failing), self.node.summary(ordered))
        wait = self.wait()
        self.reloads = reloads(self.node) - before
        if settle:
            idle(self.node)
        return took - wait, size, wait, results

    def forget_wait(self):
        pass

    def wait(self):
        """How long of the last run it waited for monit's reload and first cycle, in seconds."""
        return 0.0

    def drop(self):
        self.bench.drop(self.node)


class Ours(Side):
    """This formula, complete; its modules are synced before: no part of a highstate's cost."""

    sls = ("cbsd_monit",)

    def prepare(self):
        super().prepare()
        self.run("saltutil.sync_all")

    def forget_wait(self):
        self.stamp = self._loaded()

    def wait(self):
        now = self._loaded()
        return 0.0 if now == self.stamp else now["verify_wait"]

    def _loaded(self):
        with contextlib.suppress(OSError):
            return json.loads((self.node.state_dir / "loaded").read_text())
        return None


class Idiomatic(Side):
    """One file.managed with a template per env in a loop, and one reload for all of them."""

    sls = ("idiomatic",)

    def prepare(self):
        node = self.node
        system = node.sim.layout.work("jails-system")
        text = (node.root / "etc/monitrc.sample").read_text()
        node.monitrc.write_text(f"{text}include {system}/*/monit/monitrc\n")
        node.monitrc.chmod(0o600)
        (node.root / "salt/files/idiomatic").symlink_to(REPO / "tests/bench/idiomatic")
        settings = {"target": system, "monit": shutil.which("monit"), "wake": str(node.wake)}
        settings.update(monitrc=str(node.monitrc), envs=dict.fromkeys(names(self.size), ADDRESS))
        pillar = node.root / "salt/pillar/cbsd_monit.sls"
        pillar.write_text("#!json\n" + json.dumps({"idiomatic": settings}))


class Floor(Side):
    """What is left of ``Ours`` on disk, written by plain Python."""

    def write(self, content, root):
        """Write another node's files; {"seconds", "files", "bytes", "megabytes"}."""
        own = str(self.node.root)
        text = json.dumps(content).replace(json.dumps(root)[1:-1], json.dumps(own)[1:-1])
        path = self.node.root / "manifest.json"
        path.write_text(text)
        before = reloads(self.node)
        argv = [sys.executable, str(REPO / "tests/bench/floor.py"), str(path)]
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **quiet) as process:
            answer = json.loads(process.stdout.read())
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        until(lambda: reloads(self.node) > before, 30, "monit reads what the floor wrote")
        return {**answer, "megabytes": usage.ru_maxrss / 1024}


def paths(root):
    return {os.path.join(top, name) for top, _, files in os.walk(root) for name in files}


def manifest(side, before):
    """The manifest of what the first run of ``side`` has written, for ``Floor``."""
    root, node = str(side.node.root), side.node
    monit = [shutil.which("monit"), "-c", str(node.monitrc)]
    # Salt's own file states sync nothing, and the agent not what a next pass makes again:
    # renderings, first-seen records.
    unsynced = (str(node.wake.parent), f"{root}/etc/cron.d", str(node.state_dir / "envs"))
    again = ("/monit/monitrc", "/monit/history.jsonl")

    def durable(path):
        return not path.startswith(unsynced) and not path.endswith(again)

    skipped = {p for p in paths(root) if NOT_COUNTED.match(os.path.relpath(p, root))}
    kept = before - {str(node.monitrc)}  # it was there before, and is written again
    return floor.manifest(root, kept | skipped, durable, [*monit, "-t"], [*monit, "reload"])


def converge(bench):
    """Two highstates with 10, 100 and 1,000 envs × 3 checks: ours, the idiomatic one, the floor."""
    costs, peaks, waits, syncs = {}, {}, [], []
    for size in SIZES:
        for number in range(ROUNDS):
            sides = [Ours(bench, size), Idiomatic(bench, size)]
            before = paths(sides[0].node.root)
            ping = median([side.run("test.ping")[0] for side in sides for _ in range(2)])
            syncs.append(sides[0].run("saltutil.sync_all")[0] - ping)
            for turn in ("first", "second"):
                for side in sides if number % 2 else sides[::-1]:
                    took, peak, wait, results = side.apply()
                    name = type(side).__name__.lower()
                    costs.setdefault((name, turn, size), []).append(took - ping)
                    peaks[name, turn, size] = max(peak, peaks.get((name, turn, size), 0))
                    if name == "ours" and turn == "first":
                        content = manifest(side, before)
                        waits += [wait] if size == SIZES[-1] else []
                    changed = turn == "second" and any(r["changes"] for r in results.values())
                    require(not changed, f"the second run of {name} changed something")
            ground = Floor(bench, size)
            written = ground.write(content, str(sides[0].node.root))
            costs.setdefault(("floor", "first", size), []).append(written["seconds"])
            for side in (*sides, ground):
                side.drop()
        words = [f"{key[0]} {key[1]} {median(costs[key]):.2f} s" for key in costs if key[2] == size]
        say(f"    {size} envs: " + ", ".join(words))
    cost = {key: median(values) for key, values in costs.items()}
    keys = {"converge_rounds": ROUNDS, "verify_wait_s": round(median(waits), 2)}
    keys["sync_modules_s"] = round(median(syncs), 2)
    for (name, turn, size), value in cost.items():
        keys[f"{name}_{turn}_s_{size}"] = round(value, 3)
    for turn in ("first", "second"):
        for size in SIZES:
            ratio = cost["idiomatic", turn, size] / cost["ours", turn, size]
            keys[f"{turn}_speedup_over_idiomatic_{size}"] = round(ratio, 2)
        growth = math.log10(cost["ours", turn, 1000] / cost["ours", turn, 100])
        keys[f"growth_exponent_{turn}"] = round(growth, 3)
    for size in SIZES:
        ours, theirs, least = (cost[name, "first", size] for name in ("ours", "idiomatic", "floor"))
        keys[f"floor_speedup_over_idiomatic_{size}"] = round(theirs / least, 2)
        keys[f"first_vs_floor_{size}"] = round(ours / least, 2)
    keys["growth_exponent"] = max(keys["growth_exponent_first"], keys["growth_exponent_second"])
    for name, prefix in (("ours", ""), ("idiomatic", "idiomatic_")):
        peak = max(peaks[name, turn, 1000] for turn in ("first", "second"))
        keys[f"{prefix}peak_rss_mb_1000"] = round(peak, 1)
    keys["floor_peak_rss_mb_1000"] = round(written["megabytes"], 1)
    keys["floor_first_writes_1000"] = written["files"] + len(content["links"])
    keys["floor_first_bytes_1000"] = written["bytes"]
    return keys


# Processes and files: in runs of their own, because counting takes time


def snapshot(root):
    """{path: what says that it was written} of all that is counted below ``root``."""
    found = {}
    for top, folders, files in os.walk(root):
        below = os.path.relpath(top, root)
        folders[:] = [f for f in folders if not NOT_COUNTED.match(os.path.normpath(f"{below}/{f}"))]
        for name in files:
            if not NOT_COUNTED.match(os.path.normpath(f"{below}/{name}")):
                info = os.lstat(os.path.join(top, name))
                found[os.path.join(top, name)] = (info.st_ino, info.st_mtime_ns, info.st_size)
    return found


def counted(side):
    """One run of ``side``: processes, files, bytes, reloads."""
    root = side.node.root
    with tempfile.NamedTemporaryFile("r", prefix=PREFIX) as trace, no_agent(side.node):
        before = snapshot(root)
        calls = ["-e", "trace=clone,clone3,fork,vfork", "-e", "signal=none"]
        strace = ["strace", "-f", "-qq", "--seccomp-bpf", *calls, "-o", trace.name]
        side.apply(under=strace, settle=False)
        made = processes(trace)
        after = snapshot(root)
    written = [path for path, stamp in after.items() if before.get(path) != stamp]
    writes = len(written) + len(set(before) - set(after))
    size = sum(after[path][2] for path in written if not os.path.islink(path))
    return {"processes": made, "writes": writes, "bytes": size, "reloads": side.reloads}


def processes(trace):
    """How many processes (not threads) were made, by the lines of strace."""
    begun, count = {}, 0
    for row in trace:
        pid, call = row.split(None, 1)
        call = begun.pop(pid, "") + call  # a call that others interrupted takes two lines
        if call.rstrip().endswith("<unfinished ...>"):
            begun[pid] = call
        elif re.search(r"= \d+$", call) and "CLONE_THREAD" not in call:
            count += 1
    return count


@contextlib.contextmanager
def no_agent(node):
    """Keep `wake` from starting an agent, so that only the highstate's own work is counted."""
    ticket = node.run_dir / "agent.pid"
    while True:
        idle(node)
        with contextlib.suppress(FileExistsError):  # one that a hook has just woken
            ticket.mkdir(parents=True)
            break
    sleep = [sys.executable, "-c", "import time; time.sleep(600)", str(node.wake.parent / "agent")]
    stand_in = subprocess.Popen(sleep)
    (ticket / "pid").write_text(f"{stand_in.pid}\n")
    with open(node.run_dir / "agent.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # or `sync` takes the ticket for a stale one
        try:
            yield
        finally:
            stand_in.kill()
            stand_in.wait()
            shutil.rmtree(ticket, ignore_errors=True)


def count(bench):
    """Processes, files, bytes and reloads of two highstates with 100 and 1,000 envs."""
    require(shutil.which("strace"), "no strace: sh tests/setup.sh --packages strace")
    keys = {}
    for size in (100, 1000):
        for make in (Ours, Idiomatic):
            side = make(bench, size)
            for turn in ("first", "second"):
                found = counted(side)
                prefix = "" if make is Ours else "idiomatic_"
                for what, value in found.items():
                    if what == "processes" and turn == "first":
                        keys[f"{prefix}processes_{size}"] = value
                    else:
                        keys[f"{prefix}{turn}_{what}_{size}"] = value
            side.drop()
    more = abs(keys["processes_1000"] - keys["processes_100"])  # at most, a wake of the agent: 4
    require(more <= 4, f"the number of processes grows with the envs: {keys}")
    same = keys["second_processes_1000"] == keys["second_processes_100"]
    require(same, f"the second run: {keys}")
    wrote = [keys[f"second_{what}_1000"] for what in ("writes", "bytes", "reloads")]
    require(wrote == [0, 0, 0], f"a second run wrote: {keys}")
    return keys


# One bad env, ten thousand envs, the agent itself


def bad(bench):
    """Publish with one env among 1,000 that monit refuses, and with one that it accepts."""
    size = 1000
    side = Ours(bench, size)
    side.apply()
    took = {"clean": [], "bad": []}
    culprit = names(size)[size // 2]
    state = "The checks of this node's envs are live"
    for number in range(3):
        for kind, word in (("clean", "failed"), ("bad", "faild")):
            raw = f"if {word} port 80 with timeout {2 + number} seconds then alert\n"
            side.node.pillar({**PILLAR, "envs": {culprit: {"raw": raw}}})
            ping = side.run("test.ping")[0]
            # Salt gives the entry of the env the id of its state.
            failing = (state,) if kind == "bad" else ()
            found = side.apply(failing=failing)
            took[kind].append(found[0] - ping)
            status = side.node.status()
            named = [env for env, entry in status.items() if entry["quarantined"]]
            require(named == ([culprit] if kind == "bad" else []), f"in quarantine: {named}")
    live = json.loads((side.node.state_dir / "services.json").read_text())
    envs = {env for env, _ in live.values()}
    require(envs == {*names(size)} - {culprit}, f"live without the bad one: {len(envs)} envs")
    published = (side.node.state_dir / "published").read_text()
    require(f'"{culprit}.' not in published, f"{culprit} is published")
    answer = json.loads(side.node.agent("sync", "--json"))
    require(answer["services"] == 4 * (size - 1) and not answer["reloaded"], f"not live: {answer}")
    drift(side)
    say(f"    {culprit} is named: {status[culprit]['quarantined']}")
    side.drop()
    clean, bad_env = median(took["clean"]), median(took["bad"])
    keys = {"clean_publish_s_1000": round(clean, 2), "bad_env_publish_s_1000": round(bad_env, 2)}
    keys["bad_env_vs_clean_1000"] = round(bad_env / clean, 2)
    return {**keys, "bad_env_live_1000": len(envs - {culprit})}


def drift(side):
    """Change by hand what is live, and narrow the group: a run repairs this and nothing else."""
    node, left = side.node, names(side.size)[:120]
    system = node.sim.layout.work("jails-system")
    changed = ("monit/monitrc.tpl", "remove.d/cbsd_monit", "remove.d/mine")
    template, hook, alien = (os.path.join(system, *pair) for pair in zip(left, changed))
    os.unlink(hook)
    for path in (template, alien, node.state_dir / "published"):
        pathlib.Path(path).write_text("# by hand\n")
    group = {**PILLAR["groups"]["all"], "match": ["e000*", "e0010*", "e0011*"]}
    node.pillar({**PILLAR, "groups": {"all": group}})
    side.apply()
    published = (node.state_dir / "published").read_text()
    found = [env for env in names(side.size) if f"# --- cbsd_monit {env}" in published]
    require(found == left and "by hand" not in published, f"{len(found)} envs are live")
    texts = [env for env in names(side.size) if os.path.exists(f"{system}/{env}/monit/monitrc.tpl")]
    require(texts == left and os.path.islink(hook), f"{len(texts)} envs have their checks")
    for path, by_hand in ((template, False), (alien, True)):
        same = ("by hand" in pathlib.Path(path).read_text()) is by_hand
        require(same, f"{path} is not as it should be")


def huge(bench):
    """Ten thousand envs on one node: more files than monit can include by a glob."""
    size = 10000
    side = Ours(bench, size)
    ping = side.run("test.ping")[0]
    first = side.apply()
    second = side.apply()
    known = {service.findtext("name") for service in side.node.services(timeout=60)}
    known = {name for name in known if name.startswith("e0")}
    live = {name.partition(".")[0] for name in known}
    require(live == set(names(size)), f"monit watches {len(live)} of {size} envs")
    side.drop()
    keys = {"live_envs_10000": len(live), "live_services_10000": len(known)}
    keys["second_reloads_10000"] = side.reloads
    for turn, (took, _, _, _) in (("first", first), ("second", second)):
        keys[f"ours_{turn}_s_10000"] = round(took - ping, 2)
    keys["verify_wait_s_10000"] = round(first[2], 2)
    return {**keys, "peak_rss_mb_10000": round(max(first[1], second[1]), 1)}


class Peak(threading.Thread):
    """The largest resident memory of one process, by what the kernel keeps of it, in megabytes."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.path, self.megabytes = f"/proc/{pid}/status", 0.0

    def run(self):
        with contextlib.suppress(OSError, AttributeError):
            while True:
                with open(self.path, encoding="ascii") as stream:
                    found = re.search(r"VmHWM:\s+(\d+) kB", stream.read())
                self.megabytes = max(self.megabytes, int(found.group(1)) / 1024)
                time.sleep(0.002)


def agent(bench):
    """The agent's start, its pass, the look of each cycle, and its memory."""
    times = {"agent_start_ms": [], "look_ms_100": []}
    side = Ours(bench, 100)
    side.apply()
    with no_agent(side.node):
        for _ in range(30):
            for key, words in zip(times, (["history", names(1)[0]], ["look"])):
                began = time.perf_counter()
                side.node.agent(*words)
                times[key].append(1000 * (time.perf_counter() - began))
    keys = {key: round(median(values), 1) for key, values in times.items()}
    side.drop()
    for size in (10, 1000):
        side = Ours(bench, size)
        side.apply()
        times, peak = {"start": [], "pass": []}, 0.0
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        for _ in range(10):
            for what, words in zip(times, (["history", names(size)[0]], ["sync", "--json"])):
                began = time.perf_counter()
                argv = [str(side.node.wake), *words]
                process = subprocess.Popen(argv, stderr=subprocess.PIPE, **streams)
                watch = Peak(process.pid)
                watch.start()
                process.communicate()
                times[what].append(1000 * (time.perf_counter() - began))
                watch.join()
                peak = max(peak, watch.megabytes)
                idle(side.node)
        for what, values in times.items():
            keys[f"agent_{what}_ms_median_{size}"] = round(median(values), 1)
        keys[f"agent_rss_mb_{size}"] = round(peak, 1)
        side.drop()
    return keys
