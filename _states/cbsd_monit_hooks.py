"""
CBSD's hooks: every env of this node, and every env made later, announces what happens to it.

What these states leave alone: every hook that is neither ours nor of CBSD's own module monit.

:depends: the execution module ``cbsd_monit_node``
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import stat

log = logging.getLogger(__name__)

__virtualname__ = "cbsd_monit"

NEED = ("workdir", "libexec", "state")
HOOK = "cbsd_monit"
HOOKS = (
    "master_prestart.d",
    "master_poststart.d",
    "master_prestop.d",
    "master_poststop.d",
    "master_create.d",
    "remove.d",
)
# A jail's clone.d runs before the copy is made; master_reboot.d when the guest of a VM reboots itself.
HOOKS_OF = {"jail": HOOKS + ("clone.d",), "bhyve": HOOKS + ("master_reboot.d",)}
ALL_HOOKS = HOOKS + ("clone.d", "master_reboot.d")
# What is going to be a hook, beside the hook directories: CBSD runs what lies in them, whatever its name.
LEFT = ".cbsd_monit.new"
# The hooks of CBSD's own module monit: links to it, or the scripts it ships.
UPSTREAM_NAMES = ("monit", "monit.sh")
UPSTREAM_LINK = re.compile(r"(^|/)modules/monit\.d/")
UPSTREAM_TEXT = re.compile(r"\bcbsd\s+monit\b|\bmonit\s+summary\b|/monit/monitrc\b")


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


def _kind(name):
    """``jail``, ``bhyve`` or None for a skeleton, by the names CBSD gives them."""
    for kind in HOOKS_OF:
        if re.search(rf"(^|-){kind}-", name):
            return kind
    return None


def _kind_of(entries):
    """The same for an env, by what lies in its directory."""
    folders = {
        name
        for name in ("master_reboot.d", "clone.d")
        if name in entries and entries[name].is_dir()
    }
    if "master_reboot.d" in folders or "bhyve.conf" in entries:
        return "bhyve"
    return "jail" if folders else None


def _skeletons(workdir, skeletons):
    """{directory: kind} of the skeletons, and those that do not exist."""
    share = os.path.join(workdir, "share")
    names = sorted(os.listdir(share)) if os.path.isdir(share) else []
    found, missing = {}, []
    for name in names:
        path = os.path.join(share, name)
        kind = _kind(name)
        # A default skeleton that is not there is left to initenv, which fills it only where it does not exist.
        if kind and name.endswith(("-system-default", "-system-skel")) and os.path.isdir(path):
            found[path] = kind
    for skeleton in skeletons:
        path = os.path.join(share, skeleton)
        if os.path.isdir(path):
            found.setdefault(path, _kind(os.path.basename(path)))
        else:
            missing.append(path)
    return found, missing


def _upstream(path):
    """True if ``path`` is a hook of CBSD's own module monit."""
    if os.path.islink(path):
        return bool(UPSTREAM_LINK.search(os.readlink(path)))
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8", errors="replace") as stream:
        return bool(UPSTREAM_TEXT.search(stream.read(65536)))


def _given(**values):
    return {key: value for key, value in values.items() if value is not None}


def hooks_present(name, spec=None, workdir=None, libexec=None, skeletons=None, lookup=None):
    """
    CBSD runs ``wake`` whenever an env of this node starts, stops, is made or removed, now and for envs made later.

    Links it into the hook directories of every env and of the skeletons; missing hook directories are made. Hooks of CBSD's own module
    monit are set aside meanwhile, because two would act on one failure. No command is run.

    workdir, libexec, lookup
        Paths that win over those of ``spec``, singly or as a mapping.
    skeletons
        Further skeletons: paths, or names below ``WORKDIR/share``. Known by themselves: ``*-system-default`` and
        ``*-system-skel`` of jails and VMs.

    .. code-block:: yaml

        CBSD announces starts, stops and removals of every env:
          cbsd_monit.hooks_present:
            - spec: {{ {"lookup": lookup} | json }}
    """
    try:
        paths = __salt__["cbsd_monit_node.paths"](
            spec,
            need=NEED,
            **{**(lookup or {}), **_given(workdir=workdir, libexec=libexec, skeletons=skeletons)},
        )
        return _hooks_present(name, paths)
    except Exception as err:
        return _failed(name, err)


def _hooks_present(name, paths):
    ret = _ret(name, "All hooks are in place.")
    workdir, libexec, state = (paths[key] for key in NEED)
    target = os.path.join(libexec, "wake")
    skeletons, missing = _skeletons(workdir, paths.get("skeletons") or [])
    made, linked, aside, left, wrong = (
        [],
        [],
        [],
        [],
        [f"{path} does not exist" for path in missing],
    )
    envs = __salt__["cbsd_monit_node.env_dirs"](workdir)
    for owner in [
        *skeletons,
        *envs.values(),
    ]:  # a thousand: one listing each, and short paths from there
        top = os.open(owner, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(top) as found:
                entries = {entry.name: entry for entry in found}
            if LEFT in entries and not entries[LEFT].is_dir(follow_symlinks=False):
                left.append(f"{owner}/{LEFT}")
            kind = skeletons[owner] if owner in skeletons else _kind_of(entries)
            for hook in HOOKS_OF.get(kind, HOOKS):
                entry = entries.get(hook)
                if entry is None or not entry.is_dir(follow_symlinks=False):
                    if entry:
                        what = "a symlink" if entry.is_symlink() else "no directory"
                        wrong.append(f"{owner}/{hook} is {what}, in which CBSD finds no hook")
                        continue
                    made.append(f"{owner}/{hook}")
                try:
                    now = os.readlink(f"{hook}/{HOOK}", dir_fd=top)
                except FileNotFoundError:
                    now = None
                except OSError:  # no symlink
                    now = None
                    if os.path.isfile(f"{owner}/{hook}/{HOOK}"):
                        aside.append(f"{owner}/{hook}/{HOOK}")
                if now != target:
                    linked.append(f"{owner}/{hook}/{HOOK}")
                for other in UPSTREAM_NAMES:
                    try:
                        os.lstat(f"{hook}/{other}", dir_fd=top)
                    except OSError:
                        continue
                    if _upstream(f"{owner}/{hook}/{other}"):
                        aside.append(f"{owner}/{hook}/{other}")
        finally:
            os.close(top)
    for key, found in (
        ("directories", made),
        ("links", linked),
        ("set aside", aside),
        ("left by a killed run", left),
    ):
        if found:
            ret["changes"][key] = found
    if ret["changes"] and __opts__["test"]:
        ret = _pending(
            ret,
            f"{len(linked)} hooks would be linked, {len(aside)} of CBSD's module monit would be set aside.",
        )
    elif ret["changes"]:
        record = __salt__["cbsd_monit_node.undo"](state).get("hooks", {})
        entries = {e["path"]: e for e in record.get("aside", ())}
        entries.update((path, _copy_aside(path, state)) for path in aside)
        made_so_far = {*filter(os.path.isdir, record.get("made", ())), *made}
        __salt__["cbsd_monit_node.remember"](
            state,
            "hooks",
            {"aside": [entries[path] for path in sorted(entries)], "made": sorted(made_so_far)},
        )
        for path in (*aside, *left):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for folder in made:
            with contextlib.suppress(
                FileExistsError, FileNotFoundError
            ):  # the env was removed meanwhile
                _make(folder)
        for link in linked:
            try:
                _link(link, target)
            except FileNotFoundError:
                pass
            except OSError as err:  # user cbsd owns the directories: one env's trouble alone
                wrong.append(f"{link} cannot be linked: {err.strerror}")
        ret["comment"] = (
            f"{len(linked)} hooks were linked, {len(aside)} of CBSD's module monit were set aside."
        )
    if wrong:
        ret["result"] = False
        ret["comment"] += " " + "; ".join(wrong) + "."
    return ret


def _make(folder):
    """A hook directory as CBSD makes it; right from its first moment, so that a kill leaves nothing to be mended."""
    before = os.umask(0o002)
    try:
        os.mkdir(folder, 0o775)
    finally:
        os.umask(before)


def _temporary(path):
    """Where what is going to be the hook ``path`` is made, with nothing there."""
    temp = os.path.join(os.path.dirname(os.path.dirname(path)), LEFT)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temp)
    return temp


def _link(link, target):
    with contextlib.suppress(FileExistsError):
        os.symlink(target, link)
        return
    temp = _temporary(link)
    os.symlink(target, temp)
    os.replace(temp, link)


def _copy_aside(path, state):
    """What is needed to put a hook back; it cannot stay in its directory, because CBSD runs whatever lies there."""
    if os.path.islink(path):
        return {"path": path, "link": os.readlink(path)}
    kept = os.path.join(state, "aside", hashlib.sha256(path.encode()).hexdigest()[:16])
    os.makedirs(os.path.dirname(kept), 0o700, exist_ok=True)
    shutil.copy2(path, kept)
    info = os.stat(path)
    return {"path": path, "file": kept, "owner": [info.st_uid, info.st_gid]}


def hooks_absent(name, spec=None, workdir=None, libexec=None, skeletons=None, lookup=None):
    """
    No env and no skeleton has a hook of ours; what ``hooks_present`` set aside or made is as it was.

    .. code-block:: yaml

        CBSD's hooks are as they were:
          cbsd_monit.hooks_absent:
            - spec: {{ {"lookup": lookup} | json }}
    """
    try:
        paths = __salt__["cbsd_monit_node.paths"](
            spec,
            need=NEED,
            **{**(lookup or {}), **_given(workdir=workdir, libexec=libexec, skeletons=skeletons)},
        )
        return _hooks_absent(name, paths)
    except Exception as err:
        return _failed(name, err)


def _hooks_absent(name, paths):
    ret = _ret(name, "There is no hook of ours.")
    workdir, libexec, state = (paths[key] for key in NEED)
    target = os.path.join(libexec, "wake")
    skeletons, _ = _skeletons(workdir, paths.get("skeletons") or [])
    owners = [*skeletons, *__salt__["cbsd_monit_node.env_dirs"](workdir).values()]
    links = [os.path.join(owner, hook, HOOK) for owner in owners for hook in ALL_HOOKS]
    links = [link for link in links if os.path.islink(link) and os.readlink(link) == target]
    left = [os.path.join(owner, LEFT) for owner in owners]
    left = [path for path in left if os.path.lexists(path) and not os.path.isdir(path)]
    record = __salt__["cbsd_monit_node.undo"](state).get("hooks", {})
    entries = record.get("aside", [])
    back = [e for e in entries if os.path.isdir(os.path.dirname(e["path"]))]
    made = [folder for folder in record.get("made", ()) if os.path.isdir(folder)]
    paths_back = [e["path"] for e in back]
    for key, found in zip(
        ("links", "put back", "directories", "left by a killed run"),
        (links, paths_back, made, left),
    ):
        if found:
            ret["changes"][key] = found
    if __opts__["test"]:
        words = f"{len(links)} hooks would be removed, {len(back)} would be put back."
        return _pending(ret, words) if ret["changes"] else ret
    for path in (*links, *left):
        os.unlink(path)
    wrong = {}
    for entry in back:
        try:
            _put_back(entry)
        except OSError as err:
            wrong[entry["path"]] = f"{entry['path']} cannot be put back: {err.strerror}"
    for folder in made:
        with contextlib.suppress(OSError):  # somebody's own hook lies there now
            os.rmdir(folder)
    _forget(
        state, [e for e in entries if e not in back or e["path"] in wrong]
    )  # what is not there now may come back
    if ret["changes"]:
        ret["comment"] = f"{len(links)} hooks were removed, {len(back) - len(wrong)} were put back."
    if wrong:
        ret["result"] = False
        ret["comment"] += " " + "; ".join(wrong.values()) + "."
    return ret


def _forget(state, entries):
    """All that was set aside is settled but for ``entries``."""
    __salt__["cbsd_monit_node.remember"](
        state, "hooks", {"aside": entries, "made": []} if entries else {}
    )
    folder, kept = (
        os.path.join(state, "aside"),
        {os.path.basename(e.get("file", "")) for e in entries},
    )
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name not in kept:
                os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def _put_back(entry):
    path, source = entry["path"], entry.get("file")
    if os.path.lexists(path) or source and not os.path.exists(source):
        return  # a run that was killed, or somebody, was faster
    temp = _temporary(path)
    if source is None:
        os.symlink(entry["link"], path)
        return
    info = os.stat(source)
    handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as stream, open(source, "rb") as old:
        shutil.copyfileobj(old, stream)
        stream.flush()
        os.fchown(handle, *entry["owner"])
        os.fchmod(handle, stat.S_IMODE(info.st_mode))
        os.utime(handle, ns=(info.st_atime_ns, info.st_mtime_ns))
        os.fsync(handle)
    os.replace(temp, path)
