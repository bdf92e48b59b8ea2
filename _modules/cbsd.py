"""
CBSD jails and bhyve virtual machines, by one vocabulary.

An *env* is a jail or a VM that CBSD manages. Each function finds out which it is and picks CBSD's
command. This file is the only Salt code that runs ``cbsd``, and all that is odd about CBSD is
explained here.

A verb that changes something returns, whatever the verb::

    {"name": …, "emulator": "jail" | "bhyve", "status": …, "jid": …, "changed": bool,
     "old": …, "new": …}

``status`` is ``on``, ``off``, ``maintenance`` or ``slave`` (``None`` once the env is removed),
``jid`` is the jail id, or the process id of a VM, or ``None``. ``old`` and ``new`` hold only what
changed, as dicts; ``old`` is ``None`` for an env that did not exist before, ``new`` for one that no
longer does.

SaltInvocationError means that the caller is wrong, CommandExecutionError that the world is; that
one has CBSD's own words. The result of a change is what a new look at the env shows: CBSD exits 0
whatever happens. Verbs hold the lock of the env, ``<run>/lock/<env>``, so that only one start, stop
or restart of it is under way, whoever asks.

:configuration: ``cbsd_monit:lookup`` in the minion's configuration, grains or pillar moves a path:
``cbsd``, ``jls``,
    ``jexec``, ``vmm``, ``run``, ``rc_conf`` and ``workdir`` (default: ``cbsd_workdir`` of
    ``rc_conf``).
"""

import contextlib
import difflib
import fcntl
import fnmatch
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping

import salt.utils.args
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "cbsd"
__func_alias__ = {"exec_": "exec", "list_": "list", "set_": "set"}

_PATHS = {
    "cbsd": "/usr/local/bin/cbsd", "jexec": "/usr/sbin/jexec", "jls": "/usr/sbin/jls",
    "rc_conf": "/etc/rc.conf", "run": "/var/run/cbsd_monit", "vmm": "/dev/vmm", "workdir": None,
}  # fmt: skip
_PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
_PREFIXES = {"jail": "j", "bhyve": "b"}
_COLUMNS = "jname jid status emulator ip4_addr host_hostname path astart protected".split()
_QUERY_TIMEOUT = 60

# CBSD evaluates `$(…)` in arguments as root, splits them at `~`, expands `*`, and breaks its own
# database on `'` and `|`. No quoting survives that, hence whitelists.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\Z")
_KEY = re.compile(r"[a-z][a-z0-9_]*\Z")
_VALUE = re.compile(r"(?! )(?!.*  )(?!__slot__:)[ !#&()+,./0-9:;<=>@A-Z\]^_a-z{}-]*(?<! )\Z")
_GLOB = re.compile(r"[A-Za-z0-9_*?\[\]!-]+\Z")
_DIRECTORY = re.compile(r"/[A-Za-z0-9._/-]*\Z")
# They choose the env, the node or the form of the answer, which is for this module to do.
_RESERVED = set("emulator inter jid jname mode new node old quiet status workdir".split())

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NOISE = re.compile(r"(Execute master script: | :: /|\w+ done in \d+ seconds)")

# CBSD ignores SIGTERM and has children, and Salt's own time-out kills only the process it started.
# timeout(1) will not do: FreeBSD's waits for every descendant and in the end kills them all, the
# jail or VM just started included. So: a session of its own, SIGKILL for its process group, and
# files for the output, which is complete when the command ends and not when the last daemon closes
# it.
_RUNNER = r"""
import os, signal, sys
late = b""
files = []
for _ in "out", "err":
    path = "/tmp/cbsd." + os.urandom(16).hex()
    files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)
pid = os.fork()
if not pid:
    try:
        os.setsid()
        for number in signal.SIGPIPE, signal.SIGXFSZ:
            signal.signal(number, signal.SIG_DFL)
        for target, file in enumerate(files, 1):
            os.dup2(file, target)
        os.execv(sys.argv[2], sys.argv[2:])
    except OSError as error:
        os.write(2, f"{sys.argv[2]}: {error.strerror}\n".encode())
    os._exit(127)
def kill(*_):
    global late
    late = b"\0killed"
    for target in -pid, pid:  # the group, or the child that has not made it yet
        try:
            return os.kill(target, signal.SIGKILL)
        except OSError:
            pass
signal.signal(signal.SIGALRM, kill)
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
status = os.waitpid(pid, 0)[1]
signal.setitimer(signal.ITIMER_REAL, 0)
for stream, file in zip((sys.stdout.buffer, sys.stderr.buffer), files):
    at = 0
    while chunk := os.pread(file, 65536, at):
        stream.write(chunk)
        at += len(chunk)
sys.stderr.buffer.write(late)
sys.exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
"""


def __virtual__():
    # Paths may come from pillar alone, so a missing cbsd is an error of the call, not of the load.
    return __virtualname__


def _expect(valid, where, expected, got):
    if not valid:
        raise SaltInvocationError(f"cbsd.{where}: expected {expected}, got {got!r}")


def _check_names(verb, **names):
    for where, name in names.items():
        what = "the name of an env (1 to 100 of A-Z a-z 0-9 _ -, not beginning with -)"
        _expect(isinstance(name, str) and _NAME.match(name), f"{verb}: {where}", what, name)


def _check_seconds(verb, **durations):
    for where, seconds in durations.items():
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        valid = number and 0 < seconds < 1e6
        _expect(valid, f"{verb}: {where}", "a number of seconds above 0", seconds)


def _check_values(verb, values):
    """Return ``values`` as CBSD writes them (truth values as 1 or 0); raise all errors at once."""
    errors, texts = [], {}
    for key, value in salt.utils.args.clean_kwargs(**values).items():
        if not _KEY.match(key) or key in _RESERVED:
            errors.append(f"expected a CBSD setting (a-z 0-9 _), got {key!r}")
        elif isinstance(value, (str, int, float)):
            texts[key] = str(int(value)) if isinstance(value, bool) else str(value)
            if not _VALUE.match(texts[key]):
                errors.append(
                    f"{key}: expected printable ASCII without $ ` \\ \" ' ~ | * ? [ %, "
                    f"and no blanks that are leading, trailing or doubled, got {value!r}"
                )
        else:
            errors.append(f"{key}: expected text or a number, got {value!r}")
    if errors:
        raise SaltInvocationError(f"cbsd.{verb}: " + "; ".join(errors))
    return texts


def _rc_conf_workdir(path):
    """Return ``cbsd_workdir`` of ``path``. It is shell, and is read without being executed."""
    try:
        with open(path, encoding="utf-8", errors="replace") as rc_conf:
            lines = rc_conf.readlines()
    except OSError as err:
        what = f"{path} cannot be read: {err.strerror}; it names CBSD's workdir"
        raise CommandExecutionError(f"cbsd: {what}") from err
    workdir = None
    for line in lines:
        with contextlib.suppress(ValueError):
            for word in shlex.split(line, comments=True):
                if word.startswith("cbsd_workdir="):
                    workdir = word.partition("=")[2].partition(";")[0]
    if not workdir or not _DIRECTORY.match(workdir):
        raise CommandExecutionError(
            f"cbsd: {path} sets no usable cbsd_workdir ({workdir!r}); is CBSD initialised?"
        )
    return workdir


def paths():
    """
    Return the paths of this node, a dict: ``cbsd``, ``jexec``, ``jls``, ``rc_conf``, ``run``,
    ``vmm``, ``workdir``.

    Raises when CBSD's workdir is not known.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.paths
    """
    lookup = __salt__["config.get"]("cbsd_monit:lookup", {})
    _expect(
        isinstance(lookup, Mapping), "paths: cbsd_monit:lookup", "a mapping", type(lookup).__name__
    )
    found = {}
    for key, default in _PATHS.items():
        path = lookup.get(key) or default or _rc_conf_workdir(found["rc_conf"])
        valid = isinstance(path, str) and _DIRECTORY.match(path)
        _expect(valid, f"paths: {key}", "an absolute path of A-Z a-z 0-9 . _ - /", path)
        found[key] = path
    return found


def _run(where, argv, timeout, cause=None):
    """
    Run ``argv`` without a shell, in a session of its own, in ``/``, with an empty stdin.

    It gets nothing of the caller's environment: CBSD would take each variable for one of its own.
    Returns what ``cmd.run_all`` does, plus ``killed``.
    """
    if not os.access(argv[0], os.X_OK):
        raise CommandExecutionError(f"cbsd: {argv[0]} is missing or not executable on this node")
    environment = [
        f"PATH={_PATH}", "HOME=/root", "TERM=xterm", f"workdir={where['workdir']}", "NOCOLOR=1",
        "NOINTER=1", "NO_CBSD_HISTORY=yes",
    ]  # fmt: skip
    if cause:
        environment.append(f"CBSD_MONIT_CAUSE={cause}")
    ran = __salt__["cmd.run_all"](
        ["/usr/bin/env", "-i", *environment, sys.executable, "-ISc", _RUNNER, str(timeout), *argv],
        cwd="/",
        stdin="",
        python_shell=False,
        ignore_retcode=True,
        timeout=timeout + 30,  # only for a process that not even SIGKILL ends
    )
    killed = ran["stderr"].endswith("\0killed") or ran["stdout"].endswith(
        f"Timed out after {timeout + 30} seconds"
    )
    stderr = re.sub("\0killed$", "", ran["stderr"]).rstrip()
    done = {key: ran[key] for key in ("retcode", "stdout")}
    return {**done, "argv": argv, "stderr": stderr, "killed": killed}


def _words(ran):
    """Return a tool's output in one line, stdout first (CBSD's errors); secret values stay out."""
    outcome = "took too long and was killed" if ran["killed"] else f"exited {ran['retcode']}"
    lines = _ANSI.sub("", f"{ran['stdout']}\n{ran['stderr']}").splitlines()
    words = [line.strip() for line in lines if line.strip() and not _NOISE.match(line)]
    shown = ran["argv"][:3] if ran["argv"][0].endswith("jexec") else ran["argv"]
    command = " ".join(
        re.sub(r"^(?!jname=|old=|new=|inter=)(\w+)=.*", r"\1=…", word) for word in shown
    )
    return f"`{command}` {outcome}: {'; '.join(words[-10:]) or 'it said nothing'}"


def _query(where, argv):
    ran = _run(where, argv, _QUERY_TIMEOUT)
    # CBSD's SQL prints its own errors where rows are expected, and exits 0.
    if ran["retcode"] or ran["killed"] or ran["stdout"].startswith("cbsdsql:"):
        raise CommandExecutionError(f"cbsd: {_words(ran)}")
    return ran["stdout"].split("\n")


def _cbsd(where, emulator, verb, arguments, timeout, cause=None):
    return _run(where, [where["cbsd"], _PREFIXES[emulator] + verb, *arguments], timeout, cause)


def _inventory(where):
    """Return every env by name, from one query of the inventory and one look at the kernel."""
    for file in ("nc.inventory", "var/db/local.sqlite"):  # without them CBSD invents, and exits 0
        path = os.path.join(where["workdir"], file)
        if not os.access(path, os.R_OK):
            raise CommandExecutionError(
                f"cbsd: {path} is missing or not readable; is CBSD initialised?"
            )
    query = f"cbsdsqlro local SELECT {','.join(_COLUMNS)},jname FROM jails"
    records = list(_records(_query(where, [where["cbsd"], "-c", query])))
    jids = {}
    if records:
        for line in _query(where, [where["jls"], "jid", "name"]):
            jid, _, name = line.strip().partition(" ")
            if jid.isdigit():
                jids[name] = int(jid)
    vms = set()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        vms.update(os.listdir(where["vmm"]))
    rows = {}
    for fields in records:
        name = fields[0]
        if len(fields) != len(_COLUMNS) + 1 or "\n" in "".join(fields):
            row = _broken("one of its columns holds | or a line break, or is missing")
        elif not _NAME.match(name):
            row = _broken("its name is outside of what can be passed to CBSD safely")
        else:
            row = _row(dict(zip(_COLUMNS, fields)), jids, vms)
        rows[name] = row if name not in rows else _broken("it is in the inventory twice")
    return rows


def _records(lines):
    """Yield whole rows: each begins and ends with its name, whatever is in the values between."""
    pending = []
    for line in filter(None, lines):
        fields = line.split("|")
        if fields[0] == fields[-1] and len(fields) == len(_COLUMNS) + 1:
            if pending:
                yield "\n".join(pending).split("|")
            yield fields
            pending = []
            continue
        pending.append(line)
        fields = "\n".join(pending).split("|")
        if len(fields) > 1 and fields[0] == fields[-1]:
            yield fields
            pending = []
    if pending:
        yield "\n".join(pending).split("|")


def _broken(why):
    empty = dict.fromkeys(("emulator", "status", "running", "jid", *_COLUMNS[4:]))
    return {**empty, "broken": why}


def _row(record, jids, vms):
    """Return an env as this module shows it; the kernel gives jid and status, not stale CBSD."""
    name, emulator = record["jname"], record["emulator"]
    jid = int(record["jid"]) if record["jid"].isdigit() else 0
    if emulator == "jail":
        jid = jids.get(name)
        running = jid is not None
    elif emulator == "bhyve":
        running = name in vms
    else:  # qemu, xen: CBSD's own word has to do
        running = record["status"] == "1"
    status = "on" if running else "off"
    if record["status"] == "3":
        status = "maintenance"
    elif record["status"] == "2" and not (running and emulator == "bhyve"):
        status = "slave"
    return {
        "emulator": emulator, "status": status, "running": running,
        "jid": (jid or None) if running else None, "ip4_addr": record["ip4_addr"],
        "host_hostname": record["host_hostname"], "path": record["path"],
        "astart": record["astart"] == "1", "protected": record["protected"] == "1", "broken": None,
    }  # fmt: skip


def _look(where, verb, name):
    """Return the row of an env that can be acted on."""
    row = _inventory(where).get(name)
    if row is None:
        raise CommandExecutionError(f"cbsd.{verb}: no env {name} on this node")
    return _usable(verb, name, row)


def _usable(verb, name, row):
    if row["broken"]:
        raise CommandExecutionError(
            f"cbsd.{verb}: {name} is broken in CBSD's inventory: {row['broken']}"
        )
    if row["emulator"] not in _PREFIXES:
        raise CommandExecutionError(
            f"cbsd.{verb}: {name} is of emulator {row['emulator']}, not of jail or bhyve"
        )
    return row


def _settings(where, verb, name, row, keys):
    """Return the settings ``keys`` of an env, or all (as CBSD answers for an unknown name)."""
    values = {
        "emulator": row["emulator"], "jid": str(row["jid"] or 0), "jname": name,
        "status": row["status"],
    }  # fmt: skip
    asked = [key for key in keys if key not in values]
    if asked or not keys:
        ran = _cbsd(where, row["emulator"], "get", [f"jname={name}", *asked], _QUERY_TIMEOUT)
        if ran["retcode"] or ran["killed"]:
            raise CommandExecutionError(f"cbsd.{verb}: {name}: {_words(ran)}")
        for line in ran["stdout"].splitlines():
            key, colon, value = line.partition(":")
            if colon and _KEY.match(key):
                values.setdefault(key, value.strip())
    for key in keys:
        if key not in values:
            near = difflib.get_close_matches(key, _settings(where, verb, name, row, ()), 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise SaltInvocationError(
                f"cbsd.{verb}: {name}: expected a setting of this env{hint}, got {key!r}"
            )
    return {key: values[key] for key in keys} if keys else values


def _same(key, wanted, found):
    """Return whether CBSD stores ``wanted`` as ``found``: as bytes; ``vm_ram`` counts megabytes."""
    size = re.match(r"(\d+)([kmgt]?)b?\Z", wanted.lower())
    if wanted == found or not size or not found.isdigit():
        return wanted == found
    unit = size[2] or ("m" if key == "vm_ram" else "")
    return bool(unit) and int(size[1]) << 10 * (1 + "kmgt".index(unit)) == int(found)


@contextlib.contextmanager
def _changing(verb, timeout, lock_timeout, **names):
    """Check what every verb is given, hold the locks of the envs, and yield where things are."""
    _check_names(verb, **names)
    _check_seconds(verb, timeout=timeout, lock_timeout=lock_timeout)
    where = paths()
    with _locked(where, verb, lock_timeout, *names.values()):
        yield where


@contextlib.contextmanager
def _locked(where, verb, wait, *names):
    """Hold the locks of these envs."""
    directory = os.path.join(where["run"], "lock")
    deadline = time.monotonic() + wait
    with contextlib.ExitStack() as locks:
        try:
            for path in (where["run"], directory):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
            for name in sorted(set(names)):
                lock = _acquire(os.path.join(directory, name), deadline)
                if isinstance(lock, str):
                    holder = f"process {lock}" if lock else "an unknown process"
                    raise CommandExecutionError(
                        f"cbsd.{verb}: {name} is locked by {holder}; gave up after {wait} s"
                    )
                locks.callback(_release, lock)
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()} cbsd.{verb}\n".encode(), 0)
        except OSError as err:
            raise CommandExecutionError(
                f"cbsd.{verb}: cannot lock in {directory}: {err.strerror}"
            ) from err
        yield


def _acquire(path, deadline):
    """Return a locked file descriptor, or who held the lock until ``deadline``, as text."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        holder = ""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Otherwise the next one would lock another file.
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except BlockingIOError:
            holder = os.pread(lock, 200, 0).decode("ascii", "replace").strip()
        except FileNotFoundError:
            pass
        os.close(lock)
        if time.monotonic() >= deadline:
            return holder
        time.sleep(0.1)


def _release(lock):
    os.ftruncate(lock, 0)
    os.close(lock)


def _report(name, before, after, **changes):
    """Return the common shape; what changed is ``changes``, or the difference of the two rows."""
    row = after or {"emulator": before["emulator"], "status": None, "jid": None}
    if not changes:
        keys = [key for key in ("status", "jid") if before[key] != after[key]]
        sides = (("old", before), ("new", after))
        changes = {side: {key: rows[key] for key in keys} for side, rows in sides}
    shown = {key: row[key] for key in ("emulator", "status", "jid")}
    return {"name": name, **shown, "changed": changes["old"] != changes["new"], **changes}


def _started(where, verb, name, row, timeout):
    if row["running"]:
        return row
    if row["status"] != "off":
        raise CommandExecutionError(
            f"cbsd.{verb}: {name} is in status {row['status']} and is not started"
        )
    ran = _cbsd(where, row["emulator"], "start", ["inter=0", f"jname={name}"], timeout)
    after = _look(where, verb, name)
    if ran["killed"] or not after["running"]:  # CBSD exits 0 for a jail that the kernel refused
        raise CommandExecutionError(
            f"cbsd.{verb}: {name} did not start, it is {after['status']} now; {_words(ran)}"
        )
    return after


def _stopped(where, verb, name, row, timeout, cause=None):
    if not row["running"]:
        return row
    ran = _cbsd(where, row["emulator"], "stop", ["inter=0", f"jname={name}"], timeout, cause)
    after = _look(where, verb, name)
    if ran["killed"] or after["running"]:
        raise CommandExecutionError(
            f"cbsd.{verb}: {name} did not stop, it is {after['status']} now; {_words(ran)}"
        )
    return after


def list_(name="*", emulator=None):
    """
    Return the envs of this node, a dict of dicts by name.

    Each has ``emulator``, ``status`` (``on``, ``off``, ``maintenance``, ``slave``), ``running``
    (whether the kernel runs it), ``jid``, ``ip4_addr``, ``host_hostname``, ``path``, ``astart``,
    ``protected`` and ``broken``: ``None``, or why CBSD's row of that env cannot be read; the rest
    is ``None`` then. An env that is neither jail nor bhyve has the state that CBSD recorded last.
    Runs two processes, however many envs there are.

    name
        Only envs whose name matches this glob.
    emulator
        Only envs of this emulator, such as ``jail`` or ``bhyve``.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.list 'web*' emulator=jail
    """
    _expect(isinstance(name, str) and _GLOB.match(name), "list: name", "a glob of env names", name)
    known = emulator is None or (isinstance(emulator, str) and re.match(r"[a-z0-9-]+\Z", emulator))
    _expect(known, "list: emulator", "an emulator such as jail or bhyve", emulator)
    return {
        env: row
        for env, row in sorted(_inventory(paths()).items())
        if name in ("*", env) or fnmatch.fnmatchcase(env, name)
        if emulator in (None, row["emulator"])
    }


def status(name):
    """
    Return ``on``, ``off``, ``maintenance`` or ``slave``, or ``None`` if there is no such env.

    Raises when CBSD or the kernel cannot be asked: "no such env" and "no answer" are different
    facts.

    name
        Name of the jail or VM.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.status web1
    """
    _check_names("status", name=name)
    row = _inventory(paths()).get(name)
    if row and row["broken"]:
        raise CommandExecutionError(
            f"cbsd.status: {name} is broken in CBSD's inventory: {row['broken']}"
        )
    return row and row["status"]


def get(name, *keys):
    """
    Return settings of an env, a dict of text by CBSD's names, or ``None`` if there is no such env.

    Raises SaltInvocationError for a setting that this env does not have.

    name
        Name of the jail or VM.
    keys
        Settings; without any, all of them.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.get web1 ip4_addr astart
    """
    _check_names("get", name=name)
    for key in keys:
        _expect(
            isinstance(key, str) and _KEY.match(key), "get: keys", "a CBSD setting (a-z 0-9 _)", key
        )
    where = paths()
    row = _inventory(where).get(name)
    return row and _settings(where, "get", name, _usable("get", name, row), keys)


def set_(name, timeout=60, **values):
    """
    Change settings of an env, and return the common shape with the settings in ``old`` and ``new``.

    Nothing is run when all of them are so already. Raises SaltInvocationError for a setting that
    this env does not have (CBSD would ignore it), CommandExecutionError when CBSD did not take one
    over.

    name
        Name of the jail or VM.
    timeout
        Seconds until CBSD is killed.
    values
        Settings by CBSD's names: text, numbers, or truth values for CBSD's 1 and 0.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.set web1 astart=0 host_hostname=web1.example.net
    """
    _check_names("set", name=name)
    _check_seconds("set", timeout=timeout)
    wanted = _check_values("set", values)
    _expect(wanted, "set: values", "at least one setting", {})
    where = paths()
    row = _look(where, "set", name)
    old = _settings(where, "set", name, row, wanted)
    new = old
    if any(not _same(key, value, old[key]) for key, value in wanted.items()):
        ran = _cbsd(where, row["emulator"], "set", [f"jname={name}", *_pairs(wanted)], timeout)
        new = _settings(where, "set", name, row, wanted)
        refused = [
            f"{key}={value} (it is {new[key]!r})"
            for key, value in wanted.items()
            if new[key] == old[key] and not _same(key, value, new[key]) and value.upper() != "DHCP"
        ]
        if refused or ran["retcode"] or ran["killed"]:
            what = f"expected {', '.join(refused)}; " if refused else ""
            raise CommandExecutionError(f"cbsd.set: {name}: {what}{_words(ran)}")
    changed = [key for key in wanted if old[key] != new[key]]
    old, new = ({key: side[key] for key in changed} for side in (old, new))
    return _report(name, row, row, old=old, new=new)


def _pairs(values):
    return [f"{key}={value}" for key, value in values.items()]


def start(name, timeout=300, lock_timeout=30):
    """
    Start an env and return the common shape. One that runs already is left alone.

    Raises when it does not run afterwards, with CBSD's own words, and for an env in maintenance or
    of a slave.

    name
        Name of the jail or VM.
    timeout, lock_timeout
        Seconds until CBSD is killed, and for which to wait for the env's lock.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.start web1
    """
    with _changing("start", timeout, lock_timeout, name=name) as where:
        before = _look(where, "start", name)
        return _report(name, before, _started(where, "start", name, before, timeout))


def stop(name, timeout=300, lock_timeout=30):
    """
    Stop an env and return the common shape. One that does not run is left alone.

    Raises when it still runs afterwards, with CBSD's own words.

    name
        Name of the jail or VM.
    timeout, lock_timeout
        Seconds until CBSD is killed (a jail may take 180), and for which to wait for the env's
        lock.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.stop web1
    """
    with _changing("stop", timeout, lock_timeout, name=name) as where:
        before = _look(where, "stop", name)
        return _report(name, before, _stopped(where, "stop", name, before, timeout))


def restart(name, timeout=300, lock_timeout=30):
    """
    Stop an env, look, start it, and return the common shape, always as a change. A stopped one is
    started.

    CBSD's own restart ignores a jail that has died and succeeds whatever happens, so it is not
    used.

    name
        Name of the jail or VM.
    timeout, lock_timeout
        Seconds until CBSD is killed, for stop and start each, and for which to wait for the env's
        lock.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.restart web1
    """
    with _changing("restart", timeout, lock_timeout, name=name) as where:
        before = _look(where, "restart", name)
        if before["status"] not in ("on", "off"):
            raise CommandExecutionError(
                f"cbsd.restart: {name} is in status {before['status']} and is left alone"
            )
        stopped = _stopped(where, "restart", name, before, timeout, "restart")
        after = _started(where, "restart", name, stopped, timeout)
        return {**_report(name, before, after), "changed": True}


def create(name, emulator="jail", timeout=3600, lock_timeout=30, **values):
    """
    Create an env and return the common shape. One of that name, of whatever emulator, is an error.

    name
        Name of the jail or VM.
    emulator
        ``jail`` or ``bhyve``.
    timeout, lock_timeout
        Seconds until CBSD is killed (it may fetch a base system), and for which to wait for the
        env's lock.
    values
        Settings by CBSD's names: text, numbers, or truth values for CBSD's 1 and 0. ``runasap=1``
        starts it.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.create web1 ip4_addr=10.0.0.7/24 astart=1
    """
    known = isinstance(emulator, str) and emulator in _PREFIXES
    _expect(known, "create: emulator", "jail or bhyve", emulator)
    wanted = _check_values("create", values)
    with _changing("create", timeout, lock_timeout, name=name) as where:
        _look_free(where, "create", name)
        arguments = ["inter=0", f"jname={name}", *_pairs(wanted)]
        ran = _cbsd(where, emulator, "create", arguments, timeout)
        return _created(where, "create", name, ran, wanted.get("runasap", "0") != "0")


def _look_free(where, verb, name):
    row = _inventory(where).get(name)
    if row:
        raise CommandExecutionError(
            f"cbsd.{verb}: {name} exists already (emulator {row['emulator']})"
        )


def _created(where, verb, name, ran, running=False):
    """Report a new env; here the exit code counts: a failure may leave a row behind."""
    row = _inventory(where).get(name)
    failed = ran["killed"] or ran["retcode"] or not row or row["broken"]
    if failed or (running and not row["running"]):
        now = f"it is {row['status']} now" if row else "it is not in the inventory"
        raise CommandExecutionError(f"cbsd.{verb}: {name}: {now}; {_words(ran)}")
    return _report(name, None, row, old=None, new={**row, "name": name})


def remove(name, timeout=600, lock_timeout=30):
    """
    Remove an env with all its data, running or not, and return the common shape.

    Raises when anything of it is left, as for an env that is ``protected``.

    name
        Name of the jail or VM.
    timeout, lock_timeout
        Seconds until CBSD is killed, and for which to wait for the env's lock.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.remove web1
    """
    with _changing("remove", timeout, lock_timeout, name=name) as where:
        before = _look(where, "remove", name)
        ran = _cbsd(where, before["emulator"], "remove", [f"jname={name}"], timeout)
        directory = os.path.join(where["workdir"], "jails-system", name)
        left = ["its row in the inventory"] if name in _inventory(where) else []
        left += [directory] if os.path.lexists(directory) else []
        if ran["killed"] or left:
            raise CommandExecutionError(
                f"cbsd.remove: {name}: left: {' and '.join(left) or 'nothing'}; {_words(ran)}"
            )
        return _report(name, before, None, old={**before, "name": name}, new=None)


def rename(old, new, restart=False, timeout=600, lock_timeout=30):
    """
    Rename an env and return the common shape under the new name. Its hostname and addresses stay.

    old
        Name of the jail or VM.
    new
        Its new name, which no env has.
    restart
        Stop a running env first and start it afterwards. Without it a running env is an error.
    timeout, lock_timeout
        Seconds until CBSD is killed, for stop, rename and start each, and for which to wait for the
        locks.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.rename web1 www1 restart=True
    """
    _expect(isinstance(restart, bool), "rename: restart", "True or False", restart)
    with _changing("rename", timeout, lock_timeout, old=old, new=new) as where:
        before = _look(where, "rename", old)
        _look_free(where, "rename", new)
        if before["running"] and not (restart and before["status"] == "on"):
            now = f"running (status {before['status']})"
            raise CommandExecutionError(
                f"cbsd.rename: {old} is {now}: stop it first, or pass restart=True"
            )
        _stopped(where, "rename", old, before, timeout, "rename")
        ran = _cbsd(where, before["emulator"], "rename", [f"old={old}", f"new={new}"], timeout)
        rows = _inventory(where)
        if ran["killed"] or old in rows or new not in rows:
            if before["running"] and old in rows:
                with contextlib.suppress(CommandExecutionError):
                    _started(where, "rename", old, rows[old], timeout)
            raise CommandExecutionError(f"cbsd.rename: {old} is not {new} now; {_words(ran)}")
        after = (
            _started(where, "rename", new, rows[new], timeout) if before["running"] else rows[new]
        )
        return _report(new, before, after, old={"name": old}, new={"name": new})


def clone(old, new, host_hostname=None, ip4_addr=None, timeout=3600, lock_timeout=30):
    """
    Clone a stopped env and return the common shape of the clone.

    old
        Name of the jail or VM.
    new
        Name of the clone, which no env has.
    host_hostname
        Host name of the clone; without it ``new`` in the domain of ``old``.
    ip4_addr
        Its addresses. Without it CBSD gives it those of ``old``, and one of the two has to be
        changed.
    timeout, lock_timeout
        Seconds until CBSD is killed, and for which to wait for the env's lock.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.clone web1 web2 ip4_addr=10.0.0.8/24
    """
    given = {"host_hostname": host_hostname, "ip4_addr": ip4_addr}
    given = {key: value for key, value in given.items() if value is not None}
    wanted = _check_values("clone", given)
    with _changing("clone", timeout, lock_timeout, old=old, new=new) as where:
        source = _look(where, "clone", old)
        _look_free(where, "clone", new)
        if "host_hostname" not in wanted:
            _, dot, domain = (source["host_hostname"] or "").partition(".")
            wanted.update(_check_values("clone", {"host_hostname": f"{new}{dot}{domain}"}))
        arguments = [f"old={old}", f"new={new}", *_pairs(wanted)]
        ran = _cbsd(where, source["emulator"], "clone", arguments, timeout)
        return _created(where, "clone", new, ran)


def exec_(name, command, timeout=300):
    """
    Run a program in a running jail and return a dict of ``retcode``, ``stdout`` and ``stderr``.

    There is no shell, neither here nor in the jail, unless ``command`` names one, and no CBSD,
    which would evaluate the arguments. Raises for a VM, for a jail that does not run, and when the
    time is up; an exit code is no error.

    name
        Name of the jail.
    command
        A list of program and arguments, or a text that is split as a shell would, but not expanded.
    timeout
        Seconds before the program and its children are killed.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd.exec web1 'service nginx status'
        salt '*' cbsd.exec web1 '[/bin/sh, -c, "ps ax | wc -l"]'
    """
    _check_names("exec", name=name)
    _check_seconds("exec", timeout=timeout)
    argv = command
    if isinstance(command, str):
        try:
            argv = shlex.split(command)
        except ValueError as err:
            raise SaltInvocationError(f"cbsd.exec: command: {err}, got {command!r}") from err
    words = isinstance(argv, (list, tuple)) and [
        str(word) if type(word) in (int, float) else word for word in argv
    ]
    valid = words and words[0] and all(isinstance(word, str) and "\0" not in word for word in words)
    _expect(valid, "exec: command", "a program and its arguments, as a list or a text", command)
    where = paths()
    row = _look(where, "exec", name)
    if row["emulator"] != "jail":
        raise CommandExecutionError(
            f"cbsd.exec: {name} is a VM, and there is no way into it from here; use ssh"
        )
    if not row["running"]:
        raise CommandExecutionError(f"cbsd.exec: {name} is not running (status {row['status']})")
    # By its id: jexec takes a name that is all digits for one.
    ran = _run(where, [where["jexec"], str(row["jid"]), *words], timeout)
    if ran["killed"]:
        raise CommandExecutionError(f"cbsd.exec: {name}: {_words(ran)}")
    return {key: ran[key] for key in ("retcode", "stdout", "stderr")}
