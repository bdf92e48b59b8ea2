"""
The transitions that wait for Salt: appended here to `spool/N-TIME.jsonl`, read by the engine.

One record a line (docs/contract.md section 8), in the order of the transitions on this node.  There
is a spool only where the formula made its directory (`cbsd_monit.events`).  Size and age are
bounded.  What does not fit, what a full disk refuses and what a kill tears is counted, and a record
`dropped` tells the count.  The only lock is flock(2), which the kernel releases.
"""

import contextlib
import json
import os
import sys
import threading
import time

import bugs
import files
from node import AgentError

SEGMENT = 256 << 10  # bytes in one file: delivered records are removed file by file
MAX_SIZE = 16 << 20
MAX_AGE = 7 * 86400
WAITING_MAX = 10000  # records kept in memory while the disk is full

WAITING = []  # lines that are not on disk yet, oldest first
_counted = 0  # how many of WAITING the file `lost` already counts
_thread = threading.Lock()


def event(node, transition, env=None, emulator=None, reason="", check=None, before=None, **more):
    """The record of one transition, of the node where ``env`` is None; see docs/contract.md."""
    return {
        "id": os.urandom(8).hex(),
        "time": round(time.time(), 3),
        "node": node.name,
        "env": env,
        "emulator": emulator,
        "transition": transition,
        "from": before,
        "check": check,
        "reason": reason,
        **more,
    }


def append(node, record):
    """Keep one transition for Salt; neither raises nor waits long, so that healing goes on."""
    if not os.path.isdir(node.in_state("spool")):
        return
    global _counted
    with _thread:
        WAITING.append(json.dumps(record, sort_keys=True) + "\n")
        while len(WAITING) > WAITING_MAX:
            del WAITING[0]
            _counted -= 1  # `lost` counts it already, now for good
    flush(node)


def flush(node):
    """Write what waits; True when nothing waits any more, else each pass calls this again."""
    folder = node.in_state("spool")
    if not os.path.isdir(folder):
        WAITING.clear()
    with _thread:
        if not WAITING:
            return True
        try:
            with node.lock(os.path.join(folder, "lock"), wait=5, why="spool"):
                return _Folder(node, folder).take()
        except (OSError, AgentError):
            pass  # full or busy
        except ValueError as err:
            words = f"spool: it holds a file that cbsd_monit did not write: {err}"
            print(words, file=sys.stderr, flush=True)
        except Exception as err:  # noqa: BLE001 - no env waits for a bug here
            bugs.report(node, "writing the spool", err)
    return False


class _Folder:
    """The spool's directory; its lock is held."""

    def __init__(self, node, folder):
        self.node, self.folder = node, folder
        limits = self._read("limits.json")  # pillar's cbsd_monit:events
        good = {k: v for k, v in limits.items() if type(v) in (int, float) and v > 0}
        self.max_size = good.get("max_size", MAX_SIZE)
        self.max_age = good.get("max_age", MAX_AGE)

    def take(self):
        """Append all of WAITING; what a full disk refuses counts as lost until it is written."""
        global _counted
        others = self._lost() - _counted  # of processes that ended before they could write
        try:
            name, torn = self._last()
            others += torn
            lines = list(WAITING)
            if others > 0:
                why = "could not be written: the disk was full or the agent was killed"
                lines.insert(0, self._dropped(others, why))
            self._write(name, "".join(lines).encode())
        except OSError:
            self._set_lost(others + len(WAITING))
            _counted = len(WAITING)
            return False
        self._set_lost(0)
        WAITING.clear()
        _counted = 0
        self._trim()
        return True

    def segments(self):
        return sorted(n for n in os.listdir(self.folder) if n.endswith(".jsonl"))

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _read(self, name):
        """The mapping in the JSON file ``name``; {} where there is none."""
        found = files.read_json(self._path(name))
        return found if isinstance(found, dict) else {}

    def _last(self):
        """(name of the segment to append to, 1 if a kill tore the write before)."""
        names = self.segments()
        name, torn, now = names[-1] if names else "", 0, time.time()
        if name:
            torn = _mend(self._path(name))
            small = os.path.getsize(self._path(name)) < min(SEGMENT, self.max_size // 4)
            if small and now - _began(name) < self.max_age / 8:
                return name, torn
        number = int(name.partition("-")[0]) + 1 if name else 1
        return f"{number:010d}-{int(now)}.jsonl", torn

    def _write(self, name, data):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(self._path(name), flags, 0o600)
        try:
            size = os.fstat(handle).st_size
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)  # or the first half would come twice
                raise
        finally:
            os.close(handle)

    def _trim(self):
        """Remove the oldest segments while the spool is too large or too old; record the loss."""
        names = self.segments()
        sizes = {name: os.path.getsize(self._path(name)) for name in names}
        positions, count = self._positions(), 0
        while len(names) > 1:
            too_old = time.time() - _began(names[1]) > self.max_age
            if not too_old and sum(sizes[n] for n in names) <= self.max_size:
                break
            count += self._undelivered(names[0], positions)
            files.remove(self._path(names.pop(0)))
        if count:
            why = "dropped: the master did not take them before the spool was full or they were"
            try:
                self._write(names[-1], self._dropped(count, f"{why} too old").encode())
            except OSError:
                self._set_lost(self._lost() + count)

    def _positions(self):
        """[(segment, offset)] up to which each master has read; forgets those of old masters."""
        found = []
        for name in os.listdir(self.folder):
            if name.startswith("position-"):
                read = self._read(name)
                if time.time() - read.get("time", 0) > self.max_age:
                    files.remove(self._path(name))
                else:
                    found.append((read.get("segment", ""), read.get("offset", 0)))
        return found

    def _undelivered(self, name, positions):
        """How many transitions of the segment ``name`` the slowest master has not read."""
        segment, offset = min(positions, default=("", 0))
        if segment > name:
            return 0
        with open(self._path(name), "rb") as handle:
            handle.seek(offset if segment == name else 0)
            return sum(_transitions(line) for line in handle)

    def _dropped(self, count, why):
        record = event(self.node, "dropped", reason=f"{count} transitions {why}", count=count)
        return json.dumps(record, sort_keys=True) + "\n"

    # The count of lost records is overwritten in place, so that it needs no room on a full disk.

    def _lost(self):
        path = self._path("lost")
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as handle:
            return int(handle.read())
        return 0

    def _set_lost(self, count):
        if count == self._lost() and os.path.exists(self._path("lost")):
            return
        with contextlib.suppress(OSError):
            handle = os.open(self._path("lost"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(handle, f"{count:<15}\n".encode(), 0)
            finally:
                os.close(handle)


def _began(name):
    """When the segment ``name`` was begun, in seconds since 1970."""
    return int(name.partition("-")[2].partition(".")[0])


def _mend(path):
    """Cut off what follows the last whole line; returns 1 if there was something, else 0."""
    with open(path, "r+b") as handle:
        size = handle.seek(0, os.SEEK_END)
        start = max(0, size - (64 << 10))
        handle.seek(start)
        tail = handle.read()
        if not tail or tail.endswith(b"\n"):
            return 0
        handle.truncate(start + tail.rfind(b"\n") + 1)
        return 1


def _transitions(line):
    """How many transitions a line stands for: a `dropped` record tells of many."""
    with contextlib.suppress(ValueError, AttributeError):
        return json.loads(line).get("count", 1)
    return 1
