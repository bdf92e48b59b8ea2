"""
What the pillar means on one node: defaults, node, group, env and check put over each other.

The nearer wins; mappings are merged, everything else is replaced. A check is merged with the one of its name that it
inherits, unless it names another type: then it replaces it. ``false`` takes an inherited check away.

:depends: cbsd_monit_pillar
"""

import fnmatch
import re

from salt.exceptions import SaltInvocationError

POLICY = ("heal", "on_failure", "start_period", "restart")


def for_node(spec, node, envs):
    """
    Return all that the pillar means on one node.

    spec
        The mapping under the pillar key ``cbsd_monit``.
    node
        Minion id. Entries of ``nodes`` that match it are merged in the order of their names, the id itself last.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``.

    Returns a mapping: ``spec`` (the normal form), ``defaults``, ``monit``, ``budget`` (the node's), ``checks`` (the
    node's own, whole), ``envs`` (the pillar's entries), ``policies`` (``{name: as in policy.json}``), ``warnings``.

    Raises ``SaltInvocationError`` when the pillar is not valid, or an env's name or emulator is not known.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit_policy.for_node '{monit: {poll: 5s}}' hv1.example.net '[]'
    """
    spec = __salt__["cbsd_monit_pillar.validate"](spec)
    entries = [spec["nodes"][g] for g in sorted(spec["nodes"]) if g != node and fnmatch.fnmatchcase(node, g)]
    entries.append(spec["nodes"].get(node, {}))
    whole = {key: spec[key] for key in ("defaults", "monit", "budget")}
    settings = _merge(whole, *({key: entry[key] for key in whole if key in entry} for entry in entries))
    settings["checks"] = __salt__["cbsd_monit_pillar.complete"](
        _layered(*(entry.get("checks", {}) for entry in entries)),
        {**settings["defaults"], "on_failure": ["alert"]},
        "node",
        ["cbsd_monit", "nodes", node, "checks"],
    )
    sources = [spec["envs"], *(entry.get("envs", {}) for entry in entries)]
    settings["envs"] = {
        name: _entry([source[name] for source in sources if name in source])
        for name in sorted({name for source in sources for name in source})
    }
    settings.update(spec=spec, policies={}, warnings=[])
    for name, emulator in sorted(_present(env) for env in envs):
        policy = _policy(settings, node, name, emulator)
        if policy:
            settings["policies"][name] = policy
    return settings


def _merge(*layers):
    """Merge mappings, the later nearer; what is no mapping is replaced. The result shares nothing that changes."""
    result = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict) and key not in ("failure_threshold", "headers"):
                old = result.get(key)
                value = _merge(old if isinstance(old, dict) else {}, value)
            result[key] = value
    return result


def _layered(*layers, final=True):
    """Put sets of checks over each other; ``final`` is False where the result is a layer itself."""
    checks = {}
    for layer in layers:
        for name, check in layer.items():
            old = checks.get(name) or {}
            if check is False:
                checks[name] = False
            elif check.get("type", old.get("type")) == old.get("type"):
                checks[name] = _merge(old, check)
            else:
                checks[name] = check
    return {name: check for name, check in checks.items() if check is not False} if final else checks


def _entry(layers):
    """Merge the entries for one env: the fleet's, then the node's."""
    merged = _merge(*layers)
    if len(layers) > 1:
        merged["checks"] = _layered(*(layer.get("checks", {}) for layer in layers), final=False)
    return merged


def _policy(settings, node, name, emulator):
    """Return the policy of one env, or None when the pillar does not mean it."""
    spec = settings["spec"]
    groups = [group for _, group in sorted(spec["groups"].items()) if _holds(group, name, emulator)]
    own = settings["envs"].get(name)
    if not groups and own is None:
        return None
    own = own or {}
    path = ["cbsd_monit", "envs", name, "checks"]
    layers, inherited = [], [settings["defaults"]]
    for entry in [*groups, own]:
        inherited.append({key: entry[key] for key in settings["defaults"] if key in entry})
        layers += [spec["profiles"][profile].get("checks", {}) for profile in entry.get("profiles", [])]
        layers.append(entry.get("checks", {}))
    policy = _merge(*inherited)
    checks = __salt__["cbsd_monit_pillar.complete"](_layered(*layers), policy, "env", path)
    if "raw" in checks and "raw" in own:
        raise SaltInvocationError(f"{':'.join(path)}:raw: the name is taken by the env's raw text")
    checks = {key: _carried(check) for key, check in checks.items()}
    if emulator == "bhyve":
        inside = [key for key, check in checks.items() if check.get("in") == "jail"]
        if inside:
            said = f"{name} is a VM: checks that look into a jail are left out ({', '.join(inside)})"
            settings["warnings"].append(said)
        checks = {key: check for key, check in checks.items() if key not in inside}
    return {
        "schema": 1,
        "env": name,
        "node": node,
        "origin": "pillar",
        **{key: policy[key] for key in POLICY},
        "depends_on": own.get("depends_on", []),
        "checks": checks,
    }


def _holds(group, name, emulator):
    """Return whether the group holds the env."""
    if group.get("emulator", emulator) != emulator:
        return False
    return any(fnmatch.fnmatchcase(name, glob) for glob in group.get("match", ["*"]))


def _present(env):
    """Return name and emulator of an env as the inventory gives them; they are not trusted either."""
    name, emulator = env.get("name"), env.get("emulator")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name, re.ASCII):
        raise SaltInvocationError(f"envs: expected the name of an env, got {ascii(name)}")
    if emulator not in ("jail", "bhyve"):
        raise SaltInvocationError(f"envs: expected jail or bhyve as emulator of {name}, got {ascii(emulator)}")
    return name, emulator


def _carried(check):
    """Return the check as the agent gets it: what it has to run itself is a command."""
    if check["type"] == "service":
        name = check["name"]
        rest = {key: value for key, value in check.items() if key != "name"}
        return {**rest, "service": name, "in": "jail", "command": ["/usr/sbin/service", name, "onestatus"]}
    if check["type"] == "unix":
        rest = {key: value for key, value in check.items() if key != "path"}
        return {**rest, "type": "exec", "in": "jail", "command": ["/usr/bin/nc", "-z", "-U", check["path"]]}
    return check
