"""Fifty envs on one node: a second run changes nothing, and the number of processes does not grow with the envs."""

import contextlib
import json
import subprocess
import sys
import time

import pytest

SETTINGS = {
    "monit": {"poll": "2s"},
    "defaults": {"interval": "2s", "timeout": "1s", "start_period": "10s"},
    "groups": {"all": {"match": "e*", "checks": {"app": {"type": "tcp", "port": 8080}, "alive": {"type": "running"}}}},
}


@pytest.fixture(scope="module")
def node(salt_node):
    return salt_node("hv50")


def add(node, first, last):
    for i in range(first, last):
        done = node.sim.cbsd(
            "jcreate", f"jname=e{i}", f"ip4_addr=127.78.0.{i + 1}", "pkglist=tcpd", "sysrc=tcpd_port=8080", "inter=0"
        )
        assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def no_agent(node):
    """Something that `wake` takes for a running agent, so that only the commands of what is measured are counted."""
    ticket = node.run_dir / "agent.pid"
    until = time.monotonic() + 60
    while ticket.exists() and time.monotonic() < until:
        time.sleep(0.1)
    argv = [sys.executable, "-c", "import time; time.sleep(120)", str(node.wake.parent / "agent")]
    stand_in = subprocess.Popen(argv)
    ticket.mkdir(parents=True, exist_ok=True)
    (ticket / "pid").write_text(f"{stand_in.pid}\n")
    try:
        yield
    finally:
        stand_in.kill()
        stand_in.wait()


def commands_of(node, action):
    with no_agent(node):
        before = len(node.commands(nested=False))
        found = action()
        return node.commands(nested=False)[before:], found


def test_processes_do_not_grow_and_the_second_run_changes_nothing(node):
    counts = {}
    reloads = lambda: (node.root / "log/monit.log").read_text().count("Reinitializing")  # noqa: E731
    node.pillar(SETTINGS)
    for total, new in ((5, (0, 5)), (50, (5, 50))):
        add(node, *new)
        first, results = commands_of(node, node.apply)
        assert all(r["result"] for r in results), node.summary(results)
        log = reloads()
        second, results = commands_of(node, node.apply)
        assert [r["__id__"] for r in results if r["changes"]] == []
        assert reloads() == log
        listing, found = commands_of(node, lambda: node.salt("cbsd.list"))
        assert len(found) == total
        counts[total] = (len(first), len(second), len(listing))
    assert counts[5] == counts[50], counts
    answer = json.loads(node.agent("sync", "--json"))
    assert answer["services"] == 150 and answer["changed"] == [] and not answer["reloaded"]
