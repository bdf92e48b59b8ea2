"""What the agent knows of each env on this node, and how hooks change it."""

import contextlib
import fnmatch
import json
import os
import re
import sys
import syslog
import time

import files
import spool
from node import NAME, SCHEMA, AgentError

HISTORY = 200
LOUD = ("failing", "gave_up", "quarantined", "storm")
INTERPRETERS = re.compile(r"-?(?:sh|bash|dash|csh|tcsh|ksh|zsh|python[0-9.]*)\Z")
OURS = ("heal", "restart", "rename", "shutdown")
# Facts never taken from a hook's environment: the shell's and the caller's own.
_FACT_NAME = re.compile(r"[a-z][a-z0-9_]*[0-9]*\Z")
_NOT_FACTS = {"inter", "quiet", "header", "display", "mode", "node"}


# Records that a full disk kept from being written: this process goes on by them, and tries again with each pass.
UNSAVED = {}


def texts(node, env):
    """({"monitrc.tpl": text or None, "policy.json": text or None}, True if only root can have written them), as of one moment."""
    return files.EnvDir(node.sysdir(env)).load(("monitrc.tpl", "policy.json"))


class Env:
    """The record of one env: a dict kept in ``envs/ENV.json``; ``found`` are its ``texts`` where they have been read."""

    def __init__(self, node, name, found=None):
        self._files = found
        self.node, self.name = node, name
        self.path = node.in_state("envs", name + ".json")
        known = UNSAVED.get(self.path) or files.read_json(self.path)
        self.new = self.fresh = known is None
        if known and known.get("schema", 0) > SCHEMA:
            raise AgentError(f"{self.path} has schema {known['schema']}, this agent knows {SCHEMA}")
        self.data = known or {
            "schema": SCHEMA,
            "env": name,
            "emulator": "jail",
            "facts": {},
            "intent": None,
            "state": "unknown",
            "attempts": [],
            "boot": node.boot,
        }
        self._saved = (
            None if self.new or self.path in UNSAVED else json.dumps(self.data, sort_keys=True)
        )
        self.dir = files.EnvDir(node.sysdir(name))

    def __getitem__(self, key):
        return self.data.get(key)

    def __setitem__(self, key, value):
        self.data[key] = value

    def save(self):
        text = json.dumps(self.data, sort_keys=True)
        if text == self._saved:
            return

        def failed(err):
            if self.path not in told:
                say(f"{self.name}: its record cannot be written: {err}", loud=True)
            UNSAVED[self.path] = json.loads(text)

        self.new, self._saved = False, text
        told = set(UNSAVED)
        UNSAVED.pop(self.path, None)
        files.write(self.path, text + "\n", failed=failed, **self._worth())

    def _worth(self):
        """Nothing of an env that was seen for the first time is worth a sync, nor two: the next look would see it again."""
        return {"durable": not self.fresh, "late": self.fresh}

    def files(self):
        """Its ``texts``, read once."""
        if self._files is None:
            self._files = texts(self.node, self.name)
        return self._files

    def history(self):
        """The transitions of this env, oldest first; lines that are no records are left out."""
        found = []
        for line in (self.dir.read("history.jsonl") or "").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                found += [record] if isinstance(record, dict) else []
        return found

    def forget(self):
        UNSAVED.pop(self.path, None)
        for path in (self.path, self.node.dead_marker(self.name)):
            files.remove(path)

    def age(self, key):
        return self.node.age(self[key])

    def intend(self, intent, cause, by=""):
        if self["intent"] != intent:
            self["intent"] = intent
            self["intent_why"] = {"cause": cause, "by": by[:200], **self.node.stamp()}

    def enter_phase(self, phase, cause=None):
        self["phase"], self["cause"] = phase, cause
        self["phase_since"] = self.node.stamp() if phase else None

    def reset_attempts(self):
        self["attempts"], self["next"], self["rung"] = [], None, 0

    def go(self, state, reason="", check=None, **more):
        """Enter ``state``; a change is one transition, recorded and said once."""
        if self["state"] == state:
            if reason:
                self["reason"] = reason
            return
        self.tell(state, reason, check, **more)
        self["state"], self["reason"], self["check"] = state, reason, check
        self["since"] = self.node.stamp()

    def tell(self, transition, reason="", check=None, **more):
        """Record one transition in the env's history, and for Salt."""
        record = spool.event(
            self.node, transition, self.name, self["emulator"], reason, check, self["state"], **more
        )
        line = json.dumps(record, sort_keys=True) + "\n"
        if (
            self["phase"] != "removing"
        ):  # CBSD is about to remove the directory, and would stumble over a new file in it
            with contextlib.suppress(OSError):  # a full disk must not keep an env from being healed
                old = (self.dir.read("history.jsonl") or "").splitlines(True)
                self.dir.write(
                    "history.jsonl", "".join([*old[1 - HISTORY :], line]), **self._worth()
                )
        spool.append(self.node, record)
        words = (
            f"{self.name}: {transition}"
            + (f" ({check})" if check else "")
            + (f": {reason}" if reason else "")
        )
        say(words, loud=transition in LOUD)


def say(words, loud=False):
    """One line to the agent's log (standard error), and to syslog what nobody should miss."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    with contextlib.suppress(OSError):
        print(f"{stamp} {words}", file=sys.stderr, flush=True)
    if loud:
        syslog.openlog("cbsd_monit", 0, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_ERR, words.encode("ascii", "replace").decode())


class HookRecord:
    """One file of the inbox, as docs/contract.md section 6 describes it; a torn one knows hook and env from its name."""

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
        """On whose behalf a stop happens, and the proof: ours by the environment, others' by the programs above us."""
        ours = self.environ.get("CBSD_MONIT_CAUSE")
        if ours in OURS:
            return ours, "CBSD_MONIT_CAUSE"
        for line in self.ancestors:
            cause = _proof(line, self.env)
            if cause:
                return cause, line.strip()
        scripts = [words for words in map(_script, self.ancestors) if words]
        typed = next(
            (" ".join(words) for words in scripts if words[0] == "cbsd"),
            self.environ.get("CBSD_APP", ""),
        )
        by = next((" ".join(words) for words in scripts if words[0] != "cbsd"), "")
        return "operator", f"{typed[:100]}, run by {by}" if by else typed

    def facts(self):
        return {
            k: v
            for k, v in self.environ.items()
            if _FACT_NAME.match(k) and k not in _NOT_FACTS and not k.startswith("cm_")
        }


def _script(line):
    """[program, argument, …] of one line `pid ppid command`, interpreters skipped; [] for shell code (`sh -c …`)."""
    words = line.split()[2:]
    while words and INTERPRETERS.match(os.path.basename(words[0])):
        words = words[1:]
        while words and words[0].startswith("-"):
            if "c" in words[0]:
                return []  # a text that mentions a command is no proof that the command asks
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


def read_inbox(node):
    """The hook records that wait, oldest first: [(path, HookRecord)]; what is no record is set aside and said."""
    folder = node.in_state("inbox")
    found = []
    for name in sorted(os.listdir(folder)):
        number, _, suffix = name.partition(".")
        if not number.isdigit() or suffix == "done":
            continue
        path = os.path.join(folder, name)
        with open(path, "rb") as handle:
            data = handle.read()
        try:
            found.append((path, HookRecord(data, name)))
        except (ValueError, IndexError):
            say(f"unreadable hook record {name}", loud=True)
            with contextlib.suppress(OSError):
                os.replace(path, node.in_state("unreadable-hook-record"))
    return found


def drop_inbox(paths):
    """Forget records that were taken; the last keeps its number as `.done`, so that numbers go on growing."""
    for path in paths[:-1]:
        files.remove(path)
    if paths:
        folder, name = os.path.split(paths[-1])
        os.replace(paths[-1], os.path.join(folder, name.partition(".")[0] + ".done"))
        for mark in sorted(other for other in os.listdir(folder) if other.endswith(".done"))[:-1]:
            files.remove(os.path.join(folder, mark))


def _boots(env):
    """True while CBSD starts what it starts at boot: that is nobody's wish, and ends no back-off."""
    return env["boot"] != env.node.boot or env["phase"] == "booting" or env["cause"] == "boot"


def apply(env, record):
    """Change what is known of ``env`` by what one hook saw."""
    hook, env.fresh = record.hook, False  # no look would find that out again
    if not record.torn and (
        hook in ("master_prestart.d", "master_poststart.d", "master_create.d") or not env["facts"]
    ):
        env["facts"] = record.facts()
    env["emulator"] = record.environ.get("emulator") or env["emulator"]
    if hook == "master_prestart.d":
        env.enter_phase(
            "starting", record.environ.get("CBSD_MONIT_CAUSE") or ("boot" if _boots(env) else None)
        )
    elif hook == "master_poststart.d":
        if (
            record.environ.get("CBSD_MONIT_CAUSE") != "heal"
        ):  # our own start is nobody's wish, and may come after a stop
            if not _boots(env):
                env.reset_attempts()  # somebody took it in hand
            env["gave_up"] = False
            env.intend("running", "started", record.environ.get("CBSD_APP", ""))
        env.enter_phase(None)
        if record.environ.get("jid", "0") != "0":
            env["started"], env["warm"] = env.node.stamp(), False
    elif hook == "master_prestop.d":
        cause, proof = record.cause()
        if env["phase"] == "removing":
            return
        env.enter_phase("stopping", cause)
        if cause == "operator":
            env.intend("stopped", cause, proof)
    elif hook == "master_poststop.d":
        if env["phase"] == "stopping":
            again = env["cause"] in ("restart", "rename", "shutdown")
            env.enter_phase("restarting" if again else None, env["cause"])
    elif hook == "remove.d":
        env.enter_phase("removing", "remove")
        env.intend("stopped", "remove", record.cause()[1])
    elif hook == "master_reboot.d":
        env.enter_phase(
            "restarting", "guest"
        )  # the kernel may lose it for a moment; no hook tells when it is back
        env["started"], env["warm"] = env.node.stamp(), False
