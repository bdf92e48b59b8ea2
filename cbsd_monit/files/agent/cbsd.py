"""
CBSD and the kernel under it, as the agent needs them.

Facts that surprise, measured on CBSD 14.1.3a: exit codes say little (``jstart`` answers 0 for a jail that did not come up, ``jrestart``
of a dead jail does nothing and answers 0), SIGTERM does not end a cbsd script, a CBSDfile in the working directory and
variables of the environment change what commands do, values of arguments are evaluated by a shell.  Hence: argument
lists, an empty environment, ``/`` as directory, names from a whitelist, SIGKILL of the whole group, and the state is read
again after every change.
"""

import contextlib
import os
import re
import signal
import subprocess

from node import NAME, AgentError

PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
COLUMNS = (
    "jname jid status emulator ip4_addr astart protected maintenance host_hostname path data interface ver arch "
    "exec_timeout vnet"
).split()
SLAVE, MAINTENANCE = 2, 3
EMULATORS = {"jail": "j", "bhyve": "b"}


WORDS = 1 << 20  # bytes of a command's output that are read, where it is only to be quoted
DATA = 1 << 26  # … where all of it counts: ten thousand envs have rows of 1.7 MB


class Result:
    """What a command answered: its exit code (None after a time-out) and its words; ``cut`` if there were more of them."""

    def __init__(self, code, text, cut=False):
        self.code, self.text, self.cut = code, text, cut

    @property
    def last_words(self):
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return (lines or ["no output"])[-1][:300]


# The shell that waits for a command holds an env's lock, its standard input, though the agent be killed meanwhile.  What
# the command starts does not inherit it: that may live as long as the env.
_HOLDER = 'echo "$$ $0" >&0; "$@" </dev/null; exit $?'


def run(argv, timeout, env=None, lock=None, limit=WORDS):
    """
    Run ``argv`` in its own process group and kill the whole group after ``timeout`` seconds; ``limit`` bytes of output are read.

    ``lock`` is the open lock of an env: it is held until the command has ended, whatever becomes of us.
    """
    full = {"PATH": PATH, "HOME": "/root", "TERM": "xterm", **(env or {})}
    stdin = subprocess.DEVNULL
    if lock is not None:
        os.ftruncate(lock, 0)
        os.lseek(lock, 0, os.SEEK_SET)
        argv, stdin = ["/bin/sh", "-c", _HOLDER, "heal", *argv], lock
    # A file, not a pipe: what a jail starts may keep our standard output open for as long as it lives.
    import tempfile

    with tempfile.TemporaryFile() as out:
        try:
            proc = subprocess.Popen(
                argv,
                env=full,
                cwd="/",
                stdin=stdin,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
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
    """The text of an answer of which every line counts; raises AgentError where it is not whole: what is missing is not gone."""
    if result.code != 0:
        raise AgentError(f"{what}: {result.last_words}")
    if result.cut:
        raise AgentError(f"{what}: its answer has more than {DATA} bytes")
    return result.text


def cbsd(node, *args, timeout=60, cause=None, lock=None, limit=WORDS):
    """Run one CBSD command; ``cause`` tells our own hooks on whose behalf a stop happens, ``lock`` is as for `run`."""
    env = {"workdir": node.workdir, "NOCOLOR": "1", "NOINTER": "1", "NO_CBSD_HISTORY": "yes"}
    if cause:
        env["CBSD_MONIT_CAUSE"] = cause
    return run([node.conf["cbsd"], *args], timeout, env, lock, limit)


def end_orphan(node, env):
    """Kill the command that holds the lock of ``env`` since its agent was killed, with all that belongs to it."""
    with contextlib.suppress(OSError, ValueError), open(
        node.in_run("lock", env), encoding="utf-8"
    ) as handle:
        pid = int((handle.read(200).split() or [""])[0])
        said = run(["ps", "-ww", "-o", "pgid=", "-o", "command=", "-p", str(pid)], 15).text.split(
            None, 1
        )
        if len(said) > 1 and int(said[0]) == pid and _HOLDER in said[1]:
            os.killpg(pid, signal.SIGKILL)


def inventory(node):
    """
    Every env of this node as CBSD's database has it: {name: {column: text}}, and the names whose rows cannot be read.

    One process however many envs there are.

    Raises AgentError when the database cannot be read: CBSD itself would then claim that every name exists.
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
            continue  # a name that we would give to no command
        if len(cells) != len(COLUMNS):
            broken.add(cells[0])  # a value holds a `|` or a line break
        else:
            rows[cells[0]] = dict(zip(COLUMNS, cells))
    if text.strip() and not rows:
        raise AgentError(f"CBSD's inventory: {answer.last_words}")
    return rows, broken - set(rows)


def kernel(node):
    """
    The names that run now, by emulator: {"jail": set, "bhyve": set}; one process.

    Raises AgentError when the kernel cannot be asked.  The database is only a cache of this and wrong after a crash.
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
    """Seconds that CBSD itself may need to stop the env: exec_timeout of a jail, hard_timeout of a VM, and a margin."""
    if row.get("emulator") == "bhyve":
        return 90
    seconds = row.get("exec_timeout") or ""
    return (int(seconds) if seconds.isdigit() and int(seconds) else 180) + 30


def start(node, row, timeout, cause=None, lock=None):
    verb = EMULATORS[row["emulator"]] + "start"
    return cbsd(
        node, verb, "inter=0", f"jname={row['jname']}", timeout=timeout, cause=cause, lock=lock
    )


def stop(node, row, cause, lock=None):
    verb = EMULATORS[row["emulator"]] + "stop"
    return cbsd(
        node,
        verb,
        "inter=0",
        f"jname={row['jname']}",
        timeout=stop_timeout(row),
        cause=cause,
        lock=lock,
    )


def command(node, row, argv, where, timeout, lock=None):
    """Run ``argv`` on the host, or in the jail by the kernel's jexec: CBSD's own would evaluate the words in a shell."""
    if where == "jail":
        if row.get("emulator") != "jail":
            return Result(1, f"{row['jname']} is a VM: no command can be run in it")
        argv = [node.conf["jexec"], row["jname"], *argv]
    return run(argv, timeout, None, lock)


# Addresses.  The rules are CBSD's own (geniplist, subr/nc.subr:482-555).

_ITEM = re.compile(r"(?:[A-Za-z0-9_.]+#)?([0-9A-Fa-f.:]+)(?:/[0-9]{1,3})?\Z")


def addresses(ip4_addr):
    """The facts that CBSD computes from ``ip4_addr``: ipv4_first, its public and private variants, and ipv6_first."""
    import ipaddress

    facts = dict.fromkeys(
        ("ipv4_first", "ipv4_first_public", "ipv4_first_private", "ipv6_first"), ""
    )
    for item in (ip4_addr or "").split(","):
        match = _ITEM.match(item.strip())
        try:
            address = ipaddress.ip_address(match.group(1)) if match else None
        except ValueError:
            address = None
        if address is None:
            continue  # DHCP, REALDHCP, 0, or nothing that could be an address
        text = match.group(1)
        if address.version == 6:
            facts["ipv6_first"] = facts["ipv6_first"] or text
            continue
        private = any(address in ipaddress.ip_network(net) for net in _PRIVATE)
        kind = "ipv4_first_private" if private else "ipv4_first_public"
        facts["ipv4_first"] = facts["ipv4_first"] or text
        facts[kind] = facts[kind] or text
    return facts


_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
