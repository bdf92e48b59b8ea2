"""
CBSD and the kernel under it, as the agent needs them.

Surprises of CBSD 14.1.3a, measured: exit codes mean little (``jstart`` answers 0 for a jail that
did not come up, ``jrestart`` of a dead jail does nothing and answers 0); SIGTERM does not end a
script; a CBSDfile in the working directory and variables of the environment change what commands
do; a shell evaluates the values of arguments.  Hence argument lists, an empty environment, ``/`` as
directory, names from a whitelist, SIGKILL of the whole group, and a look at the state after every
change.
"""

import contextlib
import functools
import os
import re
import signal
import subprocess
from collections import namedtuple

from node import NAME, AgentError

PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
COLUMNS = (
    "jname jid status emulator ip4_addr astart protected maintenance host_hostname path data "
    "interface ver arch exec_timeout vnet"
).split()
SLAVE, MAINTENANCE = 2, 3
EMULATORS = {"jail": "j", "bhyve": "b"}

WORDS = 1 << 20  # bytes of output that are read where it is only quoted
DATA = 1 << 26  # and where all of it counts: the rows of ten thousand envs are 1.7 MB


class Result(namedtuple("Result", "code text cut", defaults=(False,))):
    """A command's exit code (None after a time-out) and output; ``cut`` if there was more of it."""

    @property
    def last_words(self):
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return (lines or ["no output"])[-1][:300]


# This shell waits for a command with an env's lock as its standard input: it holds the lock even if
# the agent is killed.  What the command starts, which may live on, does not inherit it.
_HOLDER = 'echo "$$ $0" >&0; "$@" </dev/null; exit $?'


def run(argv, timeout, env=None, lock=None, limit=WORDS):
    """
    Run ``argv`` and return its Result; after ``timeout`` seconds its process group is killed.

    ``limit`` bytes of output are read. ``lock`` is the descriptor of an env's lock, held until the
    command has ended even if this process is killed.
    """
    full = {"PATH": PATH, "HOME": "/root", "TERM": "xterm", **(env or {})}
    how = {"cwd": "/", "stderr": subprocess.STDOUT, "start_new_session": True}
    stdin = subprocess.DEVNULL
    if lock is not None:
        os.ftruncate(lock, 0)
        os.lseek(lock, 0, os.SEEK_SET)
        argv, stdin = ["/bin/sh", "-c", _HOLDER, "heal", *argv], lock
    # A file, not a pipe: what a jail starts may keep standard output open for as long as it lives.
    import tempfile

    with tempfile.TemporaryFile() as out:
        try:
            proc = subprocess.Popen(argv, env=full, stdin=stdin, stdout=out, **how)
        except OSError as err:
            return Result(127, f"{argv[0]}: {err.strerror}")
        late = ""
        try:
            code = proc.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(proc.pid, signal.SIGKILL)
            proc.wait()
            code, late = None, f"\nno answer within {timeout:.0f} s, killed"
        out.seek(0)
        data = out.read(limit + 1)
        return Result(code, data[:limit].decode("utf-8", "replace") + late, len(data) > limit)


def _answer(what, result):
    """The output; raises AgentError if it is not whole: a missing row is not a removed env."""
    if result.code != 0:
        raise AgentError(f"{what}: {result.last_words}")
    if result.cut:
        raise AgentError(f"{what}: its answer has more than {DATA} bytes")
    return result.text


def cbsd(node, *args, timeout=60, cause=None, lock=None, limit=WORDS):
    """Run one CBSD command; ``cause`` tells our hooks who asks for it; the rest as for `run`."""
    env = {"workdir": node.workdir, "NOCOLOR": "1", "NOINTER": "1", "NO_CBSD_HISTORY": "yes"}
    if cause:
        env["CBSD_MONIT_CAUSE"] = cause
    return run([node.conf["cbsd"], *args], timeout, env, lock, limit)


def end_orphan(node, env):
    """Kill the process group that still holds the lock of ``env`` although its agent is dead."""
    path = node.in_run("lock", env)
    with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as handle:
        pid = int((handle.read(200).split() or [""])[0])
        answer = run(["ps", "-ww", "-o", "pgid=", "-o", "command=", "-p", str(pid)], 15)
        group, _, command = answer.text.strip().partition(" ")
        if int(group) == pid and _HOLDER in command:
            os.killpg(pid, signal.SIGKILL)


def inventory(node):
    """
    Every env in CBSD's database, with one process: ({name: {column: text}}, names of broken rows).

    Raises AgentError when the database cannot be read: CBSD itself would then claim that every name
    exists.
    """
    for path in ("nc.inventory", "var/db/local.sqlite"):
        if not os.access(os.path.join(node.workdir, path), os.R_OK):
            raise AgentError(f"CBSD's inventory {os.path.join(node.workdir, path)} cannot be read")
    query = f"cbsdsqlro local SELECT {','.join(COLUMNS)} FROM jails"
    answer = cbsd(node, "-c", query, timeout=30, limit=DATA)
    text, rows, broken = _answer("CBSD's inventory", answer), {}, set()
    for line in text.splitlines():
        cells = line.split("|")
        if not NAME.match(cells[0]):
            continue  # not a name to give to a command
        if len(cells) != len(COLUMNS):
            broken.add(cells[0])  # a value holds a `|` or a line break
        else:
            rows[cells[0]] = dict(zip(COLUMNS, cells))
    if text.strip() and not rows:
        raise AgentError(f"CBSD's inventory: {answer.last_words}")
    return rows, broken - set(rows)


def kernel(node):
    """
    The names that run now, with one process: {"jail": set, "bhyve": set}.

    Raises AgentError when the kernel does not answer. CBSD's database only caches this, and is
    wrong after a crash.
    """
    running = _answer("jls", run([node.conf["jls"], "name"], 15, limit=DATA))
    try:
        machines = set(os.listdir(node.conf["vmm"]))
    except FileNotFoundError:
        machines = set()  # there is no such directory while no VM runs
    except OSError as err:
        raise AgentError(f"{node.conf['vmm']}: {err.strerror}") from None
    return {"jail": set(running.split()), "bhyve": machines}


def stop_timeout(row):
    """Seconds in which CBSD stops an env: a jail's exec_timeout, a VM's hard_timeout, a margin."""
    if row.get("emulator") == "bhyve":
        return 90
    seconds = row.get("exec_timeout") or ""
    return (int(seconds) if seconds.isdigit() and int(seconds) else 180) + 30


def start(node, row, timeout, cause=None, lock=None):
    """Start the env of ``row`` with jstart or bstart; returns the Result."""
    words = EMULATORS[row["emulator"]] + "start", "inter=0", f"jname={row['jname']}"
    return cbsd(node, *words, timeout=timeout, cause=cause, lock=lock)


def stop(node, row, cause, lock=None):
    """Stop the env of ``row`` with jstop or bstop; returns the Result."""
    words = EMULATORS[row["emulator"]] + "stop", "inter=0", f"jname={row['jname']}"
    return cbsd(node, *words, timeout=stop_timeout(row), cause=cause, lock=lock)


def command(node, row, argv, where, timeout, lock=None):
    """Run ``argv`` on the host or with the kernel's jexec: CBSD's own passes it through a shell."""
    if where == "jail":
        if row.get("emulator") != "jail":
            return Result(1, f"{row['jname']} is a VM: no command can be run in it")
        argv = [node.conf["jexec"], row["jname"], *argv]
    return run(argv, timeout, None, lock)


# Addresses.  The rules are CBSD's own (geniplist, subr/nc.subr:482-555).

_ITEM = re.compile(r"(?:[A-Za-z0-9_.]+#)?([0-9A-Fa-f.:]+)(?:/[0-9]{1,3})?\Z")


@functools.lru_cache(maxsize=4096)
def addresses(ip4_addr):
    """CBSD's facts about ``ip4_addr``: ipv4_first, ipv4_first_public and _private, ipv6_first."""
    import ipaddress

    names = "ipv4_first ipv4_first_public ipv4_first_private ipv6_first"
    facts = dict.fromkeys(names.split(), "")
    for item in (ip4_addr or "").split(","):
        match = _ITEM.match(item.strip())
        try:
            address = ipaddress.ip_address(match.group(1)) if match else None
        except ValueError:
            address = None
        if address is None:
            continue  # DHCP, REALDHCP, 0 …
        text = match.group(1)
        if address.version == 6:
            facts["ipv6_first"] = facts["ipv6_first"] or text
            continue
        private = any(address in net for net in _private())
        kind = "ipv4_first_private" if private else "ipv4_first_public"
        facts["ipv4_first"] = facts["ipv4_first"] or text
        facts[kind] = facts[kind] or text
    return facts


@functools.lru_cache(maxsize=1)
def _private():
    import ipaddress

    return [ipaddress.ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
