"""What holds back heals although the envs' own policies allow them: dependencies and storms."""

from collections import namedtuple

from monit import PROBES
from policy import BUILTIN, acts, of_node, parents
from states import FAILS, ILL, WELL

SETTLE = 60  # seconds at most that the first failure waits for those that may come with it

# A heal that is due; `env` is the name.
Due = namedtuple("Due", "env check reason")
#   due: [Due] that may begin; reasons {env: why its heal waits}; announcements: [(transition,
#   words)]; look_again_in: seconds or None; storm: for storm.json: {…, "envs"} in a storm,
#   {"passed"} after one, {} before any
Restraint = namedtuple("Restraint", "due reasons announcements storm look_again_in")


class Judged(namedtuple("Judged", "envs policies due suspects ran node", defaults=({},))):
    """
    All envs of the node as they were judged.

    envs {name: Record}; policies {name: policy}; due [Due]; suspects: names of those whose last run
    failed, counted or not; ran {name: when monit ran the failing check}; node {check: proof.Seen}
    of the node's own checks.
    """

    def policy(self, name):
        return self.policies.get(name, BUILTIN)


def restrain(judged, storm, budget, poll, now):
    """
    The Restraint at ``now``: what of ``judged.due`` may begin.

    A dependent waits for what it depends on, the first failure waits for those that may come with
    it, and in a storm everything waits.

    storm
        What storm.json holds.
    budget
        The node's: storm_min, storm_threshold, storm_window.
    poll
        Seconds of a cycle of monit.
    """
    settle = _settle(judged, budget, poll)
    soon, reasons, due = None, {}, []
    for heal in [*judged.due, *_dependents(judged)]:
        env = judged.envs[heal.env]
        other = _ill_parent(judged, heal.env)
        if other:
            state = judged.envs[other]["state"]
            reasons[heal.env] = f"{heal.reason}; waits for {other}, which is {state}"
            continue
        words = _held_by_node(judged, heal, now)
        if words:
            reasons[heal.env] = f"{heal.reason}; waits for {words}"
            soon = min(soon or poll, max(1, poll / 2))
            continue
        wait = 0 if heal.check in ("env", "depends_on") else settle - env.age("since")
        check = judged.policy(heal.env)["checks"].get(heal.check, {})
        if wait > 0 and check.get("failure_threshold", 3) == 1:
            soon = min(soon or wait, wait)
            continue
        due.append(heal)
    after, announcements = _storm(judged, storm, budget, now)
    if "envs" in after:
        # The network does not kill: what the kernel has lost is started, within the budget.
        due = [heal for heal in due if heal.check == "env"]
    elif after.get("passed"):
        calm = now.t - now.age(after["passed"])  # by the clock that monit has now
        fresh = [heal for heal in due if not _stale(judged, heal, calm)]
        if len(fresh) < len(due):
            due, soon = fresh, min(soon or 1, 1)
    return Restraint(due, reasons, announcements, after, soon)


def _settle(judged, budget, poll):
    """
    Seconds in which the failures of a storm follow the first one, 0 where there can be none.

    monit asks one address after the other, and each that swallows connections costs it a time-out.
    With a failure threshold above 1 all others have failed once when the first one counts.
    """
    sweeps = []
    for name, env in judged.envs.items():
        checks = judged.policy(name)["checks"].values()
        asked = [c for c in checks if c.get("type") not in (*PROBES, "running")]
        seconds = sum(check.get("timeout", 5) for check in asked)
        if env["intent"] == "running" and seconds:
            sweeps.append(seconds)
    if len(sweeps) < budget["storm_min"]:
        return 0
    return min(SETTLE, poll + sum(sorted(sweeps)[-budget["storm_min"] :]))


def _parents(judged, name):
    """What ``name`` depends on; nothing in a circle, where everybody would wait for ever."""
    todo, met = parents(judged.policy(name)), set()
    while todo:
        other = todo.pop()
        if other == name:
            return []
        if other not in met and other in judged.envs:
            met.add(other)
            todo += parents(judged.policy(other))
    return [n for n in parents(judged.policy(name)) if n in judged.envs]


def _ill_parent(judged, name):
    """The first env that ``name`` depends on and that is ill; those on other nodes are ignored."""
    for other in _parents(judged, name):
        if other in judged.suspects or judged.envs[other]["state"] in ILL:
            return other
    return None


def _held_by_node(judged, heal, now):
    """
    Which of the node's own checks the heal waits for, and why; '' if for none.

    One that fails, counted or not, holds it; so does one that did not run since the env began to
    fail, as long as it is watched. One that this node does not have holds nothing.
    """
    env = judged.envs[heal.env]
    failing = (env["failing"] or {}).get(heal.check)
    began = now.age(failing["since"] if failing else env["since"])
    for check in of_node(judged.policy(heal.env)):
        seen = judged.node.get(check)
        if seen is None:
            continue
        if seen.result in ("failed", "bad"):
            return f"the node's check {check}, which fails: {seen.reason}"
        watched = seen.result not in ("absent", "unread", "unwatched") and not seen.overdue(now)
        if watched and seen.age(now) >= began and began < (seen.bound or 0):
            return f"the node's check {check}, which has not run since"
    return ""


def _dependents(judged):
    """[Due] of the envs that asked to be restarted after a restart healed what they depend on."""
    already = {heal.env for heal in judged.due}
    found = []
    for name, env in sorted(judged.envs.items()):
        policy = judged.policy(name)
        parents = [n for n in _parents(judged, name) if n in policy["restart_with"]]
        if not parents or name in already or not policy["heal"]:
            continue
        if env["state"] not in (*WELL, "failing", "starting"):
            continue
        if env["intent"] != "running" or env["phase"] or env.waits():
            continue
        if len(env.recent(policy["restart"]["interval"])) >= policy["restart"]["attempts"]:
            continue
        for other in parents:
            parent = judged.envs[other]
            restarted = parent["state"] in WELL and parent["restarted"]
            if restarted and env.age("started") > parent.age("restarted"):
                found.append(Due(name, "depends_on", f"{other} was restarted"))
                break
    return found


def _storm(judged, storm, budget, now):
    """
    (what storm.json should hold, announcements).

    Many envs failing at once mean the network, not many restarts. Only checks count that would be
    acted on, a failed run counts before its threshold, and a dead env is no sign of the network.

    A storm begins when more than ``storm_threshold`` and at least ``storm_min`` of the envs that
    should be up began to fail within ``storm_window``; it ends when no longer so many fail. What
    fails still was perhaps last run before the network came back: it is healed once a run of its
    check that began after the end has failed as well.
    """
    up = [env for env in judged.envs.values() if env["intent"] == "running"]

    def many(envs):
        return len(envs) >= budget["storm_min"] and len(envs) > budget["storm_threshold"] * len(up)

    ill = [env for env in up if _fails(judged, env)]
    fresh = [e for e in ill if e["state"] in WELL or e.age("since") < budget["storm_window"]]
    if "envs" not in storm and many(fresh):
        words = f"{len(ill)} of {len(up)} envs fail at once: nothing is healed until that passes"
        begun = {**now.stamp(), "envs": sorted(env.name for env in ill)}
        return begun, [("storm", words)]
    if "envs" in storm and not many(ill):
        return {"passed": now.stamp()}, [("calm", "no longer so many envs fail at once")]
    return storm, []


def _fails(judged, env):
    """True if ``env`` counts for a storm."""
    if env["state"] in FAILS:
        healed = acts(judged.policy(env.name), env["check"])
        return env["check"] not in ("env", "depends_on") and healed
    return env["state"] in WELL and env.name in judged.suspects


def _stale(judged, heal, calm):
    """True if the run that failed may have begun before ``calm``, the end of the storm."""
    timeout = judged.policy(heal.env)["checks"].get(heal.check, {}).get("timeout", 5)
    if heal.check in ("env", "depends_on"):
        return False
    return judged.ran.get(heal.env, calm) < calm + timeout
