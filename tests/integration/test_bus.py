"""The main job over the bus: highstate, verbs, and a failure that heals without the master."""

import time

PILLAR = {
    "monit": {"poll": "1s"},
    "defaults": {"interval": "1s", "timeout": "2s", "failure_threshold": 2, "start_period": "15s"},
    "envs": {"lb1": {"checks": {"http": {"type": "http", "port": 80, "path": "/"}}}},
}


def test_highstate_verbs_and_healing(hosts):
    master, minion, node = hosts
    salt = master.salt_cli(timeout=180)
    node.sim.cbsd(
        "jcreate",
        "jname=lb1",
        "ip4_addr=127.77.9.11",
        "pkglist=nginx",
        "sysrc=nginx_enable=YES",
        "inter=0",
    )
    node.pillar(PILLAR)

    first = salt.run("state.highstate", minion_tgt=minion.id)
    assert {r["result"] for r in first.data.values()} == {True}, first
    second = salt.run("state.highstate", minion_tgt=minion.id)
    assert [r["__id__"] for r in second.data.values() if r["changes"]] == []

    done = salt.run("cbsd.start", "lb1", minion_tgt=minion.id)
    assert done.returncode == 0, done
    assert node.wait_state("lb1", "healthy", 30), node.agent_log()
    before = node.running()["lb1"]

    done = salt.run("cbsd.restart", "lb1", minion_tgt=minion.id)
    assert done.returncode == 0, done
    assert node.wait_state("lb1", "healthy", 30), node.agent_log()
    assert node.running()["lb1"] != before
    assert node.status()["lb1"]["intent"] == "running", (
        "a restart through Salt is no operator's stop"
    )

    again = salt.run("cbsd.start", "lb1", minion_tgt=minion.id)
    assert again.data["changed"] is False

    master.terminate()
    try:
        node.sim.cbsd("jexec", "jname=lb1", "service", "nginx", "stop")
        until = time.monotonic() + 40
        while time.monotonic() < until and "healed" not in [
            r["transition"] for r in node.history("lb1")
        ]:
            time.sleep(0.1)
        assert "healed" in [r["transition"] for r in node.history("lb1")], node.agent_log()
    finally:
        # A minion may take its time to notice that its master is back; that is not tested next.
        minion.terminate()
        master.start()
        minion.start()


def test_stop_over_the_bus_is_meant(hosts):
    master, minion, node = hosts
    salt = master.salt_cli(timeout=180)
    done = salt.run("cbsd.stop", "lb1", minion_tgt=minion.id)
    assert done.returncode == 0 and done.data["changed"] is True, done
    assert node.wait_state("lb1", "stopped", 20), node.agent_log()


def test_hostile_names_are_refused_over_the_bus(hosts, tmp_path):
    master, minion, node = hosts
    salt = master.salt_cli(timeout=60)
    commands = [
        c for c in node.commands() if c[0] != "-c"
    ]  # the agent may still be looking at the inventory
    for name in (f"$(touch {tmp_path}/x)", "../x", "a b", "a|b", "*", "-x"):
        done = salt.run("cbsd.restart", name, minion_tgt=minion.id)
        assert done.returncode != 0, done
    assert [c for c in node.commands() if c[0] != "-c"] == commands
    assert not (tmp_path / "x").exists()
