"""Detection, healing and restart storms, ours beside the rule in upstream's howto on monit."""

import os
import pathlib
import shutil
import subprocess
import time

from bench import nodes
from bench.nodes import Network, first, kill_service, median, reached, require, restarts, say

POLL = 1  # seconds; all latencies are reported beside it
FAILURES = 36
DEFAULTS = {"interval": f"{POLL}s", "timeout": "1s", "failure_threshold": 2, "start_period": "15s"}
DEFAULTS["restart"] = {"attempts": 100, "interval": "10m", "delay": "1s"}
GROUPS = {"all": {"match": "*", "checks": {"app": {"type": "tcp", "port": 8080}}}}
PILLAR = {"monit": {"poll": f"{POLL}s"}, "defaults": DEFAULTS, "groups": GROUPS}


def starting(node, name):
    """Begin to start a jail; the process."""
    argv = [os.path.join(node.sim.bin, "cbsd"), "jstart", f"jname={name}", "inter=0"]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return subprocess.Popen(argv, env=node.sim.environment(), cwd="/", **quiet)


def start(node, names):
    """Start the jails, all at once; returns how long it took."""
    began = time.monotonic()
    for run in [starting(node, name) for name in names]:
        run.wait()
    return time.monotonic() - began


def live(node, names, seconds=60):
    """Start the jails and wait until the agent calls them healthy."""
    start(node, names)
    for name in names:
        if not node.wait_state(name, "healthy", seconds):
            found = node.status().get(name)
            raise RuntimeError(f"{name} is not healthy: {found}\n{node.agent_log()}")


def prepared(bench, minion, jails, package="tcpd", **pillar):
    """A node with the formula applied and these jails healthy."""
    node = bench.node(minion)
    nodes.add_jails(node, jails, package)
    node.pillar({**PILLAR, **pillar})
    results = node.apply()
    require(all(r["result"] for r in results), node.summary(results))
    return node


def heal(bench):
    """How long a failure lasts: killed services and lost jails, one after the other."""
    names = {f"e{i}": f"127.77.24.{i + 1}" for i in range(6)}
    node = prepared(bench, "heal", names)
    live(node, names)
    taken = {"service": [], "crash": []}
    for number in range(FAILURES):
        env = f"e{number % len(names)}"
        if not node.wait_state(env, "healthy", 30):
            raise RuntimeError(f"{env} is not healthy again: {node.status()[env]}")
        kind = "crash" if number % 3 == 2 else "service"
        time.sleep(0.37 * POLL * (number % 5))  # failures come at any moment of monit's cycle
        began = time.time()
        if kind == "crash":
            node.sim.crash(env)
        else:
            kill_service(node, env)
        healed = reached(node, env, "healed", began)
        taken[kind].append((first(node, env, "failing", began) - began, healed - began))
        if number % 12 == 11:
            say(f"    {number + 1} failures")
    bench.drop(node)
    both = taken["service"] + taken["crash"]
    keys = {"heal_failures": len(both), "heal_poll_s": POLL, "heal_failure_threshold": 2}
    for at, word in enumerate(("detect", "heal")):
        keys[f"{word}_s_median"] = round(median([pair[at] for pair in both]), 2)
        keys[f"{word}_s_p95"] = round(nodes.percentile([pair[at] for pair in both], 95), 2)
        for kind, pairs in taken.items():
            keys[f"{word}_{kind}_s_median"] = round(median([pair[at] for pair in pairs]), 2)
    return keys


def delay(bench):
    """Whether a restart that takes 30 s delays the detection of another env's failure."""
    others = {f"e{i}": f"127.77.24.{20 + i}" for i in range(5)}
    names = {"slow": "127.77.24.30", **others}
    node = prepared(bench, "delay", names, budget={"max_concurrent": 1, "storm_min": 100})
    live(node, names)

    def detect(env):
        began = kill_service(node, env)
        return reached(node, env, "failing", began) - began

    alone, during = [], []
    for _ in range(2):
        for at, env in enumerate(others):
            node.wait_state(env, "healthy", 60)
            time.sleep(0.23 * at)
            alone.append(detect(env))
        for env in names:
            node.wait_state(env, "healthy", 60)
        node.sim.slow("slow", start=15, stop=15)
        began = kill_service(node, "slow")
        reached(node, "slow", "healing", began)
        time.sleep(1)
        for at, env in enumerate(others):
            time.sleep(2 + 0.23 * at)
            during.append(detect(env))
        ended = first(node, "slow", "healed", began)
        require(not ended, "the restart ended before the last failure was detected")
        node.sim.slow("slow")
        for env in names:
            node.wait_state(env, "healthy", 120)
        touched = [r for r in restarts(node) if r[0] == "slow" and r[1] > began]
        took = touched[0][2] - touched[0][1]
        say(f"    the restart took {took:.1f} s")
    bench.drop(node)
    # The slowest of those during the restart against the middle of the others.
    polls = max(0.0, max(during) - median(alone)) / POLL
    keys = {"detect_alone_s_median": median(alone), "detect_during_restart_s_max": max(during)}
    keys["detect_during_restart_s_median"] = median(during)
    keys["detect_delay_during_restart_polls"] = polls
    keys = {key: round(value, 2) for key, value in keys.items()}
    return {**keys, "detect_delay_restart_s": round(took, 1)}


# Storms

ENVS = 8
SLOW = {"stop": 22, "start": 22}  # seconds: restarts pile up that outlast monit's cycle, 8 × 5 s
WATCHED = 100  # seconds
BUDGET = 2
# The rule in upstream's howto, for the jail's port 80, with the path of the simulated cbsd.
RULE = """\
check host {env} with address {address}
\tif failed port 80 protocol http
\tthen exec "{cbsd} jrestart {env}"
\t\trepeat every 1 cycles
"""
# What CBSD's module monit does around a start and a stop: the same work, and its 3 s.
POSTSTART = """\
#!/bin/sh
sleep 3
cd {system}/$jname/monit || exit
sed -e "s:%%JNAME%%:$jname:g" -e "s:%%IPV4_FIRST%%:$ipv4_first:g" monitrc.tpl > monitrc
{monit} -c {monitrc} -t > /dev/null 2>&1 && {monit} -c {monitrc} reload > /dev/null 2>&1
{monit} -c {monitrc} summary $jname > /dev/null 2>&1
"""
PRESTOP = """\
#!/bin/sh
[ -f {system}/$jname/monit/monitrc ] || exit 0
rm -f {system}/$jname/monit/monitrc
{monit} -c {monitrc} summary $jname > /dev/null 2>&1 &&
    {monit} -c {monitrc} -t > /dev/null 2>&1 && {monit} -c {monitrc} reload > /dev/null 2>&1
"""
PLAIN = """\
set daemon {poll}
set log {root}/log/monit.log
set pidfile {root}/var/run/monit.pid
set idfile {root}/var/db/monit.id
set statefile {root}/var/db/monit.state
set httpd unixsocket {root}/var/run/monit.sock
    allow localhost
include {system}/*/monit/monitrc
"""


def upstream(bench, minion, jails, hooks, package=""):
    """A node as in upstream's howto: a rule for each jail, plain monit, and the module's hooks."""
    node = bench.node(minion)
    nodes.add_jails(node, jails, package, port=80)
    system = pathlib.Path(node.sim.layout.work("jails-system"))
    values = {"system": system, "monit": shutil.which("monit"), "monitrc": node.monitrc}
    node.monitrc.write_text(PLAIN.format(poll=POLL, root=node.root, **values))
    node.monitrc.chmod(0o600)
    scripts = {"master_poststart.d": POSTSTART, "master_prestop.d": PRESTOP} if hooks else {}
    cbsd = os.path.join(node.sim.bin, "cbsd")
    for env, address in jails.items():
        folder = system / env / "monit"
        folder.mkdir()
        template = RULE.format(cbsd=cbsd, env="%%JNAME%%", address="%%IPV4_FIRST%%")
        (folder / "monitrc.tpl").write_text(template)
        (folder / "monitrc").write_text(RULE.format(cbsd=cbsd, env=env, address=address))
        for directory, text in scripts.items():
            path = system / env / directory / "monit.sh"
            path.write_text(text.format(**values))
            path.chmod(0o755)
    return node


def plain_monit(node):
    """Start monit with the environment that a host gives it."""
    argv = [shutil.which("monit"), "-c", str(node.monitrc)]
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True}
    subprocess.run(argv, env=node.sim.environment(), cwd="/", check=True, **quiet)


def storm(bench):
    """Cut eight running envs off: upstream's rule, ours, and ours with storm guard."""
    blocks = {"rule": "127.77.23.1", "module": "127.77.23.3"}
    blocks.update(ours="127.77.23.5", guard="127.77.23.7")
    envs = {name: {f"s{i}": f"{block}{i}" for i in range(ENVS)} for name, block in blocks.items()}
    networks = {n: bench.hold(Network([*found.values()], 8080)) for n, found in envs.items()}
    hosts = {}
    for name, hooks in (("rule", False), ("module", True)):
        hosts[name] = upstream(bench, name, envs[name], hooks)
    for name, least in (("ours", ENVS + 1), ("guard", 5)):
        budget = {"max_concurrent": BUDGET, "storm_window": "2m", "storm_min": least}
        pillar = {"defaults": {**DEFAULTS, "start_period": "5s"}, "budget": budget}
        hosts[name] = prepared(bench, name, envs[name], "", **pillar)
    for name in ("rule", "module"):
        networks[name].port = 80
        start(hosts[name], envs[name])
    for name in ("ours", "guard"):
        networks[name].answer()
        live(hosts[name], envs[name])
    for name, node in hosts.items():
        for env in envs[name]:
            node.sim.slow(env, **SLOW)
        networks[name].blackhole()
    began = time.time()
    for name in ("rule", "module"):
        plain_monit(hosts[name])
    say(f"    {ENVS} envs on each of four nodes are cut off; watched for {WATCHED} s")
    while time.time() < began + WATCHED:
        time.sleep(min(25, max(0, began + WATCHED - time.time())))
        counts = ", ".join(f"{name} {len(restarts(node, began))}" for name, node in hosts.items())
        say(f"    {time.time() - began:4.0f} s: restarts begun: {counts}")
    found = {name: restarts(node, began) for name, node in hosts.items()}
    records = [r for env in envs["guard"] for r in hosts["guard"].history(env)]
    alerts = sum(r["transition"] == "storm" for r in records)
    for node in hosts.values():
        bench.drop(node)
    for network in networks.values():
        network.close()
    keys = {"storm_envs": ENVS, "storm_watched_s": WATCHED, "storm_budget": BUDGET}
    keys.update(storm_restart_takes_s=sum(SLOW.values()), storm_guard_alerts=alerts)
    for name, word in (("rule", "upstream_"), ("module", "module_"), ("ours", "")):
        keys[f"storm_{word}restarts"] = len(found[name])
        keys[f"storm_{word}max_concurrent"] = nodes.most_at_once(found[name])
    for name, word in (("rule", ""), ("module", "module_"), ("ours", "ours_")):
        keys[f"storm_{word}overlapping_restarts"] = nodes.overlapping(found[name])
    return {**keys, "storm_guard_restarts": len(found["guard"])}
