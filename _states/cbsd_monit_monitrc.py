"""
monit on this node: that its control file includes what is published, and that it runs.

:depends: the execution modules ``cbsd_monit_node`` and ``cbsd_monit_file``
"""

import contextlib
import difflib
import hashlib
import os
import re
import stat
import tempfile
import time

from salt.exceptions import SaltInvocationError

__virtualname__ = "cbsd_monit"

# The include line that CBSD's documentation of its module monit has one write.
_GLOB_LINE = re.compile(
    r"""[ \t]*include[ \t]+["']?\S*/jails-system/\*/monit/monitrc["']?[ \t]*(#.*)?\Z"""
)
_STATEMENT = re.compile(r"[ \t]*(set|check|include)\b", re.I)
_HTTPD = re.compile(r"[ \t]*set[ \t]+httpd\b", re.I)
_MINIMAL = (
    "# Made by cbsd_monit, because this node had no control file of monit: what follows sets"
    " everything.\n"
)
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
    return __salt__["cbsd_monit_node.failed"](name, err)


def _read(path):
    return __salt__["cbsd_monit_file.tools"]().read(path)


def _refusal(name, comment):
    return {"name": name, "result": False, "changes": {}, "comment": comment}


def _pending(ret, comment):
    return {**ret, "result": None, "comment": comment}


def _diff(old, new, path):
    """Return what an operator reads: a unified diff; absence is the empty text."""
    before, after = (old or "").splitlines(), (new or "").splitlines()
    lines = difflib.unified_diff(before, after, f"{path} (old)", f"{path} (new)", lineterm="")
    return "\n".join(lines) or f"{'' if old is None else 'new '}empty file"


def _without_httpd(sample):
    """Return the sample without ``set httpd`` and its password: they are commented out."""
    lines, inside = [], False
    for line in sample.splitlines(keepends=True):
        if _STATEMENT.match(line):
            inside = bool(_HTTPD.match(line))
        word = line.strip()
        lines.append(f"# {line}" if inside and word and not word.startswith("#") else line)
    return "".join(lines)


def _same_line(line, wanted):
    return line.split("#")[0].replace('"', "").replace("'", "").split() == wanted.split()


class _Include:
    """How to put our line into the text of monitrc, and how to take it out again."""

    def __init__(self, paths, glob):
        # Beside CBSD's glob only `head` is included: `published` would define all envs once more.
        self.lines = [f"include {paths['state']}/{name}\n" for name in ("published", "head")]
        self.line = self.lines[1 if glob else 0]
        theirs = f"include {paths['workdir']}/jails-system/*/monit/monitrc\n"
        self.glob_line = theirs if glob else None

    def satisfied(self, text):
        lines = text.splitlines()
        globs = [line for line in lines if _GLOB_LINE.match(line)]
        return sum(_same_line(line, self.line) for line in lines) == 1 and (
            len(globs) == 1 and _same_line(globs[0], self.glob_line)
            if self.glob_line
            else not globs
        )

    def add(self, text):
        """Return the text with our line, and what ``take_away`` needs to know."""
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
        """Return ``text`` as it would be without us, whatever else was edited in it since."""
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
    """
    Run monit's own command line, for what its socket cannot do; return exit code and words.

    The exit code means something for ``-t`` only.
    """
    ran = __salt__["cmd.run_all"](
        [paths["monit"], *args], python_shell=False, ignore_retcode=True, stdin="", timeout=120
    )
    return ran["retcode"], (ran["stderr"].strip() or ran["stdout"].strip())


def _tidy(path):
    """Remove what a run that was killed has left beside the control file ``path``."""
    if not __opts__["test"]:
        __salt__["cbsd_monit_file.tools"]().tidy(path)


def _attributes(path):
    """Return ``[mode, uid, gid]`` of a file."""
    info = os.stat(path)
    return [stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid]


@contextlib.contextmanager
def _staged(path, text, folder):
    """Stage ``text`` in ``folder`` and yield its path, to be renamed to ``path`` or removed."""
    files, name = __salt__["cbsd_monit_file.tools"](), os.path.basename(path)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.sync(files.stage(handle, name, text))
        yield os.path.join(folder, files.temporary(name))
        os.fsync(handle)
    finally:
        files.unstage(handle, name)
        os.close(handle)


def _refused(paths, path, staged):
    """Return why monit refuses the control file ``staged``, or '' (also without a monit)."""
    if not os.path.exists(paths.get("monit") or ""):
        return ""
    code, words = _monit(paths, "-t", "-c", staged)
    return words.replace(staged, path) if code else ""


def _harmless(text, folder):
    """Return ``text`` for a trial: ``monit -t`` makes the id file and the log named in it."""
    own = os.path.join(folder, "id")
    with open(own, "w", encoding="ascii") as stream:
        stream.write("0" * 32)
    return f"{_WRITTEN.sub('# ', text)}\nset idfile {own}\n"


def include_present(name, spec=None, mode=None, lookup=None):
    """
    Ensure that the control file of monit includes what the agent publishes.

    The include line of CBSD's own documentation (``include …/jails-system/*/monit/monitrc``) is
    replaced, and put back by ``include_absent``. A missing control file is made from
    ``lookup:monitrc_sample``, without its ``set httpd`` and password. The new text replaces the old
    only if ``monit -t`` accepts it.

    name
        The control file, ``/usr/local/etc/monitrc``.
    mode
        ``publish``, or ``glob`` for exactly that line of CBSD's beside the published head. Default:
        what pillar says as ``monit:include``, else ``publish``.

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
        raise SaltInvocationError(f"monit:include: expected publish or glob, got {mode!r}")
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
            before = f"{attributes[0]:04o} {attributes[1]}"
            ret["changes"]["mode"] = {"old": before, "new": f"0600 {os.geteuid()}"}
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
                words = f"because monit does not accept the new text: {words}"
                return _refusal(name, f"{name} was not changed, {words}")
            if __opts__["test"]:
                return _pending(ret, f"{name} would include what is published.")
            records = {**records, path: record}
            __salt__["cbsd_monit_node.remember"](paths["state"], "include", records)
            os.chown(staged, os.geteuid(), -1 if old is None else os.stat(path).st_gid)
            os.replace(staged, path)
    ret["comment"] = f"{name} now includes what is published."
    return ret


def _sha(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def include_absent(name, spec=None, lookup=None):
    """
    Make monit's control file what it was before ``include_present``, but keep what others changed
    since.

    A file that the state made is removed, and a monit that runs from it ended; any other running
    monit reads the file again.

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
        chosen = now[:2] != [0o600, os.geteuid()]  # by somebody since: that stays
        was = now if chosen else record.get("was", now)
        if was != now:
            modes = ["{:04o} {}".format(*found[:2]) for found in (now, was)]
            ret["changes"]["mode"] = dict(zip(("old", "new"), modes))
    running = (new != old or path in records) and old is not None and _status(paths) is not None
    if running and new == old:  # a run that was killed did not make it do so
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


def _status(paths):
    return __salt__["cbsd_monit_node.monit_status"](paths)


def _unknown(paths, status):
    """Return the published services that this monit does not know: it has not read them yet."""
    published = _read(os.path.join(paths["state"], "published")) or "" if status else ""
    known = {name.lower() for name in _NAME.findall(status)}
    names = [quoted or bare for quoted, bare in _CHECK.findall(published)]
    return [name for name in names if name.lower() not in known]


def running(name, spec=None, timeout=15, lookup=None):
    """
    Ensure that monit answers on its control socket and knows what is published.

    Where it does not answer, ``lookup:monit_start`` is run; where it has not read what is
    published, it is reloaded.

    timeout
        Seconds to wait until both are so.

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
            words = ran["stderr"].strip() or ran["stdout"].strip() or "it said nothing"
            state = "does not know what is published" if status is not None else "does not answer"
            command = f"`{' '.join(argv)}` exited {ran['retcode']}"
            return _refusal(name, f"{command}, and monit {state}: {words}")
        time.sleep(0.1)
