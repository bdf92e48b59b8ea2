"""
What the fleet asks of this node: the runner ``cbsd_monit`` and the reactor call these.

Nothing here takes a command, a path or the name of a state from its caller: what is done follows
from this node's own pillar and policy.

:depends: the execution modules ``cbsd``, ``cbsd_monit`` and ``cbsd_monit_policy``
"""

import fcntl
import fnmatch
import logging
import os
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

log = logging.getLogger(__name__)

__virtualname__ = "cbsd_monit_fleet"

NODE = "(node)"  # the row of the node's own checks: not an env
LEFT_OUT = ("last", "checks")
PATIENCE = 600  # seconds that an adoption waits for a state run to end
WINDOW = 7  # seconds that one adoption looks on: more than what the reactor leaves out meanwhile
ROUNDS = 5


def __virtual__():
    return __virtualname__


def _settings():
    return __salt__["config.get"]("cbsd_monit", {}) or {}


def _groups():
    """The groups of this node's pillar, by name."""
    groups = _settings().get("groups") or {}
    return {name: group for name, group in groups.items() if isinstance(group, dict)}


def _holds(group, name, row):
    globs = group.get("match", "*")
    globs = globs if isinstance(globs, list) else [globs]
    fits = group.get("emulator") in (None, row["emulator"])
    return fits and any(fnmatch.fnmatchcase(name, str(glob)) for glob in globs)


def _selected(rows, env, group):
    """The watched envs among ``rows`` that a glob and a group of this node's pillar leave."""
    for what, value in (("env", env), ("group", group)):
        if value is not None and not isinstance(value, str):
            raise SaltInvocationError(f"{what}: expected a name, got {value!r}")
    meant = {} if group is None else _groups().get(group)
    if meant is None:
        return []
    return [
        name
        for name, row in sorted(rows.items())
        if name != NODE and row["state"] != "unwatched"
        if fnmatch.fnmatchcase(name, env or "*") and _holds(meant, name, row)
    ]


def report():
    """
    Return the present state of this node's envs, as :py:func:`cbsd_monit.status` has it, with the
    ``groups`` of this node's pillar that hold each, and with less to carry: without ``last``,
    ``checks`` and what is empty.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit_fleet.report
    """
    groups, found = _groups(), {}
    for name, row in __salt__["cbsd_monit.status"]().items():
        said = {k: v for k, v in row.items() if v not in (None, "", {}, []) and k not in LEFT_OUT}
        inside = [g for g in sorted(groups) if name != NODE and _holds(groups[g], name, row)]
        found[name] = {**said, "groups": inside}
    return found


def silence(until, reason, by, env=None, group=None):
    """
    Have the envs of this node that ``env`` (name or glob) and ``group`` select not healed before
    ``until``; all without them.

    Returns ``{env: until}`` in seconds since 1970. Parameters and errors as of
    :py:func:`cbsd_monit.silence`.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit_fleet.silence 2h 'kernel upgrade' ann group=web
    """
    found = {}
    for name in _selected(__salt__["cbsd_monit.status"](), env, group):
        row = __salt__["cbsd_monit.silence"](name, until, reason, by)[name]
        found[name] = (row.get("silence") or {}).get("until")
    return found


def unsilence(env=None, group=None):
    """
    Take back the silences that were given by command to the envs that ``env`` and ``group`` select;
    returns their names.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit_fleet.unsilence group=web
    """
    names = _selected(__salt__["cbsd_monit.status"](), env, group)
    for name in names:
        __salt__["cbsd_monit.unsilence"](name)
    return names


def retry(env=None, group=None):
    """
    End ``gave_up`` of the envs that ``env`` (name or glob) and ``group`` select: their attempts are
    counted anew. Returns their names; others are left as they are.

    Raises as :py:func:`cbsd_monit.retry`.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit_fleet.retry group=web
    """
    rows = __salt__["cbsd_monit.status"]()
    names = [name for name in _selected(rows, env, group) if rows[name]["state"] == "gave_up"]
    for name in names:
        __salt__["cbsd_monit.retry"](name)
    return names


def adopt():
    """
    Apply this node's checks if pillar names an env here that has none yet; returns the names of
    such envs.

    Cheap and harmless however often it is called: without such an env nothing is applied, and calls
    that come while one is at work end at once, because it looks again before it ends. A state run
    that is at work is waited for, and a node without our agent (after ``cbsd_monit.clean``) is left
    as it is.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit_fleet.adopt
    """
    run = _lookup("run")
    if not _installed():
        return []
    os.makedirs(run, 0o700, exist_ok=True)
    handle = os.open(os.path.join(run, "adopt"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return []
        adopted, began = set(), time.monotonic()
        for _ in range(ROUNDS):
            _alone()
            names = _unwatched()
            if names:
                adopted |= set(names)
                _apply()
            wait = WINDOW - (time.monotonic() - began)
            if wait <= 0 and not names:
                break
            time.sleep(max(wait, 0))
        return sorted(adopted)
    finally:
        os.close(handle)


def _lookup(key):
    given = (_settings().get("lookup") or {}).get(key)
    return given or __salt__["cbsd_monit_schema.lookup"]()[key]


def _installed():
    """False on a node that was cleaned, or never set up: an event is not who decides that."""
    return os.path.exists(os.path.join(_lookup("libexec"), "wake"))


def _alone():
    """Wait for a state run to end: it may adopt the envs itself, or take all of this back."""
    until = time.monotonic() + PATIENCE
    while __salt__["state.running"]() and time.monotonic() < until:
        time.sleep(0.5)


def _unwatched():
    """Envs of this node that pillar names and that have no checks yet."""
    if not _installed():
        return []
    envs = [
        {"name": name, "emulator": row["emulator"]}
        for name, row in __salt__["cbsd.list"]().items()
        if row["emulator"] in ("jail", "bhyve")
    ]
    named = __salt__["cbsd_monit_policy.for_node"](_settings(), __grains__["id"], envs)["policies"]
    top = os.path.join(__salt__["cbsd.paths"]()["workdir"], "jails-system")
    return [
        name
        for name in sorted(named)
        if not os.path.exists(os.path.join(top, name, "monit", "policy.json"))
    ]


def _apply():
    results = __salt__["state.apply"]("cbsd_monit.checks", queue=True)
    if not isinstance(results, dict):
        raise CommandExecutionError("; ".join(map(str, results)))
    bad = [r["comment"] for r in results.values() if r["result"] is False]
    if bad:
        raise CommandExecutionError("; ".join(bad))
