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
from states import NODE
from text import WORST

MARGIN = 90  # seconds
SELDOM = 600  # seconds between two runs
_PLACES = ("run", "proof.json"), ("state", "seldom.json")


class Seen(namedtuple("Seen", "result reason at interval bound live last")):
    """
    What is known of one check.

    result
        ``good``; ``failed``: its last run, which does not count yet; ``bad``: as often as it takes;
        ``unasked``: it could not find out; ``never``: it did not run yet; ``unwatched``: monit does
        not monitor it; ``absent``: monit does not know it.
    at
        Stamp of its last run, None if there was none.
    interval, bound
        Seconds between two runs, and for how long one counts; None where certain hours limit it.
    live
        False for what was said before monit read the check anew.
    last
        The result of the last run, whatever monit does now.
    """

    def overdue(self, now):
        return self.bound is not None and now.age(self.at) > self.bound


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


def load(node):
    """The Proof of the last pass, without stamp and round if the node booted since."""
    found, seldom = (files.read_json(_path(node, place), {}) for place in _PLACES)
    checks = _rows(seldom)
    with contextlib.suppress(TypeError, KeyError, AttributeError):  # of another version
        if found["stamp"]["b"] == node.boot:
            known = Proof(**found)
            for env, rows in _rows(known.checks).items():
                checks.setdefault(env, {}).update(rows)
            return known._replace(checks=checks)
    return Proof(None, None, None, checks, {})


def _path(node, place):
    folder, name = place
    return os.path.join(getattr(node, folder), name)


def _rows(found):
    """{env: {check: Seen}} of what was read; {} if another version wrote it."""
    with contextlib.suppress(TypeError, AttributeError):
        return {env: {c: Seen(*row) for c, row in rows.items()} for env, rows in found.items()}
    return {}


def save(node, proof, before):
    """Keep ``proof``; ``before`` is the one that it follows."""
    path = _path(node, _PLACES[0])
    files.scratch(path + ".new", json.dumps(proof._asdict()))
    os.replace(path + ".new", path)
    if _seldom(proof) != _seldom(before):
        files.write_json(_path(node, _PLACES[1]), _seldom(proof))


def _seldom(proof):
    """{env: {check: Seen}} of the checks that do not soon run again, as they last ran."""
    found = {}
    for env, rows in proof.checks.items():
        for check, seen in rows.items():
            if seen.at and (seen.interval is None or seen.interval > SELDOM):
                row = seen._replace(result=seen.last, live=False)
                found.setdefault(env, {})[check] = list(row)
    return found


def take(node, now, before, services, status, outcomes, worst, renewed=(), unread=()):
    """
    The Proof at ``now``.

    before
        The Proof that it follows.
    services
        {service of monit: (env, check)}.
    status
        monit's Status, None while it does not answer: what was known before stands.
    outcomes
        {env: {check: (Outcome or None, interval)}} of the checks that the agent runs itself.
    worst
        Seconds of monit's worst cycle.
    renewed
        Services that monit was given other words for: what was known of them counts no more.
    unread
        Envs whose present text monit has not read: what it says of them is about another.
    """
    checks, known = {}, status.services if status else {}
    own = {name: (NODE, name[5:]) for name in known if name.startswith("node-") and "." not in name}
    for name, (env, check) in {**services, **own}.items():
        old = None if name in renewed else before.checks.get(env, {}).get(check)
        service = known.get(name)
        if status is None:
            row = old and old._replace(result=old.last or old.result, live=False)
        elif service is None or env in unread:
            words = "monit does not know it" if service is None else "monit has not read it yet"
            row = Seen("absent", words, None, None, None, True, None)
        else:
            row = _of_service(node, now, service, old, worst)
        if row:
            checks.setdefault(env, {})[check] = row
    for env, rows in outcomes.items():
        for check, (outcome, interval) in rows.items():
            row = _of_outcome(outcome, interval, limit(worst))
            checks.setdefault(env, {})[check] = row
    return Proof(now.stamp(), _round(now, known, checks, before), worst, checks, {})


def _of_service(node, now, service, old, worst):
    interval = None if service.by_hours else service.cycles * node.poll
    bound = None if service.by_hours else interval + limit(worst)
    if service.watched:
        at = old.at if old and old.at and old.at["t"] == round(service.collected, 3) else None
        at = at or _at(now, service.collected)
        result, reason = _result(service), ""
        if result != "good":
            reason = service.exit_code and service.message or descriptions.last(node, service.name)
            reason = reason or service.reason
        return Seen(result, reason, at, interval, bound, True, result)
    last, at = (old.last, old.at) if old else (None, None)
    if not service.monitor:
        return Seen("unwatched", "monit does not watch it", at, interval, bound, True, last)
    if last is None:
        return Seen("never", "it has not run yet", None, interval, bound, True, None)
    return Seen(last, old.reason, at, interval, bound, False, last)


def _of_outcome(outcome, interval, more):
    if outcome is None:
        return Seen("never", "it has not run yet", None, interval, interval + more, True, None)
    result = _result(outcome)
    reason = "" if result == "good" else outcome.reason
    return Seen(result, reason, outcome.at, interval, interval + more, True, result)


def _result(found):
    for result, holds in (("unasked", found.unasked), ("bad", found.failing)):
        if holds:
            return result
    return "failed" if found.suspect else "good"


def _at(now, moment):
    """The stamp of a moment in seconds since 1970 that lies shortly before ``now``."""
    age = max(0.0, now.t - moment)
    return {"t": round(moment, 3), "m": round(now.m - age, 3), "b": now.b}


def _round(now, known, checks, before):
    """The stamp of the end of monit's last round."""
    if not known:
        return before.round
    seen = [row.at for rows in checks.values() for row in rows.values() if row.live and row.at]
    unrun = [s for s in known.values() if s.monitor and not s.watched and s.collected]
    begun = [_at(now, service.collected) for service in unrun]
    return max([*seen, *begun], key=lambda at: at["m"] if at["b"] == now.b else 0, default=None)
