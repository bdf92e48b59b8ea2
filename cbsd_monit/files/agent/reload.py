"""Make monit run what is published: reload it, verify that it reads and checks, start it."""

import subprocess
import time
from collections import namedtuple

import files
import generations
from node import AgentError
from records import say
from text import digest

VERIFY = 15  # seconds after a reload in which monit has to read and to check something
MISSING = 60  # seconds after a reload before a check that monit does not know is worth another one
TROUBLE = (AgentError, OSError, subprocess.SubprocessError)


class Publication(
    namedtuple(
        "Publication",
        "services errors quarantined missing held changed warnings foreign accepted status"
        " reloaded started verify_wait worst renewed unread asked own moved",
        defaults=({}, frozenset(), None, [], [], {}, None, None, False, False, 0.0, None)
        + ((), (), False, (), ()),
    )
):
    """
    What monit includes now, and how that came about.

    services {service: (env, check)}; errors {env or "(monit)": words}; quarantined {env: {"reason",
    "digest"}}; missing: checks that monit does not know; held: held.json or None; changed: names of
    envs, or "node"; foreign {env: commands}; accepted: (control file, text) that monit just
    accepted, or None; status: monit's Status or None; verify_wait: seconds; worst: seconds of
    monit's worst cycle; renewed: services that monit is given other words for; unread: envs whose
    present text it has not read, as far as that was verified; asked: monit was asked for its
    status; own: services that are the node's own checks; moved: envs whose live text asks at an
    address that they no longer have.
    """


def last(steps, publication, before=""):
    """The last Publication that ``steps`` yield; one that fails loses nothing of those before."""
    try:
        for step in steps:
            publication = step
    except TROUBLE as err:
        publication.errors["(monit)"] = before + str(err)
        say(f"publish: {err}", loud=True)
    return publication


def globs(node):
    """
    True if monit includes the envs' own files by a glob (`include: glob`) besides `head`.

    The generations are made all the same, to be compared and tested.
    """
    return node.conf.get("include") == "glob"


def load(node, monit, publication, meanwhile, hold):
    """
    See that monit runs what is published and checks again; take back a reload that ends it.

    meanwhile
        Called while monit reads.
    hold
        (Publication, why) → Publication, with an older generation published.

    Yields the Publication after each step.
    """
    text = generations.published(node)
    live, loaded = digest(text), files.read_json(node.in_state("loaded"), {})
    publication = _with_status(node, publication, monit.status())._replace(asked=True)
    if loaded.get("digest") != live:
        read = generations.with_digest(node, loaded.get("digest"))
        publication = publication._replace(unread=generations.difference(text, read))
    yield publication
    stale = publication.missing and node.age(loaded) > MISSING
    if publication.status is None or loaded.get("digest") == live and not stale:
        return
    before, began = publication.status, time.time()
    asked = _ask(node, monit, publication, meanwhile)
    publication = publication._replace(reloaded=True)
    yield publication
    status, checks = _verified(monit, publication, before, began)
    wait = round(time.monotonic() - asked, 3)
    publication = publication._replace(status=status, verify_wait=wait)
    yield publication
    if status is None and monit.pid() is not None:
        raise AgentError("monit runs and does not answer since its reload")
    if status is None:
        why = f"monit ended when it read generation {generations.number(node)}"
        publication = hold(publication, why)
        yield publication
        monit.start()
        yield publication._replace(status=monit.wait(set(), 10))
        which = publication.held["generation"] or "without envs"
        raise AgentError(f"{why}; generation {which} is published again")
    publication = _with_status(node, publication, status)
    if not checks:
        words = f"monit has not checked anything for {VERIFY} s since its reload"
        publication.errors.setdefault("(monit)", words)
    _remember(node, wait)
    yield publication._replace(unread=() if checks else publication.unread)


def ensure_monit(node, monit, publication, meanwhile=lambda: None):
    """The Publication after monit was started, or made to read again, where it does not answer."""
    before = publication.errors.get("(monit)")
    steps = _revive(node, monit, publication, meanwhile)
    return last(steps, publication, before + "; " if before else "")


def _revive(node, monit, publication, meanwhile):
    if publication.status is None:
        publication = publication._replace(status=monit.status())
        yield publication
    if publication.status is not None:
        return
    if monit.pid():  # it runs from before our socket was in its control file
        asked = _ask(node, monit, publication, meanwhile)
    else:
        monit.start()
        asked = time.monotonic()
    status = monit.wait(set(publication.services), _reading(monit)) or monit.status()
    wait = round(time.monotonic() - asked, 3)
    publication = publication._replace(status=status, verify_wait=wait)
    yield publication
    if status is None:
        raise AgentError(f"monit does not answer on its socket {monit.socket}")
    say("monit did not answer; it was started or made to read its control file", loud=True)
    _remember(node, wait)
    yield publication._replace(started=True, unread=())


def _remember(node, wait):
    """Write down that monit runs what is published now."""
    live = digest(generations.published(node))
    loaded = {"digest": live, "verify_wait": wait, **node.stamp()}
    files.write_json(node.in_state("loaded"), loaded)


def _ask(node, monit, publication, meanwhile):
    """Make monit read what is published; returns the monotonic time at which it was asked."""
    live = files.read_text(node.conf["monitrc"]) or "", generations.published(node)
    monit.reload(not globs(node) and publication.accepted == live)
    asked = time.monotonic()
    meanwhile()
    return asked


def _reading(monit):
    """
    The seconds that monit may need to read what is published.

    It compares each service with all others (5.33: 4,000 take 1 s, 40,000 take 55 to 98 s).
    """
    return VERIFY + monit.extra_timeout + 0.12 * monit.extra_timeout**2


def _verified(monit, publication, before, began):
    """
    (Status, True) once monit read all services and checked something, (None, False) if it ended.

    (Status, False) if neither is so in time: a monit in a long cycle reads when that is over.
    """
    names = {name.lower() for name in publication.services}
    until = time.monotonic() + _reading(monit)
    while True:
        status = monit.status(timeout=2)
        if status is None and monit.pid() is None:
            time.sleep(0.2)  # its pid file may just be written anew
            if monit.pid() is None and monit.status(timeout=2) is None:
                return None, False
        elif status is not None and status.begun_since(before, began):
            if any(s.watched and s.monitor != 2 for s in status.services.values()):
                if not names - {name.lower() for name in status.services}:
                    return status, True
        if time.monotonic() >= until:
            return status or monit.status(), False
        time.sleep(0.05)


def _with_status(node, publication, status):
    """
    The Publication with monit's status, and with the checks that monit does not know.

    Nobody looks at those, and that must not read as health.
    """
    if status is None:
        return publication._replace(status=None)
    known = {name.lower() for name in status.services}
    services = publication.services.items()
    missing = {check for name, (_, check) in services if name.lower() not in known}
    publication.errors.pop("(monit)", None)
    if missing:
        publication.errors["(monit)"] = (
            f"monit does not know {len(missing)} of the published checks: does "
            f"{node.conf['monitrc']} include them?"
        )
    return publication._replace(status=status, missing=missing)
