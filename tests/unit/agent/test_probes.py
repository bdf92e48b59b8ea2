"""What looks into a jail: results, and paths that try to lead out of it."""

import os

import probes
import pytest
import records

from .conftest import cases, script


@pytest.fixture
def probe(node, world, tmp_path):
    """Runs one check of a jail whose root is ``probe.root``; ``probe.program`` makes a script."""
    root = tmp_path / "jail"
    (root / "var/run").mkdir(parents=True)
    script(tmp_path / "bin/jls", f'[ "$1" = -j ] && echo {root} || cat {tmp_path}/kernel')
    (tmp_path / "secret").write_text("4711\n")

    def program(name, body):
        script(tmp_path / "bin" / name, body)
        node.conf[name] = str(tmp_path / "bin" / name)

    def run(**check):
        folder = world.env("lb1", policy={"checks": {"c": {"timeout": 2, **check}}})
        os.chmod(folder, 0o700)
        return probes.run(node, records.load(node, "lb1"), "c")

    run.root, run.program = root, program
    return run


PS = "printf ' 4711 nginx\\n 4712 nginx\\n 4713 a-very-long-command\\n'\n"


@cases(
    ("check", "code", "words"),
    ({"name": "nginx"}, 0, ""),
    ({"name": "nginx", "min": 3}, 1, "2 processes nginx, expected at least 3"),
    ({"name": "nginx", "max": 1}, 1, "2 processes nginx, expected at most 1"),
    ({"name": "mysqld"}, 1, "0 processes mysqld"),
    ({"name": "a-very-long-command-line"}, 0, ""),
    ({"pidfile": "/var/run/good.pid", "name": "nginx"}, 0, ""),
    ({"pidfile": "/var/run/good.pid", "name": "other"}, 1, "0 processes other"),
    ({"pidfile": "/var/run/foreign.pid"}, 1, "'1', which is no process of lb1"),
    ({"pidfile": "/var/run/none.pid"}, 1, "does not exist"),
    ({"pidfile": "/var/run/words.pid"}, 1, "no process"),
    ({"pidfile": "/var/run/out.pid"}, 1, "does not exist"),
    ({"pidfile": "/var/run/fifo.pid"}, 1, "is no file"),
    ({"pidfile": "/run/good.pid"}, 0, ""),
    ({"pidfile": "/run/good.pid/"}, 0, ""),
    ({"pidfile": "/var/run/postmaster.pid"}, 0, ""),
    ({"pidfile": "/loop/x"}, 1, "too many symlinks"),
    ({"pidfile": "/up/secret"}, 1, "does not exist"),
)
def test_process(probe, tmp_path, check, code, words):
    probe.program("ps", PS)
    run = probe.root / "var/run"
    (run / "good.pid").write_text("4711\n")
    (run / "postmaster.pid").write_text("4712\n/var/db/postgres/data16\n1795372240\n5432\n")
    (run / "foreign.pid").write_text("1\n")
    (run / "words.pid").write_text("-1; reboot\n")
    (run / "out.pid").symlink_to(tmp_path / "secret")
    os.mkfifo(run / "fifo.pid")
    (probe.root / "run").symlink_to("/var/run")
    (probe.root / "loop").symlink_to("loop")
    (probe.root / "up").symlink_to("../../../..")
    found = probe(type="process", **check)
    assert found[0] == code and words in found[1]


def test_file(probe):
    path, check = probe.root / "var/run/app.stamp", {"type": "file", "path": "/var/run/app.stamp"}
    assert probe(**check)[0] == 1
    path.write_text("x" * 100)
    assert probe(**check, max_size=100, min_size=100) == (0, "")
    assert probe(**check, max_size=99)[0] == probe(**check, min_size=101)[0] == 1
    os.utime(path, (1, 1))
    assert "max_age is 600" in probe(**check, max_age=600)[1]
    assert probe(type="file", path="/")[0] == 0


def test_resource(probe):
    probe.program("rctl", 'echo "memoryuse=1000\nmaxproc=7"\n')
    assert probe(type="resource", memoryuse=1000, maxproc=10) == (0, "")
    assert probe(type="resource", memoryuse=999) == (1, "memoryuse is 1000, limit 999")
    no_answer = "cannot be asked: rctl says nothing about openfiles"
    assert probe(type="resource", openfiles=5) == (75, no_answer)
    probe.program("rctl", "echo 'rctl: RACCT/RCTL present, but disabled' >&2; exit 1\n")
    assert probe(type="resource", memoryuse=999)[0] == 75


def test_program_is_killed_in_time_and_runs_once_at_a_time(probe, node):
    probe.program("slow", "sleep 30 & wait\n")
    check = {"type": "exec", "in": "host", "command": [node.conf["slow"]], "timeout": 0.3}
    code, words = probe(**check)
    assert code == 1 and "killed" in words
    with node.lock(node.in_run("lock", "lb1.c")):
        assert probe(**check) == (75, "the probe before is still running")


def test_what_is_not_trusted_is_not_run(probe, node, world, tmp_path):
    probe.program("mark", f"touch {tmp_path}/marked\n")
    check = {"type": "exec", "in": "host", "command": [node.conf["mark"]]}
    folder = world.env("lb1", policy={"checks": {"c": check}})
    os.chmod(folder, 0o777)
    assert probes.run(node, records.load(node, "lb1"), "c")[0] == 75
    assert not (tmp_path / "marked").exists()


def test_where_monit_cannot_run_probes_the_agent_does(probe, node, world, no_monit):
    node.conf["probes"] = "agent"
    check = {"type": "file", "path": "/x", "interval": 10}
    rules = {"lb1": {"checks": {"c": check, "http": {"type": "http"}}}}
    world.settle("lb1", policy=rules["lb1"])
    due = probes.due(node, [records.load(node, "lb1")], rules, node.now())
    assert [(w, e.name, c) for w, e, c in due] == [(0, "lb1", "c")]
    probes.run_all(node, [("lb1", "c")])
    found = records.load(node, "lb1")["probes"]["c"]
    assert found["codes"] == [1] and "does not exist" in found["words"]
    due = probes.due(node, [records.load(node, "lb1")], rules, node.now())
    assert 9 < due[0][0] <= 10


def test_bug_in_a_probe_is_no_failure_of_the_env(probe, monkeypatch, capsys):
    monkeypatch.setitem(probes._LOOKS, "file", lambda *_: {}["missing"])
    code, words = probe(type="file", path="/x")
    assert code == 75 and words.startswith("a bug in cbsd_monit")
    assert "KeyError: 'missing'" in capsys.readouterr().err
