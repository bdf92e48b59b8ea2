"""The runner, as far as it needs no minion: its tables, and what it refuses."""

import json
import os
import stat
import sys

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from tests.unit.loaded import load, public


@pytest.fixture
def runner():
    return load("_runners/cbsd_monit.py", opts={})


class Nodes:
    """Minions whose reports a test sets in ``said`` (an exception: it fails), and the time."""

    def __init__(self, tmp_path, monkeypatch):
        opts, salt = {"cachedir": str(tmp_path)}, {}
        self.runner = load("_runners/cbsd_monit.py", opts=opts, salt=salt)
        self.answers = load("_runners/cbsd_monit_answers.py", opts=opts, salt=salt)
        salt.update({f"cbsd_monit_answers.{n}": f for n, f in public(self.answers).items()})
        self.folder, self.now, self.said, self.silent = tmp_path, 1e9, {}, []
        monkeypatch.setattr(self.answers.time, "time", lambda: self.now)
        monkeypatch.setattr(self.runner, "_ask", self.ask)

    def ask(self, tgt, fun, tgt_type="glob", timeout=None, **wanted):
        assert (fun, wanted) == ("cbsd_monit_fleet.report", {}), "the whole report, whoever asks"
        found = self.runner._Answers()
        found.silent = list(self.silent)
        for minion, said in self.said.items():
            if isinstance(said, Exception):
                found.errors[minion] = str(said)
            elif minion not in self.silent:
                found[minion], found.moments[minion] = json.loads(json.dumps(said)), self.now
        return found

    def rows(self, **asked):
        """{"node/env": row} as ``fleet`` shows them."""
        return {f"{r['node']}/{r['env']}": r for r in self.runner.fleet(**asked)["envs"]}

    def files(self):
        return sorted((self.folder / "cbsd_monit/answers").iterdir())


def row(state="healthy", age=1.5, groups=("web",), **more):
    return {"state": state, "age": age, "groups": list(groups), "emulator": "jail", **more}


def node_row(limit=120, **more):
    return row(**{"groups": [], "emulator": None, "limit": limit, **more})


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    found = Nodes(tmp_path, monkeypatch)
    found.said = {
        "hv1": {"(node)": node_row(), "lb1": row(), "db1": row("failing", groups=())},
        "hv2": {"(node)": node_row(limit=200), "lb2": row(), "new": row("unwatched", None, ())},
    }
    return found


def test_a_terminal_gets_a_table_and_obeys_nothing(runner, monkeypatch):
    result = {
        "envs": [{
            "node": "hv1", "env": "lb1", "state": "failing", "since": 0,
            "reason": "\x1b[2Jbad\nline", "restarts": 2,
        }],
        "no_answer": ["hv2"],
        "errors": {"hv3": "no agent\x1b"},
    }  # fmt: skip
    assert runner._shown(result, runner.COLUMNS) is result, "not on a terminal: data"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = runner._shown(result, runner.COLUMNS)
    assert shown["outputter"] == "txt"
    head, row, silent, error = shown["data"].splitlines()
    assert head.split() == runner.COLUMNS and row.split()[:3] == ["hv1", "lb1", "failing"]
    assert "?[2Jbad?line" in row and "\x1b" not in shown["data"]
    assert silent == "hv2 does not answer" and error == "hv3: no agent?"
    runner.__opts__["output"] = "json"
    assert runner._shown(result, runner.COLUMNS) is result


@pytest.mark.parametrize(
    "fun, args",
    [("silence", ("1h", "x")), ("unsilence", ()), ("retry", ()), ("rolling_restart", ())],
)
def test_everything_everywhere_has_to_be_said(runner, fun, args):
    with pytest.raises(SaltInvocationError, match="which: give"):
        getattr(runner, fun)(*args)


def test_long_work_tells_a_terminal_how_far_it_is(runner, monkeypatch, capsys):
    rows = [{"node": f"hv{n}", "env": "lb1", "state": "healthy"} for n in (1, 2, 3)]
    monkeypatch.setattr(runner, "_fleet", lambda *_: {"envs": rows})
    monkeypatch.setattr(runner, "_restart", lambda *_: {})
    monkeypatch.setattr(runner, "_settle", lambda *_: {})
    assert runner.rolling_restart("web") == {"restarted": ["hv1/lb1", "hv2/lb1", "hv3/lb1"]}
    assert capsys.readouterr().err == "", "nobody watches"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    runner.rolling_restart("web", max_parallel=2)
    first, second = "0 restarted, 3 to go: hv1/lb1, hv2/lb1", "2 restarted, 1 to go: hv3/lb1"
    assert capsys.readouterr().err.splitlines() == [first, second]


class Envs:
    """What the fleet says of hv1/lb1, ``(state, since)`` a second; a restart begins the next."""

    def __init__(self, runner, monkeypatch, *told):
        self.now, self.told, self.began = 1000.0, list(told), None
        monkeypatch.setattr(runner.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(runner.time, "sleep", self.sleep)
        monkeypatch.setattr(runner, "_fleet", lambda *_: {"envs": [self.row()]})
        monkeypatch.setattr(runner, "_restart", self.restart)

    def restart(self, wave, timeout):
        self.began, self.told = self.now, self.told[1:]
        return {}

    def sleep(self, seconds):
        self.now, self.told = self.now + seconds, self.told[1:] or self.told

    def row(self):
        state, since = self.told[0]
        return {"node": "hv1", "env": "lb1", "state": state, "since": since}


def test_a_warning_holds_no_rolling_restart_up(runner, monkeypatch):
    """Before it, while it waits, and in the time in which the env has to be well."""
    told = [("warning", 1), ("starting", 2), ("starting", 2), *[("healthy", 3)] * 4]
    envs = Envs(runner, monkeypatch, *told, *[("warning", 4)] * 3, *[("healthy", 5)] * 9)
    assert runner.rolling_restart(env="lb1", min_healthy_time=8) == {"restarted": ["hv1/lb1"]}
    assert envs.now - envs.began == 10, "8 s from the first moment at which it was well"


def test_a_warning_from_before_the_restart_was_seen_proves_nothing(runner, monkeypatch):
    told = [("healthy", 1), ("warning", 2), ("starting", 3), ("failing", 4)]
    Envs(runner, monkeypatch, *told)
    with pytest.raises(CommandExecutionError, match="not healthy after 31 s: failing"):
        runner.rolling_restart(env="lb1", min_healthy_time=0, healthy_deadline=30)


def test_the_fleet_shows_every_env_and_the_nodes_own_checks(nodes):
    assert list(nodes.rows()) == [
        "hv1/(node)", "hv1/db1", "hv1/lb1", "hv2/(node)", "hv2/lb2", "hv2/new",
    ]  # fmt: skip
    assert list(nodes.rows(env="*")) == ["hv1/db1", "hv1/lb1", "hv2/lb2", "hv2/new"]
    assert list(nodes.rows(env="(*")) == [] and list(nodes.rows(group="web", env="(node)")) == []
    assert list(nodes.rows(env="(node)")) == ["hv1/(node)", "hv2/(node)"]
    assert list(nodes.rows(group="web")) == ["hv1/lb1", "hv2/lb2"]
    assert list(nodes.rows(state="failing, unwatched")) == ["hv1/db1", "hv2/new"]
    with pytest.raises(SaltInvocationError, match="env: expected a name, got 7"):
        nodes.rows(env=7)


def test_what_is_ill_is_shown_be_it_a_node_or_only_a_warning(nodes):
    nodes.said["hv1"]["(node)"] = node_row(state="failing", check="bridge")
    nodes.said["hv1"]["lb1"] = row("warning")
    found = nodes.runner.failing()["envs"]
    assert [(r["env"], r["state"]) for r in found] == [
        ("(node)", "failing"), ("db1", "failing"), ("lb1", "warning"),
    ]  # fmt: skip


def test_a_row_has_an_age_that_goes_on_after_the_answer(nodes, monkeypatch):
    ask = nodes.runner._ask

    def slow(*args, **kwargs):
        found = ask(*args, **kwargs)
        nodes.now += 3  # another node had not answered yet
        return found

    monkeypatch.setattr(nodes.runner, "_ask", slow)
    del nodes.said["hv1"]["db1"]["age"]
    ages = {place: found["age"] for place, found in nodes.rows().items()}
    assert ages == {
        "hv1/(node)": 4.5, "hv1/lb1": 4.5, "hv1/db1": None,
        "hv2/(node)": 4.5, "hv2/lb2": 4.5, "hv2/new": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "limit, counts", [(200, 200), (1, 90), (1e9, 1300), (None, 1300), ("x", 1300), (True, 90)]
)
def test_a_silent_nodes_answer_counts_as_long_as_the_node_would_trust_it(nodes, limit, counts):
    nodes.said["hv2"]["(node)"] = node_row(limit=limit)
    nodes.said["hv2"]["lb2"] = row("warning", check="tls", reason="expires", since=5)
    nodes.rows(state="failing", env="db*", group="web")  # what is filtered is kept whole
    nodes.silent, began = ["hv2"], nodes.now
    nodes.now += counts - 2
    found = nodes.rows()["hv2/lb2"]
    assert (found["state"], found["age"], found["last_known"]) == ("warning", counts - 0.5, None)
    nodes.now += 1
    answer = nodes.runner.fleet()
    (found,) = [r for r in answer["envs"] if r["env"] == "lb2"]
    assert answer["no_answer"] == ["hv2"]
    assert (found["state"], found["age"], found["check"]) == ("unknown", counts + 0.5, None)
    assert found["last_known"] == {"state": "warning", "reason": "expires", "since": 5}
    assert found["since"] == began + counts - 1.5 and found["reason"] == "no word from its node"
    unknown = [(r["env"], r["state"]) for r in nodes.runner.failing("hv2")["envs"][-2:]]
    assert unknown == [("(node)", "unknown"), ("lb2", "unknown")], "unwatched is no trouble"
    nodes.silent = []
    assert nodes.rows()["hv2/lb2"]["state"] == "warning"


def test_a_node_whose_agent_fails_is_shown_as_it_was(nodes):
    nodes.rows()
    nodes.said["hv1"] = CommandExecutionError("`wake status` exited 1")
    nodes.now += 60
    answer = nodes.runner.fleet(env="lb1")
    assert answer["errors"] == {"hv1": "`wake status` exited 1"}
    assert [(r["state"], r["age"]) for r in answer["envs"]] == [("healthy", 61.5)]


def test_a_clock_that_was_set_back_makes_no_answer_young(nodes):
    nodes.rows()
    nodes.silent, nodes.now = ["hv1", "hv2"], nodes.now - 5
    found = nodes.rows()["hv1/lb1"]
    assert (found["state"], found["age"]) == ("unknown", None)


def test_a_rolling_restart_believes_no_last_answer(nodes, monkeypatch):
    nodes.rows()
    with pytest.raises(CommandExecutionError, match="restarted: hv1/db1 is failing: $"):
        nodes.runner.rolling_restart(env="*")
    nodes.silent = ["hv2"]
    with pytest.raises(CommandExecutionError, match="nothing was restarted: hv2 does not answer"):
        nodes.runner.rolling_restart(group="web")
    envs = [nodes.rows()["hv2/lb2"]]
    nodes.now += 6
    monkeypatch.setattr(nodes.runner.time, "sleep", lambda seconds: None)
    assert nodes.runner._settle(envs, 0, 1, None) == {"hv2/lb2": "not there"}


def test_a_rolling_restart_leaves_the_unwatched_and_the_node_alone(nodes, monkeypatch):
    monkeypatch.setattr(nodes.runner, "_restart", lambda *_: {})
    monkeypatch.setattr(nodes.runner, "_settle", lambda *_: {})
    nodes.said["hv1"]["db1"] = row()
    found = nodes.runner.rolling_restart(env="*")
    assert found == {"restarted": ["hv1/db1", "hv1/lb1", "hv2/lb2"]}


@pytest.mark.parametrize(
    "fun, args",
    [("silence", ("1h", "x")), ("unsilence", ()), ("retry", ()), ("rolling_restart", ())],
)
def test_a_node_is_no_env_to_be_silenced_tried_or_restarted(runner, fun, args):
    with pytest.raises(SaltInvocationError, match="it is no env"):
        getattr(runner, fun)(*args, env="(node)")


HOSTILE = [
    None, 7, "x", [], ["lb1"], {7: {}}, {"lb1": None}, {"lb1": {}}, {"lb1": {"state": 7}},
    {"\x1b[2J": {"state": "healthy"}}, {"": {"state": "healthy"}}, {"x" * 101: {"state": "on"}},
]  # fmt: skip


@pytest.mark.parametrize("said", HOSTILE, ids=lambda said: ascii(said)[:20])
def test_an_answer_of_no_shape_is_an_error_of_its_node_and_replaces_nothing(nodes, said):
    nodes.rows()
    kept = [path.read_text() for path in nodes.files()]
    nodes.said["hv1"] = said
    ask = nodes.ask("*", "cbsd_monit_fleet.report")
    ask["hv1"] = said
    nodes.runner._ask = lambda *_, **__: ask
    answer = nodes.runner.fleet(env="lb*")
    assert answer["errors"] == {"hv1": "what it answers is no report of envs"}
    assert [f"{r['node']}/{r['env']}" for r in answer["envs"]] == ["hv1/lb1", "hv2/lb2"]
    assert [path.read_text() for path in nodes.files()] == kept


def test_what_a_hostile_minion_says_is_bounded_printable_and_its_own(nodes, monkeypatch):
    deep = {"a": {"b": {"c": {"d": {"e": 1}}}}}
    nodes.said["hv1"] = {
        "lb1": row(
            "\x1b[2J" + "s" * 999, float("inf"), ["web", "\n"], node="hv2", env="lb2", since=-1,
            next=1e300, reason=["x"], check={"a": 1}, restarts="2", failing=deep, silence="x",
            last_known="healthy", other="x",
        )
    }  # fmt: skip
    nodes.said["hv1"].update({f"e{n}": row() for n in range(10100)})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = nodes.runner.fleet()["data"].splitlines()
    assert len(shown) < 10010 and not [line for line in shown if not line.isprintable()]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    found = nodes.rows()
    assert found["hv2/lb2"]["state"] == "healthy", "no minion speaks for another"
    lb1 = found["hv1/lb1"]
    assert lb1["state"].startswith("?[2Jsss") and len(lb1["state"]) == 500
    wrong = ("age", "since", "next", "reason", "check", "restarts", "last_known")
    assert {key: lb1[key] for key in wrong} == dict.fromkeys(wrong)
    assert lb1["failing"] == {"a": {"b": {"c": None}}}
    assert lb1["groups"] == ["web", "?"] and not {"silence", "other"} & set(lb1)


def test_last_answers_are_few_small_private_and_named_by_no_minion(nodes, monkeypatch):
    big = {f"e{n}": row(reason="ä" * 500) for n in range(1000)}
    nodes.said = {"../../x": {"(node)": node_row(limit=300), **big}, "a/b": {"lb1": row()}}
    nodes.rows()
    assert {path.parent for path in nodes.folder.rglob("*") if path.is_file()} == {
        nodes.folder / "cbsd_monit/answers"
    }
    for path in nodes.files():
        assert path.name.isalnum() and path.stat().st_size <= 1 << 20
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    nodes.silent = list(nodes.said)
    found = nodes.rows()
    assert found["../../x/(node)"]["limit"] == 300 and found["a/b/lb1"]["state"] == "healthy"
    assert 100 < len(found) < 1000
    monkeypatch.setattr(nodes.answers, "NODES", 3)
    nodes.silent, nodes.said = [], {f"hv{n}": {"lb1": row()} for n in range(9)}
    for path in nodes.files():
        os.utime(path, (1, 1))
    nodes.rows()
    assert len(nodes.files()) == 3
    nodes.silent = ["../../x"]
    assert "../../x/(node)" not in nodes.rows()


def test_a_last_answer_that_was_torn_or_is_of_another_is_none(nodes):
    nodes.rows()
    first, second = nodes.files()
    first.write_text(first.read_text()[:-9])
    second.write_text('{"node": "hv9", "time": 1}\n')
    nodes.silent = ["hv1", "hv2"]
    assert nodes.rows() == {}


def test_a_master_that_cannot_keep_answers_shows_them_all_the_same(nodes):
    (nodes.folder / "cbsd_monit").write_text("")
    assert len(nodes.rows()) == 6


def test_a_node_that_does_not_say_its_groups_is_no_node_without_them(nodes):
    del nodes.said["hv1"]["lb1"]["groups"]
    answer = nodes.runner.fleet(group="web")
    assert [r["node"] for r in answer["envs"]] == ["hv2"]
    assert "sync_modules" in answer["errors"]["hv1"]
    assert len(nodes.rows()) == 6


def test_a_table_shows_the_age_what_was_known_and_all_that_fails(nodes, monkeypatch):
    nodes.said["hv1"]["db1"].update(check="tcp", failing={"tcp": {}, "http": {}})
    nodes.said["hv1"]["lb1"].update(state="silenced", failing={"tls": {}})
    nodes.rows()
    nodes.silent, nodes.now = ["hv2"], nodes.now + 300
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    lines = nodes.runner.fleet()["data"].splitlines()
    assert lines[0].split()[:4] == ["node", "env", "state", "age"]
    assert lines[2].split()[:8] == ["hv1", "db1", "failing", "2", "s", "-", "tcp,", "http"]
    assert lines[3].split()[:7] == ["hv1", "lb1", "silenced", "2", "s", "-", "tls"]
    assert lines[5].split()[:7] == ["hv2", "lb2", "unknown", "(was", "healthy)", "302", "s"]
    assert lines[-1] == "hv2 does not answer"


def test_retry_asks_the_nodes_and_says_where_it_was_of_use(runner, monkeypatch):
    def ask(*asked, **wanted):
        assert (asked, wanted) == (
            ("hv*", "cbsd_monit_fleet.retry", "glob", None),
            {"env": "lb*", "group": None},
        )
        found = runner._Answers()
        found.update(hv1=["lb1"], hv2=[])
        found.silent = ["hv3"]
        return found

    monkeypatch.setattr(runner, "_ask", ask)
    assert runner.retry(env="lb*", node="hv*") == {
        "retried": {"hv1": ["lb1"]},
        "no_answer": ["hv3"],
    }
