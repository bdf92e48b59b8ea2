"""One whole pass over a node whose CBSD and kernel are scripts, and what a dry one foretells."""

import json
import os
import time
from types import SimpleNamespace

import generations
import judge
import passes
import pytest
import records
import text
from states import UNMONITORED

from .conftest import deliver, tree


@pytest.fixture(autouse=True)
def no_monit(monkeypatch):
    monkeypatch.setattr("monit.Monit.status", lambda *a, **k: None)


def test_second_pass_writes_nothing(node, world, tmp_path):
    for name in ("a", "b"):
        world.env(name)
    passes.run(node)
    passes.run(node)
    folders = tmp_path / "state", tmp_path / "work"
    before = tree(*folders, files_only=True)
    seen = passes.run(node)
    assert tree(*folders, files_only=True) == before
    assert (seen.publication.changed, seen.publication.reloaded) == ([], False)


def test_dry_pass_writes_nothing_and_foretells_the_change(node, world, tmp_path):
    world.env("a")
    passes.run(node)
    before = tree(tmp_path, files_only=True)
    template = (
        'check host "%%ENV%%.web" with address "%%ADDRESS%%"\n  if failed port 80 then alert\n'
    )
    seen = passes.dry(node, {"a": {"monitrc.tpl": template, "policy.json": {}}})
    assert seen.publication.changed == ["a"]
    assert tree(tmp_path, files_only=True) == before


def test_env_whose_address_is_lost_keeps_what_was_published(node, world, tmp_path):
    world.env("a")
    passes.run(node)
    before = (tmp_path / "state/published").read_text()
    world.rows["a"]["ip4_addr"] = "DHCP"
    world.write()
    seen = passes.run(node)
    assert "no address yet" in seen.errors["a"]
    assert (tmp_path / "state/published").read_text() == before


def test_untrusted_directory_cannot_make_root_run_anything(node, world, tmp_path):
    evil = 'check host "a.x" with address "1.1.1.1"\n  if failed port 1 then exec "/bin/evil"\n'
    monit = world.env("a", template=evil)
    monit.parent.chmod(0o777)
    seen = passes.run(node)
    assert "as root" in seen.errors["a"]
    monit.parent.chmod(0o755)
    assert passes.run(node).publication.foreign == {"a": ["/bin/evil"]}


NONSENSE = [{"checks": 7}, {"checks": {"tcp": []}}, {"depends_on": 5}, {"start_period": None}]
NONSENSE += [{"restart": []}, {"restart": {"attempts": "x"}}, {"on_failure": 3}]


@pytest.mark.parametrize("policy", NONSENSE)
def test_policy_of_nonsense_is_that_envs_trouble_alone(node, world, policy):
    world.env("a", policy=policy)
    world.env("b")
    passes.run(node)
    world.up.clear()
    world.write()
    seen = passes.run(node)
    assert "b" in [d.env for d in seen.due]


def test_untrusted_template_cannot_take_another_envs_name(node, world):
    monit = world.env(
        "a", template='check host "b.tcp" with address "1.1.1.1"\n  if failed port 1 then alert\n'
    )
    monit.parent.chmod(0o777)
    world.env("b")
    seen = passes.run(node)
    assert "which is a name of b's" in seen.errors["a"]
    assert set(seen.publication.services) == {"b.tcp"}


def test_directory_where_the_rule_belongs_is_that_envs_trouble_alone(node, world):
    (world.env("a") / "monitrc").mkdir()
    world.env("b")
    passes.run(node)
    world.kill("b")
    seen = passes.run(node)
    assert "cannot be written" in seen.errors["a"]
    assert [d.env for d in seen.due] == ["b"]


def test_control_file_that_monit_refuses_keeps_nothing_from_being_healed(node, world, tmp_path):
    world.env("a")
    passes.run(node)
    (tmp_path / "monitrc").write_text("set daemon 5\nset nonsense\n")
    world.rows["a"]["ip4_addr"] = "127.0.0.2"
    world.kill("a")
    seen = passes.run(node)
    assert "does not accept the node's own control file" in seen.errors["(monit)"]
    assert [d.env for d in seen.due] == ["a"]


def test_what_a_killed_writer_left_is_removed_once_it_is_old(node, world, tmp_path):
    monit_dir = world.env("a")
    left = [
        monit_dir / f".monitrc.{'0a' * 6}.new",
        tmp_path / "state/envs" / f".a.json.{'0b' * 6}.new",
    ]
    young, alien = monit_dir / f".monitrc.{'0c' * 6}.new", monit_dir / ".mine.new"
    for path in (*left, young, alien):
        path.write_text("half")
    for path in (*left, alien):
        os.utime(path, (time.time() - 700, time.time() - 700))
    passes.run(node)
    assert [p.exists() for p in (*left, young, alien)] == [False, False, True, True]


def test_bug_in_judging_one_env_is_told_as_ours_and_all_others_are_judged(
    node, world, monkeypatch, capsys
):
    for name in ("a", "b", "c"):
        world.env(name)
    passes.run(node)
    world.up.clear()
    world.write()
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


def test_bug_in_making_a_text_keeps_what_was_published_and_all_others_go_on(
    node, world, monkeypatch, capsys
):
    for name in ("a", "b"):
        world.env(name)
    passes.run(node)
    real = text.make
    monkeypatch.setattr(text, "make", lambda n, env, *r: real(n, env, *r) if env == "b" else 1 / 0)
    world.env(
        "c", template='check host "c.new" with address "1.1.1.1"\n  if failed port 1 then alert\n'
    )
    monkeypatch.setattr(text, "make", lambda n, env, *r: 1 / 0 if env == "a" else real(n, env, *r))
    world.rows["b"]["ip4_addr"] = "127.0.0.9/8"
    world.kill("b")
    seen = passes.run(node)
    assert "a bug in cbsd_monit" in seen.errors["a"] and "ZeroDivisionError" in seen.errors["a"]
    assert set(seen.publication.services) == {"a.tcp", "b.tcp", "c.new"}
    assert seen.publication.changed == ["b", "c"] and [d.env for d in seen.due] == ["b"]
    assert "Traceback" in capsys.readouterr().err


class Answer(SimpleNamespace):
    """A service as monit sees it."""

    status, monitor, pending, watched, failing, message, version = 0, 1, 0, True, False, "", (5, 33)
    suspect = unasked = False
    collected = 4e9

    @property
    def reason(self):
        return self.message or "monit says 0"

    def good_since(self, moment):
        return not self.failing


def status(**services):
    named = {name.replace("_", "."): Answer(**row) for name, row in services.items()}
    return SimpleNamespace(services=named, version=(5, 33))


@pytest.mark.parametrize(
    ("record", "a_env", "a_http", "asked"),
    [
        ({}, {}, {}, ""),
        ({}, {"monitor": 0}, {"monitor": 0}, "monitor a.env a.http"),
        ({}, {"monitor": 0, "pending": 1}, {"monitor": 2}, ""),
        ({"intent": "stopped"}, {}, {}, "unmonitor a.env a.http"),
        ({"intent": "stopped"}, {"monitor": 0}, {"monitor": 4}, "unmonitor a.http"),
        ({"state": "failing"}, {}, {}, ""),
        ({"state": "silenced"}, {"monitor": 0}, {}, "monitor a.env"),
        *(({"state": word}, {}, {"monitor": 0}, "unmonitor a.env") for word in UNMONITORED),
    ],
)
def test_monit_looks_at_what_should_be_up(record, a_env, a_http, asked):
    envs = {"a": records.Record("a", {"intent": "running", "state": "healthy", **record})}
    services = {"a": {"a.http": "http", "a.env": "env", "a.lost": "lost"}, "gone": {"g.x": "x"}}
    calls = []
    monit = SimpleNamespace(
        act=lambda names, verb: calls.extend([verb, *names] if names else []),
        hurry=lambda version: calls.append("hurry"),
    )
    found = passes._switch(monit, envs, services, status(a_env=a_env, a_http=a_http))
    assert " ".join(calls) == (asked and asked + " hurry") and found == bool(asked)


@pytest.fixture
def watched(node, world, daemon, monkeypatch):
    """A daemon that the passes ask; lb1 was published and switched on."""
    monkeypatch.setattr(passes, "Monit", lambda _: daemon)
    daemon.services = []
    world.env("lb1")
    passes.run(node)
    daemon.asked.clear()
    return daemon


def test_pass_switches_what_monit_is_to_look_at(node, world, watched):
    seen = passes.run(node)
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
    assert set(passed) == {*node.stamp(), "config", "trust", "published", "answer"}
    assert passed["published"] == text.digest(generations.published(node))
    assert passed["answer"] == {"quarantined": {}, "foreign": {}, "warnings": [], "held": None}
    watched.silent = True
    passes.run(node)
    assert not path.exists(), "monit does not answer"
    watched.silent = False
    passes.run(node)
    assert path.exists()
    world.rows["lb1"]["ip4_addr"] = "DHCP"
    world.write()
    passes.run(node)
    assert not path.exists(), "there was an error"


def test_monit_that_ended_is_started_by_a_sync(node, watched):
    watched.services = None
    assert passes.run(node).publication.status is None and watched.asked == []
    assert passes.run(node, start_monit=True).publication.started and watched.asked == ["start"]


def test_storm_is_written_down_and_ends(node, world, watched, tmp_path, monkeypatch):
    for number in range(6):
        world.env(f"e{number}")
    passes.run(node)
    path, bad = tmp_path / "state/storm.json", set()
    names = [f"e{number}" for number in range(6)]

    def results(node, env, *rest):
        return [("tcp", Answer(failing=env.name in bad, suspect=env.name in bad))]

    monkeypatch.setattr(passes, "_results", results)
    bad.update(names)
    seen = passes.run(node)
    assert (seen.due, json.loads(path.read_text())["envs"]) == ([], names)
    assert [e["transition"] for e in records.history(node, "e0")][-2:] == ["failing", "storm"]
    bad.clear()
    passes.run(node)
    assert list(json.loads(path.read_text())) == ["passed"]
    assert records.history(node, "e0")[-1]["transition"] == "calm"


def test_results_are_those_of_monit_and_of_the_agents_own_probes(node):
    env = records.Record("a", {"probes": {"app": {"codes": [1], "words": "w", "at": node.stamp()}}})
    policy = {"checks": {"app": {"type": "exec", "failure_threshold": 1}, "new": {"type": "file"}}}
    services = {"a.http": "http", "a.gone": "gone"}
    assert passes._results(node, env, policy, services, None) is None
    now = status(a_http={})
    found = passes._results(node, env, policy, services, now)
    assert found == [("gone", None), ("http", now.services["a.http"])]
    node.conf["probes"] = "agent"
    found = dict(passes._results(node, env, policy, services, now))
    assert (found["app"].failing, found["new"], set(found)) == (
        True,
        None,
        {"gone", "http", "app", "new"},
    )


def test_checks_of_the_node_are_told_when_they_change(node, capsys):
    name = "node-disk"
    for row, words in (
        ({"failing": True, "message": "full"}, "node: failing (disk) full"),
        ({"failing": True, "message": "fuller"}, ""),
        ({"failing": False}, "node: healthy (disk)"),
        ({"failing": True, "watched": False, "message": "no"}, ""),
    ):
        capsys.readouterr()
        services = {name: Answer(**row), "node-a.http": Answer(failing=True), "x": Answer()}
        passes._announce_node(node, SimpleNamespace(services=services))
        assert words in capsys.readouterr().err.strip() if words else not capsys.readouterr().err
    with open(node.in_state("node-checks.json"), encoding="utf-8") as handle:
        assert json.load(handle) == {}


def test_heal_that_goes_on_is_seen_by_its_lock_and_a_dead_env_by_its_marker(node, world):
    world.env("lb1")
    env = passes.run(node).envs["lb1"]
    env["op"] = {"id": "x", "action": "restart", "step": "stop", **node.stamp()}
    records.save(node, env)
    world.kill("lb1")
    with node.env_lock("lb1", "heal"):
        assert passes.run(node).envs["lb1"]["state"] == "healing"
    seen = passes.run(node)
    assert ([d.env for d in seen.due], seen.envs["lb1"]["op"]) == (["lb1"], None)
    assert os.path.exists(node.dead_marker("lb1"))
    world.up.add("lb1")
    world.write()
    passes.run(node)
    assert not os.path.exists(node.dead_marker("lb1"))


def test_a_bug_in_holding_back_heals_keeps_what_was_judged(node, world, monkeypatch):
    world.env("a")
    passes.run(node)
    world.kill("a")
    monkeypatch.setattr("restrain.restrain", lambda *_: 1 / 0)
    seen = passes.run(node)
    assert "a bug in cbsd_monit" in seen.errors["(agent)"] and seen.due == []
    assert records.load(node, "a")["state"] == "failing"
