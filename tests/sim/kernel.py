"""The kernel of the node: which jails and machines exist, and the processes that they are.

A jail is a process group around one sleeping process, which stands for the init, cron and syslogd
of a real one: the jail exists while that process runs. A machine is one process as well, its pid
being what CBSD takes for its jid. State is one JSON file, changed under a lock, because any
number of simulated commands run at the same time.
"""

import fcntl
import os
import sys
import time

from sim import procs, programs, quick_json
from sim.layout import read, write, write_atomic

SLEEP = "/bin/sleep"
TCPD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tcpd.py")
EMPTY = {"next_jid": 1, "jails": {}, "vms": {}, "fail_start": [], "slow": {}, "off": {}}


class Kernel:
    """What `jail`, `jls`, `jexec` and `bhyvectl` see."""

    def __init__(self, layout):
        self.layout = layout
        self.file = os.path.join(layout.kernel, "state.json")
        self.listing = os.path.join(layout.kernel, "jails.sh")
        self.boot_id_file = os.path.join(layout.kernel, "boot_id")
        self.runs = os.path.join(layout.kernel, "run")

    def read(self):
        """The state, as it was at one instant."""
        return quick_json.loads(read(self.file, missing=quick_json.dumps(EMPTY)))

    def write(self, state):
        """Replace the state, and what `jls name` reads of it (see `node.JLS`)."""
        lines = []
        for name, jail in sorted(state["jails"].items(), key=lambda item: item[1]["jid"]):
            pid, start = jail["holder"] or (0, 0)
            quoted = name.replace("'", "'\\''")
            lines.append(f"jail {pid} {start} '{quoted}'\n")
        write_atomic(self.listing, "".join(lines))
        write_atomic(self.file, quick_json.dumps(state))

    def changing(self):
        """The state under its lock; what a `with` block leaves in it is written."""
        return Change(self)

    def boot(self, jid_start):
        """A new boot: nothing runs, jids start again. Injected faults stay, they are the test's."""
        os.makedirs(self.runs, exist_ok=True)
        with self.changing() as state:
            state.update(next_jid=jid_start, jails={}, vms={})
        write_atomic(self.boot_id_file, f"{time.time_ns():x}-{os.getpid():x}\n")

    def jails(self):
        """name -> record of the jails that exist."""
        found = self.read()["jails"]
        holders = {name: tuple(jail["holder"] or ()) for name, jail in found.items()}
        alive = set(filter(procs.alive, set(holders.values())))  # a benchmark has one for all
        return {name: jail for name, jail in found.items() if holders[name] in alive}

    def jid(self, name):
        """The jid of a jail, 0 when there is none."""
        return self.jails().get(name, {}).get("jid", 0)

    def find(self, name_or_jid):
        """(name, record) as jail(8) programs look one up, or None."""
        for name, jail in self.jails().items():
            if name_or_jid in (name, str(jail["jid"])):
                return name, jail
        return None

    def marker(self, name, jail):
        """The environment setting that every process of a jail is started with."""
        return f"CBSD_SIM_JAIL={self.layout.root}:{name}:{jail['jid']}"

    def jail_environment(self, name, jail, inherited):
        """The environment of a process that is started in a jail."""
        key, _, value = self.marker(name, jail).partition("=")
        own = f"{jail['data']}/bin:{jail['data']}/usr/local/bin:{self.layout.jailbin}"
        return {**inherited, key: value, "PATH": f"{own}:/sbin:/bin:/usr/sbin:/usr/bin"}

    def create_jail(self, name, path, data, hostname, addresses):
        """`jail -c`: the new jid, 0 if the kernel refuses, None if it has a jail of that name."""
        self.release_address(name)
        with self.changing() as state:
            old = state["jails"].get(name)
            if old and procs.alive(old["holder"]):
                return None
            if name in state["fail_start"]:
                return 0
            jail = {"jid": state["next_jid"], "path": path, "data": data, "hostname": hostname}
            jail.update(ip4=addresses, pids=[])
            state["next_jid"] += 1
            environment = self.jail_environment(name, jail, {})
            jail["holder"] = spawn([f"{name}: init", "infinity"], SLEEP, environment)
            state["jails"][name] = jail
            try:  # stands for the mount of the data on the jail's root
                os.rmdir(path)
                os.symlink(data, path)
            except OSError:
                pass
        return jail["jid"]

    def add_process(self, name, pid):
        """Count a process among those of a jail."""
        with self.changing() as state:
            if name in state["jails"]:
                jail = state["jails"][name]
                jail["pids"] = [ident for ident in jail["pids"] if procs.alive(ident)]
                jail["pids"].append(procs.identity(pid))

    def destroy_jail(self, name):
        """`jail -r`: every process of the jail is killed, then the jail is gone."""
        jail = self.read()["jails"].get(name)
        if jail:
            idents = [jail["holder"], *filter(None, jail["pids"])]
            procs.exterminate(idents, self.marker(name, jail))
            with self.changing() as state:
                if state["jails"].get(name, {}).get("jid") == jail["jid"]:
                    del state["jails"][name]
                    if os.path.islink(jail["path"]):
                        os.unlink(jail["path"])
                        os.mkdir(jail["path"])
        self.occupy_address(name)

    def vm_pid(self, name):
        """The process id of a running machine, else 0."""
        vm = self.read()["vms"].get(name)
        return vm["holder"][0] if vm and procs.alive(vm["holder"]) else 0

    def vmm(self, name):
        """The device node that exists while the kernel has the machine."""
        return os.path.join(self.layout.vmm, name)

    def create_vm(self, name, guest, address):
        """bhyve(8): the pid of the machine, 0 when it does not come up.

        `guest` is the service that the operating system in it runs, see `Node.guest`.
        """
        self.release_address(name)
        with self.changing() as state:
            if name in state["fail_start"]:
                return 0
            marker = f"{self.layout.root}:{name}:{time.time_ns()}"
            environment = {"CBSD_SIM_VM": marker, "PATH": "/bin:/usr/bin"}
            holder = spawn([f"bhyve: {name}", "infinity"], SLEEP, environment)
            pids = []
            if guest and address:
                options = [address, str(guest["port"]), name, "--delay", str(guest["boot_delay"])]
                command = [sys.executable, "-IS", TCPD, *options]
                pids.append(spawn(command, sys.executable, environment))
            state["vms"][name] = {"holder": holder, "pids": pids, "marker": f"CBSD_SIM_VM={marker}"}
        write(self.vmm(name))
        return holder[0]

    def destroy_vm(self, name):
        """`bhyvectl --destroy`: the machine, its guest and its device are gone."""
        vm = self.read()["vms"].get(name)
        if vm:
            procs.exterminate([vm["holder"], *vm["pids"]], vm["marker"])
            with self.changing() as state:
                if state["vms"].get(name, {}).get("holder") == vm["holder"]:
                    del state["vms"][name]
        unlink(self.vmm(name))
        self.occupy_address(name)

    def slowness(self, name, what):
        """How many seconds `start` or `stop` of an environment takes on top."""
        return self.read()["slow"].get(name, {}).get(what, 0)

    def set_off(self, name, ports, address):
        """What the address of `name` does while it is down: refuse or swallow connections."""
        self.release_address(name)
        with self.changing() as state:
            state["off"].pop(name, None)
            if ports:
                state["off"][name] = {"ports": ports, "address": address, "holder": None}
        if not (self.jid(name) or self.vm_pid(name)):
            self.occupy_address(name)

    def occupy_address(self, name):
        """While `name` is down its ports accept nothing: a connection there runs into its time-out.

        A listening socket with a full queue drops further SYNs, which is how a host behind a
        dropping firewall or one that lost power looks to a client.
        """
        with self.changing() as state:
            off = state["off"].get(name)
            if not off or procs.alive(off["holder"]):
                return
            sockets = [end for port in off["ports"] for end in full_queue(off["address"], port)]
            fds = [end.fileno() for end in sockets]
            off["holder"] = spawn([f"{name}: blackhole", "infinity"], SLEEP, {}, fds)
            for end in sockets:
                end.close()

    def release_address(self, name):
        """Give the ports back before `name` starts."""
        with self.changing() as state:
            off = state["off"].get(name)
            if off:
                procs.exterminate([off["holder"]] if off["holder"] else [])
                off["holder"] = None

    def register(self):
        """Register this process, so that a power failure of the node finds it; the record."""
        record = os.path.join(self.runs, str(os.getpid()))
        os.makedirs(self.runs, exist_ok=True)
        write(record, quick_json.dumps(procs.identity(os.getpid())))
        return record

    def running_commands(self):
        """The identities of the simulated commands that run."""
        found = []
        for name in os.listdir(self.runs) if os.path.isdir(self.runs) else ():
            try:
                found.append(quick_json.loads(read(os.path.join(self.runs, name))))
            except (FileNotFoundError, ValueError):
                pass
        return found

    def power_off(self):
        """Every process of the node dies at once; no hook runs."""
        procs.exterminate(self.running_commands())
        state = self.read()
        for name in list(state["jails"]):
            self.destroy_jail(name)
        for name in list(state["vms"]):
            self.destroy_vm(name)
        for name in state["off"]:
            self.release_address(name)


class Change:
    """A change of the kernel's state."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __enter__(self):
        self.lock = open(os.path.join(self.kernel.layout.kernel, "lock"), "w", encoding="utf-8")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.state = self.kernel.read()
        return self.state

    def __exit__(self, error, *_):
        if error is None:
            self.kernel.write(self.state)
        self.lock.close()


def unlink(path):
    """Remove a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


DAEMONS = []  # the pids of those that this process has started


def spawn(argv, executable, environment, fds=()):
    """Start a daemon of the simulated host in a session of its own; its identity."""
    for pid in DAEMONS[:]:  # a test starts many, and nobody waits for their end
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                DAEMONS.remove(pid)
        except (ChildProcessError, ValueError):
            pass
    null = dict.fromkeys(("stdin", "stdout", "stderr"), programs.DEVNULL)
    options = {"executable": executable, "start_new_session": True, "pass_fds": fds}
    program = programs.Program(argv, environment, **null, **options)
    DAEMONS.append(program.pid)
    return procs.identity(program.pid)


def full_queue(address, port):
    """Sockets that, while they are open, make every further connection to the port hang."""
    import socket

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(0)
    ends = [listener]
    for _ in range(3):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex((address, port))
        ends.append(client)
    return ends
