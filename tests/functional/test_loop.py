"""
The whole loop on one simulated node: real Salt, real monit, real nginx, the agent as deployed.

The rows run side by side, each on its own envs: that they do not disturb each other is a test, too.
"""

import concurrent.futures
import json
import pathlib
import subprocess
import time

import pytest

from functional.loop import Loop, Watcher, http, until

ROWS = {}


def row(function):
    """A test that runs beside the others of its kind, each on envs of its own."""
    ROWS[function.__name__] = function
    return function


@row
def checks_that_look_into_the_jail_are_run_and_healed(loop):
    data = pathlib.Path(loop.node.sim.workdir) / "jails-data/in1-data"
    script = data / "usr/local/bin/app-check"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(
        '#!/bin/sh\n[ "$1" = -q ] && [ ! -e broken ] || { echo app is broken; exit 3; }\n'
    )
    script.chmod(0o755)
    loop.live("in1")
    loop.node.sim.cbsd("jexec", "jname=in1", "service", "nginx", "stop")
    loop.healed("in1")
    assert [r["check"] for r in loop.node.history("in1") if r["transition"] == "healed"] == ["svc"]
    loop.state("in1", "healthy")
    (data / "broken").touch()
    until(
        lambda: any(
            r["check"] == "app" and "app is broken" in r["reason"] for r in loop.node.history("in1")
        ),
        30,
        lambda: loop.node.agent_log(),
    )
    (data / "broken").unlink()
    loop.healed("in1", 2)


@row
def env_that_is_off_and_swallows_connections_costs_no_timeouts(loop):
    """A jail that is off swallows connections: its checks are skipped, so others' are in time."""
    loop.live("hole1")
    loop.node.sim.off("hole1", "blackhole", ports=(80,))
    loop.node.sim.cbsd("jstop", "jname=hole1")
    loop.state("hole1", "stopped")
    time.sleep(3)
    assert (
        "Not monitored"
        in [line for line in loop.node.monit("summary").splitlines() if "hole1.http" in line][0]
    )
    loop.node.sim.cbsd("jexec", "jname=near1", "service", "nginx", "stop")
    loop.healed("near1", loop.transitions("near1").count("healed") + 1)


@row
def stopped_nginx_is_served_again_after_exactly_one_restart(loop):
    kernel = loop.node.running()
    starts = len(loop.starts("one1"))
    loop.node.sim.cbsd("jexec", "jname=one1", "service", "nginx", "stop")
    assert http("127.77.1.21") is None
    loop.healed("one1")
    assert http("127.77.1.21") == 200
    time.sleep(4)
    assert len(loop.starts("one1")) == starts + 1
    assert loop.node.running()["db1"] == kernel["db1"]
    assert loop.transitions("db1").count("healing") == 0


@row
def jail_killed_behind_cbsds_back_is_started_again(loop):
    before = loop.transitions("die1").count("healed")
    stops = len(loop.starts("die1", "jstop"))
    loop.node.sim.crash("die1")
    loop.healed("die1", before + 1)
    assert http("127.77.1.22") == 200
    assert len(loop.starts("die1", "jstop")) == stops, "a dead jail is started, not restarted"


@row
def operators_stop_is_respected_and_a_start_ends_it(loop):
    starts = len(loop.starts("stp1"))
    loop.node.sim.cbsd("jstop", "jname=stp1")
    loop.state("stp1", "stopped")
    time.sleep(8)
    loop.node.agent("sync")
    time.sleep(2)
    assert loop.node.status()["stp1"]["state"] == "stopped"
    assert "operator" in loop.node.status()["stp1"]["reason"]
    assert len(loop.starts("stp1")) == starts
    assert http("127.77.1.23") is None
    loop.live("stp1")


@row
def stop_of_a_failing_env_is_respected(loop):
    loop.node.sim.cbsd("jexec", "jname=ill1", "service", "nginx", "stop")
    loop.node.sim.cbsd("jstop", "jname=ill1")
    loop.state("ill1", "stopped")
    time.sleep(5)
    assert loop.node.status()["ill1"]["state"] == "stopped"
    assert "ill1" not in loop.node.running()
    loop.live("ill1")


@row
def typed_restart_is_neither_a_failure_nor_a_stop(loop):
    before = loop.transitions("typ1").count("healing")
    loop.node.sim.cbsd("jrestart", "jname=typ1")
    loop.state("typ1", "healthy")
    time.sleep(3)
    assert loop.transitions("typ1").count("healing") == before
    assert loop.node.status()["typ1"]["intent"] == "running"


@row
def silenced_env_is_not_healed_until_it_is_unsilenced(loop):
    before = loop.transitions("sil1").count("healing")
    said = loop.node.salt("cbsd_monit.silence", "sil1", "1h", "kernel upgrade", "by=ann")
    assert said["sil1"]["silence"]["reason"] == "kernel upgrade"
    loop.node.sim.cbsd("jexec", "jname=sil1", "service", "nginx", "stop")
    loop.state("sil1", "silenced")
    time.sleep(4)
    assert loop.transitions("sil1").count("healing") == before
    reason = loop.node.status()["sil1"]["reason"]
    assert "ann" in reason and "kernel upgrade" in reason
    healed = loop.transitions("sil1").count("healed")
    loop.node.salt("cbsd_monit.unsilence", "sil1")
    loop.healed("sil1", healed + 1)


@row
def upstreams_template_put_there_by_hand_works(loop):
    address = f"{loop.block}.14"
    folder = pathlib.Path(loop.node.sim.workdir) / "jails-system/hand1/monit"
    folder.mkdir(exist_ok=True)
    (folder / "monitrc.tpl").write_text(
        "check host %%JNAME%% with address %%IPV4_FIRST%%\n"
        "\tif failed port 80 protocol http\n"
        '\tthen exec "/usr/local/bin/cbsd jrestart %%JNAME%%"\n'
        "\t\trepeat every 1 cycles\n"
    )
    loop.live("hand1")
    loop.node.sim.cbsd("jexec", "jname=hand1", "service", "nginx", "stop")
    loop.healed("hand1")
    assert http(address) == 200
    assert (folder / "monitrc.tpl").read_text().startswith("check host %%JNAME%%"), (
        "an operator's file is left alone"
    )


@row
def vm_is_healed_by_its_own_verbs(loop):
    sim = loop.node.sim
    sim.cbsd("bstart", "jname=vm1", "inter=0")
    loop.state("vm1", "healthy")
    sim.crash("vm1")
    loop.healed("vm1")
    assert http("127.77.1.50", 8080) == 200
    sim.cbsd("bstop", "jname=vm1")
    loop.state("vm1", "stopped")
    time.sleep(3)
    assert loop.node.status()["vm1"]["state"] == "stopped"


@row
def renamed_env_keeps_its_checks_under_its_new_name(loop):
    loop.live("old1")
    loop.node.sim.cbsd("jstop", "jname=old1")
    loop.state("old1", "stopped")
    loop.node.sim.cbsd("jrename", "old=old1", "new=new1", "host_hostname=new1.my.domain")
    loop.live("new1")
    summary = loop.node.monit("summary")
    assert "new1.http" in summary and "old1" not in summary
    assert "renamed" in loop.transitions("new1")
    loop.node.sim.crash("new1")
    loop.healed("new1")


@row
def removed_env_leaves_nothing(loop):
    loop.live("gone1")
    loop.node.sim.cbsd("jremove", "jname=gone1")
    until(lambda: "gone1" not in loop.node.monit("summary"), 20, "monit forgets gone1")
    until(lambda: "gone1" not in loop.node.status(), 20, "the agent forgets gone1")
    assert not (loop.node.state_dir / "envs/gone1.json").exists()


@row
def clone_of_a_running_env_never_gives_monit_a_name_twice(loop):
    loop.node.sim.cbsd(
        "jclone",
        "old=org1",
        "new=lb1b",
        "host_hostname=lb1b.my.domain",
        "ip4_addr=127.77.1.17",
        "checkstate=0",
    )
    loop.node.agent("sync")
    assert (
        subprocess.run(["monit", "-t", "-c", str(loop.node.monitrc)], check=False).returncode == 0
    )
    loop.live("lb1b")
    assert "lb1b.http" in loop.node.monit("summary")
    loop.node.sim.cbsd("jremove", "jname=lb1b")


@row
def template_that_a_profile_brings_is_adopted(loop):
    """What lies beside the hooks of a profile arrives in the env's directory with them."""
    loop.node.sim.cbsd(
        "jcreate",
        "jname=prof1",
        "jprofile=web",
        "ip4_addr=127.77.1.30",
        "pkglist=nginx",
        "sysrc=nginx_enable=YES",
        "inter=0",
    )
    loop.live("prof1")
    loop.node.sim.crash("prof1")
    loop.healed("prof1")


SKELETON = """\
check host %%JNAME%% with address %%IPV4_FIRST%%
  if failed port 80 protocol http then exec "/usr/local/bin/cbsd jrestart %%JNAME%%"
"""
LOOKS = {
    "svc": {"type": "service", "name": "nginx"},
    "app": {
        "type": "exec",
        "in": "jail",
        "command": ["/usr/local/bin/app-check", "-q"],
        "timeout": "5s",
    },
}
SERVED = ["lb1", "one1", "die1", "stp1", "ill1", "typ1", "sil1", "near1", "org1"]


@pytest.fixture(scope="module")
def loop(salt_node):
    loop = Loop(salt_node(), "127.77.1")
    loop.settings["budget"].update(max_concurrent=8, storm_min=64)
    sim = loop.node.sim
    for name, last in zip(SERVED, (11, 21, 22, 23, 24, 25, 26, 27, 28)):
        loop.jail(name, last, profiles=["nginx"])
    for name, last in (("old1", 15), ("gone1", 16), ("hole1", 31)):
        loop.jail(name, last, profiles=["nginx"])
    loop.jail("db1", 12, "tcpd", "tcpd_port=8080", checks={"app": {"type": "tcp", "port": 8080}})
    loop.jail("in1", 32, checks=LOOKS)
    loop.jail("hand1", 14)
    words = ["vm_ram=1g", "vm_cpus=1", "vm_os_type=linux", "inter=0"]
    sim.cbsd("bcreate", "jname=vm1", "ip4_addr=127.77.1.50", *words)
    sim.guest("vm1", service="tcpd", port=8080)
    loop.envs["vm1"] = {"checks": {"app": {"type": "tcp", "port": 8080}}}
    skeleton = pathlib.Path(sim.workdir) / "share/FreeBSD-jail-web-system-skel/monit"
    skeleton.mkdir(parents=True)
    (skeleton / "monitrc.tpl").write_text(SKELETON)
    results = loop.apply()
    assert all(r["result"] for r in results), loop.node.summary(results)
    loop.live(*SERVED, "db1", seconds=90)
    watcher = Watcher(loop.node, 0.3)
    watcher.start()
    yield loop
    watcher.done.set()
    watcher.join()
    assert watcher.asked > 20 and watcher.refused == [], (
        "whatever happened, monit's text parsed at every moment"
    )


@pytest.fixture(scope="module")
def results(loop):
    """What became of each row; returns when all are over."""
    with concurrent.futures.ThreadPoolExecutor(len(ROWS)) as pool:
        return {name: pool.submit(function, loop) for name, function in ROWS.items()}


@pytest.mark.parametrize("name", ROWS)
def test_row(results, name):
    results[name].result()


def test_another_highstate_leaves_what_pillar_does_not_name(results, loop):
    found = loop.apply()
    assert all(r["result"] for r in found), loop.node.summary(found)
    assert "prof1" in loop.node.status(), "what a profile brought is not pillar's to remove"
    template = pathlib.Path(loop.node.sim.workdir) / "jails-system/hand1/monit/monitrc.tpl"
    assert template.read_text().startswith("check host %%JNAME%%"), "nor is what a hand wrote"


def test_agent_killed_in_the_middle_of_a_heal_is_finished_by_the_next(loop):
    before = len(loop.starts("lb1"))
    loop.node.sim.slow("lb1", start=2, stop=2)
    try:
        loop.node.sim.cbsd("jexec", "jname=lb1", "service", "nginx", "stop")
        until(lambda: "lb1" not in loop.node.running(), 30, "the heal stops lb1")
        assert loop.node.kill_agent()
    finally:
        loop.node.sim.slow("lb1", start=0, stop=0)
    until(lambda: http("127.77.1.11") == 200, 60, "lb1 serves again")
    loop.state("lb1", "healthy", 60)
    # By the next agent, or by the start that outlived the killed one where that had begun it.
    assert len(loop.starts("lb1")) == before + 1


def test_monit_killed_is_started_by_the_next_sync(loop):
    assert loop.node.kill_monit()
    time.sleep(0.5)
    answer = json.loads(loop.node.agent("sync", "--json"))
    assert answer["started"] is True
    loop.node.sim.crash("lb1")
    loop.healed("lb1", loop.transitions("lb1").count("healed") + 1)


def test_syntax_error_in_raw_is_that_envs_alone(loop):
    loop.jail("bad1", 13, "tcpd", "tcpd_port=8080", raw="if faild port 8080 then alert\n")
    results = loop.apply()
    said = loop.node.summary(results)
    assert "bad1" in said and "syntax error" in said
    status = loop.node.status()
    loop.node.sim.cbsd("jstart", "jname=bad1")
    loop.state("bad1", "quarantined")
    assert status["lb1"]["state"] == status["db1"]["state"] == "healthy"
    assert (
        "OK"
        in subprocess.run(
            ["monit", "-t", "-c", str(loop.node.monitrc)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    del loop.envs["bad1"]
    assert all(r["result"] for r in loop.apply())
    assert loop.node.status()["bad1"]["state"] == "unwatched"


def test_envs_without_an_ipv4_address_are_right_or_say_so_and_break_nothing(loop):
    for name, address in (
        ("none1", "0"),
        ("six1", "fde4:8dba:82e1::21/64"),
        ("many1", "fde4::7,127.77.1.18,127.77.1.19"),
    ):
        done = loop.node.sim.cbsd("jcreate", f"jname={name}", f"ip4_addr={address}", "inter=0")
        assert done.returncode == 0, done.stdout
        loop.envs[name] = {"checks": {"web": {"type": "tcp", "port": 80}}}
    said = loop.node.summary(loop.apply())
    assert "none1: quarantined: no address yet: ip4_addr is '0'" in said
    published = (loop.node.state_dir / "published").read_text()
    assert 'check host "six1.web" with address "fde4:8dba:82e1::21"' in published
    assert 'check host "many1.web" with address "127.77.1.18"' in published
    for name in ("none1", "six1", "many1"):
        del loop.envs[name]
    assert all(r["result"] for r in loop.apply())


def test_second_run_changes_nothing(loop):
    loop.apply()
    root = loop.node.root

    def snapshot():
        kept = {}
        for path in root.rglob("*"):
            words = str(path.relative_to(root))
            if (
                words.startswith(("salt", "log", "var/run", "kernel"))
                or "sqlite" in words
                or path.is_dir()
            ):
                continue
            if path.is_symlink() or not path.is_file() or path.name in ("agent.log", "monit.state"):
                continue
            kept[words] = (path.stat().st_mtime_ns, path.stat().st_ino)
        return kept

    log = root / "log/monit.log"
    reloads = log.read_text().count("Reinitializing")
    before = snapshot()
    dry = loop.apply(test=True)
    assert {r["__id__"]: r["changes"] for r in dry if r["changes"] or r["result"] is not True} == {}
    again = loop.apply()
    assert {r["__id__"]: r["changes"] for r in again if r["changes"]} == {}
    assert snapshot() == before
    assert log.read_text().count("Reinitializing") == reloads


HOSTILE = [
    "$(touch {x})",
    "../x",
    'a"b',
    "a\nb",
    "a|b",
    "a~b",
    "`touch {x}`",
    "ü",
    "a'b",
    "__slot__:salt:cmd.run(touch {x})",
]


def test_hostile_pillar_is_refused_with_its_path_and_nothing_happens(loop, tmp_path):
    marker = tmp_path / "x"
    envs, paths = {}, []
    for number, template in enumerate(HOSTILE):
        value = template.format(x=marker)
        name = f"h{number}"
        envs[name] = {
            "checks": {
                "address": {"type": "tcp", "port": 80, "address": value},
                "command": {"type": "exec", "in": "jail", "command": [value]},
                "service": {"type": "service", "name": value},
                value: {"type": "running"},
            }
        }
        keys = {"address": "address", "command": "command", "service": "name"}
        paths += [f"cbsd_monit:envs:{name}:checks:{check}:{key}" for check, key in keys.items()]
        envs[value] = {"profiles": ["nginx"]}
    published = (loop.node.state_dir / "published").read_text()
    commands = len(loop.node.commands())
    loop.node.pillar({**loop.settings, "envs": {**loop.envs, **envs}})
    (failed,) = [r for r in loop.node.apply_here("cbsd_monit.checks") if r["result"] is False]
    for path in paths:
        assert path in failed["comment"]
    said = int(failed["comment"].split(" errors")[0].split()[-1])
    assert said >= len(HOSTILE) * 5, (
        "each value is refused as address, command, service, name of a check and name of an env"
    )
    assert not marker.exists()
    assert (loop.node.state_dir / "published").read_text() == published
    assert not [c for c in loop.node.commands()[commands:] if c[0] != "-c"]
    assert all(r["result"] for r in loop.apply())


def test_clean_in_the_middle_of_a_heal_leaves_the_env_up_and_nothing_else(loop):
    """The last one: it takes everything away."""
    before = loop.transitions("lb1").count("healing")
    loop.node.sim.slow("lb1", start=1, stop=3)
    loop.node.sim.cbsd("jexec", "jname=lb1", "service", "nginx", "stop")
    until(lambda: loop.transitions("lb1").count("healing") > before, 30, "the heal begins")
    results = loop.node.apply("cbsd_monit.clean")
    assert all(r["result"] for r in results), loop.node.summary(results)
    assert "lb1" in loop.node.running() and http("127.77.1.11") == 200
    assert not loop.node.state_dir.exists() and not loop.node.wake.exists()
    time.sleep(2)
    processes = subprocess.run(
        ["ps", "-axww", "-o", "command="], capture_output=True, text=True, check=True
    ).stdout
    assert f"{loop.node.root}/usr/local/libexec" not in processes, "no agent goes on"
    again = loop.node.apply_here("cbsd_monit.clean")
    assert [r["__id__"] for r in again if r["changes"]] == []
