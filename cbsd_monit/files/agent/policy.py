"""The policy of an env: read, checked, and laid over the node's; and the silences."""

import json

import files
from node import NAME, SCHEMA

BUILTIN = {
    "heal": True,
    "on_failure": ["restart"],
    "start_period": 60,
    "depends_on": [],
    "restart_with": [],
    "restart": {
        "attempts": 3,
        "interval": 1800,
        "delay": 15,
        "delay_function": "exponential",
        "max_delay": 300,
        "jitter": 0.25,
        "reset_after": 600,
        "mode": "fail",
        "timeout": 300,
    },
    "checks": {},
}
PASSIVE = ("alert", "event")  # steps of a ladder that heal nothing
_NUMBER = (int, float)
_KEYS = {  # of a check, as far as the agent reads them: the types that they may have
    **dict.fromkeys(("start_period", "interval", "timeout"), _NUMBER),
    **dict.fromkeys(("min", "max", "max_age", "min_size", "max_size"), (*_NUMBER, type(None))),
    **dict.fromkeys(("type", "in", "path", "pidfile", "name"), (str, bool, type(None))),
    **{"command": list, "failure_threshold": (int, dict), "success_threshold": int},
}


def _checked(own):
    """``own`` if it has the shape of docs/contract.md section 5; else ValueError says where not."""

    def need(path, value, kinds, items=object, good=True):
        whole = isinstance(value, kinds) and good
        if not whole or isinstance(value, list) and not all(isinstance(v, items) for v in value):
            raise ValueError(f"policy.json:{path}: {str(value)[:60]!r} is not what belongs there")

    schema = own.get("schema", SCHEMA)
    need("schema", schema, object, good=schema in range(SCHEMA + 1))
    checks = (own.get("checks") or {}).items()
    for path, part in [("", own), *((f"checks:{name}", check) for name, check in checks)]:
        need(path, part, dict)
        need(f"{path}:restart", part.get("restart", {}), dict)
        for key, value in part.get("restart", {}).items():
            kind = type(BUILTIN["restart"].get(key, ""))
            need(f"{path}:restart:{key}", value, _NUMBER if kind in _NUMBER else kind)
        for key in sorted(_KEYS.keys() & part.keys()):
            need(f"{path}:{key}", part[key], _KEYS[key], items=str)
        threshold = part.get("failure_threshold")
        for key in ("failures", "within") if isinstance(threshold, dict) else ():
            need(f"{path}:failure_threshold:{key}", threshold.get(key), int)
        need(f"{path}:on_failure", part.get("on_failure", []), list, items=(str, dict))
    need("restart_with", own.get("restart_with", []), list, items=str)
    need("depends_on", own.get("depends_on", []), list, items=(str, dict))
    for at, entry in enumerate(own.get("depends_on", [])):
        if isinstance(entry, dict):
            need(
                f"depends_on:{at}:node",
                entry.get("node"),
                str,
                good=NAME.match(str(entry.get("node"))),
            )
    return own


def load(node, text):
    """
    The policy of an env: its own policy.json (``text`` or None) over the node's over BUILTIN.

    ``trouble`` in it says why its own is not used, '' if it is.
    """
    trouble = ""
    try:
        own = json.loads(text or "{}")
        if not isinstance(own, dict) or not isinstance(own.get("checks", {}), dict):
            raise ValueError("policy.json: expected a mapping with a mapping of checks")
        own = _checked(own)
    except (ValueError, RecursionError) as err:
        words = str(err)[:200] or type(err).__name__
        own, trouble = {}, words if "policy.json" in words else f"policy.json: {words}"
    restarts = (BUILTIN["restart"], node.policy.get("restart", {}), own.get("restart", {}))
    merged = {**BUILTIN, **node.policy, **own, "trouble": trouble, "restart": {}}
    for restart in restarts:
        merged["restart"].update(restart)
    return merged


def of_check(policy, check):
    """
    (ladder, restart) of one check of an env; the env's own where the check says nothing.

    The check `env` (the env runs at all) follows the check of type `running`, where there is one.
    """
    checks = policy["checks"]
    if check == "env":
        running = [name for name, row in sorted(checks.items()) if row.get("type") == "running"]
        check = (running or [check])[0]
    row = checks.get(check, {})
    restart = {**policy["restart"], **row.get("restart", {})}
    return row.get("on_failure") or policy["on_failure"], restart


def parents(policy):
    """The envs that an env depends on."""
    return [other for other in policy["depends_on"] if isinstance(other, str)]


def of_node(policy):
    """The checks of the node that an env depends on."""
    return [other["node"] for other in policy["depends_on"] if isinstance(other, dict)]


def acts(policy, check):
    """True if anything is done when ``check`` fails; otherwise it is only an alert."""
    return any(step not in PASSIVE for step in of_check(policy, check)[0])


def patience(policy):
    """Seconds after a start in which a failure of some check does not count yet."""
    periods = [row.get("start_period", 0) for row in policy["checks"].values()]
    return max([policy["start_period"], *periods])


def delay(restart, attempts, rnd=None):
    """Seconds to wait after ``attempts`` that did not help; ``rnd`` gives numbers from 0 to 1."""
    import random

    base = restart["delay"]
    if restart["delay_function"] == "exponential":
        base *= 2 ** max(0, min(attempts, 30) - 1)
    base = min(base, max(restart["max_delay"], restart["delay"]))
    return base * (1 + restart["jitter"] * (2 * (rnd or random.random)() - 1))


def silences(node, now):
    """{env: silence} of those that hold at ``now``: pillar's and those given by command."""
    given = files.read_json(node.in_state("silences.json"), [])
    every = [*node.silences, *given]
    return {s["env"]: s for s in every if s.get("until", float("inf")) > now.t}


def silence(node, env, until, by, reason, now):
    """Silence ``env`` until a moment (seconds since 1970); None ends those given by command."""
    path = node.in_state("silences.json")
    kept = [s for s in files.read_json(path, []) if s["env"] != env and s["until"] > now.t]
    if until is not None:
        kept.append({"env": env, "until": until, "by": by, "reason": reason})
    files.write_json(path, kept)
