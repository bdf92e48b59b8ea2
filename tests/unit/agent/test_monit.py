"""monit: what its answers mean, and how it is asked over its socket."""

import base64
import contextlib
import shutil
import signal
import socket
import subprocess
import threading
from xml.etree import ElementTree

import monit
import pytest
from node import AgentError

from .conftest import cases, script

OK = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.fixture
def serve(node, tmp_path):
    """``serve(answer)``: a Monit whose daemon answers ``answer(text)``, and the requests it got."""
    node.conf["socket"], listener = str(tmp_path / "m.sock"), socket.socket(socket.AF_UNIX)
    listener.bind(node.conf["socket"])
    listener.listen(8)

    def run(answer, requests):
        while True:
            with contextlib.suppress(OSError), listener.accept()[0] as one:
                requests.append(one.recv(1 << 20).decode())
                one.sendall(answer(requests[-1]))

    def start(answer):
        requests = []
        threading.Thread(target=run, args=(answer, requests), daemon=True).start()
        return monit.Monit(node), requests

    return start


def service(name="a.http", parts="", **numbers):
    fields = {"status": 0, "monitor": 1, "collected_sec": 100, **numbers}
    text = "".join(f"<{tag}>{value}</{tag}>" for tag, value in fields.items())
    return f'<service type="4"><name>{name}</name>{text}{parts}</service>'


def status(*services, incarnation=7, version="5.33.0"):
    server = f"<version>{version}</version><uptime>9</uptime><incarnation>{incarnation}"
    return f"<monit><server>{server}</incarnation></server>{''.join(services)}</monit>".encode()


PORT = "<port><portnumber>80</portnumber><responsetime>{}</responsetime></port>"
SILENT = "<program><status>2</status></program>"
PROGRAM = "<program><status>{}</status><output>first\nlast words\n</output></program>"


@cases(
    ("numbers", "parts", "flags", "message"),
    ({}, "", "watched good", ""),
    ({"monitor": 0}, "", "", ""),
    ({"monitor": 2, "status": 32}, "", "", ""),
    ({"monitor": 5}, "", "watched good", ""),
    ({"collected_sec": 10}, "", "watched", ""),
    ({"status": 32}, PORT.format("-1.0"), "watched failing suspect", "port 80 failed"),
    ({}, PORT.format("-1.0"), "watched suspect", "port 80 failed"),  # below its threshold
    ({}, PORT.format("0.01"), "watched good", ""),
    ({"status": 16}, PROGRAM.format(1), "watched failing suspect", "last words"),
    ({"status": 16}, PROGRAM.format(75), "watched unasked", "last words"),
    ({"status": 16}, SILENT, "watched failing suspect", "exit code 2"),
)
def test_service(numbers, parts, flags, message):
    found = monit.Service(ElementTree.fromstring(service(parts=parts, **numbers)))
    names = ("watched", "failing", "suspect", "unasked")
    have = [name for name in names if getattr(found, name)] + ["good"] * found.good_since(50)
    assert (set(have), found.message, found.name) == (set(flags.split()), message, "a.http")


@cases(
    ("codes", "need", "good", "failing"),
    ([1, 1], 3, 1, False),
    ([1, 1, 1], 3, 1, True),
    ([1, 1, 1, 0], 3, 1, False),
    ([1, 1, 1, 0], 3, 2, True),
    ([1, 1, 1, 0, 0], 3, 2, False),
    ([1, 0, 1], {"failures": 2, "within": 3}, 1, True),
    ([1, 0, 0, 1], {"failures": 2, "within": 3}, 1, False),
    ([1, 75, 1], 2, 1, True),
    ([1, 1, 75], 2, 1, False),
)
def test_outcome_of_a_probe(codes, need, good, failing):
    check = {"failure_threshold": need, "success_threshold": good}
    found = monit.Outcome(check, {"codes": codes, "words": "w", "at": {"t": 100}})
    assert (found.failing, found.message) == (failing, "w")
    assert (found.suspect, found.unasked) == (codes[-1] == 1, codes[-1] == 75)
    assert found.good_since(50) == (not failing and codes[-1] == 0) and not found.good_since(100)


def test_status_tells_when_monit_has_read_its_control_file():
    before = monit.Status(status(service()))
    assert (before.version, before.uptime, list(before.services)) == ((5, 33, 0), 9, ["a.http"])
    new = service(collected_sec=300)
    for xml, begun in (
        (status(service()), False),
        (status(service(), incarnation=8), True),
        (status(new, service("b")), False),
        (status(new, service("b", collected_sec=0)), True),  # not checked yet
    ):
        assert monit.Status(xml).begun_since(before, 200) == begun
    assert monit.Status(b"<monit/>").version == ()


def test_status_is_asked_again_once_and_is_none_without_an_answer(serve):
    answers = [b"", OK + status(service())]
    client, requests = serve(lambda _: answers.pop(0) if answers else OK + b"<torn")
    assert list(client.status().services) == ["a.http"] and len(requests) == 2
    assert client.status() is None and len(requests) == 4
    client.socket += ".none"
    assert client.status() is None


@cases(
    ("control", "credentials"),
    ("allow admin:\"se cret\" read-only\n  allow 'ro ot':x\n", b"ro ot:x"),
    ("# allow a:b\nallow localhost  # \udce9\n", None),
)
def test_credentials_are_those_of_the_operators_control_file(serve, conf, control, credentials):
    with open(conf["monitrc"], "w", encoding="utf-8", errors="surrogateescape") as handle:
        handle.write(control)
    client, requests = serve(lambda _: b"HTTP/1.0 401 no\r\n\r\n")
    with pytest.raises(AgentError, match="answers 401: it wants a password"):
        client.status()
    found = [line for line in requests[0].splitlines() if "Authorization" in line]
    words = credentials and base64.b64encode(credentials).decode()
    assert found == ([f"Authorization: Basic {words}"] if words else [])


@pytest.mark.parametrize("lost", [None, "e7"])
def test_many_services_share_a_request_unless_monit_no_longer_knows_one(serve, lost):
    bad = b"HTTP/1.0 404 no\r\n\r\n"
    client, requests = serve(lambda text: bad if lost and f"service={lost}%" in text else OK)
    client.act([*(f"e{n}.http" for n in range(450)), "=x.a", "odd name"], "unmonitor")
    shared = [text for text in requests if "/_doaction " in text]
    assert len(shared) == 3 and all("action=unmonitor" in text for text in requests)
    assert "service=e7%5C.http" in shared[0] and "service=%3Dx%5C.a" in shared[2]
    assert len(requests) == 3 + (201 if lost else 1)  # the odd name, and those that were refused
    with pytest.raises(AssertionError):
        client.act(["a"], "quit")


def test_wait_ends_when_monit_knows_all_services(serve):
    known = [service("a")]
    client, requests = serve(lambda _: OK + status(*known))
    assert client.wait({"a", "b"}, 0) is None
    threading.Timer(0.1, known.append, [service("b")]).start()
    assert set(client.wait({"a", "b"}, 10).services) == {"a", "b"}


@pytest.mark.parametrize(
    ("name", "tested", "signalled"),
    [("monit", True, True), ("monit", False, False), ("sleep", True, False)],
)
def test_monit_is_signalled_only_after_a_test(node, conf, tmp_path, name, tested, signalled):
    program, calls, cli = tmp_path / name, tmp_path / "calls", tmp_path / "cli"
    shutil.copy(shutil.which("sleep"), program)
    script(cli, f'echo "$@" >> {calls}\necho no >&2\nexit 1')
    node.conf["monit"] = str(cli)
    client = monit.Monit(node)
    # Under nohup it would inherit that SIGHUP is ignored.
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}
    with subprocess.Popen([program, "60"], **heeding) as process:
        try:
            with open(conf["monitrc"], "a", encoding="utf-8") as handle:
                handle.write(f"set pidfile {tmp_path}/pid\n")
            (tmp_path / "pid").write_text(f"{process.pid}\n")
            assert client.pid() == (process.pid if name == "monit" else None)
            if signalled:
                client.reload(tested)
                assert process.wait(timeout=10) == -signal.SIGHUP and not calls.exists()
            else:
                with pytest.raises(AgentError, match="monit reload: no"):
                    client.reload(tested)
                assert calls.read_text() == f"-c {conf['monitrc']} reload\n"
                assert process.poll() is None and client.test("x") == "no"
        finally:
            process.kill()
