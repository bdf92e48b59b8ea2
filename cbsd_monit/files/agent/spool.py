"""
The transitions that wait for Salt: `spool/N-TIME.jsonl`, appended to here, read by the minion's engine `cbsd_monit`.

One record a line, as in docs/contract.md section 8, in the order in which the transitions happened on this node.  There is a
spool only where the formula made its directory (`cbsd_monit.events`); without it nothing is written.  It is bounded in size
and in age; what does not fit, what a full disk refused and what a kill tore is counted, and the count is a record too:
`dropped`.  The only lock is flock(2), which the kernel gives back whatever happens to its holder.
"""

import contextlib
import json
import os
import sys
import threading
import time

import files
from node import AgentError

SEGMENT = (
    256 << 10
)  # bytes in one file, so that what has been delivered can be given back in small pieces
MAX_SIZE = 16 << 20
MAX_AGE = 7 * 86400
WAITING_MAX = 10000  # records kept in memory while the disk is full

WAITING = []  # lines that the disk did not take yet, oldest first
_counted = 0  # how many lost ones the file `lost` owes to this process's WAITING
_thread = threading.Lock()


def event(node, transition, env=None, emulator=None, reason="", check=None, before=None, **more):
    """The record of one transition, of an env or with ``env`` None of the node; docs/contract.md section 8."""
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
    """Keep one transition for Salt; never raises, and never waits long: healing goes on whatever happens here."""
    if not os.path.isdir(node.in_state("spool")):
        return
    global _counted
    with _thread:
        WAITING.append(json.dumps(record, sort_keys=True) + "\n")
        while len(WAITING) > WAITING_MAX:
            del WAITING[0]
            _counted -= 1  # `lost` counts it since its own turn failed, and now for good
    flush(node)


def flush(node):
    """Write what waits; called again by each pass as long as something does.  True when nothing waits any more."""
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
            pass  # full or busy: they wait
        except Exception as err:  # noqa: BLE001 - whatever lies in the spool, no env waits for it
            print(f"spool: {type(err).__name__}: {err}", file=sys.stderr, flush=True)
    return False


class _Folder:
    """The spool's directory, its lock being held."""

    def __init__(self, node, folder):
        self.node, self.folder = node, folder
        limits = files.read_json(self._path("limits.json"))  # pillar's cbsd_monit:events
        limits = limits if isinstance(limits, dict) else {}
        limits = {
            key: value for key, value in limits.items() if type(value) in (int, float) and value > 0
        }
        self.max_size = limits.get("max_size", MAX_SIZE)
        self.max_age = limits.get("max_age", MAX_AGE)

    def take(self):
        """Append all of WAITING to the last segment; on a full disk count it as lost until it is written after all."""
        global _counted
        others = self._lost() - _counted  # those of processes that ended before the disk took them
        try:
            name, torn = self._last()
            others += torn
            lines = list(WAITING)
            if others > 0:
                lines.insert(
                    0,
                    self._dropped(
                        others, "could not be written: the disk was full or the agent was killed"
                    ),
                )
            self._write(name, "".join(lines).encode())
        except OSError:
            self._owe(others + len(WAITING))
            _counted = len(WAITING)
            return False
        self._owe(0)
        WAITING.clear()
        _counted = 0
        self._trim()
        return True

    def segments(self):
        return sorted(n for n in os.listdir(self.folder) if n.endswith(".jsonl"))

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _last(self):
        """(name of the segment to append to, 1 if the write before was torn by a kill)."""
        names = self.segments()
        name, torn, now = names[-1] if names else "", 0, time.time()
        if name:
            path = self._path(name)
            torn = _mend(path)
            if (
                os.path.getsize(path) < min(SEGMENT, self.max_size // 4)
                and now - _began(name) < self.max_age / 8
            ):
                return name, torn
        number = int(name.partition("-")[0]) + 1 if name else 1
        return f"{number:010d}-{int(now)}.jsonl", torn

    def _write(self, name, data):
        handle = os.open(
            self._path(name),
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        try:
            size = os.fstat(handle).st_size
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)  # half a batch would come twice
                raise
        finally:
            os.close(handle)

    def _trim(self):
        """Drop the oldest segments while the spool is too large or too old; the count of what nobody got is a record."""
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
            line = self._dropped(
                count,
                "dropped: the master did not take them before the spool was full or they were too old",
            )
            try:
                self._write(names[-1], line.encode())
            except OSError:
                self._owe(self._lost() + count)

    def _positions(self):
        """[(segment, offset)] of what each master has taken; those of masters long gone are forgotten."""
        found = []
        for name in os.listdir(self.folder):
            if name.startswith("position-"):
                said = files.read_json(self._path(name)) or {}
                if time.time() - said.get("time", 0) > self.max_age:
                    files.remove(self._path(name))
                else:
                    found.append((said.get("segment", ""), said.get("offset", 0)))
        return found

    def _undelivered(self, name, positions):
        """How many transitions of a segment some master has not taken."""
        offset = 0
        if positions:
            segment, taken = min(positions)
            offset = (
                taken
                if segment == name
                else 0
                if segment < name
                else os.path.getsize(self._path(name))
            )
        with open(self._path(name), "rb") as handle:
            handle.seek(offset)
            return sum(_worth(line) for line in handle)

    def _dropped(self, count, why):
        record = event(self.node, "dropped", reason=f"{count} transitions {why}", count=count)
        return json.dumps(record, sort_keys=True) + "\n"

    # What is lost for now: a number in a file that has its size already, so that a full disk can take it.

    def _lost(self):
        with contextlib.suppress(OSError, ValueError), open(
            self._path("lost"), encoding="ascii"
        ) as handle:
            return int(handle.read())
        return 0

    def _owe(self, count):
        if count == self._lost() and os.path.exists(self._path("lost")):
            return
        with contextlib.suppress(OSError):
            handle = os.open(self._path("lost"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(handle, f"{count:<15}\n".encode(), 0)
            finally:
                os.close(handle)


def _began(name):
    return int(name.partition("-")[2].partition(".")[0])


def _mend(path):
    """Take away what follows the last whole line; returns 1 if there was something."""
    with open(path, "r+b") as handle:
        size = handle.seek(0, os.SEEK_END)
        start = max(0, size - (64 << 10))
        handle.seek(start)
        tail = handle.read()
        if not tail or tail.endswith(b"\n"):
            return 0
        handle.truncate(start + tail.rfind(b"\n") + 1)
        return 1


def _worth(line):
    """How many transitions a line stands for."""
    with contextlib.suppress(ValueError, AttributeError):
        return json.loads(line).get("count", 1)
    return 1
