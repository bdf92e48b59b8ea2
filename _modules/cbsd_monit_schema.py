"""
The pillar vocabulary of ``cbsd_monit``: what may be written, what it means, and for which env.

The tables below are the vocabulary. Everything else in this file only looks things up in them: a new key is a new row, and
the documentation is generated from the same rows (``schema``). Nothing here reads pillar, files or the clock: the SLS passes
the pillar's ``cbsd_monit`` mapping as an argument, plain data comes out.

Values are accepted by allow-list, one per type of field, and never quoted into harmlessness: most of them end up in
monit's configuration, in an argument list run by root, or in a name that CBSD evaluates. Two types of field are wider
because their text is data to monit alone: ``regex`` (any printable ASCII; rendered as an escaped monit string) and ``raw``
(monit's own language). ``text`` (a silence's reason) may hold letters of any language.

:depends: none
"""

import copy
import datetime
import difflib
import fnmatch
import ipaddress
import math
import re

from salt.exceptions import SaltInvocationError

ENV = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}"
CHECK = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
FACT = r"%%[A-Z][A-Z0-9_]*%%"

# Types of fields that are strings: the whole value must match. What the error calls it, and the allow-list.
STRINGS = {
    "env": ("the name of an env (letters, digits, _ and -)", ENV),
    "word": ("a name (letters, digits, _, . and -)", r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"),
    "glob": ("a name or glob (letters, digits, _, ., -, *, ?, [ ])", r"[A-Za-z0-9_.*?\[\]!-]{1,253}"),
    "path": ("an absolute path (letters, digits and _.@+,:-; no ..)", r"/|(/[A-Za-z0-9_.@+,:-]+)+/?"),
    "url_path": (
        "the path of a URL (/ and letters, digits, _.,:;@=&?+!*-, not yet encoded; no ..)",
        rf"/([A-Za-z0-9_.,:;@=&?+!*/-]|{FACT})*",
    ),
    "place": ("a path, absolute or relative (no ..)", r"/?[A-Za-z0-9_.@+,:-]+(/[A-Za-z0-9_.@+,:-]+)*/?"),
    "url": ("an https address", r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9_.@+-]+)*/?"),
    "host": ("a host name, with or without a port", rf"([A-Za-z0-9.-]|{FACT})+(:[0-9]{{1,5}})?"),
    "header": ("letters, digits, blanks and .,:;/=@+*_()-", rf"([A-Za-z0-9 .,:;/=@+*_()-]|{FACT})*"),
    "arg": ("an argument (letters, digits, blanks and _./:=,@%+-; no ..)", r"[A-Za-z0-9_./:=,@%+ -]+"),
    "text": ("a sentence without quotes and shell characters", r"[\w .,:;!?()#/@+%=-]{1,200}"),
    "regex": ("a regular expression in printable ASCII", r"[ -~]{1,500}"),
    "salt_url": ("a file on the Salt file server, salt://…", r"salt://[A-Za-z0-9_./-]+(\?saltenv=[A-Za-z0-9_.-]+)?"),
}
TYPES = {
    **{name: row[0] for name, row in STRINGS.items()},
    "bool": "true or false",
    "int": "a whole number",
    "number": "a number",
    "port": "a port number 1-65535",
    "duration": "a duration such as 10s, 5m, 1h, 1d, or seconds",
    "days": "a duration of whole days such as 30d",
    "percent": "a percentage such as 50%",
    "choice": "one of a few words",
    "address": "an IP address, or ipv4 or ipv6 for the env's first one",
    "time": "a time such as 2027-01-01T06:00:00Z",
    "threshold": "a number 1-64, or {failures: N, within: M} with N <= M <= 64",
    "ladder": "a step or a list of steps: restart, start, stop, alert, event, {service_restart: NAME}, {command: [PROGRAM, ARG]}",
    "command": "a list: a program's absolute path and its arguments",
    "headers": "a mapping of HTTP header to value",
    "name": "a name, or false",
    "raw": "monit's own language, without set and include",
    "section": "a mapping",
    "map": "a mapping of names",
    "list": "a list",
    "checks": "a mapping of checks by name",
    "any": "any data",
}
STEPS = ("restart", "start", "stop", "alert", "event")


def _row(kind, default=None, doc="", **more):
    """Return one row of a table: the field's type, its default, what it means, and limits."""
    return {"type": kind, "default": default, "doc": doc, **more}


LIMIT = {"min": 1, "max": 64}
INHERITED = {
    "interval": _row("duration", "30s", "time from one run of a check to the next", unit="s", min=1, max=86400),
    "timeout": _row("duration", "5s", "how long one run may take", unit="s", min=1, max=3600),
    "failure_threshold": _row("threshold", 3, "failed runs until the check counts as failed"),
    "success_threshold": _row("int", 1, "good runs until it counts as good again", **LIMIT),
    "start_period": _row("duration", "60s", "time after a start in which failures do not count", unit="s"),
    "on_failure": _row("ladder", "restart", "what to do, step by step, while it does not help"),
    "restart": _row("section", None, "how often and how fast", of="restart"),
}
POLICY = {**INHERITED, "heal": _row("bool", True, "false: watch and report, never act")}

SECTIONS = {
    "cbsd_monit": {
        "lookup": _row("section", None, "paths and names, only where the default is wrong", of="lookup"),
        "monit": _row("section", None, "the node's monit", of="monit"),
        "defaults": _row("section", None, "inherited by node, group, env and check; the nearer wins", of="policy"),
        "budget": _row("section", None, "bounds of healing on one node", of="budget"),
        "nodes": _row("map", None, "by minion id or glob", keys="glob", of="node"),
        "profiles": _row("map", None, "reusable sets of checks", keys="word", of="profile"),
        "groups": _row("map", None, "envs by glob or emulator", keys="word", of="group"),
        "envs": _row("map", None, "jails and VMs by CBSD name", keys="env", of="env"),
        "silences": _row("list", None, "times in which nothing is healed or announced", of="silence"),
        "template": _row("salt_url", None, "template of the envs' rules instead of the shipped one"),
        "events": _row("any", None, "settings of the event bus"),
    },
    "lookup": {
        "workdir": _row("path", None, "CBSD's work directory; else what rc.conf says, else /usr/jails"),
        "distdir": _row("path", "/usr/local/cbsd", "where CBSD itself is installed"),
        "rc_conf": _row("path", "/etc/rc.conf", "where CBSD's work directory is told"),
        "cbsd": _row("path", "/usr/local/bin/cbsd", "program"),
        "jls": _row("path", "/usr/sbin/jls", "program"),
        "jexec": _row("path", "/usr/sbin/jexec", "program"),
        "vmm": _row("path", "/dev/vmm", "directory with one node per running VM"),
        "boot_id": _row("path", None, "file whose content is the boot's id; else the kernel is asked"),
        "libexec": _row("path", "/usr/local/libexec/cbsd_monit", "directory of wake and the agent"),
        "config": _row("path", "/usr/local/etc/cbsd_monit.json", "the agent's configuration"),
        "state": _row("path", "/var/db/cbsd_monit", "directory of the agent's data"),
        "run": _row("path", "/var/run/cbsd_monit", "directory of locks, markers and monit's socket"),
        "monit": _row("path", "/usr/local/bin/monit", "program"),
        "monitrc": _row("path", "/usr/local/etc/monitrc", "monit's configuration"),
        "monit_start": _row("command", ["/usr/sbin/service", "monit", "onestart"], "starts monit"),
        "monitrc_sample": _row("path", "/usr/local/etc/monitrc.sample", "copied where there is no monitrc"),
        "cron": _row("path", "/usr/local/etc/cron.d/cbsd_monit", "file with the line that runs sync"),
        "python": _row("path", None, "interpreter of the agent; else Salt's own"),
        "package": _row("name", "monit", "package of monit; false: it is there already"),
        "service": _row("name", "monit", "service of monit; false: started by monit_start, watched by cron"),
        "remove_package": _row("bool", False, "clean removes the package too"),
        "skeletons": _row("list", [], "skeletons of your own profiles, paths or names below WORKDIR/share", of="place"),
        "module_url": _row("url", "https://github.com/cbsd/modules-monit.git", "CBSD's monit module"),
        "rootgroup": _row("word", "wheel", "group of root"),
    },
    "monit": {
        "poll": _row("duration", "10s", "monit's cycle", unit="s", min=1, max=3600, whole=True),
        "start_delay": _row("duration", "0s", "wait after a boot of the node", unit="s", max=86400, whole=True),
        "httpd": _row("section", None, "monit's control socket", of="httpd"),
        "include": _row("choice", "publish", "what monitrc includes", choices=["publish", "glob"]),
    },
    "httpd": {"unixsocket": _row("path", None, "default: monit.sock in lookup:run")},
    "policy": POLICY,
    "restart": {
        "attempts": _row("int", 3, "attempts within interval", min=0, max=1000),
        "interval": _row("duration", "30m", "the time attempts are counted in", unit="s", min=1),
        "delay": _row("duration", "15s", "wait before the second attempt", unit="s"),
        "delay_function": _row(
            "choice", "exponential", "how the wait grows", choices=["constant", "exponential"]
        ),
        "max_delay": _row("duration", "5m", "the longest wait", unit="s"),
        "jitter": _row("number", 0.25, "share of the wait that is random", min=0, max=1),
        "reset_after": _row("duration", "10m", "healthy time that clears the count", unit="s"),
        "mode": _row("choice", "fail", "when attempts are used up: give up, or wait", choices=["fail", "delay"]),
        "timeout": _row("duration", "300s", "how long one attempt may take", unit="s", min=1),
    },
    "budget": {
        "max_concurrent": _row("int", 1, "heals at the same time on a node", min=1, max=1000),
        "storm_threshold": _row("percent", "50%", "share of failing envs that stops healing"),
        "storm_min": _row("int", 5, "and at least so many of them", min=1, max=100000),
        "storm_window": _row("duration", "2m", "within this time", unit="s"),
        "boot_grace": _row("duration", "10m", "no healing after a boot of the node", unit="s"),
    },
    "node": {
        "defaults": _row("section", None, "nearer than the fleet's", of="policy"),
        "monit": _row("section", None, "nearer than the fleet's", of="monit"),
        "budget": _row("section", None, "nearer than the fleet's", of="budget"),
        "checks": _row("checks", None, "checks of the node itself", scope="node"),
        "envs": _row("map", None, "as envs, on this node only, and nearer", keys="env", of="env"),
    },
    "profile": {"checks": _row("checks", None, "", scope="env")},
    "group": {
        "match": _row("list", None, "globs of env names", of="glob"),
        "emulator": _row("choice", None, "only these", choices=["jail", "bhyve"]),
        "profiles": _row("list", None, "profiles by name", of="word"),
        "checks": _row("checks", None, "nearer than the profiles'", scope="env"),
        **POLICY,
    },
    "env": {
        "profiles": _row("list", None, "profiles by name", of="word"),
        "depends_on": _row("list", None, "envs that have to be well before this one is healed", of="env"),
        "checks": _row("checks", None, "nearer than the profiles'", scope="env"),
        "raw": _row("raw", None, "monit's own language"),
        "template": _row("salt_url", None, "template of this env's rules"),
        **POLICY,
    },
    "silence": {
        "env": _row("env", None, "which env"),
        "group": _row("word", None, "which group"),
        "node": _row("glob", None, "which nodes"),
        "until": _row("time", None, "when it ends", required=True),
        "reason": _row("text", "", "why"),
        "by": _row("text", "pillar", "who"),
    },
    "failure_threshold": {"failures": _row("int", None, "", required=True, **LIMIT), "within": _row("int", None, "", required=True, **LIMIT)},
}

ADDRESS = {"address": _row("address", None, "default: the env's first address; on a node 127.0.0.1")}
TLS = {
    "tls": _row("bool", False, "speak TLS"),
    "verify": _row("bool", False, "the certificate's chain must be trusted (needs tls)"),
    "certificate_valid": _row("days", None, "the certificate must last so long (needs tls)", unit="days"),
}
PROGRAM = {
    "in": _row("choice", "jail", "where it runs", choices=["jail", "host"]),
    "command": _row("command", None, "0: well", required=True),
}
BOTH = ["env", "node"]
CHECKS = {
    "running": {"doc": "the env runs", "scope": ["env"], "fields": {}},
    "tcp": {"doc": "a TCP port accepts", "scope": BOTH, "fields": {"port": _row("port", None, "", required=True), **ADDRESS}},
    "udp": {"doc": "a UDP port is not refused", "scope": BOTH, "fields": {"port": _row("port", None, "", required=True), **ADDRESS}},
    "http": {
        "doc": "an HTTP or HTTPS request is answered",
        "scope": BOTH,
        "fields": {
            "port": _row("port", None, "default: 80, with tls 443"),
            "path": _row("url_path", "/", "with the query, if any"),
            "method": _row("choice", "GET", "", choices=["GET", "HEAD"]),
            "status": _row("int", None, "default: below 400", min=100, max=599),
            "content": _row("regex", None, "must match the body; POSIX extended"),
            "hostheader": _row("host", None, "the Host header"),
            "headers": _row("headers", None, "sent with the request"),
            **ADDRESS,
            **TLS,
        },
    },
    "tls": {
        "doc": "a TLS handshake succeeds",
        "scope": BOTH,
        "fields": {
            "port": _row("port", 443, ""),
            "verify": TLS["verify"],
            "certificate_valid": TLS["certificate_valid"],
            **ADDRESS,
        },
    },
    "ping": {
        "doc": "an ICMP echo is answered",
        "scope": BOTH,
        "fields": {
            "count": _row("int", 3, "requests of which one must be answered", min=1, max=20),
            "size": _row("int", 64, "bytes of a request", min=8, max=1492),
            **ADDRESS,
        },
    },
    "exec": {"doc": "a program in the jail or on the host ends with 0", "scope": BOTH, "fields": PROGRAM},
    "service": {
        "doc": "an rc.d service of the jail runs",
        "scope": ["env"],
        "fields": {"name": _row("word", None, "the service", required=True)},
    },
    "unix": {
        "doc": "a UNIX socket in the jail accepts (asked by nc(1) in the jail)",
        "scope": ["env"],
        "fields": {"path": _row("path", None, "as seen in the jail", required=True)},
    },
    "filesystem": {
        "doc": "a file system of the node has room",
        "scope": ["node"],
        "fields": {
            "path": _row("path", None, "a path on it", required=True),
            "space": _row("percent", None, "used at most"),
            "inodes": _row("percent", None, "used at most"),
        },
    },
    "system": {
        "doc": "load, processor and memory of the node stay below limits",
        "scope": ["node"],
        "fields": {
            **{f"loadavg_{n}m": _row("number", None, "", min=0.01, max=100000) for n in (1, 5, 15)},
            **{k: _row("percent", None, "") for k in ("cpu", "cpu_user", "cpu_system", "memory", "swap")},
        },
    },
    "process": {"doc": "processes of the jail", "scope": [], "fields": {}},
    "file": {"doc": "a file of the jail", "scope": [], "fields": {}},
    "resource": {"doc": "what the jail uses, by rctl", "scope": [], "fields": {}},
}
# monit's protocol tests: port (None: has no usual one) and transport.
PROTOCOLS = {
    "clamav": 3310, "dns": 53, "dwp": None, "fail2ban": None, "ftp": 21, "gps": 2947, "imap": 143, "imaps": 993,
    "ldap2": 389, "ldap3": 389, "lmtp": 24, "memcache": 11211, "mongodb": 27017, "mqtt": 1883, "mysql": 3306,
    "mysqls": 3306, "nntp": 119, "ntp3": 123, "pgsql": 5432, "pop": 110, "pops": 995, "postfix-policy": None,
    "radius": 1812, "rdate": 37, "redis": 6379, "rsync": 873, "sieve": 4190, "sip": 5060, "smtp": 25, "smtps": 465,
    "spamassassin": 783, "ssh": 22, "tns": 1521,
}  # fmt: skip
UDP = {"dns": ["udp", "tcp"], "sip": ["tcp", "udp"], "ntp3": ["udp"], "radius": ["udp"]}
IMPLICIT_TLS = ("imaps", "mysqls", "pops", "smtps")
for _name, _port in PROTOCOLS.items():
    _fields = {"port": _row("port", _port, "", required=_port is None), **ADDRESS}
    if _name in UDP:
        _fields["transport"] = _row("choice", UDP[_name][0], "", choices=UDP[_name])
    else:
        _fields.update(TLS)
    CHECKS[_name] = {"doc": f"the server answers monit's {_name} test", "scope": BOTH, "fields": _fields}


class _Expected(Exception):
    """A value is not what its field asks for; the text says what that would be."""


class _Errors(list):
    """All that is wrong with a pillar, each as ``path: message``."""

    def say(self, path, message):
        line = f"{':'.join(path)}: {message}"
        if line not in self:
            self.append(line)

    def expected(self, path, what, value, secret=False):
        got = "a value that is not shown" if secret else _shown(value)
        hint = ""
        if isinstance(value, bool) and what != TYPES["bool"]:
            hint = " (YAML reads on, off, yes and no as true and false: put it in quotes)"
        self.say(path, f"expected {what}, got {got}{hint}")

    def unknown(self, path, key, known):
        near = difflib.get_close_matches(str(key), known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        self.say([*path, _part(key)], f"unknown key, {hint}")


def _shown(value):
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _part(key):
    """Return a key as a part of a path: as it is when it is harmless to print."""
    return key if isinstance(key, str) and re.fullmatch(r"[\w.*?\[\]!-]+", key, re.ASCII) else _shown(key)


# --- Reading values: each reader takes the value and its row, returns the normal form or raises _Expected.


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _Expected
    return int(value) if value == int(value) else value


def _bounded(value, row, unit=""):
    low, high = row.get("min", 0), row.get("max", 10**9)
    if not low <= value <= high:
        raise _Expected(f"{TYPES[row['type']]} from {low}{unit} to {high}{unit}")
    return value


def _read_bool(value, row):
    if not isinstance(value, bool):
        raise _Expected
    return value


def _read_int(value, row):
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Expected(f"a whole number {row.get('min', 0)}-{row['max']}")
    return _bounded(value, row)


def _read_number(value, row):
    return _bounded(_number(value), row)


def _read_port(value, row):
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise _Expected
    return value


UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _read_duration(value, row):
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", value, re.ASCII)
        if not match:
            raise _Expected
        value = float(match[1]) * UNITS[match[2]]
    value = _bounded(_number(value), row, "s")
    if row.get("whole") and value != int(value):
        raise _Expected("a duration of whole seconds")
    return value


def _read_days(value, row):
    """Days: ``30d``, or the number that an earlier reading made of it."""
    if isinstance(value, str):
        value = _read_duration(value, {"type": "days"}) / 86400
    value = _number(value)
    if not isinstance(value, int) or not 1 <= value <= 3650:
        raise _Expected
    return value


def _read_percent(value, row):
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,2})?%", value, re.ASCII):
            raise _Expected
        value = round(float(value[:-1]) / 100, 6)
    value = _number(value)
    if not 0 < value <= 1:
        raise _Expected
    return value


def _read_choice(value, row):
    if not isinstance(value, str) or value not in row["choices"]:
        raise _Expected(f"one of {', '.join(row['choices'])}")
    return value


def _read_string(value, row):
    """Strings of every type in STRINGS: the allow-list of the type, and no way out of a directory."""
    kind = row["type"]
    flags = 0 if kind == "text" else re.ASCII
    if not isinstance(value, str) or not re.fullmatch(STRINGS[kind][1], value, flags):
        raise _Expected
    if kind != "regex" and ".." in re.split(r"[/:=, ]", value):
        raise _Expected
    if kind == "text" and not value.isprintable():
        raise _Expected
    if kind == "regex":
        try:
            re.compile(value)
        except re.error as err:
            raise _Expected(f"a regular expression ({err})") from err
    return value


def _read_name(value, row):
    return False if value is False else _read_string(value, {"type": "word"})


def _read_address(value, row):
    if value in ("ipv4", "ipv6"):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9A-Fa-f:.]{2,45}", value, re.ASCII):
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            pass
    raise _Expected


def _read_time(value, row):
    """Return seconds since 1970; a time without a zone is UTC, because YAML turns ``…Z`` into just that."""
    if isinstance(value, str) and re.fullmatch(r"[0-9T :.Z+-]{10,35}", value, re.ASCII):
        try:
            value = datetime.datetime.fromisoformat(re.sub("Z$", "+00:00", value))
        except ValueError as err:
            raise _Expected from err
    elif isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=datetime.timezone.utc)
        return int(value.timestamp())
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**11:
        raise _Expected
    return value


def _read_threshold(value, row):
    if isinstance(value, dict):
        table = SECTIONS["failure_threshold"]
        if set(value) != set(table):
            raise _Expected
        value = {key: _read_int(value[key], table[key]) for key in table}
        if value["failures"] > value["within"]:
            raise _Expected
        return value
    try:
        return _read_int(value, LIMIT)
    except _Expected as err:
        raise _Expected from err


def _read_command(value, row):
    if not isinstance(value, list) or not 1 <= len(value) <= 32:
        raise _Expected
    program = _read_string(value[0], {"type": "path"})
    if program.endswith("/"):
        raise _Expected
    return [program, *(_read_string(arg, {"type": "arg"}) for arg in value[1:])]


def _read_ladder(value, row):
    steps = []
    rungs = value if isinstance(value, list) else [value]
    if not 1 <= len(rungs) <= 16:
        raise _Expected
    for rung in rungs:
        if isinstance(rung, str) and rung in STEPS:
            steps.append(rung)
        elif isinstance(rung, dict) and list(rung) == ["command"]:
            steps.append({"command": _read_command(rung["command"], row)})
        elif isinstance(rung, dict) and list(rung) == ["service_restart"]:
            steps.append({"service_restart": _read_string(rung["service_restart"], {"type": "word"})})
        else:
            raise _Expected
    return steps


def _read_headers(value, row):
    if not isinstance(value, dict) or not value or len(value) > 20:
        raise _Expected
    for name, text in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name, re.ASCII):
            raise _Expected("header names of letters, digits and -")
        try:
            _read_string(text, {"type": "header"})
        except _Expected as err:
            raise _Expected(f"in the header {name} {TYPES['header']}") from err
    return dict(value)


def _read_raw(value, row):
    """
    Accept monit statements that concern the env only.

    ``set`` and ``include`` change the whole node. monit reads statements wherever they stand, not only at the start of a
    line, so the words are refused outside of double-quoted strings. That is only certain to mean the same to monit and to
    this reader while strings end on their line and ``'`` (which monit extends to the last one of a line) is not used.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > 20000:
        raise _Expected
    for number, line in enumerate(value.split("\n"), 1):
        if re.search(r"[^\t -~]", line):
            raise _Expected(f"printable ASCII only (line {number})")
        if line.lstrip().startswith("#"):
            continue
        if line.count('"') % 2:
            raise _Expected(f"a closing double quote on the same line (line {number})")
        bare = re.sub(r'"[^"]*"', " ", line)
        if "'" in bare:
            raise _Expected(f"double quotes instead of single ones (line {number})")
        for word in ("set", "include"):
            if re.search(rf"(?<![A-Za-z0-9_-]){word}(?![A-Za-z0-9_-])", bare, re.I):
                raise _Expected(f"no {word!r}, which changes the whole node (line {number})")
    return value


READERS = {
    "bool": _read_bool,
    "int": _read_int,
    "number": _read_number,
    "port": _read_port,
    "duration": _read_duration,
    "days": _read_days,
    "percent": _read_percent,
    "choice": _read_choice,
    "address": _read_address,
    "name": _read_name,
    "time": _read_time,
    "threshold": _read_threshold,
    "command": _read_command,
    "ladder": _read_ladder,
    "headers": _read_headers,
    "raw": _read_raw,
    **dict.fromkeys(STRINGS, _read_string),
}
SECRET = ("headers", "raw")


class _Reader:
    """Reads one pillar: walks it along the tables and collects what is wrong."""

    def __init__(self, spec):
        self.spec = spec
        self.errors = _Errors()

    def value(self, value, row, path):
        kind = row["type"]
        composite = getattr(self, f"_{kind}", None)
        if composite:
            return composite(value, row, path)
        try:
            return READERS[kind](value, row)
        except _Expected as err:
            self.errors.expected(path, str(err) or TYPES[kind], value, kind in SECRET)
        return None

    def section(self, value, table, path):
        """Read a mapping whose keys are the rows of ``table``; keys that are wrong are left out."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.errors.expected(path, "a mapping", value)
            return {}
        result = {}
        for key in value:
            if key not in table:
                self.errors.unknown(path, key, table)
            elif value[key] not in (None, "") or table[key].get("required"):
                read = self.value(value[key], table[key], [*path, key])
                if read is not None:
                    result[key] = read
        for key, row in table.items():
            if row.get("required") and key not in value:
                self.errors.say([*path, key], f"missing: {TYPES[row['type']]}")
        return result

    def _section(self, value, row, path):
        read = self.section(value, SECTIONS[row["of"]], path)
        if row["of"] == "silence" and isinstance(value, dict) and not {"env", "group", "node"} & set(value):
            self.errors.say(path, "missing: env, group or node")
        if row["of"] == "group" and isinstance(value, dict) and not {"match", "emulator"} & set(value):
            self.errors.say(path, "missing: match or emulator")
        return read

    def _map(self, value, row, path):
        if not isinstance(value, dict):
            self.errors.expected(path, "a mapping", value)
            return {}
        result = {}
        for name in value:
            try:
                _read_string(name, {"type": row["keys"]})
            except _Expected:
                self.errors.expected([*path, _part(name)], TYPES[row["keys"]], name)
                continue
            result[name] = self._section(value[name], row, [*path, name])
        return result

    def _list(self, value, row, path):
        if row["of"] in STRINGS and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            self.errors.expected(path, f"a list of {row['of']}s", value)
            return []
        if row["of"] in STRINGS:
            read = [self.value(item, {"type": row["of"]}, [*path, str(n)]) for n, item in enumerate(value)]
        else:
            read = [self._section(item, row, [*path, str(n)]) for n, item in enumerate(value)]
        return [item for item in read if item is not None]

    def _any(self, value, row, path):
        """Data for later: its shape is not ours yet, its strings are held to ``text`` all the same."""
        if isinstance(value, dict):
            for key in value:
                self.value(key, {"type": "text"}, [*path, _part(key)])
            return {key: self._any(value[key], row, [*path, _part(key)]) for key in value}
        if isinstance(value, list):
            return [self._any(item, row, [*path, str(n)]) for n, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return self.value(value, {"type": "text"}, path)

    def _checks(self, value, row, path):
        if not isinstance(value, dict):
            self.errors.expected(path, "a mapping of checks by name", value)
            return {}
        result = {}
        for name in value:
            where = [*path, _part(name)]
            if not isinstance(name, str) or not re.fullmatch(CHECK, name, re.ASCII) or name == "env":
                self.errors.expected(where, "a check's name (a letter or digit, then also _ and -; not env)", name)
            elif value[name] is False:
                result[name] = False
            else:
                result[name] = self.check(value[name], row["scope"], where, name)
        for lower in {name.lower() for name in result}:
            twins = sorted(name for name in result if name.lower() == lower)
            if len(twins) > 1:
                self.errors.say([*path, twins[1]], f"differs from {twins[0]!r} only in case, which monit ignores")
        return result

    def check(self, value, scope, path, name):
        if not isinstance(value, dict):
            self.errors.expected(path, "a mapping", value)
            return {}
        kind = value.get("type")
        if "type" in value:
            if not isinstance(kind, str) or kind not in CHECKS:
                near = difflib.get_close_matches(str(kind), CHECKS, 1, 0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                self.errors.expected([*path, "type"], f"a check type{hint}", kind)
                return {}
            if scope not in CHECKS[kind]["scope"]:
                yet = " yet" if not CHECKS[kind]["scope"] else ""
                owner = {"env": "an env", "node": "a node"}[scope]
                self.errors.say([*path, "type"], f"{kind!r} is not supported for {owner}{yet}")
                return {}
            kinds = [kind]
        else:
            kinds = self.inherited(name, scope, path)
            if not kinds:
                self.errors.say([*path, "type"], f"missing, and no profile or group gives a check {name!r} to change")
                return {}
        # A check without a type changes one that is given elsewhere; where those differ in type, one has to fit.
        tries = []
        for kind in kinds:
            attempt = _Reader(self.spec)
            read = attempt.section(value, _fields(kind, scope, whole="type" in value), path)
            if "type" in value:
                read["type"] = kind
                for part, message in _rules(read, scope):
                    attempt.errors.say([*path, *part], message)
            if not attempt.errors:
                return read
            tries.append(attempt.errors)
        self.errors.extend(line for line in tries[0] if line not in self.errors)
        return {}

    def inherited(self, name, scope, path):
        """Return the types that a check of this name may have where the entry at ``path`` inherits from."""

        def part(*keys):
            value = self.spec
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            return value if isinstance(value, dict) else {}

        def kinds(entry):
            profiles = entry.get("profiles") if isinstance(entry, dict) else None
            profiles = [profiles] if isinstance(profiles, str) else profiles if isinstance(profiles, list) else []
            owners = [entry, *(part("profiles", p) for p in profiles if isinstance(p, str))]
            for owner in owners:
                checks = owner.get("checks") if isinstance(owner, dict) else None
                check = checks.get(name) if isinstance(checks, dict) else None
                kind = check.get("type") if isinstance(check, dict) else None
                if isinstance(kind, str) and scope in CHECKS.get(kind, {}).get("scope", ()):
                    yield kind

        entries = []
        if scope == "node":
            entries = list(part("nodes").values())
        elif path[1] == "groups":
            entries = [part("groups", path[2])]
        elif "envs" in path:
            env = path[path.index("envs") + 1]
            entries = [entry for entry in part("groups").values() if _matches(entry, env)]
            entries += [part("envs", env), *(part("nodes", node, "envs", env) for node in part("nodes"))]
        return sorted({kind for entry in entries for kind in kinds(entry)})

    def slots(self, value, path):
        """Refuse what Salt would execute when it becomes a state's argument, wherever it stands."""
        if isinstance(value, dict):
            for key in value:
                self.slots(key, [*path, _part(key)])
                self.slots(value[key], [*path, _part(key)])
        elif isinstance(value, list):
            for number, item in enumerate(value):
                self.slots(item, [*path, str(number)])
        elif isinstance(value, str) and value.lstrip().startswith("__slot__:"):
            self.errors.say(path, "a value may not begin with __slot__:, Salt would execute it")

    def references(self, read):
        """Names that are used must be given, and envs must not wait for each other."""
        owners = [(["groups", n], e) for n, e in read["groups"].items()]
        owners += [(["envs", n], e) for n, e in read["envs"].items()]
        for node, entry in read["nodes"].items():
            owners += [(["nodes", node, "envs", n], e) for n, e in entry.get("envs", {}).items()]
        for path, entry in owners:
            for number, profile in enumerate(entry.get("profiles", [])):
                if profile not in read["profiles"]:
                    near = difflib.get_close_matches(profile, read["profiles"], 1, 0.5)
                    hint = f", did you mean {near[0]!r}?" if near else ""
                    self.errors.say(["cbsd_monit", *path, "profiles", str(number)], f"no profile {profile!r}{hint}")
            if "raw" in entry and "raw" in entry.get("checks", {}):
                self.errors.say(["cbsd_monit", *path, "checks", "raw"], "the name is taken by the env's raw text")
        for number, silence in enumerate(read["silences"]):
            if "group" in silence and silence["group"] not in read["groups"]:
                self.errors.say(["cbsd_monit", "silences", str(number), "group"], f"no group {silence['group']!r}")
        waits = {name: list(entry.get("depends_on", [])) for name, entry in read["envs"].items()}
        for path, entry in owners:
            if path[0] == "nodes":
                waits.setdefault(path[3], []).extend(entry.get("depends_on", []))
        for name in sorted(waits):
            seen, ahead = set(), list(waits[name])
            while ahead:
                env = ahead.pop()
                if env == name:
                    self.errors.say(["cbsd_monit", "envs", name, "depends_on"], f"{name!r} would wait for itself")
                    break
                if env not in seen:
                    seen.add(env)
                    ahead += waits.get(env, [])


def _matches(group, env, emulator=None):
    """Does the group (read or not) hold the env? With no emulator given, any will do."""
    if not isinstance(group, dict):
        return False
    globs = group.get("match")
    globs = [globs] if isinstance(globs, str) else globs if isinstance(globs, list) else None
    if globs is not None and not any(isinstance(g, str) and fnmatch.fnmatchcase(env, g) for g in globs):
        return False
    return emulator is None or group.get("emulator") in (None, emulator)


def _fields(kind, scope, whole):
    """Return the rows of a check of this type; ``whole`` is False for one that only changes an inherited one."""
    inherited = dict(INHERITED)
    fields = dict(CHECKS[kind]["fields"])
    if scope == "node":
        for key in ("start_period", "restart"):
            del inherited[key]
        fields.pop("in", None)
    table = {"type": _row("word"), **inherited, **fields}
    if not whole:
        table = {key: {**row, "required": False} for key, row in table.items()}
    return table


def _rules(check, scope):
    """Yield ``(path, message)`` for what is wrong between the fields of a whole check."""
    kind = check["type"]
    if check.get("method") == "HEAD" and "content" in check:
        yield ["content"], "the answer to HEAD has no content"
    if kind != "tls" and kind not in IMPLICIT_TLS and not check.get("tls"):
        for key in ("verify", "certificate_valid"):
            if key in check and check[key] is not False:
                yield [key], "needs tls: true"
    if kind in ("system", "filesystem"):
        limits = [key for key in CHECKS[kind]["fields"] if key != "path"]
        if not set(limits) & set(check):
            yield [], f"missing: at least one of {', '.join(limits)}"
    if scope == "node":
        for key, value in check.items():
            if "%%" in str(value):
                yield [key], "a node has no facts to put in"
        if check.get("address") in ("ipv4", "ipv6"):
            yield ["address"], f"expected an IP address, got {check['address']!r}"
        for rung in check.get("on_failure", []):
            if rung not in ("alert", "event"):
                yield ["on_failure"], f"for a node only alert and event, got {_shown(rung)}"


def _defaults(name, **given):
    """Return a whole section: its defaults in normal form, with what is given over them."""
    reader = _Reader({})
    table = SECTIONS[name]
    whole = reader.section({k: row["default"] for k, row in table.items() if row["type"] != "section"}, table, [name])
    return {**whole, **given}


def _merge(*layers):
    """Merge mappings, the later nearer; everything that is no mapping is replaced."""
    result = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict) and isinstance(result.get(key), dict) and key != "failure_threshold":
                value = _merge(result[key], value)
            result[key] = value
    return result


def validate(spec):
    """
    Return the pillar's ``cbsd_monit`` in its normal form: durations in seconds, ladders as lists, defaults filled in.

    A normal form is valid input itself, and stays what it is.

    spec
        The mapping under the pillar key ``cbsd_monit``; ``None`` is an empty one.

    Raises ``SaltInvocationError`` that names every error with its path.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit_schema.validate '{envs: {lb1: {checks: {http: {type: http}}}}}'
    """
    reader = _Reader(spec)
    reader.slots(spec, ["cbsd_monit"])
    table = SECTIONS["cbsd_monit"]
    read = reader.section(spec, table, ["cbsd_monit"])
    for key, row in table.items():
        if row["type"] in ("section", "map"):
            read.setdefault(key, {})
    read.setdefault("silences", [])
    reader.references(read)
    if reader.errors:
        count = len(reader.errors)
        head = f"cbsd_monit: {count} error{'s' if count > 1 else ''} in the pillar"
        raise SaltInvocationError("\n  ".join([head, *reader.errors]))
    read["monit"] = _defaults("monit", **read["monit"])
    read["budget"] = _defaults("budget", **read["budget"])
    read["defaults"] = _merge(_defaults("policy", restart=_defaults("restart")), read["defaults"])
    return copy.deepcopy(read)


def schema():
    """
    Return the vocabulary as plain data: sections, check types and types of fields, for the documentation.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit_schema.schema
    """
    return copy.deepcopy({"sections": SECTIONS, "checks": CHECKS, "types": TYPES, "check": INHERITED})


def for_node(spec, node):
    """
    Return the settings of one node: ``defaults``, ``monit``, ``budget``, ``checks`` and ``envs``.

    Entries of ``nodes`` that match are merged in the order of their names, the one that is the id itself last.

    spec
        The pillar's ``cbsd_monit``.
    node
        Minion id.

    Raises ``SaltInvocationError`` when the pillar is not valid, or for a check that is not whole.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit_schema.for_node '{monit: {poll: 5s}}' hv1.example.net
    """
    spec = validate(spec)
    entries = [spec["nodes"][g] for g in sorted(spec["nodes"]) if g != node and fnmatch.fnmatchcase(node, g)]
    entries.append(spec["nodes"].get(node, {}))
    layer = {key: spec[key] for key in ("defaults", "monit", "budget")}
    settings = _merge(layer, *({k: e[k] for k in layer if k in e} for e in entries))
    checks = _layered({}, *(entry.get("checks", {}) for entry in entries))
    own = {**settings["defaults"], "on_failure": ["alert"]}
    path = ["cbsd_monit", "nodes", node, "checks"]
    settings["checks"] = {name: _whole(checks[name], own, "node", [*path, name]) for name in sorted(checks)}
    settings["envs"] = _merge(spec["envs"], *(entry.get("envs", {}) for entry in entries))
    for name, env in settings["envs"].items():
        if "checks" in env:  # a check's type decides whether it is merged: _merge does not know that
            layers = [entry.get("envs", {}).get(name, {}) for entry in entries]
            layers = [layer["checks"] for layer in [spec["envs"].get(name, {}), *layers] if "checks" in layer]
            env["checks"] = _layered({}, *layers, keep=True)
    return settings


def _layered(checks, *layers, keep=False):
    """Put sets of checks over each other: false takes one away, another type replaces it, else the keys are merged."""
    for layer in layers:
        for name, check in layer.items():
            old = checks.get(name)
            if check is False and not keep:
                checks.pop(name, None)
            elif check is False or not old or check.get("type", old.get("type")) != old.get("type"):
                checks[name] = check
            else:
                checks[name] = _merge(old, check)
    return checks


def _whole(check, policy, scope, path):
    """Return the check with everything it inherits, its type's defaults included."""
    if "type" not in check:
        raise SaltInvocationError(f"{':'.join(path)}:type: missing, and nothing here gives a check {path[-1]!r} to change")
    fields = _fields(check["type"], scope, whole=True)
    errors = [f"{':'.join([*path, key])}: unknown key for a check of type {check['type']}" for key in check if key not in fields]
    errors += [f"{':'.join([*path, *part])}: {message}" for part, message in _rules(check, scope)]
    if errors:
        raise SaltInvocationError("\n  ".join([f"cbsd_monit: {len(errors)} errors in the pillar", *errors]))
    own = [key for key in CHECKS[check["type"]]["fields"] if key in fields]
    result = {key: fields[key]["default"] for key in own if fields[key]["default"] is not None}
    for key in INHERITED:
        if key in fields and key != "restart":
            result[key] = policy[key]
    result.update(check)
    if "restart" in check:
        result["restart"] = _merge(policy["restart"], check["restart"])
    return copy.deepcopy(result)


def effective(spec, node, envs):
    """
    Return the policy of every env of a node that the pillar means: ``{name: policy}``, policy as in ``policy.json``.

    An env is meant by an entry of ``envs``, by a group, or by the node's own ``envs``. Nearer wins: defaults, node, groups
    in the order of their names, env, check.

    spec
        The pillar's ``cbsd_monit``.
    node
        Minion id.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``.

    Raises ``SaltInvocationError`` when the pillar is not valid or an env's name or emulator is not known.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit_schema.effective '{groups: {web: {match: web*}}}' hv1 '[{name: web1, emulator: jail}]'
    """
    spec = validate(spec)
    settings = for_node(spec, node)
    policies = {}
    for env in sorted(envs, key=lambda env: str(env.get("name"))):
        name, emulator = _present(env)
        groups = [g for key, g in sorted(spec["groups"].items()) if _matches(g, name, emulator)]
        own = settings["envs"].get(name)
        if not groups and own is None:
            continue
        entries = [*groups, own or {}]
        policy = _merge(settings["defaults"], *({k: e[k] for k in POLICY if k in e} for e in entries))
        layers = []
        for entry in entries:
            layers += [spec["profiles"][p].get("checks", {}) for p in entry.get("profiles", [])]
            layers.append(entry.get("checks", {}))
        checks = _layered({}, *layers)
        path = ["cbsd_monit", "envs", name, "checks"]
        if "raw" in checks and own and "raw" in own:
            raise SaltInvocationError(f"{':'.join(path)}:raw: the name is taken by the env's raw text")
        lower = [key.lower() for key in checks]
        for key in sorted(checks):
            if lower.count(key.lower()) > 1:
                raise SaltInvocationError(f"{':'.join([*path, key])}: differs from another one only in case")
        policies[name] = {
            "schema": 1,
            "env": name,
            "node": node,
            "origin": "pillar",
            **{key: copy.deepcopy(policy[key]) for key in ("heal", "on_failure", "start_period", "restart")},
            "depends_on": list((own or {}).get("depends_on", [])),
            "checks": {key: _carried(_whole(checks[key], policy, "env", [*path, key])) for key in sorted(checks)},
        }
    return policies


def _present(env):
    """Return name and emulator of an env as the inventory gives them; they are not trusted either."""
    name, emulator = env.get("name"), env.get("emulator")
    if not isinstance(name, str) or not re.fullmatch(ENV, name, re.ASCII):
        raise SaltInvocationError(f"envs: expected {TYPES['env']}, got {_shown(name)}")
    if emulator not in ("jail", "bhyve"):
        raise SaltInvocationError(f"envs:{name}:emulator: expected jail or bhyve, got {_shown(emulator)}")
    return name, emulator


def _carried(check):
    """Return the check as the agent gets it: what it has to run itself is a command."""
    if check["type"] == "service":
        name = check["name"]
        rest = {key: value for key, value in check.items() if key != "name"}
        return {**rest, "service": name, "in": "jail", "command": ["/usr/sbin/service", name, "onestatus"]}
    if check["type"] == "unix":
        return {**check, "type": "exec", "in": "jail", "command": ["/usr/bin/nc", "-z", "-U", check["path"]]}
    return check
