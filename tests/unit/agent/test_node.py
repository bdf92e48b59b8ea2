"""The node: configuration, names, locks, and time across boots and wrong clocks."""

import os
import subprocess
import sys

import node as node_
import pytest
from node import NAME, AgentError, Busy, Node

from .conftest import AGENT, cases


@cases(
    ("text", "words"), (None, "No such"), ("{", "Expecting"), ('{"schema": 2}', "schema 1, got 2")
)
def test_configuration_that_cannot_be_used_is_an_error(tmp_path, text, words):
    if text is not None:
        (tmp_path / "c").write_text(text)
    with pytest.raises(AgentError, match=words):
        Node(str(tmp_path / "c"))


def test_names():
    for name in ("a", "_A-1", "x" * 100):
        assert NAME.match(name)
    for name in ("", "x" * 101, "-a", "a b", "a.b", "a\n", "ä", "a/b", ".."):
        assert not NAME.match(name)


def test_lock_is_busy_until_its_holder_is_gone(node):
    path = node.in_run("lock", "lb1")
    code = f"""
import sys; sys.path.insert(0, {str(AGENT)!r})
import node, os
with node.Node.lock(None, {path!r}, why="heal: x"): print(flush=True); sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        holder.stdout.readline()
        with pytest.raises(Busy, match=f"lb1 is held by {holder.pid} heal: x"):
            with node.env_lock("lb1", "restart", wait=0.1):
                pass
        holder.kill()
        with node.env_lock("lb1", "restart", wait=5) as fd:
            assert os.pread(fd, 99, 0) == f"{os.getpid()} restart\n".encode()
    with node.env_lock("lb1", "again"), node.env_lock("lb2", "other"), node.pass_lock(0):
        pass


def test_boot_id_is_the_systems_or_made_once_per_boot(node, monkeypatch):
    assert node.boot == "boot-1"
    real = open

    def missing(path, *args, **more):
        return real("/no/such" if str(path).startswith("/proc/sys") else path, *args, **more)

    monkeypatch.setattr("builtins.open", missing)
    failed = subprocess.CompletedProcess([], 1, "")
    monkeypatch.setattr(node_.subprocess, "run", lambda *_, **__: failed)
    node.conf["boot_id"] = None
    first = node._boot_id()
    assert float(first) > 0 and node._boot_id() == first
    os.unlink(node.in_run("boot_id"))  # as rc.d/cleanvar does
    assert node._boot_id() != first
