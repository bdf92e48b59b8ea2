"""What an operator does with three nodes: asks, restarts one by one, targets jails."""

import json
import os
import time

import pytest

from . import fleet as fleets

HTTP = {"http": {"type": "http", "port": 80}}
NGINX = ("pkglist=nginx", "sysrc=nginx_enable=YES")


@pytest.fixture(scope="module")
def fleet():
    if os.geteuid() != 0:
        pytest.skip("needs root: simulated jails listen on their own loopback addresses")
    made = fleets.Fleet(3, net=39, states=["cbsd_monit"])
    made.pillar({**fleets.QUICK, "groups": {"web": {"match": "a*", "checks": HTTP}}})
    try:
        fleets.each(made, lambda name, _: made.jail(name, f"a{name[-1]}", 1, *NGINX))
        with made:
            made.highstate()
            fleets.each(made, lambda name, _: fleets.begin(made, name, f"a{name[-1]}"))
            yield made
    finally:
        made.stop()


def test_a_second_highstate_changes_nothing(fleet):
    found = fleet.highstate("hv1")["hv1"]
    assert [r["__id__"] for r in found.values() if r["changes"]] == []


def test_verbs_over_the_bus_are_meant(fleet):
    node = fleet.nodes["hv1"]
    before = node.running()["a1"]
    assert fleet.salt("hv1", "cbsd.restart", "a1")["hv1"]["changed"] is True
    assert node.wait_state("a1", "healthy", 60), node.agent_log()
    assert node.running()["a1"] != before
    assert node.status()["a1"]["intent"] == "running", (
        "a restart through Salt is no operator's stop"
    )
    assert fleet.salt("hv1", "cbsd.start", "a1")["hv1"]["changed"] is False
    done = fleet.cli("salt", "--out=json", "hv1", "cbsd.stop", "a1")
    assert done.returncode == 0 and json.loads(done.stdout)["hv1"]["changed"] is True, done
    assert node.wait_state("a1", "stopped", 60), node.agent_log()
    assert fleet.salt("hv1", "cbsd.start", "a1")["hv1"]["changed"] is True
    assert node.wait_state("a1", "healthy", 60), node.agent_log()


def test_hostile_names_are_refused_over_the_bus(fleet, tmp_path):
    def commands():  # but for the agent's looks at the inventory
        return [c for c in fleet.nodes["hv1"].commands() if c[0] != "-c"]

    before = commands()
    for name in (f"$(touch {tmp_path}/x)", "../x", "a b", "a|b", "*", "-x"):
        found = fleet.salt("hv1", "cbsd.restart", name)["hv1"]
        assert isinstance(found, str) and found.startswith("ERROR"), found
    done = fleet.cli("salt", "hv1", "cbsd.restart", "a|b")
    assert done.returncode != 0, done
    assert commands() == before and not (tmp_path / "x").exists()


def test_a_failure_is_healed_without_the_master(fleet):
    node = fleet.nodes["hv1"]
    fleet.master.kill()
    try:
        node.sim.crash("a1")
        until = time.monotonic() + 120
        while time.monotonic() < until and "healed" not in [
            r["transition"] for r in node.history("a1")
        ]:
            time.sleep(0.1)
        assert "healed" in [r["transition"] for r in node.history("a1")], node.agent_log()
    finally:
        fleet.master.start()
        fleet.wait_minions()


def test_a_rolling_restart_stops_at_the_first_env_that_does_not_come_back(fleet):
    before = {name: node.running() for name, node in fleet.nodes.items()}
    done = fleet.cli(
        "salt-run",
        "--out=json",
        "state.orchestrate",
        "cbsd_monit.orch.rolling_restart",
        'pillar={"group": "web", "min_healthy_time": 1}',
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name, node in fleet.nodes.items():
        assert node.running()[f"a{name[-1]}"] != before[name][f"a{name[-1]}"]
        assert node.status()[f"a{name[-1]}"]["state"] == "healthy"
    before = {name: node.running() for name, node in fleet.nodes.items()}
    fleet.nodes["hv2"].sim.fail_start("a2")
    try:
        done = fleet.cli(
            "salt-run",
            "cbsd_monit.rolling_restart",
            "group=web",
            "min_healthy_time=1",
            "healthy_deadline=15",
        )
    finally:
        fleet.nodes["hv2"].sim.fail_start("a2", off=True)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert (
        "stopped at hv2/a2" in said
        and "Restarted: hv1/a1" in said
        and "Left as they are: hv3/a3" in said
    ), said
    assert fleet.nodes["hv3"].running()["a3"] == before["hv3"]["a3"]


def test_of_who_does_not_answer_the_last_answer_is_shown_until_it_is_too_old(fleet):
    def states(found):
        return {(r["node"], r["env"]): r["state"] for r in found["envs"]}

    told = fleet.run("cbsd_monit.fleet")
    fleet.minions["hv3"].kill()
    found = fleet.run("cbsd_monit.fleet", "timeout=2")
    assert found["no_answer"] == ["hv3"] and states(found) == states(told)
    (row,) = [r for r in fleet.run("cbsd_monit.fleet", "timeout=2", "env=a3")["envs"]]
    assert row["state"] == "healthy" and row["age"] > 2
    for path in (fleet.root / "var/cache/salt/master/cbsd_monit/answers").iterdir():
        head, *rows = path.read_text().splitlines()
        kept = json.loads(head)
        if kept["node"] == "hv3":
            path.write_text("\n".join([json.dumps({**kept, "time": kept["time"] - 1400}), *rows]))
    found = fleet.run("cbsd_monit.failing", "timeout=2")
    (row,) = [r for r in found["envs"] if r["env"] == "a3"]
    assert row["state"] == "unknown" and row["last_known"]["state"] == "healthy"
    assert row["age"] > 1400 and found["no_answer"] == ["hv3"]
    fleet.minions["hv3"].start()
    fleet.wait_minions()


def test_jails_are_targets(fleet):
    path = fleet.pillars / "hv1.sls"
    path.write_text(
        "#!json\n" + json.dumps({**json.loads(path.read_text()[7:]), "resources": {"cbsd": {}}})
    )
    fleet.salt("hv1", "saltutil.sync_all")
    fleet.salt("hv1", "saltutil.refresh_pillar")

    def ask(fun, *args, timeout=20):
        return fleet.console.ask("salt", fun, args, "T@cbsd:a1", timeout)

    until = time.monotonic() + 60
    while ask("cbsd.status", timeout=2) != {"a1": "on"} and time.monotonic() < until:
        time.sleep(0.1)
    done = fleet.cli("salt", "--out=json", "-C", "T@cbsd:a1", "cbsd.status")
    assert json.loads(done.stdout) == ask("cbsd.status") == {"a1": "on"}
    assert ask("test.ping") == {"a1": True}
    assert ask("cbsd.exec", ["echo", "hi"])["a1"]["stdout"] == "hi"
    before = fleet.nodes["hv1"].running()["a1"]
    assert ask("cbsd.restart")["a1"]["changed"] is True
    assert fleet.nodes["hv1"].running()["a1"] != before
    assert "not supported" in str(ask("cmd.run", "id"))
    found = fleet.run("cbsd_monit.fleet", "env=a*")
    assert [(r["node"], r["env"]) for r in found["envs"]] == [
        (name, f"a{name[-1]}") for name in fleet.nodes
    ]
    assert "no_answer" not in found
