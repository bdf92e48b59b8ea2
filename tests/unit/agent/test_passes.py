"""One whole pass over a node whose CBSD and kernel are scripts, and what a dry one foretells."""

import json
import os
import time
from types import SimpleNamespace

import generations
import judge
import passes
import proof
import pytest
import records
import text
from proof import Seen
from reload import Publication
from states import UNMONITORED

from .conftest import cases, claim, deliver, remember, tree

pytestmark = pytest.mark.usefixtures("no_monit")


@cases(
    ("template", "words", "foreign"),
    (claim("a.x", 'exec "/bin/evil"'), "as root", {"a": ["/bin/evil"]}),
    (claim("b.tcp"), "which is a name of b's", {}),
)
def test_untrusted_directory_is_not_trusted(node, world, template, words, foreign):
    monit = world.env("a", template=template)
    world.env("b")
    monit.parent.chmod(0o777)
    seen = passes.run(node)
    assert words in seen.publication.quarantined["a"]["reason"] and set(
        seen.publication.services
    ) == {"b.tcp"}
    monit.parent.chmod(0o755)
    assert passes.run(node).publication.foreign == foreign


def test_what_cannot_be_published_keeps_nothing_from_being_healed(node, world, tmp_path):
    (world.env("a") / "monitrc").mkdir()
    world.settle("b")
    world.kill("b")
    seen = passes.run(node)
    assert "cannot be written" in seen.errors["a"] and [d.env for d in seen.due] == ["b"]
    (tmp_path / "monitrc").write_text("set daemon 5\nset nonsense\n")
    world.change("b", ip4_addr="127.0.0.2")
    seen = passes.run(node)
    assert "does not accept the node's own control file" in seen.errors["(monit)"]
    assert [d.env for d in seen.due] == ["b"]


def test_what_a_killed_writer_left_is_removed_once_it_is_old(node, world, tmp_path):
    monit_dir = world.env("a")
    for path in (monit_dir / ".x.0a0a0a0a0a0a.new", tmp_path / "state/envs/.a.0b0b0b0b0b0b.new"):
        path.write_text("half")
        passes.run(node)
        assert path.exists(), "its writer may live"
        os.utime(path, (time.time() - 700, time.time() - 700))
        passes.run(node)
        assert not path.exists()


def test_bug_in_judging_one_env_is_ours_and_all_others_are_judged(node, world, monkeypatch, capsys):
    world.settle("a", "b", "c")
    world.kill("a", "b", "c")
    real = judge.judge

    def broken(record, *rest):
        return {}["surprise"] if record.name == "b" else real(record, *rest)

    monkeypatch.setattr(judge, "judge", broken)
    seen = passes.run(node)
    assert [d.env for d in seen.due] == ["a", "c"]
    words = seen.envs["b"]["reason"]
    assert (seen.envs["b"]["state"], records.load(node, "b")["state"]) == ("unknown", "unknown")
    assert words.startswith("a bug in cbsd_monit, not your configuration: judging b: KeyError")
    assert words.endswith(f"the traceback is in {node.in_state('agent.log')}")
    logged = capsys.readouterr().err
    assert "Traceback" in logged and 'return {}["surprise"]' in logged
    monkeypatch.setattr("restrain.restrain", lambda *_: 1 / 0)
    seen = passes.run(node)
    assert "a bug in cbsd_monit" in seen.errors["(agent)"] and seen.due == []
    assert records.load(node, "a")["state"] == "failing", "what was judged is kept"


def test_bug_in_making_a_text_keeps_what_was_published(node, world, monkeypatch, capsys):
    world.settle("a", "b")
    real = text.make
    monkeypatch.setattr(text, "make", lambda n, env, *r: 1 / 0 if env == "a" else real(n, env, *r))
    world.env("c", template=claim("c.new"))
    world.change("b", ip4_addr="127.0.0.9/8")
    world.kill("b")
    seen = passes.run(node)
    words = seen.publication.quarantined["a"]["reason"]
    assert "a bug in cbsd_monit" in words and "ZeroDivisionError" in words
    assert set(seen.publication.services) == {"a.tcp", "b.tcp", "c.new"}
    assert seen.publication.changed == ["b", "c"] and [d.env for d in seen.due] == ["b"]
    assert "Traceback" in capsys.readouterr().err


class Answer(SimpleNamespace):
    monitor, pending, watched, failing, reason = 1, 0, True, False, ""


def status(**services):
    named = {name.replace("_", "."): Answer(**row) for name, row in services.items()}
    return SimpleNamespace(services=named, version=(5, 33))


@cases(
    ("record", "a_env", "a_http", "asked"),
    ({}, {}, {}, ""),
    ({}, {"monitor": 0}, {"monitor": 0}, "monitor a.env a.http"),
    ({}, {"monitor": 0, "pending": 1}, {"monitor": 2}, ""),
    ({"intent": "stopped"}, {}, {}, "unmonitor a.env a.http"),
    ({"intent": "stopped"}, {"monitor": 0}, {"monitor": 4}, "unmonitor a.http"),
    ({"state": "failing"}, {}, {}, ""),
    ({"state": "silenced"}, {"monitor": 0}, {}, "monitor a.env"),
    *(({"state": word}, {}, {"monitor": 0}, "unmonitor a.env") for word in UNMONITORED),
)
def test_monit_looks_at_what_should_be_up(record, a_env, a_http, asked):
    envs = {"a": records.Record("a", {"intent": "running", "state": "healthy", **record})}
    services = {"a": {"a.http": "http", "a.env": "env", "a.lost": "lost"}, "gone": {"g.x": "x"}}
    calls = []
    monit = SimpleNamespace(hurry=lambda version: calls.append("hurry"))
    monit.act = lambda names, verb: calls.extend([verb, *names] if names else [])
    publication = Publication({}, {}, status=status(a_env=a_env, a_http=a_http))
    found = passes._switch(monit, envs, services, publication)
    assert " ".join(calls) == (asked and asked + " hurry") and found == bool(asked)
    envs["a"]["warm"] = True
    again = passes._switch(monit, envs, services, publication)
    assert again == asked.startswith("unmonitor"), "monit unmonitors it itself, again and again"


def test_checks_of_the_node_are_watched_always():
    calls = []
    monit = SimpleNamespace(hurry=calls.append, act=lambda names, verb: calls.extend(names))
    seen = SimpleNamespace(services={"node-disk": Answer(monitor=0)}, version=(5, 33))
    publication = Publication({}, {}, status=seen, own=["node-disk"])
    assert passes._switch(monit, {}, {}, publication) is False and "node-disk" in calls


@pytest.fixture
def watched(node, world, daemon, monkeypatch):
    monkeypatch.setattr(passes, "Monit", lambda _: daemon)
    daemon.services = []
    world.settle("lb1")
    daemon.asked.clear()
    return daemon


def test_pass_switches_what_monit_is_to_look_at(node, world, watched):
    passes.run(node)
    before = tree(node.state, files_only=True)
    seen = passes.run(node)
    assert tree(node.state, files_only=True) == before and seen.publication.changed == []
    assert (watched.asked, seen.unsettled, seen.envs["lb1"]["state"]) == ([], False, "healthy")
    deliver(node, 1, "master_prestop.d")
    deliver(node, 2, "master_poststop.d")
    world.kill("lb1")
    seen = passes.run(node)
    assert (watched.asked, seen.unsettled) == ([("unmonitor", "lb1.tcp"), "hurry"], True)
    assert (seen.envs["lb1"]["state"], seen.running()) == ("stopped", [])


def test_answer_is_kept_for_a_highstate_only_without_errors(node, world, watched, tmp_path):
    path = tmp_path / "run/passed.json"
    passed = json.loads(path.read_text())
    assert set(passed) == {*node.stamp(), "config", "trust", "published", "limit", "answer"}
    assert passed["published"] == text.digest(generations.published(node))
    assert passed["answer"] == {"quarantined": {}, "foreign": {}, "warnings": [], "held": None}
    watched.silent = True
    passes.run(node)
    assert not path.exists(), "monit does not answer"
    watched.silent = False
    passes.run(node)
    assert path.exists()
    before = generations.published(node)
    world.change("lb1", ip4_addr="DHCP")
    assert "no address yet" in passes.run(node).publication.quarantined["lb1"]["reason"]
    assert set(json.loads(path.read_text())["answer"]["quarantined"]) == {"lb1"}
    assert generations.published(node) == before, "what cannot be made now stays published"


def test_outcomes_are_those_of_the_agents_own_probes(node):
    env = records.Record("a", {"probes": {"app": {"codes": [1], "words": "w", "at": node.stamp()}}})
    rows = {"app": {"type": "exec", "failure_threshold": 1}, "new": {"type": "file", "interval": 9}}
    policies = {"a": {"checks": {**rows, "http": {"type": "http"}}}}
    assert passes._outcomes(node, {"a": env}, policies, ["a"]) == {}
    node.conf["probes"] = "agent"
    found = passes._outcomes(node, {"a": env}, policies, ["a"])["a"]
    assert found.pop("app")[0].failing and found == {"new": (None, 9)}


def test_checks_of_the_node_are_told_when_they_change(node, tmp_path, capsys):
    for result, reason, live, words in (
        ("bad", "full", True, "(node): failing (disk): full"),
        ("bad", "fuller", True, ""),
        ("bad", "fuller", False, ""),
        ("good", "", True, "(node): healthy (disk)"),
        ("unwatched", "no", True, ""),
    ):
        capsys.readouterr()
        passes._announce_node(node, {"disk": Seen(result, reason, None, 30, 99, live, result)})
        found = capsys.readouterr().err
        assert words in found if words else not found
    assert json.loads((tmp_path / "state/node-checks.json").read_text()) == {"disk": ""}


def test_heal_that_goes_on_is_seen_by_its_lock_and_a_dead_env_by_its_marker(node, world):
    world.settle("lb1")
    remember(node, "lb1", op={"id": "x", "action": "restart", "step": "stop", **node.stamp()})
    world.kill("lb1")
    with node.env_lock("lb1", "heal"):
        assert passes.run(node).envs["lb1"]["state"] == "healing"
    seen = passes.run(node)
    assert ([d.env for d in seen.due], seen.envs["lb1"]["op"]) == (["lb1"], None)
    assert os.path.exists(node.dead_marker("lb1"))
    world.start("lb1")
    passes.run(node)
    assert not os.path.exists(node.dead_marker("lb1"))


def test_check_of_the_node_that_there_is_not_holds_nothing_and_is_a_warning(node, world, watched):
    world.settle("lb1", policy={"checks": {}, "depends_on": [{"node": "uplink"}]})
    words = "lb1: depends_on: this node has no check uplink, which therefore holds nothing"
    seen = passes.run(node)
    assert seen.warnings == [words] and seen.envs["lb1"]["state"] == "healthy"
    node.head += 'check file "node-uplink" with path "/x"\n  if exist then alert\n'
    assert passes.run(node).warnings == []


def test_monit_that_goes_round_no_more_proves_nothing_and_is_an_error(node, world, watched):
    passes.run(node)
    before = proof.load(node)
    long_ago = {**before.round, "m": before.round["m"] - 2 * before.limit}
    rows = {"tcp": before.checks["lb1"]["tcp"]._replace(at=(0, long_ago["m"]))}
    proof.save(node, before._replace(round=long_ago, checks={"lb1": rows}), before)
    watched.silent = True
    seen = passes.run(node)
    assert "has not gone round" in seen.envs["lb1"]["reason"]
    assert seen.envs["lb1"]["state"] == "unknown" and "(monit)" in seen.errors
    assert seen.envs["lb1"]["known"]["state"] == "healthy"


def test_env_whose_row_cannot_be_read_is_unknown(node, world, watched):
    world.settle("lb2")
    world.change("lb1", path="/a|b")
    passes.run(node)
    env = records.load(node, "lb1")
    assert env["state"] == "unknown" and "cannot be read" in env["reason"]


def test_service_that_monit_does_not_watch_proves_nothing(node, world, watched):
    """`then unmonitor` and `then stop` leave it like that."""
    passes.run(node)
    assert passes.run(node).envs["lb1"]["state"] == "healthy"
    watched.idle = True
    seen = passes.run(node)
    assert (seen.envs["lb1"]["state"], watched.asked[-2:]) == (
        "unknown",
        [("monitor", "lb1.tcp"), "hurry"],
    )
    watched.idle = False
    assert passes.run(node).envs["lb1"]["state"] == "healthy"
