"""
The monit of this node, asked over its unix socket and not by its command line.

The command line parses the whole configuration first, so one bad file disables it; it reads names
as regular expressions; it exits 0 when nothing runs.  The socket has none of these faults.  Only
`-t` (is this text good?) and `reload` (which checks the text before it signals) are commands.
"""

import contextlib
import os
import re
import signal
import subprocess
import time

import files
import language
from node import AgentError

ACTIONS = ("monitor", "unmonitor")
READ_TIMEOUT = 400  # seconds: to read 40,000 services takes monit one minute
PER_REQUEST = 200  # services
_PLAIN = re.compile(r"[A-Za-z0-9_.=-]+\Z")
PROBES = ("exec", "service", "process", "file", "resource")  # types that are a `check program`
UNASKED = 75  # EX_TEMPFAIL: exit code of a probe that cannot find out; neither good nor a failure
# What monit tests, by the bits of a status (event.h of 5.33).
_CLASSES = {
    0x1: "checksum failed",
    0x2: "a resource is beyond its limit",
    0x4: "timed out",
    0x8: "a time is beyond its limit",
    0x10: "size is beyond its limit",
    0x20: "connection failed",
    0x40: "permission failed",
    0x80: "owner failed",
    0x100: "group failed",
    0x200: "does not exist",
    0x400: "is of the wrong type",
    0x800: "cannot be read",
    0x1000: "could not be run",
    0x2000: "flags of the file system changed",
    0x4000: "ping failed",
    0x8000: "content does not match",
    0x200000: "its program failed",
    0x400000: "uptime is beyond its limit",
    0x800000: "link is down",
}


class Service:
    """One service as monit sees it now, read from its XML ``element``."""

    def __init__(self, element):
        children = {child.tag: child for child in element}

        def number(tag):
            text = children[tag].text if tag in children else None
            return int(text) if text and text.lstrip("-").isdigit() else 0

        self.name = _utf8(element.findtext("name") or element.get("name"))
        self.status = number("status")
        self.monitor = number("monitor")
        self.pending = number("pendingaction")
        self.collected = number("collected_sec") + number("collected_usec") / 1e6
        self.by_hours, self.cycles = _every(children.get("every"))
        self.message, self.exit_code = "", 0
        for test in element:
            if test.tag in ("port", "icmp", "unix"):
                if (test.findtext("responsetime") or "").startswith("-"):
                    words = f"{test.tag} {test.findtext('portnumber') or ''}"
                    self.message = words.strip() + " failed"
        program = children.get("program")
        if program is not None and (program.findtext("status") or "0") != "0":
            self.exit_code = int(program.findtext("status"))
            output = _utf8(program.findtext("output") or "").strip().splitlines()
            self.message = (output or [f"exit code {self.exit_code}"])[-1][:200]

    def interval(self, poll):
        """Seconds between two runs, ``poll`` seconds a cycle; None if certain hours limit it."""
        return None if self.by_hours else self.cycles * poll

    @property
    def reason(self):
        """Why it fails, in words."""
        classes = (words for bit, words in _CLASSES.items() if self.status & bit)
        return self.message or ", ".join(classes) or "failed"

    @property
    def failing(self):
        """A status of 0 alone is no health: also unmonitored, unchecked or below the threshold."""
        return self.watched and self.status != 0 and not self.unasked

    @property
    def unasked(self):
        """Its probe could not find out."""
        return self.watched and self.exit_code == UNASKED

    @property
    def suspect(self):
        """Its last run failed, whether or not that counts yet."""
        return self.watched and bool(self.status or self.message) and not self.unasked

    @property
    def watched(self):
        """Bit 1 is yes, 2 is not yet, 4 is between two runs of a service with `every`."""
        return bool(self.monitor & 1)

    def good_since(self, moment):
        """True if it was checked after ``moment`` (seconds since 1970) and found good."""
        return self.watched and not self.suspect and not self.unasked and self.collected > moment


def _utf8(text):
    """``text`` of monit's, which calls its answer ISO-8859-1 and passes on what it was given."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _every(element):
    """(whether certain hours limit it, cycles from one run to the next) by `every` of a service."""
    if element is None:
        return False, 1
    kind, cycles = element.findtext("type"), element.findtext("number") or ""
    return kind in ("3", "4"), int(cycles) if kind == "2" and cycles.isdigit() else 1


class Outcome:
    """
    What the last runs of a probe mean that the agent runs itself; has the attributes of `Service`.

    ``check`` is the check of the policy, ``last`` {"codes": exit codes, oldest first, "words": of
    the last run, "at": its stamp}.
    """

    watched = True

    def __init__(self, check, last):
        codes = last.get("codes", [])
        answers = [code for code in codes if code != UNASKED]
        self.message, self.at = last.get("words", ""), last.get("at")
        self.collected = (self.at or {}).get("t", 0)
        self.reason = self.message or "its probe fails"
        self.unasked = codes[-1:] == [UNASKED]
        self.suspect = codes[-1:] == [1]
        need, good = check.get("failure_threshold", 3), check.get("success_threshold", 1)
        need = need if isinstance(need, dict) else {"failures": need, "within": need}
        bad = False
        for end in range(1, len(answers) + 1):
            if answers[max(0, end - need["within"]) : end].count(1) >= need["failures"]:
                bad = True
            elif end >= good and not any(answers[end - good : end]):
                bad = False
        self.failing = bad and not self.unasked

    def good_since(self, moment):
        return not (self.failing or self.suspect or self.unasked) and self.collected > moment


class Status:
    """monit's answer to ``_status``."""

    def __init__(self, xml):
        from xml.etree import ElementTree

        root = ElementTree.fromstring(xml)
        server = root.find("server")
        if server is None:
            server = root.makeelement("server", {})
        numbers = re.findall(r"\d+", server.findtext("version", ""))
        self.version = tuple(int(number) for number in numbers)
        self.uptime = int(server.findtext("uptime") or 0)
        self.poll = int(server.findtext("poll") or 0)  # seconds of a cycle, 0 if it does not say
        self.incarnation = server.findtext("incarnation")
        services = (Service(element) for element in root.findall("service"))
        self.services = {service.name: service for service in services}

    def begun_since(self, before, moment):
        """
        True if monit has read its control file after ``moment``; ``before`` is an earlier Status.

        A reload makes all services anew, so that each was collected after it.
        """
        if self.incarnation != before.incarnation:
            return True
        return all(s.collected > moment for s in self.services.values() if s.collected)


class Monit:
    """The monit of this node."""

    def __init__(self, node):
        self.node = node
        self.socket = node.conf.get("socket") or node.in_state("monit.sock")
        self.extra_timeout = 0.0  # seconds, set by who knows how many services an answer is about

    # Over the socket

    def _request(self, head, body="", timeout=5.0):
        """Send one HTTP request; returns (code, body as bytes) or raises OSError."""
        import socket

        lines = [head + " HTTP/1.0", "Host: localhost", f"Content-Length: {len(body)}"]
        credentials = self._credentials()
        if credentials:
            import base64

            lines.append("Authorization: Basic " + base64.b64encode(credentials).decode())
        if body:
            lines += ["Content-Type: application/x-www-form-urlencoded", "Cookie: securitytoken=x"]
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(timeout)
            sock.connect(self.socket)
            sock.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        head, _, rest = answer.partition(b"\r\n\r\n")
        code = head.split(b" ", 2)[1:2]
        if not code or not code[0].isdigit():
            raise OSError("monit closed the connection")
        return int(code[0]), rest

    def _control(self):
        """The operator's control file; '' if it cannot be read."""
        return files.read_text(self.node.conf["monitrc"]) or ""

    def _credentials(self):
        """
        b"user:password", or None where monit asks for none.

        With an operator's own `set httpd` and `allow`, monit asks for it on the socket as well.
        """
        text = re.sub(r"(?m)^\s*#.*$", "", self._control())
        word = r"""("[^"]*"|'[^']*'|[^\s:"']+)"""
        for user, password, only in re.findall(rf"\ballow\s+{word}:{word}(\s+read-?only)?", text):
            if not only:
                words = f"{language.unquote(user)}:{language.unquote(password)}"
                return words.encode("utf-8", "surrogateescape")
        return None

    def status(self, timeout=5.0):
        """The present Status, or None when no monit answers; raises AgentError if it refuses."""
        for again in (True, False):  # 6.0 drops a connection now and then while it reloads
            try:
                page = "GET /_status?format=xml"
                code, body = self._request(page, timeout=timeout + self.extra_timeout)
                if code == 200:
                    return Status(body)
                why = ": it wants a password that is not in its control file" if code == 401 else ""
                raise AgentError(f"monit's socket {self.socket} answers {code}{why}")
            except (OSError, SyntaxError):  # ParseError is one
                if again:
                    time.sleep(0.05)
        return None

    def act(self, services, action):
        """
        Request ``action``, one of ACTIONS, for services; monit carries it out later.

        After each request monit goes round all of its services, so many services share one. There
        monit takes a name for a pattern: only plain names go together.
        """
        assert action in ACTIONS
        plain = [name for name in services if _PLAIN.match(name)]
        alone = [name for name in services if not _PLAIN.match(name)]
        for first in range(0, len(plain), PER_REQUEST):
            names = plain[first : first + PER_REQUEST]
            coded = (name.replace("=", "%3D").replace(".", "%5C.") for name in names)
            words = "&".join("service=" + name for name in coded)
            if self._post("_doaction", f"{words}&action={action}&securitytoken=x") is False:
                alone += names  # one that monit no longer knows spoils the request for all
        for name in alone:
            self._post(name, f"action={action}&securitytoken=x")

    def _post(self, page, body):
        """True if monit accepts, False if it refuses, None without an answer: see the next pass."""
        try:
            return self._request(f"POST /{page}", body, timeout=30.0)[0] in (200, 302)
        except OSError:
            return None

    def wait(self, services, seconds):
        """Wait until monit answers and knows all of ``services``; returns the Status or None."""
        until = time.monotonic() + seconds
        while True:
            status = self.status(timeout=2)
            if status and not services - set(status.services):
                return status
            if time.monotonic() >= until:
                return None
            time.sleep(0.05)

    # As a process

    def _pidfile(self):
        """(path, pid) of the first pid file there is, or (None, None)."""
        match = re.search(r'^\s*set\s+pidfile\s+"?([^\s"]+)', self._control(), re.M)
        for path in [match.group(1)] if match else ["/var/run/monit.pid", "/run/monit.pid"]:
            with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as handle:
                return path, int(handle.read())
        return None, None

    def pid(self):
        """The pid of this monit, or None: the pid in a file may be a zombie's or another's."""
        _, pid = self._pidfile()
        if pid is None:
            return None
        found = _run(["ps", "-o", "stat=", "-o", "comm=", "-p", str(pid)], None).stdout.split()
        zombie = not found or found[0].startswith("Z")
        return pid if not zombie and os.path.basename("".join(found[1:2])) == "monit" else None

    def hurry(self, version):
        """
        Have monit do now what was requested: 6.0 waits for its next cycle.

        5.33 does not wait, and a signal would fail a slow connect.
        """
        pid = self.pid() if version >= (6, 0) else None
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    def test(self, path):
        """What ``monit -t`` says against the control file ``path``, or '' if it is good."""
        found = _run([self.node.conf["monit"], "-t", "-c", path], READ_TIMEOUT)
        return "" if found.returncode == 0 else (found.stderr.strip() or "monit -t failed")

    def reload(self, tested=False):
        """
        Make monit read what is published; raises AgentError with its words.

        monit's own `reload` reads everything before it signals, because a daemon that cannot read
        it ends. If that was just ``tested``, only signal: 40,000 services are spared a minute.
        """
        pid = self.pid() if tested else None
        if pid:
            os.kill(pid, signal.SIGHUP)
            return
        conf = self.node.conf
        found = _run([conf["monit"], "-c", conf["monitrc"], "reload"], READ_TIMEOUT)
        if found.returncode:
            raise AgentError(f"monit reload: {found.stderr.strip() or found.stdout.strip()}")

    def start(self):
        """Start the daemon as the node's configuration says; raises AgentError."""
        argv = self.node.conf.get("monit_start")
        if not argv:
            why = "the configuration does not say how to start it"
            raise AgentError(f"monit does not run and {why}")
        path, _ = self._pidfile()
        if path and self.pid() is None:
            os.unlink(path)  # monit would "awaken" whoever has that pid now, and not start
        found = _run(argv, 60)
        if found.returncode:
            raise AgentError(f"{' '.join(argv)}: {(found.stderr or found.stdout).strip()}")


def _run(argv, timeout):
    """Run ``argv`` to its end; raises OSError or TimeoutExpired."""
    how = {"capture_output": True, "text": True, "errors": "replace", "check": False}
    return subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=timeout, **how)
