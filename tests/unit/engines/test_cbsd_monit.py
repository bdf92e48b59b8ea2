"""The engine: few messages, in order, freed on the master's answer, again after an interruption."""

import json
import os
import types

import pytest

from tests.unit.loaded import load


@pytest.fixture
def engine():
    return load("_engines/cbsd_monit.py")


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch, engine):
        self.now = 1000.0
        monkeypatch.setattr(engine.time, "monotonic", lambda: self.now)


class Master:
    """Takes what it is sent while it is up; its session changes with each start."""

    key = "m"

    def __init__(self, error):
        self.opts, self.error = {"id": "hv1"}, error
        self.up, self.session, self.sent = True, 1, []

    def send(self, tag, data):
        if not self.up:
            raise self.error("down")
        self.sent.append((tag, data))

    def restart(self):
        self.session += 1

    def close(self):
        pass

    def batches(self):
        return [[r["id"] for r in d["records"]] for t, d in self.sent if t.endswith("/batch")]


@pytest.fixture
def made(engine, tmp_path, monkeypatch):
    """(courier, master, clock, put): a courier that has greeted its master."""
    clock, master = Clock(monkeypatch, engine), Master(engine.Unanswered)
    path = tmp_path / "0000000001-1.jsonl"

    def put(*ids, name=path, **more):
        with open(name, "a") as handle:
            for one in ids:
                record = {"id": one, "env": "lb1", "transition": "failing", **more}
                handle.write(json.dumps(record) + "\n")

    def courier():
        one = engine.Courier(str(tmp_path), master, batch=3)
        one.work()
        clock.now += 10
        return one

    made = courier()
    yield made, master, clock, put, courier
    made.close()


def position(tmp_path):
    return json.loads((tmp_path / "position-m").read_text())


def test_a_batch_in_order_and_the_loud_ones_also_alone(made):
    courier, master, clock, put, _ = made
    put("1", "2")
    put("3", transition="gave_up")
    put("4", transition="gave_up", env="../x")
    for _ in range(4):
        courier.work()
        clock.now += 1
    assert master.batches() == [["1", "2", "3"], ["4"]]
    single = [(t, d["id"]) for t, d in master.sent if t.count("/") == 3]
    assert single == [("cbsd_monit/hv1/lb1/gave_up", "3")]


@pytest.mark.parametrize(
    "env, alone",
    [
        ("lb1", ["gave_up", "quarantined", "storm", "calm", "warning", "recovered"]),
        ("(node)", ["failing", "healthy", "storm", "calm"]),
        *((env, []) for env in ("(Node)", "(node) ", "(node)\n", "(node)/x", "(node", "()", None)),
    ],
)
def test_what_people_are_told_goes_alone_under_its_env_or_the_node(made, env, alone):
    courier, master, clock, put, _ = made
    words = "calm failing gave_up healing healthy quarantined recovered storm unknown warning"
    for transition in words.split():
        put(transition, transition=transition, env=env)
    for _ in range(9):
        courier.work()
        clock.now += 1
    assert sum(map(len, master.batches())) == len(words.split())
    single = [t for t, _ in master.sent if t.count("/") > 2]
    assert single == [f"cbsd_monit/hv1/{env}/{transition}" for transition in sorted(alone)]


def test_what_comes_within_the_gap_is_one_message(made):
    courier, master, clock, put, _ = made
    put("1")
    courier.work()
    for n in "23":
        put(n)
        clock.now += 0.1
        courier.work()
    clock.now += 0.5
    courier.work()
    assert master.batches() == [["1"], ["2", "3"]]


def test_the_spool_is_given_back_only_when_the_master_took_it(made, tmp_path):
    courier, master, clock, put, _ = made
    put("1", "2")
    master.up = False
    for _ in range(5):
        assert courier.work()
        clock.now += 5
    assert not (tmp_path / "position-m").exists()
    master.up = True
    courier.work()
    assert master.batches() == [], "its reactor may not listen yet"
    clock.now += 5
    courier.work()
    assert master.batches() == [["1", "2"]]
    assert position(tmp_path)["offset"] == os.path.getsize(tmp_path / "0000000001-1.jsonl")


def test_what_was_answered_just_before_a_master_died_is_sent_again(made):
    courier, master, clock, put, _ = made
    put("1")
    courier.work()
    clock.now += 60
    courier.work()  # hello: a minute later it is the same master
    put("2")
    courier.work()
    clock.now += 5
    master.restart()
    put("3")
    courier.work()
    for _ in range(3):
        clock.now += 6
        courier.work()
    assert master.batches()[:2] == [["1"], ["2"]]
    assert master.batches()[-1] == ["2", "3"]


def test_a_new_engine_repeats_what_is_at_risk_and_nothing_else(made):
    courier, master, clock, put, new = made
    put("1")
    courier.work()
    clock.now += 60
    courier.work()
    put("2")
    courier.work()
    courier.close()
    again = new()
    again.work()
    assert master.batches() == [["1"], ["2"], ["2"]]
    again.close()


def test_only_one_engine_reads(made, engine, tmp_path):
    _, master, _, put, _ = made
    put("1")
    other = engine.Courier(str(tmp_path), master)
    assert other.work() == 1 and master.batches() == []


def test_a_torn_line_waits_and_an_unreadable_one_is_told(made, tmp_path):
    courier, master, clock, put, _ = made
    path = tmp_path / "0000000001-1.jsonl"
    path.write_text('not json\n{"id": "1", "tr')
    courier.work()
    ((_, data),) = [x for x in master.sent if x[0].endswith("/batch")]
    assert [r["transition"] for r in data["records"]] == ["dropped"]
    assert data["records"][0]["count"] == 1
    path.write_text(path.read_text() + 'ansition": "failing"}\n')
    clock.now += 1
    courier.work()
    assert master.batches()[1] == ["1"]


def test_segments_are_given_back_when_every_master_has_them_for_sure(made, tmp_path):
    courier, master, clock, put, _ = made
    put("1")
    put("2", name=tmp_path / "0000000002-2.jsonl")
    position = {"segment": "0000000001-1.jsonl", "offset": 0, "safe": ["", 0]}
    (tmp_path / "position-other").write_text(json.dumps(position))
    for _ in range(3):
        courier.work()
        clock.now += 30
    assert (tmp_path / "0000000001-1.jsonl").exists()
    os.unlink(tmp_path / "position-other")
    put("3", name=tmp_path / "0000000002-2.jsonl")
    for _ in range(3):
        courier.work()
        clock.now += 30
    assert not (tmp_path / "0000000001-1.jsonl").exists()
    assert (tmp_path / "0000000002-2.jsonl").exists()
    assert master.batches() == [["1"], ["2"], ["3"]]


def test_what_was_dropped_meanwhile_is_passed_over(made, tmp_path):
    courier, master, clock, put, _ = made
    put("1")
    courier.work()
    os.unlink(tmp_path / "0000000001-1.jsonl")
    put("5", name=tmp_path / "0000000004-4.jsonl")
    clock.now += 1
    courier.work()
    assert master.batches() == [["1"], ["5"]]


def test_a_clean_ends_it_and_a_new_spool_begins_it(made, tmp_path):
    courier, master, clock, put, _ = made
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    assert courier.work() == 2
    tmp_path.mkdir()
    put("1")
    for _ in range(3):
        courier.work()
        clock.now += 6
    assert master.batches() == [["1"]]


def test_only_no_answer_at_all_is_a_yes(engine):
    class Channel:
        def send(self, load, **kwargs):
            return self.answer

        def close(self):
            pass

    master = engine.Master({"id": "hv1", "master": "m"}, 1)
    channel = Channel()
    for answer in ({}, "", False, "bad load"):
        master.channel, channel.answer = channel, answer
        with pytest.raises(engine.Unanswered):
            master.send("t", {})
    master.channel, channel.answer = channel, None
    master.send("t", {})


@pytest.mark.parametrize("error, bug", [(TypeError("x"), True), (OSError("refused"), False)])
def test_a_bug_is_logged_with_its_traceback_and_loses_nothing(engine, made, caplog, error, bug):
    courier, master, clock, put, _ = made

    def send(load, **_):
        raise error

    channel = types.SimpleNamespace(send=send, close=lambda: None)
    salts = engine.Master({"id": "hv1", "master": "m"}, 1)
    salts._open = lambda: setattr(salts, "channel", channel)
    real, courier.master.send = courier.master.send, salts.send
    put("1")
    assert courier.work()
    (record,) = [r for r in caplog.records if "events wait" in r.getMessage()]
    assert ("a bug: " in record.getMessage(), bool(record.exc_info)) == (bug, bug)
    courier.master.send = real
    for _ in range(3):
        courier.work()
        clock.now += 10
    assert master.batches() == [["1"]]
