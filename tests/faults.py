"""
Faults at a chosen point: the agent is killed there, stopped, or told that the disk is full.

The product runs unchanged:

    faults = Faults(folder)          # faults.python is the node's Python
    faults.arm()                     # the next agent is traced …
    for point in faults.points(): …  # … and went through these points
    faults.arm("kill", point)        # the next agent dies there

A point is a call with an effect outside the process (a write, a lock, a rename, a program started,
bytes to a socket …), named by the call and the lines of the agent that led to it, innermost first,
and counted: `Point(where, number)`.  So the same fault can be had again, whatever the other threads
do meanwhile.  A write or a send dies half done.

Run as a program (`faults.py PLAN AGENT …`) this file is the agent under a plan.
"""

import builtins
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import runpy
import signal
import socket
import stat
import subprocess
import sys
import syslog
import threading
import time
from typing import NamedTuple

MODES = ("trace", "kill", "stop", "enospc", "full")
# What needs room on a disk; the others cannot fail with ENOSPC.
SPACE = (
    "open",
    "write",
    "pwrite",
    "fsync",
    "ftruncate",
    "mkdir",
    "symlink",
    "rename",
    "replace",
    "log",
)
# What another process cannot see after this one died.
TRACELESS = ("flock", "fsync", "connect")
# What a kill interrupts in its middle.
HALVES = ("write", "pwrite", "sendall")
_WRAPPER = """\
#!/bin/sh
# The node's Python.  The next agent with the command of a plan runs under tests/faults.py, once.
echo "$$ $4" >> '{folder}/started'
if [ -e '{folder}/plan' ] && [ "$4" = "$(cat '{folder}/command')" ] &&
  mv '{folder}/plan' '{folder}/taken' 2>/dev/null; then
  shift   # -IS
  exec '{python}' -IS '{here}' '{folder}/taken' "$@"
fi
exec '{python}' "$@"
"""


class Point(NamedTuple):
    """
    The ``number``-th time (from 1) that a call is reached the way ``where`` says.

    ``on`` is what it works on as it was traced: a path, or the words of a command.
    """

    where: str
    number: int
    on: str = ""

    @property
    def call(self):
        return self.where.split(" ", 1)[0]


class Faults:
    """
    Faults of the agents of one node.

    ``folder`` is empty or new; the plan, the trace and the Python to use lie in it.  ``watch`` says
    what a kill could leave behind: {"folders": [path], "but": [name], "monit": its socket}.
    """

    def __init__(self, folder, python=sys.executable, watch=None):
        self.folder, self.watch = pathlib.Path(folder), watch
        self.folder.mkdir(parents=True, exist_ok=True)
        self.python = self.folder / "python"
        self.python.write_text(
            _WRAPPER.format(folder=self.folder, python=python, here=os.path.abspath(__file__))
        )
        self.python.chmod(0o755)

    def arm(self, mode="trace", point=None, command="run", watch=False):
        """
        The next agent that is started with ``command`` meets the fault ``mode`` at ``point``.

        With ``watch`` the trace also holds, for each point, a digest of what a kill would leave.
        """
        assert mode in MODES and (point is not None or mode == "trace")
        for name in ("taken", "trace", "hit"):
            (self.folder / name).unlink(missing_ok=True)
        plan = {"mode": mode, "where": point and point.where, "number": point and point.number}
        plan["watch"] = self.watch if watch else None
        (self.folder / "command").write_text(command)
        (self.folder / "plan.new").write_text(json.dumps(plan))
        (self.folder / "plan.new").rename(self.folder / "plan")

    def disarm(self):
        """Take back what no agent met."""
        (self.folder / "plan").unlink(missing_ok=True)

    def hit(self):
        """The pid of the agent that met the fault, or None."""
        path = self.folder / "hit"
        return int(path.read_text()) if path.exists() and path.read_text() else None

    def trace(self):
        """Every point that the agent passed, in order."""
        return [point for point, _ in self._traced()]

    def _traced(self):
        """[(point, digest of what a kill there would leave behind)], in order."""
        path, count, found = self.folder / "trace", {}, []
        for line in path.read_text().splitlines() if path.exists() else ():
            where, on, left = line.split("\t")
            count[where] = count.get(where, 0) + 1
            found.append((Point(where, count[where], on), left))
        return found

    def new(self, points):
        """
        Those of ``points`` at which a kill leaves something else behind than at the one before.

        All of them with CBSD_MONIT_POINTS=all.  What dies half done always leaves something new.
        """
        if os.environ.get("CBSD_MONIT_POINTS") == "all":
            return list(points)
        lefts, before, found = dict(self._traced()), None, []
        assert all(lefts.values()), "it was not traced with ``watch``"
        for point in points:
            if lefts[point] != before or point.call in HALVES:
                found.append(point)
            before = lefts[point]
        return found

    def every(self):
        """
        All points but those right after a call that leaves nothing: to die there is to die before.

        A write is always one: it dies half done.
        """
        trace = self.trace()
        before = dict(zip(trace[1:], trace))
        return [
            p
            for p in trace
            if p not in before or before[p].call not in TRACELESS or p.call in HALVES
        ]

    def points(self):
        """Of ``every`` the first and the last of each way to each call; the others repeat it."""
        last = {p.where: p for p in self.trace()}
        return [p for p in self.every() if p.number == 1 or p == last[p.where]]

    def started(self, command="run"):
        """The pids of all agents that were started with ``command``, oldest first."""
        path = self.folder / "started"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [int(pid) for pid, *said in lines if said == [command]]

    def run(self, agent, config, command, *args, mode="trace", point=None, watch=False, timeout=60):
        """Run one command of the agent to its end under a plan; a CompletedProcess with texts."""
        self.arm(mode, point, command, watch)
        argv = [str(self.python), "-IS", str(agent), str(config), command, *args]
        env = {
            "PATH": "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin",
            "HOME": "/root",
        }
        options = {
            "stdin": subprocess.DEVNULL,
            "capture_output": True,
            "text": True,
            "check": False,
        }
        return subprocess.run(argv, env=env, timeout=timeout, **options)


# What runs in the agent's process.


class Plan:
    """What is to happen in this process; the calls of Python files in ``folders`` count."""

    def __init__(self, path, *folders):
        with open(path, encoding="utf-8") as handle:
            said = json.load(handle)
        self.mode, self.where, self.number = said["mode"], said["where"], said["number"]
        self.folders = tuple(os.path.join(folder, "") for folder in folders)
        folder = os.path.dirname(path)
        self.trace = os.open(
            os.path.join(folder, "trace"),
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
            0o600,
        )
        self.hit = os.path.join(folder, "hit")
        self.seen, self.lock, self.full = 0, threading.RLock(), False
        self.watch = said["watch"]
        self.real = {
            "write": os.write,
            "open": os.open,
            "kill": os.kill,
            "close": os.close,
            "mkdir": os.mkdir,
            "connect": socket.socket.connect,
            "sendall": socket.socket.sendall,
        }

    def _where(self, call):
        frame, lines = sys._getframe(1), []
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(self.folders):
                lines.append(
                    f"{os.path.basename(code.co_filename)}:{code.co_name}:{frame.f_lineno}"
                )
            frame = frame.f_back
        return " ".join([call, *lines])

    def _left(self, call):
        """A digest of what a kill would leave now: files, our children, monit's status."""
        found = hashlib.sha256()
        for top in self.watch["folders"]:
            for folder, folders, names in os.walk(top):
                folders[:] = sorted(set(folders) - set(self.watch["but"]))
                found.update(repr((folder, folders)).encode())
                for name in sorted(set(names) - set(self.watch["but"])):
                    found.update(_content(os.path.join(folder, name)))
        for task in sorted(os.listdir("/proc/self/task")):
            found.update(_content(f"/proc/self/task/{task}/children"))
        if call not in HALVES:  # monit hears one at a time, and now it is us
            found.update(self._status())
        return found.hexdigest()[:16]

    def _status(self):
        with socket.socket(socket.AF_UNIX) as monit:
            monit.settimeout(0.2)
            try:
                self.real["connect"](monit, self.watch["monit"])
                self.real["sendall"](monit, b"GET /_status?format=xml HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: monit.recv(65536), b""))
            except OSError:  # it listens to another thread of ours: take it for another state
                return str(time.monotonic()).encode()
        return b"".join(
            re.findall(rb"<(?:name|status|monitor|pendingaction|incarnation)>[^<]*", answer)
        )

    def point(self, call, on="", half=None, space=True):
        """
        One point: returns, raises OSError or does not return, as the plan says.

        ``half`` does half of the call; without ``space`` this one would succeed on a full disk.
        """
        where = self._where(call)
        if where == call:
            return  # not the agent's: the interpreter, as it begins and ends
        with self.lock:
            left = self._left(call) if self.watch else ""
            line = "\t".join([where, " ".join(_named(on).split()), left])
            self.real["write"](self.trace, (line + "\n").encode())
            if self.full and call in SPACE and space:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.seen += where == self.where
            if self.mode == "trace" or where != self.where or self.seen != self.number:
                return
            mark = self.real["open"](self.hit, os.O_WRONLY | os.O_CREAT, 0o600)
            self.real["write"](mark, str(os.getpid()).encode())
            self.real["close"](mark)
            if self.mode in ("enospc", "full"):
                self.full = self.mode == "full"
                if not space:
                    return
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if half and self.mode == "kill":
                half()
            self.real["kill"](
                os.getpid(), signal.SIGKILL if self.mode == "kill" else signal.SIGSTOP
            )


def _named(target):
    """The path of a file or descriptor, or the words of a command."""
    target = target.fileno() if hasattr(target, "fileno") else target
    if isinstance(target, int):
        try:
            return os.readlink(f"/proc/self/fd/{target}")
        except OSError:
            return ""
    return " ".join(map(str, target)) if isinstance(target, (list, tuple)) else str(target)


def _content(path):
    """Everything about a file that a reader could see."""
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            return repr((path, os.readlink(path))).encode()
        seen = repr((path, info.st_mode, info.st_uid, info.st_size)).encode()
        if stat.S_ISREG(info.st_mode):
            with open(path, "rb") as handle:
                seen += handle.read()
            if not path.startswith("/proc/"):
                seen += str(info.st_mtime_ns).encode()
        return seen
    except OSError as err:
        return repr(err).encode()


class _Written:
    """A file opened for writing; its content goes out when it is flushed or closed."""

    def __init__(self, plan, handle):
        self._plan, self._handle, self._waiting = plan, handle, []

    def __getattr__(self, name):
        return getattr(self._handle, name)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.flush()
        finally:
            self._handle.close()

    def write(self, data):
        self._waiting.append(data)

    def flush(self):
        if self._waiting:
            data = self._waiting[0][:0].join(self._waiting)
            self._waiting = []
            self._plan.point("write", self._handle, lambda: self._out(data[: len(data) // 2]))
            self._out(data)

    def _out(self, data):
        self._handle.write(data)
        self._handle.flush()


class _Log:
    """Standard error, the agent's log."""

    def __init__(self, plan, stream):
        self._plan, self._stream = plan, stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def flush(self):
        self._plan.point("log")
        self._stream.flush()


def install(plan):
    """Put ``plan`` between the agent and every call that has an effect outside its process."""

    def before(holder, name, needed=lambda *args, **more: True, call=None):
        real = getattr(holder, name)

        def wrapped(*args, **more):
            if needed(*args, **more):
                room = name not in ("open", "mkdir") or not exists(*args, **more)
                plan.point(call or name, args[0], space=room)
            return real(*args, **more)

        setattr(holder, name, wrapped)

    def sending(holder, name):
        real = getattr(holder, name)

        def wrapped(target, data, *args):
            plan.point(name, target, lambda: real(target, data[: len(data) // 2], *args))
            return real(target, data, *args)

        setattr(holder, name, wrapped)

    for name in (
        *"fsync replace rename unlink remove mkdir rmdir symlink link truncate ftruncate".split(),
        *("chmod", "chown", "fchown"),
    ):
        before(os, name)
    # Of a file that has not got its name yet it is nobody's business.
    before(os, "fchmod", lambda fd, *_: stat.S_ISDIR(os.fstat(fd).st_mode))
    before(os, "kill")
    before(os, "killpg")
    before(os, "open", lambda path, flags, *_, **__: flags & (os.O_CREAT | os.O_TRUNC))
    before(fcntl, "flock")
    before(syslog, "syslog")
    before(socket.socket, "connect")
    for name in HALVES:
        sending(socket.socket if name == "sendall" else os, name)

    def writing(holder, name):
        real = getattr(holder, name)

        def opening(path, mode="r", *args, **more):
            if not set(mode) & set("wax+") or isinstance(path, int) and holder is builtins:
                return real(path, mode, *args, **more)
            if holder is builtins:
                plan.point("open", path, space=not exists(path))
            return _Written(plan, real(path, mode, *args, **more))

        setattr(holder, name, opening)

    def exists(path, *_, dir_fd=None, **__):
        try:
            os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    spawn = subprocess.Popen._execute_child

    def spawned(*args, **more):
        plan.point("spawn", args[1])
        spawn(*args, **more)
        plan.point("spawned", args[1])

    subprocess.Popen._execute_child = spawned
    for holder, name in ((builtins, "open"), (os, "fdopen")):
        writing(holder, name)
    sys.stderr = _Log(plan, sys.stderr)


def main(plan, agent, *args):
    install(Plan(plan, agent))
    sys.argv = [agent, *args]
    runpy.run_path(agent, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
