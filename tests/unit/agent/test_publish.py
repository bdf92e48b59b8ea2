"""What is published, which of it monit took on trial, and what is taken back."""

import json
import os

import files
import generations
import publish
import pytest
import survey
from node import AgentError

from .conftest import cases, claim, published, rule


def test_change_is_read_once_and_verified(node, world, daemon, tmp_path):
    world.env("a")
    monit_dir, called = world.env("b"), []
    found = published(daemon, meanwhile=lambda: called.append(1))
    assert (found.changed, found.reloaded, called) == (["a", "b", "node"], True, [1])
    assert found.services == {"a.tcp": ("a", "tcp"), "b.tcp": ("b", "tcp")}
    assert daemon.asked == [("reload", True)] and found.verify_wait >= 0 and not found.errors
    assert (monit_dir / "monitrc").read_text() in generations.published(node)
    owners = json.loads((tmp_path / "state/services.json").read_text())
    assert owners == {name: list(owner) for name, owner in found.services.items()}
    found = published(daemon)
    assert (found.changed, found.reloaded, daemon.asked) == ([], False, [])
    os.remove(node.in_state("loaded"))
    published(daemon)
    assert daemon.asked == [("reload", False)], "nothing was on trial"
    world.forget("b")
    found = published(daemon)
    assert (found.changed, set(found.services)) == (["b"], {"a.tcp"})


@pytest.mark.parametrize("include", ["publish", "glob"])
def test_only_what_monit_took_as_it_is_now_counts_as_tested(node, conf, world, daemon, include):
    node.conf["include"] = include
    world.env("a", template=rule())
    world.env("b", template=rule("bad"))

    def edited():
        with open(conf["monitrc"], "a") as handle:
            handle.write("# an operator's change\n")

    published(daemon)
    tested = include == "publish"  # by a glob monit reads other files than those on trial
    assert daemon.asked == [("reload", tested)], "the culprit's trials do not count"
    assert os.path.exists(node.in_state("head")) != tested
    daemon.after_test = edited
    world.env("a", template=rule("new"))
    published(daemon)
    assert daemon.asked == [("reload", False)]


def test_env_in_quarantine_is_tried_again_when_anything_changes(node, world, daemon, tmp_path):
    world.env("a")
    bad = world.env("b")
    published(daemon)
    assert (bad / "monitrc").exists()
    world.env("b", template=rule("bad"))
    found = published(daemon)
    reason = found.quarantined["b"]["reason"]
    assert reason == "monit says: monitrc.tpl:2: syntax error 'x'"
    assert set(found.services) == {"a.tcp", "b.tcp"} and "# alert" in (bad / "monitrc").read_text()
    trials = []
    daemon.after_test = lambda: trials.append(1)
    found = published(daemon)
    assert (found.quarantined["b"]["reason"], found.reloaded, trials) == (reason, False, [])
    world.env("c")
    assert set(published(daemon).quarantined) == {"b"}
    world.env("b", template=rule())
    found = published(daemon)
    assert (found.quarantined, found.changed) == ({}, [])
    assert json.loads((tmp_path / "state/quarantine.json").read_text()) == {}


def test_text_that_ends_monit_is_taken_back_until_its_inputs_change(node, world, daemon):
    for name in ("a", "gone"):
        world.env(name, template=rule())
    published(daemon)
    good = generations.parts_of(generations.published(node))
    world.forget("gone")
    world.env("a", template=rule("fatal"))
    world.env("b", template=rule("fatal"))
    found = published(daemon)
    words = "monit ended when it read generation 2; generation 1 is published again"
    assert found.errors["(monit)"] == words
    assert daemon.asked == [("reload", True), "start"] and good.pop("gone")
    assert generations.parts_of(generations.published(node)) == good
    assert (found.held["generation"], set(found.services)) == (1, {"a.tcp"})
    assert found.status is not None and found.held["why"].endswith("it read generation 2")
    found = published(daemon)
    assert (found.held["generation"], found.changed, daemon.asked[1:]) == (1, [], [])
    world.env("a", template=rule("new"))
    world.env("b", template=rule("new"))
    found = published(daemon)
    assert (found.held, found.changed, daemon.asked) == (None, ["a", "b"], [("reload", True)])
    assert not os.path.exists(node.in_state("held.json"))


def test_first_text_that_ends_monit_leaves_it_without_envs(node, world, daemon):
    world.env("a", template=rule("fatal"))
    assert "generation without envs is published" in published(daemon).errors["(monit)"]
    assert "check" not in generations.published(node) and daemon.pid() == 77


def test_digest_of_what_is_wanted_follows_templates_not_what_is_published(node, world, daemon):
    world.env("a", template=rule())
    before = publish.wanted(node, survey.take(node))
    published(daemon)
    assert publish.wanted(node, survey.take(node)) == before
    world.env("a", template=rule("new"))
    assert publish.wanted(node, survey.take(node)) != before


def test_service_that_two_envs_claim_is_pillars_or_stays(node, world, daemon, tmp_path):
    world.env("a", up=False, template=claim("web"))
    world.env("b", template=claim("web"))
    assert published(daemon).services == {"web": ("b", "web")}
    world.env("a", template=claim("web"))
    world.env("c")
    world.kill("b")
    assert published(daemon).services["web"] == ("b", "web")
    (tmp_path / "state/trust.json").write_text('{"a": {}}')
    world.env("d")
    found = published(daemon)
    assert found.services["web"] == ("a", "web") and "already used by a" in str(found.quarantined)


def reason(found, name):
    return found.quarantined[name]["reason"]


@cases(
    ("template", "words"),
    ("set alert root@localhost\n" + rule(), "refused: `set` in the text of one env"),
    (rule() + "# %%NO_SUCH%%\n", "refused: the template asks for %%NO_SUCH%%"),
    (rule() + 'group "x\n', "refused: unbalanced quotes"),
    (rule("bad"), "monit says: monitrc.tpl:2: syntax error 'x'"),
)
def test_env_whose_text_is_refused_keeps_what_monit_took_last(node, world, daemon, template, words):
    """And the others go live; whose refusal it is stands in the reason."""
    world.env("a")
    world.env("b")
    world.env("c")
    published(daemon)
    before = generations.parts_of(generations.published(node))["b"]
    world.env("b", template=template)
    world.env("c", template=rule("new"))
    for _ in range(2):
        found = published(daemon)
        assert reason(found, "b").startswith(words) and set(found.quarantined) == {"b"}
        assert set(found.services) == {"a.tcp", "b.tcp", "c.tcp"} and "b" not in found.errors
        assert generations.parts_of(generations.published(node))["b"] == before
    world.env("b", template=rule("good"))
    assert published(daemon).quarantined == {}


def test_env_without_an_address_is_in_quarantine_and_says_so(world, daemon):
    world.env("a", ip4_addr="REALDHCP")
    found = published(daemon)
    assert reason(found, "a") == "no address yet: ip4_addr is 'REALDHCP'" and not found.services


def test_kept_text_that_collides_now_is_not_kept(node, world, daemon):
    world.env("a", template=claim("a.one"))
    published(daemon)
    world.env("a", template=rule("bad"))
    assert set(published(daemon).services) == {"a.one"}
    world.env("b", template=claim("a.one"))
    found = published(daemon)
    assert set(found.services) in ({"a.one"}, {"b.x"}) and len(found.quarantined) == 2


def test_rollback_puts_those_into_quarantine_whose_checks_it_takes_away(node, world, daemon):
    world.env("a")
    world.env("b")
    published(daemon)
    world.env("b", template=rule("newer"))
    world.env("c")
    published(daemon)
    held = {
        "digest": publish.wanted(node, survey.take(node)),
        "generation": 1,
        "why": "rolled back",
    }
    files.write_json(node.in_state("held.json"), held)
    found = published(daemon)
    assert set(found.quarantined) == {"b", "c"} and set(found.services) == {"a.tcp", "b.tcp"}
    assert reason(found, "b") == "rolled back to generation 1"
    files.remove(node.in_state("held.json"))
    assert published(daemon).quarantined == {}


def test_text_that_could_not_be_published_is_not_live(node, world, daemon, monkeypatch):
    world.env("a")
    published(daemon)
    world.env("a", template=rule("newer"))
    monkeypatch.setattr(daemon, "test", lambda path: "monitrc:1: syntax error 'operator'")
    found = published(daemon)
    assert "syntax error 'operator'" in reason(found, "a") and set(found.services) == {"a.tcp"}


def test_only_services_with_other_words_are_renewed(node, world, daemon):
    two = rule() + 'check file "%%ENV%%.f" with path "/x"\n  if exist then alert\n'
    world.env("a", template=two)
    world.env("b")
    assert published(daemon).renewed == {"a.tcp", "a.f", "b.tcp"}
    assert published(daemon).renewed == set()
    world.env("a", template=two.replace("/x", "/y"))
    assert published(daemon).renewed == {"a.f"}


def test_what_monit_has_not_read_is_known(node, world, daemon, monkeypatch):
    world.env("a")
    world.env("b")
    assert list(published(daemon).unread) == []

    def no(*_):
        raise AgentError("monit reload: no")

    monkeypatch.setattr(daemon, "reload", no)
    world.env("b", template=rule("newer"))
    for _ in range(2):
        assert list(published(daemon).unread) == ["b"]
    monkeypatch.undo()
    assert list(published(daemon).unread) == []
