"""In which state is one env, and is it due to be healed: decided from values, for one moment."""

import time
from collections import namedtuple

import cbsd
from policy import PASSIVE, acts, of_check

RECHECK = 60  # seconds in which the fleet's answer to an `event` counts
ORPHAN = 60  # seconds beyond its time after which a command that outlived its agent is killed

# What is true of one env besides its record and policy; the defaults are those of a calm node.
#   row: of CBSD's inventory; up: the kernel runs it, None if the kernel cannot be asked
#   results: [(check, Service or Outcome, None for one never seen)], or None if monit is silent
#   busy: the heal in its journal still goes on; silence: of silences.json; quarantined: monit's
#   words; missing: checks that monit does not know; kernel_error: why the kernel cannot be asked
Facts = namedtuple(
    "Facts",
    "row up results busy silence quarantined missing kernel_error boot_grace",
    defaults=(False, None, None, frozenset(), "", 600),
)
#   env: the changed Record; due: (check, reason) of a heal, or None; suspect: its last run failed,
#   counted or not; ran: when monit ran the failing check, None if none; orphan: end the command
#   that its killed agent left; checked: its policy and its checks had a say
Verdict = namedtuple("Verdict", "env due suspect ran orphan checked")
#   what the checks say: the failing one that counts most and why, the one not seen good since the
#   start, why one could not be asked
_Findings = namedtuple("_Findings", "failing reason ran waiting unasked suspect")


def judge(record, policy, facts, now):
    """
    The Verdict on one env at ``now``: the state that follows from kernel, inventory, monit, intent.

    record
        Its Record, which is not changed.
    policy
        As `policy.load` gives it.
    facts
        Facts.
    """
    env = record.at(now)
    orphan = env["op"] and facts.busy and _overdue(env, policy, facts.row)
    if _without_checks(env, policy, facts):
        return Verdict(env, None, False, None, bool(orphan), False)
    found = _findings(env, policy, facts, now)
    due = _with_checks(env, policy, facts, found)
    return Verdict(env, due, found.suspect, found.ran, False, True)


def _overdue(env, policy, row):
    limit = cbsd.stop_timeout(row) + policy["restart"]["timeout"] + ORPHAN
    return env.age("op") > limit


def _without_checks(env, policy, facts):
    """Put ``env`` into the state that its checks have no say in; True if there is one."""
    row, up = facts.row, facts.up
    status = int(row["status"]) if row["status"].isdigit() else 0
    if env["boot"] != env.now.b:  # by boot id, not by clock
        env["boot"], env["op"] = env.now.b, None
        env.enter_phase("booting")
    if env["op"] and facts.busy:
        env.go("healing")
        return True
    residue = bool(env["op"])  # our own heal was killed: what it left is ours to finish
    if residue:
        env["op"] = None
        if env["cause"] == "heal":  # what somebody else began meanwhile is theirs
            env.enter_phase(None)
    if env["phase"] and env.age("phase_since") > _phase_limit(env, policy, facts):
        if env["phase"] == "stopping" and env["intent"] == "stopped" and up:
            env.intend("running", "the stop did not happen")
        env.enter_phase(None)

    if row["emulator"] not in cbsd.EMULATORS:
        env.go("unknown", f"emulator {row['emulator']} is not supported")
    elif status == cbsd.SLAVE:
        env.go("slave", "CBSD: the env is a slave copy")
    elif status == cbsd.MAINTENANCE and not residue and env["phase"] is None:
        env.go("maintenance", "CBSD: status 3")
    elif up is None:
        env.go("unknown", facts.kernel_error)
    else:
        return _should_not_run(env, facts)
    return True


def _phase_limit(env, policy, facts):
    """Seconds after which CBSD cannot be at it any more."""
    return {
        "starting": policy["restart"]["timeout"],
        "stopping": cbsd.stop_timeout(facts.row),
        "restarting": 600 if env["cause"] == "shutdown" else 60,
        "removing": 180,
        "booting": facts.boot_grace,
    }[env["phase"]]


def _should_not_run(env, facts):
    """True if the env is stopped on purpose, or CBSD is at work on it; puts it into that state."""
    if env["phase"] == "booting":
        if not facts.up and facts.row["astart"] == "1":
            env.go("starting", "the node booted, CBSD has not started it yet")
            return True
        if not facts.up:
            env.intend("stopped", "CBSD does not start it at boot")
        env.enter_phase(None)
    if env["intent"] == "stopped":
        if not facts.up or env["phase"]:
            env.go("stopped", ": ".join(env.why()).strip(": "))
            return True
        env.intend("running", "seen running")
    if env["phase"]:
        env.go("starting", f"{env['phase']} ({env['cause'] or 'CBSD'})")
        return True
    return False


def _findings(env, policy, facts, now):
    """The _Findings of an env that should run; a check that is acted on comes first."""
    if not facts.up:
        reason = f"{env['emulator']} {env.name} does not run"
        return _Findings("env", reason, None, None, "", True)
    if facts.results is None:
        return _Findings(None, "", None, None, "", False)
    waiting, unasked, failing, suspect = None, "", [], False
    since = now.t - env.age("started")  # by the clock that monit has now, should it have been set
    for check, result in facts.results:
        if check == "env" and result is not None:
            continue
        healed = acts(policy, check)
        if result is not None and result.suspect and healed:
            suspect = True
        if result is not None and result.failing and result.collected > since:
            failing.append((not healed, check, result.reason, result.collected))
        elif result is not None and result.unasked:
            unasked = unasked or f"{check}: {result.message}"
        elif result is None or not result.good_since(since):
            waiting = waiting or check
    if failing:
        _, check, reason, ran = min(failing)
        return _Findings(check, reason, ran, None, "", suspect)
    return _Findings(None, "", None, waiting, unasked, suspect)


def _with_checks(env, policy, facts, found):
    """Put ``env`` into the state that its checks say; returns (check, reason) if a heal is due."""
    silence = facts.silence
    if silence:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(silence.get("until", 0)))
        by, reason = silence.get("by", "?"), silence.get("reason", "")
        env.go("silenced", f"until {until} by {by}: {reason}")
        return None
    if facts.quarantined and facts.up:  # a dead one is started: for that monit is not needed
        env.go("quarantined", facts.quarantined)
        return None
    if env["state"] == "healthy" and env.age("since") > policy["restart"]["reset_after"]:
        env.reset_attempts()  # nobody need have looked meanwhile
    if found.failing:
        return _failing(env, policy, facts, found)
    waiting = found.waiting
    if env["gave_up"]:
        env.go("gave_up")
    elif facts.results is None:
        env.go("unknown", "monit does not answer")
    elif found.unasked:
        env.go("unknown", found.unasked)
    elif waiting and waiting in facts.missing:
        question = "is the include line in its control file?"
        env.go("unknown", f"monit does not know {env.name}'s check {waiting}: {question}")
    elif waiting:
        cold = not env["warm"] and env["state"] in ("stopped", "unknown")
        if cold or _in_grace(env, policy):
            env.go("starting", f"waiting for {waiting}")
    else:
        env["warm"] = True
        env.go("healthy")
    return None


def _in_grace(env, policy, check=None):
    period = policy["checks"].get(check, {}).get("start_period", policy["start_period"])
    return not env["warm"] and env.age("started") < period


def _failing(env, policy, facts, found):
    check, reason = found.failing, found.reason
    ladder, restart = of_check(policy, check)
    if facts.up and _in_grace(env, policy, check):
        env.go("starting", f"{check}: {reason}", check)
        return None
    if env["gave_up"]:
        env.go("gave_up")
        return None
    # The fleet is asked, and again when a back-off is over.
    event = {"event": True} if "event" in ladder else {}
    again = event and env["state"] == "backoff" and not env.waits()
    if env["state"] not in ("failing", "backoff") or again:
        env.go("failing", reason, check, **event)
    else:
        env["reason"], env["check"] = reason, check
    if not policy["heal"]:
        env["reason"] = f"{reason}; heal: false"
        return None
    asked = "event" in ladder and env.age("recheck") < RECHECK  # the fleet says: look and act
    if not asked and all(s in PASSIVE or s == "stop" and not facts.up for s in ladder):
        return None
    recent = [a for a in env["attempts"] if env.now.age(a) < restart["interval"]]
    if len(recent) >= restart["attempts"]:
        if restart["mode"] == "fail":
            env["gave_up"] = True
            env.go("gave_up", f"{len(recent)} attempts did not help: {reason}", check)
            return None
        left = restart["interval"] - (env.now.age(recent[0]) if recent else 0)
        env.go("backoff", f"{len(recent)} attempts, next in {left:.0f} s: {reason}", check)
        return None
    if env.waits():
        env.go("backoff", f"next attempt in {env.waits():.0f} s: {reason}", check)
        return None
    return check, reason
