#!py
"""
A node that reports something is asked to look at itself; docs/events.md.

For `cbsd_monit/*/batch` (an env fails whose policy says `on_failure: event`; an env appeared that
nobody watches) and for `salt/minion/*/start`. Python, so that nothing of an event is ever
rendered: the reaction is `cbsd_monit.recheck`, its target a list of one accepted minion, its
arguments names of envs. A minion can forge the tag, and the id in an event that it sends as a
beacon does; then another node looks at itself, and that is all.
"""

import hashlib
import os
import re
import time

MINION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z", re.ASCII)
ENV = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\Z")
EVERY = 5  # seconds: what comes sooner is ignored, for the node's agent looks by itself as well
APPEARED = ("created", "started", "renamed")


def run():
    minion = data.get("id")  # noqa: F821 - given by the renderer
    if not isinstance(minion, str) or not MINION.match(minion):
        return {}
    keys = os.path.join(__opts__["pki_dir"], "minions")
    if os.path.isdir(keys) and not os.path.exists(os.path.join(keys, minion)):
        return {}
    envs, adopt = set(), tag == f"salt/minion/{minion}/start"  # noqa: F821 - given by the renderer
    for record in _records(data):  # noqa: F821 - given by the renderer
        env, transition = record.get("env"), record.get("transition")
        if not isinstance(env, str) or not ENV.match(env):
            continue
        if transition == "failing" and record.get("event") is True:
            envs.add(env)
        elif transition in APPEARED and record.get("reason") == "not watched":
            adopt = True
    envs = sorted(env for env in envs if _due(minion, "recheck", env))[:50]
    adopt = adopt and _due(minion, "adopt", "")
    if not envs and not adopt:
        return {}
    return {
        "cbsd_monit looks again": {
            "local.cbsd_monit.recheck": [
                {"tgt": [minion]},
                {"tgt_type": "list"},
                {"args": [{"envs": envs}, {"adopt": adopt}]},
            ]
        }
    }


def _records(event):
    content = event.get("data")
    records = content.get("records") if isinstance(content, dict) else None
    return [r for r in records if isinstance(r, dict)][:1000] if isinstance(records, list) else []


def _due(*about):
    """Return True once in EVERY seconds for the same; kept in files, for each event runs anew."""
    folder = os.path.join(__opts__["cachedir"], "cbsd_monit", "reactor")
    path = os.path.join(folder, hashlib.sha256(" ".join(about).encode()).hexdigest()[:2])
    os.makedirs(folder, 0o700, exist_ok=True)
    word = hashlib.sha256(" ".join(about).encode()).hexdigest()
    now, kept, due = time.time(), [], True
    if os.path.exists(path):  # at most 256 files, whatever is forged
        with open(path, encoding="ascii") as lines:
            for line in lines:
                name, _, moment = line.partition(" ")
                if now - float(moment or 0) < EVERY:
                    kept.append(line)
                    due = due and name != word
    if due and len(kept) < 1000:
        with open(path + ".new", "w", encoding="ascii") as out:
            out.writelines([*kept, f"{word} {now:.3f}\n"])
        os.replace(path + ".new", path)
    return due and len(kept) < 1000
