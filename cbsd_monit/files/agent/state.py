"""What the agent knows of each env on this node, and how hooks change it."""
import contextlib
import json
import os
import re
import sys
import syslog
import time

import files
from node import NAME, SCHEMA, AgentError

HISTORY = 200
LOUD = ("failing", "gave_up", "quarantined", "storm")
# Words among the ancestors of a prestop hook that prove on whose behalf the stop happens.
PROOFS = (
    ("guest", re.compile(r"bhyverun\.sh|cbsd_queue_name=none")),
    ("shutdown", re.compile(r"jails-astart|rc\.shutdown")),
    ("restart", re.compile(r"(?:^|[\s/])[jb]restart(?:\s|$)")),
    ("rename", re.compile(r"(?:^|[\s/])[jb]rename(?:\s|$)")),
)
OURS = ("heal", "restart", "rename", "shutdown")
# Facts never taken from a hook's environment: the shell's and the caller's own.
_FACT_NAME = re.compile(r"[a-z][a-z0-9_]*[0-9]*\Z")
_NOT_FACTS = {"inter", "quiet", "header", "display", "mode", "node"}


class Env:
    """The record of one env: a dict kept in ``envs/ENV.json``."""

    def __init__(self, node, name):
        self.node, self.name = node, name
        self.path = node.in_state("envs", name + ".json")
        found = files.read_json(self.path)
        self.new = found is None
        if found and found.get("schema", 0) > SCHEMA:
            raise AgentError(f"{self.path} has schema {found['schema']}, this agent knows {SCHEMA}")
        self.data = found or {
            "schema": SCHEMA,
            "env": name,
            "emulator": "jail",
            "facts": {},
            "intent": None,
            "state": "unknown",
            "attempts": [],
            "boot": node.boot,
        }
        self._saved = json.dumps(self.data, sort_keys=True)
        self.dir = files.EnvDir(node.sysdir(name))

    def __getitem__(self, key):
        return self.data.get(key)

    def __setitem__(self, key, value):
        self.data[key] = value

    def save(self):
        text = json.dumps(self.data, sort_keys=True)
        if text != self._saved or self.new:
            files.write(self.path, text + "\n")
            self._saved, self.new = text, False

    def forget(self):
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
        """Record one transition in the env's history."""
        record = {
            "id": os.urandom(8).hex(),
            "time": round(time.time(), 3),
            "node": self.node.name,
            "env": self.name,
            "emulator": self["emulator"],
            "transition": transition,
            "from": self["state"],
            "check": check,
            "reason": reason,
            **more,
        }
        line = json.dumps(record, sort_keys=True) + "\n"
        with contextlib.suppress(OSError):  # a full disk must not keep an env from being healed
            old = (self.dir.read("history.jsonl") or "").splitlines(True)
            self.dir.write("history.jsonl", "".join([*old[1 - HISTORY :], line]))
        words = f"{self.name}: {transition}" + (f" ({check})" if check else "") + (f": {reason}" if reason else "")
        say(words, loud=transition in LOUD)


def say(words, loud=False):
    """One line to the agent's log (standard error), and to syslog what nobody should miss."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    print(f"{stamp} {words}", file=sys.stderr, flush=True)
    if loud:
        syslog.openlog("cbsd_monit", 0, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_ERR, words.encode("ascii", "replace").decode())


class HookRecord:
    """One file of the inbox, as docs/contract.md section 6 describes it."""

    def __init__(self, data):
        head, _, environ = data.partition(b"\n\n")
        lines = head.decode("utf-8", "replace").splitlines()
        version, hook, env = lines[0].split(" ", 2)
        if version != "1" or not NAME.match(env):
            raise ValueError(lines[0])
        self.hook, self.env = hook, env
        self.ancestors = lines[1:]
        pairs = (p.decode("utf-8", "replace").partition("=") for p in environ.split(b"\0") if p)
        self.environ = {name: value for name, _, value in pairs}

    def cause(self):
        """On whose behalf a stop happens, and the proof."""
        ours = self.environ.get("CBSD_MONIT_CAUSE")
        if ours in OURS:
            return ours, "CBSD_MONIT_CAUSE"
        for cause, pattern in PROOFS:
            for line in self.ancestors:
                if pattern.search(line):
                    return cause, line.strip()
        own = next((x for x in self.ancestors if "cbsd" not in x), "")
        return "operator", own.strip() or self.environ.get("CBSD_APP", "")

    def facts(self):
        return {
            k: v
            for k, v in self.environ.items()
            if _FACT_NAME.match(k) and k not in _NOT_FACTS and not k.startswith("cm_")
        }


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
            found.append((path, HookRecord(data)))
        except (ValueError, IndexError):
            say(f"unreadable hook record {name}", loud=True)
            os.replace(path, node.in_state("unreadable-hook-record"))
    return found


def drop_inbox(paths):
    """Forget records that were taken; the last keeps its number as `.done`, so that numbers go on growing."""
    for path in paths[:-1]:
        files.remove(path)
    if paths:
        folder, name = os.path.split(paths[-1])
        mark = name.partition(".")[0] + ".done"
        os.replace(paths[-1], os.path.join(folder, mark))
        for other in os.listdir(folder):
            if other.endswith(".done") and other != mark:
                files.remove(os.path.join(folder, other))


def apply(env, record):
    """Change what is known of ``env`` by what one hook saw."""
    hook = record.hook
    if hook in ("master_prestart.d", "master_poststart.d", "master_create.d") or not env["facts"]:
        env["facts"] = record.facts()
    env["emulator"] = record.environ.get("emulator") or env["emulator"]
    if hook == "master_prestart.d":
        env.enter_phase("starting", record.environ.get("CBSD_MONIT_CAUSE"))
    elif hook == "master_poststart.d":
        if record.environ.get("CBSD_MONIT_CAUSE") != "heal":
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
        env["started"], env["warm"] = env.node.stamp(), False
