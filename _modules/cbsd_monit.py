"""
Turn the pillar's ``cbsd_monit`` into what one CBSD node needs, and ask the node's agent how it fares.

``validate`` and ``render`` are pure: plain data in, plain data out, no pillar, no clock, nothing written. The SLS reads
pillar once and passes it as an argument. ``cbsd_monit_schema`` holds the vocabulary, ``cbsd_monit_pillar`` reads it,
``cbsd_monit_policy`` says what it means for a node, ``cbsd_monit_explain`` what comes of it; this file knows monit's language.

What a template puts out is never trusted: every expression has to be monit text made here, a number, a plain word, or
the product of the filter ``monit``. An operator's template that forgets the filter is an error, never an injection.

:depends: jinja2 (comes with Salt), cbsd_monit_schema, cbsd_monit_pillar, cbsd_monit_policy
:configuration: ``sync``, ``status``, ``history`` and ``monit_version`` find their programs by ``cbsd_monit:lookup`` in
    pillar or minion configuration.
"""

import copy
import fnmatch
import json
import math
import re
import time

import jinja2
import jinja2.nodes
import jinja2.sandbox
from salt.exceptions import CommandExecutionError, SaltInvocationError

TEMPLATE = "salt://cbsd_monit/files/monitrc.tpl.jinja"
WAKE_EVERY = 30  # seconds from one reminder of a lasting failure to the next; the agent's own pass comes each minute
PROBE_SLACK = (
    5  # seconds that monit gives a probe beyond its own timeout: the agent ends it, and says why
)
BROKEN_PROBES = ((5, 34, 1), (5, 35, 2))  # from, below: `check program` hangs or crashes monit
LOOKUP = {
    "libexec": "/usr/local/libexec/cbsd_monit",
    "state": "/var/db/cbsd_monit",
    "rootgroup": "wheel",
}


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

    monit has no ``\\"``; it knows ``\\\\`` and ``\\0xHH``. A string that begins with ``/`` is a path to its lexer and
    refused where a string is wanted, so a leading slash is written as its code as well.
    """
    if not isinstance(value, str) or re.search(r"[^ -~]", value):
        raise SaltInvocationError(f"not printable ASCII: {ascii(value)}")
    return '"' + _escape(value) + '"'


def _escape(value):
    value = value.replace("\\", "\\\\").replace('"', "\\0x22").replace("'", "\\0x27")
    return "\\0x2f" + value[1:] if value.startswith("/") else value


def _path(value):
    """Return a path, already held to its allow-list, as monit wants it: a quoted string that begins with its slash."""
    return f'"{value}"'


def _words(command):
    """Return an argument list as a monit program string: split at blanks, ``'…'`` keeps words together."""
    return '"' + " ".join(f"'{arg}'" if " " in arg else arg for arg in command) + '"'


def _headers(headers):
    return ", ".join(f"{name}: {_string(headers[name])}" for name in sorted(headers))


def _percent(share):
    return f"{round(share * 100, 4):g}%"


# A network test is one sentence. Its parts in the order monit's grammar asks for: the key of the check, and its words.
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
PROBES = (
    "exec",
    "service",
    "process",
    "file",
    "resource",
)  # what `wake probe` runs, as a `check program`
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
    said = dict(check)
    kind = said["type"]
    if kind == "udp":
        said["transport"] = "udp"
    elif kind == "http":
        said["protocol"] = "https" if said["tls"] else "http"
        said.setdefault("port", 443 if said["tls"] else 80)
    elif kind == "ping":
        family = {"ipv4": "ping4", "ipv6": "ping6"}.get(said.get("address"), "ping")
        said["ping"] = family
    elif kind not in ("tcp", "tls"):
        said["protocol"] = kind
    if said.get("transport") == "tcp":
        del said["transport"]
    if kind != "tls" and not said.get("tls"):
        said.pop("verify", None)
    words = [pattern.format(write(said[key])) for key, pattern, write in NETWORK if key in said]
    return " ".join(["failed", *words])


def _tests(check):
    """Return kind of service and its tests for one check."""
    kind = check["type"]
    if kind == "running":
        return "file", ["exist"]
    if kind in PROBES:
        return "program", ["status != 0"]
    if kind in LIMITS:
        tests = [
            words.format(write(check[k]))
            for k, (words, write) in LIMITS[kind].items()
            if k in check
        ]
        return kind, tests
    return "host", [_network(check)]


def _cycles(check, poll):
    """Return how often a check runs, from when on it counts, and how often the agent is reminded; all in cycles."""
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
        # What tells that the env is down cannot itself wait for the env to be up.
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


def _finalize(value):
    """Let out of a template what is safe in monit's language wherever it stands, and nothing else."""
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises, and names it
    if type(value) is _Monit or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and WORD.fullmatch(value):
        return value
    raise SaltInvocationError(f"{ascii(value)[:60]} is no plain word: it needs the filter `monit`")


def _filter(value):
    """The filter ``monit``: a quoted monit string; numbers and monit text stay what they are."""
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
    """Compiles each template once, and says which one an error is in."""

    def __init__(self):
        self.jinja = _environment()
        self.compiled = {}

    def fill(self, source, text, **context):
        try:
            if text not in self.compiled:
                tree = self.jinja.parse(text)
                # Their product goes out without passing _finalize.
                if next(tree.find_all((jinja2.nodes.FilterBlock, jinja2.nodes.CallBlock)), None):
                    raise SaltInvocationError(
                        "blocks {% filter %} and {% call %} are not available"
                    )
                self.compiled[text] = self.jinja.from_string(text)
            result = self.compiled[text].render(**context)
        except jinja2.TemplateSyntaxError as err:
            raise SaltInvocationError(
                f"template {source}, line {err.lineno}: {err.message}"
            ) from err
        except SaltInvocationError as err:
            raise SaltInvocationError(f"template {source}: {err}") from err
        except jinja2.TemplateError as err:
            raise SaltInvocationError(f"template {source}: {err}") from err
        except (
            TypeError,
            ValueError,
            KeyError,
            ArithmeticError,
            AttributeError,
            RecursionError,
        ) as err:
            raise SaltInvocationError(f"template {source}: {type(err).__name__}: {err}") from err
        for number, line in enumerate(result.split("\n"), 1):
            if re.search(r"[^\t -~]", line):
                raise SaltInvocationError(
                    f"template {source}: line {number} of its text is not printable ASCII"
                )
            if re.match(r"\s*(set|include)(\s|$)", line, re.I):
                raise SaltInvocationError(
                    f"template {source}: line {number} of its text would change the whole node: {line.strip()[:40]}"
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
    # Not in lookup:run, which is empty after a boot: monit starts before anybody could make the directory again.
    return settings["monit"].get("httpd", {}).get("unixsocket", f"{lookup['state']}/monit.sock")


def _head(settings, lookup, probes):
    """Return the text that is published before all envs: daemon, socket, the look at the kernel, the node's checks."""
    monit = settings["monit"]
    delay = f" with start delay {monit['start_delay']}" if monit["start_delay"] else ""
    socket = _socket(settings, lookup)
    wake = f"{lookup['libexec']}/wake"
    lines = [
        f"set daemon {monit['poll']}{delay}",
        f'set httpd unixsocket "{socket}" uid root gid {lookup["rootgroup"]} permission 0600 allow localhost',
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
            # monit refuses its whole configuration when the program of a check does not exist; env(1) always does.
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
        groups = [spec["groups"][silence["group"]]] if "group" in silence else [{}]
        for env in sorted(envs, key=lambda env: env["name"]):
            name = env["name"]
            globs = groups[0].get("match", ["*"])
            if (
                silence.get("env", name) == name
                and any(fnmatch.fnmatchcase(name, glob) for glob in globs)
                and groups[0].get("emulator", env["emulator"]) == env["emulator"]
            ):
                entry = {
                    "env": name,
                    "until": silence["until"],
                    "reason": silence.get("reason", ""),
                }
                found.append({**entry, "by": silence.get("by", "pillar")})
    return found


def validate(spec):
    """
    Return the pillar's ``cbsd_monit`` in its normal form: durations in seconds, ladders as lists, defaults filled in.

    spec
        The mapping under the pillar key ``cbsd_monit``.

    Raises ``SaltInvocationError`` that names every error with its path.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.validate '{envs: {lb1: {checks: {http: {type: http}}}}}'
    """
    return __salt__["cbsd_monit_pillar.validate"](spec)


def schema():
    """
    Return the vocabulary as plain data: sections, check types and types of fields.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.schema
    """
    return __salt__["cbsd_monit_schema.schema"]()


def effective(spec, node, envs):
    """
    Return what the pillar means for the envs of a node: ``{name: policy}``, as in ``policy.json``.

    An env is meant by an entry of ``envs``, by a group that holds it, or by the node's own ``envs``; others get none.
    The nearer wins: defaults, node, groups in the order of their names, env, check.

    spec
        The mapping under the pillar key ``cbsd_monit``.
    node
        Minion id.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``, emulator ``jail`` or ``bhyve``.

    Raises ``SaltInvocationError`` when the pillar is not valid.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.effective '{groups: {web: {match: web*}}}' hv1 '[{name: web1, emulator: jail}]'
    """
    return __salt__["cbsd_monit_policy.for_node"](spec, node, envs)["policies"]


def render(spec, node, envs, monit_version="5.33.0", template=None, templates=None, lookup=None):
    """
    Return everything that a node is given: its configuration for the agent, and template and policy of each env.

    spec
        The mapping under the pillar key ``cbsd_monit``.
    node
        Minion id.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``.
    monit_version
        The node's monit, such as ``5.33.0``; ``None`` where it is not installed yet.
    template
        Text of the template for all envs, instead of the pillar's ``template`` or the formula's own.
    templates
        Texts for single envs, ``{name: text}``, instead of the pillar's ``envs:NAME:template``.
    lookup
        Paths and names of the node (``libexec``, ``state``, ``rootgroup`` are used), instead of the pillar's ``lookup``.

    Returns ``{"config": {…}, "envs": {name: {"monitrc.tpl": text, "policy.json": {…}}}, "warnings": [sentence]}``;
    ``config`` holds schema, node, poll (seconds), include, head (monit text), socket (path), probes (who runs them: ``monit``
    or ``agent``), policy, budget and silences.

    Raises ``SaltInvocationError`` when the pillar is not valid or a template cannot be used.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.render '{envs: {lb1: {checks: {up: {type: running}}}}}' hv1 '[{name: lb1, emulator: jail}]'
    """
    given = {key: lookup[key] for key in LOOKUP if lookup and lookup.get(key)}
    if spec is None or (
        isinstance(spec, dict) and isinstance(spec.get("lookup", {}), (dict, type(None)))
    ):
        spec = {**(spec or {}), "lookup": {**((spec or {}).get("lookup") or {}), **given}}
    settings = __salt__["cbsd_monit_policy.for_node"](spec, node, envs)
    spec, policies = settings["spec"], settings["policies"]
    paths = {**LOOKUP, **{key: value for key, value in spec["lookup"].items() if key in LOOKUP}}
    probes = _probes_work(monit_version)
    poll = settings["monit"]["poll"]
    files, fill, warnings, rendered, rules = (
        _Files(),
        _Templates().fill,
        settings["warnings"],
        {},
        {},
    )
    if not probes:
        late = [name for name, check in settings["checks"].items() if check["type"] == "exec"]
        lost = f", and neither are the node's checks {', '.join(late)}" if late else ""
        warnings.append(
            f"monit {monit_version} cannot run check program: cbsd_monit-look is not rendered{lost}"
        )

    for name, policy in policies.items():
        own = settings["envs"].get(name, {})
        source, text = _template_of(name, own, spec, template, templates or {}, files)
        told = json.dumps(
            {key: value for key, value in policy.items() if key not in ("env", "node")},
            sort_keys=True,
        )
        key = (source, text, own.get("raw"), told)
        if (
            key not in rules
        ):  # most envs of a large node differ in their name only, which no template sees
            services = [
                _service(key, check, poll) for key, check in sorted(policy["checks"].items())
            ]
            late = [service["name"] for service in services if service["kind"] == "program"]
            rules[key] = (
                late,
                fill(
                    source,
                    text,
                    checks=[
                        service for service in services if probes or service["kind"] != "program"
                    ],
                    raw=_raw(own["raw"]) if "raw" in own else None,
                    repeat=max(1, math.ceil(WAKE_EVERY / poll)),
                    policy=json.loads(told),
                    poll=poll,
                ),
            )
        late, rule = rules[key]
        if late and not probes:
            warnings.append(
                f"monit {monit_version} cannot run check program: the agent runs the probes of {name} ({', '.join(late)})"
            )
        rendered[name] = {"monitrc.tpl": rule, "policy.json": policy}

    defaults = settings["defaults"]
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
            **{
                key: copy.deepcopy(defaults[key])
                for key in ("heal", "on_failure", "start_period", "restart")
            },
            "depends_on": [],
            "restart_with": [],
        },
        "budget": settings["budget"],
        "silences": _silences(spec, node, envs),
    }
    return {"config": config, "envs": rendered, "warnings": warnings}


def _template_of(name, env, spec, template, templates, files):
    """Return where the template of an env comes from, and its text: the nearer wins, a text before a file."""
    if templates.get(name) is not None:
        return f"of {name}", templates[name]
    if "template" in env:
        return env["template"], files.read(env["template"])
    if template is not None:
        return "of all envs", template
    url = spec.get("template", TEMPLATE)
    return url, files.read(url)


# --- The node's agent


def _lookup(key, default):
    value = (__salt__["config.get"]("cbsd_monit:lookup", {}) or {}).get(key)
    return value or default


def _wake(*args, timeout=60):
    """Run the agent; the one place where this module does."""
    argv = [f"{_lookup('libexec', LOOKUP['libexec'])}/wake", *args]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, ignore_retcode=True, timeout=timeout, stdin=""
    )
    return answer, " ".join(argv)


def _answer(*args, timeout=60):
    answer, command = _wake(*args, timeout=timeout)
    if answer["retcode"]:
        raise CommandExecutionError(
            f"`{command}` exited {answer['retcode']}: {answer['stderr'] or answer['stdout']}"
        )
    return answer["stdout"], command


def _json(text, command):
    try:
        return json.loads(text)
    except ValueError as err:
        raise CommandExecutionError(f"`{command}` did not answer in JSON: {text[:200]!r}") from err


def _named(env):
    if not isinstance(env, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", env, re.ASCII):
        raise SaltInvocationError(f"env: expected the name of an env, got {ascii(env)}")
    return env


def sync():
    """
    Let the agent look at the whole node now, publish what changed, and return what it did.

    Returns ``{"changed": [env], "published": N, "reloaded": bool, "quarantined": {env: why}, "errors": {env: why},
    "services": N}``. Waits for the pass (at most 600 s), not for heals.

    Raises ``CommandExecutionError`` when the agent cannot be run or says that it failed.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit.sync
    """
    answer, command = _wake("sync", "--json", timeout=600)
    try:
        return _json(
            answer["stdout"], command
        )  # also when some envs have errors: then the exit code is 1
    except CommandExecutionError:
        if not answer["retcode"]:
            raise
    raise CommandExecutionError(
        f"`{command}` exited {answer['retcode']}: {answer['stderr'] or answer['stdout']}"
    )


def status(env=None, text=False):
    """
    Return the present state of every env of the node, or of one.

    Returns ``{name: {"emulator", "state", "since", "check", "reason", "intent", "intent_why", "attempts", "next", "silence",
    "quarantined", "restarts", "last"}}``; ``since`` and ``next`` (when the next attempt may begin) are seconds since 1970,
    ``attempts`` are those that still count, ``restarts`` all that the env's history knows, ``last`` its last transitions.

    env
        Name of an env; all when it is not given.
    text
        Return a table instead, and for one env its last transitions.

    Raises ``CommandExecutionError`` when the agent cannot be run.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit.status lb1
        salt '*' cbsd_monit.status text=True
    """
    found = _json(*_answer("status", *([] if env is None else [_named(env)])))
    return _status_text(found, time.time(), last=env is not None) if text else found


def _status_text(found, now, last):
    """Return the agent's answer as an aligned table; older agents say less."""
    heads = ["env", "state", "since", "check", "restarts", "next attempt", "reason"]
    rows = [heads]
    for name, row in sorted(found.items()):
        due = row.get("next")
        rows.append(
            [
                name,
                row.get("state") or "unknown",
                _clock(row.get("since")),
                row.get("check") or "-",
                str(row.get("restarts", "-")),
                "-" if not due else f"in {due - now:.0f} s" if due > now else "now",
                row.get("quarantined") or row.get("reason") or "-",
            ]
        )
    rows = [[" ".join(str(cell).split()) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    for row in found.values() if last else ():
        for record in row.get("last") or []:
            words = [
                record.get("transition") or "",
                record.get("check") or "",
                record.get("reason") or "",
            ]
            lines.append("  ".join([_clock(record.get("time")), *(word for word in words if word)]))
    return "\n".join(lines)


def _clock(moment):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else "-"


def explain(env, text=False):
    """
    Return what the pillar means for an env of this node, for each of its checks: where every value comes from, what monit is
    told, and what happens when it fails, in seconds.

    env
        Name of an env of this node that the pillar means.
    text
        Return a text to read instead of data.

    Returns what :py:func:`cbsd_monit_explain.explain <salt.modules.cbsd_monit_explain.explain>` does. The pillar is the
    one that the states get: as the minion has it now.

    Raises ``CommandExecutionError`` when the pillar is not valid or does not mean this env, or CBSD cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.explain lb1 text=True
    """
    _named(env)
    # Salt 3008 shows pillar to templates only; this is the one that the states have it from.
    source = '{%- from "cbsd_monit/map.jinja" import spec with context %}{{ spec | json }}'
    spec = __salt__["slsutil.renderer"](string=source, default_renderer="jinja|json")
    envs = [
        {"name": name, "emulator": row["emulator"]}
        for name, row in __salt__["cbsd.list"]().items()
        if row["emulator"] in ("jail", "bhyve")
    ]
    try:
        version = _version(spec["lookup"].get("monit") or "monit")
    except CommandExecutionError:
        version = None
    try:
        told = __salt__["cbsd_monit_explain.explain"](
            spec["pillar"], __opts__["id"], envs, env, monit_version=version, lookup=spec["lookup"]
        )
    except SaltInvocationError as err:  # it is not the call that is wrong: no usage is to be shown
        raise CommandExecutionError(str(err)) from err
    return __salt__["cbsd_monit_explain.text"](told) if text else told


def silence(env, until, reason, by="salt"):
    """
    Have ``env`` not healed before ``until``, whatever its checks say; that expires by itself.

    env
        Name of an env that is watched on this node.
    until
        Seconds since 1970, or a duration from now: ``30m``, ``2h``, ``1d``.
    reason
        Why, in one line; it is shown wherever the state of the env is.
    by
        Who says so.

    Returns the env's status, as :py:func:`status` has it. Raises ``SaltInvocationError`` for a bad name or time,
    ``CommandExecutionError`` with the agent's words when it refuses.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.silence lb1 2h 'kernel upgrade' by=ann
    """
    moment = re.fullmatch(r"([0-9]+)([smhd]?)", str(until))
    if not moment:
        raise SaltInvocationError(
            f"until: expected seconds since 1970 or a duration such as 30m, got {until!r}"
        )
    number, unit = int(moment.group(1)), moment.group(2)
    if unit:
        number = int(time.time()) + number * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    for name, text in (("reason", reason), ("by", by)):
        if not isinstance(text, str) or not text.isprintable() or not text or text.startswith("-"):
            raise SaltInvocationError(f"{name}: expected one line of text, got {text!r}")
    return _json(*_answer("silence", _named(env), str(number), by, reason))


def unsilence(env):
    """
    Take back what :py:func:`silence` said of ``env``; silences of the pillar stay.

    env
        Name of an env that is watched on this node.

    Returns the env's status. Raises as :py:func:`silence`.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.unsilence lb1
    """
    return _json(*_answer("unsilence", _named(env)))


def history(env):
    """
    Return the transitions of an env on this node and those it came from, oldest first, as a list of mappings.

    env
        Name of an env.

    Raises ``CommandExecutionError`` when the agent cannot be run.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit.history lb1
    """
    text, command = _answer("history", _named(env))
    return [_json(line, command) for line in text.splitlines() if line.strip()]


def monit_version():
    """
    Return the version of the node's monit, such as ``5.33.0``.

    Raises ``CommandExecutionError`` when it cannot be run or does not say.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit.monit_version
    """
    return _version(_lookup("monit", "/usr/local/bin/monit"))


def _version(monit):
    argv = [monit, "-V"]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, ignore_retcode=True, timeout=20, stdin=""
    )
    match = re.search(r"version\s+([0-9]+(?:\.[0-9]+)+)", answer["stdout"])
    if answer["retcode"] or not match:
        raise CommandExecutionError(
            f"`{' '.join(argv)}` exited {answer['retcode']}: {answer['stderr'] or answer['stdout']}"
        )
    return match[1]


def recheck(envs=(), adopt=False):
    """
    Have the agent look at the node again: all that an event can cause.

    What follows is decided here, by the agent's own status, lock and policy: an env of ``envs`` is healed only if it fails and its
    policy says ``on_failure: event``. Called again within 10 s for the same env nothing more happens.

    envs
        Names of envs, at most 50; those that are not watched here are left out.
    adopt
        Also apply this node's own checks if its pillar names an env that has none yet.

    Returns ``{"rechecked": [env], "adopted": [env]}``. Raises ``SaltInvocationError`` for what cannot be a name.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.recheck '[lb1]'
    """
    if isinstance(envs, str) or len(envs) > 50:
        raise SaltInvocationError(
            f"envs: expected a list of at most 50 names, got {ascii(envs)[:60]}"
        )
    done = [
        name
        for name in sorted({_named(env) for env in envs})
        if not _wake("recheck", name)[0]["retcode"]
    ]
    if not envs:
        _wake("monit", "recheck")
    return {
        "rechecked": done,
        "adopted": __salt__["cbsd_monit_fleet.adopt"]() if adopt is True else [],
    }


def rollback(generation=None, undo=False):
    """
    Have monit include what was published before, until pillar, hooks or operators ask for something else than they do now.

    generation
        Number of a generation that is still kept (the last five are). Default: the one before the present.
    undo
        Publish what is asked for again instead.

    Returns what :py:func:`sync` returns; ``held`` in it says which generation is kept and why. Raises ``CommandExecutionError``
    with the agent's words when there is no such generation, or monit does not take it.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.rollback
        salt 'hv1*' cbsd_monit.rollback undo=True
    """
    if generation is not None and (
        not isinstance(generation, int) or isinstance(generation, bool) or generation < 1
    ):
        raise SaltInvocationError(f"generation: expected a number, got {ascii(generation)[:60]}")
    said = ["undo"] if undo else [] if generation is None else [str(generation)]
    return _json(*_answer("rollback", *said, timeout=600))
