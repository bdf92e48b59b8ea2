"""What `wake COMMAND` answers: exit codes, words and JSON, and whom it wakes."""

import json
import os
import pathlib
import re
import signal

import commands
import passes
import proof
import pytest
import records

from .conftest import cases, remember, script, tree

CONTRACT = (pathlib.Path(__file__).resolve().parents[3] / "docs/contract.md").read_text()


@pytest.fixture
def wake(node, tmp_path, capsys, monkeypatch, no_monit):
    """``wake(words)`` runs one command: (exit code, output, errors); ``wake.woken()`` says why."""
    monkeypatch.setattr("monit.Monit.start", lambda self: None)
    monkeypatch.setattr("reload.VERIFY", 0.1)
    called = tmp_path / "called"
    script(tmp_path / "lib/wake", f'echo "$@" >> {called}')
    numbers = (signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1)
    before = os.umask(0o077), [signal.getsignal(number) for number in numbers]

    def run(*words):
        capsys.readouterr()
        code = commands.main([str(tmp_path / "conf.json"), *map(str, words)])
        return (code, *capsys.readouterr())

    def woken():
        found = called.read_text().split("\n")[:-1] if called.exists() else []
        called.unlink(missing_ok=True)
        return found

    run.woken = woken
    yield run
    os.umask(before[0])
    for number, handler in zip(numbers, before[1]):
        signal.signal(number, handler)


@pytest.fixture
def lb1(node, world, wake):
    world.env("lb1")
    wake("sync")
    wake.woken()
    return lambda: records.load(node, "lb1")


@pytest.mark.parametrize("words", ["", "nope", "probe a", "status a b", "silence a 1", "run x"])
def test_wrong_use_lists_what_there_is(wake, words):
    code, out, err = wake(*words.split())
    assert (code, out) == (2, "") and err.endswith(f"got {words or 'nothing'}\n")
    assert set(re.findall(r"^  wake (\w+)", err, re.M)) == set(commands.COMMANDS)
    assert "wake silence ENV UNTIL WHO [REASON…]\n" in err


@cases(
    ("words", "code", "error"),
    (["status", "-x"], 1, "expected a name of letters, digits, _ and -, got '-x'"),
    (["status", "x" * 101], 1, "expected a name"),
    (["probe", "a/b", "c"], 75, "expected a name"),
    (["probe", "lb1", "c.d"], 75, "expected a name"),
    (["silence", "lb1", "soon", "ann"], 1, "seconds since 1970, got 'soon'"),
    (["silence", "none", "9", "ann"], 1, "no env none is watched on this node"),
    (["recheck", "none"], 1, "no env none is watched on this node"),
    (["rollback", "x"], 1, "expected the number of a generation or undo, got 'x'"),
    (["rollback", "7"], 1, "no generation 7; there are: 1"),
    (["rollback"], 1, "no generation before the present one; there are: 1"),
)
def test_what_cannot_be_done_is_one_sentence(wake, lb1, words, code, error):
    found, out, err = wake(*words)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("cbsd_monit: ") and error in err and wake.woken() == []


@pytest.mark.parametrize(
    ("words", "broken", "code"),
    [("probe lb1 c", "probes.run", 75), ("status", "records.names", 1)]
    + [("history lb1", "files.EnvDir.read", 1)],
)
def test_bug_is_told_as_ours_with_its_exit_code(wake, lb1, monkeypatch, words, broken, code):
    monkeypatch.setattr(broken, lambda *_: {}["surprise"])
    found, _, err = wake(*words.split())
    assert found == code and "Traceback" in err
    last = err.splitlines()[-1]
    assert f"a bug in cbsd_monit, not your configuration: wake {words.split()[0]}: Key" in last
    assert last.startswith("cbsd_monit: ") and "agent.log" in last
    monkeypatch.setattr(commands, "Node", lambda path: {}["surprise"])
    with pytest.raises(KeyError):  # without a node there is no log: the traceback is the answer
        wake(*words.split())


def test_probe_answers_by_exit_code(wake, node, world, monkeypatch):
    world.env("lb1")
    no_check = "cannot be asked: lb1 has no check c that runs a program\n"
    assert wake("probe", "lb1", "c")[:2] == (75, no_check)
    for code, words in ((0, ""), (1, "too old")):
        monkeypatch.setattr("probes.run", lambda *_, code=code, words=words: (code, words))
        assert wake("probe", "lb1", "c")[:2] == (code, words and words + "\n")


def test_sync_answers_as_the_contract_says(wake, node, world):
    world.env("lb1")
    code, out, _ = wake("sync", "--json")
    found = json.loads(out)
    line = next(line for line in CONTRACT.splitlines() if "`wake sync --json`" in line)
    documented = set(re.findall(r'"(\w+)"', line)) - {"generation", "why"}
    assert set(found) == documented and code == 0
    assert (found["services"], found["published"], found["envs"]) == (1, 1, {"lb1": "unknown"})
    assert (found["changed"], found["held"], wake.woken()) == (["lb1", "node"], None, [])
    assert (wake("look")[0], wake.woken()) == (0, [])
    world.kill("lb1")
    assert (wake("look")[0], wake.woken()) == (0, ["monit look"])
    assert wake("sync")[:2] == (0, "") and wake.woken() == ["monit sync"], "a heal is due"


@pytest.mark.parametrize("bug", [False, True])
def test_sync_that_fails_says_so_and_leaves_it_to_the_agent(wake, node, monkeypatch, bug, tmp_path):
    os.mkdir(node.in_run("agent.pid"))
    os.utime(node.in_run("agent.pid"), (9, 9))
    if bug:
        monkeypatch.setattr(passes, "run", lambda *_, **__: {}["surprise"])
    else:
        script(tmp_path / "bin/cbsd", "exit 1")
    code, out, err = wake("sync", "--json")
    assert code == 1 and "sync failed: " in err and ("Traceback" in err) == bug
    words = "a bug in cbsd_monit" if bug else "CBSD's inventory: no output"
    assert list(json.loads(out)) == ["error"] and json.loads(out)["error"].startswith(words)
    assert wake.woken() == ["monit sync"] and not os.path.exists(node.in_run("agent.pid"))


def test_dry_run_writes_nothing_and_foretells_the_change(wake, node, lb1, tmp_path):
    template = "check file lb1 with path /x\n  if exist then alert\n"
    overlay = {"": {"config": {"head": "set daemon 9\n"}}, "lb1": {"monitrc.tpl": template}}
    (tmp_path / "overlay").write_text(json.dumps(overlay))
    before = tree(node.state, files_only=True)
    code, out, _ = wake("sync", "--json", "--dry-run", "--overlay", tmp_path / "overlay")
    assert (code, json.loads(out)["changed"]) == (0, ["lb1", "node"])
    assert (tree(node.state, files_only=True), wake.woken()) == (before, [])


def test_status_has_what_an_operator_asks_for(wake, lb1, world, node):
    world.env("other")
    wake("sync")
    wake("silence", "lb1", 4e9, "ann", "kernel", "upgrade")
    waits = {"after": {"t": 1000, "m": 0, "b": "x"}, "seconds": 7}
    held = {"next": waits, "attempts": [node.stamp()] * 2, "heals": 5}
    seen = proof.load(node)
    proof.save(node, seen._replace(round=node.stamp()), seen)
    remember(node, "lb1", state="failing", **held)
    assert json.loads(wake("status", "lb1")[1])["lb1"]["next"] == 1007
    remember(node, "lb1", state="gave_up")
    code, out, _ = wake("status", "lb1")
    found = json.loads(out)["lb1"]
    assert code == 0 and set(json.loads(out)) == {"lb1", "(node)"}
    table = CONTRACT.rpartition("| key | what |")[2]
    words = " ".join(re.findall(r"^\| (`.*?`) \|", table, re.M)).replace("`", "")
    assert set(found) == set(words.split()), "docs/contract.md, section 12"
    assert (found["next"], found["attempts"], found["restarts"]) == (None, 2, 5)
    assert found["last"][0]["transition"] == "created" and found["intent"] == "running"
    assert found["silence"] == {"by": "ann", "env": "lb1", "reason": "kernel upgrade", "until": 4e9}
    assert set(json.loads(wake("status")[1])) == {"lb1", "other", "(node)"}
    assert set(json.loads(wake("status", "none")[1])) == {"(node)"}
    assert wake("history", "none")[:2] == (0, "")
    assert json.loads(wake("history", "lb1")[1].splitlines()[0])["transition"] == "created"


def test_silence_is_given_and_taken_back_and_ends_nothing_that_was_given_up(wake, lb1, node):
    for words, left in ((["silence", "lb1", 4e9, "ann"], 1), (["unsilence", "lb1"], 0)):
        remember(node, "lb1", gave_up=True, attempts=[node.stamp()])
        code, out, _ = wake(*words)
        assert (code, wake.woken()) == (0, ["monit silence"])
        assert bool(json.loads(out)["lb1"]["silence"]) == bool(left)
        assert (lb1()["gave_up"], len(lb1()["attempts"])) == (True, 1)


def test_retry_ends_what_was_given_up_and_nothing_else(wake, lb1, node):
    remember(node, "lb1", gave_up=True, state="gave_up", attempts=[node.stamp()], warm=True)
    code, out, _ = wake("retry", "lb1")
    assert (code, wake.woken(), lb1()["state"]) == (0, ["monit retry"], "starting")
    assert json.loads(out)["lb1"]["last_known"]["state"] == "starting", "monit is silent"
    assert (lb1()["gave_up"], lb1()["attempts"], lb1()["warm"]) == (False, [], False)
    remember(node, "lb1", state="failing", attempts=[node.stamp()])
    wake("retry", "lb1")
    assert (lb1()["state"], len(lb1()["attempts"])) == ("failing", 1)


def test_recheck_is_done_at_most_every_ten_seconds(wake, lb1, node):
    assert wake("recheck", "lb1")[0] == 0 and wake.woken() == ["monit recheck"]
    first = lb1()["recheck"]
    assert wake("recheck", "lb1")[0] == 0 and wake.woken() == [] and lb1()["recheck"] == first
    remember(node, "lb1", recheck={**first, "m": first["m"] - 11})
    assert wake("recheck", "lb1")[0] == 0 and wake.woken() == ["monit recheck"]


def test_rollback_is_kept_until_undone(wake, lb1, node, world):
    world.env("lb2")
    wake("sync")
    code, out, _ = wake("rollback")
    found = json.loads(out)
    assert (code, found["held"]["generation"], found["changed"]) == (0, 1, ["lb2"])
    assert found["held"]["why"] == "rolled back by an operator" and found["services"] == 1
    assert json.loads(wake("sync", "--json")[1])["held"]["generation"] == 1
    assert json.loads(wake("rollback", 2)[1])["services"] == 2
    wake("rollback", 1)
    found = json.loads(wake("rollback", "undo")[1])
    assert (found["held"], found["changed"], found["services"]) == (None, ["lb2"], 2)


def test_quit_waits_for_the_agent_and_leaves_no_mark(wake, node, monkeypatch):
    mark, seen, real = node.in_run("quit"), [], type(node).lock

    def lock(self, path, **how):
        seen.append((os.path.basename(path), how["wait"], os.path.exists(mark)))
        return real(self, path, **how)

    monkeypatch.setattr(type(node), "lock", lock)
    assert wake("quit")[0] == 0
    assert seen == [("agent.lock", 1800, True)] and not os.path.exists(mark)
