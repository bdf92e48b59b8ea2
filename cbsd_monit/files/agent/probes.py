"""
Checks that run a program or look into the jail: `exec`, `service`, `process`, `file`, `resource`.

Whatever lies in a jail is hostile: no symlink is followed out of it, nothing in it is written, and
a pid that is read there is only compared with those that the kernel knows for that jail.
"""

import contextlib
import json
import os
import stat
import time

import bugs
import cbsd
import policy
import records
import text
from files import DIRECTORY
from monit import PROBES, UNASKED
from node import AgentError, Busy
from states import UNPROBED

RESOURCES = set(
    """coredumpsize cputime datasize maxproc memorylocked memoryuse msgqqueued msgqsize nmsgq nsem
    nsemop nshm nthr openfiles pcpu pseudoterminals readbps readiops shmsize stacksize swapuse
    vmemoryuse wallclock writebps writeiops""".split()
)  # rctl(8)
PIDFILE_SIZE = 32  # bytes
MAX_LINKS = 32
PARALLEL = 16


class Failed(AgentError):
    """The check does not hold."""


def run(node, env, name):
    """Run the check ``name`` of ``env``: (0, ""), (1, why it fails) or (75, why it cannot tell)."""
    try:
        own = records.env_files(node, env.name)
        check = policy.load(node, own.policy)["checks"].get(name)
        if not check or check.get("type") not in PROBES:
            raise AgentError(f"{env.name} has no check {name} that runs a program")
        trusted = text.trusted(own, records.trust(node).get(env.name))
        if "command" in check and not trusted:
            raise AgentError("not run, neither pillar says so nor is its directory root's alone")
        with node.lock(node.in_run("lock", f"{env.name}.{name}"), why="probe"):
            _LOOKS.get(check["type"], _command)(node, env, check)
    except Failed as err:
        return 1, str(err)
    except Busy:
        return UNASKED, "the probe before is still running"
    except (AgentError, OSError) as err:
        return UNASKED, f"cannot be asked: {err}"
    except Exception as err:  # noqa: BLE001 - a bug of ours is no failure of the env
        return UNASKED, bugs.report(node, f"check {name} of {env.name}", err)
    return 0, ""


def due(node, envs, policies, now):
    """The probes that monit cannot run here: [(seconds until due, env, check)], soonest first."""
    if node.conf.get("probes") != "agent":
        return []
    found = []
    for env in envs:
        if env["intent"] != "running" or env["phase"] or env["state"] in UNPROBED:
            continue
        for name, check in policies[env.name]["checks"].items():
            if check.get("type") in PROBES:
                last = last_of(env, name, check) or {}
                wait = check.get("interval", 30) - now.age(last.get("at"))
                found.append((max(0.0, wait), env, name))
    return sorted(found, key=lambda row: row[0])


def last_of(env, name, check):
    """What the record ``env`` knows of the last runs of ``check``; None if it was another then."""
    last = (env["probes"] or {}).get(name)
    return last if last and last.get("of") in (None, _digest(check)) else None


def _digest(check):
    return text.digest(json.dumps(check, sort_keys=True))


def run_all(node, jobs):
    """Run the probes ``jobs``, [(env's name, check)], in parallel, and record how each ended."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        ends = list(pool.map(lambda job: run(node, records.load(node, job[0]), job[1]), jobs))
    own = {name: records.env_files(node, name).policy for name in dict(jobs)}
    rules = {name: policy.load(node, found)["checks"] for name, found in own.items()}
    with node.pass_lock():
        for (name, check), (code, words) in zip(jobs, ends):
            env = records.load(node, name)
            if env.new:
                continue
            row = rules[name].get(check, {})
            codes = [*(last_of(env, check, row) or {}).get("codes", []), code][-64:]
            last = {"at": node.stamp(), "codes": codes, "words": words, "of": _digest(row)}
            env["probes"] = {**(env["probes"] or {}), check: last}
            records.save(node, env)


def _command(node, env, check):
    row = {"jname": env.name, "emulator": env["emulator"]}
    where, timeout = check.get("in", "jail"), check.get("timeout", 5)
    answer = cbsd.command(node, row, check["command"], where, timeout)
    if answer.code != 0:
        raise Failed(answer.last_words)


def _pids(node, env, check):
    """{pid: command name} of all processes of the jail, as the kernel has them."""
    argv = [node.conf.get("ps", "/bin/ps"), "-J", env.name, "-o", "pid=", "-o", "comm="]
    answer = cbsd.run(argv, check.get("timeout", 5))
    found = {}
    for line in answer.text.splitlines():
        pid, _, name = line.strip().partition(" ")
        if pid.isdigit():
            found[int(pid)] = name.strip()
    if not found and answer.code not in (0, 1):
        raise AgentError(f"ps: {answer.last_words}")
    return found


def _process(node, env, check):
    pids = _pids(node, env, check)
    if "pidfile" in check:
        path = check["pidfile"]
        with _opened(node, env, path) as (folder, name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            with os.fdopen(fd, "rb") as handle:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise Failed(f"{path} is no file")
                text = handle.read(PIDFILE_SIZE).decode("ascii", "replace")
        text = text.partition("\n")[0].strip()  # PostgreSQL writes more below
        pid = int(text) if text.isdigit() else None
        if pid not in pids:
            raise Failed(f"{path} holds {text!r}, which is no process of {env.name}")
        pids = {pid: pids[pid]}
    wanted = check.get("name") or ""
    count = sum(not wanted or name == wanted[:19] for name in pids.values())  # FreeBSD's MAXCOMLEN
    least, most = check.get("min", 1), check.get("max")
    if count < least or most is not None and count > most:
        bounds = f"at least {least}" if count < least else f"at most {most}"
        raise Failed(f"{count} processes {wanted}".strip() + f", expected {bounds}")


def _file(node, env, check):
    path = check["path"]
    with _opened(node, env, path) as (folder, name):
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    age, size = time.time() - info.st_mtime, info.st_size
    for key, value, sign in (("max_age", age, 1), ("min_size", size, -1), ("max_size", size, 1)):
        limit = check.get(key)
        if limit is not None and value * sign > limit * sign:
            raise Failed(f"{path}: {key} is {limit}, found {value:.0f}")


def _resource(node, env, check):
    argv = [node.conf.get("rctl", "/usr/bin/rctl"), "-u", f"jail:{env.name}"]
    answer = cbsd.run(argv, check.get("timeout", 5))
    if answer.code != 0:
        raise AgentError(f"rctl: {answer.last_words}")
    used = dict(line.strip().partition("=")[::2] for line in answer.text.splitlines())
    over = []
    for name in sorted(RESOURCES.intersection(check)):
        limit = check[name]
        if not used.get(name, "").isdigit():
            raise AgentError(f"rctl says nothing about {name}")
        if int(used[name]) > limit:
            over.append(f"{name} is {used[name]}, limit {limit:g}")
    if over:
        raise Failed("; ".join(over))


_LOOKS = {"process": _process, "file": _file, "resource": _resource}


@contextlib.contextmanager
def _opened(node, env, path):
    """
    Resolve ``path`` as the jail sees it: (descriptor of its folder, name).

    Walks by open directories, so that neither a symlink nor what is exchanged meanwhile leads out
    of the jail's root. Raises Failed if there is no such path.
    """
    answer = cbsd.run([node.conf["jls"], "-j", env.name, "path"], 15)
    root = answer.text.strip()
    if answer.code != 0 or not root.startswith("/"):
        raise AgentError(f"jls: {answer.last_words}")
    folders = [os.open(root, DIRECTORY)]
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
                if links > MAX_LINKS:
                    raise Failed(f"{path}: too many symlinks")
                target = os.readlink(word, dir_fd=folders[-1])
                if target.startswith("/"):
                    while len(folders) > 1:
                        os.close(folders.pop())
                words = [w for w in target.split("/") if w] + words
            elif words:
                folders.append(os.open(word, DIRECTORY | os.O_NOFOLLOW, dir_fd=folders[-1]))
            else:
                yield folders[-1], word
                return
        yield folders[-1], "."
    except (FileNotFoundError, NotADirectoryError):
        raise Failed(f"{path} does not exist") from None
    finally:
        for fd in folders:
            os.close(fd)
