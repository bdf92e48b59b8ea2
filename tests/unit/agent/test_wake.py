"""The script that hooks, monit and cron run."""

import os
import subprocess
import time

import state


def run_hook(wake, tmp_path, hook, env="lb1", environ=None, name="cbsd_monit"):
    folder = tmp_path / "work/jails-system" / env / hook
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / name
    if not link.exists():
        link.symlink_to(wake)
    full = {"PATH": os.environ["PATH"], "jname": env, "emulator": "jail", **(environ or {})}
    return subprocess.run(
        [str(link)], env=full, input=b"other-hook\n", capture_output=True, timeout=20, check=False
    )


def appears(path):
    """The agent is started in the background."""
    until = time.monotonic() + 10
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert path.exists()


def test_records_keep_the_order_of_the_hooks(wake, tmp_path, node):
    hooks = ["master_prestop.d", "master_poststop.d", "master_prestart.d", "master_poststart.d"] * 3
    for hook in hooks:
        assert run_hook(wake, tmp_path, hook).returncode == 0
    assert [r.hook for _, r in state.read_inbox(node)] == hooks


def test_order_survives_an_agent_that_reads_in_between(wake, tmp_path, node):
    numbers = []
    for _ in range(3):
        for hook in ("master_prestart.d", "master_poststart.d"):
            run_hook(wake, tmp_path, hook)
        found = state.read_inbox(node)
        assert [r.hook for _, r in found] == ["master_prestart.d", "master_poststart.d"]
        numbers += [os.path.basename(p) for p, _ in found]
        state.drop_inbox([p for p, _ in found])
        assert state.read_inbox(node) == []
    assert numbers == sorted(numbers)


def test_record_holds_the_environment_as_it_came(wake, tmp_path, node):
    odd = "a b\n\"c\" 'd' $(touch x) ü"
    run_hook(
        wake,
        tmp_path,
        "master_poststart.d",
        environ={"state": "x", "run": "y", "host_hostname": odd, "jid": "7"},
    )
    ((_, record),) = state.read_inbox(node)
    assert record.env == "lb1"
    assert record.environ["host_hostname"] == odd
    assert (record.environ["state"], record.environ["run"], record.environ["jid"]) == (
        "x",
        "y",
        "7",
    )


def test_hook_reads_nothing_from_stdin_and_prints_nothing(wake, tmp_path, node):
    done = run_hook(wake, tmp_path, "master_poststart.d")
    assert (done.stdout, done.stderr) == (b"", b"")


def test_agent_is_started_once_and_sees_nothing_of_the_caller(wake, tmp_path, node):
    script = tmp_path / "bin/python"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nenv > {tmp_path}/agent-env\nexec sleep 3\n'
    )
    calls = [
        subprocess.Popen(
            [str(wake), "monit", "lb1.http"], env={"PATH": "/nowhere", "jname": "x", "LD_X": "1"}
        )
        for _ in range(200)
    ]
    assert {c.wait(timeout=60) for c in calls} == {0}
    appears(tmp_path / "called")
    time.sleep(0.2)  # a second agent would come now
    assert (tmp_path / "called").read_text().splitlines() == [
        f"-IS {tmp_path}/lib/agent {tmp_path}/conf.json run"
    ]
    names = {line.split("=")[0] for line in (tmp_path / "agent-env").read_text().splitlines()}
    assert names <= {"PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "_"}
    assert os.path.exists(node.in_run("trigger"))


def test_ticket_of_a_killed_agent_is_taken_over(wake, tmp_path, node):
    gone = subprocess.Popen(["true"])
    gone.wait()
    os.mkdir(node.in_run("agent.pid"))
    with open(node.in_run("agent.pid", "pid"), "w") as handle:
        handle.write(f"{gone.pid}\n")
    subprocess.run([str(wake), "monit", "x"], check=True, timeout=10)
    appears(tmp_path / "called")


def test_agent_is_started_though_its_ticket_cannot_be_made(wake, tmp_path, node):
    """A full disk; here the run directory is a file."""
    wake.write_text(
        wake.read_text().replace(f"cm_run='{node.run}'", f"cm_run='{tmp_path}/conf.json'")
    )
    subprocess.run([str(wake), "monit", "x"], check=True, timeout=10, capture_output=True)
    appears(tmp_path / "called")


def test_missing_interpreter_is_loud(wake, tmp_path, node):
    (tmp_path / "bin/python").unlink()
    done = subprocess.run(
        [str(wake), "monit", "x"], capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 1
    assert "no Python at" in done.stderr
    assert not os.path.exists(node.in_run("agent.pid"))
    done = subprocess.run(
        [str(wake), "sync"], capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 127
    assert "no Python at" in done.stderr


def test_stop_records_its_ancestry(wake, tmp_path, node):
    folder = tmp_path / "work/jails-system/lb1/master_prestop.d"
    folder.mkdir(parents=True)
    (folder / "cbsd_monit").symlink_to(wake)
    jrestart = tmp_path / "bin/jrestart"
    jrestart.write_text(f"#!/bin/sh\n{folder}/cbsd_monit\nexit 0\n")
    jrestart.chmod(0o755)
    subprocess.run([str(jrestart), "lb1"], check=True, timeout=10)
    ((_, record),) = state.read_inbox(node)
    assert record.cause()[0] == "restart"
    assert "jrestart" in record.cause()[1]


def test_what_cron_runs_is_logged_and_not_mailed(wake, tmp_path, node):
    (tmp_path / "bin/python").write_text("#!/bin/sh\necho lb1: failing >&2\n")
    done = subprocess.run(
        [str(wake), "sync"], capture_output=True, text=True, timeout=10, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "state/agent.log").read_text() == "lb1: failing\n"
    done = subprocess.run(
        [str(wake), "sync", "--json"], capture_output=True, text=True, timeout=10, check=True
    )
    assert done.stderr == "lb1: failing\n"
