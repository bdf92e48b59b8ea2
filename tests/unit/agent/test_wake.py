"""The script that hooks, monit and cron run."""

import os
import subprocess
import time

import hooks

from .conftest import script

HOW = {"capture_output": True, "timeout": 20, "check": False}


def run_hook(wake, tmp_path, hook, env="lb1", environ=None, name="cbsd_monit"):
    folder = tmp_path / "work/jails-system" / env / hook
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / name
    if not link.exists():
        link.symlink_to(wake)
    full = {"PATH": os.environ["PATH"], "jname": env, "emulator": "jail", **(environ or {})}
    return subprocess.run([str(link)], env=full, input=b"other-hook\n", **HOW)


def call(wake, *words):
    return subprocess.run([str(wake), *words], text=True, **HOW)


def appears(path):
    until = time.monotonic() + 10
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert path.exists()


def test_records_keep_the_order_of_the_hooks_and_of_an_agent_that_reads(wake, tmp_path, node):
    kinds = ["master_prestop.d", "master_poststop.d", "master_prestart.d", "master_poststart.d"]
    numbers = []
    for _ in range(3):
        for hook in kinds:
            done = run_hook(wake, tmp_path, hook)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        found = hooks.waiting(node)[0]
        assert [r.hook for _, r in found] == kinds
        numbers += [os.path.basename(p) for p, _ in found]
        hooks.drop([p for p, _ in found])
        assert hooks.waiting(node)[0] == []
    assert numbers == sorted(numbers)


def test_record_holds_the_environment_as_it_came(wake, tmp_path, node):
    odd = "a b\n\"c\" 'd' $(touch x) ü"
    environ = {"state": "x", "run": "y", "host_hostname": odd, "jid": "7"}
    run_hook(wake, tmp_path, "master_poststart.d", environ=environ)
    ((_, record),) = hooks.waiting(node)[0]
    assert (record.env, record.environ["host_hostname"]) == ("lb1", odd)
    assert [record.environ[key] for key in ("state", "run", "jid")] == ["x", "y", "7"]


def test_agent_is_started_once_and_sees_nothing_of_the_caller(wake, tmp_path, node):
    lives = f'echo "$@" >> {tmp_path}/called\nenv > {tmp_path}/agent-env\nexec sleep 3'
    script(tmp_path / "bin/python", lives)
    environ = {"PATH": "/nowhere", "jname": "x", "LD_X": "1"}
    argv = [str(wake), "monit", "lb1.http"]
    calls = [subprocess.Popen(argv, env=environ) for _ in range(200)]
    assert {c.wait(timeout=60) for c in calls} == {0}
    called = tmp_path / "called"
    appears(called)
    time.sleep(0.2)  # a second agent would come now
    assert called.read_text() == f"-IS {tmp_path}/lib/agent {tmp_path}/conf.json run\n"
    names = {line.split("=")[0] for line in (tmp_path / "agent-env").read_text().splitlines()}
    assert names <= {"PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "_"}
    assert os.path.exists(node.in_run("trigger"))


def test_agent_is_started_though_its_ticket_is_a_killed_ones_or_cannot_be_made(
    wake, tmp_path, node
):
    gone = subprocess.Popen(["true"])
    gone.wait()
    os.mkdir(node.in_run("agent.pid"))
    (tmp_path / "run/agent.pid/pid").write_text(f"{gone.pid}\n")
    full = f"cm_run='{tmp_path}/conf.json'"  # no directory, as on a full disk
    for run in (f"cm_run='{node.run}'", full):
        wake.write_text(wake.read_text().replace(f"cm_run='{node.run}'", run))
        assert call(wake, "monit", "x").returncode == 0
        appears(tmp_path / "called")
        (tmp_path / "called").unlink()


def test_missing_interpreter_is_loud(wake, tmp_path, node):
    (tmp_path / "bin/python").unlink()
    for words, code in ((["monit", "x"], 1), (["sync"], 127)):
        done = call(wake, *words)
        assert done.returncode == code and "no Python at" in done.stderr
        assert not os.path.exists(node.in_run("agent.pid"))


def test_stop_records_its_ancestry(wake, tmp_path, node):
    folder = tmp_path / "work/jails-system/lb1/master_prestop.d"
    folder.mkdir(parents=True)
    (folder / "cbsd_monit").symlink_to(wake)
    script(tmp_path / "bin/jrestart", f"{folder}/cbsd_monit\nexit 0")
    subprocess.run([str(tmp_path / "bin/jrestart"), "lb1"], check=True, timeout=10)
    ((_, record),) = hooks.waiting(node)[0]
    assert record.cause()[0] == "restart" and "jrestart" in record.cause()[1]


def test_what_cron_runs_is_logged_and_not_mailed(wake, tmp_path, node):
    (tmp_path / "bin/python").write_text("#!/bin/sh\necho lb1: failing >&2\n")
    done = call(wake, "sync")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "state/agent.log").read_text() == "lb1: failing\n"
    done = call(wake, "sync", "--json")
    assert (done.returncode, done.stderr) == (0, "lb1: failing\n")
