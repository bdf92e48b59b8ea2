"""
Files: replaced whole or not at all, and never through somebody else's symlink.

monit runs `look` each cycle, so here and in the other modules few commands' imports are local.
"""

import contextlib
import json
import os
import re
import stat
import threading
import time
from collections import namedtuple

CHUNK = 128  # files of a batch written together; each may hold one descriptor of its directory
LIMIT = 1 << 20  # bytes of an env's file that are read
STALE = 600  # seconds
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.new\Z")
_local = threading.local()


# A file to write.  ``opened()`` returns a descriptor of its directory; ``failed``, if not None, is
# called with an OSError.  Without ``durable`` no reader sees half of it, but a loss of power may
# take it.  ``late``: not before the batch ends.
_File = namedtuple("_File", "name opened data mode failed durable late")


class Batch:
    """
    Files that one thread writes together: each once, however often it changes.

    Each is whole and synced before it gets its name, as without a batch, but only at `flush` or at
    the end: one commit of the file system's journal serves many. Reads through this module in the
    same thread already see what was written.
    """

    def __init__(self):
        self.waiting = {}  # path: _File

    def flush(self, late=True):
        """
        Write all that waits, without ``late`` only what need not wait for the end.

        When all others are written, raises the first OSError of a file without ``failed``.
        """
        taken = {path: file for path, file in self.waiting.items() if late or not file.late}
        self.waiting = {path: file for path, file in self.waiting.items() if path not in taken}
        entries, errors = list(taken.items()), []
        for first in range(0, len(entries), CHUNK):
            _write(entries[first : first + CHUNK], errors)
        if errors:
            raise errors[0]


def _write(entries, errors):
    """Write [(path, _File)]; an OSError goes to ``failed`` of the file, or else to ``errors``."""
    folders, temps, bad = {}, {}, {}

    def step(action, path, *args):
        try:
            if path not in bad:
                action(path, *args)
        except OSError as err:
            bad[path] = err

    def create(path, file, folder):
        if folder not in folders:
            folders[folder] = file.opened()
        tmp = _temporary(file.name)
        _create(tmp, file.data, file.mode, folders[folder])
        temps[path] = tmp

    def sync(path, folder):
        with _opened(temps[path], os.O_RDONLY | os.O_NOFOLLOW, folders[folder]) as fd:
            os.fsync(fd)

    def rename(path, file, folder):
        os.replace(temps[path], file.name, src_dir_fd=folders[folder], dst_dir_fd=folders[folder])
        del temps[path]

    def sync_folder(path, folder):
        os.fsync(folders[folder])

    entries = [(path, file, os.path.dirname(path)) for path, file in entries]
    durable = [(path, folder) for path, file, folder in entries if file.durable]
    try:
        for entry in entries:
            step(create, *entry)
        _each(lambda entry: step(sync, *entry), durable)
        for entry in entries:
            step(rename, *entry)
        last = {folder: path for path, folder in durable if path not in bad}
        _each(lambda item: step(sync_folder, item[1], item[0]), list(last.items()))
        for path, file, folder in entries:
            if path in temps:
                with contextlib.suppress(OSError):
                    os.unlink(temps[path], dir_fd=folders[folder])
            if path in bad:
                (file.failed or errors.append)(bad[path])
    finally:
        for folder in folders.values():
            os.close(folder)


def _each(action, items):
    """Call ``action(item)`` in eight threads: syncs asked for at one moment share a commit."""

    def run(part):
        for item in part:
            action(item)

    if len(items) < 3:
        run(items)
        return
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # a task per item would cost more
        list(pool.map(run, [items[first::8] for first in range(min(8, len(items)))]))


@contextlib.contextmanager
def batch():
    """Write together at the end what this thread writes inside; an inner batch joins the outer."""
    if getattr(_local, "batch", None):
        yield _local.batch
        return
    _local.batch = own = Batch()
    try:
        yield own
    finally:
        _local.batch = None
        own.flush()


def flush(late=True):
    """Write what waits in the batch of this thread, if there is one: see `Batch.flush`."""
    if getattr(_local, "batch", None):
        _local.batch.flush(late)


def _waiting(path):
    """The bytes that a batch of this thread is going to write to ``path``, or None."""
    own = getattr(_local, "batch", None)
    return own.waiting[path].data if own and path in own.waiting else None


@contextlib.contextmanager
def _opened(path, flags, dir_fd=None):
    fd = os.open(path, flags, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _put(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _temporary(name):
    """A temporary name beside ``name`` that nobody can guess; `tidy` recognises it."""
    return f".{name}.{os.urandom(6).hex()}.new"


def _create(name, data, mode, dir_fd=None):
    """Write ``data`` to the new file ``name``."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=dir_fd)
    try:
        try:
            os.fchmod(fd, mode)
            _put(fd, data)
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=dir_fd)
        raise


def _replace(path, *file):
    with batch() as own:
        own.waiting[path] = _File(os.path.basename(path), *file)


def write(path, data, mode=0o600, failed=None, durable=True, late=False):
    """
    Replace ``path`` by ``data`` (text or bytes); a crash leaves the old or the new file.

    In a batch the OSError comes when it is written; with ``failed`` that is called with it instead.
    Without ``durable`` nothing is synced, ``late`` waits for the end of the batch.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")

    def opened():
        return os.open(os.path.dirname(path), DIRECTORY)

    _replace(path, opened, data, mode, failed, durable, late)


def scratch(path, data):
    """Write the text ``data`` to ``path``, neither synced nor atomic: nobody needs it later."""
    remove(path)
    _create(path, data.encode("utf-8", "surrogateescape"), 0o600)


def touch(path):
    """Create the empty file ``path`` unless it is there; not synced."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))


def swap_link(link, target):
    """
    Point the symlink ``link`` at ``target``, durably; a crash leaves the old or the new one.

    Done at once, even in a batch: flush first what has to be there before.
    """
    folder, name = os.path.split(link)
    with _opened(folder, DIRECTORY) as dir_fd:
        tmp = _temporary(name)
        os.symlink(target, tmp, dir_fd=dir_fd)
        os.replace(tmp, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.fsync(dir_fd)


def write_json(path, data):
    write(path, json.dumps(data, sort_keys=True) + "\n")


def read_text(path):
    """The text of the file ``path``, or None."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as handle:
            return handle.read()
    except OSError:
        return None


def read_head(path, size):
    """The first ``size`` bytes of the regular file ``path`` as text, through no link; or None."""
    return _read_at(None, path, size)[0]


def read_json(path, default=None):
    """The content of ``path``; ``default`` if it cannot be read or is not JSON."""
    try:
        data = _waiting(path)
        if data is not None:
            return json.loads(data)
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return default


def remove(path):
    """Remove the file ``path``, if there is one."""
    if _waiting(path) is not None:
        del _local.batch.waiting[path]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _read_at(dir_fd, name, limit=LIMIT):
    """(text, stat) of the regular file ``name``, or (None, None)."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError), _opened(name, flags, dir_fd) as fd:
        info, data, part = os.fstat(fd), b"", True
        while stat.S_ISREG(info.st_mode) and part and len(data) < limit:
            size = min(limit - len(data), info.st_size + 1)  # mostly one call, without a megabyte
            part = os.read(fd, size)
            data += part
        if stat.S_ISREG(info.st_mode):
            return data.decode("utf-8", "surrogateescape"), info
    return None, None


def tidy(folder):
    """
    Remove the temporary files of killed writers from ``folder`` (a path or a descriptor).

    Files younger than STALE seconds stay: their writers may live.
    """
    for name in os.listdir(folder):
        if name.endswith(".new") and _TEMPORARY.match(name):
            where = {"dir_fd": folder} if isinstance(folder, int) else {}
            path = name if where else os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if time.time() - os.lstat(path, **where).st_mtime > STALE:
                    os.unlink(path, **where)


def keep_only(folder, names):
    """Remove all files of ``folder`` but those called ``names``."""
    with contextlib.suppress(OSError):
        for name in set(os.listdir(folder)) - names:
            os.unlink(os.path.join(folder, name))


def _only_root_writes(info):
    """True if nobody but root may write there; group wheel (0) counts as root."""
    if info.st_uid != os.geteuid() or info.st_mode & stat.S_IWOTH:
        return False
    return not info.st_mode & stat.S_IWGRP or info.st_gid == 0


def _ignore(err):
    """One env's directory that cannot be written keeps no other file from being written."""


class EnvDir:
    """
    The directory ``jails-system/ENV/monit`` of one env; ``sysdir`` is ``jails-system/ENV``.

    ``sysdir`` may be a symlink (VMs on ZFS). Below it nothing is followed: CBSD gives hook
    directories and those of VMs to its user ``cbsd``, while root reads them here.
    """

    def __init__(self, sysdir):
        self.sysdir = sysdir
        self.path = f"{sysdir}/monit"

    def _open(self):
        return os.open(self.path, DIRECTORY | os.O_NOFOLLOW)

    def _fd(self):
        return _opened(self.path, DIRECTORY | os.O_NOFOLLOW)

    def read(self, name):
        """The text of the regular file ``name``, or None."""
        data = _waiting(f"{self.path}/{name}")
        if data is not None:
            return data.decode("utf-8", "surrogateescape")
        with contextlib.suppress(OSError), self._fd() as dir_fd:
            return _read_at(dir_fd, name)[0]
        return None

    def load(self, names):
        """
        Read files: ({name: text or None}, True if only root can have written them).

        Both answers come from the same open files: what is read later could be somebody else's.
        """
        found, trusted = dict.fromkeys(names), False
        with contextlib.suppress(OSError), self._fd() as dir_fd:
            safe = _only_root_writes(os.fstat(dir_fd))
            for name in names:
                found[name], info = _read_at(dir_fd, name)
                safe = safe and (info is None or _only_root_writes(info))
            trusted = safe and self._only_root_moves(dir_fd)
        return found, trusted

    def _only_root_moves(self, dir_fd):
        """True if only root can exchange a directory between CBSD's workdir and this one."""
        # The workdir itself belongs to user cbsd, by CBSD's own design.
        work = os.stat(os.path.dirname(os.path.dirname(self.sysdir)))
        path, below = "..", os.fstat(dir_fd)
        while True:
            info = os.stat(path, dir_fd=dir_fd)
            if os.path.samestat(info, work) or os.path.samestat(info, below):  # / is its own `..`
                return True
            if not _only_root_writes(info):
                return False
            path, below = path + "/..", info

    def write(self, name, text, failed=None, durable=True, late=False):
        """Replace ``name`` as `files.write` does; in a batch, ``failed`` ignores by default."""
        if failed is None and getattr(_local, "batch", None):
            failed = _ignore
        data = text.encode("utf-8", "surrogateescape")
        _replace(f"{self.path}/{name}", self._open, data, 0o600, failed, durable, late)

    def tidy(self):
        with contextlib.suppress(OSError), self._fd() as dir_fd:
            tidy(dir_fd)

    def remove(self, name):
        """Remove the file ``name``, if that is possible."""
        if _waiting(f"{self.path}/{name}") is not None:
            del _local.batch.waiting[f"{self.path}/{name}"]
        with contextlib.suppress(OSError), self._fd() as dir_fd:
            os.unlink(name, dir_fd=dir_fd)
