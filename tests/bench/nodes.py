"""What all parts of `make bench` share: cheap nodes, exact failures, medians, cleaning up."""

import contextlib
import os
import pathlib
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests"))

from node_on_salt import SaltNode  # noqa: E402
from sim import jails, procs, services  # noqa: E402
from sim.kernel import SLEEP, full_queue, spawn  # noqa: E402

PREFIX = "cmb"  # of the nodes' directories below /tmp; unix sockets need short paths


def say(text=""):
    print(text, flush=True)


def median(values):
    return statistics.median(values)


def percentile(values, share):
    """The smallest of ``values`` that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def until(condition, seconds, what):
    """The first true answer of ``condition``; raises RuntimeError after ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise RuntimeError(f"not within {seconds} s: {what() if callable(what) else what}")


def require(true, problem):
    """Fail the part of the bench that runs: it guarantees what is not ``true``."""
    if not true:
        raise RuntimeError(problem)


class Bench:
    """
    One run: the nodes it made, and what is held open for them.

    Files of a node that has ended stay until the run ends: when ext4 without a journal looks for a
    free inode it skips each one deleted in the last minutes, which would slow the next part down.
    """

    def __init__(self):
        self.nodes, self.held, self.left = [], [], []

    def node(self, minion):
        node = SaltNode(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"), minion)
        self.nodes.append(node)
        node.create()
        return node

    def drop(self, node):
        root = str(node.root)
        with contextlib.suppress(Exception), node.sim.kernel.changing() as state:
            jails_there, state["jails"] = state["jails"].values(), {}
            # At once: ten thousand may share one process.
            found = {(*i,) for jail in jails_there for i in (jail["holder"], *jail["pids"]) if i}
            procs.exterminate(found)
        with contextlib.suppress(Exception):
            node.stop()
        for _ in range(50):
            left = processes_of(root)
            if not left:
                break
            procs.kill(left)
            time.sleep(0.05)
        self.left.append(root)
        self.nodes.remove(node)

    def end(self):
        """End all that this run started, by pid, and ignore further interruptions meanwhile."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.drop_all()
        subprocess.run(["rm", "-rf", *self.left], check=False)

    def drop_all(self):
        """End all nodes, and close what was held open for them."""
        for thing in self.held:
            with contextlib.suppress(Exception):
                thing.close()
        self.held = []
        for node in list(self.nodes):
            self.drop(node)

    def serve(self, address, *ports):
        """Have ``ports`` of ``address`` answer for as long as this run needs it."""
        for port in ports:
            if not any(n.addresses == [address] and n.port == port for n in self.held):
                self.hold(Network([address], port)).answer()

    def hold(self, thing):
        self.held.append(thing)
        return thing


def processes_of(root):
    """The identities of all processes whose command line names ``root``, but this one."""
    ps = ["ps", "-axww", "-o", "pid=", "-o", "command="]
    lines = subprocess.run(ps, capture_output=True, text=True, check=True)
    found = [line.split(None, 1) for line in lines.stdout.splitlines()]
    pids = [int(words[0]) for words in found if len(words) == 2 and root in words[1]]
    return [ident for pid in pids if pid != os.getpid() and (ident := procs.identity(pid))]


# Envs without the simulator's commands: a thousand jcreate would take longer than what is measured.


def add_jails(node, addresses, package="tcpd", port=8080):
    """
    Create the jails ``{name: IPv4 address}`` as jcreate leaves them, in one transaction.

    ``package`` runs in them: ``tcpd`` listens on ``port``; empty for nothing.
    """
    layout = node.sim.layout
    rows = [row_of(layout, name, ip4_addr=addr, astart="0") for name, addr in addresses.items()]
    for row in rows:
        name = row["jname"]
        for directory in jails.HOOK_DIRS:
            os.makedirs(layout.system(name, directory))
        if package:
            jails.populate(row, {})
            services.install(row["data"], package, f"tcpd_port={port}")
    insert(node, rows)


def add_rows(node, names, address):
    """Create running jails without files, which share one address and one sleeping process."""
    layout, kernel = node.sim.layout, node.sim.kernel
    rows = []
    for number, name in enumerate(names, 1):
        rows.append(row_of(layout, name, ip4_addr=address, jid=number, status=1))
        for directory in jails.HOOK_DIRS:
            os.makedirs(layout.system(name, directory))
    insert(node, rows)
    holder = spawn([f"{node.root}: init", "infinity"], SLEEP, {})
    with kernel.changing() as state:
        state["next_jid"] = len(rows) + 1
        for row in rows:
            record = {key: row[key] for key in ("jid", "path", "data")}
            record.update(hostname=row["host_hostname"], ip4=address, pids=[], holder=holder)
            state["jails"][row["jname"]] = record


def row_of(layout, name, **columns):
    """The row of a new jail with these ``columns``."""
    row = {**jails.DEFAULTS, **jails.paths_of(layout, name), **jails.NATIVE, **columns}
    return {**row, "jname": name, "host_hostname": f"{name}.my.domain"}


def insert(node, rows):
    """Rows of CBSD's inventory, in one transaction."""
    columns = list(rows[0])
    text = f"INSERT INTO jails ({','.join(columns)}) VALUES ({','.join('?' * len(columns))})"
    connection = sqlite3.connect(node.sim.inventory.file, timeout=25)
    with contextlib.closing(connection) as database, database:
        database.executemany(text, [[row[c] for c in columns] for row in rows])


def idle(node):
    """Wait until no agent runs: what one step has woken must not slow down the next."""
    until(lambda: not (node.run_dir / "agent.pid").exists(), 120, node.agent_log)


# Failures


def kill_service(node, env, service="tcpd"):
    """Kill what serves in a jail; returns when, in seconds since 1970."""
    path = pathlib.Path(node.sim.layout.data(env, f"var/run/{service}.pid"))
    now = time.time()
    os.kill(int(path.read_text()), signal.SIGKILL)
    return now


def first(node, env, transition, since):
    """When ``env`` went through ``transition`` for the first time after ``since``, or None."""
    times = [r["time"] for r in node.history(env) if r["transition"] == transition]
    return min((moment for moment in times if moment >= since), default=None)


def reached(node, env, transition, since, seconds=60):
    """The same, waited for."""

    def problem():
        return f"{env} {transition}\n{node.agent_log()}"

    return until(lambda: first(node, env, transition, since), seconds, problem)


class Network:
    """Listeners for the port of several addresses, outside of any jail, that can stop answering."""

    def __init__(self, addresses, port):
        self.addresses, self.port = addresses, port
        self.sockets = []

    def answer(self):
        """Accept connections, each from now on."""
        self.close()
        self.sockets = [socket.socket() for _ in self.addresses]
        for listener, address in zip(self.sockets, self.addresses):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, self.port))
            listener.listen(512)
            listener.settimeout(0.2)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except socket.timeout:
                continue
            except OSError:
                return
            with contextlib.suppress(OSError), client:
                head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
                client.sendall(head + b"OK\n")
                client.shutdown(socket.SHUT_WR)
                client.settimeout(2)
                while client.recv(4096):  # to close before the question is read is a reset
                    pass

    def blackhole(self):
        """From now on a connection runs into its time-out."""
        self.close()
        time.sleep(0.3)
        self.sockets = [end for address in self.addresses for end in full_queue(address, self.port)]

    def close(self):
        for end in self.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.sockets = []


# What the simulator has logged


class Command:
    """One command of CBSD: its words, begin, end (infinity while it runs), and child commands."""

    def __init__(self, record):
        self.argv, self.pid, self.parent = record["argv"], record["pid"], record["parent_pid"]
        self.nested, self.begin, self.end = record["nested"], record["t"], float("inf")
        self.children = []

    @property
    def env(self):
        """The env that it names."""
        named = [a.partition("=")[2] for a in self.argv[1:] if a.startswith("jname=")]
        return (named or [a for a in self.argv[1:] if "=" not in a] or [""])[0]


def commands(node):
    """All Commands so far, in the order of their begins."""
    found, running = [], {}
    for record in node.sim.log():
        if record["event"] == "start":
            command = running[record["pid"]] = Command(record)
            found.append(command)
            if command.parent in running:
                running[command.parent].children.append(command)
        elif record["pid"] in running:
            running[record["pid"]].end = record["t"]
    return found


def restarts(node, since=0):
    """
    [(env, begin, end)] of all restarts that touched a jail, in the order of their begins.

    A restart is a jrestart that stopped or started something, or a stop and the env's next start.
    """
    found, stopped = [], {}
    for command in commands(node):
        verb, env = command.argv[0], command.env
        if command.begin < since or (command.nested and verb != "jrestart"):
            continue
        if verb == "jstop":
            stopped[env] = len(found)
            found.append((env, command.begin, float("inf")))
        elif verb == "jstart" and env in stopped:
            at = stopped.pop(env)
            found[at] = (env, found[at][1], command.end)
        elif verb == "jstart" or (verb == "jrestart" and command.children):
            found.append((env, command.begin, command.end))
    return sorted(found, key=lambda r: r[1])


def overlapping(found):
    """How many restarts began while another of the same env was going on."""
    return sum(
        any(other[0] == env and other[1] < begin < other[2] for other in found[:at])
        for at, (env, begin, _) in enumerate(found)
    )


def most_at_once(found):
    """The largest number of restarts that were going on at one moment."""
    return max((sum(b <= begin < e for _, b, e in found) for _, begin, _ in found), default=0)


def reloads(node):
    """How often monit has read its control file again."""
    path = node.root / "log/monit.log"
    return path.read_text().count("Reinitializing Monit --") if path.exists() else 0
