#!py
"""
People are told what is beyond the agent, or over; docs/events.md.

For `cbsd_monit/*/*/gave_up` and so on, and what the node itself says, as `(node)`. The record is put into a queue, and the runner
`cbsd_monit.notify` is started at most once a second to send what has gathered: ten thousand events
are a few messages. Nothing of an event is rendered; the runner gets no arguments from it, and
makes its text printable.
"""

import fcntl
import json
import os
import re
import time

MINION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z", re.ASCII)
ENV = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\Z")
ALONE = ("gave_up", "quarantined", "storm", "calm", "warning", "recovered")
NODE = "(node)"  # stands where the name of an env does
OF_NODE = ("failing", "healthy", "storm", "calm")
MAX = 1 << 20


def run():
    minion, record = data.get("id"), data.get("data")  # noqa: F821 - given by the renderer
    if not isinstance(minion, str) or not MINION.match(minion) or not isinstance(record, dict):
        return {}
    env, transition = record.get("env"), record.get("transition")
    if not isinstance(env, str) or not (env == NODE or ENV.match(env)):
        return {}
    if transition not in (OF_NODE if env == NODE else ALONE):
        return {}
    keys = os.path.join(__opts__["pki_dir"], "minions")
    if os.path.isdir(keys) and not os.path.exists(os.path.join(keys, minion)):
        return {}
    entry = {key: str(record.get(key) or "")[:300] for key in ("id", "check", "reason")}
    entry.update(node=minion, env=env, transition=transition, time=time.time())
    line = json.dumps(entry)
    folder = os.path.join(__opts__["cachedir"], "cbsd_monit")
    os.makedirs(folder, 0o700, exist_ok=True)
    with open(os.path.join(folder, "notify.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(os.path.join(folder, "notify.jsonl"), "a", encoding="ascii") as queue:
            if queue.tell() < MAX:
                queue.write(line + "\n")
        stamp = os.path.join(folder, "notify.started")
        if os.path.exists(stamp) and 0 <= time.time() - os.path.getmtime(stamp) < 1:
            return {}
        with open(stamp, "w"):
            pass
    return {"cbsd_monit tells": {"runner.cbsd_monit.notify": [{"args": [{"wait": 2}]}]}}
