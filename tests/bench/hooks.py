"""What the hooks cost: a start without them, with ours, with CBSD's module monit; many starts."""

import contextlib
import os
import shutil
import subprocess
import time

from bench.healing import DEFAULTS, GROUPS, plain_monit, prepared, start, starting, upstream
from bench.nodes import first, idle, median, percentile, reloads, require, until

STARTS = 25
STAGGERED = 100
UPSTREAM = 5
MANY = 100


def cbsd(node, *argv):
    began = time.perf_counter()
    done = node.sim.cbsd(*argv)
    took = 1000 * (time.perf_counter() - began)
    require(done.returncode == 0, f"cbsd {' '.join(argv)}: {done.stdout}{done.stderr}")
    return took


def waits(node, since):
    """{env: ms that its start waited for hooks of ours} of all starts since a moment."""
    found = {}
    for record in node.sim.hooks_log():
        if record["start"] >= since and record["dir"].endswith("start.d"):
            took = 1000 * (record["end"] - record["start"])
            found[record["env"]] = found.get(record["env"], 0) + took
    return found


def unhook(node, env):
    """Take our hooks from one env."""
    for directory in os.listdir(node.sim.layout.system(env)):
        with contextlib.suppress(OSError):
            os.unlink(node.sim.layout.system(env, directory, "cbsd_monit"))


def hook(bench):
    """What the hooks add to a start, alone and while a hundred are on their way."""
    names, group = {"plain": "127.77.24.100", "hooked": "127.77.24.101"}, GROUPS["all"]
    node = prepared(bench, "hook", names, groups={"all": {**group, "match": "hooked"}})
    unhook(node, "plain")
    took, waited = {"plain": [], "hooked": []}, []
    for _ in range(STARTS):
        for env, times in took.items():
            mark = time.time()
            times.append(cbsd(node, "jstart", f"jname={env}", "inter=0"))
            waited += waits(node, mark).values()
            idle(node)
            cbsd(node, "jstop", f"jname={env}")
            idle(node)
    bench.drop(node)

    other = upstream(bench, "module", {"m0": "127.77.24.110"}, hooks=True, package="tcpd")
    plain_monit(other)
    theirs = []
    for _ in range(UPSTREAM):
        since = time.time()
        cbsd(other, "jstart", "jname=m0", "inter=0")
        theirs += waits(other, since).values()
        cbsd(other, "jstop", "jname=m0")
    bench.drop(other)

    many = {f"e{i}": f"127.77.24.{100 + i}" for i in range(STAGGERED)}
    node = prepared(bench, "staggered", many)
    since, runs = time.time(), []
    for env in many:
        runs.append(starting(node, env))
        time.sleep(0.5)
    for run in runs:
        run.wait()
    staggered = list(waits(node, since).values())
    bench.drop(node)
    ran = (len(staggered), len(waited))
    require(ran == (STAGGERED, STARTS), f"hooks ran for {ran} of {STAGGERED, STARTS} starts")
    plain, hooked = median(took["plain"]), median(took["hooked"])
    keys = {"start_without_hooks_ms_median": plain, "start_with_hooks_ms_median": hooked}
    keys.update(hook_added_ms_median=hooked - plain, hook_waited_ms_median=median(waited))
    keys["hook_added_ms_median_staggered_100"] = median(staggered)
    keys["hook_added_ms_p99_staggered_100"] = percentile(staggered, 99)
    keys["upstream_hook_ms_median"] = median(theirs)
    keys["hook_speedup_over_upstream"] = median(theirs) / median(waited)
    return {key: round(value, 1) for key, value in keys.items()}


def parallel(bench):
    """Start a hundred envs at once, then once more after a power failure: reloads, envs watched."""
    many = {f"p{i}": f"127.77.25.{1 + i}" for i in range(MANY)}
    node = prepared(bench, "parallel", many, defaults={**DEFAULTS, "start_period": "120s"})
    before = reloads(node)
    took = start(node, many)
    began = time.monotonic()

    def watched():
        lines = [line.split() for line in node.monit("summary").splitlines() if ".app" in line]
        return sum(words[1:2] == ["OK"] for words in lines)

    def healthy():
        return [entry["state"] for entry in node.status().values()].count("healthy")

    def all_watched():
        until(lambda: watched() == healthy() == MANY, 90, lambda: f"{watched()}, {healthy()} live")

    all_watched()
    settled = time.monotonic() - began
    keys = {"parallel_starts": MANY, "parallel_starts_s": round(took, 1)}
    keys["parallel_starts_100_reloads"] = reloads(node) - before
    keys.update(parallel_starts_100_monitored=watched(), parallel_starts_100_healthy=healthy())
    keys["parallel_starts_healthy_after_s"] = round(settled, 1)
    node.kill_monit()
    node.kill_agent()
    node.sim.kernel.power_off()
    shutil.rmtree(node.run_dir, ignore_errors=True)
    (node.root / "var/run/monit.pid").unlink(missing_ok=True)
    node.sim.boot(astart=False)
    lost, before, ran = time.time(), reloads(node), len(node.sim.hooks_log())
    monit = node.lookup()["monit_start"]
    subprocess.run(monit, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    time.sleep(3)  # as rc.d does: monit is there before CBSD has started anything
    start(node, many)
    idle(node)
    all_watched()
    keys["parallel_boot_100_reloads"] = reloads(node) - before
    hooks = [r["env"] for r in node.sim.hooks_log()[ran:]]
    healed = [env for env in many if first(node, env, "healing", lost)]
    worst = max(keys["parallel_boot_100_reloads"], keys["parallel_starts_100_reloads"])
    require(worst <= 5, f"{worst} reloads for {MANY} starts at once")
    require(sorted(hooks) == sorted([*many] * 2) and not healed, f"started again: {healed} {hooks}")
    bench.drop(node)
    return keys
