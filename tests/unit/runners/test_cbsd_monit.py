"""The runner, as far as it needs no minion: tables, telling people."""

import importlib.util
import json
import pathlib
import sys

import pytest
from salt.exceptions import SaltInvocationError

REPO = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def runner(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "cbsd_monit_runner", REPO / "_runners/cbsd_monit.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__opts__ = {"cachedir": str(tmp_path), "cbsd_monit_notify": []}
    module.__salt__ = {}
    monkeypatch.setattr(module, "PAUSE", 0)
    return module


def queue(tmp_path, *records):
    folder = tmp_path / "cbsd_monit"
    folder.mkdir(exist_ok=True)
    with open(folder / "notify.jsonl", "a") as out:
        for number, more in records:
            record = {
                "id": f"i{number}",
                "node": "hv1",
                "env": "lb1",
                "transition": "gave_up",
                "check": "http",
                "reason": "no",
            }
            out.write(json.dumps({**record, "time": 1.0, **more}) + "\n")


def test_a_terminal_gets_a_table_and_obeys_nothing(runner, monkeypatch):
    result = {
        "envs": [
            {
                "node": "hv1",
                "env": "lb1",
                "state": "failing",
                "since": 0,
                "reason": "\x1b[2Jbad\nline",
                "restarts": 2,
            }
        ],
        "no_answer": ["hv2"],
        "errors": {"hv3": "no agent\x1b"},
    }
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


def test_ten_thousand_records_are_one_message_and_none_is_told_twice(runner, tmp_path):
    said = []
    runner.__salt__["pager.page"] = lambda text, records: said.append((text, records))
    runner.__opts__["cbsd_monit_notify"] = [{"runner": {"fun": "pager.page"}}]
    queue(tmp_path, *((n, {}) for n in range(10000)))
    assert runner.notify()["told"] == 10000
    ((text, records),) = said
    assert len(records) == 50 and text.splitlines()[0] == "hv1/lb1 gave_up (http): no"
    assert text.splitlines()[-1] == "… and 9950 more"
    queue(tmp_path, (9999, {}))
    assert runner.notify()["told"] == 0 and len(said) == 1


def test_a_hook_that_fails_keeps_no_other_from_telling(runner, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    runner.__salt__["pager.page"] = lambda text, records: said.append(text)
    runner.__opts__["cbsd_monit_notify"] = [
        {"webhook": {"url": "file:///etc/passwd"}},
        {"nonsense": {}},
        {"runner": {"fun": "pager.page"}},
    ]
    queue(tmp_path, (1, {"reason": "\x1b]0;x\x07"}))
    found = runner.notify()
    assert (
        set(found["failed"]) == {"webhook", "nonsense"}
        and "http or https" in found["failed"]["webhook"]
    )
    assert said == ["hv1/lb1 gave_up (http): ?]0;x?"]


def test_the_reactor_is_told_that_it_has_to_start_the_next_one(runner, tmp_path):
    queue(tmp_path, (1, {}))
    started = tmp_path / "cbsd_monit/notify.started"
    started.touch()
    runner.notify()
    assert not started.exists() and not (tmp_path / "cbsd_monit/notify.jsonl").exists()


def test_long_work_tells_a_terminal_how_far_it_is(runner, monkeypatch, capsys):
    rows = [{"node": f"hv{n}", "env": "lb1", "state": "healthy"} for n in (1, 2, 3)]
    monkeypatch.setattr(runner, "_fleet", lambda *_: {"envs": rows})
    monkeypatch.setattr(runner, "_restart", lambda *_: {})
    monkeypatch.setattr(runner, "_settle", lambda *_: {})
    assert runner.rolling_restart("web") == {"restarted": ["hv1/lb1", "hv2/lb1", "hv3/lb1"]}
    assert capsys.readouterr().err == "", "nobody watches"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    runner.rolling_restart("web", max_parallel=2)
    assert capsys.readouterr().err.splitlines() == [
        "0 restarted, 3 to go: hv1/lb1, hv2/lb1",
        "2 restarted, 1 to go: hv3/lb1",
    ]
