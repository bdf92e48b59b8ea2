"""The policy: in which state is an env, may it be healed, and when."""

import contextlib
import json
import time

import cbsd
import files
from monit import PROBES, Outcome
from node import SCHEMA

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
PASSIVE = ("alert", "event")
RECHECK = 60  # seconds in which the fleet's answer to an `event` counts
ORPHAN = 60  # seconds beyond its time after which a command that outlived its agent is killed
SETTLE = 60  # seconds at most that the first failure waits for those that may come with it
ILL = ("starting", "failing", "healing", "backoff", "gave_up", "stopped")

_LADDER = (str, dict)


def _checked(own):
    """``own`` (a policy.json) if it has the shape of docs/contract.md section 5; raises ValueError that says where not."""

    def need(path, value, good):
        if not good:
            raise ValueError(f"policy.json:{path}: {str(value)[:60]!r} is not what belongs there")

    need("schema", own.get("schema", SCHEMA), own.get("schema", SCHEMA) in range(SCHEMA + 1))
    numbers = (int, float)
    for path, part in [
        ("", own),
        *((f"checks:{n}", c) for n, c in (own.get("checks") or {}).items()),
    ]:
        need(path, part, isinstance(part, dict))
        restart = part.get("restart", {})
        need(f"{path}:restart", restart, isinstance(restart, dict))
        for key, value in restart.items():
            kind = type(BUILTIN["restart"].get(key, ""))
            need(
                f"{path}:restart:{key}",
                value,
                isinstance(value, numbers if kind in numbers else kind),
            )
        for key in ("start_period", "interval", "timeout"):
            need(f"{path}:{key}", part.get(key), isinstance(part.get(key, 0), numbers))
        ladder = part.get("on_failure", [])
        need(
            f"{path}:on_failure",
            ladder,
            isinstance(ladder, list) and all(isinstance(r, _LADDER) for r in ladder),
        )
    for key in ("depends_on", "restart_with"):
        needs = own.get(key, [])
        need(key, needs, isinstance(needs, list) and all(isinstance(n, str) for n in needs))
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
    """
    (ladder, restart) for one check of an env; the env's own where the check says nothing.

    The check `env`, that it runs at all, is what a check of type `running` says it is, where there is one.
    """
    alive = [
        name for name, said in sorted(policy["checks"].items()) if said.get("type") == "running"
    ]
    said = policy["checks"].get(alive[0] if check == "env" and alive else check, {})
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
    told = [
        r for r in env.history() if r.get("transition") == "healing" and r.get("env") == env.name
    ]
    return [
        {"t": float(r["time"]), "m": 0, "b": ""}
        for r in told
        if isinstance(r.get("time"), (int, float))
    ][-64:]


def silence(node, env, until, by, reason):
    """Never heal ``env`` before ``until`` (seconds since 1970); None takes every silence given by command back."""
    path = node.in_state("silences.json")
    kept = [s for s in files.read_json(path, []) if s["env"] != env and s["until"] > time.time()]
    if until is not None:
        kept.append({"env": env, "until": until, "by": by, "reason": reason})
    files.write_json(path, kept)


def patience(policy):
    """Seconds after a start in which a failure of some check does not count yet."""
    return max(
        [
            policy["start_period"],
            *(said.get("start_period", 0) for said in policy["checks"].values()),
        ]
    )


def delay(restart, attempts, rnd=None):
    """Seconds to wait after ``attempts`` that did not help; ``rnd`` gives numbers from 0 to 1, by default at random."""
    import random

    base = restart["delay"]
    if restart["delay_function"] == "exponential":
        base *= 2 ** max(0, min(attempts, 30) - 1)
    base = min(base, max(restart["max_delay"], restart["delay"]))
    return base * (1 + restart["jitter"] * (2 * (rnd or random.random)() - 1))


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
    policy = seen.told[env.name] = seen.told.get(env.name) or of(node, env)
    restart = policy["restart"]
    status = int(row["status"]) if row["status"].isdigit() else 0
    up = None if seen.kernel is None else env.name in seen.kernel.get(row["emulator"], ())

    if env["boot"] != node.boot:  # by boot id, not by clock
        env["boot"], env["op"] = node.boot, None
        env.enter_phase("booting")
    if env["op"] and _busy(node, env):
        if env.age("op") > cbsd.stop_timeout(row) + restart["timeout"] + ORPHAN:
            cbsd.end_orphan(node, env.name)
        return env.go("healing")
    residue = bool(env["op"])  # our own heal was killed: what it left is ours to finish
    if residue:
        env["op"] = None
        if env["cause"] == "heal":  # what somebody else began meanwhile is theirs
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
    failing, reason, waiting, untold = _look(seen, env, policy, services, up)
    silence = seen.silences.get(env.name)
    if silence:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(silence.get("until", 0)))
        text = f"until {until} by {silence.get('by', '?')}: {silence.get('reason', '')}"
        return env.go("silenced", text)
    if env.name in seen.quarantined and up:  # a dead one is started: for that monit is not needed
        return env.go("quarantined", seen.quarantined[env.name]["reason"])
    if (
        env["state"] == "healthy" and env.age("since") > restart["reset_after"]
    ):  # nobody need have looked meanwhile
        env.reset_attempts()
    if failing is None:
        if env["gave_up"]:
            return env.go("gave_up")
        if seen.status is None:
            return env.go("unknown", "monit does not answer")
        if untold:
            return env.go("unknown", untold)
        if waiting and waiting in seen.missing:
            return env.go(
                "unknown",
                f"monit does not know {env.name}'s check {waiting}: is the include line in its control file?",
            )
        if waiting:
            begins = (
                _in_grace(env, policy) or not env["warm"] and env["state"] in ("stopped", "unknown")
            )
            return env.go("starting", f"waiting for {waiting}") if begins else None
        env["warm"] = True
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


def _results(seen, env, policy, services):
    """[(check, Service, Outcome or None)] of all checks of ``env``: monit's, and those that the agent runs itself."""
    found = [(services[name], seen.status.services.get(name)) for name in sorted(services)]
    if seen.node.conf.get("probes") == "agent":
        last = env["probes"] or {}
        for check, said in sorted(policy["checks"].items()):
            if said.get("type") in PROBES:
                found.append((check, Outcome(said, last[check]) if check in last else None))
    return found


def _look(seen, env, policy, services, up):
    """
    (failing check or None, why, check not looked at since the start, what could not be asked and why).

    A check that is acted on comes first. ``seen.suspects`` gets the env if the last run of such a check failed, whether
    or not that counts yet.
    """
    if not up:
        seen.suspects.add(env.name)
        return "env", f"{env['emulator']} {env.name} does not run", None, ""
    if seen.status is None:
        return None, "", None, ""
    waiting, untold, failing = None, "", []
    since = time.time() - env.age(
        "started"
    )  # by the clock that monit has now, should it have been set since
    for check, service in _results(seen, env, policy, services):
        if check == "env" and service is not None:
            continue
        if service is not None and service.suspect and acts(policy, check):
            seen.suspects.add(env.name)
        if (
            service is not None and service.failing and service.collected > since
        ):  # before it: of the env as it was
            words = service.message or f"monit says {service.status}"
            failing.append((not acts(policy, check), check, words, service.collected))
        elif service is not None and service.unasked:
            untold = untold or f"{check}: {service.message}"
        elif service is None or not service.good_since(since):
            waiting = waiting or check
    if failing:
        _, check, reason, seen.looked[env.name] = min(failing)
        return check, reason, None, ""
    return None, "", waiting, untold


def _failing(seen, env, policy, check, reason, up):
    ladder, restart = of_check(policy, check)
    if up and _in_grace(env, policy, check):
        return env.go("starting", f"{check}: {reason}", check)
    if env["gave_up"]:
        return env.go("gave_up")
    event = (
        {"event": True} if "event" in ladder else {}
    )  # the fleet is asked, and again when a back-off is over
    if (
        env["state"] not in ("failing", "backoff")
        or event
        and env["state"] == "backoff"
        and not waits(env)
    ):
        env.go("failing", reason, check, **event)
    else:
        env["reason"], env["check"] = reason, check
    if not policy["heal"]:
        env["reason"] = f"{reason}; heal: false"
        return None
    asked = "event" in ladder and env.age("recheck") < RECHECK  # the fleet says: look again and act
    if all(rung in PASSIVE or rung == "stop" and not up for rung in ladder) and not asked:
        return None
    recent = [a for a in env["attempts"] if env.node.age(a) < restart["interval"]]
    if len(recent) >= restart["attempts"]:
        if restart["mode"] == "fail":
            env["gave_up"] = True
            return env.go("gave_up", f"{len(recent)} attempts did not help: {reason}", check)
        left = restart["interval"] - (env.node.age(recent[0]) if recent else 0)
        return env.go("backoff", f"{len(recent)} attempts, next in {left:.0f} s: {reason}", check)
    if waits(env):
        return env.go("backoff", f"next attempt in {waits(env):.0f} s: {reason}", check)
    seen.due.append((env, check, reason))
    return None


def restrain(seen):
    """
    Take out of ``seen.due`` what must not be healed now, although its own policy says so; called when all are judged.

    A dependent waits for what it depends on, the first failure for those that may come with it, and in a storm all wait.
    """
    told = {name: seen.told.get(name, BUILTIN) for name in seen.envs}
    settle = _settle(seen, told)
    _restart_dependents(seen, told)
    due = []
    for env, check, reason in seen.due:
        other = _ill_parent(seen, told, env)
        if other:
            env["reason"] = f"{reason}; waits for {other}, which is {seen.envs[other]['state']}"
            env.save()
            continue
        wait = 0 if check in ("env", "depends_on") else settle - env.age("since")
        if wait > 0 and told[env.name]["checks"].get(check, {}).get("failure_threshold", 3) == 1:
            seen.soon = min(seen.soon or wait, wait)
            continue
        due.append((env, check, reason))
    seen.due = due
    _storm(seen, told)


def _settle(seen, told):
    """
    Seconds in which the failures of a storm follow the first one, 0 where there can be none.

    monit looks at one address after the other, and each that swallows connections costs it a time-out. With a failure
    threshold above 1 all others have failed at least once when the first one counts: there nothing has to be waited for.
    """
    budget = seen.node.budget
    sweeps = []
    for name, env in seen.envs.items():
        checks = told[name]["checks"].values()
        seconds = sum(
            c.get("timeout", 5) for c in checks if c.get("type") not in (*PROBES, "running")
        )
        if env["intent"] == "running" and seconds:
            sweeps.append(seconds)
    if len(sweeps) < budget["storm_min"]:
        return 0
    return min(SETTLE, seen.node.poll + sum(sorted(sweeps)[-budget["storm_min"] :]))


def _parents(told, name):
    """What ``name`` depends on; nothing if it depends on itself by any way: then everybody would wait for ever."""
    todo, met = list(told[name]["depends_on"]), set()
    while todo:
        other = todo.pop()
        if other == name:
            return []
        if other not in met and other in told:
            met.add(other)
            todo += told[other]["depends_on"]
    return [n for n in told[name]["depends_on"] if n in told]


def _ill_parent(seen, told, env):
    """The first env that ``env`` depends on and that is not well; one that is not on this node is not known."""
    for other in _parents(told, env.name):
        if other in seen.suspects or seen.envs[other]["state"] in ILL:
            return other
    return None


def _restart_dependents(seen, told):
    """An env that asked for it is restarted after what it depends on was healed by a restart."""
    already = {env.name for env, _, _ in seen.due}
    for name, env in sorted(seen.envs.items()):
        policy = told[name]
        parents = [n for n in _parents(told, name) if n in policy["restart_with"]]
        if (
            not parents
            or name in already
            or not policy["heal"]
            or env["state"] not in ("healthy", "failing", "starting")
        ):
            continue
        if env["intent"] != "running" or env["phase"] or waits(env):
            continue
        for other in parents:
            parent = seen.envs[other]
            if (
                parent["state"] == "healthy"
                and parent["restarted"]
                and env.age("started") > parent.age("restarted")
            ):
                seen.due.append((env, "depends_on", f"{other} was restarted"))
                break


def _storm(seen, told):
    """
    Many envs failing at once mean the network, not many restarts: then nothing is healed and it is said once.

    Only checks count that would be acted on, and a failed run counts before its threshold; an env that is dead is no sign
    of the network.

    It begins when more than ``storm_threshold`` and at least ``storm_min`` of the envs that should be up began to fail
    within ``storm_window``, and ends when no longer so many fail. What fails still was perhaps last looked at before the
    network came back: each of these is healed once a run of its check that began after the end has failed as well.
    """
    node, budget = seen.node, seen.node.budget
    path = node.in_state("storm.json")
    up = [e for e in seen.envs.values() if e["intent"] == "running"]

    def bad(env):
        if env["state"] in ("failing", "healing", "backoff"):
            return env["check"] not in ("env", "depends_on") and acts(told[env.name], env["check"])
        return env["state"] == "healthy" and env.name in seen.suspects

    def many(envs):
        return len(envs) >= budget["storm_min"] and len(envs) > budget["storm_threshold"] * len(up)

    ill = [e for e in up if bad(e)]
    fresh = [e for e in ill if e["state"] == "healthy" or e.age("since") < budget["storm_window"]]
    said = files.read_json(path, {})
    now, passed = (said, None) if "envs" in said else (None, said.get("passed"))
    if now is None and many(fresh):
        now = {**node.stamp(), "envs": sorted(e.name for e in ill)}
        _noted(path, now)
        ill[0].tell(
            "storm",
            f"{len(ill)} of {len(up)} envs fail at once: nothing is healed until that passes",
        )
    elif now is not None and not many(ill):
        passed = node.stamp()
        _noted(path, {"passed": passed})
        for env in [seen.envs[n] for n in now["envs"] if n in seen.envs][:1]:
            env.tell("calm", "no longer so many envs fail at once")
        now = None
    if (
        now is not None
    ):  # the network does not kill: what the kernel has lost is started, within the budget
        seen.due = [(env, check, reason) for env, check, reason in seen.due if check == "env"]
    elif passed:
        calm = time.time() - node.age(passed)  # by the clock that monit has now

        def stale(env, check):
            timeout = told[env.name]["checks"].get(check, {}).get("timeout", 5)
            return (
                check not in ("env", "depends_on")
                and seen.looked.get(env.name, calm) < calm + timeout
            )

        late = [entry for entry in seen.due if stale(*entry[:2])]
        if late:
            seen.due = [entry for entry in seen.due if entry not in late]
            seen.soon = min(seen.soon or 1, 1)
    seen.storm = now


def _noted(path, said):
    with contextlib.suppress(OSError):  # on a full disk it is told again, and holds all the same
        files.write_json(path, said)
