"""
What the states of ``cbsd_monit`` share: where a node's things are, what clean has to put back,
errors, what monit itself says.

:depends: the execution modules ``cbsd``, for a workdir that is not given, ``cbsd_monit_file`` and
    ``cbsd_monit_schema``
"""

import base64
import contextlib
import json
import logging
import os
import re
import socket
import time

from salt.exceptions import CommandExecutionError, SaltException, SaltInvocationError

log = logging.getLogger(__name__)

SCHEMA = 1
ABSOLUTE = ("config", "libexec", "monit", "monitrc", "monitrc_sample", "run", "state", "workdir")
# What a state may meet: anything else is a bug of this formula.
FORESEEN = (OSError, SaltException)
PATIENCE = 5  # seconds that monit has for its answer
LONGEST = 64 << 20  # bytes of an answer; about 40,000 services monit says 11 million


def failed(name, err):
    """
    Internal: Return the result of the state ``name`` that ended with the exception ``err``.

    An exception that nobody foresaw is logged with its traceback, and its comment says that it is a
    bug.
    """
    comment = str(err)
    if isinstance(err, FORESEEN):
        log.debug("%s failed", name, exc_info=err)
    else:
        log.error("%s: a bug in cbsd_monit", name, exc_info=err)
        where = __opts__.get("log_file") or "the minion's log"
        comment = f"A bug in cbsd_monit, not in your pillar: {type(err).__name__}: {err}. "
        comment += f"Please report it with its traceback, which is in {where}."
    return {"name": name, "result": False, "changes": {}, "comment": comment}


def paths(spec=None, need=(), **given):
    """
    Internal: Return the paths of this node: ``spec["lookup"]``, and over it what ``given`` says.

    ``workdir`` is what CBSD says (``cbsd.paths``) where neither has it. Raises
    ``SaltInvocationError`` for a path that is not absolute, and for one of ``need`` that is not
    known.
    """
    given = {k: v for k, v in given.items() if v is not None and not k.startswith("__")}
    found = {**((spec or {}).get("lookup") or {}), **given}
    if not found.get("workdir"):
        found["workdir"] = __salt__["cbsd.paths"]()["workdir"]
    for key in ABSOLUTE:
        if found.get(key) and not os.path.isabs(str(found[key])):
            got = f"expected an absolute path, got {found[key]!r}"
            raise SaltInvocationError(f"cbsd_monit:lookup:{key}: {got}")
    missing = ", ".join(key for key in need if not found.get(key))
    if missing:
        raise SaltInvocationError(
            f"cbsd_monit:lookup does not set {missing}, and this system has no default"
        )
    return found


def env_dirs(workdir):
    """
    Internal: Return the directory ``jails-system/ENV`` of each env that has one, ``{env: path}``.

    workdir
        CBSD's working directory; without a ``jails-system`` in it there are none. The directory of
        a VM on ZFS is a symlink.
    """
    top = os.path.join(workdir, "jails-system")
    is_name = re.compile(__salt__["cbsd_monit_schema.env_name"]()).fullmatch
    try:
        with os.scandir(top) as found:
            names = sorted(e.name for e in found if is_name(e.name) and e.is_dir())
    except FileNotFoundError:
        return {}
    return {name: os.path.join(top, name) for name in names}


def monit_status(paths):
    """
    Internal: Return monit's present status (XML) from its socket: nothing else of it is reliable.

    paths
        Those of this node: the socket is the one in the agent's configuration, ``config``, if there
        is one, else ``monit.sock`` in ``state``.

    Returns ``None`` where no monit answers within 5 s, and ``""`` where it wants a password that is
    not the one of ``set httpd`` in its control file.
    """
    read, until = __salt__["cbsd_monit_file.tools"]().read, time.monotonic() + PATIENCE
    try:
        configuration = json.loads(read(paths["config"]) or "{}")
    except ValueError:
        configuration = {}
    configured, monitrc = configuration.get("socket"), configuration.get("monitrc")
    request = b"GET /_status?format=xml HTTP/1.0\r\n"
    request += _authorization(monitrc and read(monitrc) or "")
    answer = bytearray()
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as line:
        try:
            line.settimeout(PATIENCE)
            line.connect(configured or os.path.join(paths["state"], "monit.sock"))
            line.sendall(request + b"\r\n")
            while part := line.recv(1 << 16):
                answer += part
                left = until - time.monotonic()
                if left <= 0 or len(answer) > LONGEST:
                    return None
                line.settimeout(left)
        except OSError:
            return None
    if re.match(rb"HTTP/1\.[01] 401\b", answer):
        return ""
    good = re.match(rb"HTTP/1\.[01] 200\b", answer)
    return answer.decode("utf-8", "replace") if good else None


def _authorization(control):
    """Return the header for the first user whom monit's ``control`` file allows, or ``b""``."""
    text = re.sub(r"(?m)^\s*#.*$", "", control)
    word = r"""("[^"]*"|'[^']*'|[^\s:"']+)"""
    for found in re.findall(rf"\ballow\s+{word}:{word}", text):
        user, password = (part[1:-1] if part[0] in "\"'" else part for part in found)
        coded = base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape"))
        return b"Authorization: Basic " + coded + b"\r\n"
    return b""


def undo(state):
    """
    Internal: Return what clean has to put back on this node, by part: ``include``, ``hooks``,
    ``envs``.

    state
        The directory of ``undo.json``; ``CommandExecutionError`` is raised if that cannot be
        understood.
    """
    path = os.path.join(state, "undo.json")
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
        if isinstance(found, dict) and found.pop("schema", None) == SCHEMA:
            return found
    except FileNotFoundError:
        return {}
    except ValueError as err:
        raise CommandExecutionError(f"{path} cannot be read: {err}") from err
    raise CommandExecutionError(
        f"{path} is not of schema {SCHEMA}: another version of this formula wrote it"
    )


def remember(state, part, data):
    """
    Internal: Make ``data`` what ``undo`` returns for ``part``, durably; return whether that is new.

    Empty ``data`` removes the part. The states call this before they change what it describes, so
    that a crash in between loses nothing.
    """
    files, path = __salt__["cbsd_monit_file.tools"](), os.path.join(state, "undo.json")
    old = undo(state)
    new = {k: v for k, v in {**old, part: data}.items() if v}
    files.tidy(path)
    if new == old:
        return False
    if not new:
        os.unlink(path)
        return True
    os.makedirs(state, 0o700, exist_ok=True)
    files.write(path, json.dumps({"schema": SCHEMA, **new}, indent=1, sort_keys=True) + "\n")
    return True
