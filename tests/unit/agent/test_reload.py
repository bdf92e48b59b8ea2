"""monit is made to read what is published, and what goes wrong then is an error."""

import re

import reload

from .conftest import cases, published


@cases(
    ("how", "words"),
    ("silent", "monit runs and does not answer since its reload"),
    ("idle", "monit has not checked anything for 0.3 s since its reload"),
    ("deaf", "monit does not know 1 of the published checks: does .*monitrc include them"),
)
def test_reload_that_does_not_work_is_an_error(node, world, daemon, monkeypatch, how, words):
    world.env("a")
    real = daemon.reload
    monkeypatch.setattr(daemon, "reload", lambda tested: (setattr(daemon, how, True), real(tested)))
    found = published(daemon)
    assert re.match(words, found.errors["(monit)"]) and found.reloaded
    if how == "deaf":
        assert found.missing == {"tcp"} and not published(daemon).reloaded
        monkeypatch.setattr(reload, "MISSING", -1)
        assert published(daemon).reloaded, "after a minute it is asked again"


@cases(
    ("state", "asked", "error"),
    ("answers", [], None),
    ("ended", ["start"], None),
    ("silent", [("reload", False)], "monit does not answer on its socket m.sock"),
    ("broken", ["start"], "before; monit does not start"),
)
def test_silent_monit_is_started_or_made_to_read(node, world, daemon, state, asked, error):
    world.env("a")
    published(daemon)
    if state != "answers":
        daemon.services = daemon.services if state == "silent" else None
        daemon.silent, daemon.deaf = state == "silent", state == "broken"
    found = published(daemon)
    if state == "broken":
        found.errors["(monit)"] = "before"
    found = reload.ensure_monit(node, daemon, found)
    assert daemon.asked == asked and found.errors.get("(monit)") == error
    assert (found.started, found.status is None) == (state == "ended", error is not None)


def test_monit_that_was_started_has_read_what_is_published(node, world, daemon):
    world.env("a")
    daemon.services = None
    found = published(daemon)
    assert "a" in found.unread
    found = reload.ensure_monit(node, daemon, found)
    assert found.started and list(found.unread) == []
