"""What CBSD's hooks said, and what no hook said: how both change the records of the envs."""

import contextlib
import fnmatch
import json
import os
import re

import files
import records
import spool
from node import NAME
from records import say

RENAME_GRACE = 30  # seconds: CBSD renames the row first and the directory later
REBOOT = 5  # seconds that a rebooting guest may be gone, and that bhyverun.sh needs to say why
INTERPRETERS = re.compile(r"-?(?:sh|bash|dash|csh|tcsh|ksh|zsh|python[0-9.]*)\Z")
OURS = ("heal", "restart", "rename", "shutdown")
# Facts never taken from a hook's environment: the shell's and the caller's own.
_FACT_NAME = re.compile(r"[a-z][a-z0-9_]*[0-9]*\Z")
_NOT_FACTS = {"inter", "quiet", "header", "display", "mode", "node"}


class HookRecord:
    """A file of the inbox (docs/contract.md section 6); a torn one is known by its name."""

    def __init__(self, data, name=""):
        head, separator, environ = data.partition(b"\n\n")
        lines = head.decode("utf-8", "replace").splitlines()
        self.torn = not separator
        if self.torn:
            lines = ["1 " + " ".join(name.split(":")[1:3])]
        version, hook, env = lines[0].split(" ", 2)
        if version != "1" or not NAME.match(env):
            raise ValueError(lines[0])
        self.hook, self.env = hook, env
        self.ancestors = lines[1:]
        pairs = (p.decode("utf-8", "replace").partition("=") for p in environ.split(b"\0") if p)
        self.environ = {name: value for name, _, value in pairs}

    def cause(self):
        """(on whose behalf a stop happens, the proof): our environment, or the programs above."""
        ours = self.environ.get("CBSD_MONIT_CAUSE")
        if ours in OURS:
            return ours, "CBSD_MONIT_CAUSE"
        for line in self.ancestors:
            cause = _proof(line, self.env)
            if cause:
                return cause, line.strip()
        scripts = [words for words in map(_script, self.ancestors) if words]
        typed = [" ".join(words) for words in scripts if words[0] == "cbsd"]
        typed = (typed or [self.environ.get("CBSD_APP", "")])[0]
        by = next((" ".join(words) for words in scripts if words[0] != "cbsd"), "")
        return "operator", f"{typed[:100]}, run by {by}" if by else typed

    def facts(self):
        return {
            k: v
            for k, v in self.environ.items()
            if _FACT_NAME.match(k) and k not in _NOT_FACTS and not k.startswith("cm_")
        }


def _script(line):
    """
    [program, argument, …] of one line `pid ppid command`, without interpreters.

    [] for shell code (`sh -c …`): a text that mentions a command does not prove that it runs.
    """
    words = line.split()[2:]
    while words and INTERPRETERS.match(os.path.basename(words[0])):
        words = words[1:]
        while words and words[0].startswith("-"):
            if "c" in words[0]:
                return []
            words = words[1:]
    words = [os.path.basename(words[0]), *words[1:]] if words else []
    if words[:1] == ["cbsd"] and len(words) > 1:
        return ["cbsd", os.path.basename(words[1]), *words[2:]]
    return words


def _proof(line, env):
    """The cause that one ancestor of a stop proves, or None."""
    words = _script(line)
    if words[:1] == ["cbsd"]:
        words = words[1:]
    verb, arguments = (words[0], words[1:]) if words else ("", [])
    if verb == "bhyverun.sh" or verb == "bstop" and "cbsd_queue_name=none" in arguments:
        return "guest"
    if verb == "rc.shutdown" or verb == "jails-astart" and "stop" in arguments:
        return "shutdown"
    names = [a.partition("=")[2] if a.startswith(("jname=", "old=")) else a for a in arguments]
    if verb in ("jrestart", "brestart", "jrename", "brename"):
        if any(fnmatch.fnmatchcase(env, n.strip("\"'")) for n in names):
            return "rename" if verb.endswith("rename") else "restart"
    return None


def waiting(node):
    """([(path, HookRecord)] of the inbox, oldest first; [path] of what is no record)."""
    folder = node.in_state("inbox")
    found, unreadable = [], []
    for name in sorted(os.listdir(folder)):
        number, _, suffix = name.partition(".")
        if not number.isdigit() or suffix == "done":
            continue
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as handle:
                found.append((path, HookRecord(handle.read(), name)))
        except (OSError, ValueError, IndexError):
            unreadable.append(path)
    return found, unreadable


def waiting_of(node, name):
    """The hooks of one env that wait, as by `waiting`; none while more of them are coming in."""
    before = None
    for _ in range(100):
        found = [(path, hook) for path, hook in waiting(node)[0] if hook.env == name]
        if before == [path for path, _ in found]:
            return found
        before = [path for path, _ in found]
    return []


def drop(paths):
    """Forget records of the inbox; the last becomes `N.done`, so that numbers go on growing."""
    for path in paths[:-1]:
        files.remove(path)
    if paths:
        folder, name = os.path.split(paths[-1])
        os.replace(paths[-1], os.path.join(folder, name.partition(".")[0] + ".done"))
        for mark in sorted(other for other in os.listdir(folder) if other.endswith(".done"))[:-1]:
            files.remove(os.path.join(folder, mark))


def _boots(env):
    """True while CBSD starts what it starts at boot: nobody asked, so it ends no back-off."""
    return env["boot"] != env.now.b or env["phase"] == "booting" or env["cause"] == "boot"


def apply(env, hook):
    """Change the working copy ``env`` by what one hook saw."""
    env.fresh = False  # a hook is delivered once, so the record has to be durable
    kind, ours = hook.hook, hook.environ.get("CBSD_MONIT_CAUSE")
    announces = kind in ("master_prestart.d", "master_poststart.d", "master_create.d")
    if not hook.torn and (announces or not env["facts"]):
        env["facts"] = hook.facts()
    env["emulator"] = hook.environ.get("emulator") or env["emulator"]
    if kind == "master_prestart.d":
        env.enter_phase("starting", ours or ("boot" if _boots(env) else None))
    elif kind == "master_poststart.d":
        if ours != "heal":  # a start made by a heal says nothing about the operator's intent
            if not _boots(env):
                env.reset_attempts()  # somebody took it in hand
            env["gave_up"] = False
            env.intend("running", "started", hook.environ.get("CBSD_APP", ""))
        env.enter_phase(None)
        if hook.environ.get("jid", "0") != "0":
            env["started"], env["warm"] = env.now.stamp(), False
    elif kind == "master_prestop.d":
        if env["phase"] == "removing":
            return
        cause, proof = hook.cause()
        env.enter_phase("stopping", cause)
        if cause == "operator":
            env.intend("stopped", cause, proof)
    elif kind == "master_poststop.d":
        if env["phase"] == "stopping":
            again = env["cause"] in ("restart", "rename", "shutdown")
            env.enter_phase("restarting" if again else None, env["cause"])
    elif kind == "remove.d":
        env.enter_phase("removing", "remove")
        env.intend("stopped", "remove", hook.cause()[1])
    elif kind == "master_reboot.d":
        env.enter_phase("restarting", "guest")  # no hook says when it is back in the kernel
        env["started"], env["warm"] = env.now.stamp(), False


def take_in_of(node, env):
    """Apply to ``env`` the hooks of it that wait, save it, and forget them."""
    found = waiting_of(node, env.name)
    for _, hook in found:
        apply(env, hook)
    if found:
        records.save(node, env)
        files.flush()
        drop([path for path, _ in found])


def take_in(survey, now):
    """
    ({name: Record} of the envs there are, changes) after what the hooks of ``survey`` said, and
    what no hook said; nothing is written.

    Envs whose hooks are still coming in (``survey.moving``) are handed on as they are.
    """
    envs = {name: env.at(now) for name, env in survey.envs.items()}
    changes, copies = [], set()
    for _, hook in survey.hooks:
        env = envs.get(hook.env)
        if env is not None:
            _rename(survey, envs, env, copies, changes)
            apply(env, hook)
        else:
            changes += _unwatched(hook)
    settled = [env for name, env in sorted(envs.items()) if name not in survey.moving]
    for env in settled:
        _rename(survey, envs, env, copies, changes)
    for env in settled:
        if env.name not in envs:
            continue  # it has another name now
        if env.name not in survey.managed:
            del envs[env.name]
            changes += _departed(survey, env)
            continue
        if (env["phase"], env["cause"]) == ("removing", "gone"):
            env.enter_phase(None)  # it is there again
        if env.new:
            _arrived(survey, env, [] if env.name in copies else survey.histories[env.name])
        _unannounced(survey, env)
        changes.append(("save", env))
    return envs, changes


def write_down(node, survey, changes):
    """Carry out the ``changes`` of `take_in`, in order, then forget the hooks."""
    for path in survey.unreadable:
        say(f"unreadable hook record {os.path.basename(path)}", loud=True)
        with contextlib.suppress(OSError):
            os.replace(path, node.in_state("unreadable-hook-record"))
    verbs = {
        "save": records.save,
        "announce": records.announce,
        "flush": lambda _: files.flush(),
        "forget": records.forget,
        "dead": lambda _, name: files.remove(node.dead_marker(name)),
        "drop": lambda _, name, file: files.EnvDir(node.sysdir(name)).remove(file),
        "silence": _move_silence,
        "event": lambda _, *event: spool.append(node, spool.event(node, *event)),
        "log": lambda _, words: say(words),
    }
    for verb, *arguments in changes:
        verbs[verb](node, *arguments)
    if survey.hooks:
        files.flush()
        drop([path for path, _ in survey.hooks])


def _rename(survey, envs, env, copies, changes):
    """Give a first-seen env what is known of it under another name, or add it to ``copies``."""
    if not env.new or env.name not in survey.rows or env.name in copies:
        return
    before = _former_name(survey, env.name)
    if before is None or before == env.name:
        return
    changes.append(("drop", env.name, "monitrc"))  # it says the other name
    old = envs.get(before)
    removed = old is not None and (old["phase"], old["cause"]) == ("removing", "remove")
    if before in survey.rows or old is None or old.new or removed:
        copies.add(env.name)  # what happened to the original did not happen to it
        changes.append(("drop", env.name, "history.jsonl"))
        return
    if (old["phase"], old["cause"]) == ("removing", "gone"):
        old.enter_phase(None)
    env.data.update({**old.data, "env": env.name})
    env.fresh = env.new = False
    env.announce("renamed", f"was {before}")
    changes += [
        ("save", env),
        ("flush",),  # before the only other place that has it is removed
        ("silence", before, env.name),
        ("forget", before),
    ]
    del envs[before]


def _former_name(survey, name):
    """The name that the env's directory was last used under, here or elsewhere; None if unknown."""
    names = [entry.get("env") for entry in survey.histories.get(name, [])[-1:]]
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        names.append(json.loads(survey.found[name].policy or "{}").get("env"))
    return next((other for other in names if isinstance(other, str) and NAME.match(other)), None)


def _arrived(survey, env, history):
    """An env seen for the first time: created, adopted, cloned, imported or migrated to here."""
    up = survey.up(env)
    env["emulator"] = survey.rows[env.name]["emulator"]
    if env["intent"] is None:  # no hook said so: an env that is down may well be meant to be down
        env.intend("running" if up else "stopped", "first seen")
    if up and env["started"] is None:
        env["started"] = env.now.stamp()
    # An env that migrates brings its attempts along.
    heals = [h for h in history if h.get("transition") == "healing" and h.get("env") == env.name]
    times = [h.get("time") for h in heals]
    times = [float(t) for t in times if isinstance(t, (int, float))]
    env["attempts"] = [{"t": t, "m": 0, "b": ""} for t in times[-records.ATTEMPTS :]]
    env.announce("created", "first seen " + ("running" if up else "stopped"))


def _unwatched(hook):
    """An env without a template was created or started: pillar may name it, and only Salt knows."""
    hooks = {"master_create.d": "created", "master_poststart.d": "started"}
    if hook.hook not in hooks:
        return []
    where = (hook.env, hook.environ.get("emulator"), "not watched")
    return [("event", hooks[hook.hook], *where)]


def _departed(survey, env):
    """
    The changes for an env that left CBSD's inventory, or has no template any more.

    CBSD announces no rename: unless `remove.d` ran, what is known of the env is kept for
    RENAME_GRACE, in which it may turn up under another name.
    """
    if env.name in survey.rows and survey.found[env.name].there:
        return [
            ("log", f"{env.name}: no template any more, not watched"),
            ("forget", env.name),
        ]
    phase = (env["phase"], env["cause"])
    if env.new:
        return [("forget", env.name), ("silence", env.name, None)]
    if phase == ("removing", "remove") or (
        phase == ("removing", "gone") and env.age("phase_since") > RENAME_GRACE
    ):
        env.announce("removed")
        return [("announce", env), ("forget", env.name), ("silence", env.name, None)]
    if phase != ("removing", "gone"):
        env.enter_phase("removing", "gone")
        env["reason"] = "CBSD's inventory has it no more"
    return [("save", env), ("dead", env.name)]


def _unannounced(survey, env):
    """What the kernel shows and no hook said: started, stopped, or up again after a reboot."""
    up = survey.up(env)
    if up is None or env["op"]:
        return
    late = env.age("phase_since") > REBOOT
    if env["phase"] == "restarting" and env["cause"] == "guest" and up and late:
        env.enter_phase(None)
    gone = (env["phase"], env["cause"]) == ("stopping", "gone")
    waited = gone and late
    if waited or gone and up:
        env.enter_phase(None)
    boots = env["phase"] == "booting" or env["boot"] != env.now.b
    if env["phase"] and not boots:
        return
    started = env["started"]
    if up and (started is None or started["b"] != env.now.b):
        if env["intent"] == "running":  # somebody took it in hand
            env["gave_up"] = False
            if not boots:
                env.reset_attempts()
        env["started"], env["warm"] = env.now.stamp(), False
    elif not up and not boots:
        linked = survey.linked(env.name)
        if env["intent"] == "running" and started is not None and not waited:
            if env["emulator"] == "bhyve" or not linked:
                # The guest ended or reboots, and bhyverun.sh tells CBSD a moment later; or CBSD
                # is about to write what it could not announce.
                env.enter_phase("stopping", "gone")
                return
        elif env["intent"] == "running" and waited and not linked:
            row = survey.rows[env.name]
            if row["status"] == "0" and row["jid"] in ("", "0"):  # CBSD wrote it: no crash
                why = "CBSD has it off, and its stop hooks are not linked"
                env.intend("stopped", "unannounced", why)
        env["started"] = None


def _move_silence(node, old, new):
    """A silence given by command follows its env to a new name, and ends with it (``new`` None)."""
    path = node.in_state("silences.json")
    given = files.read_json(path, [])
    moved = [{**s, "env": new} if s["env"] == old else s for s in given if new or s["env"] != old]
    if moved != given:
        files.write_json(path, moved)
