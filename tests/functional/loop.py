"""A simulated node under real Salt, monit and agent, and the verbs that these tests use on it."""

import json
import os
import subprocess
import threading
import time
import urllib.request

BASE = {
    "monit": {"poll": "1s"},
    "defaults": {
        "interval": "1s",
        "timeout": "1s",
        "failure_threshold": 2,
        "start_period": "15s",
        "restart": {"attempts": 20, "interval": "10m", "delay": "2s"},
    },
    "budget": {"max_concurrent": 2, "boot_grace": "10s"},
    "profiles": {"nginx": {"checks": {"http": {"type": "http", "port": 80, "path": "/"}}}},
}


def http(address, port=80):
    try:
        with urllib.request.urlopen(f"http://{address}:{port}/", timeout=1) as answer:
            return answer.status
    except OSError:
        return None


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")


class Loop:
    """The node and its pillar; the envs' addresses are BLOCK.1, BLOCK.2, …"""

    def __init__(self, node, block):
        self.node, self.block, self.envs = node, block, {}
        self.settings = json.loads(json.dumps(BASE))

    def jail(self, name, last, package="nginx", settings="nginx_enable=YES", **pillar):
        address = f"{self.block}.{last}"
        words = [f"jname={name}", f"ip4_addr={address}", "inter=0"]
        if package:
            words += [f"pkglist={package}", f"sysrc={settings}"]
        done = self.node.sim.cbsd("jcreate", *words)
        assert done.returncode == 0, done.stdout
        if pillar:
            self.envs[name] = pillar
        return address

    def apply(self, test=False):
        self.node.pillar({**self.settings, "envs": self.envs})
        return self.node.apply_here(test=test) if self.node.synced else self.node.apply(test=test)

    def live(self, *names, seconds=90):
        for name in names:
            self.node.sim.cbsd("jstart", f"jname={name}")
        for name in names:
            self.state(name, "healthy", seconds)

    def state(self, name, state, seconds=90):
        assert self.node.wait_state(name, state, seconds), (
            f"{name} is not {state}: {json.dumps(self.node.status().get(name))}\n"
            f"{self.node.agent_log()}"
        )

    def transitions(self, name):
        return [r["transition"] for r in self.node.history(name)]

    def starts(self, name, verb="jstart"):
        return [c for c in self.node.commands() if c[0] == verb and f"jname={name}" in c]

    def healed(self, name, times=1, seconds=90):
        until(
            lambda: self.transitions(name).count("healed") >= times,
            seconds,
            lambda: (
                f"{name} healed {times} times: {self.transitions(name)}\n{self.node.agent_log()}"
            ),
        )


class Watcher(threading.Thread):
    """Asks `monit -t` again and again whether what monit includes at this moment parses."""

    def __init__(self, node, pause=0.15):
        super().__init__(daemon=True)
        self.pause = pause
        self.argv = [node.lookup()["monit"], "-t", "-c", str(node.monitrc)]
        self.done, self.asked, self.refused = threading.Event(), 0, []

    def run(self):
        while not self.done.wait(self.pause) and os.path.exists(self.argv[-1]):
            found = subprocess.run(self.argv, capture_output=True, text=True, check=False)
            self.asked += 1
            if found.returncode and os.path.exists(self.argv[-1]):
                self.refused.append(found.stderr)
