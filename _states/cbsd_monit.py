"""
The checks that monit runs for CBSD's jails and bhyve VMs, as one state for all envs of a node.

.. code-block:: yaml

    The checks of this node's envs are live:
      cbsd_monit.checks_present:
        - spec: {{ spec | json }}

``spec`` is ``{"pillar": …, "lookup": …}``: the pillar ``cbsd_monit`` as it was written, and the
paths of this node (``defaults.yaml``). Both are one mapping deep, because Salt executes
``__slot__:`` strings at the first level of a state's arguments.

This state leaves alone envs that pillar does not name. The agent publishes a ``monitrc.tpl`` that
their operator wrote all the same.

The other states of this name are in ``cbsd_monit_monitrc.py`` (monit and its control file) and
``cbsd_monit_hooks.py``.

:depends: the execution modules ``cbsd``, ``cbsd_monit``, ``cbsd_monit_node`` and
``cbsd_monit_file``
"""

import concurrent.futures
import contextlib
import difflib
import glob
import hashlib
import json
import os
import re
import resource
import stat
import tempfile
import time

__virtualname__ = "cbsd_monit"

NEED = ("workdir", "state", "config", "libexec")
# The paths that go into the agent's configuration (docs/contract.md, section 4).
CONFIGURED = """workdir cbsd jls jexec ps rctl vmm boot_id libexec state run monit monitrc
    monit_start""".split()
TEMPLATE = "salt://cbsd_monit/files/monitrc.tpl.jinja"
TPL, POLICY, LOCAL = "monitrc.tpl", "policy.json", ".local"
MADE_BY_AGENT = ("monitrc", "history.jsonl")
# Seconds for which the agent's last answer is believed: cron has it look each minute.
FRESH = 150
# Envs whose files are synced together at most; each holds three descriptors meanwhile.
TOGETHER = 256
# So begins why an env is not live as pillar has it when an operator wants it so.
ROLLED_BACK = "rolled back"
# When a service was looked at, in monit's status; a probe's output there may say anything.
LOOKED_AT = re.compile(r"<!\[CDATA\[.*?\]\]>|<collected_sec>([0-9]{1,12})</collected_sec>", re.S)


def __virtual__():
    if "cbsd_monit.render" not in __salt__:
        return False, "the execution module cbsd_monit is missing: run saltutil.sync_all"
    return __virtualname__


def _ret(name, comment):
    return {"name": name, "result": True, "changes": {}, "comment": comment}


def _failed(name, err):
    return __salt__["cbsd_monit_node.failed"](name, err)


def _diff(old, new, path):
    """Return what an operator reads: a unified diff, or that the file is new."""
    if old is None and new:
        return "New file"  # as Salt's own file states say; a thousand diffs are megabytes
    before, after = (old or "").splitlines(), (new or "").splitlines()
    lines = difflib.unified_diff(before, after, f"{path} (old)", f"{path} (new)", lineterm="")
    return "\n".join(lines) or f"{'' if old is None else 'new '}empty file"


# Files, and what is said about them


def _files():
    """Return the functions that read and replace files."""
    return __salt__["cbsd_monit_file.tools"]()


def _each(action, items):
    """
    Call ``action(item)`` for all, by eight threads.

    One commit of the file system's journal serves all that ask for it at the same moment.
    """

    def some(part):
        for item in part:
            action(item)

    if len(items) < 3:
        some(items)
        return
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(some, [items[first::8] for first in range(min(8, len(items)))]))


def _unlink(name, dir_fd=None):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)


def _dump(data):
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _digest(data):
    """Return the digest of plain data, or of a text."""
    text = data if isinstance(data, str) else json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _file_digest(name, folder):
    """Return what ``_digest`` returns for the text of a file in ``folder`` (a descriptor)."""
    handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder)
    try:
        digest = hashlib.sha256()
        while chunk := os.read(handle, 1 << 16):
            digest.update(chunk)
        return digest.hexdigest()
    finally:
        os.close(handle)


def _load(text):
    try:
        found = json.loads(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _attributes(folder):
    """Return ``[mode, uid, gid]`` of a directory."""
    info = os.fstat(folder)
    return [stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid]


def _private():
    """Return mode and uid of a directory that pillar's files lie in."""
    return [0o700, os.geteuid()]


def _attribute_change(old, new):
    return {when: "{:04o} {}:{}".format(*owned) for when, owned in (("old", old), ("new", new))}


def _open_monit_dir(sysdir):
    """
    Return a descriptor of ``sysdir/monit``, or None if there is none.

    User cbsd may own ``sysdir``: no symlink below it is followed.
    """
    try:
        return os.open(f"{sysdir}/monit", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        os.stat(sysdir)  # or it is the env that is gone
        return None
    except OSError:
        raise OSError(f"{sysdir}/monit is not a directory (a symlink is not followed)") from None


@contextlib.contextmanager
def _monit_dir(sysdir):
    """Yield a descriptor of ``sysdir/monit``, or None if there is none, and close it."""
    handle = _open_monit_dir(sysdir)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


# The checks of one env


class _EnvPlan:
    """
    What has to happen in one env's ``monit`` directory, so that test mode and the run cannot
    differ.

    ``undo`` is what undo.json says of that directory: what has to be put back when pillar no longer
    names the env.
    """

    def __init__(self, env, sysdir, node, wanted, copies=False, undo=None, files=None):
        self.env, self.sysdir, self.files = env, sysdir, files
        self.wanted = wanted is not None
        self.changes, self.error, self.folder, self.open = {}, None, None, {}
        with _monit_dir(sysdir) as folder:
            names = (TPL, POLICY, TPL + LOCAL, POLICY + LOCAL)
            have = {n: None if folder is None else files.read(n, folder) for n in names}
            self.record = None  # for undo.json
            now = None if folder is None else _attributes(folder)
            entries = set() if folder is None else set(os.listdir(folder))
        # Of a run that was killed:
        self.left = [file for file in (POLICY, TPL) if files.temporary(file) in entries]
        empty = len(entries) == len(self.left)
        if self.wanted:
            self.record = (
                {"made": True} if now is None else {"was": now} if now[:2] != _private() else None
            )
        policy = _load(have[POLICY])
        pillars = policy.get("origin") == "pillar"
        self.ours = pillars and policy.get("node") == node and (copies or policy.get("env") == env)
        self.adopted = have[TPL] is not None and not self.wanted and not self.ours
        self.after = {n: have[n] for n in (TPL, POLICY)}
        self.moves = []
        if self.wanted:
            own = have[TPL] is not None and not pillars and have[TPL] != wanted[TPL]
            if own and have[TPL + LOCAL] is None:
                self.moves = [(n, n + LOCAL) for n in (POLICY, TPL) if have[n] is not None]
            self.after = wanted
        else:  # also what a run that was interrupted has left aside
            back = [
                n
                for n in (TPL, POLICY)
                if have[n + LOCAL] is not None and (self.ours or have[n] is None)
            ]
            self.moves = [(n + LOCAL, n) for n in back]
            self.after.update(
                {n: None for n in self.after if self.ours}, **{n: have[n + LOCAL] for n in back}
            )
        for file in (TPL, POLICY):
            if have[file] != self.after[file]:
                self.changes[file] = {"diff": _diff(have[file], self.after[file], file)}
        if self.left:
            self.changes["left by a killed run"] = "removed"
        # Nothing has to be put back: there is nothing, or it was put back, or is another's.
        self.settled = not self.wanted
        if self.record and "was" in self.record:
            self.changes["directory"] = _attribute_change(now, [*_private(), now[2]])
        elif not self.wanted and now and undo and now[:2] == _private():
            self.settled = undo.get("was") == now
            if not self.settled and "was" in undo:
                self.changes["directory"] = _attribute_change(now, undo["was"])
            elif undo.get("made") and empty:
                self.changes["directory"] = "removed"

    @property
    def overlay(self):
        """Return what the agent would find, for a pass that writes nothing."""
        if self.after[TPL] is None:
            return None
        return {TPL: self.after[TPL], POLICY: _load(self.after[POLICY]) or None}

    @property
    def comment(self):
        if not {TPL, POLICY} & set(self.changes):
            return "its directory is root's alone" if self.wanted else "its directory is as it was"
        if not self.wanted:
            return (
                "the operator's own template is put back"
                if self.moves
                else "pillar's checks are removed"
            )
        return (
            "the operator's own template is kept as monitrc.tpl.local"
            if self.moves
            else "checks are written"
        )

    def stage(self):
        """Write new files beside the old ones; nothing that anybody reads has changed yet."""
        with contextlib.suppress(FileExistsError):
            if self.wanted:
                os.mkdir(os.path.join(self.sysdir, "monit"), 0o700)
        self.folder = _open_monit_dir(self.sysdir)
        if self.wanted:
            os.fchmod(self.folder, 0o700)
            os.fchown(self.folder, os.geteuid(), -1)
            for file in self.staged:
                self.open[file] = self.files.stage(self.folder, file, self.after[file])

    @property
    def staged(self):
        return [file for file in (POLICY, TPL) if self.wanted and file in self.changes]

    def sync(self):
        for file in self.staged:
            self.files.sync(self.open.pop(file))

    def take(self):
        """Give the new files their names; the policy first, which says whose the template is."""
        if not self.wanted:
            for file in (TPL, POLICY) if self.ours else ():
                _unlink(file, self.folder)
        self._move(self.folder)
        for file in self.staged:
            self.files.take(self.folder, file)
        for file in self.left:
            self.files.unstage(self.folder, file)

    def settle(self):
        os.fsync(self.folder)

    def leave(self):
        for handle in self.open.values():
            os.close(handle)
        self.open = {}
        if self.folder is not None:
            for file in self.staged if self.error else ():
                self.files.unstage(self.folder, file)
            os.close(self.folder)
            self.folder = None

    def step(self, name):
        """Take one of the steps above; an error concerns this env alone."""
        try:
            if not self.error:
                getattr(self, name)()
        except OSError as err:
            self.error = str(err)

    def give_back(self, record, purge):
        """
        Make the directory what it was, if nothing of the env's own is left in it.

        Returns whether there is nothing left to undo.
        """
        with _monit_dir(self.sysdir) as folder:
            if folder is None:
                return True
            for file in MADE_BY_AGENT if purge else ():
                _unlink(file, folder)
            if "was" in record:
                mode, uid, gid = record["was"]
                os.fchown(folder, uid, gid)
                os.fchmod(folder, mode)
        with contextlib.suppress(OSError):  # not empty: history.jsonl belongs to the env
            if record.get("made"):
                os.rmdir(os.path.join(self.sysdir, "monit"))
                return True
        return not record.get("made")

    def _move(self, folder):
        for old, new in self.moves:
            os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)

    def report(self, fun, result, comment=None):
        """Return an entry of ``sub_state_run``: an env counts as a state of its own."""
        now = time.strftime("%H:%M:%S.000000")
        title = f"Checks of {self.env}"
        low = {"name": self.env, "state": __virtualname__, "__id__": title, "fun": fun}
        return {
            "name": self.env,
            "changes": self.changes if result is not False or not comment else {},
            "result": result,
            "comment": f"{self.env}: {comment or self.comment}.",
            "duration": 0.0,
            "start_time": now,
            "low": low,
        }


def _wake(paths, overlay=None):
    """
    Return the agent's answer to one pass over the node.

    With ``overlay`` it only says what it would do if the envs in it were as written there.
    """
    wake = os.path.join(paths["libexec"], "wake")
    if not os.path.exists(wake):
        raise OSError(f"{wake} is missing: apply cbsd_monit.agent first")
    argv = [wake, "sync", "--json"]
    temp = None
    try:
        if overlay is not None:
            handle, temp = tempfile.mkstemp(prefix="cbsd_monit.", suffix=".json")  # 0600
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(overlay, stream)
            argv += ["--dry-run", "--overlay", temp]
        options = {"python_shell": False, "ignore_retcode": True, "stdin": ""}
        found = __salt__["cmd.run_all"](argv, timeout=600, **options)
    finally:
        if temp:
            os.unlink(temp)
    try:
        return json.loads(found["stdout"])
    except ValueError:
        words = found["stderr"].strip() or found["stdout"].strip() or "no output"
        raise OSError(f"{' '.join(argv[:3])} exited {found['retcode']}: {words}") from None


# The checks of all envs


def _monit_version(monit):
    """Return monit's version as text, or None where it is not installed yet."""
    if not monit or not os.path.exists(monit):
        return None
    ran = __salt__["cmd.run_all"]([monit, "-V"], python_shell=False, ignore_retcode=True, stdin="")
    found = re.search(r"version\s+([0-9.]+)", ran["stdout"])
    return found.group(1) if found else None


def _file_change(path, text, label):
    """Return ``{label: changes}`` for a file of ours, or {} if it is right already."""
    old = _files().read(path)
    mode_is = None if old is None else stat.S_IMODE(os.stat(path).st_mode)
    if old == text and mode_is == 0o600:
        return {}
    if old == text:
        return {label: {"mode": {"old": f"{mode_is:04o}", "new": "0600"}}}
    return {label: {"diff": _diff(old, text, os.path.basename(path))}}


def _sync(ret, paths, overlay, named=(), trust=None):
    """
    Let the agent publish (or, in test mode, say what it would) and put its answer into ``ret``.

    named
        The envs that have to be among those it knows.
    trust
        What trust.json holds if this run changed nothing: then the answer of the agent's last pass
        is used, if that was moments ago and saw the same, and monit goes on looking.

    Returns why envs are not live (by env), the commands that the operators' own templates have
    monit run (by env), and notes.
    """
    needed = (os.path.join(paths["libexec"], "wake"), paths["config"])
    ready = all(os.path.exists(path) for path in needed)
    if __opts__["test"] and not ready:
        note = "what the agent would publish is only known once it is installed"
        if overlay:
            ret["changes"]["monit"] = "would be published and reloaded"
        return {}, {}, [note]
    answer = _answered(paths, trust) if trust is not None else None
    try:
        answer = answer or _wake(paths, overlay if __opts__["test"] else None)
    except OSError as err:
        return {"the agent": str(err)}, {}, []
    if answer.get("changed"):
        ret["changes"]["monit"] = {"published": answer["changed"]}
    elif answer.get("reloaded"):
        ret["changes"]["monit"] = "reloaded"
    refused = answer.get("quarantined") or {}
    reasons = {env: f"quarantined: {words}" for env, words in refused.items()}
    back = sorted(env for env, words in refused.items() if words.startswith(ROLLED_BACK))
    for env in back:
        del reasons[env]
    if "envs" in answer:
        unseen = "the agent does not see it in CBSD's inventory"
        reasons.update((env, unseen) for env in named if env not in answer["envs"])
    reasons.update(answer.get("errors") or {})
    if answer.get("error"):
        reasons["the agent"] = answer["error"]
    notes = list(answer.get("warnings") or [])
    if answer.get("held"):
        held = answer["held"]
        kept = f"generation {held['generation']} is published and kept: {held['why']}"
        notes.append(f"{kept} ({', '.join(back)})" if back else kept)
    elif back:
        notes += [f"{env}: {refused[env]}" for env in back]
    if answer.get("verify_wait_s"):
        notes.append(f"monit needed {answer['verify_wait_s']:.1f} s until it checked again")
    return reasons, answer.get("foreign") or {}, notes


def _answered(paths, trust):
    """
    Return the answer of the agent's last pass if that saw, moments ago, what lies there now, and if
    monit itself goes on looking.
    """
    read = _files().read
    last = _load(read(os.path.join(paths["run"], "passed.json")) if paths.get("run") else None)
    try:
        if not 0 <= time.monotonic() - last["m"] < FRESH or any(
            not name.endswith(".done") for name in os.listdir(os.path.join(paths["state"], "inbox"))
        ):
            return None
        now = {
            "config": _digest(_load(read(paths["config"]))),
            "trust": _digest(trust),
            "published": _digest(read(os.path.join(paths["state"], "published")) or ""),
        }
        same = all(last[key] == digest for key, digest in now.items())
        return last["answer"] if same and _looks(paths, last["limit"]) else None
    except (KeyError, OSError):
        return None


def _looks(paths, limit):
    """Return whether monit's own status, asked now, shows a look of the last ``limit`` seconds."""
    status = __salt__["cbsd_monit_node.monit_status"](paths) or ""
    newest = max((int(second or 0) for second in LOOKED_AT.findall(status)), default=0)
    return 0 <= time.time() - newest < limit


def _conclude(ret, plans, reasons, fun, sentence):
    """
    Return ``ret`` with its result and comment, and envs that changed or failed as sub-states.

    ``sentence`` makes the comment from the number of envs that changed.
    """
    entries = []
    live = None if __opts__["test"] else True
    for plan in plans:
        reason = plan.error or reasons.get(plan.env)
        if reason or plan.changes:
            entries.append(plan.report(fun, False if reason else live, reason))
    if entries:
        ret["sub_state_run"] = entries
    changed = {p.env: p.comment for p in plans if p.changes and not p.error}
    if changed:
        ret["changes"]["envs"] = changed
    if ret["changes"] and __opts__["test"]:
        ret["result"] = None
    sentences = [sentence(len(changed))]
    failed = {**{p.env: p.error for p in plans if p.error}, **reasons}
    if failed:
        ret["result"] = False
        words = "; ".join(f"{env}: {why}" for env, why in sorted(failed.items()))
        sentences.append(f"Not live, while all others are: {words}")
    ret["comment"] = ". ".join(sentences) + "."
    return ret


class _Broken(_EnvPlan):
    """An env that cannot be planned; its files stay as they are."""

    def __init__(self, env, reason):
        self.env, self.error = env, reason
        self.changes, self.moves, self.wanted, self.record = {}, [], False, None
        self.ours = self.adopted = self.settled = False


def _plan(env, sysdir, node, wanted, **more):
    try:
        if sysdir is None:
            return _Broken(env, f"CBSD lists it, but jails-system/{env} is no directory")
        return _EnvPlan(env, sysdir, node, wanted, **more)
    except OSError as err:
        return _Broken(env, str(err))


def _apply(plans, state, dirs):
    settled = {p.env for p in plans if p.settled}
    plans = [p for p in plans if p.changes]
    records = __salt__["cbsd_monit_node.undo"](state).get("envs", {})
    records = {env: record for env, record in records.items() if env in dirs and env not in settled}
    for plan in plans:
        if plan.record and "was" not in records.get(plan.env, {}):
            records[plan.env] = plan.record
    __salt__["cbsd_monit_node.remember"](state, "envs", records)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # -1: none
    together = min(TOGETHER, limit // 4) if limit > 0 else TOGETHER
    for first in range(0, len(plans), together):
        some = plans[first : first + together]
        for plan in some:
            plan.step("stage")
        _each(lambda plan: plan.step("sync"), some)
        for plan in some:
            plan.step("take")
        _each(lambda plan: plan.step("settle"), some)
        for plan in some:
            plan.leave()
    _give_back([p for p in plans if not p.wanted and not p.error], state)


def _give_back(plans, state, purge=()):
    """Put the envs' directories back; of envs in ``purge`` remove what the agent made as well."""
    records = __salt__["cbsd_monit_node.undo"](state).get("envs", {})
    for plan in plans:
        try:
            if plan.give_back(records.get(plan.env, {}), plan.env in purge):
                records.pop(plan.env, None)
        except OSError as err:
            plan.error = str(err)
    __salt__["cbsd_monit_node.remember"](state, "envs", records)


def checks_present(name, spec, node=None, lookup=None, template=None, templates=None):
    """
    Ensure that the checks that pillar names are live on this node, for all of its envs, in one
    pass.

    Writes template and policy of every env that pillar names and the node's configuration for the
    agent, and lets the agent publish them. What pillar made for an env that it no longer names is
    removed. A template of the operator's own is kept as ``monitrc.tpl.local`` while pillar names
    its env, and comes back afterwards. The result is ``False`` when an env could not go live, but
    for one that an operator rolled back; all others are live nevertheless.

    name
        Only for the report.
    spec
        ``{"pillar": the pillar cbsd_monit, "lookup": the node's paths}``.
    node
        This node, as pillar knows it. Default: the minion id.
    lookup
        Paths that win over those of ``spec``.
    template, templates
        The text of a template that replaces the formula's own for all envs, or for single ones (by
        name).

    .. code-block:: yaml

        The checks of this node's envs are live:
          cbsd_monit.checks_present:
            - spec: {{ {"pillar": settings, "lookup": lookup} | json }}
    """
    try:
        node = node or __opts__["id"]
        return _checks_present(name, spec, node, lookup or {}, template, templates)
    except Exception as err:  # a state reports, it never raises
        return _failed(name, err)


def _checks_present(name, spec, node, lookup, template, templates):
    ret = _ret(name, "")
    paths = __salt__["cbsd_monit_node.paths"](spec, need=NEED, **lookup)
    workdir, state, config = paths["workdir"], paths["state"], paths["config"]
    listed = __salt__["cbsd.list"]()
    envs = [
        {"name": env, "emulator": row["emulator"]}
        for env, row in sorted(listed.items())
        if row["emulator"] in ("jail", "bhyve")
    ]
    more = {k: v for k, v in (("template", template), ("templates", templates)) if v is not None}
    dirs = __salt__["cbsd_monit_node.env_dirs"](workdir)
    files = _files()
    trust_file, memory_file = (os.path.join(state, f"{key}.json") for key in ("trust", "rendered"))
    memory = _load(files.read(memory_file))
    program = _program(paths.get("monit"))
    version = (
        memory["version"]
        if program and memory.get("program") == program
        else _monit_version(paths.get("monit"))
    )
    inputs = _inputs(spec["pillar"], node, envs, version, paths, more)
    before = _load(files.read(trust_file))
    memory = _remembered(memory, inputs, config, trust_file, before, dirs)
    own, undo = [], __salt__["cbsd_monit_node.undo"](state).get("envs", {})

    def plan(env, wanted=None):
        name = env["name"]
        return _plan(name, dirs.get(name), node, wanted, undo=undo.get(name), files=files)

    if memory:
        configuration, warnings, trust = None, memory["warnings"], before
        plans = [plan(e) for e in envs if e["name"] not in trust]
    else:
        rendered = __salt__["cbsd_monit.render"](
            spec["pillar"], node, envs, monit_version=version, lookup=paths, **more
        )
        warnings, texts = rendered.get("warnings", []), _Texts()
        wanted = {env: texts.of(made) for env, made in rendered["envs"].items()}
        plans = [plan(e, wanted.get(e["name"])) for e in envs]
        trust = {p.env: {f: _digest(p.after[f]) for f in (TPL, POLICY)} for p in plans if p.wanted}
        trust.update({p.env: before[p.env] for p in plans if p.error and p.env in before})
        configuration = {**rendered["config"], **{key: paths.get(key) for key in CONFIGURED}}
        own = [(config, _dump(configuration), "config"), (trust_file, _dump(trust), "trust")]
        own = [
            (path, text, change)
            for path, text, label in own
            if (change := _file_change(path, text, label))
        ]
        for _, _, change in own:
            ret["changes"].update(change)
    plans += [
        _Broken(n, f"CBSD's row: {row['broken']}")
        for n, row in sorted(listed.items())
        if row.get("broken")
    ]
    overlay = {p.env: p.overlay for p in plans if p.changes}
    if "config" in ret["changes"]:
        overlay[""] = {"config": configuration}

    remembered = None
    if not __opts__["test"]:
        for path, text, _ in own:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            files.write(path, text)
        _apply(plans, state, dirs)
        if not memory and not any(p.error for p in plans):
            digests = {"config": _digest(_dump(configuration)), "trust": _digest(_dump(trust))}
            seen = {"inputs": inputs, "program": program, "version": version}
            remembered = _dump({**digests, **seen, "warnings": warnings})
    quiet = memory and not overlay and not own
    reasons, foreign, notes = _sync(ret, paths, overlay, trust, trust if quiet else None)
    if remembered and files.read(memory_file) != remembered:  # not before all of it is published
        files.write(memory_file, remembered)
    adopted = [p.env for p in plans if p.adopted]

    def comment(number):
        verb = "would be" if __opts__["test"] else "were"
        sentence = f"{len(trust)} envs are named by pillar, "
        sentence += f"{number} of this node's envs {verb} changed"
        if adopted:
            sentence += f". Published as their operator wrote them: {', '.join(adopted)}"
        if foreign:
            theirs = sorted(foreign.items())
            listed = "; ".join(f"{env}: {', '.join(commands)}" for env, commands in theirs)
            sentence += f". Commands of their own that monit runs: {listed}"
        if warnings or notes:
            sentence += ". Note: " + "; ".join([*warnings, *notes])
        return sentence

    return _conclude(ret, plans, reasons, "checks_present", comment)


class _Texts:
    """Policies as text; most differ in the env's name only, and are written out once."""

    def __init__(self):
        self.known = {}

    def of(self, made):
        policy = made["policy.json"]
        key = json.dumps({**policy, "env": "\0"}, sort_keys=True)
        if key not in self.known:
            self.known[key] = _dump({**policy, "env": "\0"})
        return {
            TPL: made[TPL],
            POLICY: self.known[key].replace(json.dumps("\0"), json.dumps(policy["env"])),
        }


def _inputs(pillar, node, envs, version, paths, more):
    """Return the digest of all that ``cbsd_monit.render`` depends on, its own code included."""
    read = _files().read
    given = json.dumps([pillar, node, envs, version, paths, more], sort_keys=True)
    urls = {json.loads(text) for text in re.findall(r'"salt://(?:[^"\\\\]|\\\\.)*"', given)}
    urls.add(TEMPLATE)
    folder = os.path.dirname(__salt__["cbsd_monit.render"].__code__.co_filename)
    code = [read(path) for path in sorted(glob.glob(os.path.join(folder, "cbsd_monit*.py")))]
    templates = [[url, __salt__["cp.get_file_str"](url)] for url in sorted(urls)]
    return _digest([given, templates, code, read(__file__)])


def _program(path):
    """Return what tells one installed monit from the next, or None."""
    with contextlib.suppress(OSError, TypeError):
        info = os.stat(path)
        return [path, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]
    return None


def _remembered(memory, inputs, config, trust, trusted, dirs):
    """
    Return ``memory``, what a run with the same ``inputs`` rendered, if all files are as it wrote
    them.

    Otherwise None. Contents are compared, not times: ``trusted`` has the digest of every file.
    """
    if memory.get("inputs") != inputs or not trusted:
        return None
    for file, digest in ((config, memory["config"]), (trust, memory.get("trust"))):
        text = _files().read(file) or ""
        if _digest(text) != digest or stat.S_IMODE(os.stat(file).st_mode) != 0o600:
            return None
    try:
        for env, digests in trusted.items():
            folder = os.open(f"{dirs[env]}/monit", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _attributes(folder)[:2] != _private():
                    return None
                if any(_file_digest(file, folder) != digest for file, digest in digests.items()):
                    return None
            finally:
                os.close(folder)
    except (KeyError, OSError):
        return None
    return memory


def checks_absent(name, spec=None, node=None, lookup=None):
    """
    Ensure that no env of this node has anything that pillar or the agent made.

    That is templates, policies, rendered rules and history. Templates that were set aside for
    pillar's come back, and the agent publishes what is left. CBSD is not asked.

    .. code-block:: yaml

        No env has anything of cbsd_monit:
          cbsd_monit.checks_absent:
            - spec: {{ {"lookup": lookup} | json }}
    """
    try:
        return _checks_absent(name, spec, node or __opts__["id"], lookup or {})
    except Exception as err:
        return _failed(name, err)


def _checks_absent(name, spec, node, lookup):
    ret = _ret(name, "")
    paths = __salt__["cbsd_monit_node.paths"](spec, need=NEED, **lookup)
    workdir, state = paths["workdir"], paths["state"]
    dirs = __salt__["cbsd_monit_node.env_dirs"](workdir)
    undo = __salt__["cbsd_monit_node.undo"](state).get("envs", {})
    files = _files()
    plans = [
        _plan(env, sysdir, node, None, copies=True, undo=undo.get(env), files=files)
        for env, sysdir in dirs.items()
    ]
    known = {p.env for p in plans if os.path.exists(os.path.join(state, "envs", f"{p.env}.json"))}
    left = {p.env: [] for p in plans if (p.ours or p.env in known) and not p.error}
    for env in left:
        folder = os.path.join(dirs[env], "monit")
        left[env] = [f for f in MADE_BY_AGENT if os.path.lexists(os.path.join(folder, f))]
    trust = os.path.join(state, "trust.json")
    if os.path.exists(trust):
        ret["changes"]["trust"] = "removed"
    if any(left.values()):
        ret["changes"]["made by the agent"] = {e: files for e, files in left.items() if files}
    if not __opts__["test"]:
        rendered = os.path.join(state, "rendered.json")
        for path in (trust, rendered):
            _unlink(path)
        for path in (trust, rendered, paths["config"]):
            files.tidy(path)
        _apply(plans, state, dirs)
    overlay = {p.env: p.overlay for p in plans if p.changes}
    unpublished = ""
    if overlay and os.path.exists(os.path.join(paths["libexec"], "wake")):
        reasons, _, _ = _sync(ret, paths, overlay)  # of envs that stay; no reason not to clean
        unpublished = "; ".join(f"{e}: {r}" for e, r in sorted(reasons.items()))
    if not __opts__["test"]:  # only now: the agent's last pass wrote into it once more
        gone = [p for p in plans if (p.env in left or p.env in undo) and not p.error]
        _give_back(gone, state, purge=left)

    def comment(number):
        verb = "would be" if __opts__["test"] else "were"
        sentence = (
            f"Pillar's checks of {number} envs {verb} removed"
            if number
            else "No env has a check of pillar's"
        )
        return f"{sentence}. The agent said: {unpublished}" if unpublished else sentence

    return _conclude(ret, plans, {}, "checks_absent", comment)
