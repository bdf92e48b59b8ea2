"""
Read a pillar by the tables of ``cbsd_monit_schema``: the normal form, or every error with its path.

Nothing here reads pillar, files or the clock: the SLS passes the mapping as an argument, and plain
data comes out.

Values are accepted by an allow-list for each type of field, never made harmless by quoting: most of
them end up in monit's configuration, in an argument list run by root, or in a name that CBSD
evaluates. Two types are wider because their text is data to monit alone: ``regex`` (any printable
ASCII; rendered as an escaped monit string) and ``raw`` (monit's own language). ``text`` (a
silence's reason) may hold letters of any language.

:depends: cbsd_monit_schema
"""

import datetime
import difflib
import fnmatch
import functools
import ipaddress
import math
import re
import warnings

from salt.exceptions import SaltInvocationError

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@functools.lru_cache(maxsize=1)
def _tables():
    return __salt__["cbsd_monit_schema.schema"]()


class _Expected(Exception):
    """A value is not what its field asks for: ``what`` that is, and the place in the value."""

    def __init__(self, what="", at=()):
        super().__init__(what)
        self.what, self.at = what, at


class _Errors(list):
    """All that is wrong with a pillar, each as ``path: message``."""

    def say(self, path, message):
        line = f"{':'.join(path)}: {message}"
        if line not in self:
            self.append(line)

    def expected(self, path, what, value, secret=False):
        got = "a value that is not shown" if secret else _shown(value)
        hint = ""
        if isinstance(value, bool) and what != "true or false":
            hint = " (YAML reads on, off, yes and no as true and false: put it in quotes)"
        self.say(path, f"expected {what}, got {got}{hint}")

    def unknown(self, path, key, known):
        near = difflib.get_close_matches(str(key), known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        self.say([*path, _part(key)], f"unknown key, {hint}")

    def stop(self):
        """Raise all of them as one."""
        if self:
            head = f"cbsd_monit: {len(self)} error{'s' if len(self) > 1 else ''} in the pillar"
            raise SaltInvocationError("\n  ".join([head, *self]))


def _shown(value):
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _part(key):
    """Return a key as a part of a path: as it is when it is harmless to print."""
    harmless = isinstance(key, str) and re.fullmatch(r"[\w.*?\[\]!-]+", key, re.ASCII)
    return key if harmless else _shown(key)


def _part_of(value, key, kind):
    """Read one part of a composite value; an error says which part."""
    try:
        return READERS[kind](value[key], {"type": kind})
    except _Expected as err:
        raise _Expected(err.what or _tables()["types"][kind], (key, *err.at)) from err


# --- Reading values: a reader gets value and row, and returns the normal form or raises _Expected


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _Expected
    return int(value) if value == int(value) else value


def _bounded(value, row, unit=""):
    low, high = row.get("min", 0), row.get("max", 10**9)
    if not low <= value <= high:
        raise _Expected(f"{_tables()['types'][row['type']]} from {low}{unit} to {high}{unit}")
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


def _read_bytes(value, row):
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,15})([kmgt]?)", value, re.ASCII | re.I)
        if not match:
            raise _Expected
        value = int(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " ")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**60:
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
    """Strings with an allow-list: all of it must match, and there is no way out of a directory."""
    kind = row["type"]
    flags = 0 if kind == "text" else re.ASCII
    if not isinstance(value, str) or not re.fullmatch(_tables()["strings"][kind][1], value, flags):
        raise _Expected
    if kind != "regex" and ".." in re.split(r"[/:=, ]", value):
        raise _Expected
    if kind == "regex":
        _read_regex(value)
    return value


CLASSES = "alnum|alpha|blank|cntrl|digit|graph|lower|print|punct|space|upper|xdigit"
REGEX = re.compile(
    r"\\[][.{}()*+?^$|\\/\"-]"  # a backslash only before what it makes literal everywhere
    rf"|\[\^?\]?(?:\[:(?:{CLASSES}):\]|[^]\\[])*\]"
    r"|\{(?:[01]?[0-9]{1,2}|2[0-4][0-9]|25[0-5])(?:,(?:[01]?[0-9]{1,2}|2[0-4][0-9]|25[0-5])?)?\}"
    r"|[^][\\{}]"
)


def _read_regex(value):
    """Refuse what a node's C library cannot compile, or reads in another way than its author."""
    plain = REGEX.sub(lambda m: "x" if len(m[0]) > 1 and m[0][0] != "{" else m[0], value)
    if REGEX.sub("", value) or re.search(r"[(^$][*+?{]|[(|]\||\|\)|\(\)|^\||\|$", plain):
        raise _Expected(
            "a POSIX extended regular expression ([0-9] for \\d, [[:space:]] for \\s, [{] for {; "
            "nothing like (?i), no empty alternative)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python wonders about [[:space:]]
            re.compile(value)
    except re.error as err:
        raise _Expected(f"a regular expression ({err})") from err


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
    """Return seconds since 1970; a time without zone is UTC, for YAML makes that of ``…Z``."""
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
    limit = {"type": "int", "min": 1, "max": 64}
    if not isinstance(value, dict):
        try:
            return _read_int(value, limit)
        except _Expected as err:
            raise _Expected from err
    if set(value) != {"failures", "within"}:
        raise _Expected
    for key in value:
        try:
            _read_int(value[key], limit)
        except _Expected as err:
            raise _Expected(err.what, (key,)) from err
    if value["failures"] > value["within"]:
        raise _Expected
    return dict(value)


def _read_command(value, row):
    if not isinstance(value, list) or not 1 <= len(value) <= 32:
        raise _Expected
    if not isinstance(value[0], str) or value[0].endswith("/"):
        raise _Expected("the absolute path of a program", (0,))
    return [_part_of(value, n, "arg" if n else "path") for n in range(len(value))]


def _read_ladder(value, row):
    if isinstance(value, list) and not 1 <= len(value) <= 16:
        raise _Expected
    if not isinstance(value, list):
        return [_read_step(value, row)]
    return [_part_of(value, n, "step") for n in range(len(value))]


def _read_step(value, row):
    if isinstance(value, str) and value in _tables()["steps"]:
        return value
    for key, kind in (("command", "command"), ("service_restart", "word")):
        if isinstance(value, dict) and list(value) == [key]:
            return {key: _part_of(value, key, kind)}
    raise _Expected


def _read_dependencies(value, row):
    """
    Return names, ``{"env": name, "restart": True}`` for those that restart the env, and ``{"node":
    check}``.
    """
    if not isinstance(value, list):
        return [_read_dependency(value, row)]
    found = [_part_of(value, n, "dependency") for n in range(len(value))]
    named = [("env", item) if isinstance(item, str) else [*item.items()][0] for item in found]
    for number, (what, name) in enumerate(named):
        if (what, name) in named[:number]:
            raise _Expected(f"each {'check' if what == 'node' else 'env'} once", (number,))
    return found


def _read_dependency(value, row):
    if not isinstance(value, dict):
        return _read_string(value, {"type": "env"})
    if set(value) == {"node"}:
        return {"node": _part_of(value, "node", "check")}
    if "env" not in value or set(value) - {"env", "restart"}:
        raise _Expected
    name = _part_of(value, "env", "env")
    restart = _part_of({"restart": False, **value}, "restart", "bool")
    return {"env": name, "restart": True} if restart else name


def _read_headers(value, row):
    if not isinstance(value, dict) or not 1 <= len(value) <= 20:
        raise _Expected
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name, re.ASCII):
            raise _Expected("the name of a header (letters, digits and -)", (name,))
    return {name: _part_of(value, name, "header") for name in value}


def _read_raw(value, row):
    """
    Accept monit statements that concern the env only.

    ``set`` and ``include`` change the whole node. monit reads statements anywhere, not only at the
    start of a line, so the words are refused outside of double-quoted strings. monit and this
    reader certainly agree only while strings end on their line and ``'`` (which monit extends to
    the last one of a line) is not used.
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
            if re.search(rf"(?<![A-Za-z_-]){word}(?![A-Za-z0-9_-])", bare, re.I):
                raise _Expected(f"no {word!r}, which changes the whole node (line {number})")
    return value


READERS = {
    "bool": _read_bool,
    "int": _read_int,
    "number": _read_number,
    "port": _read_port,
    "duration": _read_duration,
    "days": _read_days,
    "bytes": _read_bytes,
    "percent": _read_percent,
    "choice": _read_choice,
    "address": _read_address,
    "name": _read_name,
    "time": _read_time,
    "threshold": _read_threshold,
    "command": _read_command,
    "dependencies": _read_dependencies,
    "dependency": _read_dependency,
    "ladder": _read_ladder,
    "headers": _read_headers,
    "raw": _read_raw,
    "step": _read_step,
    # and every type that is a pattern:
    **dict.fromkeys(
        "arg check env glob header host path place regex salt_url text url url_path word".split(),
        _read_string,
    ),
}
SECRET = ("headers", "raw")


class _Reader:
    """Reads one pillar: walks it along the tables and collects what is wrong."""

    def __init__(self, spec):
        self.spec = spec
        self.tables = _tables()
        self.errors = _Errors()

    def value(self, value, row, path):
        kind = row["type"]
        composite = getattr(self, f"_{kind}", None)
        if composite:
            return composite(value, row, path)
        try:
            return READERS[kind](value, row)
        except _Expected as err:
            for part in err.at:
                value = value[part] if isinstance(value, list) or part in value else part
            where = [_part(part) if isinstance(part, str) else str(part) for part in err.at]
            what = err.what or self.tables["types"][kind]
            self.errors.expected([*path, *where], what, value, kind in SECRET)
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
            elif value[key] is not None or table[key].get("required"):
                read = self.value(value[key], table[key], [*path, key])
                if read is not None:
                    result[key] = read
        for key, row in table.items():
            if row.get("required") and key not in value:
                self.errors.say([*path, key], f"missing: {self.tables['types'][row['type']]}")
        return result

    def _section(self, value, row, path):
        if row["of"] == "lookup" and isinstance(value, dict):
            # '' in defaults.yaml: nothing
            value = {key: given for key, given in value.items() if given != ""}
        read = self.section(value, self.tables["sections"][row["of"]], path)
        keys = set(value) if isinstance(value, dict) else None
        if row["of"] == "silence" and keys is not None and not {"env", "group", "node"} & keys:
            self.errors.say(path, "missing: env, group or node")
        if row["of"] == "group" and keys is not None and not {"match", "emulator"} & keys:
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
                self.errors.expected([*path, _part(name)], self.tables["types"][row["keys"]], name)
                continue
            result[name] = self._section(value[name], row, [*path, name])
        return result

    def _list(self, value, row, path):
        if row["of"] in self.tables["strings"] and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            self.errors.expected(path, f"a list of {row['of']}s", value)
            return []
        if row["of"] in self.tables["strings"]:
            kind = {"type": row["of"]}
            read = [self.value(item, kind, [*path, str(n)]) for n, item in enumerate(value)]
        else:
            read = [self._section(item, row, [*path, str(n)]) for n, item in enumerate(value)]
        return [item for item in read if item is not None]

    def _any(self, value, row, path):
        """Read data of any shape; its strings have to be ``text``."""
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
            try:
                _read_string(name, {"type": "check"})
            except _Expected:
                self.errors.expected(where, self.tables["types"]["check"], name)
                continue
            if value[name] is False:
                result[name] = False
            else:
                result[name] = self.check(value[name], row["scope"], where, name)
        for lower in {name.lower() for name in result}:
            twins = sorted(name for name in result if name.lower() == lower)
            if len(twins) > 1:
                what = f"differs from {twins[0]!r} only in case, which monit ignores"
                self.errors.say([*path, twins[1]], what)
        return result

    def check(self, value, scope, path, name):
        if not isinstance(value, dict):
            self.errors.expected(path, "a mapping", value)
            return {}
        kind = value.get("type")
        if "type" in value:
            if not isinstance(kind, str) or kind not in self.tables["checks"]:
                near = difflib.get_close_matches(str(kind), self.tables["checks"], 1, 0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                self.errors.expected([*path, "type"], f"a check type{hint}", kind)
                return {}
            if scope not in self.tables["checks"][kind]["scope"]:
                yet = " yet" if not self.tables["checks"][kind]["scope"] else ""
                owner = "a node" if scope == "node" else "an env"
                self.errors.say([*path, "type"], f"{kind!r} is not supported for {owner}{yet}")
                return {}
            kinds = [kind]
        else:
            kinds = self.inherited(name, scope, path)
            if not kinds:
                what = f"missing, and no profile or group gives a check {name!r} to change"
                self.errors.say([*path, "type"], what)
                return {}
        # Without a type it changes a check given elsewhere; one of the types there has to fit.
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
        """Return the types of the checks of this name that the entry at ``path`` may inherit."""

        def part(*keys):
            value = self.spec
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            return value if isinstance(value, dict) else {}

        def kinds(entry):
            profiles = entry.get("profiles") if isinstance(entry, dict) else None
            profiles = [profiles] if isinstance(profiles, str) else profiles
            profiles = profiles if isinstance(profiles, list) else []
            owners = [entry, *(part("profiles", p) for p in profiles if isinstance(p, str))]
            for owner in owners:
                checks = owner.get("checks") if isinstance(owner, dict) else None
                check = checks.get(name) if isinstance(checks, dict) else None
                kind = check.get("type") if isinstance(check, dict) else None
                row = self.tables["checks"].get(kind, {}) if isinstance(kind, str) else {}
                if scope in row.get("scope", ()):
                    yield kind

        entries = []
        if scope == "node":
            entries = list(part("nodes").values())
        elif path[1] == "groups":  # an env may be in several
            entries = list(part("groups").values())
        elif "envs" in path:
            env = path[path.index("envs") + 1]
            entries = [entry for entry in part("groups").values() if _matches(entry, env)]
            entries += [part("envs", env)]
            entries += [part("nodes", node, "envs", env) for node in part("nodes")]
        return sorted({kind for entry in entries for kind in kinds(entry)})

    def slots(self, value, path):
        """Refuse what Salt would execute when it becomes a state's argument, wherever it stands."""
        if isinstance(value, dict):
            for key in value:
                self.slots(key, [*path, key])
                self.slots(value[key], [*path, key])
        elif isinstance(value, list):
            for number, item in enumerate(value):
                self.slots(item, [*path, str(number)])
        elif isinstance(value, str) and value.lstrip().startswith("__slot__:"):
            where = [_part(part) for part in path]
            self.errors.say(where, "a value may not begin with __slot__:, Salt would execute it")

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
                    where = ["cbsd_monit", *path, "profiles", str(number)]
                    self.errors.say(where, f"no profile {profile!r}{hint}")
            if "raw" in entry and "raw" in entry.get("checks", {}):
                where = ["cbsd_monit", *path, "checks", "raw"]
                self.errors.say(where, "the name is taken by the env's raw text")
        for number, silence in enumerate(read["silences"]):
            if "group" in silence and silence["group"] not in read["groups"]:
                where = ["cbsd_monit", "silences", str(number), "group"]
                self.errors.say(where, f"no group {silence['group']!r}")
        self.loops(read["envs"], {}, [])
        for node, entry in read["nodes"].items():
            self.loops(read["envs"], entry.get("envs", {}), ["nodes", node])

    def loops(self, fleet, own, node):
        """Envs must not wait for each other, neither in the fleet nor with a node's own entries."""
        given = {name: {**fleet.get(name, {}), **own.get(name, {})} for name in {**fleet, **own}}
        waits = {name: _names(entry.get("depends_on", [])) for name, entry in given.items()}
        loop = cycle(waits)
        if loop:
            first = loop[0]
            path = [*node, "envs", first] if "depends_on" in own.get(first, {}) else ["envs", first]
            if node and all("depends_on" not in own.get(name, {}) for name in loop):
                return  # the fleet's, reported already
            what = f"{first!r} would wait for itself: {' -> '.join(loop)}"
            self.errors.say(["cbsd_monit", *path, "depends_on"], what)


def _names(dependencies):
    """Return the envs that ``depends_on`` names, in its normal form or not."""
    envs = (item.get("env") if isinstance(item, dict) else item for item in dependencies)
    return [env for env in envs if env is not None]


def cycle(waits):
    """
    Internal: Return a cycle of envs that wait for each other, such as ``["a", "b", "a"]``, or
    ``[]``.

    waits
        ``{env: [envs that it depends on]}``.
    """
    done = set()
    for start in sorted(waits):
        way, ahead = [start], [iter(waits[start])]
        while way and start not in done:
            env = next(ahead[-1], None)
            if env is None:
                ahead.pop()
                done.add(way.pop())
            elif env in way:
                loop = way[way.index(env) :]
                first = loop.index(min(loop))
                return [*loop[first:], *loop[:first], min(loop)]
            elif env not in done:
                way.append(env)
                ahead.append(iter(waits.get(env, [])))
    return []


def _matches(group, env, emulator=None):
    """Return whether the group holds the env, of any emulator by default; it may be malformed."""
    if not isinstance(group, dict):
        return False
    globs = group.get("match")
    globs = [globs] if isinstance(globs, str) else globs if isinstance(globs, list) else None
    if globs is not None and not any(
        isinstance(g, str) and fnmatch.fnmatchcase(env, g) for g in globs
    ):
        return False
    return emulator is None or group.get("emulator") in (None, emulator)


def _fields(kind, scope, whole):
    """Return the rows of a check of this type; not ``whole``: it only changes an inherited one."""
    inherited = dict(_tables()["check"])
    fields = dict(_tables()["checks"][kind]["fields"])
    if scope == "node":
        for key in ("start_period", "restart"):
            del inherited[key]
        fields.pop("in", None)
    table = {"type": {"type": "word"}, **inherited, **fields}
    if not whole:
        table = {key: {**row, "required": False} for key, row in table.items()}
    return table


def _rules(check, scope):
    """Yield ``(path, message)`` for what is wrong between the fields of a whole check."""
    kind = check["type"]
    if check.get("method") == "HEAD" and "content" in check:
        yield ["content"], "the answer to HEAD has no content"
    encrypted = _tables()["checks"][kind]["fields"].get("tls", {}).get("default")
    if kind != "tls" and not check.get("tls", encrypted):
        for key in ("verify", "certificate_valid"):
            if key in check and check[key] is not False:
                yield [key], "needs tls: true"
    if kind == "process":
        if not {"name", "pidfile"} & set(check):
            yield [], "missing: name or pidfile"
        if "pidfile" in check and check.get("min", 1) > 1:
            yield ["min"], "a pid file names one process"
    for low, high in (("min", "max"), ("min_size", "max_size")):
        if low in check and high in check and check[low] > check[high]:
            yield [high], f"less than {low}"
    if kind in ("system", "filesystem", "resource"):
        limits = [key for key in _tables()["checks"][kind]["fields"] if key != "path"]
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
    table = _tables()["sections"][name]
    defaults = {k: row["default"] for k, row in table.items() if row["type"] != "section"}
    whole = reader.section(defaults, table, [name])
    return {**whole, **given}


def validate(spec):
    """
    Internal: Return the pillar's ``cbsd_monit`` in its normal form.

    Durations are in seconds, ladders are lists, defaults are filled in.

    A normal form is valid input itself, and stays what it is.

    spec
        The mapping under the pillar key ``cbsd_monit``; ``None`` is an empty one.

    Raises ``SaltInvocationError`` that names every error with its path.
    """
    reader = _Reader(spec)
    reader.slots(spec, ["cbsd_monit"])
    table = _tables()["sections"]["cbsd_monit"]
    read = reader.section(spec, table, ["cbsd_monit"])
    for key, row in table.items():
        if row["type"] in ("section", "map"):
            read.setdefault(key, {})
    read.setdefault("silences", [])
    reader.references(read)
    reader.errors.stop()
    read["monit"] = _defaults("monit", **read["monit"])
    read["budget"] = _defaults("budget", **read["budget"])
    restart = _defaults("restart", **read["defaults"].get("restart", {}))
    read["defaults"] = {**_defaults("policy", **read["defaults"]), "restart": restart}
    return read


def gaps(checks, scope, path):
    """
    Internal: Return what checks leave open, by name.

    ``{name: {"defaults": {key: default of its type}, "inherits": [keys of the policy]}}``

    checks
        Normal forms by name, merged from all that contribute to them.
    scope
        ``env`` or ``node``.
    path
        Where they are in the pillar, as a list, for errors.

    Raises ``SaltInvocationError`` for checks that are not whole, or whose parts do not fit
    together.
    """
    errors, result, tables = _Errors(), {}, _tables()
    for name in sorted(checks):
        check, where = checks[name], [*path, name]
        twins = [other for other in checks if other.lower() == name.lower() and other < name]
        if twins:
            errors.say(where, f"differs from {twins[0]!r} only in case, which monit ignores")
        if "type" not in check:
            what = f"missing, and nothing here gives a check {name!r} to change"
            errors.say([*where, "type"], what)
            continue
        fields = _fields(check["type"], scope, whole=True)
        for key in check:
            if key not in fields:
                errors.unknown(where, key, fields)
        for part, message in _rules(check, scope):
            errors.say([*where, *part], message)
        own = [key for key in tables["checks"][check["type"]]["fields"] if key in fields]
        defaults = {key: fields[key]["default"] for key in own}
        result[name] = {
            "defaults": {key: value for key, value in defaults.items() if value is not None},
            "inherits": [key for key in tables["check"] if key in fields],
        }
    errors.stop()
    return result
