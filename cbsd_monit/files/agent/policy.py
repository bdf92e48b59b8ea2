"""The policy: in which state is an env, may it be healed, and when."""

import contextlib
import json
import random
import time

import cbsd
import files
from node import SCHEMA

BUILTIN = {
    "heal": True,
    "on_failure": ["restart"],
    "start_period": 60,
    "depends_on": [],
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
PASSIVE = ("alert", "event")


_LADDER = (str, dict)


def _checked(own):
    """``own`` (a policy.json) if it has the shape of docs/contract.md section 5; raises ValueError that says where not."""

    def need(path, value, good):
        if not good:
            raise ValueError(f"policy.json:{path}: {str(value)[:60]!r} is not what belongs there")

    need("schema", own.get("schema", SCHEMA), own.get("schema", SCHEMA) in range(SCHEMA + 1))
    numbers = (int, float)
    for path, part in [("", own), *((f"checks:{n}", c) for n, c in (own.get("checks") or {}).items())]:
        need(path, part, isinstance(part, dict))
        restart = part.get("restart", {})
        need(f"{path}:restart", restart, isinstance(restart, dict))
        for key, value in restart.items():
            kind = type(BUILTIN["restart"].get(key, ""))
            need(f"{path}:restart:{key}", value, isinstance(value, numbers if kind in numbers else kind))
        for key in ("start_period", "interval", "timeout"):
            need(f"{path}:{key}", part.get(key), isinstance(part.get(key, 0), numbers))
        ladder = part.get("on_failure", [])
        need(f"{path}:on_failure", ladder, isinstance(ladder, list) and all(isinstance(r, _LADDER) for r in ladder))
    needs = own.get("depends_on", [])
    need("depends_on", needs, isinstance(needs, list) and all(isinstance(n, str) for n in needs))
    return own


def of(node, env):
    """The policy of ``env``: its own, over the node's, over the built-in one; ``trouble`` says why its own is not used."""
    trouble = ""
    try:
        own = json.loads(env.files()[0]["policy.json"] or "{}")
        if not isinstance(own, dict) or not isinstance(own.get("checks", {}), dict):
            raise ValueError("policy.json: expected a mapping with a mapping of checks")
        own = _checked(own)
    except (ValueError, RecursionError) as err:
        own, trouble = {}, str(err)[:200] or type(err).__name__
    merged = {**BUILTIN, **node.policy, **own, "trouble": trouble}
    merged["restart"] = {
        **BUILTIN["restart"],
        **node.policy.get("restart", {}),
        **own.get("restart", {}),
    }
    return merged


def of_check(policy, check):
    """(ladder, restart) for one check of an env; the env's own where the check says nothing."""
    said = policy["checks"].get(check, {})
    return (
        said.get("on_failure") or policy["on_failure"],
        {**policy["restart"], **said.get("restart", {})},
    )


def silences(node):
    """{env: silence} of those that hold now: pillar's and those given by command."""
    found = {}
    given = files.read_json(node.in_state("silences.json"), [])
    for silence in [*node.silences, *given]:
        if silence.get("until", float("inf")) > time.time():
            found[silence["env"]] = silence
    return found


def acts(policy, check):
    """True if anything is done when ``check`` fails; else it is only told."""
    return any(rung not in PASSIVE for rung in of_check(policy, check)[0])


def attempts_of(env):
    """The heals that the history of an env tells of: an env that migrates brings its attempts along."""
    found = []
    for line in (env.dir.read("history.jsonl") or "").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            if record["transition"] == "healing" and record["env"] == env.name:
                found.append({"t": float(record["time"]), "m": 0, "b": ""})
    return found[-64:]


def silence(node, env, until, by, reason):
    """Never heal ``env`` before ``until`` (seconds since 1970); None takes every silence given by command back."""
    path = node.in_state("silences.json")
    kept = [s for s in files.read_json(path, []) if s["env"] != env and s["until"] > time.time()]
    if until is not None:
        kept.append({"env": env, "until": until, "by": by, "reason": reason})
    files.write_json(path, kept)


def delay(restart, attempts, rnd=random.random):
    """Seconds to wait after ``attempts`` that did not help."""
    base = restart["delay"]
    if restart["delay_function"] == "exponential":
        base *= 2 ** max(0, min(attempts, 30) - 1)
    base = min(base, max(restart["max_delay"], restart["delay"]))
    return base * (1 + restart["jitter"] * (2 * rnd() - 1))


def waits(env):
    """Seconds until the next attempt may begin, 0 when it may."""
    wait = env["next"]
    return max(0.0, wait["seconds"] - env.node.age(wait["after"])) if wait else 0.0


def _phase_limit(env, row, restart):
    return {
        "starting": restart["timeout"],
        "stopping": cbsd.stop_timeout(row),
        "restarting": 600 if env["cause"] == "shutdown" else 60,
        "removing": 180,
        "booting": env.node.budget["boot_grace"],
    }[env["phase"]]


def judge(seen, env, services):
    """
    Put ``env`` into the state that follows from kernel, inventory, monit and intent.

    ``services`` maps its monit services to its checks.  An env that should be healed now is appended to ``seen.due``
    as (env, check, reason).
    """
    node, row = seen.node, seen.rows[env.name]
    policy = of(node, env)
    restart = policy["restart"]
    status = int(row["status"]) if row["status"].isdigit() else 0
    up = None if seen.kernel is None else env.name in seen.kernel.get(row["emulator"], ())

    if env["boot"] != node.boot:  # by boot id, not by clock
        env["boot"], env["op"] = node.boot, None
        env.enter_phase("booting")
    if env["op"] and _busy(node, env):
        return env.go("healing")
    residue = bool(env["op"])  # our own heal was killed: what it left is ours to finish
    if residue:
        env["op"] = None
        env.enter_phase(None)
    if env["phase"] and env.age("phase_since") > _phase_limit(env, row, restart):
        if env["phase"] == "stopping" and env["intent"] == "stopped" and up:
            env.intend("running", "the stop did not happen")
        env.enter_phase(None)

    if row["emulator"] not in cbsd.EMULATORS:
        return env.go("unknown", f"emulator {row['emulator']} is not supported")
    if status == cbsd.SLAVE:
        return env.go("slave", "CBSD: the env is a slave copy")
    if status == cbsd.MAINTENANCE and not residue and env["phase"] is None:
        return env.go("maintenance", "CBSD: status 3")
    if up is None:
        return env.go("unknown", seen.errors.get("(kernel)", ""))
    if env["phase"] == "booting":
        if up:
            env.enter_phase(None)
        elif row["astart"] != "1":
            env.intend("stopped", "CBSD does not start it at boot")
            env.enter_phase(None)
        else:
            return env.go("starting", "the node booted, CBSD has not started it yet")
    if env["intent"] == "stopped":
        if up and env["phase"] is None:
            env.intend("running", "seen running")
        else:
            why = env["intent_why"] or {}
            return env.go("stopped", f"{why.get('cause', '')}: {why.get('by', '')}".strip(": "))
    if env["phase"]:
        return env.go("starting", f"{env['phase']} ({env['cause'] or 'CBSD'})")

    if policy["trouble"]:
        seen.errors.setdefault(env.name, policy["trouble"])
    failing, reason, waiting = _look(seen, env, policy, services, up)
    silence = seen.silences.get(env.name)
    if silence:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(silence.get("until", 0)))
        text = f"until {until} by {silence.get('by', '?')}: {silence.get('reason', '')}"
        return env.go("silenced", text)
    if env.name in seen.quarantined and up:  # a dead one is started: for that monit is not needed
        return env.go("quarantined", seen.quarantined[env.name]["reason"])
    if failing is None:
        if env["gave_up"]:
            return env.go("gave_up")
        if seen.status is None:
            return env.go("unknown", "monit does not answer")
        if waiting and waiting in seen.missing:
            return env.go(
                "unknown", f"monit does not know {env.name}'s check {waiting}: is the include line in its control file?"
            )
        if waiting:
            return env.go("starting", f"waiting for {waiting}") if _in_grace(env, policy) else None
        env["warm"] = True
        if env["state"] == "healthy" and env.age("since") > restart["reset_after"]:
            env.reset_attempts()
        return env.go("healthy")
    return _failing(seen, env, policy, failing, reason, up)


def _busy(node, env):
    """True while somebody holds the env's lock: the heal that its journal names is still going on."""
    try:
        with node.env_lock(env.name, "look"):
            return False
    except Exception:  # noqa: BLE001 - Busy, or a lock file we cannot open: not ours to touch either way
        return True


def _in_grace(env, policy, check=None):
    period = policy["checks"].get(check, {}).get("start_period", policy["start_period"])
    return not env["warm"] and env.age("started") < period


def _look(seen, env, policy, services, up):
    """(failing check or None, why, check that has not been looked at since the start); one that is acted on comes first."""
    if not up:
        return "env", f"{env['emulator']} {env.name} does not run", None
    if seen.status is None:
        return None, "", None
    waiting, failing = None, []
    since = (env["started"] or {}).get("t", 0)
    for name in sorted(services):
        check = services[name]
        service = seen.status.services.get(name)
        if check == "env" and service is not None:
            continue
        if service is not None and service.failing:
            failing.append((not acts(policy, check), check, service.message or f"monit says {service.status}"))
        elif service is None or not service.good_since(since):
            waiting = waiting or check
    if failing:
        _, check, reason = min(failing)
        return check, reason, None
    return None, "", waiting


def _failing(seen, env, policy, check, reason, up):
    ladder, restart = of_check(policy, check)
    if up and _in_grace(env, policy, check):
        return env.go("starting", f"{check}: {reason}", check)
    if env["gave_up"]:
        return env.go("gave_up")
    if env["state"] not in ("failing", "backoff"):
        env.go("failing", reason, check)
    else:
        env["reason"], env["check"] = reason, check
    if not policy["heal"]:
        env["reason"] = f"{reason}; heal: false"
        return None
    if all(rung in PASSIVE or rung == "stop" and not up for rung in ladder):
        return None
    recent = [a for a in env["attempts"] if env.node.age(a) < restart["interval"]]
    if len(recent) >= restart["attempts"]:
        if restart["mode"] == "fail":
            env["gave_up"] = True
            return env.go("gave_up", f"{len(recent)} attempts did not help: {reason}", check)
        left = restart["interval"] - env.node.age(recent[0])
        return env.go("backoff", f"{len(recent)} attempts, next in {left:.0f} s: {reason}", check)
    if waits(env):
        return env.go("backoff", f"next attempt in {waits(env):.0f} s: {reason}", check)
    for other in policy["depends_on"]:
        parent = seen.envs.get(other)
        if parent and parent["state"] not in ("healthy", "silenced", "stopped"):
            env["reason"] = f"{reason}; waits for {other}, which is {parent['state']}"
            return None
    seen.due.append((env, check, reason))
    return None


def storm(seen):
    """
    Many envs failing at once mean the network, not many restarts: then nothing is healed and it is said once.

    Only checks count that would be acted on; an env that is dead is no sign of the network.

    It begins when more than ``storm_threshold`` and at least ``storm_min`` of the envs that should be up began to fail
    within ``storm_window``, and ends when no longer so many fail.
    """
    node, budget = seen.node, seen.node.budget
    path = node.in_state("storm.json")
    up = [e for e in seen.envs.values() if e["intent"] == "running"]
    bad = [
        e
        for e in up
        if e["state"] in ("failing", "healing", "backoff") and e["check"] != "env" and acts(of(node, e), e["check"])
    ]
    fresh = [e for e in bad if e.age("since") < budget["storm_window"]]
    now = files.read_json(path)

    def many(envs):
        return len(envs) >= budget["storm_min"] and len(envs) > budget["storm_threshold"] * len(up)

    if now is None and many(fresh):
        now = {**node.stamp(), "envs": sorted(e.name for e in bad)}
        files.write_json(path, now)
        bad[0].tell("storm", f"{len(bad)} of {len(up)} envs fail at once: nothing is healed until that passes")
    elif now is not None and not many(bad):
        files.remove(path)
        now = None
    if now is not None:  # the network does not kill: what the kernel has lost is started, within the budget
        seen.due = [(env, check, reason) for env, check, reason in seen.due if check == "env"]
    seen.storm = now
