"""What is known of each env now, and for how long it was known: the answer of `wake status`."""

import files
import policy
import proof
import records
from states import LEFT_ALONE, NODE, WELL

_KEYS = (
    "emulator state since check reason intent intent_why attempts restarts last next silence "
    "quarantined age last_known failing checks held worst_cycle limit"
).split()
_EMPTY = {**dict.fromkeys(_KEYS), "attempts": 0, "restarts": 0, "last": []}
_EMPTY.update(reason="", failing={}, checks={})


def rows(node, now, only=None):
    """
    {env or NODE: row} of all there are, or of NODE and the env ``only``, at ``now``.

    A row has the keys of docs/contract.md section 6. A state that no pass, or no round of monit,
    has confirmed within the limit is `unknown`; the last known one is beside it.
    """
    proven = proof.load(node)
    silences = policy.silences(node, now)
    quarantined = files.read_json(node.in_state("quarantine.json"), {})
    found = {}
    for name in sorted(records.names(node)) if only is None else [only]:
        env = records.load(node, name).at(now)
        if not env.new:
            row = _of_env(node, env, proven, now)
            row["silence"] = silences.get(name)
            row["quarantined"] = quarantined.get(name, {}).get("reason")
            found[name] = row
    for name, env in proven.more.get("unwatched", {}).items():
        if name not in found and only in (None, name):
            age = _shown(now.age(proven.stamp))
            found[name] = {**_EMPTY, "emulator": env["emulator"], "state": "unwatched", "age": age}
    return {**found, NODE: _of_node(proven, now)}


def _shown(age):
    """``age`` in seconds, None for what never was."""
    return None if age == float("inf") else round(age, 1)


def _of_env(node, env, proven, now):
    wait = env["next"] if env["state"] in ("failing", "backoff") else None
    failing = {} if env["state"] in (*LEFT_ALONE, "stopped") else env["failing"] or {}
    row = {
        **_EMPTY,
        **{key: env[key] for key in ("emulator", "state", "check", "intent", "intent_why")},
        "since": (env["since"] or {}).get("t"),
        "reason": env["reason"] or "",
        "attempts": len(env["attempts"]),
        "restarts": env["heals"] or 0,
        "last": records.history(node, env.name)[-5:],
        "next": wait and round(wait["after"]["t"] + wait["seconds"], 3),
        "last_known": env["known"],
        "failing": {check: _failure(entry) for check, entry in failing.items()},
        "checks": {c: _of_check(s, now) for c, s in proven.checks.get(env.name, {}).items()},
    }
    by_monit = _proven_by_monit(env)
    age = max(now.age(proven.stamp), now.age(proven.round) if by_monit else 0)
    row["age"] = _shown(age)
    doubt = proven.doubt(now) or (proven.stalled(now) if by_monit else "")
    if (env["phase"], env["cause"]) == ("removing", "gone"):
        doubt = env["reason"]  # it may turn up under another name
    if doubt and env["state"] != "unknown":
        row["last_known"] = {key: row[key] for key in ("state", "reason", "since")}
        row.update(state="unknown", reason=doubt, next=None)
    return row


def _proven_by_monit(env):
    """True if the state of ``env`` is what its checks say."""
    if env["intent"] != "running" or env["phase"] or env["op"] or env["check"] == "env":
        return False
    return env["state"] in (*WELL, "starting", "failing", "backoff")


def _failure(entry):
    words = {key: entry[key] for key in ("reason", "warning")}
    return {"since": entry["since"]["t"], **words}


def _of_check(seen, now):
    return {"result": seen.result, "age": _shown(seen.age(now)), "bound": seen.bound}


def _unproven(own, now):
    """Why not all of the node's own checks are proven; '' if they are."""
    for check, seen in sorted(own.items()):
        if seen.result in ("unwatched", "absent", "unread", "unasked", "never"):
            return f"{check}: {seen.words}"
        if seen.overdue(now):
            return f"{check} has not run for {seen.age(now):.0f} s"
    return ""


def _of_node(proven, now):
    """The row of the node itself: its own checks, and how long what is known of it holds."""
    own = proven.checks.get(NODE, {})
    bad = {check: seen for check, seen in sorted(own.items()) if seen.result == "bad"}
    age = max(now.age(proven.stamp), now.age(proven.round))
    row = {
        **_EMPTY,
        "state": "failing" if bad else "healthy",
        "check": next(iter(bad), None),
        "reason": "; ".join(f"{check}: {seen.reason}" for check, seen in bad.items()),
        "failing": {
            check: {"since": seen.at[0], "reason": seen.reason, "warning": False}
            for check, seen in bad.items()
        },
        "checks": {check: _of_check(seen, now) for check, seen in own.items()},
        "age": _shown(age),
        "held": proven.more.get("held"),
        "worst_cycle": proven.worst,
        "limit": proven.limit,
    }
    doubt = proven.doubt(now) or proven.stalled(now) or ("" if bad else _unproven(own, now))
    if doubt:
        known = {"state": row["state"], "reason": row["reason"], "since": None}
        row.update(state="unknown", reason=doubt, last_known=known if proven.stamp else None)
    return row
