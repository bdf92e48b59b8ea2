"""Whether `healthy` is proven, what is told of a monit that stands still, and a quiet day."""

import os
import pathlib
import shutil
import signal
import threading
import time
import traceback

import demo
from functional import test_lifecycle as lifecycle

from bench.nodes import Network, require, say
from bench.witness import Witness

ENVS = 50
POLL = 1  # seconds
BEYOND = 20  # seconds that a fault lasts beyond the limit
CRON = 30  # seconds between two lines of cron's while a fault lasts
QUIET = 120, 5  # seconds of minutes that are shortened, to so many
INTERVAL = 5  # seconds, where the demo has 1: each check rests between two runs
MINUTES = 2  # and whole ones: only there does what a pass found grow old
KEYS = (
    "proof_envs proof_healthy_env_s healthy_without_proof stalled_limit_s stalled_states_lie_s "
    "quiet_s quiet_unknowns"
).split()
RULES = ("unmonitor", "stop")
WHOLE = (
    lifecycle.test_power_lost_and_everything_starts_in_parallel,
    lifecycle.test_host_shut_down_and_booted,
    lifecycle.test_monit_killed_and_no_minion_a_failing_env_is_healed_by_cron,
)


def proof(bench):
    """Env-seconds called healthy without proof; states that outlive their proof; a quiet day."""
    stories = (events, refusals, rules, rounds, quiet)
    found, problems = {}, []

    def tell(story):
        began = time.monotonic()
        try:
            found[story.__name__] = story(bench)
            say(f"    {story.__name__} took {time.monotonic() - began:.0f} s")
        except BaseException:  # noqa: BLE001 - the others are told to their end
            problems.append(f"{story.__name__}:\n{traceback.format_exc()}")

    threads = [threading.Thread(target=tell, args=(story,), daemon=True) for story in stories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    require(not problems, "\n".join(problems))
    watched = [witness for story in stories for witness in found[story.__name__]["watched"]]
    for env, begin, end, why in (lapse for witness in watched for lapse in witness.lapses):
        say(f"    {env} was healthy for {end - begin:.1f} s without proof: {', '.join(why)}")
    values = (
        ENVS,
        round(sum(witness.healthy for witness in watched)),
        round(sum(witness.unproven() for witness in watched), 1),
        found["rounds"]["limit"],
        round(sum(found[name]["lies"] for name in ("refusals", "rounds")), 1),
        round(found["quiet"]["seconds"]),
        found["quiet"]["unknowns"],
    )
    return dict(zip(KEYS, values))


def watch(bench, life, peers=()):
    witness = bench.hold(Witness(life.node, POLL, lambda: life.power, peers))
    witness.start()
    return witness


def events(bench):
    """Every event that can happen to an env or to its node."""
    life = lifecycle.Life(bench.node("hv1"), lifecycle.BLOCK)
    life.other = lifecycle.Life(bench.node("hv2"), lifecycle.BLOCK)
    watched = [watch(bench, life), watch(bench, life.other)]
    apply(life.other)
    lifecycle.prepare(life, ENVS - 1)  # and `run1`
    for row in lifecycle.play(life).values():
        row.result()
    for event in WHOLE:
        event(life)
    for witness in watched:
        witness.close()
    for one in (life.node, life.other.node):
        bench.drop(one)
    return {"watched": watched}


def apply(life):
    """Apply the formula by a Salt of its own: other nodes do so at the same time."""
    life.node.pillar({**life.settings, "envs": life.envs})
    results = life.node.apply()
    require(all(r["result"] for r in results), life.node.summary(results))
    return results


# Each of these states has to be proven by rounds of monit; the env of this name is in it.
FAILS = {"start_period": "0s", "checks": lifecycle.APP}
LATER = {"attempts": 5, "interval": "4h", "delay": "1h", "max_delay": "2h"}
NINE = {"type": "tcp", "port": 9, "on_failure": "alert", "failure_threshold": 10}
STATES = {
    "healthy": {"checks": lifecycle.APP},
    "warning": {"checks": {**lifecycle.APP, "nine": NINE}},
    "failing": {**FAILS, "heal": False},
    "backoff": {**FAILS, "restart": LATER},
    "starting": {**FAILS, "start_period": "1h"},
}
ASK = {"type": "exec", "in": "jail", "command": ["/usr/local/bin/ask"]}
PROBED = {"checks": {**lifecycle.APP, "ask": ASK}}


class Node(lifecycle.Life):
    """A node with few time-outs, an env in each of STATES, and one with a probe."""

    def __init__(self, bench, minion, block):
        super().__init__(bench.node(minion), block)
        self.bench, self.witness = bench, None
        del self.settings["groups"]

    def make(self, **more):
        """Make these envs too, apply the formula, start all and wait for their states."""
        envs = {**STATES, "probed": PROBED, **more}
        for name, pillar in envs.items():
            self.tcp(name, package="" if "start_period" in pillar else "tcpd")
        self.envs = envs
        script = pathlib.Path(self.node.sim.layout.data("probed", "usr/local/bin/ask"))
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text("#!/bin/sh\ntouch asked\n")
        script.chmod(0o755)
        apply(self)
        asked = pathlib.Path(self.node.sim.layout.data("probed", "asked"))
        self.witness = watch(self.bench, self, {("probed", "ask"): asked})
        self.cbsd("jstart", "inter=0", *envs)
        self.settle(*more)

    def settle(self, *more):
        for name in (*STATES, "probed", *more):
            self.state(name, name if name in STATES else "healthy")

    def outlast(self, begin, end, during=lambda: None):
        """Have a fault last longer than the limit; what `events` and the others return."""
        since, limit = time.time(), self.witness.limit()
        begin()
        while time.time() < since + limit:
            self.node.agent("sync")  # as cron does; it may well fail
            time.sleep(max(0.0, min(CRON, since + limit - time.time())))
        during()
        time.sleep(BEYOND)
        until = time.time()
        lies = self.witness.lies(since + limit, until)
        end()
        self.tick()
        self.settle()
        self.witness.close()
        self.bench.drop(self.node)
        return {"watched": [self.witness], "lies": lies, "limit": limit}


GOOD = """\
check host %%JNAME%% with address %%IPV4_FIRST%%
  if failed port 8080 with timeout 1 seconds then alert
"""
BAD = {  # by hand, in `monitrc.tpl`
    "set": "set alert root@localhost\n" + GOOD,
    "fact": GOOD + "  if failed port %%NOBODY_KNOWS%% then alert\n",
    "quote": GOOD + '  if failed port 8080 then exec "/bin/true\n',
}
OLD_MONIT = """\
#!/bin/sh
case " $* " in *" -V "*) echo "This is Monit version 5.35.0"; exit ;; esac
exec {} "$@"
"""


def refusals(bench):
    """Envs whose text is refused, new and old; then no pass succeeds. The agent runs the probes."""
    life = Node(bench, "hv3", "127.77.31")
    monit = life.node.root / "bin/monit"
    monit.write_text(OLD_MONIT.format(shutil.which("monit")))
    monit.chmod(0o755)
    life.settings["lookup"] = {"monit": str(monit)}
    system = pathlib.Path(life.node.sim.layout.work("jails-system"))

    def write(name, text):
        (system / name / "monit").mkdir(exist_ok=True)
        (system / name / "monit/monitrc.tpl").write_text(text)

    old, new = ([f"{word}{n}" for word in BAD] for n in (1, 2))
    for name in (*old, *new):
        life.tcp(name)
    for name in old:
        write(name, GOOD)
    life.make(typo1={"checks": lifecycle.APP})
    life.cbsd("jstart", "inter=0", *old, *new)
    for name in old:
        life.state(name, "healthy")
    for name in (*old, *new):
        write(name, BAD[name[:-1]])
    life.tcp("real", "ip4_addr=REALDHCP")
    life.tcp("typo2")
    for name in ("typo1", "typo2"):
        life.envs[name] = {"checks": lifecycle.APP, "raw": "if faild port 8080 then alert\n"}
    life.node.pillar({**life.settings, "envs": life.envs})
    life.node.apply()
    life.cbsd("jstart", "inter=0", "real", "typo2")
    for name in (*old, *new, "real", "typo1", "typo2"):
        life.state(name, "quarantined")
    inventory = life.node.sim.inventory.file
    config = life.node.root / "usr/local/etc/cbsd_monit.json"

    def nothing_is_told():
        text = config.read_text()
        config.write_text(text[:-9])
        told = life.node.agent("status")
        config.write_text(text)
        require(not told, f"without a configuration it is told: {told}")

    away = f"{inventory}.away"
    begin, end = (lambda: os.rename(inventory, away)), (lambda: os.rename(away, inventory))
    return life.outlast(begin, end, nothing_is_told)


def rules(bench):
    """A row that CBSD loses for a while; rules that would end the watching of a silent port 9."""
    life = lifecycle.Life(bench.node("hv5"), "127.77.33")
    del life.settings["groups"]
    life.tcp("lost")
    for word in RULES:
        life.tcp(word)
        raw = f"if failed port 9 with timeout 1 seconds then {word}\n"
        life.envs[word] = {"checks": lifecycle.APP, "raw": raw, "heal": False}
    apply(life)
    network = bench.hold(Network([life.value(word) for word in RULES], 9))
    network.answer()
    witness = watch(bench, life)
    life.cbsd("jstart", "inter=0", *life.envs)
    for word in life.envs:
        life.state(word, "healthy")
    inventory, row = life.node.sim.inventory, life.node.sim.inventory.load("lost")
    inventory.write("DELETE FROM jails WHERE jname='lost'")
    life.tick()
    time.sleep(BEYOND)
    inventory.register(row)
    life.tick()
    life.state("lost", "healthy")
    network.close()
    for _ in range(MINUTES):
        time.sleep(60)
        life.tick()
        for word in RULES:
            life.state(word, "failing")
    witness.close()
    bench.drop(life.node)
    return {"watched": [witness]}


def rounds(bench):
    """A rollback to a generation without some checks; then monit's loop stands still."""
    life = Node(bench, "hv4", "127.77.32")
    life.make()
    generation = os.path.basename(os.readlink(life.node.state_dir / "published"))
    life.tcp("later")
    apply(life)
    life.cbsd("jstart", "inter=0", "later")
    life.state("later", "healthy")
    life.node.agent("rollback", generation)
    life.state("later", "quarantined")
    life.node.agent("rollback", "undo")
    life.state("later", "healthy")
    life.settle()
    time.sleep(10)

    def apply_is_red():
        results = life.node.apply()
        require(not all(r["result"] for r in results), "green, though monit stands still")

    begin, end = (lambda s=s: life.node.kill_monit(s) for s in (signal.SIGSTOP, signal.SIGCONT))
    return life.outlast(begin, end, apply_is_red)


def quiet(bench):
    """The demo's node on a quiet day: what is told besides `healthy`."""
    life = lifecycle.Life(bench.node("demo"), "127.77.0")
    life.settings = {key: value for key, value in demo.PILLAR.items() if key != "envs"}
    life.settings["defaults"] = {**demo.DEFAULTS, "interval": f"{INTERVAL}s"}
    life.cbsd("jcreate", "jname=lb1", "pkglist=nginx", "sysrc=nginx_enable=YES", *_at("lb1"))
    life.cbsd("jcreate", "jname=db1", "pkglist=tcpd", "sysrc=tcpd_port=8080", *_at("db1"))
    life.envs = demo.PILLAR["envs"]
    apply(life)
    life.cbsd("jstart", "inter=0", *demo.ADDRESS)
    for name in demo.ADDRESS:
        life.state(name, "healthy")
    witness, began = watch(bench, life), time.time()
    before = {name: life.node.history(name) for name in demo.ADDRESS}
    shortened, minute = QUIET
    for pause in [minute] * (shortened // minute) + [60] * MINUTES:
        life.tick()
        time.sleep(pause)
    witness.close()
    told = [states for _, _, states in witness.told]
    unknowns = sum(state != "healthy" for states in told for state, _ in states.values())
    unknowns += sum(len(life.node.history(n)) - len(before[n]) for n in demo.ADDRESS)
    bench.drop(life.node)
    return {"watched": [witness], "seconds": time.time() - began, "unknowns": unknowns}


def _at(name):
    return f"ip4_addr={demo.ADDRESS[name]}", "inter=0"
