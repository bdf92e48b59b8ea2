"""The record of one env: what this node knows of it, how that changes, and where it is kept."""

import contextlib
import json
import os
import sys
import syslog
import time
from collections import namedtuple

import files
import spool
from node import NAME, SCHEMA, AgentError
from states import LOUD, RECOVERS, WELL

HISTORY = 200  # transitions kept in an env's history.jsonl, besides
ATTEMPTS = 64  # heals, as many as a record counts

# Records that a full disk refused: this process goes on by them, and each pass tries again.
UNSAVED = {}

# What an env's directory holds, None if missing; ``roots``: only root can have written it.
EnvFiles = namedtuple("EnvFiles", "template policy roots")
# ``kept``: it goes into the env's own history; ``before``: the state it left; ``details``: a dict.
Transition = namedtuple("Transition", "name reason check before kept details")


class Record:
    """
    A dict with the rules by which it changes; nothing is written before `save`.

    ``at(now)`` gives a copy to work on, whose ages and stamps are those of that moment.
    """

    def __init__(self, name, data, saved=None, new=False):
        self.name, self.data = name, data
        self.saved = saved  # the data on disk, None if there is none; no value is changed in place
        self.new = new  # nothing of it was saved yet
        self.fresh = new  # first seen by this process: the next pass could make it again
        self.now = None
        self.transitions = []  # that wait to be written

    def at(self, now):
        copy = Record(self.name, dict(self.data), self.saved, self.new)
        copy.fresh, copy.now, copy.transitions = self.fresh, now, list(self.transitions)
        return copy

    def __getitem__(self, key):
        return self.data.get(key)

    def __setitem__(self, key, value):
        self.data[key] = value

    def age(self, key):
        """Seconds since the stamp ``key``, infinite if there is none."""
        return self.now.age(self[key])

    def waits(self):
        """Seconds until the next heal may begin, 0 if it may."""
        wait = self["next"]
        return max(0.0, wait["seconds"] - self.now.age(wait["after"])) if wait else 0.0

    def begun(self):
        """Seconds since the last moment of before which no bad result counts."""
        return min(self.age("started"), self.age("proof_from"))

    def recent(self, seconds):
        """The stamps of the attempts that began within the last ``seconds``, oldest first."""
        return [stamp for stamp in self["attempts"] or () if self.now.age(stamp) < seconds]

    def intend(self, intent, cause, by=""):
        if self["intent"] != intent:
            self["intent"] = intent
            self["intent_why"] = {"cause": cause, "by": by[:200], **self.now.stamp()}

    def why(self):
        """(cause, by whom) of the intent."""
        why = self["intent_why"] or {}
        return why.get("cause", ""), why.get("by", "")

    def enter_phase(self, phase, cause=None):
        self["phase"], self["cause"] = phase, cause
        self["phase_since"] = self.now.stamp() if phase else None

    def reset_attempts(self):
        self["attempts"], self["next"], self["rung"] = [], None, 0

    def go(self, state, reason="", check=None, **details):
        """Enter ``state``; only a change is a transition, otherwise the reason is updated."""
        if self["state"] == state:
            if reason:
                self["reason"] = reason
            return
        before, was, since, now = self["state"], self["reason"], self["since"], self.now.stamp()
        ill = before in RECOVERS or bool(self["ill"])
        if state == "healthy" and ill:
            self.announce("recovered", self["reason"] or "", self["check"])
        # A restart by hand, or a monit that is silent for a while, ends no illness.
        self.data.pop("ill", None)
        self.data.update({"ill": True} if ill and state in ("starting", "unknown") else {})
        self.announce(state, reason, check, **details)
        self["state"], self["reason"], self["check"], self["since"] = state, reason, check, now
        if state in WELL and before not in WELL:
            self["well"] = now
        known = {"state": before, "reason": was or "", "since": (since or {}).get("t")}
        self["known"] = known if state == "unknown" else None

    def announce(self, transition, reason="", check=None, **details):
        """Note a transition for the env's history and for Salt."""
        kept = self["phase"] != "removing"  # CBSD removes the directory: no new file in its way
        self.transitions.append(Transition(transition, reason, check, self["state"], kept, details))


def env_files(node, name):
    """The EnvFiles of an env as of one moment."""
    texts, roots = files.EnvDir(node.sysdir(name)).load(("monitrc.tpl", "policy.json"))
    return EnvFiles(texts["monitrc.tpl"], texts["policy.json"], roots)


def trust(node):
    """trust.json: {env: {"monitrc.tpl": SHA-256, "policy.json": SHA-256}} of what pillar wrote."""
    return files.read_json(node.in_state("trust.json"), {})


def names(node):
    """The names of all envs that have a record."""
    found = (f[:-5] for f in os.listdir(node.in_state("envs")) if f.endswith(".json"))
    return {name for name in found if NAME.match(name)}


def _path(node, name):
    return node.in_state("envs", name + ".json")


def load(node, name):
    """The Record of an env, a new one if there is none; raises AgentError for a newer schema."""
    path = _path(node, name)
    known = UNSAVED.get(path) or files.read_json(path)
    if known and known.get("schema", 0) > SCHEMA:
        raise AgentError(f"{path} has schema {known['schema']}, this agent knows {SCHEMA}")
    first = {"schema": SCHEMA, "env": name, "emulator": "jail", "facts": {}, "intent": None}
    data = known or {**first, "state": "unknown", "attempts": [], "boot": node.boot}
    saved = None if known is None or path in UNSAVED else data
    return Record(name, dict(data), saved, new=known is None)


def save(node, record):
    """
    Write the transitions that wait, and the record if it changed.

    A first-seen record needs no fsync: the next pass makes it again.
    """
    announce(node, record)
    if record.data == record.saved:
        return
    path, text = _path(node, record.name), json.dumps(record.data, sort_keys=True)
    refused_before = path in UNSAVED

    def failed(err):
        if not refused_before:
            say(f"{record.name}: its record cannot be written: {err}", loud=True)
        UNSAVED[path] = json.loads(text)

    record.new, record.saved = False, dict(record.data)
    UNSAVED.pop(path, None)
    files.write(path, text + "\n", failed=failed, **_urgency(record))


def _urgency(record):
    """How to write what belongs to a record: of a first-seen one nothing needs an fsync."""
    return {"durable": not record.fresh, "late": record.fresh}


def announce(node, record):
    """Write the transitions that wait: to the env's history, for Salt, and to the log."""
    steps, record.transitions, lines = record.transitions, [], []
    for step in steps:
        where = (record.name, record["emulator"], step.reason, step.check, step.before)
        event = spool.event(node, step.name, *where, **step.details)
        lines += [json.dumps(event, sort_keys=True) + "\n"] if step.kept else []
        spool.append(node, event)
        words = f"{record.name}: {step.name}" + (f" ({step.check})" if step.check else "")
        say(words + (f": {step.reason}" if step.reason else ""), loud=step.name in LOUD)
    if lines:
        folder = files.EnvDir(node.sysdir(record.name))
        with contextlib.suppress(OSError):  # a full disk must not keep an env from being healed
            old = (folder.read("history.jsonl") or "").splitlines(True)
            kept = "".join(_shortened([*old, *lines]))
            folder.write("history.jsonl", kept, **_urgency(record))


def _shortened(lines):
    """The last HISTORY ``lines``, and before them heals: attempts are counted from those."""
    more = lines[:-HISTORY]
    heals = [line for line in more if '"transition": "healing"' in line]
    room = ATTEMPTS - sum('"transition": "healing"' in line for line in lines[-HISTORY:])
    return heals[-room:] + lines[-HISTORY:] if room > 0 else lines[-HISTORY:]


def history(node, name):
    """The transitions of an env, oldest first; lines that are no records are left out."""
    found = []
    for line in (files.EnvDir(node.sysdir(name)).read("history.jsonl") or "").splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            found += [entry] if isinstance(entry, dict) else []
    return found


def forget(node, name):
    UNSAVED.pop(_path(node, name), None)
    for path in (_path(node, name), node.dead_marker(name)):
        files.remove(path)


@contextlib.contextmanager
def changing(node, name, patience=60):
    """Hold the pass lock, give the env's Record to change, and save it unless it is unknown."""
    with node.pass_lock(patience):
        env = load(node, name).at(node.now())
        yield env
        if not env.new:
            save(node, env)


def say(words, loud=False):
    """One line to the agent's log (standard error), and to syslog what nobody should miss."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    with contextlib.suppress(OSError):
        print(f"{stamp} {words}", file=sys.stderr, flush=True)
    if loud:
        syslog.openlog("cbsd_monit", 0, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_ERR, words.encode("ascii", "replace").decode())
