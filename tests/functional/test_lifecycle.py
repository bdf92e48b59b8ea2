"""
Everything that CBSD does to an env, and what monit has afterwards; all real but CBSD.

The rows run at the same time, each on envs of its own, then the node as a whole is rebooted and
shut down.  Seen after every row: which names of its envs monit has and whether it looks at them,
and from the simulator's log the hooks that ran: a start that no row asked for was needless.
"""

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest
from node_on_salt import FULL

from functional.loop import Loop, Watcher, http, until

BLOCK = "127.77.21"
APP = {"app": {"type": "tcp", "port": 8080}}
SETTINGS = {
    "monit": {"poll": "1s"},
    "defaults": {
        "interval": "1s",
        "timeout": "1s",
        "failure_threshold": 2,
        "start_period": "20s",
        "restart": {
            "attempts": 3,
            "interval": "10m",
            "delay": "1s",
            "delay_function": "constant",
            "jitter": 0,
        },
    },
    "budget": {"max_concurrent": 8, "storm_min": 64, "boot_grace": "60s"},
    "groups": {"filler": {"match": "f*", "checks": {"alive": {"type": "running"}}}},
}
START, STOP = ["prestart", "poststart"], ["prestop", "poststop"]
TEMPLATE = """\
check host %%JNAME%% with address %%IPV4_FIRST%%
  if failed port 8080 then exec "/usr/local/bin/cbsd jrestart %%JNAME%%"
"""
HOOKS = [f"master_{what}.d" for what in (*START, *STOP, "create")] + ["remove.d"]
TOTAL = 100 if FULL else 40


class Life(Loop):
    """The node, and what the rows ask of it."""

    def __init__(self, node, block):
        super().__init__(node, block)
        self.settings = json.loads(json.dumps(SETTINGS))
        self.last, self.marks, self.power = itertools.count(1), {}, True

    def state(self, name, state, seconds=90):  # two loaded cores, and a score of rows
        super().state(name, state, seconds)

    def healed(self, name, times=1, seconds=90):
        super().healed(name, times, seconds)

    def address(self):
        return f"{self.block}.{next(self.last)}"

    def cbsd(self, *words, code=0):
        done = self.node.sim.cbsd(*words)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def tcp(self, name, *words, package="tcpd"):
        """A jail that serves port 8080 and is in pillar; without ``package`` neither."""
        given = [
            f"jname={name}",
            f"pkglist={package}",
            "sysrc=tcpd_port=8080",
            "inter=0",
            "quiet=1",
            *words,
        ]
        if not any(word.startswith("ip4_addr=") for word in words):
            given.append(f"ip4_addr={self.address()}")
        self.cbsd("jcreate", *given)
        if package and name != "new1":
            self.envs[name] = {"checks": APP}

    def vm(self, name):
        self.cbsd(
            "bcreate",
            f"jname={name}",
            f"ip4_addr={self.address()}",
            "vm_ram=1g",
            "vm_cpus=1",
            "astart=1",
            "inter=0",
        )
        self.node.sim.guest(name, port=8080, boot_delay=0.2)
        self.envs[name] = {"checks": APP}

    def value(self, name, column="ip4_addr"):
        return self.node.sim.inventory.value(name, column)

    def hooks_of(self, names):
        """{env: the hook directories that ran for it, in order, in short}."""
        found = {name: [] for name in names}
        for record in sorted(self.node.sim.hooks_log(), key=lambda r: r["start"]):
            if (
                record["env"] in found
                and record["file"] == "cbsd_monit"
                and record["dir"] != "clone.d"
            ):
                found[record["env"]].append(re.sub(r"master_|\.d$", "", record["dir"]))
        return found

    def hooks(self, name):
        """The hooks that ran for the env since its last ``mark``."""
        return self.hooks_of([name])[name][self.marks.get(name, 0) :]

    def services(self, *names):
        """{service: whether monit looks at it} of the envs."""
        found = {}
        with contextlib.suppress(OSError):  # monit does not run now
            for service in self.node.services():
                name = service.findtext("name")
                if name.partition(".")[0] in names:
                    assert name not in found, f"twice: {name}"
                    found[name] = service.findtext("monitor") != "0"
        return found

    def record(self, name):
        """What the agent knows of the env, or None."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.node.state_dir / "envs" / f"{name}.json").read_text())
        return None

    def watched(self, *names, by=("app", "env"), yes=True, seconds=60):
        """Wait until monit has just the services of ``names`` and looks at all (or at none)."""
        wanted = {f"{name}.{check}": yes for name in names for check in by}
        until(
            lambda: self.services(*names) == wanted,
            seconds,
            lambda: f"{wanted}, but {self.services(*names)}",
        )

    def unknown(self, name, seconds=60):
        """Wait until neither monit nor the agent knows ``name``."""
        until(lambda: not self.services(name), seconds, lambda: f"monit has {self.services(name)}")
        until(lambda: self.record(name) is None, seconds + 40, lambda: str(self.record(name)))

    def quiet(self, *names, hooks, seconds=3.0):
        """For some cycles no hooks but ``hooks`` run for the envs, since their last ``mark``."""
        time.sleep(seconds)
        found = {name: ran[self.marks.get(name, 0) :] for name, ran in self.hooks_of(names).items()}
        wanted = hooks if isinstance(hooks, dict) else dict.fromkeys(names, hooks)
        assert found == wanted, self.node.agent_log()

    def mark(self, *names):
        self.marks.update({name: len(ran) for name, ran in self.hooks_of(names).items()})

    def is_now(self, name, state, *words, seconds=90):
        """``name`` is in ``state``, and its status says why with all of ``words``."""
        self.state(name, state, seconds)
        said = self.record(name)
        text = json.dumps([said["reason"], said["intent_why"]])
        assert all(word in text for word in words), text

    def tick(self):
        """What cron does each minute: the very line of its file, in cron's environment."""
        line = (self.node.root / "etc/cron.d/cbsd_monit").read_text().splitlines()[-1]
        found = re.fullmatch(r"(?:\S+ ){5}root (.*)", line)
        argv = [
            "/usr/bin/env",
            "-i",
            "SHELL=/bin/sh",
            "PATH=/usr/bin:/bin",
            "HOME=/root",
            "/bin/sh",
            "-c",
        ]
        subprocess.run(
            [*argv, found.group(1)], check=True, timeout=120, cwd="/root", stdin=subprocess.DEVNULL
        )

    def reloads(self):
        return (self.node.root / "log/monit.log").read_text().count("Reinitializing")


ROWS = {}


def row(envs=(), vms=(), stopped=()):
    """A row of the table; its envs are made and started before, those in ``stopped`` only made."""

    def keep(function):
        ROWS[function.__name__] = (function, envs, vms, stopped)
        return function

    return keep


# Created, started, stopped


@row()
def created_by_a_profile_with_runasap(life):
    life.tcp("new1", "jprofile=life", "runasap=1")
    life.is_now("new1", "healthy")
    until(lambda: life.services("new1") == {"new1": True}, 60, lambda: str(life.services("new1")))
    life.quiet("new1", hooks=[*START, "create"])
    assert life.transitions("new1")[0] == "created"


@row()
def created_with_runasap_and_then_named_by_pillar(life):
    """`run1` was created and ran without a hook, before the state was applied first."""
    life.is_now("run1", "healthy", "first seen")
    life.watched("run1")
    life.quiet("run1", hooks=[])


@row(envs=["stp1"])
def stopped_and_started(life):
    life.cbsd("jstop", "jname=stp1")
    life.is_now("stp1", "stopped", "operator", "jstop")
    life.watched("stp1", yes=False)
    life.node.agent("sync")
    life.quiet("stp1", hooks=STOP)
    life.mark("stp1")
    life.cbsd("jstart", "jname=stp1")
    life.is_now("stp1", "healthy", "started")
    life.watched("stp1")
    life.quiet("stp1", hooks=START)
    assert "failing" not in life.transitions("stp1")


@row(stopped=["bad1"])
def failed_start(life):
    """jstart answers 0 though no jail came up; it is tried again by policy, then given up."""
    life.node.sim.fail_start("bad1")
    life.cbsd("jstart", "jname=bad1")
    life.is_now("bad1", "gave_up", "3 attempts did not help", "does not run")
    life.watched("bad1", yes=False)
    life.quiet("bad1", hooks=[*START, "poststop"] * 4)
    life.node.sim.fail_start("bad1", off=True)
    life.mark("bad1")
    life.cbsd("jstart", "jname=bad1")
    life.is_now("bad1", "healthy")
    life.watched("bad1")
    life.quiet("bad1", hooks=START)


@row(envs=["two1"])
def two_stops_at_once(life):
    life.node.sim.slow("two1", stop=1.5)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = [pool.submit(life.node.sim.cbsd, "jstop", "jname=two1") for _ in range(2)]
        assert [job.result().returncode for job in both] == [0, 0]
    life.is_now("two1", "stopped", "operator", "jstop")
    life.watched("two1", yes=False)
    life.quiet("two1", hooks=sorted(STOP * 2, reverse=True))
    life.mark("two1")
    life.cbsd("jstart", "jname=two1")
    life.is_now("two1", "healthy")
    life.watched("two1")
    life.quiet("two1", hooks=START)


@row(envs=["die1"])
def crashed(life):
    life.node.sim.crash("die1")
    life.healed("die1")
    life.is_now("die1", "healthy")
    life.watched("die1")
    life.quiet("die1", hooks=START)
    assert [r["reason"] for r in life.node.history("die1") if r["transition"] == "failing"] == [
        "jail die1 does not run"
    ]


# Guests


@row(vms=["off1"])
def guest_powers_itself_off(life):
    life.node.sim.guest_poweroff("off1")
    life.healed("off1")
    life.watched("off1")
    life.quiet("off1", hooks=[*STOP, *START])


@row(vms=["off2"])
def guest_powers_itself_off_and_the_hooks_run_twice(life):
    life.node.sim.guest_poweroff("off2", twice=True)
    life.healed("off2")
    life.state("off2", "healthy")
    life.watched("off2")
    time.sleep(3)
    found = life.hooks("off2")
    assert found.count("prestop") == found.count("poststop") == 2, "nobody stopped it but the guest"
    assert found.count("prestart") <= 2, (
        "bstop may kill what was started meanwhile, and only then is it started again"
    )


@row(vms=["reb1"])
def guest_reboots_and_is_then_stopped(life):
    pid, before = life.node.running()["reb1"], len(life.transitions("reb1"))
    life.node.sim.guest_reboot("reb1")
    until(lambda: life.node.running().get("reb1", pid) != pid, 10, "the guest is back")
    until(
        lambda: "starting" in life.transitions("reb1")[before:],
        60,
        lambda: str(life.transitions("reb1")),
    )
    life.state("reb1", "healthy")
    life.watched("reb1")
    life.quiet("reb1", hooks=["reboot"])
    assert not {"failing", "healing"} & set(life.transitions("reb1"))
    life.mark("reb1")
    life.cbsd("bstop", "jname=reb1")
    life.is_now("reb1", "stopped", "operator", "bstop")
    life.watched("reb1", yes=False)
    life.quiet("reb1", hooks=STOP)


# Removed, renamed, copied


@row(envs=["rem1", "rem3"], stopped=["rem2"])
def removed_running_and_not_and_dead(life):
    life.node.sim.fail_start("rem3")
    life.node.sim.crash("rem3")
    for name in ("rem1", "rem2", "rem3"):
        life.cbsd("jremove", f"jname={name}")
    for name in ("rem1", "rem2", "rem3"):
        life.unknown(name)
        assert not os.path.lexists(life.node.sim.layout.system(name)), (
            "nothing of ours stays where CBSD removed"
        )
        assert not (life.node.run_dir / "dead" / name).exists()
    life.quiet("rem1", "rem2", hooks={"rem1": ["remove", *STOP], "rem2": ["remove"]})


@row(stopped=["ren1"])
def renamed_while_stopped(life):
    life.watched("ren1", yes=False)
    life.cbsd("jrename", "old=ren1", "new=ren2")
    life.tick()
    life.watched("ren2", yes=False)
    life.unknown("ren1")
    assert (
        "renamed" in life.transitions("ren2") and life.node.status()["ren2"]["state"] == "stopped"
    )
    life.quiet("ren1", "ren2", hooks={"ren1": [], "ren2": []})
    life.cbsd("jstart", "jname=ren2")
    life.is_now("ren2", "healthy")
    life.watched("ren2")
    life.quiet("ren2", hooks=START)


@row(envs=["ren3"])
def renamed_while_running(life):
    life.cbsd("jrename", "old=ren3", "new=ren4", code=1)
    before = life.transitions("ren3")
    life.cbsd("jrename", "old=ren3", "new=ren4", "restart=1")
    life.state("ren4", "healthy")
    life.watched("ren4")
    life.unknown("ren3")
    told = life.transitions("ren4")
    assert told[: len(before)] == before, "its history came along"
    assert "renamed" in told and not {"failing", "healing", "stopped"} & set(told[len(before) :])
    assert life.node.status()["ren4"]["intent"] == "running"
    life.quiet("ren3", "ren4", hooks={"ren3": STOP, "ren4": START})


@row(envs=["cln1", "cln3"])
def cloned_from_a_running_and_from_a_dead_one(life):
    life.node.sim.crash("cln3")
    for old, new in (("cln1", "cln2"), ("cln3", "cln4")):
        words = [
            f"old={old}",
            f"new={new}",
            f"host_hostname={new}.my.domain",
            f"ip4_addr={life.address()}",
        ]
        life.cbsd("jclone", *words, "checkstate=0")
    life.tick()
    life.healed("cln3")
    life.watched("cln1")
    life.watched("cln3")
    life.watched("cln2", "cln4", yes=False)
    for name in ("cln2", "cln4"):
        life.is_now(name, "stopped", "first seen")
        assert (
            life.transitions(name) == ["created", "stopped"]
            and life.node.status()[name]["attempts"] == 0
        )
    life.quiet(
        "cln1", "cln2", "cln3", "cln4", hooks={"cln1": [], "cln2": [], "cln3": START, "cln4": []}
    )
    life.cbsd("jstart", "jname=cln2")
    life.is_now("cln2", "healthy")
    life.watched("cln1", "cln2")
    life.quiet("cln1", "cln2", hooks={"cln1": [], "cln2": START})


@row(envs=["exp1"])
def exported_and_imported(life):
    life.node.sim.crash("exp1")
    life.healed("exp1")
    life.mark("exp1")
    life.cbsd("jexport", "jname=exp1")
    image = life.node.sim.layout.work("export", "exp1.img")
    life.cbsd("jimport", f"jname={image}", "newjname=imp1", f"newip={life.address()}")
    life.tick()
    life.watched("exp1")
    life.watched("imp1", yes=False)
    assert life.transitions("imp1") == ["created", "stopped"], (
        "what happened to the original did not happen to it"
    )
    life.cbsd("jstart", "jname=imp1")
    life.is_now("imp1", "healthy")
    life.watched("imp1")
    life.quiet("exp1", "imp1", hooks={"exp1": [], "imp1": START})
    life.cbsd("jremove", "jname=exp1")
    life.unknown("exp1")
    life.mark("exp1")
    life.cbsd("jimport", f"jname={image}")
    life.tick()
    life.watched("exp1", yes=False)
    assert life.node.status()["exp1"]["attempts"] == 1, (
        "the same env under the same name brings its attempts along"
    )
    life.quiet("exp1", hooks=[])


@row(envs=["mig1", "mig2"])
def migrated_to_another_node(life):
    """jcoldmigrate: stop, copy what belongs to the env, register and start it there, slave here."""
    other, names = life.other, ("mig1", "mig2")
    life.node.sim.crash("mig1")
    life.healed("mig1")
    life.mark(*names)
    there = other.node.sim
    for name in names:
        life.cbsd("jstop", f"jname={name}")
        if name == "mig2":  # only now: while it ran, the node would heal it by this rule
            raw = pathlib.Path(life.node.sim.layout.system(name)) / "monit/monitrc.tpl"
            raw.write_text(raw.read_text() + '  if failed port 1 then exec "/bin/sh -c evil"\n')
        inventory = life.node.sim.inventory
        record = {
            **inventory.load(name),
            **{
                k: v.replace(life.node.sim.workdir, there.workdir)
                for k, v in inventory.load(name).items()
            },
        }
        for path in (life.node.sim.layout.system(name), life.node.sim.layout.data(name)):
            shutil.copytree(path, path.replace(life.node.sim.workdir, there.workdir), symlinks=True)
        for link in pathlib.Path(there.layout.system(name)).glob("*/cbsd_monit"):
            link.unlink()
            link.symlink_to(other.node.wake)  # on FreeBSD it is the same path on every node
        os.makedirs(there.layout.work("jails-fstab", name), exist_ok=True)
        there.inventory.register({**record, "jid": "0", "status": "0"})
        life.cbsd("jswmode", f"jname={name}", "mode=slave")
    pathlib.Path(there.layout.system("mig2")).chmod(0o777)
    other.tick()
    life.tick()
    for name in names:
        life.state(name, "slave")
        life.watched(name, yes=False)
    life.quiet(*names, hooks=STOP)
    said = other.node.status()["mig1"]
    assert (said["state"], said["intent"], said["attempts"]) == ("stopped", "stopped", 1)
    assert said["intent_why"]["cause"] == "first seen", (
        "who stopped it over there does not matter here"
    )
    other.watched("mig1", yes=False)
    for name in names:
        other.cbsd("jstart", f"jname={name}")
    other.is_now("mig1", "healthy")
    other.watched("mig1")
    assert {"healing", "healed"} <= set(other.transitions("mig1")), "its history came along"
    other.node.sim.crash("mig1")
    other.healed("mig1", 2)
    assert not other.services("mig2"), (
        "what neither pillar wrote nor only root could have written is not run"
    )
    assert "as root" in json.loads(other.node.agent("sync", "--json"))["quarantined"]["mig2"]
    life.quiet(*names, hooks=STOP)


# Addresses


@row(envs=["adr2"], stopped=["adr1"])
def address_changed(life):
    new = {name: life.address() for name in ("adr1", "adr2")}
    for name, address in new.items():
        life.cbsd("jset", f"jname={name}", f"ip4_addr={address}")
    life.cbsd("jexec", "jname=adr2", "service", "tcpd", "restart")
    life.cbsd("jstart", "jname=adr1")
    for name, address in new.items():
        life.state(name, "healthy")
        until(
            lambda n=name, a=address: (
                f'"{n}.app" with address "{a}"' in (life.node.state_dir / "published").read_text()
            ),
            60,
            "published",
        )
        assert http(address, 8080) == 200
    life.watched("adr1", "adr2")
    life.node.sim.crash("adr2")
    life.healed("adr2")
    life.quiet("adr1", "adr2", hooks={"adr1": START, "adr2": START})


@row(envs=["dhc2"])
def address_by_dhcp(life):
    """`dhc1` has had an address of the pool since it was created; `dhc2` gets one at its start."""
    assert life.value("dhc1").startswith(f"{BLOCK}.19") and http(life.value("dhc1"), 8080) == 200
    life.watched("dhc1")
    life.cbsd("jstop", "jname=dhc2")
    life.cbsd("jset", "jname=dhc2", "ip4_addr=DHCP")
    life.state("dhc2", "stopped")
    assert "no address yet" in json.loads(life.node.agent("sync", "--json"))["quarantined"]["dhc2"]
    life.watched("dhc2", yes=False)
    life.mark("dhc2")
    life.cbsd("jstart", "jname=dhc2")
    life.state("dhc2", "healthy")
    assert http(life.value("dhc2"), 8080) == 200
    life.watched("dhc2")
    life.quiet("dhc2", hooks=START)


# What no hook announced


def unlink(life, name):
    for hook in HOOKS:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(life.node.sim.layout.system(name), hook, "cbsd_monit"))


@row(envs=["lnk1"])
def hook_links_lost(life):
    unlink(life, "lnk1")
    said = json.loads(life.node.agent("sync", "--json"))["warnings"]
    assert [w for w in said if w.startswith("lnk1: CBSD cannot tell of its stops")]
    life.cbsd("jstop", "jname=lnk1")
    life.tick()
    life.is_now("lnk1", "stopped", "unannounced")
    life.watched("lnk1", yes=False)
    life.cbsd("jstart", "jname=lnk1")
    life.tick()
    life.is_now("lnk1", "healthy", "seen running")
    life.watched("lnk1")
    life.node.sim.crash("lnk1")
    life.healed("lnk1")
    time.sleep(3)
    assert len(life.starts("lnk1")) == 3, "with all others, by hand, and once after the crash"


@row(stopped=["lnk2"])
def started_without_hooks(life):
    unlink(life, "lnk2")
    life.cbsd("jstart", "jname=lnk2")
    life.tick()
    life.is_now("lnk2", "healthy", "seen running")
    life.watched("lnk2")
    life.quiet("lnk2", hooks=[])


@row(envs=["row1"])
def row_vanished_and_came_back(life):
    inventory, jid = life.node.sim.inventory, life.node.running()["row1"]
    record = inventory.load("row1")
    inventory.write("DELETE FROM jails WHERE jname='row1'")
    life.tick()
    assert not life.services("row1")
    inventory.register(record)
    life.tick()
    life.watched("row1")
    life.is_now("row1", "healthy")
    life.quiet("row1", hooks=[])
    assert life.node.running()["row1"] == jid


# The table


def prepare(life, total=TOTAL):
    """Make the envs of all rows and as many others as make ``total``, and start them."""
    sim = life.node.sim
    conf = pathlib.Path(sim.layout.simconf)
    conf.write_text(json.dumps({**json.loads(conf.read_text()), "ippool": f"{BLOCK}.192/26"}))
    skeleton = pathlib.Path(sim.workdir) / "share/FreeBSD-jail-life-system-skel/monit"
    skeleton.mkdir(parents=True)
    (skeleton / "monitrc.tpl").write_text(TEMPLATE)
    life.tcp("dhc1", "ip4_addr=DHCP")
    jails, vms = ["dhc1"], []
    stopped = []
    for _, envs, machines, down in ROWS.values():
        jails += envs
        stopped += down
        vms += machines
    fillers = [f"f{number}" for number in range(total - len(jails) - len(vms))]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(life.tcp, name) for name in (*jails[1:], *stopped)]
        jobs += [pool.submit(life.tcp, name, package="") for name in fillers]
        jobs += [pool.submit(life.vm, name) for name in vms]
        jobs.append(pool.submit(life.tcp, "run1", "runasap=1"))
        for job in jobs:
            job.result()
    results = life.apply()
    assert all(r["result"] for r in results), life.node.summary(results)
    life.up = ["run1", *jails, *fillers, *vms]
    reloads = life.reloads()
    both = [["jstart", "inter=0", *jails, *fillers], ["bstart", "inter=0", *vms]]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda argv: sim.cbsd(*argv), both))
    for name in life.up:
        life.state(name, "healthy")
    life.watched(*jails, *vms)
    life.watched(*fillers, by=("alive", "env"))
    life.start_reloads = life.reloads() - reloads
    life.mark(*jails, *vms)


def play(life):
    """Run all rows at the same time; {name: what became of it, a Future}."""
    with concurrent.futures.ThreadPoolExecutor(len(ROWS)) as pool:
        return {name: pool.submit(function, life) for name, (function, *_) in ROWS.items()}


@pytest.fixture(scope="module")
def life(salt_node):
    life = Life(salt_node("hv1"), BLOCK)
    life.other = Life(salt_node("hv2"), BLOCK)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        there = pool.submit(life.other.apply)
        prepare(life)
        assert all(r["result"] for r in there.result())
    watchers = [Watcher(life.node, 0.5), Watcher(life.other.node, 0.5)]
    for watcher in watchers:
        watcher.start()
    life.results = play(life)
    yield life
    for watcher in watchers:
        watcher.done.set()
        watcher.join()
        assert watcher.asked > 20 and watcher.refused == [], (
            "whatever happened, monit's text parsed at every moment"
        )


@pytest.mark.parametrize("name", ROWS)
def test_row(life, name):
    life.results[name].result()


def test_all_starts_at_once_cost_at_most_five_reloads(life):
    assert len(life.up) > TOTAL
    assert life.start_reloads <= 5


# The node as a whole


def end_all(word):
    """Kill every process whose command line has ``word``, those too that they start meanwhile."""
    calm = 0
    while calm < 3:
        listing = subprocess.run(
            ["ps", "-axww", "-o", "pid=,stat=,command="], capture_output=True, text=True, check=True
        )
        lines = [line.split(None, 2) for line in listing.stdout.splitlines()]
        pids = [
            int(pid)
            for pid, stat, *command in lines
            if command and word in command[0] and stat[0] != "Z"
        ]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        calm = 0 if pids else calm + 1


def power_off(life):
    """The power is gone: nothing is told, and what lies in /var/run does not survive."""
    life.power = False
    life.node.kill_monit()
    end_all(str(life.node.wake.parent))
    life.node.sim.kernel.power_off()
    shutil.rmtree(life.node.run_dir, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        (life.node.root / "var/run/monit.pid").unlink()


def boot(life):
    """Start monit, then all envs at once, as rc.d does; returns the reloads that it cost."""
    life.node.sim.boot(astart=False)
    life.power = True
    before = life.reloads()
    subprocess.run(
        life.node.lookup()["monit_start"], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    time.sleep(3)
    subprocess.run(
        [os.path.join(life.node.sim.layout.distdir, "rc.d/jails-astart"), "start"],
        env=life.node.sim.environment(ALWAYS_NO="1"),
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    return life.reloads() - before


def node_state(life):
    """(names that are up after a boot, names that stay down: astart=0 and stopped by hand)."""
    status = life.node.status()
    down = {"stp1", "f0"}
    life.cbsd("jset", "jname=stp1", "astart=0")
    life.cbsd("jset", "jname=f0", "astart=0")
    if status["stp1"]["intent"] == "running":
        life.cbsd("jstop", "jname=stp1")
        life.state("stp1", "stopped")
    watched = [n for n, row in status.items() if row["state"] != "unwatched" and n != "(node)"]
    rows = [n for n in watched if life.value(n, "status") != "2"]
    return sorted(set(rows) - down - {"new1", "lnk1", "lnk2"}), sorted(down)


def came_back(life, up, down, reloads):
    for name in up:
        life.state(name, "healthy")
    for name in down:
        life.state(name, "stopped")
    fillers = [n for n in up if n.startswith("f")]
    life.watched(*[n for n in up if n not in fillers])
    life.watched(*fillers, by=("alive", "env"))
    life.quiet(*up, *down, hooks={**dict.fromkeys(up, START), **dict.fromkeys(down, [])})
    assert reloads <= 5
    assert not set(down) & set(life.node.running())


def test_power_lost_and_everything_starts_in_parallel(life):
    up, down = node_state(life)
    assert len(up) >= TOTAL / 2
    healing = {name: life.transitions(name).count("healing") for name in up}
    power_off(life)
    life.mark(*up, *down)
    came_back(life, up, down, boot(life))
    assert {name: life.transitions(name).count("healing") for name in up} == healing


def test_host_shut_down_and_booted(life):
    """VMs are stopped with hooks, jails just end; neither is a stop on purpose."""
    up, down = node_state(life)
    vms = [name for name in up if life.value(name, "emulator") == "bhyve"]
    life.mark(*up, *down)
    astart = os.path.join(life.node.sim.layout.distdir, "rc.d/jails-astart")
    subprocess.run(
        [astart, "stop"],
        env=life.node.sim.environment(ALWAYS_NO="1"),
        check=True,
        capture_output=True,
    )
    for name in vms:
        until(
            lambda n=name: life.node.status()[n]["state"] == "starting",
            20,
            lambda n=name: str(life.node.status()[n]),
        )
        assert (
            "shutdown" in life.node.status()[name]["reason"]
            and life.node.status()[name]["intent"] == "running"
        )
    time.sleep(3)
    assert [life.hooks(name) for name in vms] == [STOP] * len(vms), (
        "nothing is started while the host goes down"
    )
    life.node.kill_monit(signal.SIGTERM)
    power_off(life)
    assert {
        name: ran for name, ran in life.hooks_of(up).items() if ran[life.marks[name] :]
    }.keys() == set(vms)
    life.mark(*up, *down)
    came_back(life, up, down, boot(life))


def test_monit_killed_and_no_minion_a_failing_env_is_healed_by_cron(life):
    """This node has no minion; cron's line is run as cron would, a second after monit died."""
    life.node.kill_agent()
    assert life.node.kill_monit()
    before = life.transitions("die1").count("healed")
    life.node.sim.crash("die1")
    began = time.monotonic()
    time.sleep(1)
    life.tick()
    life.healed("die1", before + 1)
    assert time.monotonic() - began < 60, "with cron's own minute in front of it, two minutes"
    assert life.node.monit("summary").count("die1.") == 2
