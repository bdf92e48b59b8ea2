"""
CBSD's hooks: every env of this node, and every env made later, announces what happens to it.

These states leave alone every hook that is neither ours nor of CBSD's own module monit.

:depends: the execution modules ``cbsd_monit_node`` and ``cbsd_monit_file``
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat

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
# A jail's clone.d runs before the copy is made; master_reboot.d when the guest of a VM reboots
# itself.
HOOKS_OF = {"jail": HOOKS + ("clone.d",), "bhyve": HOOKS + ("master_reboot.d",)}
ALL_HOOKS = HOOKS + ("clone.d", "master_reboot.d")
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
    return __salt__["cbsd_monit_node.failed"](name, err)


def _staged():
    """
    Return the name under which hooks are staged, beside the hook directories.

    CBSD runs what lies in a hook directory, whatever its name.
    """
    return __salt__["cbsd_monit_file.tools"]().temporary(HOOK)


def _pending(ret, comment):
    return {**ret, "result": None, "comment": comment}


def _kind(name):
    """Return ``jail``, ``bhyve`` or None for a skeleton, by the names CBSD gives them."""
    for kind in HOOKS_OF:
        if re.search(rf"(^|-){kind}-", name):
            return kind
    return None


def _kind_of(entries):
    """Return the same for an env, by what lies in its directory."""
    both = ("master_reboot.d", "clone.d")
    folders = {name for name in both if name in entries and entries[name].is_dir()}
    if "master_reboot.d" in folders or "bhyve.conf" in entries:
        return "bhyve"
    return "jail" if folders else None


def _skeletons(workdir, skeletons):
    """Return ``{directory: kind}`` of the skeletons, and those that do not exist."""
    share = os.path.join(workdir, "share")
    names = sorted(os.listdir(share)) if os.path.isdir(share) else []
    found, missing = {}, []
    for name in names:
        path = os.path.join(share, name)
        kind = _kind(name)
        # A missing default skeleton is left to initenv, which fills it only where it is missing.
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
    """Return whether ``path`` is a hook of CBSD's own module monit."""
    if os.path.islink(path):
        return bool(UPSTREAM_LINK.search(os.readlink(path)))
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8", errors="replace") as stream:
        return bool(UPSTREAM_TEXT.search(stream.read(65536)))


def _paths(spec, lookup, **given):
    given = {**(lookup or {}), **{k: v for k, v in given.items() if v is not None}}
    return __salt__["cbsd_monit_node.paths"](spec, need=NEED, **given)


def hooks_present(name, spec=None, workdir=None, libexec=None, skeletons=None, lookup=None):
    """
    Ensure that CBSD runs ``wake`` whenever an env starts, stops, is made or removed, also later
    ones.

    Links it into the hook directories of every env and of the skeletons; missing hook directories
    are made. Hooks of CBSD's own module monit are set aside meanwhile, because both would act on a
    failure. No command is run.

    workdir, libexec, lookup
        Paths that win over those of ``spec``, singly or as a mapping.
    skeletons
        Further skeletons: paths, or names below ``WORKDIR/share``. ``*-system-default`` and
        ``*-system-skel`` of jails and VMs are found without.

    .. code-block:: yaml

        CBSD announces starts, stops and removals of every env:
          cbsd_monit.hooks_present:
            - spec: {{ {"lookup": lookup} | json }}
    """
    try:
        paths = _paths(spec, lookup, workdir=workdir, libexec=libexec, skeletons=skeletons)
        return _hooks_present(name, paths)
    except Exception as err:
        return _failed(name, err)


def _hooks_present(name, paths):
    ret = _ret(name, "All hooks are in place.")
    workdir, libexec, state = (paths[key] for key in NEED)
    target, staged = os.path.join(libexec, "wake"), _staged()
    skeletons, missing = _skeletons(workdir, paths.get("skeletons") or [])
    made, linked, aside, left = [], [], [], []
    wrong = [f"{path} does not exist" for path in missing]
    envs = __salt__["cbsd_monit_node.env_dirs"](workdir)
    for owner in [*skeletons, *envs.values()]:  # a thousand: list each once, use short paths
        top = os.open(owner, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(top) as found:
                entries = {entry.name: entry for entry in found}
            if staged in entries and not entries[staged].is_dir(follow_symlinks=False):
                left.append(f"{owner}/{staged}")
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
    changes = {"directories": made, "links": linked, "set aside": aside}
    changes["left by a killed run"] = left
    ret["changes"] = {key: found for key, found in changes.items() if found}
    if ret["changes"] and __opts__["test"]:
        words = f"{len(linked)} hooks would be linked, "
        words += f"{len(aside)} of CBSD's module monit would be set aside."
        ret = _pending(ret, words)
    elif ret["changes"]:
        record = __salt__["cbsd_monit_node.undo"](state).get("hooks", {})
        entries = {e["path"]: e for e in record.get("aside", ())}
        entries.update((path, _copy_aside(path, state)) for path in aside)
        made_so_far = sorted({*filter(os.path.isdir, record.get("made", ())), *made})
        record = {"aside": [entries[path] for path in sorted(entries)], "made": made_so_far}
        __salt__["cbsd_monit_node.remember"](state, "hooks", record)
        for path in (*aside, *left):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for folder in made:
            # The env may have been removed meanwhile.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                _make(folder)
        for link in linked:
            try:
                _link(link, target)
            except FileNotFoundError:
                pass
            except OSError as err:  # user cbsd owns the directories: it concerns one env alone
                wrong.append(f"{link} cannot be linked: {err.strerror}")
        ret["comment"] = f"{len(linked)} hooks were linked, "
        ret["comment"] += f"{len(aside)} of CBSD's module monit were set aside."
    if wrong:
        ret["result"] = False
        ret["comment"] += " " + "; ".join(wrong) + "."
    return ret


def _make(folder):
    """Make a hook directory, from the start with CBSD's mode: a kill leaves nothing to mend."""
    before = os.umask(0o002)
    try:
        os.mkdir(folder, 0o775)
    finally:
        os.umask(before)


def _temporary(path):
    """Return where the hook ``path`` is staged, with nothing there."""
    temp = os.path.join(os.path.dirname(os.path.dirname(path)), _staged())
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
    """Keep a hook elsewhere, for CBSD runs all in its directory; return what `_put_back` needs."""
    if os.path.islink(path):
        return {"path": path, "link": os.readlink(path)}
    kept = os.path.join(state, "aside", hashlib.sha256(path.encode()).hexdigest()[:16])
    os.makedirs(os.path.dirname(kept), 0o700, exist_ok=True)
    shutil.copy2(path, kept)
    info = os.stat(path)
    return {"path": path, "file": kept, "owner": [info.st_uid, info.st_gid]}


def hooks_absent(name, spec=None, workdir=None, libexec=None, skeletons=None, lookup=None):
    """
    Ensure that no env and no skeleton has a hook of ours, and put back what ``hooks_present``
    changed.

    .. code-block:: yaml

        CBSD's hooks are as they were:
          cbsd_monit.hooks_absent:
            - spec: {{ {"lookup": lookup} | json }}
    """
    try:
        paths = _paths(spec, lookup, workdir=workdir, libexec=libexec, skeletons=skeletons)
        return _hooks_absent(name, paths)
    except Exception as err:
        return _failed(name, err)


def _hooks_absent(name, paths):
    ret = _ret(name, "There is no hook of ours.")
    workdir, libexec, state = (paths[key] for key in NEED)
    target, staged = os.path.join(libexec, "wake"), _staged()
    skeletons, _ = _skeletons(workdir, paths.get("skeletons") or [])
    owners = [*skeletons, *__salt__["cbsd_monit_node.env_dirs"](workdir).values()]
    links = [os.path.join(owner, hook, HOOK) for owner in owners for hook in ALL_HOOKS]
    links = [link for link in links if os.path.islink(link) and os.readlink(link) == target]
    left = [os.path.join(owner, staged) for owner in owners]
    left = [path for path in left if os.path.lexists(path) and not os.path.isdir(path)]
    record = __salt__["cbsd_monit_node.undo"](state).get("hooks", {})
    entries = record.get("aside", [])
    back = [e for e in entries if os.path.isdir(os.path.dirname(e["path"]))]
    made = [folder for folder in record.get("made", ()) if os.path.isdir(folder)]
    changes = {"links": links, "put back": [e["path"] for e in back], "directories": made}
    changes["left by a killed run"] = left
    ret["changes"] = {key: found for key, found in changes.items() if found}
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
    # An env that is not there now may come back.
    _forget(state, [e for e in entries if e not in back or e["path"] in wrong])
    if ret["changes"]:
        ret["comment"] = f"{len(links)} hooks were removed, {len(back) - len(wrong)} were put back."
    if wrong:
        ret["result"] = False
        ret["comment"] += " " + "; ".join(wrong.values()) + "."
    return ret


def _forget(state, entries):
    """Forget all that was set aside except ``entries``."""
    record = {"aside": entries, "made": []} if entries else {}
    __salt__["cbsd_monit_node.remember"](state, "hooks", record)
    folder = os.path.join(state, "aside")
    kept = {os.path.basename(e.get("file", "")) for e in entries}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name not in kept:
                os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def _put_back(entry):
    path, source = entry["path"], entry.get("file")
    if os.path.lexists(path) or source and not os.path.exists(source):
        return  # it was put back meanwhile, by a run that was killed or by somebody
    temp = _temporary(path)
    if source is None:
        os.symlink(entry["link"], path)
        return
    with open(source, "rb") as stream:
        info, content = os.fstat(stream.fileno()), stream.read()
    files, folder = __salt__["cbsd_monit_file.tools"](), os.path.dirname(temp)
    folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        handle = files.stage(folder, HOOK, content)
        os.fchown(handle, *entry["owner"])
        os.fchmod(handle, stat.S_IMODE(info.st_mode))
        os.utime(handle, ns=(info.st_atime_ns, info.st_mtime_ns))
        files.sync(handle)
        os.replace(temp, path)
    finally:
        os.close(folder)
