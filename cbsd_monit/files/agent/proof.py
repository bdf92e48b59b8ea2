"""
What is proven of each check: how and when its last run ended, and for how long that counts.

One record per node and pass, `proof.json` below the run directory. Of checks that run seldom the
last result is kept over a boot as well, in `seldom.json`, which is written when one of them ran.
"""

import contextlib
import json
import os
from collections import namedtuple

import descriptions
import files
import generations
from states import NODE
from text import WORST

MARGIN = 90  # seconds
SELDOM = 600  # seconds between two runs, and between two writes of what changes often
LOOK = "cbsd_monit-look"  # runs in each cycle
_PLACES = ("run", "proof.json"), ("state", "seldom.json")
_WORDS = {  # results, and what is said of those that are not of a run
    **dict.fromkeys(("good", "failed", "bad", "unasked"), ""),
    "never": "it has not run yet",
    "unwatched": "monit does not watch it",
    "absent": "monit does not know it",
    "unread": "monit has not read it yet",
}
_ONE = {word: word for word in _WORDS}  # one string for all, not one for each


class Seen(namedtuple("Seen", "result reason at interval bound live last")):
    """
    What is known of one check.

    result
        ``good``; ``failed``: its last run, which does not count yet; ``bad``: as often as it takes;
        ``unasked``: it could not find out; ``never``: it did not run yet; ``unwatched``: monit does
        not monitor it; ``absent``: monit does not know it; ``unread``: monit knows an earlier text.
    reason
        Why the last run was not good, '' if it was.
    at
        When it last ran, None if it did not: (seconds since 1970, monotonic seconds or None for a
        run before the node booted).
    interval, bound
        Seconds between two runs, and for how long one counts; None where certain hours limit it.
    live
        False for what was said before monit read the check anew.
    last
        The result of the last run, whatever monit does now.
    """

    __slots__ = ()  # a thousand envs have thousands of these

    @property
    def words(self):
        """Why it is not good."""
        return _WORDS[self.result] or self.reason

    def age(self, now):
        """Seconds since its last run, infinite if there was none."""
        if self.at is None:
            return float("inf")
        moment, monotonic = self.at
        return now.m - monotonic if monotonic is not None else max(0.0, now.t - moment)

    def overdue(self, now):
        return self.bound is not None and self.age(now) > self.bound


class Proof(namedtuple("Proof", "stamp round worst checks more")):
    """
    The node as one pass saw it.

    stamp, round
        Stamps of the pass and of the end of monit's last round, or None.
    worst
        Seconds of monit's worst cycle.
    checks
        {env or NODE: {check: Seen}}.
    more
        What `status` tells besides.
    """

    @property
    def limit(self):
        """Seconds after which what was known without a pass, or a round of monit, is no more."""
        return limit(self.worst or WORST)

    def doubt(self, now):
        """Why nothing is known at ``now``; '' after a recent pass."""
        age = now.age(self.stamp)
        if self.stamp is None:
            return "no pass over this node since it booted"
        return f"no pass over this node for {_length(age)}" if age > self.limit else ""

    def stalled(self, now):
        """Why monit proves nothing at ``now``; '' while it goes round."""
        if self.round is None:
            return "monit does not answer"
        age = now.age(self.round)
        return f"monit has not gone round for {_length(age)}" if age > self.limit else ""


def limit(worst):
    return 2 * worst + MARGIN


def _length(seconds):
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def load(node, generation=None):
    """
    The Proof of the last pass, without stamp and round if the node booted since.

    With a ``generation``, the one that was published when the pass began: without what is known of
    envs that had another text then, because a pass was killed.
    """
    known = _load(node)
    seen = known.more.get("generation", generation)
    if generation is None or seen == generation:
        return known
    other = set(generations.between(node, seen, generation))
    return known._replace(checks={e: rows for e, rows in known.checks.items() if e not in other})


def _load(node):
    found, seldom = (files.read_json(_path(node, place), {}) for place in _PLACES)
    checks = {}
    with contextlib.suppress(TypeError, KeyError, AttributeError):  # of another version
        checks = _rows(seldom["checks"], seldom["boot"] == node.boot)
    with contextlib.suppress(TypeError, KeyError, AttributeError):
        if found["stamp"]["b"] == node.boot and isinstance(found["more"], dict):
            known = Proof(**found)
            for env, rows in _rows(known.checks, True).items():
                checks.setdefault(env, {}).update(rows)
            return known._replace(checks=checks)
    return Proof(None, None, None, checks, {})


def _path(node, place):
    folder, name = place
    return os.path.join(getattr(node, folder), name)


def _rows(found, this_boot):
    """{env: {check: Seen}} of what was read."""
    return {
        env: {check: _row(row, this_boot) for check, row in rows.items()}
        for env, rows in found.items()
    }


def _row(row, this_boot):
    result, reason, at, interval, bound, live, last = row
    if at is not None:
        at = (at[0], at[1] if this_boot else None)
    return Seen(_ONE[result], reason, at, interval, bound, live, last and _ONE[last])


def save(node, proof, before):
    """Keep ``proof``; ``before`` is the one that it follows."""
    new, old = _seldom(proof), _seldom(before)
    due = node.age(before.more.get("seldom")) > SELDOM
    if _ends(new) != _ends(old) or new != old and due:
        files.write_json(_path(node, _PLACES[1]), {"boot": node.boot, "checks": new})
        proof.more["seldom"] = proof.stamp
    path = _path(node, _PLACES[0])
    files.scratch(path + ".new", json.dumps(proof._asdict()))
    os.replace(path + ".new", path)


def _ends(rows):
    return {(env, check): seen.last for env, own in rows.items() for check, seen in own.items()}


def _seldom(proof):
    """{env: {check: Seen}} of the checks that do not soon run again, as they last ran."""
    found = {}
    for env, rows in proof.checks.items():
        for check, seen in rows.items():
            if seen.at and (seen.interval is None or seen.interval > SELDOM):
                found.setdefault(env, {})[check] = seen._replace(result=seen.last, live=False)
    return found


def take(node, now, before, publication, outcomes, warm=()):
    """
    The Proof at ``now``.

    before
        The Proof that it follows.
    publication
        A reload.Publication: ``services``; ``status`` of monit, None while it does not answer: what
        was known before stands; ``worst``; ``renewed``: what was known of these services counts no
        more; ``unread``: what monit says of these envs is about another text.
    outcomes
        {env: {check: (Outcome or None, interval)}} of the checks that the agent runs itself.
    warm
        Envs that monit watched already: whatever it watches no longer is proven anew.
    """
    status, worst = publication.status, before.worst or WORST
    poll = status and status.poll or node.poll  # the operator's own may be longer by now
    if publication.worst:
        worst = min(WORST, publication.worst + max(0, poll - node.poll))
    times = _Times(poll, limit(worst), now, now.age(before.stamp))
    checks, known = {}, status.services if status else {}
    names = publication.own
    if publication.worst is None:  # publishing failed before it was known
        names = ["node-" + check for check in before.checks.get(NODE, ())]
    own = {name: (NODE, name[5:]) for name in names}
    for name, (env, check) in {**own, **publication.services}.items():
        old = None if name in publication.renewed else before.checks.get(env, {}).get(check)
        service = known.get(name)
        if status is None and old:
            row = old._replace(result=old.last or old.result, live=False)
        elif status is None:
            row = Seen("never", "", None, poll, None, True, None)
        elif service is None or env in publication.unread:
            row = Seen("absent" if service is None else "unread", "", None, None, None, True, None)
        else:
            row = _of_service(node, service, old, times)
            if row.result == "unwatched" and env in warm:
                row = row._replace(at=None, last=None)
        checks.setdefault(env, {})[check] = row
    look = known.get(LOOK)
    look = _run(look.collected, before.more.get("look"), times) if look and look.watched else None
    end = _round(times, known, checks, look) if known else before.round
    for env, rows in outcomes.items():
        for check, (outcome, interval) in rows.items():
            row = _of_outcome(now, outcome, interval, limit(worst))
            checks.setdefault(env, {})[check] = row
    more = {"look": look, "seldom": before.more.get("seldom")}
    return Proof(now.stamp(), end, worst, checks, more)


# ``poll``: seconds of a cycle; ``more``: what a bound has besides the interval; ``since``: seconds
# since the pass before.
_Times = namedtuple("_Times", "poll more now since")


def _of_service(node, service, old, times):
    interval = service.interval(times.poll)
    bound = None if interval is None else interval + times.more
    if service.watched:
        at = _run(service.collected, old and old.at, times)
        result, reason = _result(service), ""
        if result != "good":
            reason = service.exit_code and service.message
            reason = reason or descriptions.last(node, service.name) or service.reason
        # One failed run after a reload does not make it good again.
        last = "bad" if result == "failed" and old and old.last == "bad" else result
        return Seen(result, reason, at, interval, bound, True, last)
    last, at, reason = (old.last, old.at, old.reason) if old else (None, None, "")
    result = last or "never" if service.monitor else "unwatched"
    return Seen(result, reason, at, interval, bound, last is None or not service.monitor, last)


def _run(moment, old, times):
    """
    When a run was that ended at ``moment`` (seconds since 1970), as in Seen.

    ``old`` is that of the run known before: another one is younger than the pass that saw that.
    """
    moment = round(moment, 3)
    if old and old[0] == moment:
        return old
    age = max(0.0, times.now.t - moment)
    if old:
        age = min(age, times.since)
    return moment, round(times.now.m - age, 3)


def _of_outcome(now, outcome, interval, more):
    if outcome is None:
        return Seen("never", "", None, interval, interval + more, True, None)
    result = _result(outcome)
    reason = "" if result == "good" else outcome.reason
    at = outcome.at["t"], outcome.at["m"] if outcome.at["b"] == now.b else None
    return Seen(result, reason, at, interval, interval + more, True, result)


def _result(found):
    for result, holds in (("unasked", found.unasked), ("bad", found.failing)):
        if holds:
            return result
    return "failed" if found.suspect else "good"


def _round(times, known, checks, look):
    """The stamp of the end of monit's last round."""
    seen = [row.at for rows in checks.values() for row in rows.values() if row.live and row.at]
    unrun = [s for s in known.values() if s.monitor and not s.watched and s.collected]
    ends = [*seen, *(_run(service.collected, None, times) for service in unrun)]
    ends += [look] if look else []
    moment, monotonic = max(ends, key=lambda at: at[1] or 0, default=(0, None))
    return {"t": moment, "m": monotonic, "b": times.now.b} if monotonic is not None else None
