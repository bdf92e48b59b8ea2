"""What the states share: the node's paths and envs, and what clean has to put back."""

import base64
import itertools
import json
import socket
import threading
import time
import types

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from tests.unit.loaded import modules


@pytest.fixture
def node():
    found = {"cbsd.paths": lambda: {"workdir": "/jails"}}
    salt = modules("cbsd_monit_schema", "cbsd_monit_file", "cbsd_monit_node", **found)

    def call(name, *args, **more):
        return salt[f"cbsd_monit_node.{name}"](*args, **more)

    call.salt = salt
    return call


def test_paths_are_the_lookups_and_what_is_given_is_nearer(node):
    spec = {"lookup": {"state": "/db", "run": "/run/x", "workdir": ""}}
    assert node("paths", spec, state="/other", run=None, __id__="x") == {
        "state": "/other", "run": "/run/x", "workdir": "/jails",
    }  # fmt: skip


@pytest.mark.parametrize(
    "lookup, words",
    [({"state": "db"}, "lookup:state: expected an absolute path"), ({}, "does not set state")],
)
def test_a_path_that_is_relative_or_missing_is_the_callers_error(node, lookup, words):
    with pytest.raises(SaltInvocationError, match=words):
        node("paths", {"lookup": lookup}, need=("state",))


def test_envs_are_the_directories_with_the_name_of_one(node, tmp_path):
    assert node("env_dirs", str(tmp_path)) == {}
    for name in ("jails-system/lb1", "jails-system/a b", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "jails-system/vm1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "jails-system/file").touch()
    found = {name: str(tmp_path / "jails-system" / name) for name in ("lb1", "vm1")}
    assert node("env_dirs", str(tmp_path)) == found


def test_parts_are_remembered_until_they_are_empty(node, tmp_path):
    state = tmp_path / "state"
    assert node("undo", str(state)) == {} and node("remember", str(state), "envs", {}) is False
    assert node("remember", str(state), "envs", {"a": 1}) is True
    assert node("remember", str(state), "envs", {"a": 1}) is False
    assert node("remember", str(state), "hooks", {"b": 2}) is True
    assert json.loads((state / "undo.json").read_text()) == {
        "schema": 1, "envs": {"a": 1}, "hooks": {"b": 2},
    }  # fmt: skip
    (state / ".undo.json.salt").write_text("of a run that was killed")
    assert node("remember", str(state), "hooks", None) and node("remember", str(state), "envs", {})
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', "\udcff"])
def test_what_cannot_be_understood_is_no_bug_and_is_named(node, tmp_path, text):
    (tmp_path / "undo.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CommandExecutionError, match=f"{tmp_path}/undo.json"):
        node("undo", str(tmp_path))


def says(path, *parts, pause=0, asked=None):
    """A monit that answers once on the socket ``path``, with ``pause`` seconds after each part."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def answer():
        with server, server.accept()[0] as line:
            request = line.recv(1000)
            if asked is not None:
                asked.append(request)
            try:
                for part in parts:
                    line.sendall(part)
                    time.sleep(pause)
            except OSError:
                pass  # nobody listens any longer

    threading.Thread(target=answer, daemon=True).start()


def test_monits_status_is_asked_at_the_socket_of_the_configuration(node, tmp_path):
    paths = {"config": str(tmp_path / "conf.json"), "state": str(tmp_path)}
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    assert node("monit_status", paths) is None, "there is no socket"
    says(tmp_path / "monit.sock", head, b"<monit>", b"\xff</monit>")
    assert node("monit_status", paths).endswith("<monit>\ufffd</monit>")
    assert node("monit_status", paths) is None, "nobody listens on it"
    (tmp_path / "conf.json").write_text(json.dumps({"socket": str(tmp_path / "own")}))
    says(tmp_path / "own", b"HTTP/1.0 401 Unauthorized\r\n\r\n")
    assert node("monit_status", paths) == ""
    (tmp_path / "own").unlink()
    control, asked = tmp_path / "monitrc", []
    control.write_text("set httpd port 1\n# allow no:body\n allow 'ann':\"p w\" read-only\n")
    conf = {"socket": str(tmp_path / "own"), "monitrc": str(control)}
    (tmp_path / "conf.json").write_text(json.dumps(conf))
    says(tmp_path / "own", head, b"<monit/>", asked=asked)
    assert node("monit_status", paths).endswith("<monit/>")
    assert b"\r\nAuthorization: Basic " + base64.b64encode(b"ann:p w") + b"\r\n" in asked[0]
    (tmp_path / "own").unlink()
    says(tmp_path / "own", b"HTTP/1.0 500 Oops\r\n\r\n")
    assert node("monit_status", paths) is None


def test_a_monit_that_answers_for_ever_is_given_up(node, tmp_path, monkeypatch):
    paths = {"config": str(tmp_path / "conf.json"), "state": str(tmp_path)}
    space = node.salt["cbsd_monit_node.monit_status"].__globals__
    monkeypatch.setitem(space, "PATIENCE", 0.3)
    says(tmp_path / "monit.sock", b"HTTP/1.0 200 OK\r\n\r\n", *[b"x"] * 100, pause=0.05)
    began = time.monotonic()
    assert node("monit_status", paths) is None and time.monotonic() - began < 2
    (tmp_path / "monit.sock").unlink()
    monkeypatch.setitem(space, "PATIENCE", 5)
    late = types.SimpleNamespace(monotonic=itertools.count(0, 10).__next__)
    with monkeypatch.context() as patch:
        patch.setitem(space, "time", late)
        says(tmp_path / "monit.sock", b"HTTP/1.0 200 OK\r\n\r\n")
        assert node("monit_status", paths) is None
    (tmp_path / "monit.sock").unlink()
    monkeypatch.setitem(space, "LONGEST", 1000)
    says(tmp_path / "monit.sock", b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 2000)
    assert node("monit_status", paths) is None
