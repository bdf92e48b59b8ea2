"""Running commands: bounded, as a group, and not held up by what they leave behind."""

import contextlib
import os
import signal
import subprocess
import time

import cbsd
import pytest
from node import AgentError


def test_daemon_that_keeps_the_output_open_delays_nobody_and_lives(tmp_path):
    began = time.monotonic()
    answer = cbsd.run(
        ["/bin/sh", "-c", f"setsid sleep 30 & echo $! > {tmp_path}/pid; echo started"], timeout=10
    )
    assert time.monotonic() - began < 5
    assert (answer.code, answer.last_words) == (0, "started")
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    os.kill(pid, 9)


def test_time_out_kills_the_whole_group_even_where_sigterm_is_ignored(tmp_path):
    child = f"sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/pid; sleep 30'"
    script = f"trap '' TERM; {child} & echo waiting; wait"
    answer = cbsd.run(["/bin/sh", "-c", script], timeout=1)
    assert (
        answer.code is None
        and "no answer within 1 s, killed" in answer.text
        and "waiting" in answer.text
    )
    time.sleep(0.2)
    stat = f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat"
    assert not os.path.exists(stat) or open(stat).read().split()[2] == "Z"


def test_commands_see_nothing_of_our_environment(monkeypatch):
    monkeypatch.setenv("jname", "web1")
    monkeypatch.setenv("node", "foo")
    answer = cbsd.run(["/usr/bin/env"], timeout=5)
    names = {line.split("=")[0] for line in answer.text.splitlines()}
    assert names == {"PATH", "HOME", "TERM"}


def test_missing_program_is_an_answer(node):
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


def test_inventory_survives_odd_rows(node, world, tmp_path):
    world.env("good")
    world.env("x" * 100)
    world.env("x" * 101)
    (tmp_path / "rows").open("a").write(
        "odd|1|1|jail|a|b|c\nn;id" + "|x" * (len(cbsd.COLUMNS) - 1) + "\n"
    )
    rows, broken = cbsd.inventory(node)
    assert (set(rows), broken) == ({"good", "x" * 100}, {"odd"})


def test_inventory_of_ten_thousand_envs_is_read_whole(node, tmp_path):
    names = [f"e{n:05d}" for n in range(10000)]
    row = "|".join(["1"] * 2 + ["jail"] + ["x" * 14] * (len(cbsd.COLUMNS) - 4))
    (tmp_path / "rows").write_text("".join(f"{name}|{row}\n" for name in names))
    assert (tmp_path / "rows").stat().st_size > 1 << 20
    rows, broken = cbsd.inventory(node)
    assert list(rows) == names and not broken


def test_answer_that_is_cut_off_is_an_error_and_no_envs_that_are_gone(node, world, monkeypatch):
    for name in ("one", "two"):
        world.env(name)
    for ask, longest in ((cbsd.inventory, 60), (cbsd.kernel, 6)):
        monkeypatch.setattr(cbsd, "DATA", longest)
        with pytest.raises(AgentError, match=f"more than {longest} bytes"):
            ask(node)
        monkeypatch.setattr(cbsd, "DATA", 1000)
        assert ask(node)


def test_devices_of_vms_that_cannot_be_listed_are_no_dead_vms(node, tmp_path):
    (tmp_path / "vmm").rmdir()
    assert cbsd.kernel(node)["bhyve"] == set()
    (tmp_path / "vmm").write_text("")
    with pytest.raises(AgentError, match="vmm"):
        cbsd.kernel(node)


def test_unreadable_inventory_is_an_error_and_no_empty_node(node, tmp_path):
    (tmp_path / "work/var/db/local.sqlite").unlink()
    with pytest.raises(AgentError, match="cannot be read"):
        cbsd.inventory(node)


def test_kernel_that_cannot_be_asked_is_an_error(node, tmp_path):
    (tmp_path / "bin/jls").write_text("#!/bin/sh\necho jls: no >&2\nexit 1\n")
    with pytest.raises(AgentError, match="jls: no"):
        cbsd.kernel(node)


def test_stop_time_out_is_cbsds_own_and_a_margin():
    assert cbsd.stop_timeout({"emulator": "jail", "exec_timeout": "60"}) == 90
    assert cbsd.stop_timeout({"emulator": "jail", "exec_timeout": "0"}) == 210
    assert cbsd.stop_timeout({"emulator": "jail", "exec_timeout": ""}) == 210
    assert cbsd.stop_timeout({"emulator": "bhyve"}) == 90


@pytest.mark.parametrize(
    ("ip4_addr", "first", "public", "private", "ipv6"),
    [
        ("10.0.0.1/24", "10.0.0.1", "", "10.0.0.1", ""),
        ("em0#10.0.0.3/24", "10.0.0.3", "", "10.0.0.3", ""),
        ("vhid_1#10.0.0.7/24", "10.0.0.7", "", "10.0.0.7", ""),
        ("8.8.8.8/32,192.168.1.5/24", "8.8.8.8", "8.8.8.8", "192.168.1.5", ""),
        ("fde4::1/64,10.1.1.1", "10.1.1.1", "", "10.1.1.1", "fde4::1"),
        ("fde4::1/64", "", "", "", "fde4::1"),
        ("DHCP", "", "", "", ""),
        ("REALDHCP", "", "", "", ""),
        ("0", "", "", "", ""),
        ("", "", "", "", ""),
    ],
)
def test_addresses_follow_cbsds_rules(ip4_addr, first, public, private, ipv6):
    assert cbsd.addresses(ip4_addr) == {
        "ipv4_first": first,
        "ipv4_first_public": public,
        "ipv4_first_private": private,
        "ipv6_first": ipv6,
    }
