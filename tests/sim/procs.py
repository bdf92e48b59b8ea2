"""Processes by identity: a pid alone may by now belong to somebody else."""

import os
import time

from sim.programs import SIGKILL


def stat(pid):
    """(state, parent pid, session, start time) of a process, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            fields = source.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19])


def identity(pid):
    """[pid, start time]: names this process and no later one. None when it is gone."""
    found = stat(pid)
    return [pid, found[3]] if found else None


def alive(ident):
    """Whether the process that `ident` names still runs; a zombie does not."""
    if not ident:
        return False
    found = stat(ident[0])
    return bool(found and found[3] == ident[1] and found[0] not in "ZX")


def table():
    """pid -> (state, parent pid, session, start time) of all processes."""
    found = {int(pid): stat(pid) for pid in os.listdir("/proc") if pid.isdigit()}
    return {pid: entry for pid, entry in found.items() if entry}


def environment_has(pid, marker):
    """Whether the environment a process was started with has the setting `marker`."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as source:
            return marker.encode() in source.read().split(b"\0")
    except (OSError, ProcessLookupError):
        return False


def family(idents, marker=None):
    """The living processes of `idents`, their sessions, their descendants, and those with `marker`.

    The marker finds what was started in a jail and then lost its parent; the recorded processes are
    needed because nginx overwrites its environment. What is older than they cannot have it.
    """
    processes = table()
    pids = {pid for pid, start in idents if pid in processes and processes[pid][3] == start}
    # While a session has members, its number is nobody else's pid, though its leader be gone.
    leaders = {pid for pid, _ in idents if pid not in processes}
    leaders |= {pid for pid in pids if processes[pid][2] == pid}
    pids |= {pid for pid, entry in processes.items() if entry[2] in leaders}
    if marker:
        since = min((start for _, start in idents), default=0)
        younger = {pid for pid, entry in processes.items() if entry[3] >= since} - pids
        pids |= {pid for pid in younger if environment_has(pid, marker)}
    grown = True
    while grown:
        children = {pid for pid, entry in processes.items() if entry[1] in pids} - pids
        grown = bool(children)
        pids |= children
    pids -= {os.getpid()}
    return [[pid, processes[pid][3]] for pid in pids if processes[pid][0] not in "ZX"]


def kill(idents, number=SIGKILL):
    """Send a signal to the processes that still are the ones that were meant."""
    for ident in idents:
        if alive(ident):
            try:
                os.kill(ident[0], number)
            except ProcessLookupError:
                pass


def wait_gone(idents, timeout):
    """Wait until none of the processes runs; False when the time is up."""
    end = time.monotonic() + timeout
    while any(alive(ident) for ident in idents):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def exterminate(idents, marker=None):
    """
    SIGKILL a family until nothing of it is left, including what it forks meanwhile.

    An nginx whose worker dies first forks another one, which outlives its master by a moment.
    """
    known = list(idents)
    for _ in range(100):
        targets = family(known, marker)
        if not targets:
            return
        kill(targets)
        wait_gone(targets, 2)
        known += targets
