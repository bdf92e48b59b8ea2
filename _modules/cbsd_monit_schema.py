"""
The pillar vocabulary of ``cbsd_monit``: every key, what it may hold, its default, and what it
means.

Tables only. ``cbsd_monit_pillar`` reads a pillar by them, and ``docs/reference.py`` makes
``docs/pillar.md`` of them. A new key is a row; a row about what is done when a check fails also
says which part of that monit does and which the agent.

:depends: none
"""

import copy

ENV = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}"
FACT = r"%%[A-Z][A-Z0-9_]*%%"

# Types of fields that are strings: what the error calls them, and what the whole value has to
# match.
STRINGS = {
    "env": ("the name of an env (letters, digits, _ and -)", ENV),
    "check": (
        "a check's name (a letter or digit, then also _ and -; not env)",
        r"(?!env\Z)[A-Za-z0-9][A-Za-z0-9_-]{0,63}",
    ),
    "word": ("a name (letters, digits, _, . and -)", r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"),
    "glob": (
        "a name or glob (letters, digits, _, ., -, *, ?, [ ])",
        r"[A-Za-z0-9_.*?\[\]!-]{1,253}",
    ),
    "path": (
        "an absolute path (letters, digits and _.@+,:-; no ..)",
        r"/|(/[A-Za-z0-9_.@+,:-]+)+/?",
    ),
    "url_path": (
        "the path of a URL (/ and letters, digits, _.,:;@=&?+!*-, not yet encoded; no ..)",
        rf"/([A-Za-z0-9_.,:;@=&?+!*/-]|{FACT})*",
    ),
    "place": (
        "a path, absolute or relative (no ..)",
        r"/?[A-Za-z0-9_.@+,:-]+(/[A-Za-z0-9_.@+,:-]+)*/?",
    ),
    "url": ("an https address", r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9_.@+-]+)*/?"),
    "host": ("a host name, with or without a port", rf"([A-Za-z0-9.-]|{FACT})+(:[0-9]{{1,5}})?"),
    "header": (
        "letters, digits, blanks and .,:;/=@+*_()-",
        rf"([A-Za-z0-9 .,:;/=@+*_()-]|{FACT})*",
    ),
    "arg": (
        "an argument (letters, digits, blanks and _./:=,@%+-; no ..)",
        r"[A-Za-z0-9_./:=,@%+ -]+",
    ),
    "text": (
        "a sentence without double quotes and shell characters",
        r"[\w .,:;!?()#/@+%='-]{0,200}",
    ),
    "regex": ("a regular expression in printable ASCII", r"[ -~]{1,500}"),
    "salt_url": (
        "a file on the Salt file server, salt://…",
        r"salt://[A-Za-z0-9_./-]+(\?saltenv=[A-Za-z0-9_.-]+)?",
    ),
}
STEPS = ["restart", "start", "stop", "alert", "event"]
STEP = f"{', '.join(STEPS)}, {{service_restart: NAME}}, {{command: [PROGRAM, ARG]}}"
TYPES = {
    **{name: row[0] for name, row in STRINGS.items()},
    "bool": "true or false",
    "int": "a whole number",
    "number": "a number",
    "port": "a port number 1-65535",
    "duration": "a duration such as 10s, 5m, 1h, 1d, or seconds",
    "days": "a duration of whole days such as 30d",
    "bytes": "a number of bytes such as 512m or 2g (powers of 1024)",
    "percent": "a percentage such as 50%",
    "choice": "one of a few words",
    "address": "an IP address, or ipv4 or ipv6 for the env's first one",
    "time": "a time such as 2027-01-01T06:00:00Z",
    "threshold": "a number 1-64, or {failures: N, within: M} with N <= M <= 64",
    "ladder": f"a step or a list of steps: {STEP}",
    "step": f"a step: {STEP}",
    "command": "a list: a program's absolute path and its arguments",
    "dependencies": "a list of envs, each by name or as {env: NAME, restart: true}, and of the"
    " node's own checks, each as {node: CHECK}",
    "dependency": "the name of an env, {env: NAME, restart: true}, or {node: CHECK}",
    "headers": "a mapping of HTTP header to value",
    "name": "a name, or false",
    "raw": "monit's own language, without set and include",
    "section": "a mapping",
    "map": "a mapping of names",
    "list": "a list",
    "checks": "a mapping of checks by name",
    "any": "any data",
}


def _row(kind, default=None, doc="", **more):
    """Return one row of a table: the field's type, its default, what it means, and limits."""
    return {"type": kind, "default": default, "doc": doc, **more}


def _done(kind, default, doc, monit="", agent="", **more):
    """Return a row about a failed check: what monit does about it, and what the agent does."""
    return _row(kind, default, doc, monit=monit, agent=agent, **more)


LIMIT = {"min": 1, "max": 64}
INHERITED = {
    "interval": _done("duration", "30s", "time from one run of a check to the next",
        "`every N cycles` of `monit:poll`, rounded up",
        "where monit cannot run probes: runs them at it", unit="s", min=1, max=86400),
    "timeout": _done("duration", "5s", "how long one run may take",
        "`with timeout N seconds`, rounded up; of each request of `ping`; for a probe 5 s more",
        "ends a probe, and says so", unit="s", min=1, max=3600),
    "failure_threshold": _done("threshold", 3, "failed runs until the check counts as failed",
        "`for N cycles`, `for N times within M cycles`: runs of the check",
        "an env that died has failed at once; a threshold of 1 waits up to 60 s for the others of a"
        " storm"),
    "success_threshold": _done("int", 1, "good runs until it counts as good again",
        "`else if succeeded for N cycles`", "takes it from monit's status", **LIMIT),
    "start_period": _done("duration", "60s", "time after a start in which failures do not count",
        "",
        "the env is `starting` until all checks have succeeded that are due again within it, two of"
        " monit's worst cycles and 90 s, and no longer than that; begins anew with each start and"
        " each heal", unit="s"),
    "on_failure": _done("ladder", "restart", "what to do, step by step, while it does not help",
        "`exec` of `wake`, about every 30 s while it fails: monit itself never acts",
        "one step per attempt, then verified by all checks; with `alert` alone the env is `warning`"
        " and never healed for it, with `event` it is `failing` and the fleet is asked; one that"
        " does not run is `failing` whatever stands here"),
    "restart": _done("section", None, "how often and how fast", "", "each key below", of="restart"),
}  # fmt: skip
POLICY = {
    **INHERITED,
    "heal": _done(
        "bool", True, "false: watch and report, never act", "", "tells what it sees, does nothing"
    ),
}

SECTIONS = {
    "cbsd_monit": {
        "lookup": _row("section", None, "paths and names, only where the default is wrong",
            of="lookup"),
        "monit": _row("section", None, "the node's monit", of="monit"),
        "defaults": _row("section", None,
            "inherited by node, group, env and check; the nearer wins", of="policy"),
        "budget": _row("section", None, "bounds of healing on one node", of="budget"),
        "nodes": _row("map", None, "by minion id or glob", keys="glob", of="node"),
        "profiles": _row("map", None, "reusable sets of checks", keys="word", of="profile"),
        "groups": _row("map", None, "envs by glob or emulator", keys="word", of="group"),
        "envs": _row("map", None, "jails and VMs by CBSD name", keys="env", of="env"),
        "silences": _row("list", None, "times in which nothing is healed or announced",
            of="silence"),
        "template": _row("salt_url", None,
            "template of the envs' rules instead of the shipped one"),
        "events": _row("any", None, "settings of the event bus"),
    },
    "lookup": {
        "workdir": _row("path", None,
            "CBSD's work directory; else what rc.conf says, else /usr/jails"),
        "distdir": _row("path", "/usr/local/cbsd", "where CBSD itself is installed"),
        "rc_conf": _row("path", "/etc/rc.conf", "the file that names CBSD's work directory"),
        "cbsd": _row("path", "/usr/local/bin/cbsd", "program"),
        "jls": _row("path", "/usr/sbin/jls", "program"),
        "jexec": _row("path", "/usr/sbin/jexec", "program"),
        "ps": _row("path", "/bin/ps", "program"),
        "rctl": _row("path", "/usr/bin/rctl", "program"),
        "vmm": _row("path", "/dev/vmm", "directory with one node per running VM"),
        "boot_id": _row("path", None,
            "file whose content is the boot's id; else the kernel is asked"),
        "libexec": _row("path", "/usr/local/libexec/cbsd_monit", "directory of wake and the agent"),
        "config": _row("path", "/usr/local/etc/cbsd_monit.json", "the agent's configuration"),
        "state": _row("path", "/var/db/cbsd_monit", "directory of the agent's data"),
        "run": _row("path", "/var/run/cbsd_monit",
            "directory of locks, markers and monit's socket"),
        "monit": _row("path", "/usr/local/bin/monit", "program"),
        "monitrc": _row("path", "/usr/local/etc/monitrc", "monit's configuration"),
        "monit_start": _row("command", ["/usr/sbin/service", "monit", "onestart"], "starts monit"),
        "minion_restart": _row("command", ["/usr/sbin/service", "salt_minion", "restart"],
            "restarts the Salt minion, once, for the events"),
        "monitrc_sample": _row("path", "/usr/local/etc/monitrc.sample",
            "copied where there is no monitrc"),
        "cron": _row("path", "/usr/local/etc/cron.d/cbsd_monit",
            "file with the line that runs sync"),
        "python": _row("path", None, "interpreter of the agent; else Salt's own"),
        "package": _row("name", "monit", "package of monit; false: it is there already"),
        "service": _row("name", "monit",
            "service of monit; false: started by monit_start, watched by cron"),
        "remove_package": _row("bool", False, "clean removes the package too"),
        "skeletons": _row("list", [],
            "skeletons of your own profiles, paths or names below WORKDIR/share", of="place"),
        "module_url": _row("url", "https://github.com/cbsd/modules-monit.git",
            "CBSD's monit module"),
        "rootgroup": _row("word", "wheel", "group of root"),
    },
    "monit": {
        "poll": _row("duration", "10s", "monit's cycle", unit="s", min=1, max=3600, whole=True),
        "start_delay": _row("duration", "0s", "wait after a boot of the node", unit="s", max=86400,
            whole=True),
        "httpd": _row("section", None, "monit's control socket", of="httpd"),
        "include": _row("choice", "publish", "what monitrc includes", choices=["publish", "glob"]),
    },
    "httpd": {"unixsocket": _row("path", None, "default: monit.sock in lookup:state")},
    "policy": POLICY,
    "restart": {
        "attempts": _done("int", 3, "attempts within interval", "",
            "counts the heals that it began", min=0, max=1000),
        "interval": _done("duration", "30m", "the time attempts are counted in", "",
            "an attempt that is older counts no more", unit="s", min=1),
        "delay": _done("duration", "15s", "wait before the second attempt", "",
            "`backoff` meanwhile", unit="s"),
        "delay_function": _done("choice", "exponential", "how the wait grows", "",
            "`exponential`: twice as long after each attempt", choices=["constant", "exponential"]),
        "max_delay": _done("duration", "5m", "the longest wait", "", "before jitter", unit="s"),
        "jitter": _done("number", 0.25, "share of the wait that is random", "",
            "0.25: three to five quarters of the wait", min=0, max=1),
        "reset_after": _done("duration", "10m", "healthy time that clears the count", "",
            "forgets the attempts then; `warning` counts as healthy", unit="s"),
        "mode": _done("choice", "fail", "when attempts are used up: give up, or wait", "",
            "`fail`: `gave_up`, monitoring is off until somebody starts it or says"
            " `cbsd_monit.retry ENV`; `delay`: goes on when the oldest counts no more",
            choices=["fail", "delay"]),
        "timeout": _done("duration", "300s", "how long one attempt may take", "",
            "of a start, a service_restart or a command; a stop has CBSD's own time-out. What is"
            " late is killed with all its children", unit="s", min=1),
    },
    "budget": {
        "max_concurrent": _done("int", 1, "heals at the same time on a node", "", "others wait",
            min=1, max=1000),
        "storm_threshold": _done("percent", "50%", "share of failing envs that stops healing", "",
            "more than this share of those that should run"),
        "storm_min": _done("int", 5, "and at least so many of them", "", "both have to hold", min=1,
            max=100000),
        "storm_window": _done("duration", "2m", "within this time", "",
            "begun to fail within it; what is dead is started all the same", unit="s"),
        "boot_grace": _done("duration", "10m", "no healing after a boot of the node", "",
            "an env that CBSD starts at boot is `starting` until then, or until it runs", unit="s"),
    },
    "node": {
        "defaults": _row("section", None, "nearer than the fleet's", of="policy"),
        "monit": _row("section", None, "nearer than the fleet's", of="monit"),
        "budget": _row("section", None, "nearer than the fleet's", of="budget"),
        "checks": _row("checks", None, "checks of the node itself", scope="node"),
        "envs": _row("map", None, "as envs, on this node only, and nearer", keys="env", of="env"),
    },
    "profile": {"checks": _row("checks", None, "by name, each with its type", scope="env")},
    "group": {
        "match": _row("list", None, "globs of env names", of="glob"),
        "emulator": _row("choice", None, "only these", choices=["jail", "bhyve"]),
        "profiles": _row("list", None, "profiles by name", of="word"),
        "checks": _row("checks", None, "nearer than the profiles'", scope="env"),
        **POLICY,
    },
    "env": {
        "profiles": _row("list", None, "profiles by name", of="word"),
        "depends_on": _done("dependencies", None,
            "envs, and checks of the node, that have to be well before this one is healed; with"
            " restart: true it is restarted after them", "",
            "asks for their states on this node; an env of another node is not waited for, nor a"
            " check that this node does not have"),
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
    "failure_threshold": {
        "failures": _row("int", None, "failed runs", required=True, **LIMIT),
        "within": _row("int", None, "among so many runs", required=True, **LIMIT),
    },
}  # fmt: skip

ADDRESS = {
    "address": _row("address", None, "default: the env's first address; on a node 127.0.0.1")
}
PORT = {"port": _row("port", None, "which", required=True)}
TLS = {
    "tls": _row("bool", False, "speak TLS"),
    "verify": _row("bool", False, "the certificate's chain must be trusted (needs tls)"),
    "certificate_valid": _row(
        "days", None, "the certificate must last so long (needs tls)", unit="days"
    ),
}
PROGRAM = {
    "in": _row("choice", "jail", "where it runs", choices=["jail", "host"]),
    "command": _row("command", None, "0: well", required=True),
}
BOTH = ["env", "node"]
HTTP_PORTS = {"http": 80, "https": 443}
# rctl(8)'s resources by what they are counted in.
RCTL_BYTES = """coredumpsize datasize memorylocked memoryuse msgqsize readbps shmsize stacksize
    swapuse vmemoryuse writebps""".split()
RCTL_COUNTS = """maxproc msgqqueued nmsgq nsem nsemop nshm nthr openfiles pseudoterminals readiops
    writeiops""".split()
RCTL_TIMES = ["cputime", "wallclock"]
CHECKS = {
    "running": {"doc": "the env runs", "scope": ["env"], "fields": {}},
    "tcp": {"doc": "a TCP port accepts", "scope": BOTH, "fields": {**PORT, **ADDRESS}},
    "udp": {
        "doc": "a UDP port is not refused; monit waits 1.2 s for the refusal, in which it checks"
        " nothing else",
        "scope": BOTH, "fields": {**PORT, **ADDRESS},
    },
    "http": {
        "doc": "an HTTP or HTTPS request is answered",
        "scope": BOTH,
        "fields": {
            "port": _row("port", None, "default: 80, with tls 443", usual=HTTP_PORTS),
            "path": _row("url_path", "/", "with the query, if any"),
            "method": _row("choice", "GET", "the request's", choices=["GET", "HEAD"]),
            "status": _row("int", None, "default: below 400", min=100, max=599),
            "content": _row("regex", None, "must match the body; POSIX extended"),
            "hostheader": _row("host", None, "the Host header"),
            "headers": _row("headers", None, "sent with the request"),
            **ADDRESS, **TLS,
        },
    },
    "tls": {
        "doc": "a TLS handshake succeeds",
        "scope": BOTH,
        "fields": {
            "port": _row("port", 443, "which"),
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
    "exec": {
        "doc": "a program in the jail or on the host ends with 0",
        "scope": BOTH, "fields": PROGRAM,
    },
    "service": {
        "doc": "an rc.d service of the jail runs",
        "scope": ["env"], "only": "jail",
        "fields": {"name": _row("word", None, "the service", required=True)},
    },
    "unix": {
        "doc": "a UNIX socket in the jail accepts (asked by nc(1) in the jail)",
        "scope": ["env"], "only": "jail",
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
            **{
                f"loadavg_{n}m": _row("number", None, f"of {n} min, at most", min=0.01, max=100000)
                for n in (1, 5, 15)
            },
            **{
                k: _row("percent", None, "used at most")
                for k in ("cpu", "cpu_user", "cpu_system", "memory", "swap")
            },
        },
    },
    "process": {
        "doc": "processes run in the jail",
        "scope": ["env"], "only": "jail",
        "fields": {
            "name": _row("word", None, "their exact command name, as ps(1) has it"),
            "pidfile": _row("path", None, "file in the jail whose process it must be"),
            "min": _row("int", 1, "at least so many", min=0, max=100000),
            "max": _row("int", None, "at most so many", min=0, max=100000),
        },
    },
    "file": {
        "doc": "a file exists in the jail",
        "scope": ["env"], "only": "jail",
        "fields": {
            "path": _row("path", None, "as seen in the jail", required=True),
            "max_age": _row("duration", None, "since it was last written", unit="s", min=1),
            "min_size": _row("bytes", None, "it is at least so long"),
            "max_size": _row("bytes", None, "it is at most so long"),
        },
    },
    "resource": {
        "doc": "the jail uses at most so much, as rctl(8) counts it; needs kern.racct.enable=1",
        "scope": ["env"], "only": "jail",
        "fields": {
            **{k: _row("bytes", None, "at most") for k in RCTL_BYTES},
            **{k: _row("int", None, "at most", min=0, max=10**9) for k in RCTL_COUNTS},
            **{k: _row("duration", None, "at most", unit="s") for k in RCTL_TIMES},
            "pcpu": _row("int", None, "percent of one processor", min=0, max=100000),
        },
    },
}  # fmt: skip
# monit's protocol tests and their usual port (None: it has none), and which may not use TCP.
PROTOCOLS = {
    "clamav": 3310, "dns": 53, "dwp": None, "fail2ban": None, "ftp": 21, "gps": 2947, "imap": 143,
    "imaps": 993, "ldap2": 389, "ldap3": 389, "lmtp": 24, "memcache": 11211, "mongodb": 27017,
    "mqtt": 1883, "mysql": 3306, "mysqls": 3306, "nntp": 119, "ntp3": 123, "pgsql": 5432,
    "pop": 110, "pops": 995, "postfix-policy": None, "radius": 1812, "rdate": 37, "redis": 6379,
    "rsync": 873, "sieve": 4190, "sip": 5060, "smtp": 25, "smtps": 465, "spamassassin": 783,
    "ssh": 22, "tns": 1521,
}  # fmt: skip
TRANSPORTS = {"dns": ["udp", "tcp"], "sip": ["tcp", "udp"], "ntp3": ["udp"], "radius": ["udp"]}
for _name, _port in PROTOCOLS.items():
    _fields = {"port": _row("port", _port, "which", required=_port is None), **ADDRESS}
    if _name in TRANSPORTS:
        _fields["transport"] = _row(
            "choice", TRANSPORTS[_name][0], "how it is asked", choices=TRANSPORTS[_name]
        )
    elif _name in ("imaps", "mysqls", "pops", "smtps"):
        _fields.update({**TLS, "tls": _row("bool", True, "always")})
    else:
        _fields.update(TLS)
    CHECKS[_name] = {
        "doc": f"the server answers monit's {_name} test",
        "scope": BOTH,
        "fields": _fields,
    }


def env_name():
    """Internal: Return the regular expression that the whole name of an env has to match."""
    return ENV


def lookup():
    """Internal: Return the default of each path and name of a node, by its key in ``lookup``."""
    return {key: row["default"] for key, row in SECTIONS["lookup"].items()}


def schema():
    """
    Internal: Return the vocabulary as plain data.

    ``{"sections": {section: rows}, "checks": {type: {"doc", "scope", "fields": rows}}, "check":
    rows of every check, "policy": rows, "strings": {type: [what, pattern]}, "types": {type: what},
    "steps": [word]}``; a row is ``{"type", "default", "doc", …limits}``, and ``"monit"`` and
    ``"agent"`` where it matters who does it. A type of check with ``"only": "jail"`` is not for
    VMs.
    """
    strings = {name: list(row) for name, row in STRINGS.items()}
    tables = {"sections": SECTIONS, "checks": CHECKS, "check": INHERITED, "policy": POLICY}
    return copy.deepcopy({**tables, "strings": strings, "types": TYPES, "steps": STEPS})
