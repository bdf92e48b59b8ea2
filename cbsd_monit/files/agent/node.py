"""The node: its configuration, its directories, its locks and its clock."""

import contextlib
import errno
import fcntl
import json
import os
import re
import subprocess
import time

import files
from clock import Moment

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\Z")  # of an env or a check
DEFAULT_BUDGET = {
    "max_concurrent": 1,
    "storm_threshold": 0.5,
    "storm_min": 5,
    "storm_window": 120,
    "boot_grace": 600,
}


class AgentError(Exception):
    """What an operator has to know, in one sentence."""


class Busy(AgentError):
    """Somebody else holds the lock."""


class Node:
    """
    The node's configuration (docs/contract.md section 4), and the paths that follow from it.

    Raises AgentError if the file ``path`` cannot be used.
    """

    def __init__(self, path):
        try:
            with open(path, encoding="utf-8") as handle:
                conf = json.load(handle)
        except (OSError, ValueError) as err:
            raise AgentError(f"cannot read {path}: {err}; run the formula first") from None
        if conf.get("schema") != SCHEMA:
            raise AgentError(f"{path}: expected schema {SCHEMA}, got {conf.get('schema')!r}")
        self.use(conf)
        for path in (self.state, self.run, *map(self.in_state, ("inbox", "envs", "generations"))):
            os.makedirs(path, 0o700, exist_ok=True)
        for name in ("lock", "dead"):
            os.makedirs(os.path.join(self.run, name), 0o700, exist_ok=True)
        self.boot = self._boot_id()

    def use(self, conf):
        """Take ``conf`` as the node's configuration."""
        self.conf = conf
        self.name = conf["node"]
        self.workdir = conf["workdir"]
        self.state = conf["state"]
        self.run = conf["run"]
        self.poll = conf.get("poll", 10)
        self.policy = conf.get("policy", {})
        self.budget = {**DEFAULT_BUDGET, **conf.get("budget", {})}
        self.silences = conf.get("silences", [])
        self.head = conf.get("head", "")  # published before all envs
        self.wake = os.path.join(conf["libexec"], "wake")

    def in_state(self, *names):
        return os.path.join(self.state, *names)

    def in_run(self, *names):
        return os.path.join(self.run, *names)

    def sysdir(self, env):
        """The directory of ``env`` in CBSD."""
        return os.path.join(self.workdir, "jails-system", env)

    def dead_marker(self, env):
        """The file that makes monit's check of ``env`` fail while it is there."""
        return self.in_run("dead", env)

    def _boot_id(self):
        """An id that changes with each boot, whatever the clock does."""
        for path in (self.conf.get("boot_id"), "/proc/sys/kernel/random/boot_id"):
            if path:
                with contextlib.suppress(OSError), open(path, encoding="ascii") as handle:
                    return handle.read().strip()
        argv = ["/sbin/sysctl", "-n", "kern.boot_id"]
        found = subprocess.run(argv, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.strip()
        path = self.in_run("boot_id")  # rc.d/cleanvar empties /var/run at boot
        with contextlib.suppress(OSError), open(path, encoding="ascii") as handle:
            return handle.read().strip()
        files.write(path, f"{time.time():.6f}", durable=False)
        return self._boot_id()

    # Time: within a boot the monotonic clock counts, and no jump of the clock changes a back-off.

    def now(self):
        """This Moment."""
        return Moment(time.time(), time.monotonic(), self.boot)

    def stamp(self):
        return self.now().stamp()

    def age(self, stamp):
        return self.now().age(stamp)

    # Locks, all flock(2): the kernel releases them whatever happens to this process.

    @contextlib.contextmanager
    def lock(self, path, wait=0.0, why=""):
        """
        Hold the lock file ``path``, waiting at most ``wait`` seconds for it; raises Busy.

        Yields its descriptor. ``why`` is written into the file, for people.
        """
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + wait
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as err:
                    if err.errno not in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
                        raise
                    if time.monotonic() >= until:
                        holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
                        raise Busy(f"{os.path.basename(path)} is held by {holder or '?'}") from None
                    time.sleep(0.02)
            with contextlib.suppress(OSError):  # on a full disk it is held all the same
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()} {why}\n".encode(), 0)
            yield handle
        finally:
            os.close(handle)

    def pass_lock(self, wait=60):
        """Hold the lock under which all records are changed; only for moments."""
        return self.lock(self.in_run("pass.lock"), wait=wait, why="pass")

    def env_lock(self, env, why, wait=0.0):
        """Hold the lock to start, stop or restart ``env``; the Salt module takes it too."""
        return self.lock(self.in_run("lock", env), wait=wait, why=why)
