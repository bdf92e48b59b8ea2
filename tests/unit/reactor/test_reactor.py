"""The reactor's files, as Salt renders them: whatever an event holds, a look and no more."""

import functools
import json
import pathlib
import time

import pytest

REACTOR = pathlib.Path(__file__).resolve().parents[3] / "cbsd_monit/reactor"
HOSTILE = [
    "x\nowned:\n  runner.salt.cmd: []",
    "{{ 7*7 }}",
    "(Node)", "(node) ", "(node)/x", "(node)\n", "(node", "node)",
    "__slot__:salt:cmd.run(x)", "$(touch /x)", "../x", "*", "", "a b", "ä", "lb1\n", "\U0001f4a3",
    7, None, True, [], {"a": "b"}, "a" * 300,
]  # fmt: skip


@functools.lru_cache(maxsize=None)
def code(name):
    text = (REACTOR / f"{name}.sls").read_text()
    assert text.startswith("#!py\n")
    return compile(text, name, "exec")


@pytest.fixture
def react(tmp_path):
    (tmp_path / "pki/minions").mkdir(parents=True)
    for name in ("hv1", "hv2"):
        (tmp_path / "pki/minions" / name).touch()

    def react(name, tag, data):
        space = {
            "tag": tag,
            "data": data,
            "__opts__": {"cachedir": str(tmp_path), "pki_dir": str(tmp_path / "pki")},
        }
        exec(code(name), space)
        return space["run"]()

    return react


def batch(*records, id="hv1"):
    return {"id": id, "data": {"schema": 1, "records": list(records)}}


def failing(env="lb1", **more):
    return {"env": env, "transition": "failing", "event": True, **more}


def args(found):
    (state,) = found.values()
    ((fun, said),) = state.items()
    assert fun == "local.cbsd_monit.recheck" and said[1] == {"tgt_type": "list"} and len(said) == 3
    return said[0]["tgt"], {k: v for arg in said[2]["args"] for k, v in arg.items()}


def test_an_env_whose_policy_asks_is_rechecked_on_its_node(react):
    news = batch(failing("lb1"), failing("db1"), failing("x", event="yes"))
    found = react("recheck", "cbsd_monit/hv1/batch", news)
    assert args(found) == (["hv1"], {"envs": ["db1", "lb1"], "adopt": False})


def test_the_same_again_within_seconds_is_left_out(react, monkeypatch):
    assert react("recheck", "t", batch(failing()))
    assert react("recheck", "t", batch(failing())) == {}
    assert react("recheck", "t", batch(failing("other")))
    assert react("recheck", "t", batch(failing(), id="hv2"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 6)
    assert react("recheck", "t", batch(failing()))


def test_a_start_and_an_env_that_nobody_watches_are_adopted(react):
    adopting = {"envs": [], "adopt": True}
    assert args(react("recheck", "salt/minion/hv1/start", {"id": "hv1"})) == (["hv1"], adopting)
    new = {"env": "n1", "transition": "created", "reason": "not watched"}
    assert args(react("recheck", "t", batch(new, id="hv2"))) == (
        ["hv2"],
        {"envs": [], "adopt": True},
    )
    assert react("recheck", "t", batch({**new, "reason": "first seen running"})) == {}


@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_hostile_gets_through(react, value, tmp_path):
    for where in ("id", "env", "transition", "records", "data", "event"):
        record = failing()
        event = batch(record)
        if where in ("id", "data"):
            event[where] = value
        elif where == "records":
            event["data"]["records"] = value
        else:
            record[where] = value
        found = react("recheck", f"cbsd_monit/{value}/batch", event)
        if where == "event" and value is True:
            continue
        assert found == {}, where
        record = {"env": "lb1", "transition": "gave_up", "reason": "x"}
        event = {"id": "hv1", "data": record}
        place = event if where in ("id", "data") else record
        place[where if where != "records" else "env"] = value
        if where in ("id", "data", "env", "transition", "records"):
            assert react("notify", f"cbsd_monit/hv1/{value}/gave_up", event) == {}, where
    assert not (tmp_path / "cbsd_monit/notify.jsonl").exists()


def test_an_unknown_minion_is_not_asked(react):
    assert react("recheck", "salt/minion/hv9/start", {"id": "hv9"}) == {}
    assert react("notify", "t", {"id": "hv9", "data": {"env": "a", "transition": "gave_up"}}) == {}


def test_forging_leaves_few_files(react, tmp_path):
    for n in range(3000):
        react("recheck", "t", batch(failing(f"e{n}")))
    assert len(list((tmp_path / "cbsd_monit/reactor").iterdir())) <= 256


def test_people_are_told_from_a_queue_and_nothing_is_passed_on(react, tmp_path):
    record = {
        "id": "1", "env": "lb1", "transition": "gave_up", "check": "http",
        "reason": "{{ 7*7 }}\n__slot__:x",
    }  # fmt: skip
    found = react("notify", "t", {"id": "hv1", "data": record})
    assert found == {"cbsd_monit tells": {"runner.cbsd_monit.notify": [{"args": [{"wait": 2}]}]}}
    assert react("notify", "t", {"id": "hv1", "data": {**record, "id": "2"}}) == {}, "one is at it"
    lines = (tmp_path / "cbsd_monit/notify.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "2"]


def test_people_are_told_of_what_is_beyond_the_agent_or_over(react, tmp_path):
    words = [
        "gave_up",
        "quarantined",
        "storm",
        "calm",
        "warning",
        "recovered",
        "failing",
        "healthy",
    ]
    for env in ("lb1", "(node)"):
        for transition in [*words, "healing", ["storm"]]:
            record = {"id": env, "env": env, "transition": transition}
            react("notify", "t", {"id": "hv1", "data": record})
    queue = (tmp_path / "cbsd_monit/notify.jsonl").read_text().splitlines()
    told = [(entry["env"], entry["transition"]) for entry in map(json.loads, queue)]
    assert told == [
        *[("lb1", word) for word in words[:6]],
        *[("(node)", word) for word in ("storm", "calm", "failing", "healthy")],
    ]


def test_what_the_node_says_of_itself_has_nothing_rechecked(react):
    said = [failing("(node)"), {"env": "(node)", "transition": "created", "reason": "not watched"}]
    assert react("recheck", "t", batch(*said)) == {}
    assert args(react("recheck", "t", batch(*said, failing("lb1"))))[1]["envs"] == ["lb1"]
