"""The runner, as far as it needs no minion: its tables, and what it refuses."""

import sys

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from tests.unit.loaded import load


@pytest.fixture
def runner():
    return load("_runners/cbsd_monit.py", opts={})


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
    "fun, args", [("silence", ("1h", "x")), ("unsilence", ()), ("rolling_restart", ())]
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
