"""A whole simulated node: made, broken, rebooted and removed.

    python tests/sim/node.py --root DIR create
    python tests/sim/node.py --root DIR crash lb1

or, in a test, `Node(root).create()`. The programs of the node are in `DIR/bin`;
`DIR/log/cbsd.log` has one line for the start and one for the end of each CBSD command,
`DIR/log/hooks.log` one for each hook.
"""

import argparse
import json
import os
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
if not __package__:  # run as a program: make `sim` importable, and nothing of it by accident
    sys.path[0] = os.path.dirname(HERE)

from sim import modules  # noqa: E402
from sim.addresses import Addresses  # noqa: E402
from sim.cbsd import COMMANDS  # noqa: E402
from sim.inventory import Inventory  # noqa: E402
from sim.jails import remove  # noqa: E402
from sim.kernel import Kernel  # noqa: E402
from sim.layout import DEFAULTS, HOST_PATH, Layout, read, write  # noqa: E402

# Isolated, without site: a simulated command starts in a few hundredths of a second.
PYTHON = getattr(sys, "_base_executable", None) or sys.executable
CBSD_WRAPPER = """\
#!{python} -IS
import sys
sys.path.insert(0, {tests!r})
from sim import cbsd, leave
leave(cbsd.main({root!r}, sys.argv[1:]))
"""
PROGRAM_WRAPPER = """\
#!{python} -IS
import sys
sys.path.insert(0, {tests!r})
from sim import freebsd, leave
leave(freebsd.main({program!r}, {root!r}, sys.argv[1:]))
"""
# `jls name`, what the agent asks most, without a start of Python.
JLS = """\
#!/bin/sh
[ "$*" = name ] || exec "{root}/bin/.jls" "$@"
jail() {{  # pid, start time and name, see `Kernel.write`
    if [ "$1 $2" != "$holder" ]; then
        holder="$1 $2" alive=
        {{ read -r stat < "/proc/$1/stat"; }} 2> /dev/null || return 0
        set -- "$2" "$3" ${{stat##*) }}  # the state is $3, the start time $22
        [ "${{22}}" != "$1" ] || [ "$3" = Z ] || [ "$3" = X ] || alive=1
    else
        shift
    fi
    [ -z "$alive" ] || printf '%s\\n' "$2"
}}
holder=
. "{root}/kernel/jails.sh"
"""
# The commands without `cbsd` in front, for CBSD's own shell (`cbsd -c`, scripts of modules).
BUILTIN_WRAPPER = """\
#!{python} -IS
import os, sys
sys.path.insert(0, {tests!r})
from sim import cbsd, leave
from sim.layout import Layout
name = os.path.basename(sys.argv[0])
if name.startswith("cbsdsql"):
    leave(cbsd.sql(Layout({root!r}, os.environ["workdir"]), sys.argv[1:]))
leave(cbsd.main({root!r}, [name] + sys.argv[1:]))
"""


class Error(Exception):
    """The request makes no sense for this node."""


class Node:
    """One simulated host with CBSD on it, in the directory `root`."""

    def __init__(self, root):
        self.layout = Layout(root)
        self.root, self.workdir, self.bin = self.layout.root, self.layout.workdir, self.layout.bin
        self.kernel = Kernel(self.layout)
        self.inventory = Inventory(self.layout, self.kernel)

    def create(self, name=DEFAULTS["nodename"], configured=True, **settings):
        """Make the node: `settings` as in DEFAULTS; `configured`: rc.conf names its workdir."""
        layout = self.layout
        if os.path.exists(layout.simconf):
            raise Error(f"{self.root} is a node already")
        os.makedirs(layout.path("etc"), exist_ok=True)
        write(layout.simconf, json.dumps({**DEFAULTS, "nodename": name, **settings}, indent=1))
        for path in (layout.vmm, layout.kernel, layout.path("log"), layout.jailbin, layout.bin):
            os.makedirs(path, exist_ok=True)
        for directory in ("modules", "rc.d", "share", "sudoexec"):
            os.makedirs(os.path.join(layout.distdir, directory))
        os.makedirs(layout.workdir)
        rcconf = f'cbsd_workdir="{layout.workdir}"\ncbsdd_enable="YES"\n'
        write(layout.rcconf, rcconf if configured else "")
        write(layout.work("nodename"), name + "\n")
        self._install_programs()
        modules.initialise(layout)
        modules.write_subr(layout)
        database = f"inv.{name}.sqlite"
        self.inventory.create(layout.work("var/db", database))
        os.symlink(layout.work("var/db", database), layout.work("var/db/local.sqlite"))
        self.kernel.boot(layout.settings()["jid_start"])
        return self

    def _install_programs(self):
        layout, commands = self.layout, os.path.join(self.layout.bin, "commands")
        os.makedirs(commands)
        self._wrapper(os.path.join(layout.bin, "cbsd"), CBSD_WRAPPER)
        self._wrapper(os.path.join(layout.bin, "jls"), JLS)
        self._wrapper(os.path.join(commands, ".command"), BUILTIN_WRAPPER)
        places = {layout.bin: ("jexec", "sysrc", "ps", "rctl", ".jls")}
        places[layout.jailbin] = ("service", "sysrc")
        places[os.path.join(layout.distdir, "rc.d")] = ("jails-astart",)
        places[os.path.join(layout.distdir, "share")] = ("bhyverun.sh",)
        for place, names in places.items():
            for name in names:
                program = name.lstrip(".")
                self._wrapper(os.path.join(place, name), PROGRAM_WRAPPER, program=program)
        os.chmod(os.path.join(layout.bin, "cbsd"), 0o550)
        for command in (*COMMANDS, "cbsdsqlro", "cbsdsqlrw"):
            os.symlink(".command", os.path.join(commands, command))
        initenv = os.path.join(layout.distdir, "sudoexec/initenv")
        os.symlink("../../../../bin/commands/initenv", initenv)

    def _wrapper(self, path, template, **values):
        tests = os.path.dirname(HERE)
        write(path, template.format(python=PYTHON, tests=tests, root=self.root, **values))
        os.chmod(path, 0o755)

    def destroy(self):
        """End every process of the node and remove it. A second time does nothing."""
        if not os.path.isdir(self.root):
            return
        if not os.path.exists(self.layout.simconf):
            if os.listdir(self.root):
                raise Error(f"{self.root} is not a node")
            os.rmdir(self.root)
            return
        if os.path.isdir(self.layout.kernel):
            self.kernel.power_off()
        for name in os.listdir(self.root):
            if name != "etc":  # what says that this is a node goes last
                remove(self.layout.path(name))
        remove(self.root)

    def reset(self, fixture):
        """A new node with the environments of a fixture of the recorded cases."""
        from sim import fixtures  # the only part that needs PyYAML

        description = fixtures.load()
        chosen = description["fixtures"][fixture]
        chosen = description["fixtures"][chosen.get("same_node_as", fixture)]
        self.destroy()
        settings = {"nic": description["nic"], "jid_start": description["jid_start"]}
        settings.update(ippool=description["nodeippool"], pause=0.3)
        self.create(configured=False, **settings)
        fixtures.Builder(self.layout, description).build(chosen)

    def environment(self, **changes):
        """The environment in which a program should run cbsd; `changes` with None remove."""
        environment = {"PATH": HOST_PATH, "HOME": "/root", "TERM": "xterm", "workdir": self.workdir}
        environment.update(NOCOLOR="1", NOINTER="1", NO_CBSD_HISTORY="yes")
        environment.update(changes)
        return {key: value for key, value in environment.items() if value is not None}

    def cbsd(self, *argv, env=None, timeout=60, **options):
        """Run a command of CBSD; a CompletedProcess with texts.

        The process group is killed when the time is up: SIGTERM would not end it.
        """
        options.update(env=self.environment(**(env or {})), cwd="/", start_new_session=True)
        options.update(dict.fromkeys(("stdout", "stderr"), subprocess.PIPE), text=True)
        command = [os.path.join(self.bin, "cbsd"), *argv]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def status(self):
        """What the kernel has, and what is injected."""
        state = self.kernel.read()
        vms = {name: self.kernel.vm_pid(name) for name in state["vms"]}
        return {
            "boot_id": read(self.kernel.boot_id_file).strip(),
            "jails": {name: jail["jid"] for name, jail in self.kernel.jails().items()},
            "vms": {name: pid for name, pid in vms.items() if pid},
            **{key: state[key] for key in ("fail_start", "slow", "off")},
        }

    def log(self):
        return list(map(json.loads, read(self.layout.cbsd_log, missing="").splitlines()))

    def hooks_log(self):
        return list(map(json.loads, read(self.layout.hooks_log, missing="").splitlines()))

    def crash(self, name):
        """The kernel loses a jail or a machine: its processes die, CBSD learns nothing."""
        self.kernel.destroy_jail(name)
        self.kernel.destroy_vm(name)

    def fail_start(self, name, off=False):
        """From now on (or, with `off`, no longer) the kernel refuses to create it."""
        with self.kernel.changing() as state:
            names = [known for known in state["fail_start"] if known != name]
            state["fail_start"] = names if off else [*names, name]

    def slow(self, name, start=0.0, stop=0.0):
        """How much longer its start and its stop take."""
        with self.kernel.changing() as state:
            state["slow"][name] = {"start": start, "stop": stop}

    def off(self, name, mode="refuse", ports=(80, 8080)):
        """What its address does while it is down: `refuse` connections, or be a `blackhole`."""
        address = Addresses(self.inventory.value(name, "ip4_addr")).loopback()
        if mode == "blackhole" and not address:
            raise Error(f"{name} has no address in 127/8")
        self.kernel.set_off(name, list(ports) if mode == "blackhole" else [], address)

    def guest(self, name, port=8080, boot_delay=0.5, service="tcpd"):
        """What the operating system in a machine runs, some time after each of its starts."""
        if not self.inventory.is_a(name, "bhyve"):
            raise Error(f"no machine {name}")
        if service != "tcpd":
            raise Error(f"a guest cannot run {service}")
        text = json.dumps({"port": port, "boot_delay": boot_delay})
        write(self.layout.data(name, "sim-guest.json"), text)

    def guest_poweroff(self, name, twice=False):
        """The guest switches itself off: bhyverun.sh calls bstop, so both stop hooks run.

        bstop kills the bhyverun.sh that called it; its end shows in the pipe that it inherits. With
        `twice` the hooks run a second time at the same time, as in the race of bstop and
        bhyverun.sh (bstop:262).
        """
        self._running(name)
        conf = os.path.join(self.layout.system(name), "bhyve.conf")
        program = os.path.join(self.layout.distdir, "share/bhyverun.sh")
        self._program([program, "-c", conf, *(["--twice"] if twice else [])])

    def guest_reboot(self, name):
        """The guest restarts: another process, only master_reboot.d runs."""
        from sim.machines import guest_of
        from sim.session import Session

        self._running(name)
        row = self.inventory.load(name)
        self.kernel.destroy_vm(name)
        session = Session(self.layout, "bhyverun.sh", [], self.environment()).prepare()
        session.export_for_hooks(row)
        session.quiet = True
        session.hooks.run(name, "master_reboot.d")
        address = Addresses(row["ip4_addr"]).loopback()
        pid = self.kernel.create_vm(name, guest_of(self.layout, name), address)
        self.cbsd("bset", f"jname={name}", f"vm_pid={pid}")

    def _running(self, name):
        if not self.kernel.vm_pid(name):
            raise Error(f"the machine {name} does not run")

    def shutdown(self):
        """An orderly shutdown: machines are stopped with their hooks, jails just end."""
        self._astart("stop")
        self.kernel.power_off()

    def boot(self, astart=True):
        """A (re)boot: what ran is gone without hooks, rows are stale, astart=1 is started."""
        self.kernel.power_off()
        self.kernel.boot(self.layout.settings()["jid_start"])
        for name in os.listdir(self.layout.vmm):
            os.unlink(self.kernel.vmm(name))
        if astart:
            self._astart("start")
        for name in self.kernel.read()["off"]:
            if not (self.kernel.jid(name) or self.kernel.vm_pid(name)):
                self.kernel.occupy_address(name)

    def _astart(self, what):
        program = os.path.join(self.layout.distdir, "rc.d/jails-astart")
        self._program([program, what], ALWAYS_NO="1")

    def _program(self, argv, **changes):
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "check": False}
        subprocess.run(argv, env=self.environment(**changes), cwd="/", **options)


def parser():
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    top.add_argument("--root", required=True, help="directory of the node")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text, *names):
        added = commands.add_parser(name, help=text)
        for positional in names:
            added.add_argument(positional)
        return added

    create = command("create", "make a node")
    create.add_argument("--name", default=DEFAULTS["nodename"])
    create.add_argument("--nic", default=DEFAULTS["nic"])
    create.add_argument("--jid-start", type=int, default=DEFAULTS["jid_start"])
    create.add_argument("--ippool", default=DEFAULTS["ippool"], help="for ip4_addr=DHCP")
    command("reset", "a new node with a fixture of the recorded cases", "fixture")
    command("destroy", "end all its processes and remove it")
    command("status", "what the kernel has, as JSON")
    command("crash", "the kernel loses a jail or machine", "name")
    fail = command("fail-start", "the kernel refuses to create it", "name")
    fail.add_argument("--off", action="store_true", help="no longer")
    slow = command("slow", "its start or stop takes longer", "name")
    slow.add_argument("--start", type=float, default=0.0, metavar="SECONDS")
    slow.add_argument("--stop", type=float, default=0.0, metavar="SECONDS")
    off = command("off", "what its address does while it is down", "name")
    off.add_argument("mode", choices=("refuse", "blackhole"))
    off.add_argument("--ports", type=int, nargs="*", default=[80, 8080])
    guest = command("guest", "what the guest in a machine runs", "name")
    guest.add_argument("--service", default="tcpd")
    guest.add_argument("--port", type=int, default=8080)
    guest.add_argument("--boot-delay", type=float, default=0.5, metavar="SECONDS")
    poweroff = command("guest-poweroff", "the guest switches itself off", "name")
    poweroff.add_argument("--twice", action="store_true", help="run its hooks twice, concurrently")
    command("guest-reboot", "the guest restarts", "name")
    boot = command("boot", "the node reboots")
    boot.add_argument("--no-astart", action="store_true", help="start nothing")
    command("shutdown", "the node shuts down")
    return top


def main(argv=None):
    options = vars(parser().parse_args(argv))
    node, command = Node(options.pop("root")), options.pop("command")
    if command == "boot":
        options = {"astart": not options["no_astart"]}
    try:
        result = getattr(node, command.replace("-", "_"))(**options)
    except Error as error:
        sys.stderr.write(f"node.py: {error}\n")
        return 1
    if command == "status":
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
