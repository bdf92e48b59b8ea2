"""
monit on this node: that its control file includes what is published, and that it runs.

:depends: the execution module ``cbsd_monit_node``
"""

import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
import socket
import stat
import tempfile
import time

log = logging.getLogger(__name__)

__virtualname__ = "cbsd_monit"

_GLOB_LINE = re.compile(
    r"""[ \t]*include[ \t]+["']?\S*/jails-system/\*/monit/monitrc["']?[ \t]*(#.*)?\Z"""
)
_STATEMENT = re.compile(r"[ \t]*(set|check|include)\b", re.I)
_HTTPD = re.compile(r"[ \t]*set[ \t]+httpd\b", re.I)
_MINIMAL = "# Made by cbsd_monit, because this node had no control file of monit: what follows sets everything.\n"
_NAME = re.compile(r"<name>(?:<!\[CDATA\[)?(.*?)(?:\]\]>)?</name>")
_CHECK = re.compile(r'^[ \t]*check[ \t]+\S+[ \t]+(?:"([^"\n]+)"|([^\s"$]+))', re.M | re.I)
_WRITTEN = re.compile(r"^(?=[ \t]*set[ \t]+(idfile|log|logfile)[ \t]+/)", re.M | re.I)
_REPLACED = "# cbsd_monit: one include of what is published is enough\n"


def __virtual__():
    if "cbsd_monit_node.paths" not in __salt__:
        return False, "the execution module cbsd_monit_node is missing: run saltutil.sync_all"
    return __virtualname__


def _ret(name, comment):
    return {"name": name, "result": True, "changes": {}, "comment": comment}


def _failed(name, err):
    log.debug("%s failed", name, exc_info=True)
    return {"name": name, "result": False, "changes": {}, "comment": f"{err}"}


def _pending(ret, comment):
    return {**ret, "result": None, "comment": comment}


def _diff(old, new, path):
    """What an operator reads: a unified diff; absence is the empty text."""
    lines = difflib.unified_diff(
        (old or "").splitlines(),
        (new or "").splitlines(),
        f"{path} (old)",
        f"{path} (new)",
        lineterm="",
    )
    return "\n".join(lines) or f"{'' if old is None else 'new '}empty file"


def _without_httpd(sample):
    """The sample with ``set httpd`` and all that belongs to it commented out: nobody wants its password."""
    lines, inside = [], False
    for line in sample.splitlines(keepends=True):
        if _STATEMENT.match(line):
            inside = bool(_HTTPD.match(line))
        said = line.strip()
        lines.append(f"# {line}" if inside and said and not said.startswith("#") else line)
    return "".join(lines)


def _same_line(line, wanted):
    return line.split("#")[0].replace('"', "").replace("'", "").split() == wanted.split()


class _Include:
    """The text of monitrc with our line, and how to get back from it."""

    def __init__(self, paths, glob):
        # `published` holds all envs; with the chapter's glob beside it they would be defined twice, so `head` is included.
        self.lines = [f"include {paths['state']}/{name}\n" for name in ("published", "head")]
        self.line = self.lines[1 if glob else 0]
        self.glob_line = (
            f"include {paths['workdir']}/jails-system/*/monit/monitrc\n" if glob else None
        )

    def satisfied(self, text):
        lines = text.splitlines()
        globs = [line for line in lines if _GLOB_LINE.match(line)]
        return sum(_same_line(line, self.line) for line in lines) == 1 and (
            len(globs) == 1 and _same_line(globs[0], self.glob_line)
            if self.glob_line
            else not globs
        )

    def add(self, text):
        """(text with our line, what ``take_away`` needs to know)."""
        replaced, lines, missing = [], [], [self.line]
        if self.glob_line and not any(
            _GLOB_LINE.match(line.rstrip("\n")) for line in text.splitlines()
        ):
            missing.append(self.glob_line)
        for line in text.splitlines(keepends=True):
            if _GLOB_LINE.match(line.rstrip("\n")) and not self.glob_line:
                now = missing.pop() if missing else _REPLACED
                replaced.append([line, now])
                line = now
            lines.append(line)
        text = "".join(lines)
        appended = "".join(missing)
        if appended and text and not text.endswith("\n"):
            appended = "\n" + appended
        return text + appended, {"replaced": replaced, "appended": appended}

    def take_away(self, text, record):
        """``text`` as it would be without us, whatever else was edited in it since."""
        appended = record.get("appended") or ""
        if appended and text.endswith(appended):
            text = text[: -len(appended)]
        lines = text.splitlines(keepends=True)
        for was, now in record.get("replaced", ()):
            if now in lines:
                lines[lines.index(now)] = was
        ours = [line for line in (*self.lines, *appended.splitlines()) if line.strip()]
        return "".join(line for line in lines if not any(_same_line(line, our) for our in ours))


def _monit(paths, *args):
    """monit's own command line, for what its socket cannot do; its exit code is only believed for ``-t``."""
    ran = __salt__["cmd.run_all"](
        [paths["monit"], *args], python_shell=False, ignore_retcode=True, stdin="", timeout=120
    )
    return ran["retcode"], (ran["stderr"].strip() or ran["stdout"].strip())


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _stage_of(path, folder):
    return os.path.join(folder, f".{os.path.basename(path)}.staged")


def _tidy(path):
    """Remove what a run that was killed has left beside the control file ``path``."""
    if not __opts__["test"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_stage_of(path, os.path.dirname(path)))


def _attributes(path):
    """[mode, uid, gid] of a file."""
    info = os.stat(path)
    return [stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid]


@contextlib.contextmanager
def _staged(path, text, folder):
    """A file with ``text``, 0600, beside which nothing else happens: renamed to ``path``, or gone at the end."""
    staged = _stage_of(path, folder)
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(
            handle, "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as stream:
            os.fchmod(handle, 0o600)
            stream.write(text)
            stream.flush()
            os.fsync(handle)
        yield staged
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)


def _refused(paths, path, staged):
    """Why monit would not take ``staged`` as its control file, or ''. An absent monit has no opinion."""
    if not os.path.exists(paths.get("monit") or ""):
        return ""
    code, words = _monit(paths, "-t", "-c", staged)
    return words.replace(staged, path) if code else ""


def _harmless(text, folder):
    """``text`` for a trial that writes nothing: ``monit -t`` makes the id file and the log that a control file names."""
    own = os.path.join(folder, "id")
    with open(own, "w", encoding="ascii") as stream:
        stream.write("0" * 32)
    return f"{_WRITTEN.sub('# ', text)}\nset idfile {own}\n"


def include_present(name, spec=None, mode=None, lookup=None):
    """
    The control file of monit includes what the agent publishes.

    A literal include line of CBSD's chapter (``include …/jails-system/*/monit/monitrc``) is replaced, and put back by
    ``include_absent``. A missing control file is made from ``lookup:monitrc_sample``, without its ``set httpd`` and
    password. The new text replaces the old only if ``monit -t`` accepts it.

    name
        The control file, ``/usr/local/etc/monitrc``.
    mode
        ``publish``, or ``glob`` for the chapter's line to the letter besides the published head. Default: what pillar
        says as ``monit:include``, else ``publish``.

    .. code-block:: yaml

        /usr/local/etc/monitrc:
          cbsd_monit.include_present:
            - spec: {{ {"pillar": settings, "lookup": lookup} | json }}
    """
    try:
        return _include_present(name, spec or {}, mode, lookup or {})
    except Exception as err:
        return _failed(name, err)


def _include_present(name, spec, mode, lookup):
    ret = _ret(name, f"{name} includes what is published.")
    paths = __salt__["cbsd_monit_node.paths"](spec, need=("workdir", "state", "run"), **lookup)
    mode = mode or ((spec.get("pillar") or {}).get("monit") or {}).get("include") or "publish"
    if mode not in ("publish", "glob"):
        raise ValueError(f"monit:include: expected publish or glob, got {mode!r}")
    include = _Include(paths, mode == "glob")
    path = os.path.realpath(name)
    _tidy(path)
    old = _read(path)
    records = __salt__["cbsd_monit_node.undo"](paths["state"]).get("include", {})
    record = dict(records.get(path, {}))
    if old is not None and include.satisfied(old):
        new = old
    elif old is None:
        sample = _read(paths["monitrc_sample"]) if paths.get("monitrc_sample") else None
        new, _ = include.add(_without_httpd(sample) if sample is not None else _MINIMAL)
        record = {"created": _sha(new)}
    else:
        untouched = record.get("created") == _sha(old)
        new, edit = include.add(include.take_away(old, record))
        record = {"created": _sha(new)} if untouched else {**record, **edit}
    if old is not None:
        attributes = _attributes(path)
        if attributes[:2] != [0o600, os.geteuid()]:
            record.setdefault("was", attributes)
            ret["changes"]["mode"] = {
                "old": f"{attributes[0]:04o} {attributes[1]}",
                "new": f"0600 {os.geteuid()}",
            }
    if new != old:
        ret["changes"]["diff"] = _diff(old, new, name)
    if not ret["changes"]:
        return ret
    with tempfile.TemporaryDirectory() as private:  # in test mode nothing appears beside monitrc
        folder = private if __opts__["test"] else os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        with _staged(path, _harmless(new, private) if __opts__["test"] else new, folder) as staged:
            words = _refused(paths, path, staged) if new != old else ""
            if words:
                return _failed(
                    name,
                    f"{name} was not changed, because monit does not accept the new text: {words}",
                )
            if __opts__["test"]:
                return _pending(ret, f"{name} would include what is published.")
            __salt__["cbsd_monit_node.remember"](
                paths["state"], "include", {**records, path: record}
            )
            os.chown(staged, os.geteuid(), -1 if old is None else os.stat(path).st_gid)
            os.replace(staged, path)
    ret["comment"] = f"{name} now includes what is published."
    return ret


def _sha(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def include_absent(name, spec=None, lookup=None):
    """
    The control file of monit is as it was before ``include_present``, apart from what others changed in it since.

    A file that the state made goes, and a monit that runs from it is ended; otherwise a running monit reads the file again.

    .. code-block:: yaml

        /usr/local/etc/monitrc:
          cbsd_monit.include_absent:
            - spec: {{ {"lookup": lookup} | json }}
    """
    try:
        return _include_absent(name, spec or {}, lookup or {})
    except Exception as err:
        return _failed(name, err)


def _include_absent(name, spec, lookup):
    ret = _ret(name, f"{name} includes nothing of ours.")
    paths = __salt__["cbsd_monit_node.paths"](spec, need=("workdir", "state", "run"), **lookup)
    path = os.path.realpath(name)
    _tidy(path)
    old = _read(path)
    records = __salt__["cbsd_monit_node.undo"](paths["state"]).get("include", {})
    record = records.get(path, {})
    made = old is not None and record.get("created") == _sha(old)
    new = None if made or old is None else _Include(paths, False).take_away(old, record)
    if new != old:
        ret["changes"]["diff"] = _diff(old, new, name)
    if made:
        ret["changes"]["removed"] = name
    now = was = None
    if new is not None:
        now = _attributes(path)
        was = (
            record.get("was", now) if now[:2] == [0o600, os.geteuid()] else now
        )  # what somebody chose since stays
        if was != now:
            said = ["{:04o} {}".format(*found[:2]) for found in (now, was)]
            ret["changes"]["mode"] = dict(zip(("old", "new"), said))
    running = (new != old or path in records) and old is not None and _status(paths) is not None
    if running and new == old:  # a run that was killed did not tell it
        ret["changes"]["monit"] = "reads its control file again"
    if __opts__["test"]:
        return _pending(ret, f"{name} would be as it was.") if ret["changes"] else ret
    words = ""
    if made:
        if running:
            _monit(paths, "-c", path, "quit")
            for _ in range(100):  # it ends what it is doing first
                if _status(paths) is None:
                    break
                time.sleep(0.1)
        os.unlink(path)
    elif new != old or was != now:
        with _staged(path, new, os.path.dirname(path)) as staged:
            words = _refused(paths, path, staged)
            os.chown(staged, *was[1:])
            os.chmod(staged, was[0])
            os.replace(staged, path)
    if running and not made and not words:
        _monit(paths, "-c", path, "reload")
    if path in records:
        del records[path]
        __salt__["cbsd_monit_node.remember"](paths["state"], "include", records)
    if ret["changes"]:
        ret["comment"] = f"{name} is as it was."
    if words:
        ret["comment"] += f" monit does not accept that text and was not told to read it: {words}"
    return ret


# monit itself


def _socket(paths):
    """Where monit is to be asked: what the agent was told, once it was."""
    try:
        told = json.loads(_read(paths["config"]) or "{}").get("socket")
    except ValueError:
        told = None
    return told or os.path.join(paths["state"], "monit.sock")


def _status(paths):
    """monit's own status (XML) from its control socket, or None: the only answer about it that can be believed."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as line:
        line.settimeout(5)
        try:
            line.connect(_socket(paths))
            line.sendall(b"GET /_status?format=xml HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: line.recv(65536), b"")).decode("utf-8", "replace")
        except OSError:
            return None
    if re.match(r"HTTP/1\.[01] 401\b", answer):
        return (
            ""  # it wants the password of an operator's own `set httpd`, which only the agent reads
        )
    return answer if re.match(r"HTTP/1\.[01] 200\b", answer) else None


def _unknown(paths, status):
    """The services that are published and that this monit has not read: its control file was changed behind its back."""
    published = _read(os.path.join(paths["state"], "published")) or "" if status else ""
    known = {name.lower() for name in _NAME.findall(status)}
    names = [quoted or bare for quoted, bare in _CHECK.findall(published)]
    return [name for name in names if name.lower() not in known]


def running(name, spec=None, timeout=15, lookup=None):
    """
    monit answers on its control socket and knows what is published.

    Where it does not answer it is started as ``lookup:monit_start`` says; where it has not read what is published, it is told to.

    timeout
        Seconds to wait until it does.

    .. code-block:: yaml

        monit answers on its socket:
          cbsd_monit.running:
            - spec: {{ {"lookup": lookup} | json }}
    """
    try:
        need = ("run", "state", "monit", "monitrc", "monit_start")
        paths = __salt__["cbsd_monit_node.paths"](spec, need=need, **(lookup or {}))
        return _running(name, paths, timeout)
    except Exception as err:
        return _failed(name, err)


def _running(name, paths, timeout):
    ret = _ret(name, "monit answers on its socket and knows what is published.")
    status = _status(paths)
    unknown = _unknown(paths, status) if status else []
    if status is not None and not unknown:
        return ret
    if status:
        argv = [paths["monit"], "-c", paths["monitrc"], "reload"]
        ret["changes"]["monit"] = {"old": f"does not know {', '.join(unknown)}", "new": "reloaded"}
    else:
        argv = paths["monit_start"]
        ret["changes"]["monit"] = {"old": "no answer", "new": "running"}
    if __opts__["test"]:
        return _pending(ret, f"`{' '.join(argv)}` would be run.")
    ran = __salt__["cmd.run_all"](
        argv, python_shell=False, ignore_retcode=True, stdin="", timeout=60
    )
    until = time.monotonic() + timeout
    while True:
        status = _status(paths)
        if status is not None and not _unknown(paths, status):
            ret["comment"] = (
                f"`{' '.join(argv)}` was run; monit answers and knows what is published."
            )
            return ret
        if time.monotonic() > until:
            said = ran["stderr"].strip() or ran["stdout"].strip() or "it said nothing"
            state = "does not know what is published" if status is not None else "does not answer"
            return _failed(
                name, f"`{' '.join(argv)}` exited {ran['retcode']}, and monit {state}: {said}"
            )
        time.sleep(0.1)
