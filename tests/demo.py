#!/usr/bin/env python3
"""
Show the main job: a simulated CBSD node under .demo/, masterless Salt, real monit and nginx.

Applies the formula, creates lb1 (nginx) and db1, stops nginx in lb1, then kills that jail behind
CBSD's back, and shows how both failures are noticed and healed. The exit code is 0 only if both
were, with one restart each, and db1 was not touched. Writes build/demo.json; `--remove` removes
.demo/.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
import time
import urllib.request

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

from node_on_salt import SaltNode  # noqa: E402

ROOT = REPO / ".demo"
ADDRESS = {"lb1": "127.77.0.11", "db1": "127.77.0.12"}
DEFAULTS = {"interval": "1s", "timeout": "2s", "failure_threshold": 2, "start_period": "20s"}
DEFAULTS["on_failure"] = "restart"
DEFAULTS["restart"] = {"attempts": 3, "interval": "10m", "delay": "5s"}
HTTP = {"type": "http", "port": 80, "path": "/", "content": "lb1"}
PILLAR = {
    "monit": {"poll": "1s"},
    "defaults": DEFAULTS,
    "profiles": {"nginx": {"checks": {"http": HTTP}}},
    "envs": {
        "lb1": {"profiles": ["nginx"], "checks": {"alive": {"type": "running"}}},
        "db1": {"checks": {"app": {"type": "tcp", "port": 8080}}},
    },
}
PATIENCE = 60  # seconds that a failure may last


def say(text=""):
    print(text, flush=True)


def step(text):
    say(f"\n\033[1m==> {text}\033[0m" if sys.stdout.isatty() else f"\n==> {text}")


def show(text, indent="    "):
    for line in text.strip().splitlines():
        say(indent + line)


def serves(address):
    """True if nginx answers there."""
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(f"http://{address}/", timeout=0.5) as answer:
            return answer.status == 200
    return False


class Watch:
    """Follows what happens to one env after a failure."""

    def __init__(self, node, env):
        self.node, self.env = node, env
        self.seen = {r["id"] for r in node.history(env)}
        self.commands = len(node.commands())
        self.began = time.time()

    def follow(self):
        """Print transitions until healed or out of patience; returns one entry of demo.json."""
        detected = healed = None
        served = not serves(ADDRESS[self.env])
        say(f"    +{0.0:5.1f} s  {self.env} fails" if served else "    (still serving?)")
        while time.time() < self.began + PATIENCE:
            for record in self.node.history(self.env):
                if record["id"] in self.seen:
                    continue
                self.seen.add(record["id"])
                since = record["time"] - self.began
                words = " ".join(str(record[k]) for k in ("check", "reason") if record.get(k))
                say(f"    +{since:5.1f} s  {record['transition']:<10} {words}")
                if record["transition"] == "failing" and detected is None:
                    detected = since
                if record["transition"] == "healed":
                    healed = since
            if healed is not None and serves(ADDRESS[self.env]):
                say(f"    +{time.time() - self.began:5.1f} s  {self.env} serves again")
                break
            time.sleep(0.1)
        commands = self.node.commands()[self.commands :]
        starts = [c for c in commands if c[:1] == ["jstart"] and f"jname={self.env}" in c]
        times = {"detected_s": detected, "healed_s": healed}
        times = {key: None if value is None else round(value, 1) for key, value in times.items()}
        return {"env": self.env, **times, "restarts": len(starts)}


def main():
    if "--remove" in sys.argv:
        SaltNode(ROOT).destroy()
        return 0
    if os.geteuid() != 0:
        say("the demo needs root: a simulated jail listens on port 80 of its own loopback address")
        return 1
    SaltNode(ROOT).destroy()
    node = SaltNode(ROOT)

    def end(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    began = time.time()
    try:
        return play(node)
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    finally:
        node.stop()
        took = time.time() - began
        say(f"\nEverything it started has ended ({took:.0f} s); the node's files are in .demo/.")


def play(node):
    step("A CBSD node (simulated) and its Salt minion (real, masterless)")
    node.create()
    node.pillar(PILLAR)
    say(f"    CBSD's work directory: {node.sim.workdir}")

    step("The formula is applied: salt-call --local state.apply cbsd_monit")
    show(node.summary(node.apply()))

    step("lb1 with nginx and db1 are created, as anybody would: cbsd jcreate …")
    packages = {"lb1": ("nginx", "nginx_enable=YES"), "db1": ("tcpd", "tcpd_port=8080")}
    for env, (package, setting) in packages.items():
        words = f"jname={env} ip4_addr={ADDRESS[env]} pkglist={package} sysrc={setting} inter=0"
        say(f"    cbsd jcreate {words}")
        node.sim.cbsd("jcreate", *words.split())

    step("The formula again: the new envs get their checks")
    show(node.summary(node.apply()))

    step("cbsd jstart lb1; cbsd jstart db1: the hooks announce, the agent publishes, monit reloads")
    for env in ("lb1", "db1"):
        node.sim.cbsd("jstart", f"jname={env}")
    if not node.wait_state("lb1", "healthy", 30) or not node.wait_state("db1", "healthy", 30):
        say("    lb1 and db1 did not become healthy")
        show(json.dumps(node.status(), indent=1))
        show(node.agent_log())
        return 1
    say("\n    jails-system/lb1/monit/monitrc:")
    show((pathlib.Path(node.sim.workdir) / "jails-system/lb1/monit/monitrc").read_text(), "      ")
    say("\n    monit summary:")
    show(node.monit("summary"), "      ")
    untouched = node.running()["db1"]

    failures = []
    step("Failure 1: cbsd jexec jname=lb1 service nginx stop")
    watch = Watch(node, "lb1")
    node.sim.cbsd("jexec", "jname=lb1", "service", "nginx", "stop")
    failures.append({**watch.follow(), "kind": "service"})
    node.wait_state("lb1", "healthy", 20)

    step("Failure 2: the kernel loses the jail lb1, CBSD does not notice")
    watch = Watch(node, "lb1")
    node.sim.crash("lb1")
    failures.append({**watch.follow(), "kind": "crash"})

    same = node.running().get("db1") == untouched
    result = {"failure": failures, "untouched": ["db1"] if same else []}
    (REPO / "build").mkdir(exist_ok=True)
    (REPO / "build/demo.json").write_text(json.dumps(result, indent=1) + "\n")

    step("Result (build/demo.json)")
    say("    env   failure   detected   healed   restarts")
    for f in failures:
        times = (f["detected_s"], f["healed_s"])
        cells = ["never" if value is None else f"{value:.1f} s" for value in times]
        say(f"    {f['env']:<5} {f['kind']:<9} {cells[0]:<10} {cells[1]:<8} {f['restarts']}")
    say(f"    db1 was {'not touched' if same else 'TOUCHED'}")
    good = same and all(f["healed_s"] is not None and f["restarts"] == 1 for f in failures)
    if not good:
        show(node.agent_log())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
