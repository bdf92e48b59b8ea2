"""
monit, as it must be spoken to: over its unix socket, never by its command line.

The command line parses the whole configuration first, so one bad file disables it; it reads names as regular
expressions; it exits 0 when nothing runs.  The socket has none of these.  Only `-t` (is this text good?) and `reload`
(which checks the text before it sends the signal) are its own.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time

import language
from node import AgentError

ACTIONS = ("monitor", "unmonitor")
READING = (
    400  # seconds that monit may need to read a control file: 40,000 services take it one minute
)
TOGETHER = 200  # services in one request
_PLAIN = re.compile(r"[A-Za-z0-9_.=-]+\Z")
PROBES = (
    "exec",
    "service",
    "process",
    "file",
    "resource",
)  # types of checks that are a `check program`
UNASKED = (
    75  # EX_TEMPFAIL: what a probe answers when it cannot find out; neither health nor a failure
)


class Service:
    """One service as monit sees it now."""

    def __init__(self, element):
        def number(tag):
            text = element.findtext(tag)
            return int(text) if text and text.lstrip("-").isdigit() else 0

        self.name = element.findtext("name") or element.get("name")
        self.status = number("status")
        self.monitor = number("monitor")
        self.pending = number("pendingaction")
        self.collected = number("collected_sec") + number("collected_usec") / 1e6
        self.message, self.exit_code = "", 0
        for tag in ("port", "icmp", "unix"):
            for test in element.iter(tag):
                if (test.findtext("responsetime") or "").startswith("-"):
                    self.message = f"{tag} {test.findtext('portnumber') or ''}".strip() + " failed"
        program = element.find("program")
        if program is not None and (program.findtext("status") or "0") != "0":
            self.exit_code = int(program.findtext("status"))
            said = (program.findtext("output") or "").strip().splitlines()
            self.message = (said or [f"exit code {self.exit_code}"])[-1][:200]

    @property
    def failing(self):
        """status 0 alone means nothing: it is also 0 while unmonitored, unchecked, or below the threshold."""
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
        return self.watched and not self.suspect and not self.unasked and self.collected > moment


class Outcome:
    """
    One probe that the agent runs itself, where monit cannot: what its last exit codes mean, in the words of Service.

    ``said`` is the check of the policy, ``last`` how the runs ended: {"codes": oldest first, "words", "at": stamp}.
    """

    watched = True

    def __init__(self, said, last):
        codes = last.get("codes", [])
        asked = [code for code in codes if code != UNASKED]
        self.message, self.collected = last.get("words", ""), (last.get("at") or {}).get("t", 0)
        self.unasked = codes[-1:] == [UNASKED]
        self.suspect = codes[-1:] == [1]
        need, good = said.get("failure_threshold", 3), said.get("success_threshold", 1)
        failures, within = (
            (need["failures"], need["within"]) if isinstance(need, dict) else (need, need)
        )
        bad = False
        for end in range(1, len(asked) + 1):
            if asked[max(0, end - within) : end].count(1) >= failures:
                bad = True
            elif end >= good and not any(asked[end - good : end]):
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
        self.version = tuple(
            int(x)
            for x in re.findall(r"\d+", server.findtext("version") if server is not None else "")
        )
        self.uptime = int(server.findtext("uptime") or 0) if server is not None else 0
        self.incarnation = server.findtext("incarnation") if server is not None else None
        found = (Service(e) for e in root.findall("service"))
        self.services = {s.name: s for s in found}

    def begun_since(self, before, moment):
        """True if monit has read its control file after ``moment``, when its Status was ``before``: a reload makes all services anew."""
        if self.incarnation != before.incarnation:
            return True
        return all(s.collected > moment for s in self.services.values() if s.collected)


class Monit:
    """The monit of this node."""

    def __init__(self, node):
        self.node = node
        self.socket = node.conf.get("socket") or node.in_state("monit.sock")
        self.extra_timeout = 0.0  # seconds, set by who knows how many services an answer is about

    # Speaking

    def _request(self, head, body="", timeout=5.0):
        """One HTTP request over the socket; returns (code, body)."""
        lines = [head + " HTTP/1.0", "Host: localhost", f"Content-Length: {len(body)}"]
        credentials = self._credentials()
        if credentials:
            import base64

            lines.append("Authorization: Basic " + base64.b64encode(credentials.encode()).decode())
        if body:
            lines += ["Content-Type: application/x-www-form-urlencoded", "Cookie: securitytoken=x"]
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(timeout)
            sock.connect(self.socket)
            sock.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            answer = b""
            while True:
                part = sock.recv(65536)
                if not part:
                    break
                answer += part
        head, _, rest = answer.partition(b"\r\n\r\n")
        code = head.split(b" ", 2)[1:2]
        if not code or not code[0].isdigit():
            raise OSError("monit closed the connection")
        return int(code[0]), rest

    def _credentials(self):
        """``user:password`` of an operator's own ``set httpd`` in monitrc: monit then asks for it on the socket as well."""
        text = ""
        with contextlib.suppress(OSError), open(
            self.node.conf["monitrc"], encoding="utf-8"
        ) as handle:
            text = re.sub(r"(?m)^\s*#.*$", "", handle.read())
        word = r"""("[^"]*"|'[^']*'|[^\s:"']+)"""
        for user, password, only in re.findall(rf"\ballow\s+{word}:{word}(\s+read-?only)?", text):
            if not only:
                return f"{language.unquote(user)}:{language.unquote(password)}"
        return None

    def status(self, timeout=5.0):
        """The present Status, or None when no monit answers."""
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
        Ask for ``monitor`` or ``unmonitor`` of services; monit carries it out later.

        Each request wakes monit, which then goes round all of its services: a thousand envs are not asked for one by one. There
        monit takes a name for a pattern, so only plain names go together.
        """
        assert action in ACTIONS
        plain = [name for name in services if _PLAIN.match(name)]
        alone = [name for name in services if not _PLAIN.match(name)]
        for first in range(0, len(plain), TOGETHER):
            some = plain[first : first + TOGETHER]
            words = "&".join(
                "service=" + name.replace("=", "%3D").replace(".", "%5C.") for name in some
            )
            if self._asked("_doaction", f"{words}&action={action}&securitytoken=x") is False:
                alone += some  # one that monit no longer knows spoils the request for all
        for name in alone:
            self._asked(name, f"action={action}&securitytoken=x")

    def _asked(self, page, body):
        """True if monit took it, False if it refused; None if it did not answer in time: then the next pass sees what came of it."""
        try:
            return self._request(f"POST /{page}", body, timeout=30.0)[0] in (200, 302)
        except OSError:
            return None

    def _pidfile(self):
        """(path, pid) of the first pid file there is, or (None, None)."""
        text = ""
        with contextlib.suppress(OSError), open(
            self.node.conf["monitrc"], encoding="utf-8"
        ) as handle:
            text = handle.read()
        match = re.search(r'^\s*set\s+pidfile\s+"?([^\s"]+)', text, re.M)
        for path in [match.group(1)] if match else ["/var/run/monit.pid", "/run/monit.pid"]:
            with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as handle:
                return path, int(handle.read())
        return None, None

    def pid(self):
        """The pid of this monit, or None: a pid file alone proves nothing, it may name a zombie or somebody else."""
        _, pid = self._pidfile()
        if pid is None:
            return None
        found = subprocess.run(
            ["ps", "-o", "stat=", "-o", "comm=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        alive = (
            len(found) > 1
            and not found[0].startswith("Z")
            and os.path.basename(found[1]) == "monit"
        )
        return pid if alive else None

    def hurry(self, version):
        """Have what was asked for done now: 6.0 waits for its next cycle; on 5.33 a signal would fail a slow connect."""
        pid = self.pid() if version >= (6, 0) else None
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    # Its own judgement of a text

    def test(self, path):
        """What ``monit -t`` says against the control file ``path``, or '' if it is good."""
        found = subprocess.run(
            [self.node.conf["monit"], "-t", "-c", path],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=READING,
            stdin=subprocess.DEVNULL,
        )
        return "" if found.returncode == 0 else (found.stderr.strip() or "monit -t failed")

    def reload(self, tested=False):
        """
        Make monit read what is published; raises AgentError with its words.

        monit's own `reload` reads all of it before it sends the signal, because a daemon that cannot read it ends. With
        ``tested`` somebody just did, and the signal is ours: a node of 40,000 services is spared a minute.
        """
        pid = self.pid() if tested else None
        if pid:
            os.kill(pid, signal.SIGHUP)
            return
        found = subprocess.run(
            [self.node.conf["monit"], "-c", self.node.conf["monitrc"], "reload"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=READING,
            stdin=subprocess.DEVNULL,
        )
        if found.returncode:
            raise AgentError(f"monit reload: {found.stderr.strip() or found.stdout.strip()}")

    def start(self):
        """Start the daemon as the node's configuration says."""
        argv = self.node.conf.get("monit_start")
        if not argv:
            raise AgentError(
                "monit does not run and the configuration does not say how to start it"
            )
        path, _ = self._pidfile()
        if path and self.pid() is None:
            os.unlink(path)  # monit would "awaken" whoever has that pid now, and not start
        found = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        if found.returncode:
            raise AgentError(f"{' '.join(argv)}: {(found.stderr or found.stdout).strip()}")

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
