"""
What the pillar means on one node: defaults, node, group, env and check put over each other.

The nearer wins; mappings are merged, everything else is replaced. A check is merged with the
inherited one of its name, unless it names another type: then it replaces it. ``false`` removes an
inherited check.

There is one merge, and it keeps where in the pillar each value stands: that is what
``cbsd_monit.explain`` shows.

:depends: cbsd_monit_schema, cbsd_monit_pillar
"""

import fnmatch
import re

from salt.exceptions import SaltInvocationError

SETTINGS = ("defaults", "monit", "budget")
POLICY = ("heal", "on_failure", "start_period", "restart")
WHOLE = ("failure_threshold", "headers")  # mappings that are one value
BUILT_IN = "built-in default"


class _Mapping(dict):
    """A mapping that knows where each of its values stands: ``origins``, ``{key: path}``."""

    __slots__ = ("origins",)

    def __init__(self):
        super().__init__()
        self.origins = {}

    def only(self, keys):
        """Return the part of it with these keys."""
        part = _Mapping()
        for key in keys:
            if key in self:
                part[key], part.origins[key] = self[key], self.origins[key]
        return part


def _is_mapping(key, value):
    return isinstance(value, dict) and key not in WHOLE


def _sourced(values, path, written=None):
    """
    Return values in normal form, all of them at ``path`` or below, as a ``_Mapping``.

    written
        As the pillar has them, where the normal form holds more: the rest are built-in defaults.
    """
    result = _Mapping()
    for key, value in values.items():
        given = written is None or written.get(key) is not None
        below = None if written is None else written.get(key) or {}
        result[key] = _sourced(value, f"{path}:{key}", below) if _is_mapping(key, value) else value
        result.origins[key] = f"{path}:{key}" if given else BUILT_IN
    return result


def _merge(*layers):
    """Merge mappings, the nearest last; what is no mapping is replaced."""
    result = _Mapping()
    for layer in layers:
        for key, value in layer.items():
            if _is_mapping(key, value):
                old = result.get(key)
                value = _merge(old if isinstance(old, dict) else _Mapping(), value)
            result[key], result.origins[key] = value, layer.origins[key]
    return result


def _plain(value):
    """Return plain data that shares nothing that changes."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _traced(mapping):
    """Return a mapping with each value as ``{"value": …, "from": path}``."""
    return {
        key: _traced(value)
        if isinstance(value, _Mapping)
        else {"value": _plain(value), "from": mapping.origins[key]}
        for key, value in mapping.items()
    }


def for_node(spec, node, envs, origins=False):
    """
    Internal: Return all that the pillar means on one node.

    spec
        The mapping under the pillar key ``cbsd_monit``.
    node
        Minion id. Entries of ``nodes`` that match it are merged in the order of their names, the id
        itself last.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``.
    origins
        Also return where each value comes from.

    Returns a mapping: ``spec`` (the normal form), ``defaults``, ``monit``, ``budget`` (the node's),
    ``checks`` (the node's own, whole), ``envs`` (the pillar's entries for envs of the node),
    ``policies`` (``{name: as in policy.json}``), ``warnings``; with ``origins`` also ``origins``:
    ``{"monit", "budget", "envs": {name: {"heal", …, "checks", "layers"}}}``, where each value is
    ``{"value": …, "from": its path in the pillar, or "built-in default"}`` and ``layers`` lists
    what was merged, the nearest last.

    Raises ``SaltInvocationError`` when the pillar is not valid, or an env's name or emulator is not
    known.
    """
    written = spec or {}
    spec = __salt__["cbsd_monit_pillar.validate"](spec)
    pattern = re.compile(__salt__["cbsd_monit_schema.env_name"]())
    present = sorted(_present(env, pattern) for env in envs)
    globs = [
        name for name in sorted(spec["nodes"]) if name != node and fnmatch.fnmatchcase(node, name)
    ]
    globs += [node] if node in spec["nodes"] else []
    nodes = [_sourced(spec["nodes"][name], f"cbsd_monit:nodes:{name}") for name in globs]
    settings = {}
    for key in SETTINGS:
        fleets = _sourced(spec[key], f"cbsd_monit:{key}", written.get(key) or {})
        settings[key] = _merge(fleets, *(entry[key] for entry in nodes if key in entry))
    sources = [spec["envs"], *(spec["nodes"][name].get("envs", {}) for name in globs)]
    _acyclic(sources)

    alert = _sourced({"on_failure": ["alert"]}, "", {})
    checks = _layered(*(entry.get("checks", {}) for entry in nodes))
    path = ["cbsd_monit", "nodes", node, "checks"]
    checks = _completed(checks, _merge(settings["defaults"], alert), "node", path)
    result = {key: _plain(value) for key, value in settings.items()}
    result.update(spec=spec, checks=_plain(checks), envs={}, policies={}, warnings=[])
    traced = {key: _traced(settings[key]) for key in ("monit", "budget")}
    traced["envs"] = {}
    fleet = {
        "defaults": settings["defaults"],
        "layers": ["built-in defaults"] + ["cbsd_monit:defaults"] * bool(written.get("defaults")),
        "groups": _sourced(spec["groups"], "cbsd_monit:groups"),
        "profiles": _sourced(spec["profiles"], "cbsd_monit:profiles"),
        "jails_only": {
            kind
            for kind, row in __salt__["cbsd_monit_schema.schema"]()["checks"].items()
            if "only" in row
        },
    }
    fleet["layers"] += [
        f"cbsd_monit:nodes:{name}:defaults" for name in globs if "defaults" in spec["nodes"][name]
    ]
    paths = ["cbsd_monit:envs", *(f"cbsd_monit:nodes:{name}:envs" for name in globs)]
    for name, emulator in present:
        entries = [
            _sourced(s[name], f"{path}:{name}") for path, s in zip(paths, sources) if name in s
        ]
        layers = [f"{path}:{name}" for path, s in zip(paths, sources) if name in s]
        known = sorted(spec["groups"].items())
        groups = [group for group, entry in known if _holds(entry, name, emulator)]
        if not entries and not groups:
            continue
        own = _entry(entries)
        policy, checks, inside, used = _policy(fleet, name, emulator, groups, own, layers)
        if inside:
            left = ", ".join(inside)
            warning = f"{name} is a VM: checks that look into a jail are left out ({left})"
            result["warnings"].append(warning)
        result["envs"][name] = _plain(own)
        result["policies"][name] = {
            "schema": 1,
            "env": name,
            "node": node,
            "origin": "pillar",
            **_plain(policy.only(POLICY)),
            **_needs(own.get("depends_on", [])),
            "checks": {key: _carried(_plain(check)) for key, check in checks.items()},
        }
        if origins:
            traced["envs"][name] = {
                **_traced(policy.only(POLICY)),
                **_traced(own.only(["depends_on", "raw", "template"])),
                "checks": {key: _traced(check) for key, check in checks.items()},
                "left_out": inside,
                "layers": used,
            }
    if origins:
        result["origins"] = traced
    return result


def _layered(*layers, final=True):
    """Put sets of checks over each other; ``final`` is False where the result is a layer itself."""
    checks = _Mapping()
    for layer in layers:
        for name, check in layer.items():
            old = checks.get(name) or _Mapping()
            if check is not False and check.get("type", old.get("type")) == old.get("type"):
                check = _merge(old, check)
            checks[name], checks.origins[name] = check, layer.origins[name]
    return checks.only([name for name in checks if checks[name] is not False]) if final else checks


def _entry(layers):
    """Merge the entries for one env: the fleet's, then the node's."""
    merged = _merge(*layers)
    if len(layers) > 1:
        merged["checks"] = _layered(
            *(layer["checks"] for layer in layers if "checks" in layer), final=False
        )
    return merged


def _completed(checks, policy, scope, path):
    """Return checks with everything they inherit, their types' defaults included."""
    gaps = __salt__["cbsd_monit_pillar.gaps"](checks, scope, path)
    whole = _Mapping()
    for name, gap in gaps.items():
        check = checks[name]
        inherits = [key for key in gap["inherits"] if key != "restart" or "restart" in check]
        whole[name] = _merge(_sourced(gap["defaults"], "", {}), policy.only(inherits), check)
        whole.origins[name] = checks.origins[name]
    return whole


def _policy(fleet, name, emulator, groups, own, layers):
    """
    Return policy and checks of one env, the names of checks that do not fit it, and what was
    merged.

    groups
        Names of those that hold it, the nearest last.
    own, layers
        The entry for it, and what that was merged from.
    """
    path = ["cbsd_monit", "envs", name, "checks"]
    checks, inherited, used = [], [fleet["defaults"]], list(fleet["layers"])
    entries = [(fleet["groups"][group], [f"cbsd_monit:groups:{group}"]) for group in groups]
    for entry, paths in [*entries, (own, layers)]:
        inherited.append(entry.only(fleet["defaults"]))
        for profile in entry.get("profiles", []):
            checks.append(fleet["profiles"][profile].get("checks", _Mapping()))
            used.append(f"cbsd_monit:profiles:{profile} (named by {entry.origins['profiles']})")
        checks.append(entry.get("checks", _Mapping()))
        used += paths
    policy = _merge(*inherited)
    whole = _completed(_layered(*checks), policy, "env", path)
    if "raw" in whole and "raw" in own:
        raise SaltInvocationError(f"{':'.join(path)}:raw: the name is taken by the env's raw text")
    inside = []
    if emulator == "bhyve":
        inside = [
            key
            for key, c in whole.items()
            if c.get("in") == "jail" or c["type"] in fleet["jails_only"]
        ]
    return policy, whole.only([key for key in whole if key not in inside]), inside, used


def _needs(dependencies):
    """
    Return ``depends_on`` as the agent gets it: names of envs and ``{"node": CHECK}``, and the names
    of those with ``restart: true``.
    """
    restarting = [i["env"] for i in dependencies if isinstance(i, dict) and "env" in i]
    return {
        "depends_on": [i.get("env", i) if isinstance(i, dict) else i for i in dependencies],
        "restart_with": restarting,
    }


def _acyclic(sources):
    """Refuse envs that wait for each other on this node: each entry alone may be harmless."""
    waits = {}
    for source in sources:
        named = {name: entry for name, entry in source.items() if "depends_on" in entry}
        for name, entry in named.items():
            needs = _needs(entry["depends_on"])["depends_on"]
            waits[name] = [need for need in needs if isinstance(need, str)]
    loop = __salt__["cbsd_monit_pillar.cycle"](waits)
    if loop:
        where, way = f"cbsd_monit:envs:{loop[0]}:depends_on", " -> ".join(loop)
        raise SaltInvocationError(f"{where}: {loop[0]!r} would wait for itself: {way}")


def _holds(group, name, emulator):
    """Return whether the group holds the env."""
    if group.get("emulator", emulator) != emulator:
        return False
    return any(fnmatch.fnmatchcase(name, glob) for glob in group.get("match", ["*"]))


def _present(env, pattern):
    """Return name and emulator of an env of the inventory, which is not trusted either."""
    name, emulator = env.get("name"), env.get("emulator")
    if not isinstance(name, str) or not re.fullmatch(pattern, name):
        raise SaltInvocationError(f"envs: expected the name of an env, got {ascii(name)}")
    if emulator not in ("jail", "bhyve"):
        raise SaltInvocationError(
            f"envs: expected jail or bhyve as emulator of {name}, got {ascii(emulator)}"
        )
    return name, emulator


def _carried(check):
    """Return the check as the agent gets it: what it has to run itself is a command."""
    if check["type"] == "service":
        name = check["name"]
        rest = {key: value for key, value in check.items() if key != "name"}
        return {
            **rest,
            "service": name,
            "in": "jail",
            "command": ["/usr/sbin/service", name, "onestatus"],
        }
    if check["type"] == "unix":
        rest = {key: value for key, value in check.items() if key != "path"}
        return {
            **rest,
            "type": "exec",
            "in": "jail",
            "command": ["/usr/bin/nc", "-z", "-U", check["path"]],
        }
    return check
