"""
Checks that a program or a look into the jail answers: `exec`, `service`, `process`, `file`, `resource`.

Whatever lies in a jail is hostile: no symlink is followed out of it, nothing of it is written to, and a pid that is read
there is only compared with the pids that the kernel knows for that jail.
"""

import contextlib
import os
import stat
import time

import cbsd
import policy
import publish
import state
from monit import PROBES, UNASKED
from node import AgentError, Busy

RESOURCES = set(
    """coredumpsize cputime datasize maxproc memorylocked memoryuse msgqqueued msgqsize nmsgq nsem nsemop nshm nthr
    openfiles pcpu pseudoterminals readbps readiops shmsize stacksize swapuse vmemoryuse wallclock writebps writeiops""".split()
)  # rctl(8)
PIDFILE_SIZE = 32
LINKS = 32
AT_ONCE = 16


class CannotTell(AgentError):
    """The probe could not find out."""


class Bad(AgentError):
    """The check does not hold."""


def run(node, env, check):
    """Run one check of ``env``; returns (0, ""), (1, why), or (75, why it could not be asked)."""
    try:
        said = policy.of(node, env)["checks"].get(check)
        if not said or said["type"] not in PROBES:
            raise CannotTell(f"{env.name} has no check {check} that runs a program")
        if "command" in said and not publish.trusted(node, env):
            raise CannotTell("not run, neither pillar says so nor is its directory root's alone")
        with node.lock(node.in_run("lock", f"{env.name}.{check}"), why="probe"):
            _TYPES[said["type"]](node, env, said)
    except Bad as err:
        return 1, str(err)
    except Busy:
        return UNASKED, "the probe before is still running"
    except (CannotTell, OSError) as err:
        return UNASKED, f"cannot be asked: {err}"
    return 0, ""


def due(node, envs):
    """Where monit cannot run probes, the agent does: [(seconds until it is due, env, check)], the first one first."""
    if node.conf.get("probes") != "agent":
        return []
    found = []
    for env in envs:
        if (
            env["intent"] != "running"
            or env["phase"]
            or env["state"] in ("silenced", "maintenance", "slave", "gave_up")
        ):
            continue
        for check, said in policy.of(node, env)["checks"].items():
            if said.get("type") in PROBES:
                last = (env["probes"] or {}).get(check, {})
                found.append(
                    (max(0.0, said.get("interval", 30) - node.age(last.get("at"))), env, check)
                )
    return sorted(found, key=lambda row: row[0])


def run_all(node, jobs):
    """Run the probes ``jobs`` ([(env's name, check)]) side by side, and write down how each ended."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        ends = list(pool.map(lambda job: run(node, state.Env(node, job[0]), job[1]), jobs))
    with node.pass_lock():
        for (name, check), (code, words) in zip(jobs, ends):
            env = state.Env(node, name)
            if env.new:
                continue
            probes = env["probes"] or {}
            codes = [*probes.get(check, {}).get("codes", []), code][-64:]
            env["probes"] = {**probes, check: {"at": node.stamp(), "codes": codes, "words": words}}
            env.save()


def _command(node, env, said):
    row = {"jname": env.name, "emulator": env["emulator"]}
    answer = cbsd.command(
        node, row, said["command"], said.get("in", "jail"), said.get("timeout", 5)
    )
    if answer.code != 0:
        raise Bad(answer.last_words)


def _pids(node, env, said):
    """{pid: command name} of all processes of the jail, as the kernel has them."""
    argv = [node.conf.get("ps", "/bin/ps"), "-J", env.name, "-o", "pid=", "-o", "comm="]
    answer = cbsd.run(argv, said.get("timeout", 5))
    found = {}
    for line in answer.text.splitlines():
        pid, _, name = line.strip().partition(" ")
        if pid.isdigit():
            found[int(pid)] = name.strip()
    if not found and answer.code not in (0, 1):
        raise CannotTell(f"ps: {answer.last_words}")
    return found


def _process(node, env, said):
    pids = _pids(node, env, said)
    if "pidfile" in said:
        with _opened(node, env, said["pidfile"]) as (folder, name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            with os.fdopen(fd, "rb") as handle:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise Bad(f"{said['pidfile']} is no file")
                text = handle.read(PIDFILE_SIZE).decode("ascii", "replace")
        text = text.partition("\n")[0].strip()  # PostgreSQL writes more below
        pid = int(text) if text.isdigit() else None
        if pid not in pids:
            raise Bad(f"{said['pidfile']} holds {text!r}, which is no process of {env.name}")
        pids = {pid: pids[pid]}
    wanted = said.get("name")
    count = sum(
        1 for name in pids.values() if not wanted or name == wanted[:19]
    )  # MAXCOMLEN of FreeBSD
    least, most = said.get("min", 1), said.get("max")
    if count < least or most is not None and count > most:
        bounds = f"at least {least}" if count < least else f"at most {most}"
        raise Bad(f"{count} processes {wanted or ''}".strip() + f", expected {bounds}")


def _file(node, env, said):
    path = said["path"]
    with _opened(node, env, path) as (folder, name):
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    age = time.time() - info.st_mtime
    for key, value, bad in (
        ("max_age", age, lambda limit: age > limit),
        ("min_size", info.st_size, lambda limit: info.st_size < limit),
        ("max_size", info.st_size, lambda limit: info.st_size > limit),
    ):
        if said.get(key) is not None and bad(said[key]):
            raise Bad(f"{path}: {key} is {said[key]}, found {value:.0f}")


def _resource(node, env, said):
    answer = cbsd.run(
        [node.conf.get("rctl", "/usr/bin/rctl"), "-u", f"jail:{env.name}"], said.get("timeout", 5)
    )
    if answer.code != 0:
        raise CannotTell(f"rctl: {answer.last_words}")
    used = dict(line.strip().partition("=")[::2] for line in answer.text.splitlines())
    over = []
    for name in sorted(RESOURCES.intersection(said)):
        limit = said[name]
        if not used.get(name, "").isdigit():
            raise CannotTell(f"rctl says nothing about {name}")
        if int(used[name]) > limit:
            over.append(f"{name} is {used[name]}, limit {limit:g}")
    if over:
        raise Bad("; ".join(over))


_TYPES = {
    "exec": _command,
    "service": _command,
    "process": _process,
    "file": _file,
    "resource": _resource,
}


@contextlib.contextmanager
def _opened(node, env, path):
    """
    (fd of the folder, name) of ``path`` as the jail sees it, all symlinks resolved inside the jail's root.

    Walked by open directories, so that nothing which is exchanged meanwhile leads out. Raises Bad if there is no such path.
    """
    answer = cbsd.run([node.conf["jls"], "-j", env.name, "path"], 15)
    root = answer.text.strip()
    if answer.code != 0 or not root.startswith("/"):
        raise CannotTell(f"jls: {answer.last_words}")
    folders = [os.open(root, os.O_RDONLY | os.O_DIRECTORY)]
    words, links = [w for w in path.split("/") if w], 0
    try:
        while words:
            word = words.pop(0)
            if word in (".", ".."):
                if word == ".." and len(folders) > 1:
                    os.close(folders.pop())
                continue
            info = os.stat(word, dir_fd=folders[-1], follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                links += 1
                if links > LINKS:
                    raise Bad(f"{path}: too many symlinks")
                target = os.readlink(word, dir_fd=folders[-1])
                if target.startswith("/"):
                    while len(folders) > 1:
                        os.close(folders.pop())
                words = [w for w in target.split("/") if w] + words
            elif words:
                folders.append(
                    os.open(word, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folders[-1])
                )
            else:
                yield folders[-1], word
                return
        yield folders[-1], "."
    except (FileNotFoundError, NotADirectoryError):
        raise Bad(f"{path} does not exist") from None
    finally:
        for fd in folders:
            os.close(fd)
