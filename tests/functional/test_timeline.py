"""
A policy, a fault and the transitions expected, row by row, against real monit.

The rows run side by side, each on an env of its own, on one node: real Salt, monit (poll 1 s) and
agent, simulated CBSD.  What most envs serve is a page of this process, good or bad as the row says,
so that a row can count runs.
"""

import concurrent.futures
import http.server
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from typing import Any, Callable, NamedTuple

import pytest

PORT = 9000
# How much later than it should a transition may come; more on a busy machine.
SLACK = 5.0
TOGETHER = 7  # rows at the same time: each failing env lets monit run a program in each cycle
VERIFY = 11.0  # start_period 0 + 2 intervals + timeout + 3 polls + 5 s: then a heal has not helped
SETTINGS = {
    "monit": {"poll": "1s"},
    "defaults": {
        "interval": "1s",
        "timeout": "1s",
        "failure_threshold": 1,
        "start_period": "0s",
        "restart": {
            "attempts": 5,
            "interval": "10m",
            "delay": "1s",
            "delay_function": "constant",
            "jitter": 0,
        },
    },
    "budget": {"max_concurrent": 30, "storm_min": 64},
}
APP = {"type": "http", "port": PORT, "path": "/"}


class Lag(threading.Thread):
    """How long this machine takes to start a small program, measured all the time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.measured, self.done = [], threading.Event()

    def run(self):
        while not self.done.wait(0.5):
            began = time.time()
            subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
            self.measured.append((began, time.time() - began))

    def slack(self, since, until):
        """Seconds to allow beyond a window: a look, a heal and its proof are a hundred programs."""
        took = [seconds for began, seconds in self.measured if since - 1 <= began <= until]
        return SLACK + 150 * statistics.fmean(took or [0])


class App:
    """A page at an env's address, good as ``sequence`` says and after that as ``good()`` does."""

    def __init__(self, address):
        app = self
        self.good, self.sequence, self.answers = (lambda: True), [], []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                good = app.sequence.pop(0) if app.sequence else app.good()
                app.answers.append((time.time(), good))
                self.send_response(200 if good else 500)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((address, PORT), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Env:
    """One env of the node, and what a row does to it."""

    def __init__(self, node, name, address):
        self.node, self.name, self.address = node, name, address
        self.app = App(address)
        self.marker = pathlib.Path(node.root) / f"{name}.broken"

    def jid(self):
        return self.node.sim.kernel.jid(self.name)

    def cbsd(self, *words):
        return self.node.sim.cbsd(words[0], f"jname={self.name}", *words[1:])

    def now(self):
        """The present moment, as the beginning of the fault."""
        self.since = time.time()

    def history(self):
        """Its transitions since the fault, but for `backoff`: a pass has to find it waiting."""
        return [
            r
            for r in self.node.history(self.name)
            if r["time"] >= self.since and r["transition"] != "backoff"
        ]

    def runs(self):
        """When its page was asked for, from the first bad answer on."""
        answers = [(t, good) for t, good in self.app.answers if t >= self.since - 0.5]
        first = next((n for n, (_, good) in enumerate(answers) if not good), len(answers))
        return [t for t, _ in answers[first:]]

    def verbs(self):
        """The starts and stops of this env since the fault began."""
        log = [r for r in self.node.sim.log() if r["event"] == "start" and r["t"] >= self.since]
        return [
            r["argv"][0]
            for r in log
            if f"jname={self.name}" in r["argv"] and r["argv"][0] in ("jstart", "jstop")
        ]

    def breaks(self, further=0):
        """It fails until it is restarted, and ``further`` times after that."""
        jid, left = self.jid(), [False] * further

        def good():
            if self.jid() in (0, jid):
                return False
            return not left or left.pop()

        self.app.good = good
        self.now()

    def fails(self):
        """Whatever is done, it does not help."""
        self.app.good = lambda: False
        self.now()

    def answers(self, text):
        """It fails (x) and succeeds (o) in this order, then it succeeds."""
        self.app.sequence = [c == "o" for c in text]
        self.now()

    def waits(self, transition, times=1, seconds=200):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if [r["transition"] for r in self.history()].count(transition) >= times:
                return
            time.sleep(0.1)


def breaks(env):
    env.breaks()


def fails(env):
    env.fails()


def fails_until_second_attempt(env):
    env.fails()
    env.waits("healing", 2)
    env.app.good = lambda: True


def fails_until_third_attempt(env):
    env.fails()
    env.waits("healing", 3)
    env.app.good = lambda: True


def started_broken(env):
    env.cbsd("jstop")
    env.node.wait_state(env.name, "stopped", 20)
    env.app.good = lambda: False
    env.now()
    env.cbsd("jstart", "inter=0")


def breaks_soon_after_first_success(env):
    env.cbsd("jstop")
    env.node.wait_state(env.name, "stopped", 20)
    env.cbsd("jstart", "inter=0")
    env.node.wait_state(env.name, "healthy", 20)
    env.breaks()


def twice(env):
    env.breaks()
    env.waits("healthy")
    time.sleep(6)
    since = env.since
    env.breaks()
    env.since = since


def dies_again(env):
    """It works for 8 s after each start."""
    began = {}

    def good():
        jid = env.jid()
        return (
            jid not in (0, env.first)
            and time.monotonic() - began.setdefault(jid, time.monotonic()) < 8
        )

    env.first = env.jid()
    env.app.good = good
    env.now()


def service_stops(env):
    env.now()
    env.cbsd("jexec", "service", "tcpd", "stop")


def kernel_loses_it(env):
    env.now()
    env.node.sim.crash(env.name)


def file_is_there(env):
    env.marker.touch()
    env.app.good = lambda: not env.marker.exists()
    env.now()


def script_fails(env):
    """The script's exit code is 3 while the file names the jail as it was started now."""
    root = env.node.sim.root
    data = pathlib.Path(env.node.sim.workdir) / f"jails-data/{env.name}-data"
    (data / "broken").write_text(f"{root}:{env.name}:{env.jid()}\n")
    env.now()


class T(NamedTuple):
    """
    A transition, and when it has to come: so many seconds after the one before.

    With ``run`` it is after the answer of that number (from 1) since the fault: monit looks more
    often than once in a poll when it is spoken to.  With ``since`` it is after that transition
    (from 0; -1: the fault).
    """

    name: str
    earliest: float = 0.0
    latest: float = 0.0
    since: int = None
    run: int = None


class Row(NamedTuple):
    policy: dict
    fault: Callable
    expect: list
    verbs: list
    package: str = ""
    check: Any = APP
    seconds: float = 6.0  # nothing more may happen for so long


HEALED = [T("healing"), T("healed", 0, 4), T("healthy")]
RESTARTED = ["jstop", "jstart"]
FAILED = T("failing", VERIFY - 0.5, VERIFY + 3)
LADDER = [{"service_restart": "tcpd"}, "restart"]
ROWS = {
    "one-failure": Row({}, breaks, [T("failing", run=1), *HEALED], RESTARTED),
    "three-failures": Row(
        {"failure_threshold": 3}, breaks, [T("failing", run=3), *HEALED], RESTARTED
    ),
    "two-of-four": Row(
        {
            "failure_threshold": {"failures": 2, "within": 4},
            "on_failure": "alert",
            "success_threshold": 30,
        },
        lambda env: env.answers("xoox"),
        [T("warning", run=4), T("recovered", run=34), T("healthy")],
        [],
    ),
    "interval": Row(
        {"interval": "3s", "failure_threshold": 2, "success_threshold": 10, "on_failure": "alert"},
        lambda env: env.answers("xx"),
        [T("warning", run=2), T("recovered", run=12), T("healthy")],
        [],
    ),
    "two-in-a-row": Row(
        {"failure_threshold": 2}, lambda env: env.answers("xooxoxox"), [], [], seconds=12
    ),
    "two-successes": Row(
        {"success_threshold": 2, "on_failure": "alert"},
        lambda env: env.answers("xo" * 6),
        [T("warning", run=1), T("recovered", run=13), T("healthy")],
        [],
    ),
    "start-period": Row(
        {"start_period": "6s", "on_failure": "alert"},
        started_broken,
        [T("starting", 0, 2), T("warning", 5.5, 8, -1)],
        ["jstart"],
    ),
    "startup-ends-with-first-success": Row(
        {"start_period": "40s"},
        breaks_soon_after_first_success,
        [T("failing", 0, 1), *HEALED],
        RESTARTED,
    ),
    "startup-again-after-heal": Row(
        {"start_period": "40s"},
        lambda env: env.breaks(further=5),
        [T("failing", 0, 1), T("healing"), T("healed", 4, 10), T("healthy")],
        RESTARTED,
    ),
    "gives-up": Row(
        {"restart": {"attempts": 2}},
        fails,
        [T("failing", 0, 1), T("healing"), FAILED, T("healing", 0.8, 1), FAILED, T("gave_up")],
        RESTARTED * 2,
    ),
    "mode-delay": Row(
        {"restart": {"attempts": 1, "interval": "20s", "mode": "delay"}},
        fails_until_second_attempt,
        [
            T("failing", 0, 1),
            T("healing"),
            FAILED,
            T("healing", 20, 22, 1),
            T("healed", 0, 4),
            T("healthy"),
        ],
        RESTARTED * 2,
    ),
    "constant-delay": Row(
        {"restart": {"delay": "3s"}},
        fails_until_third_attempt,
        [T("failing", 0, 1), T("healing")]
        + [FAILED, T("healing", 2.9, 3.5)]
        + [FAILED, T("healing", 2.9, 3.5), T("healed", 0, 4), T("healthy")],
        RESTARTED * 3,
    ),
    "exponential-delay-with-cap": Row(
        {"restart": {"delay": "2s", "delay_function": "exponential", "max_delay": "7s"}},
        lambda env: (env.fails(), env.waits("healing", 4), setattr(env.app, "good", lambda: True)),
        [T("failing", 0, 1), T("healing")]
        + [FAILED, T("healing", 1.9, 2.5)]
        + [FAILED, T("healing", 3.9, 4.5)]
        + [FAILED, T("healing", 6.9, 7.5), T("healed", 0, 4), T("healthy")],
        RESTARTED * 4,
    ),
    "reset-after": Row(
        {"restart": {"attempts": 1, "reset_after": "3s"}},
        twice,
        [T("failing", 0, 1), *HEALED, T("failing", 6, 8), *HEALED],
        RESTARTED * 2,
    ),
    "no-reset": Row(
        {"restart": {"attempts": 1, "reset_after": "10m"}},
        twice,
        [T("failing", 0, 1), *HEALED, T("failing", 6, 8), T("gave_up")],
        RESTARTED,
    ),
    "first-rung-helps": Row(
        {"on_failure": LADDER},
        service_stops,
        [T("failing", 0, 2), *HEALED],
        [],
        "tcpd",
        {"type": "tcp", "port": 8080},
    ),
    "second-rung-helps": Row(
        {"on_failure": LADDER},
        breaks,
        [
            T("failing", 0, 1),
            T("healing"),
            FAILED,
            T("healing", 0.8, 1),
            T("healed", 0, 4),
            T("healthy"),
        ],
        RESTARTED,
        "tcpd",
    ),
    "command": Row(
        {"on_failure": [{"command": ["/bin/rm", "-f", "{root}/command.broken"]}]},
        file_is_there,
        [T("failing", 0, 1), *HEALED],
        [],
    ),
    "alert": Row(
        {"on_failure": "alert"},
        lambda env: env.answers("x" * 15),
        [T("warning", run=1), T("recovered", run=16), T("healthy")],
        [],
    ),
    "event": Row(
        {"on_failure": "event"},
        lambda env: env.answers("x" * 15),
        [T("failing", run=1), T("recovered", run=16), T("healthy")],
        [],
    ),
    "stop": Row(
        {"on_failure": "stop"},
        breaks,
        [T("failing", 0, 1), T("healing"), T("stopped", 0, 3)],
        ["jstop"],
    ),
    "start": Row(
        {"on_failure": "start"}, kernel_loses_it, [T("failing", 0, 2), *HEALED], ["jstart"]
    ),
    "not-healed": Row(
        {"heal": False},
        lambda env: env.answers("x" * 15),
        [T("failing", run=1), T("recovered", run=16), T("healthy")],
        [],
    ),
    "time-out": Row(
        {"on_failure": [{"command": ["{root}/hang"]}, "restart"], "restart": {"timeout": "2s"}},
        breaks,
        [T("failing", 0, 1), T("healing"), T("failing", 1.9, 3), T("healing", 0.8, 1)]
        + [T("healed", 0, 4), T("healthy")],
        RESTARTED,
    ),
    "dies-again": Row(
        {"restart": {"attempts": 2}},
        dies_again,
        [
            T("failing", 0, 1),
            *HEALED,
            T("failing", 0, 9),
            *HEALED,
            T("failing", 0, 9),
            T("gave_up"),
        ],
        RESTARTED * 2,
    ),
    "script": Row(
        {"failure_threshold": 2},
        script_fails,
        [T("failing", 1, 5), T("healing"), T("healed", 0, 6), T("healthy")],
        RESTARTED,
        check={
            "type": "exec",
            "in": "jail",
            "timeout": "10s",
            "command": ["/usr/local/bin/app-check", "-q"],
        },
    ),
}
SCRIPT = """\
#!/bin/sh
[ "$(cat broken 2>/dev/null)" != "$CBSD_SIM_JAIL" ] || { echo app is broken; exit 3; }
"""
HANG = """\
#!/bin/sh
# Neither it nor what it starts ends, whoever asks politely.
trap '' TERM
sh -c 'trap "" TERM; sleep 600; : {root}/hang' &
wait
"""


def filled(value, root):
    return json.loads(json.dumps(value).replace("{root}", str(root)))


@pytest.fixture(scope="module")
def seen(salt_node):
    """{row: (env, its transitions since the fault, its starts and stops)} and the Lag."""
    node = salt_node()
    hang = pathlib.Path(node.root) / "hang"
    hang.write_text(HANG.format(root=node.root))
    hang.chmod(0o755)
    envs, pillar = {}, {}
    for number, (name, row) in enumerate(ROWS.items()):
        address = f"127.77.29.{number + 11}"
        words = ["pkglist=tcpd", "sysrc=tcpd_port=8080"] if row.package else []
        done = node.sim.cbsd("jcreate", f"jname={name}", f"ip4_addr={address}", "inter=0", *words)
        assert done.returncode == 0, done.stdout
        envs[name] = Env(node, name, address)
        pillar[name] = filled({**row.policy, "checks": {"app": row.check}}, node.root)
    script = pathlib.Path(node.sim.workdir) / "jails-data/script-data/usr/local/bin/app-check"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SCRIPT)
    script.chmod(0o755)
    node.pillar({**SETTINGS, "envs": pillar})
    results = node.apply()
    assert all(r["result"] for r in results), node.summary(results)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda env: env.cbsd("jstart", "inter=0"), envs.values()))
    late = [name for name in envs if not node.wait_state(name, "healthy", 60)]
    assert not late, f"{late}\n{node.agent_log()}"

    def run(name):
        row, env = ROWS[name], envs[name]
        row.fault(env)
        for number in range(len(row.expect)):
            end = time.monotonic() + 60
            while len(env.history()) <= number and time.monotonic() < end:
                time.sleep(0.1)
            if len(env.history()) <= number:
                break
        time.sleep(row.seconds)
        return name, (env, env.history(), env.verbs())

    lag = Lag()
    lag.start()
    long = sorted(ROWS, key=lambda name: -sum(t.latest for t in ROWS[name].expect))
    with concurrent.futures.ThreadPoolExecutor(TOGETHER) as pool:
        found = dict(pool.map(run, long))
    lag.done.set()
    yield {**found, "lag": lag}
    with concurrent.futures.ThreadPoolExecutor(len(envs)) as pool:  # each takes half a second
        list(pool.map(lambda env: env.app.server.shutdown(), envs.values()))
    for env in envs.values():
        env.app.server.server_close()


@pytest.mark.parametrize("name", ROWS)
def test_transitions_come_as_the_policy_says(seen, name):
    row, (env, history, verbs), lag = ROWS[name], seen[name], seen["lag"]
    told = [(r["transition"], round(r["time"] - env.since, 1), r["reason"]) for r in history]
    assert [r["transition"] for r in history] == [t.name for t in row.expect], told
    for number, (wanted, record) in enumerate(zip(row.expect, history)):
        if wanted.run:
            since = env.runs()[wanted.run - 1]
        elif wanted.since == -1 or number == 0:
            since = env.since
        else:
            since = history[number - 1 if wanted.since is None else wanted.since]["time"]
        after = record["time"] - since
        slack = lag.slack(since, record["time"])
        assert wanted.earliest - 0.2 <= after <= wanted.latest + slack, (
            wanted,
            round(after, 1),
            round(slack, 1),
            told,
        )
    assert verbs == row.verbs, told


def test_script_that_hangs_is_killed_with_all_that_it_started(seen):
    env, history, _ = seen["time-out"]
    assert "killed" in [r["reason"] for r in history if r["transition"] == "failing"][1]
    processes = subprocess.run(
        ["ps", "-axww", "-o", "command="], capture_output=True, text=True, check=True
    ).stdout
    assert f"{env.node.root}/hang" not in processes


def test_env_that_waits_for_its_next_attempt_says_so(seen):
    envs = [
        seen[name][0] for name in ("mode-delay", "constant-delay", "exponential-delay-with-cap")
    ]
    assert "backoff" in [r["transition"] for env in envs for r in env.node.history(env.name)]


def test_what_was_given_up_is_not_looked_at_any_more(seen):
    env, _, _ = seen["gives-up"]
    line = [line for line in env.node.monit("summary").splitlines() if "gives-up.app" in line][0]
    assert "Not monitored" in line
    assert env.node.status()["gives-up"]["state"] == "gave_up"


def test_env_stopped_by_its_policy_stays_down(seen):
    env, _, _ = seen["stop"]
    assert not env.jid() and env.node.status()["stop"]["intent_why"]["cause"] == "policy"
    assert os.path.exists(env.node.sim.workdir)
