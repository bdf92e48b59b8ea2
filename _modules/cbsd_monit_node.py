"""
This node as the states of ``cbsd_monit`` find it: where its things are, and what clean has to put back.

:depends: the execution module ``cbsd``, for a workdir that is not given
"""

import contextlib
import json
import os
import re

SCHEMA = 1
__virtualname__ = "cbsd_monit_node"
_ABSOLUTE = ("config", "libexec", "monit", "monitrc", "monitrc_sample", "run", "state", "workdir")


def __virtual__():
    return __virtualname__


def paths(spec=None, need=(), **given):
    """
    Internal: Return the paths of this node: ``spec["lookup"]``, with what is ``given`` and not ``None`` over it.

    ``workdir`` is CBSD's own word (``cbsd.paths``) where neither says it. Raises ``ValueError`` for a path that is not absolute, and
    when one of ``need`` is not known.
    """
    given = {k: v for k, v in given.items() if v is not None and not k.startswith("__")}
    found = {**((spec or {}).get("lookup") or {}), **given}
    if not found.get("workdir"):
        found["workdir"] = __salt__["cbsd.paths"]()["workdir"]
    for key in _ABSOLUTE:
        if found.get(key) and not os.path.isabs(str(found[key])):
            raise ValueError(
                f"cbsd_monit:lookup:{key}: expected an absolute path, got {found[key]!r}"
            )
    missing = [key for key in need if not found.get(key)]
    if missing:
        raise ValueError(
            f"cbsd_monit:lookup says nothing about {', '.join(missing)}, nor is there a default for this system"
        )
    return found


def env_dirs(workdir):
    """
    Internal: Return ``jails-system/ENV`` by env, of everything that CBSD keeps a directory for; of a VM on ZFS it is a symlink.

    workdir
        CBSD's working directory. An empty dict where it has no ``jails-system``.
    """
    top = os.path.join(workdir, "jails-system")
    is_name = re.compile(__salt__["cbsd_monit_schema.env_name"]()).fullmatch
    try:
        with os.scandir(top) as found:
            names = sorted(e.name for e in found if is_name(e.name) and e.is_dir())
    except FileNotFoundError:
        return {}
    return {name: os.path.join(top, name) for name in names}


def undo(state):
    """
    Internal: Return what clean has to put back on this node, by part: ``include``, ``hooks`` and ``envs``.

    state
        The directory of ``undo.json``.
    """
    try:
        with open(os.path.join(state, "undo.json"), encoding="utf-8") as stream:
            found = json.load(stream)
    except FileNotFoundError:
        return {}
    if found.pop("schema", None) != SCHEMA:
        raise ValueError(
            f"{state}/undo.json is not of schema {SCHEMA}: another version of this formula wrote it"
        )
    return found


def remember(state, part, data):
    """
    Internal: Make ``data`` what ``undo`` returns for ``part``, durably; nothing at all for empty ``data``. True if that was news.

    The states call this before they change what it describes, so that a crash in between loses nothing.
    """
    old = undo(state)
    new = {k: v for k, v in {**old, part: data}.items() if v}
    path = os.path.join(state, "undo.json")
    temp = os.path.join(state, ".undo.json.salt")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(temp)  # of a run that was killed
    if new == old:
        return False
    if not new:
        os.unlink(path)
        return True
    os.makedirs(state, 0o700, exist_ok=True)
    handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump({"schema": SCHEMA, **new}, stream, indent=1, sort_keys=True)
            stream.write("\n")
            stream.flush()
            os.fsync(handle)
        os.replace(temp, path)
        folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    return True
