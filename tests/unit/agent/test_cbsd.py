"""Running commands: bounded, as a group, and not held up by what they leave behind."""

import contextlib
import os
import signal
import subprocess
import time

import cbsd
import pytest
from node import AgentError

from .conftest import cases, script


def test_daemon_that_keeps_the_output_open_delays_nobody_and_lives(tmp_path):
    began = time.monotonic()
    command = f"setsid sleep 30 & echo $! > {tmp_path}/pid; echo started"
    answer = cbsd.run(["/bin/sh", "-c", command], timeout=10)
    assert time.monotonic() - began < 5
    assert (answer.code, answer.last_words) == (0, "started")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_time_out_kills_the_whole_group_even_where_sigterm_is_ignored(tmp_path):
    child = f"sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/pid; sleep 30'"
    script = f"trap '' TERM; {child} & echo waiting; wait"
    answer = cbsd.run(["/bin/sh", "-c", script], timeout=1)
    assert answer.code is None and "waiting" in answer.text
    assert "no answer within 1 s, killed" in answer.text
    time.sleep(0.2)
    stat = f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat"
    assert not os.path.exists(stat) or open(stat).read().split()[2] == "Z"


def test_commands_see_nothing_of_our_environment_and_a_missing_one_is_an_answer(monkeypatch):
    monkeypatch.setenv("jname", "web1")
    monkeypatch.setenv("node", "foo")
    answer = cbsd.run(["/usr/bin/env"], timeout=5)
    names = {line.split("=")[0] for line in answer.text.splitlines()}
    assert names == {"PATH", "HOME", "TERM"}
    assert cbsd.run(["/no/such"], timeout=5).code == 127


def test_only_the_command_whose_agent_died_is_killed_for_its_lock(node):
    path = node.in_run("lock", "lb1")
    holder = ["/bin/sh", "-c", cbsd._HOLDER, "heal"]
    for argv, code in ((holder, -signal.SIGKILL), (["/bin/sh", "-c", '"$@"', "heal"], None)):
        with open(path, "w+") as lock:
            child = subprocess.Popen([*argv, "sleep", "9"], stdin=lock, start_new_session=True)
        try:
            until = time.monotonic() + 5
            while argv is holder and not os.path.getsize(path) and time.monotonic() < until:
                time.sleep(0.01)
            if argv is not holder:
                with open(path, "w") as lock:
                    lock.write(f"{child.pid} heal\n")
            cbsd.end_orphan(node, "lb1")
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5 if code else 0.2)
            assert child.returncode == code
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def test_inventory_is_read_whole_and_survives_odd_rows(node, tmp_path):
    names = [*(f"e{n:05d}" for n in range(10000)), "x" * 100]
    row = "|".join(["1"] * 2 + ["jail"] + ["x" * 14] * (len(cbsd.COLUMNS) - 4))
    odd = ["odd|1|1|jail|a|b|c", f"n;id|{row}", f"{'x' * 101}|{row}"]
    lines = [*(f"{name}|{row}" for name in names), *odd, ""]
    (tmp_path / "rows").write_text("\n".join(lines))
    assert (tmp_path / "rows").stat().st_size > 1 << 20
    rows, broken = cbsd.inventory(node)
    assert (list(rows), broken) == (names, {"odd"})


def test_answer_that_is_cut_off_is_an_error_and_no_envs_that_are_gone(node, world, monkeypatch):
    world.settle("one", "two")
    for ask, longest in ((cbsd.inventory, 60), (cbsd.kernel, 6)):
        monkeypatch.setattr(cbsd, "DATA", longest)
        with pytest.raises(AgentError, match=f"more than {longest} bytes"):
            ask(node)
        monkeypatch.setattr(cbsd, "DATA", 1000)
        assert ask(node)


def test_what_cannot_be_read_is_an_error_and_no_empty_node(node, tmp_path):
    (tmp_path / "vmm").rmdir()
    assert cbsd.kernel(node)["bhyve"] == set()
    (tmp_path / "vmm").write_text("")
    with pytest.raises(AgentError, match="vmm"):
        cbsd.kernel(node)
    script(tmp_path / "bin/jls", "echo jls: no >&2\nexit 1")
    with pytest.raises(AgentError, match="jls: no"):
        cbsd.kernel(node)
    (tmp_path / "work/var/db/local.sqlite").unlink()
    with pytest.raises(AgentError, match="cannot be read"):
        cbsd.inventory(node)


def test_stop_time_out_is_cbsds_own_and_a_margin():
    assert cbsd.stop_timeout({"emulator": "jail", "exec_timeout": "60"}) == 90
    assert cbsd.stop_timeout({"emulator": "jail", "exec_timeout": "0"}) == 210
    assert cbsd.stop_timeout({"emulator": "jail", "exec_timeout": ""}) == 210
    assert cbsd.stop_timeout({"emulator": "bhyve"}) == 90


@cases(
    ("ip4_addr", "first", "public", "private", "ipv6"),
    ("10.0.0.1/24", "10.0.0.1", "", "10.0.0.1", ""),
    ("em0#10.0.0.3/24", "10.0.0.3", "", "10.0.0.3", ""),
    ("vhid_1#10.0.0.7/24", "10.0.0.7", "", "10.0.0.7", ""),
    ("8.8.8.8/32,192.168.1.5/24", "8.8.8.8", "8.8.8.8", "192.168.1.5", ""),
    ("fde4::1/64,10.1.1.1", "10.1.1.1", "", "10.1.1.1", "fde4::1"),
    ("fde4::1/64", "", "", "", "fde4::1"),
    *((none, "", "", "", "") for none in ("DHCP", "REALDHCP", "0", "")),
)
def test_addresses_follow_cbsds_rules(ip4_addr, first, public, private, ipv6):
    names = ("ipv4_first", "ipv4_first_public", "ipv4_first_private", "ipv6_first")
    assert cbsd.addresses(ip4_addr) == dict(zip(names, (first, public, private, ipv6)))
