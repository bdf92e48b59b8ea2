"""Telling people: from the queue, once, by each receiver, whatever happens to another."""

import json

import pytest

from tests.unit.loaded import load


@pytest.fixture
def runner(tmp_path, monkeypatch):
    opts = {"cachedir": str(tmp_path), "cbsd_monit_notify": []}
    module = load("_runners/cbsd_monit_notify.py", opts=opts)
    monkeypatch.setattr(module, "PAUSE", 0)
    return module


def queue(tmp_path, *records):
    folder = tmp_path / "cbsd_monit"
    folder.mkdir(exist_ok=True)
    with open(folder / "notify.jsonl", "a") as out:
        for number, more in records:
            record = {
                "id": f"i{number}", "node": "hv1", "env": "lb1", "transition": "gave_up",
                "check": "http", "reason": "no",
            }  # fmt: skip
            out.write(json.dumps({**record, "time": 1.0, **more}) + "\n")


def test_ten_thousand_records_are_one_message_and_none_is_told_twice(runner, tmp_path):
    said = []
    runner.__salt__["pager.page"] = lambda text, records: said.append((text, records))
    runner.__opts__["cbsd_monit_notify"] = [{"runner": {"fun": "pager.page"}}]
    queue(tmp_path, *((n, {}) for n in range(10000)))
    assert runner.notify()["told"] == 10000
    ((text, records),) = said
    first = "hv1/lb1 gave_up (http): no; end it: salt-run cbsd_monit.retry env=lb1"
    assert len(records) == 50 and text.splitlines()[0] == first
    assert text.splitlines()[-1] == "… and 9950 more"
    queue(tmp_path, (9999, {}))
    assert runner.notify()["told"] == 0 and len(said) == 1


def test_what_needs_no_command_names_none(runner, tmp_path):
    said = []
    runner.__salt__["pager.page"] = lambda text, records: said.extend(text.splitlines())
    runner.__opts__["cbsd_monit_notify"] = [{"runner": {"fun": "pager.page"}}]
    queue(
        tmp_path,
        (1, {"transition": "warning", "reason": "expires in 19 days"}),
        (2, {"transition": "recovered", "check": "", "reason": ""}),
        (3, {"env": "(node)", "transition": "failing", "check": "bridge"}),
        (4, {"env": "(node)", "transition": "calm", "check": "", "reason": "a storm is over"}),
    )
    assert runner.notify()["told"] == 4
    assert said == [
        "hv1/lb1 warning (http): expires in 19 days",
        "hv1/lb1 recovered",
        "hv1/(node) failing (bridge): no",
        "hv1/(node) calm: a storm is over",
    ]


def test_a_hook_that_fails_keeps_no_other_from_telling(runner, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    runner.__salt__["pager.page"] = lambda text, records: said.append(text)
    runner.__opts__["cbsd_monit_notify"] = [
        {"webhook": {"url": "file:///etc/passwd"}},
        {"nonsense": {}},
        {"runner": {"fun": "pager.page"}},
    ]
    queue(tmp_path, (1, {"transition": "storm", "reason": "\x1b]0;x\x07"}))
    found = runner.notify()
    assert set(found["failed"]) == {"webhook", "nonsense"}
    assert "http or https" in found["failed"]["webhook"]
    assert said == ["hv1/lb1 storm (http): ?]0;x?"]


def test_the_reactor_is_told_that_it_has_to_start_the_next_one(runner, tmp_path):
    queue(tmp_path, (1, {}))
    started = tmp_path / "cbsd_monit/notify.started"
    started.touch()
    runner.notify()
    assert not started.exists() and not (tmp_path / "cbsd_monit/notify.jsonl").exists()


def test_a_bug_in_a_receiver_is_logged_with_its_traceback(runner, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    monkeypatch.setitem(runner.RECEIVERS, "chat", lambda *_: None + 1)
    runner.__opts__["cbsd_monit_notify"] = [{"chat": {"url": "https://x"}}]
    queue(tmp_path, (1, {}))
    assert "a bug; its traceback is in the master's log" in runner.notify()["failed"]["chat"]
    (traced,) = [record for record in caplog.records if record.exc_info]
    assert "a bug in chat" in traced.getMessage() and traced.exc_info[0] is TypeError
