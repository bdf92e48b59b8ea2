"""
What ``cbsd_monit.render`` writes, judged by real monit: it accepts every combination, and does what
the pillar asked for.

The agent's part is small here: the facts are put in as the contract says (docs/contract.md, section
7), and ``wake`` is a script that writes down how it was called. Servers and monit live on loopback,
below one directory, and end with the module.
"""

import collections
import contextlib
import datetime
import http.server
import itertools
import os
import pathlib
import random
import re
import shutil
import socket
import ssl
import string
import subprocess
import tempfile
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree

import pytest
from salt.exceptions import SaltInvocationError

from tests.unit.loaded import REPO
from tests.unit.modules.pillars import load

MONIT = shutil.which("monit") or "/usr/local/bin/monit"
ADDRESS = "127.77.41.7"

pytestmark = [
    pytest.mark.skipif(not os.path.exists(MONIT), reason="needs monit"),
    pytest.mark.skipif(os.geteuid() != 0, reason="monit's socket belongs to root"),
]


cbsd_monit = load()


@pytest.fixture
def root():
    # short: a unix socket's path has a limit
    path = pathlib.Path(tempfile.mkdtemp(prefix="cmr", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def render(spec, root, env="lb1"):
    """Return what monit would include for one env: the head, and its rules with their facts."""
    lookup = {"libexec": str(root), "state": str(root), "rootgroup": "root"}
    made = cbsd_monit.render(spec, "hv1", [{"name": env, "emulator": "jail"}], lookup=lookup)
    assert made["warnings"] == []
    facts = {
        "ENV": re.sub("[A-Z]", lambda match: f"={match[0].lower()}", env),
        "JNAME": env, "ADDRESS": ADDRESS, "IPV4_FIRST": ADDRESS, "IPV6_FIRST": "::1",
        "WAKE": f"{root}/wake", "DEAD": f"{root}/dead",
    }  # fmt: skip
    template = made["envs"].get(env, {}).get("monitrc.tpl", "")
    rule = re.sub("%%([A-Z0-9_]+)%%", lambda match: facts[match[1]], template)
    return made["config"]["head"] + "\n" + rule


def control(text, root):
    """Write a control file around ``text`` and the script that stands for the agent."""
    wake = root / "wake"
    wake.write_text(
        f"""#!/bin/sh
case $1 in
monit) echo "$2 $MONIT_EVENT" >> {root}/woken ;;
probe) echo "$2 $3" >> {root}/probed; [ ! -e {root}/slow-$3 ] || sleep $(cat {root}/slow-$3)
  cat {root}/says-$3; exit $(cat {root}/probe-$3) ;;
esac
"""
    )
    wake.chmod(0o755)
    (root / "id").write_text("0123456789abcdef0123456789abcdef")
    own = "".join(f"set {what}file {root}/{what}\n" for what in ("id", "pid", "state", "log"))
    path = root / "monitrc"
    path.write_text(own + text)
    path.chmod(0o600)
    return path


def accepted(spec, root):
    """Assert that monit takes the text without a word of warning; return the text."""
    text = render(spec, root)
    path = control(text, root)
    ran = subprocess.run(
        [MONIT, "-t", "-c", path], capture_output=True, text=True, timeout=60, check=False
    )
    line = re.search(r"monitrc:(\d+)", ran.stdout + ran.stderr)
    where = path.read_text().split("\n")[int(line[1]) - 1] if line else ""
    assert (ran.returncode, ran.stderr) == (0, ""), where
    return text


# --- Accepted

COMMON = {
    "interval": [1, "1m"],
    "timeout": ["1s", 2.5],
    "failure_threshold": [1, 64, {"failures": 2, "within": 3}, {"failures": 64, "within": 64}],
    "success_threshold": [1, 64],
}
NETWORK = {"address": [None, "ipv4", "ipv6", "10.0.0.1", "2001:db8::1"]}
TLS = [{}, {"tls": True}, {"tls": True, "verify": True, "certificate_valid": "30d"}]
TEXTS = [
    "OK [0-9]+", '"status": *"(ok|degraded)"', r"a\.b\\c", "/slash", "it's", r"\\0x41 \"q\"",
    "$(x) `x` %s # [{}]",
    "a{2,3}[[:space:]]", "^$",
]  # fmt: skip
HTTP = {
    "method": [None, "GET"],
    "path": [None, "/a/b?c=d&e=f,g;h:i@j=k!*+-_."],
    "status": [None, 204],
    "hostheader": [None, "www.example.org:8080", "%%JNAME%%.example.org"],
    "headers": [None, {"X-A": "b, c; d=(e)", "Accept": "*/*"}],
    "content": [None, *TEXTS],
}


def spread(options, more):
    """Yield each of ``more`` with the next combination of ``options``: all occur, not all pairs."""
    return [{**check, **other} for check, other in zip(itertools.cycle(product(**options)), more)]


def product(**options):
    for values in itertools.product(*options.values()):
        yield {key: value for key, value in zip(options, values) if value is not None}


def as_checks(kinds):
    return {"envs": {"lb1": {"checks": {f"c{n}": check for n, check in enumerate(kinds)}}}}


def needed(kind):
    """The least that a check of this type says."""
    rows = cbsd_monit.schema()["checks"][kind]["fields"]
    given = {"port": 4711, "command": ["/bin/x", "a b", "-c=d"], "name": "nginx", "path": "/x"}
    more = {"process": {"pidfile": "/x"}, "resource": {"memoryuse": "2g"}}.get(kind, {})
    required = {key: given[key] for key, row in rows.items() if row.get("required")}
    return {"type": kind, **required, **more}


def test_every_type_with_everything_common_is_accepted(root):
    checks = []
    for kind, row in cbsd_monit.schema()["checks"].items():
        if "env" not in row["scope"]:
            continue
        fields = row["fields"]
        choices = {
            key: field["choices"] for key, field in fields.items() if field["type"] == "choice"
        }
        own = {key: [None, *words] for key, words in choices.items()}
        own.update(NETWORK if "address" in fields else {})
        secure = TLS if "tls" in fields else [{}]
        more = [{**check, **tls} for check in product(**own) for tls in secure]
        more = [more[n % len(more)] for n in range(max(len(more), 32))]
        checks += [{**needed(kind), **check} for check in spread(COMMON, more)]
    assert len(checks) > 1200
    accepted(as_checks(checks), root)


def test_every_http_check_is_accepted(root):
    more = [{"type": "http", **check, **tls} for check in product(**HTTP) for tls in TLS]
    checks = spread({**COMMON, **NETWORK}, more)
    checks += [{"type": "http", "method": "HEAD", "status": 200, **tls} for tls in TLS]
    assert len(checks) > 1000
    accepted(as_checks(checks), root)


def test_tls_and_ping_options_are_accepted(root):
    checks = [
        {"type": "tls", **c}
        for c in product(verify=[None, True, False], certificate_valid=[None, "1d"], port=[None, 1])
    ]
    checks += [
        {"type": "ping", **check} for check in product(count=[1, 20], size=[8, 1492], **NETWORK)
    ]
    accepted(as_checks(checks), root)


def test_checks_of_the_node_are_accepted(root):
    limits = ("loadavg_1m", "loadavg_5m", "loadavg_15m")
    shares = ("cpu", "cpu_user", "cpu_system", "memory", "swap")
    checks = [{"type": "system", key: value} for key in limits for value in (0.5, 8, 1000)]
    checks += [
        {"type": "system", key: value} for key in shares for value in ("1%", "90.5%", "100%")
    ]
    checks.append({"type": "system", **dict.fromkeys(limits, 8), **dict.fromkeys(shares, "90%")})
    checks += [{"type": "filesystem", "path": "/", "space": "90%", "inodes": "5.5%"}]
    checks += [{"type": "exec", "command": ["/no/such/program", "a b", "-c"]}]
    kinds = cbsd_monit.schema()["checks"].items()
    checks += [
        needed(kind)
        for kind, row in kinds
        if "node" in row["scope"] and kind not in ("system", "filesystem", "exec")
    ]
    checks = spread(COMMON, [check for check in checks for _ in range(8)])
    named = {f"c{n}": check for n, check in enumerate(checks)}
    accepted({"nodes": {"hv1": {"checks": named}}}, root)


def test_names_of_any_shape_are_accepted(root):
    names = ["0", "a-b_c", "ENVIRON", "set", "check", "if", "all", "x" * 64]
    accepted(
        {"envs": {"lb1": {"checks": {name: {"type": "tcp", "port": 1} for name in names}}}}, root
    )
    text = render({"envs": {"ALL-_1": {"checks": {"Http": {"type": "http"}}}}}, root, "ALL-_1")
    assert 'check host "=a=l=l-_1.Http"' in text
    ran = subprocess.run(
        [MONIT, "-t", "-c", control(text, root)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("raw", [
    "if failed port 25 protocol smtp then alert\n",
    "# it's a comment\nif failed port 25\n"
    '  send "EHLO x\\r\\n" expect "250.*" then alert # done\n\n\n',
    'check process "%%JNAME%%-x" matching "^nginx: master"\n'
    "  if cpu > 90% for 3 cycles then alert\n",
])  # fmt: skip
def test_raw_text_is_accepted(raw, root):
    accepted({"envs": {"lb1": {"raw": raw, "checks": {"up": {"type": "running"}}}}}, root)


def test_the_example_is_accepted(root):
    yaml = pytest.importorskip("yaml")
    spec = yaml.safe_load((REPO / "pillar.example").read_text())["cbsd_monit"]
    accepted(spec, root)


def test_no_text_that_is_let_through_breaks_out_of_its_string(root):
    """Random strings of printable ASCII are refused, or are one more test of one service."""
    rng = random.Random(20261122)
    letters = string.printable[:95]
    spice = ['"', "\\", "'", "#", '" then exec "/bin/sh', "\\0x22", "{", "}", "//", "/"]
    checks = []
    while len(checks) < 500:
        text = "".join(
            rng.choice(spice if rng.random() < 0.2 else letters) for _ in range(rng.randint(1, 12))
        )
        check = {"type": "http", "content": text}
        with contextlib.suppress(SaltInvocationError):
            cbsd_monit.validate(as_checks([check]))
            checks.append(check)
    text = render(as_checks(checks), root)
    path = control(text, root)
    ran = subprocess.run(
        [MONIT, "-vt", "-c", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    services = re.findall(r"^Remote Host Name +(?:=|:) (\S+)", ran.stdout, re.M)
    assert sorted(services) == sorted(f"lb1.c{n}" for n in range(500))
    programs = set(re.findall(r"exec '([^' ]+)", ran.stdout))
    assert programs == {f"{root}/wake"}


# --- Means what was asked


class Server:
    """HTTP, HTTPS and UDP servers that answer as their path says, and count."""

    def __init__(self, root):
        self.hits, self.bad, self.flow = collections.Counter(), set(), {}
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self):
                owner.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.plain = http.server.ThreadingHTTPServer((ADDRESS, 0), Handler)
        self.tls = http.server.ThreadingHTTPServer((ADDRESS, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(root, days=20))
        self.tls.socket = context.wrap_socket(self.tls.socket, server_side=True)
        for server in (self.plain, self.tls):
            server.daemon_threads = True
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
            ).start()
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((ADDRESS, 0))
        self.port, self.tls_port = self.plain.server_address[1], self.tls.server_address[1]
        self.udp_port = self.udp.getsockname()[1]

    def answer(self, request):
        path = urllib.parse.unquote(request.path)
        self.hits[path] += 1
        self.flow.setdefault(path, []).append(request)
        code, body = 200, "hello world"
        words = path.split("/")
        sent = request.headers["X-A"], request.headers["Host"]
        if path in self.bad or words[1] == "flap" and self.hits[path] % 3:
            code = 500
        elif words[1] == "code":
            code = int(words[2])
        elif words[1] == "text":
            body = f"<<{SPECIAL[int(words[2])]}>>"
        elif words[1] == "header" and sent != ("b, c; (d)", "www.example.org"):
            code = 400
        elif words[1] == "method" and request.command != words[2]:
            code = 405
        elif words[1] == "slow":
            time.sleep(float(words[2]))
        data = body.encode()
        with contextlib.suppress(OSError):
            request.send_response(code)
            request.send_header("Content-Length", str(len(data)))
            request.end_headers()
            if request.command == "GET":
                request.wfile.write(data)

    def close(self):
        for server in (self.plain, self.tls):
            server.shutdown()
            server.server_close()
        self.udp.close()


def certificate(root, days):
    """Write a self-signed certificate with its key and return the file's path."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lb1.example.org")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = root / "server.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


# Bodies that hold what monit's strings and expressions treat in their own way; the check asks for
# exactly that text.
SPECIAL = [
    'a"b', "a'b", "a\\b", "\\0x22", "/x",
    '" then exec "/bin/sh',
    "a|b", "$(x)", "`x`", "%s%n",
    "{a} [b] #c",
    "\\n",
]  # fmt: skip


def exactly(text):
    """Return ``text`` as a POSIX expression, with no backslash before a letter or digit."""
    return "".join(f"[{c}]" if c in ".*+?()|{}$" else f"\\{c}" if c in "[]^\\" else c for c in text)


class Daemon:
    """One real monit with a rendered configuration."""

    def __init__(self, spec, root):
        self.root = root
        command = [MONIT, "-I", "-c", control(render(spec, root), root)]
        nowhere = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)

    def services(self):
        """``{name: element}`` as monit's own status has it."""
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
                sock.settimeout(10)
                sock.connect(f"{self.root}/monit.sock")
                sock.sendall(b"GET /_status?format=xml HTTP/1.0\r\nHost: localhost\r\n\r\n")
                data = b"".join(iter(lambda: sock.recv(65536), b""))
        except OSError:
            return {}
        tree = ElementTree.fromstring(data.split(b"\r\n\r\n", 1)[1])
        return {service.findtext("name"): service for service in tree.iter("service")}

    def status(self, check):
        name = f"lb1.{check}" if "-" not in check else check
        return int(self.services()[name].findtext("status"))

    def woken(self, check):
        name = f"lb1.{check}" if "-" not in check else check
        woken = self.root / "woken"
        lines = woken.read_text().split("\n") if woken.exists() else []
        return [line.split(" ", 1)[1] for line in lines if line.split(" ")[0] == name]

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def until(condition, seconds=12):
    """Wait for a condition, at most so long; return its last answer."""
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return answer


@pytest.fixture(scope="module")
def lab():
    """A monit that watches good and bad servers: ``(daemon, server)``."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="cmr", dir="/tmp"))
    server = Server(root)
    codes = {"app": 0, "sick": 1, "turn": 0, "mute": 75, "procs": 0, "late": 1, "big": 1}
    for name, code in codes.items():
        (root / f"probe-{name}").write_text(str(code))
        (root / f"says-{name}").write_text(f"{name} says")
    http_check = {"type": "http", "port": server.port}
    secure = {"tls": True, "port": server.tls_port}
    texts = [f"^<<{exactly(text)}>>$" for text in SPECIAL]
    good = {
        "plain": http_check,
        "query": {**http_check, "path": "/a?b=c&d=e,f;g"},
        "code": {**http_check, "path": "/code/204", "status": 204},
        "text": {**http_check, "content": "hel+o (world|mars)$"},
        "header": {
            **http_check, "path": "/header", "headers": {"X-A": "b, c; (d)"},
            "hostheader": "www.example.org",
        },
        "head": {**http_check, "path": "/method/HEAD", "method": "HEAD"},
        "get": {**http_check, "path": "/method/GET", "method": "GET"},
        "tcp": {"type": "tcp", "port": server.port},
        # 1.2 s each: monit waits for an ICMP error
        "udp": {"type": "udp", "port": server.udp_port, "interval": 20},
        "tls": {"type": "tls", "port": server.tls_port, "interval": 20},
        "https": {**http_check, **secure, "path": "/https", "content": "hello", "interval": 20},
        "cert": {
            "type": "tls", "port": server.tls_port, "certificate_valid": "10d", "interval": 20,
        },
        "ping": {"type": "ping", "count": 1},
        "slow": {**http_check, "path": "/slow/0.3", "timeout": "1s", "interval": 20},
        "app": {"type": "exec", "command": ["/bin/app"]},
        "procs": {"type": "process", "name": "nginx"},
        "mute": {"type": "resource", "maxproc": 10},
        "alive": {"type": "running"},
        **{
            f"s{n}": {**http_check, "path": f"/text/{n}", "content": text}
            for n, text in enumerate(texts)
        },
    }  # fmt: skip
    bad = {
        "bad_code": {**http_check, "path": "/code/200", "status": 204},
        "bad_500": {**http_check, "path": "/code/500"},
        "bad_text": {**http_check, "path": "/bad_text", "content": "^world"},
        "bad_header": {
            **http_check, "path": "/header", "headers": {"X-A": "b"},
            "hostheader": "www.example.org",
        },
        "bad_host": {
            **http_check, "path": "/header",
            "headers": {"X-A": "b, c; (d)"},
            "hostheader": "example.org",
        },
        "bad_method": {**http_check, "path": "/method/HEAD", "method": "GET"},
        "bad_port": {"type": "tcp", "port": closed_port()},
        "bad_udp": {"type": "udp", "port": closed_port(socket.SOCK_DGRAM)},
        "bad_tls": {"type": "tls", "port": server.port, "interval": 20},
        "bad_cert": {
            "type": "tls", "port": server.tls_port, "certificate_valid": "30d", "interval": 20,
        },
        "bad_chain": {"type": "tls", "port": server.tls_port, "verify": True, "interval": 20},
        "bad_time": {**http_check, "path": "/slow/3", "timeout": "1s", "interval": 20},
        "bad_redis": {"type": "redis", "port": server.port, "interval": 20},
        "bad_address": {"type": "tcp", "port": server.port, "address": "127.77.41.8"},
        "sick": {"type": "exec", "command": ["/bin/app"]},
        "late": {"type": "file", "path": "/x", "max_age": "1h"},
        "big": {"type": "resource", "memoryuse": "512m"},
        **{
            f"not_s{n}": {**http_check, "path": "/text/6", "content": texts[n]}
            for n in (0, 2, 3, 5)
        },
    }  # fmt: skip
    moving = {
        "turn": {"type": "service", "name": "nginx", "failure_threshold": 2},
        "flip": {**http_check, "path": "/flip", "failure_threshold": 3, "success_threshold": 2},
        "seldom": {**http_check, "path": "/seldom", "failure_threshold": 2, "interval": 2},
        "flap": {**http_check, "path": "/flap", "failure_threshold": {"failures": 2, "within": 4}},
        "calm": {**http_check, "path": "/flap/calm", "failure_threshold": 3},
    }
    spec = {
        "monit": {"poll": 1},
        "defaults": {"interval": 1, "timeout": 2, "failure_threshold": 1},
        "nodes": {"hv1": {"checks": {
            "good": {"type": "filesystem", "path": "/", "space": "100%"},
            "full": {"type": "system", "memory": "0.01%"},
            "gone": {"type": "exec", "command": ["/no/such/program"]},
            "fine": {"type": "exec", "command": ["/bin/sh", "-c", "exit 0"]},
        }}},
        "envs": {"lb1": {"checks": {**good, **bad, **moving}}},
    }  # fmt: skip
    daemon = Daemon(spec, root)
    daemon.good, daemon.bad_ones = sorted(good), sorted(bad)
    try:
        assert until(daemon.services), "monit does not answer"
        yield daemon, server
    finally:
        daemon.close()
        server.close()
        shutil.rmtree(root, ignore_errors=True)


def closed_port(kind=socket.SOCK_STREAM):
    with contextlib.closing(socket.socket(socket.AF_INET, kind)) as sock:
        sock.bind((ADDRESS, 0))
        return sock.getsockname()[1]


def test_a_bad_server_fails_and_wakes_the_agent(lab):
    daemon, _ = lab
    until(lambda: all(daemon.woken(check) for check in daemon.bad_ones))
    assert [check for check in daemon.bad_ones if not daemon.status(check)] == []
    assert [check for check in daemon.bad_ones if not daemon.woken(check)] == []


def test_a_good_server_is_well_and_wakes_nobody(lab):
    daemon, server = lab

    def looked():
        services = daemon.services()
        # monit adds 4 (waiting) to 1 (monitored) between the runs of an `every N cycles`
        return all(int(services[f"lb1.{check}"].findtext("monitor")) & 1 for check in daemon.good)

    assert until(looked)
    assert until(lambda: server.hits["/text/0"] > 2)
    assert {check: daemon.status(check) for check in daemon.good if daemon.status(check)} == {}
    assert {check: daemon.woken(check) for check in daemon.good if daemon.woken(check)} == {}


def test_monit_reads_back_what_the_pillar_said(lab):
    daemon, server = lab
    assert until(lambda: daemon.services()["lb1.query"].find("port") is not None)
    port = daemon.services()["lb1.query"].find("port")
    assert (port.findtext("hostname"), port.findtext("portnumber")) == (ADDRESS, str(server.port))
    assert (port.findtext("protocol"), port.findtext("type")) == ("HTTP", "TCP")
    assert port.findtext("request") == "/a?b=c&d=e,f;g"
    assert daemon.services()["lb1.udp"].find("port").findtext("type") == "UDP"
    port = daemon.services()["lb1.https"].find("port").findtext("portnumber")
    assert port == str(server.tls_port)
    request = server.flow["/a?b=c&d=e,f;g"][0]
    assert (request.command, request.path) == ("GET", "/a?b=c&d=e,f;g")


def test_the_nodes_own_checks_work(lab):
    daemon, _ = lab
    assert until(lambda: daemon.woken("node-full") and daemon.woken("node-gone"))
    assert daemon.status("node-full") and daemon.status("node-gone")
    for name in ("node-good", "node-fine", "cbsd_monit-look"):
        assert daemon.status(name) == 0
    assert not daemon.woken("node-good") and not daemon.woken("node-fine")


def test_the_threshold_counts_runs_and_recovery_has_its_own(lab):
    daemon, server = lab
    assert until(lambda: server.hits["/flip"] > 1)
    before = server.hits["/flip"]
    server.bad.add("/flip")
    assert until(lambda: daemon.woken("flip"))
    assert 3 <= server.hits["/flip"] - before <= 5
    assert daemon.status("flip")
    server.bad.discard("/flip")
    before = server.hits["/flip"]
    assert until(lambda: daemon.woken("flip")[-1] == "Connection succeeded")
    assert server.hits["/flip"] - before >= 2
    assert daemon.status("flip") == 0


def test_the_threshold_of_a_check_that_runs_seldom_counts_its_runs(lab):
    daemon, server = lab
    assert until(lambda: server.hits["/seldom"] > 1)
    before, others = server.hits["/seldom"], server.hits["/"]
    server.bad.add("/seldom")
    assert until(lambda: daemon.woken("seldom"))
    assert 2 <= server.hits["/seldom"] - before <= 3
    assert server.hits["/"] - others >= server.hits["/seldom"] - before
    server.bad.discard("/seldom")


def test_n_of_m(lab):
    """Two bad answers, one good one, and so on: never three in a row, but two of four at once."""
    daemon, server = lab
    assert until(lambda: daemon.woken("flap"))
    assert until(lambda: server.hits["/flap/calm"] > 6)
    assert not daemon.woken("calm")


def test_a_probe_is_run_by_name_and_its_answer_counts(lab):
    daemon, _ = lab
    assert until(lambda: "lb1 turn" in (daemon.root / "probed").read_text().split("\n"))
    assert not daemon.woken("turn")
    (daemon.root / "probe-turn").write_text("1")
    assert until(lambda: daemon.woken("turn"))
    assert daemon.status("turn")


def test_a_probe_that_could_not_ask_has_not_failed(lab):
    daemon, _ = lab
    assert until(lambda: daemon.services()["lb1.mute"].findtext("program/status") == "75")
    assert daemon.services()["lb1.mute"].findtext("program/output") == "mute says"
    assert daemon.status("mute") == 0 and not daemon.woken("mute")


def test_a_dead_env_is_one_failure_and_its_checks_rest(lab):
    daemon, server = lab
    (daemon.root / "dead").write_text("")
    try:
        assert until(lambda: daemon.woken("env") and daemon.woken("alive"))
        assert daemon.status("env") and daemon.status("alive")
        before = server.hits["/"]
        time.sleep(2.5)
        assert server.hits["/"] == before
    finally:
        (daemon.root / "dead").unlink()
    assert until(lambda: server.hits["/"] > before)
    assert until(lambda: daemon.status("env") == daemon.status("alive") == 0)


# --- When


def test_failures_and_recoveries_are_seen_when_explain_says(root):
    """Checks that begin to fail at any moment of monit's cycle are seen within the bounds."""
    server = Server(root)
    checks = {
        "quick": {"type": "http", "port": server.port, "path": "/quick", "failure_threshold": 3},
        "seldom": {
            "type": "http", "port": server.port, "path": "/seldom", "interval": 3,
            "failure_threshold": 2,
        },
        "probe": {
            "type": "exec", "command": ["/x"], "interval": 2, "failure_threshold": 2,
            "success_threshold": 2,
        },
        "slow": {
            "type": "exec", "command": ["/x"], "interval": 2, "timeout": 2, "failure_threshold": 2,
        },
    }  # fmt: skip
    probes = ("probe", "slow")
    for name in probes:
        (root / f"probe-{name}").write_text("0")
        (root / f"says-{name}").write_text("no")
    (root / "slow-slow").write_text("1.5")
    spec = {"monit": {"poll": 1}, "defaults": {"interval": 1, "timeout": 1}}
    spec["envs"] = {"lb1": {"checks": checks}}
    explain = cbsd_monit.__salt__["cbsd_monit_explain.explain"]
    told = explain(spec, "hv1", [{"name": "lb1", "emulator": "jail"}], "lb1")["checks"]

    def turn(name, bad):
        if name in probes:
            (root / f"probe-{name}").write_text("1" if bad else "0")
        else:
            (server.bad.add if bad else server.bad.discard)(f"/{name}")

    def seen(name, bad):
        return bool(daemon.status(name)) is bad

    daemon = Daemon(spec, root)
    try:
        assert until(daemon.services) and until(lambda: server.hits["/seldom"] > 1)
        off = []
        for pause in (0, 0.5):
            for bad in (True, False):
                time.sleep(pause)
                began, took = time.monotonic(), {}
                for name in checks:
                    turn(name, bad)
                while len(took) < len(checks) and time.monotonic() - began < 20:
                    new = [n for n in checks if n not in took and seen(n, bad)]
                    took.update({n: time.monotonic() - began for n in new})
                    time.sleep(0.02)
                for name in checks:
                    bounds = told[name]["detected" if bad else "recovered"]
                    # it may be under way already
                    early = bounds["best"] - (1.6 if name == "slow" else 0.1)
                    # monit's second is a bit longer than a second
                    late = bounds["worst"] * 1.1 + 0.3
                    if not early <= took.get(name, 99) <= late:
                        off.append((name, bad, took.get(name), bounds))
        assert off == []
    finally:
        daemon.close()
        server.close()
