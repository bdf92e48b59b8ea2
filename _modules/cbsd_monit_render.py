"""
``cbsd_monit.render``: monit's language, and the sandbox in which templates are filled.

It is pure: plain data in, plain data out; it reads no pillar and no clock, and writes nothing.

What a template puts out is never trusted: each expression has to be monit text made here, a number,
a plain word, or the product of the filter ``monit``. A template that forgets the filter is an
error, never an injection.

:depends: jinja2 (comes with Salt), cbsd_monit_schema, cbsd_monit_policy
"""

import copy
import fnmatch
import functools
import json
import math
import re

import jinja2
import jinja2.nodes
import jinja2.sandbox
from salt.exceptions import SaltInvocationError

__virtualname__ = "cbsd_monit"

TEMPLATE = "salt://cbsd_monit/files/monitrc.tpl.jinja"
# Seconds from one reminder of a lasting failure to the next; cron starts the agent each minute,
# too.
WAKE_EVERY = 30
# Seconds that monit gives a probe beyond its own timeout: the agent ends it, and says why.
PROBE_SLACK = 5
BROKEN_PROBES = ((5, 34, 1), (5, 35, 2))  # from, below: `check program` hangs or crashes monit
LOOKUP = ("libexec", "state", "rootgroup")
DEFAULT_POLICY = ("heal", "on_failure", "start_period", "restart")


def __virtual__():
    return __virtualname__


class _Monit:
    """
    Text that is monit's language already: only what this module made, never a value from outside.

    Not a ``str``: nothing that a template does to it (join, replace, format, +) gives another one.
    """

    __slots__ = ("text",)

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


def _string(value):
    """
    Return ``value`` as a quoted monit string.

    monit has no ``\\"``; it knows ``\\\\`` and ``\\0xHH``. Its lexer takes a string that begins
    with ``/`` for a path, which is refused where a string is wanted: a leading slash is written as
    its code, too.
    """
    if not isinstance(value, str) or re.search(r"[^ -~]", value):
        raise SaltInvocationError(f"not printable ASCII: {ascii(value)}")
    return '"' + _escape(value) + '"'


def _escape(value):
    value = value.replace("\\", "\\\\").replace('"', "\\0x22").replace("'", "\\0x27")
    return "\\0x2f" + value[1:] if value.startswith("/") else value


def _path(value):
    """Return a path, already held to its allow-list, as monit wants it: quoted, its slash first."""
    return f'"{value}"'


def _words(command):
    """Return an argument list as a monit program string, in which ``'…'`` keeps blanks together."""
    return '"' + " ".join(f"'{arg}'" if " " in arg else arg for arg in command) + '"'


def _headers(headers):
    return ", ".join(f"{name}: {_string(headers[name])}" for name in sorted(headers))


def _percent(share):
    return f"{round(share * 100, 4):g}%"


# The parts of a network test in the order of monit's grammar: key of the check, words, writer.
NETWORK = (
    ("port", "port {}", str),
    ("transport", "type {}", str),
    ("protocol", "protocol {}", str),
    ("method", "method {}", str),
    ("path", "request {}", _path),
    ("status", "status = {}", str),
    ("hostheader", "hostheader {}", _string),
    ("headers", "with http headers [{}]", _headers),
    ("content", "content = {}", _string),
    ("verify", "with ssl options {{verify: {}}}", {True: "enable", False: "disable"}.get),
    ("certificate_valid", "and certificate valid > {} days", str),
    ("ping", "{}", str),
    ("count", "count {}", str),
    ("size", "size {}", str),
    ("timeout", "with timeout {} seconds", math.ceil),
)
# Checks that `wake probe` runs, as a `check program`.
PROBES = ("exec", "service", "process", "file", "resource")
LIMITS = {  # type: {key: (words of the test, how the limit is written)}
    "system": {
        "loadavg_1m": ("loadavg (1min) > {}", "{:g}".format),
        "loadavg_5m": ("loadavg (5min) > {}", "{:g}".format),
        "loadavg_15m": ("loadavg (15min) > {}", "{:g}".format),
        "cpu": ("cpu usage > {}", _percent),
        "cpu_user": ("cpu usage (user) > {}", _percent),
        "cpu_system": ("cpu usage (system) > {}", _percent),
        "memory": ("memory usage > {}", _percent),
        "swap": ("swap usage > {}", _percent),
    },
    "filesystem": {
        "space": ("space usage > {}", _percent),
        "inodes": ("inode usage > {}", _percent),
    },
}


def _network(check):
    """Return the test of a check over the network."""
    parts = dict(check)
    kind = parts["type"]
    if kind == "udp":
        parts["transport"] = "udp"
    elif kind == "http":
        parts["protocol"] = "https" if parts["tls"] else "http"
        parts.setdefault("port", _http_ports()[parts["protocol"]])
    elif kind == "ping":
        parts["ping"] = {"ipv4": "ping4", "ipv6": "ping6"}.get(parts.get("address"), "ping")
    elif kind not in ("tcp", "tls"):
        parts["protocol"] = kind
    if parts.get("transport") == "tcp":
        del parts["transport"]
    if kind != "tls" and not parts.get("tls"):
        parts.pop("verify", None)
    words = [pattern.format(write(parts[key])) for key, pattern, write in NETWORK if key in parts]
    return " ".join(["failed", *words])


@functools.lru_cache(maxsize=1)
def _http_ports():
    return __salt__["cbsd_monit_schema.schema"]()["checks"]["http"]["fields"]["port"]["usual"]


def _tests(check):
    """Return kind of service and its tests for one check."""
    kind = check["type"]
    if kind == "running":
        return "file", ["exist"]
    if kind in PROBES:
        return "program", ["status != 0"]
    if kind in LIMITS:
        limits = LIMITS[kind].items()
        tests = [words.format(write(check[k])) for k, (words, write) in limits if k in check]
        return kind, tests
    return "host", [_network(check)]


def _cycles(check, poll):
    """Return how often a check runs, what makes it count, and how often to wake the agent."""
    every = max(1, math.ceil(check["interval"] / poll))
    need = check["failure_threshold"]
    if isinstance(need, dict):
        failures = f"for {need['failures']} times within {need['within']} cycles"
    else:
        failures = f"for {need} cycles"
    return {
        "every": every,
        "failures": _Monit(failures),
        "successes": _Monit(f"for {check['success_threshold']} cycles"),
        "repeat": max(1, math.ceil(WAKE_EVERY / (every * poll))),
    }


ADDRESSES = {"ipv4": "%%IPV4_FIRST%%", "ipv6": "%%IPV6_FIRST%%"}


def _service(name, check, poll):
    """Return one check of an env as the template gets it."""
    kind, tests = _tests(check)
    if kind == "program":
        tests = ["status = 1"]  # 75 is neither well nor failed: the agent could not find out
    given = check.get("address", "%%ADDRESS%%")
    patience = math.ceil(check["timeout"]) + PROBE_SLACK
    target = {
        "file": 'path "%%DEAD%%"',
        "program": f'path "%%WAKE%% probe %%JNAME%% {name}" with timeout {patience} seconds',
        "host": f'address "{ADDRESSES.get(given, given)}"',
    }[kind]
    return {
        "name": name,
        "kind": kind,
        "target": _Monit(target),
        "tests": [_Monit(test) for test in tests],
        # The check that tells whether the env is up cannot itself wait for the env to be up.
        "needs_env": kind != "file",
        **_cycles(check, poll),
    }


def _raw(text):
    """Return an env's own monit text, and whether it opens its own service."""
    statements = re.sub(r"^\s*#.*$", "", text, flags=re.M).split()
    whole = statements[:1] and statements[0].lower() == "check"
    return {"text": _Monit(text.rstrip("\n") if whole else _indented(text)), "whole": bool(whole)}


def _indented(text):
    return "\n".join(f"  {line}" if line.strip() else "" for line in text.rstrip("\n").split("\n"))


# --- The template


WORD = re.compile(r"[A-Za-z0-9_.:/=,%+-]*", re.ASCII)
# What the expressions of a template may raise.
TEMPLATE_ERRORS = (
    TypeError, ValueError, KeyError, ArithmeticError, AttributeError, RecursionError,
)  # fmt: skip


def _finalize(value):
    """Let a template put out what is safe anywhere in monit's language, and nothing else."""
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises, and names it
    if type(value) is _Monit or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and WORD.fullmatch(value):
        return value
    raise SaltInvocationError(f"{ascii(value)[:60]} is no plain word: it needs the filter `monit`")


def _filter(value):
    """The filter ``monit``: quote a string; numbers and monit text stay as they are."""
    if type(value) is _Monit or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    return _Monit(_string(value))


def _environment():
    jinja = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        autoescape=False,
        keep_trailing_newline=True,
    )
    jinja.filters["monit"] = _filter
    return jinja


class _Templates:
    """Templates, each compiled once; an error says which one it is in."""

    def __init__(self):
        self.jinja = _environment()
        self.compiled = {}

    def fill(self, source, text, **context):
        try:
            if text not in self.compiled:
                tree = self.jinja.parse(text)
                # What these two put out does not pass _finalize.
                if next(tree.find_all((jinja2.nodes.FilterBlock, jinja2.nodes.CallBlock)), None):
                    what = "blocks {% filter %} and {% call %} are not available"
                    raise SaltInvocationError(what)
                self.compiled[text] = self.jinja.from_string(text)
            result = self.compiled[text].render(**context)
        except jinja2.TemplateSyntaxError as err:
            what = f"template {source}, line {err.lineno}: {err.message}"
            raise SaltInvocationError(what) from err
        except (SaltInvocationError, jinja2.TemplateError) as err:
            raise SaltInvocationError(f"template {source}: {err}") from err
        except TEMPLATE_ERRORS as err:
            raise SaltInvocationError(f"template {source}: {type(err).__name__}: {err}") from err
        for number, line in enumerate(result.split("\n"), 1):
            where = f"template {source}: line {number} of its text"
            if re.search(r"[^\t -~]", line):
                raise SaltInvocationError(f"{where} is not printable ASCII")
            if re.match(r"\s*(set|include)(\s|$)", line, re.I):
                raise SaltInvocationError(
                    f"{where} would change the whole node: {line.strip()[:40]}"
                )
        return result if result.endswith("\n") else f"{result}\n"


class _Files:
    """Template files on the Salt file server, each read once."""

    def __init__(self):
        self.texts = {}

    def read(self, url):
        if url not in self.texts:
            text = __salt__["cp.get_file_str"](url)
            if not isinstance(text, str):
                raise SaltInvocationError(f"template {url}: there is no such file")
            self.texts[url] = text
        return self.texts[url]


# --- The node


def _probes_work(version):
    numbers = tuple(int(part) for part in re.findall(r"\d+", version or "")[:3])
    return not BROKEN_PROBES[0] <= numbers < BROKEN_PROBES[1]


def _socket(settings, lookup):
    # Not in lookup:run, which is empty after a boot: monit starts before anything makes it again.
    return settings["monit"].get("httpd", {}).get("unixsocket", f"{lookup['state']}/monit.sock")


def _head(settings, lookup, probes):
    """Return the monit text before all envs: daemon, socket, `wake look`, the node's checks."""
    monit = settings["monit"]
    delay = f" with start delay {monit['start_delay']}" if monit["start_delay"] else ""
    socket = _socket(settings, lookup)
    wake = f"{lookup['libexec']}/wake"
    lines = [
        f"set daemon {monit['poll']}{delay}",
        f'set httpd unixsocket "{socket}" uid root gid {lookup["rootgroup"]} permission 0600'
        " allow localhost",
    ]
    if probes:
        lines += [
            "",
            f'check program "cbsd_monit-look" with path "{wake} look" with timeout 20 seconds',
            "  if status != 0 then alert",
        ]
    for name, check in settings["checks"].items():
        kind, tests = _tests(check)
        if kind == "program" and not probes:
            continue
        cycles = _cycles(check, monit["poll"])
        target = {
            "host": f' with address "{check.get("address", "127.0.0.1")}"',
            "filesystem": f" with path {_path(check.get('path'))}",
            # monit refuses all it is given if a check's program does not exist; env(1) exists.
            "program": f" with path {_words(['/usr/bin/env', *check.get('command', [])])}"
            f" with timeout {math.ceil(check['timeout'])} seconds",
            "system": "",
        }[kind]
        lines += ["", f'check {kind} "node-{name}"{target}', "  onreboot laststate"]
        if cycles["every"] > 1:
            lines.append(f"  every {cycles['every']} cycles")
        for test in tests:
            lines += [
                f"  if {test} {cycles['failures']}",
                f'    then exec "{wake} monit node-{name}" repeat every {cycles["repeat"]} cycles',
                f'    else if succeeded {cycles["successes"]} then exec "{wake} monit node-{name}"',
            ]
    return "\n".join(lines) + "\n"


def _silences(spec, node, envs):
    """Return the pillar's silences for the envs of this node, one entry per env."""
    found = []
    for silence in spec["silences"]:
        if not fnmatch.fnmatchcase(node, silence.get("node", "*")):
            continue
        group = spec["groups"][silence["group"]] if "group" in silence else {}
        for env in sorted(envs, key=lambda env: env["name"]):
            name = env["name"]
            if (
                silence.get("env", name) == name
                and any(fnmatch.fnmatchcase(name, glob) for glob in group.get("match", ["*"]))
                and group.get("emulator", env["emulator"]) == env["emulator"]
            ):
                given = {"reason": "", "by": "pillar", **silence}
                found.append({"env": name, **{k: given[k] for k in ("until", "reason", "by")}})
    return found


def render(spec, node, envs, monit_version="5.33.0", template=None, templates=None, lookup=None):
    """
    Return all that a node gets: the agent's configuration, and template and policy of each env.

    spec
        The mapping under the pillar key ``cbsd_monit``.
    node
        Minion id.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``.
    monit_version
        The node's monit, such as ``5.33.0``; ``None`` where it is not installed yet.
    template
        Text of the template for all envs, instead of the pillar's ``template`` or the shipped one.
    templates
        Texts for single envs, ``{name: text}``, instead of the pillar's ``envs:NAME:template``.
    lookup
        Paths and names of the node, instead of the pillar's ``lookup``; of them ``libexec``,
        ``state`` and ``rootgroup`` are used.

    Returns ``{"config": {…}, "envs": {name: {"monitrc.tpl": text, "policy.json": {…}}}, "warnings":
    [sentence]}``; ``config`` holds schema, node, poll (seconds), include, head (monit text), socket
    (path), probes (who runs them: ``monit`` or ``agent``), policy, budget and silences.

    Raises ``SaltInvocationError`` when the pillar is not valid or a template cannot be used.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.render '{envs: {lb1: {}}}' hv1 '[{name: lb1, emulator: jail}]'
    """
    given = {key: lookup[key] for key in LOOKUP if lookup and lookup.get(key)}
    if spec is None or (
        isinstance(spec, dict) and isinstance(spec.get("lookup", {}), (dict, type(None)))
    ):
        spec = {**(spec or {}), "lookup": {**((spec or {}).get("lookup") or {}), **given}}
    settings = __salt__["cbsd_monit_policy.for_node"](spec, node, envs)
    spec, policies = settings["spec"], settings["policies"]
    defaults = __salt__["cbsd_monit_schema.lookup"]()
    paths = {key: spec["lookup"].get(key, defaults[key]) for key in LOOKUP}
    probes = _probes_work(monit_version)
    poll = settings["monit"]["poll"]
    files, fill, warnings = _Files(), _Templates().fill, settings["warnings"]
    rendered, rules = {}, {}
    unable = f"monit {monit_version} cannot run check program"
    if not probes:
        late = [name for name, check in settings["checks"].items() if check["type"] == "exec"]
        lost = f", and neither are the node's checks {', '.join(late)}" if late else ""
        warnings.append(f"{unable}: cbsd_monit-look is not rendered{lost}")

    for name, policy in policies.items():
        own = settings["envs"].get(name, {})
        source, text = _template_of(name, own, spec, template, templates or {}, files)
        rest = {key: value for key, value in policy.items() if key not in ("env", "node")}
        shown = json.dumps(rest, sort_keys=True)  # what a template may see of the policy
        key = (source, text, own.get("raw"), shown)
        if key not in rules:  # most envs of a large node differ in their names only
            rows = sorted(policy["checks"].items())
            services = [_service(check, row, poll) for check, row in rows]
            late = [service["name"] for service in services if service["kind"] == "program"]
            rules[key] = (
                late,
                fill(
                    source,
                    text,
                    checks=[s for s in services if probes or s["kind"] != "program"],
                    raw=_raw(own["raw"]) if "raw" in own else None,
                    repeat=max(1, math.ceil(WAKE_EVERY / poll)),
                    policy=json.loads(shown),
                    poll=poll,
                ),
            )
        late, rule = rules[key]
        if late and not probes:
            warnings.append(f"{unable}: the agent runs the probes of {name} ({', '.join(late)})")
        rendered[name] = {"monitrc.tpl": rule, "policy.json": policy}

    config = {
        "schema": 1,
        "node": node,
        "poll": poll,
        "include": settings["monit"]["include"],
        "head": _head(settings, paths, probes),
        "socket": _socket(settings, paths),
        "probes": "monit" if probes else "agent",
        "policy": {
            "schema": 1,
            "node": node,
            "origin": "pillar",
            **{key: copy.deepcopy(settings["defaults"][key]) for key in DEFAULT_POLICY},
            "depends_on": [],
            "restart_with": [],
        },
        "budget": settings["budget"],
        "silences": _silences(spec, node, envs),
    }
    return {"config": config, "envs": rendered, "warnings": warnings}


def _template_of(name, env, spec, template, templates, files):
    """Return source and text of an env's template: the nearer wins, a text before a file."""
    if templates.get(name) is not None:
        return f"of {name}", templates[name]
    if "template" in env:
        return env["template"], files.read(env["template"])
    if template is not None:
        return "of all envs", template
    url = spec.get("template", TEMPLATE)
    return url, files.read(url)
