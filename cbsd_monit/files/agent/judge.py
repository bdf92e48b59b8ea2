"""In which state is one env, and is it due to be healed: decided from values, for one moment."""

import time
from collections import namedtuple

import cbsd
from policy import PASSIVE, acts, of_check, patience
from states import WELL

RECHECK = 60  # seconds in which the fleet's answer to an `event` counts
ORPHAN = 60  # seconds beyond its time after which a command that outlived its agent is killed

# What is true of one env besides its record and policy; the defaults are those of a calm node.
#   row: of CBSD's inventory; up: the kernel runs it, None if the kernel cannot be asked
#   results: {check: proof.Seen}, or None if monit proves nothing, for which `monit` says why
#   busy: the heal in its journal still goes on; silence: of silences.json; quarantined: why not all
#   that is wanted is live; kernel_error: why the kernel cannot be asked; limit: seconds in which
#   monit surely goes round; renewed: just now monit was given other words for some check; moved:
#   what is live asks at an address that the env no longer has
Facts = namedtuple(
    "Facts",
    "row up results monit busy silence quarantined kernel_error boot_grace limit renewed moved",
    defaults=("monit does not answer", False, None, None, "", 600, 110, False, False),
)
#   env: the changed Record; due: (check, reason) of a heal, or None; suspect: its last run failed,
#   counted or not; ran: when monit ran the failing check, None if none; orphan: end the command
#   that its killed agent left; checked: its policy and its checks had a say
Verdict = namedtuple("Verdict", "env due suspect ran orphan checked")
# A check that fails. ``rank``: 0 if it is healed, 1 if the fleet is asked, 2 if it only alerts;
# ``stale``: it ran too long ago, before what may have mended it, or before monit began anew: no
# heal by it.
Failure = namedtuple("Failure", "rank stale check reason ran")
#   failures: [Failure], the worst first; young: the one that a start excuses, None if none is;
#   waiting: what has to run first; unproven: what proves nothing, and why; suspect: as above
_Findings = namedtuple("_Findings", "failures young waiting unproven suspect")


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
    if env["apart"] and not facts.silence:
        _left_alone_no_more(env)
    if facts.renewed and facts.up:
        env["proof_from"], env["warm"] = now.stamp(), False
    found, told = _findings(env, policy, facts, now), len(env.transitions)
    due = _with_checks(env, policy, facts, found)
    _tell(env, facts, found, told)
    ran = found.failures[0].ran if found.failures else None
    return Verdict(env, due, found.suspect, ran, False, True)


def _left_alone_no_more(env):
    """CBSD, or the end of a silence, gives the env back: what failed before justifies no heal."""
    env["warm"] = env["warm"] and env["apart"] == "silenced"  # the others were not watched
    env["proof_from"], env["apart"] = env.now.stamp(), None


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
        env["apart"] = "slave"
        env.go("slave", "CBSD: the env is a slave copy")
    elif status == cbsd.MAINTENANCE and not residue and env["phase"] is None:
        env["apart"] = "maintenance"
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
    """The _Findings of an env that should run."""
    if not facts.up:
        reason = f"{env['emulator']} {env.name} does not run"
        return _Findings([Failure(0, False, "env", reason, None)], None, "", "", True)
    failures, young, waiting, unproven, suspect = [], None, "", "", False
    begun = env.begun()
    for check, seen in sorted((facts.results or {}).items()):
        age, words = seen.age(now), f"{check}: {seen.words}"
        before, awaited = age >= begun, _awaited(seen, policy, facts)
        stale = before or facts.moved or not seen.live or seen.overdue(now)
        fails = seen.result == "bad"
        if seen.result == "failed" and seen.last == "bad" and _still(env, check):
            fails = stale = True  # its first run since a reload, which sets monit's counts to zero
        if seen.result == "unwatched" and not env["warm"]:
            waiting = waiting or check
        elif seen.result in ("unwatched", "absent", "unread", "unasked"):
            unproven = unproven or words
        elif seen.result == "never" and seen.interval is None:
            unproven = unproven or words
        elif seen.result == "never":
            waiting = waiting or check
        elif check == "env" and seen.result != "good":
            continue  # the kernel says it better
        elif before and awaited and not (env["warm"] and seen.result == "good"):
            waiting = waiting or check
        elif fails:
            failure = Failure(_rank(policy, check), stale, check, seen.reason, now.t - age)
            if not before and _in_grace(env, policy, check):
                young = young or failure
            else:
                failures.append(failure)
        elif min(age, begun) > (seen.bound or float("inf")):
            words = f"{check} ran {age:.0f} s ago, which proves it for {seen.bound:.0f} s"
            unproven = unproven or words
        elif seen.result == "failed" and awaited and not env["warm"]:
            waiting = waiting or check
        if check != "env" and seen.result in ("failed", "bad") and not before:
            suspect = suspect or acts(policy, check)
    if facts.results == {}:
        unproven = "it has no check"
    return _Findings(sorted(failures), young, waiting, unproven, suspect)


def _still(env, check):
    """True if ``check`` was failing at the last look, and has failed since the last start."""
    entry = (env["failing"] or {}).get(check)
    return entry is not None and entry.get("start") == _start(env)


def _start(env):
    """A number that is another after each start."""
    return (env["started"] or {}).get("m")


def _patience(policy, facts):
    """Seconds after a start in which each check that is due again soon has surely run."""
    return patience(policy) + facts.limit


def _awaited(seen, policy, facts):
    """True if the check is due again soon enough to be waited for after a start."""
    return seen.interval is not None and seen.interval <= _patience(policy, facts)


def _rank(policy, check):
    if acts(policy, check):
        return 0
    return 1 if "event" in of_check(policy, check)[0] else 2


def _with_checks(env, policy, facts, found):
    """Put ``env`` into the state that its checks say; returns (check, reason) if a heal is due."""
    silence = facts.silence
    if silence:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(silence.get("until", 0)))
        by, reason = silence.get("by", "?"), silence.get("reason", "")
        env["apart"] = "silenced"
        env.go("silenced", f"until {until} by {by}: {reason}")
        return None
    if env["state"] in WELL and _well(env) > policy["restart"]["reset_after"]:
        env.reset_attempts()  # nobody need have looked meanwhile
    if found.failures and found.failures[0].rank < 2:
        return _failing(env, policy, found.failures[0])
    if env["gave_up"]:
        _give_up(env)
    elif facts.quarantined:
        env.go("quarantined", facts.quarantined)
    elif facts.results is None:
        env.go("unknown", facts.monit)
    elif found.young:
        env.go("starting", f"{found.young.check}: {found.young.reason}", found.young.check)
    elif found.unproven:
        env.go("unknown", found.unproven)
    elif found.waiting:
        _wait(env, found.waiting, _patience(policy, facts))
    elif found.failures:
        env["warm"] = True
        env.go("warning", found.failures[0].reason, found.failures[0].check)
        env["check"] = found.failures[0].check
    else:
        env["warm"] = True
        env.go("healthy")
    return None


def _give_up(env):
    """`gave_up`, and why; also after what hid it for a while, such as a silence."""
    env.go("gave_up", **(env["spent"] or {"reason": "attempts did not help; `retry` ends this"}))


def _well(env):
    """Seconds since the env is well; a change between healthy and warning does not count."""
    return env.age("well" if env["well"] else "since")


def _wait(env, check, seconds):
    """``check`` has to run before anything is known; it is waited for ``seconds`` at most."""
    if env.begun() > seconds:
        env.go("unknown", f"{check} has not run for {env.begun():.0f} s")
    elif any(_still(env, name) for name in env["failing"] or ()):
        return  # that they do, until a run says otherwise
    elif env["warm"]:
        env.go("unknown", f"{check} has not run anew yet")
    elif env.age("started") <= seconds:
        env.go("starting", f"waiting for {check}")
    else:
        env.go("starting", f"waiting for {check}, which has not run since its rules changed")


def _in_grace(env, policy, check):
    period = policy["checks"].get(check, {}).get("start_period", policy["start_period"])
    return not env["warm"] and env.age("started") < period


def _failing(env, policy, failure):
    check, reason = failure.check, failure.reason
    ladder, restart = of_check(policy, check)
    if env["gave_up"]:
        _give_up(env)
        return None
    # The fleet is asked, and again when a back-off is over.
    event = {"event": True} if "event" in ladder else {}
    again = event and env["state"] == "backoff" and not env.waits()
    if env["state"] not in ("failing", "backoff") or again:
        env.go("failing", reason, check, **event)
    else:
        env["reason"], env["check"] = reason, check
    if failure.stale:
        return None
    if not policy["heal"]:
        env["reason"] = f"{reason}; heal: false"
        return None
    asked = "event" in ladder and env.age("recheck") < RECHECK  # the fleet says: look and act
    up = check != "env"
    if not asked and all(s in PASSIVE or s == "stop" and not up for s in ladder):
        return None
    recent = env.recent(restart["interval"])
    if len(recent) >= restart["attempts"]:
        if restart["mode"] == "fail":
            env["gave_up"] = True
            words = f"{len(recent)} attempts did not help: {reason}; `retry` ends this"
            env["spent"] = {"reason": words, "check": check}
            _give_up(env)
            return None
        left = restart["interval"] - (env.now.age(recent[0]) if recent else 0)
        env.go("backoff", f"{len(recent)} attempts, next in {left:.0f} s: {reason}", check)
        return None
    if env.waits():
        env.go("backoff", f"next attempt in {env.waits():.0f} s: {reason}", check)
        return None
    return check, reason


def _tell(env, facts, found, told):
    """
    Keep which checks fail, and tell of what the state alone does not say.

    That is each further check that begins or ceases to fail, and a quarantine beside a worse state.

    told
        How many transitions were noted before the state was decided.
    """
    words, state, beside = facts.quarantined or None, env["state"], {"beside": True}
    if words and env["quarantined"] is None and state != "quarantined":
        env.announce("quarantined", words, **beside)
    if env["quarantined"] and not words and told == len(env.transitions):
        env.announce(state, "all that is wanted for it is live again", env["check"], **beside)
    env["quarantined"] = words
    if env["state"] in ("silenced", "gave_up") or facts.up and facts.results is None:
        return
    first, before = "failing" not in env.data, env["failing"] or {}
    now = {f.check: _entry(env, f, before.get(f.check)) for f in found.failures}
    gone, kept = _gone(env, facts, before, now)
    env["failing"] = {**kept, **now} or None
    if first:
        return  # an older agent told of it
    announced = {step.check for step in env.transitions[told:]}
    for check in sorted(now.keys() - before.keys() - announced):
        transition = "warning" if now[check]["warning"] else "failing"
        env.announce(transition, now[check]["reason"], check, **beside)
    left = ", ".join(now)
    for check in sorted(gone) if now else ():
        words = f"{check} holds again; what still fails is {left}"
        env.announce(state, words, check, **beside)


def _gone(env, facts, before, now):
    """
    (checks that hold again, {check: entry} of those that did not run since) of what failed before.

    After a start all of them begin anew.
    """
    gone, kept = [], {}
    for check, entry in before.items():
        seen = (facts.results or {}).get(check)
        if check in now or not facts.up or seen is None or not _still(env, check):
            continue
        if seen.result == "good" and seen.live and seen.age(env.now) < env.now.age(entry["since"]):
            gone.append(check)
        else:
            kept[check] = entry
    return gone, kept


def _entry(env, failure, before):
    since = before["since"] if before else env.now.stamp()
    start = before.get("start") if before and failure.stale else _start(env)
    shown = {"since": since, "reason": failure.reason, "warning": failure.rank == 2}
    return {**shown, "start": start}
