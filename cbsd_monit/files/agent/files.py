"""
Files: written whole or not at all, and never through somebody else's symlink.

Here and in the other modules what few commands need is imported where it is needed: monit runs `look` each cycle.
"""

import contextlib
import json
import os
import re
import stat
import threading
import time
from collections import namedtuple

CHUNK = 128  # files of a batch that are written together; each holds one descriptor of its directory at most
LIMIT = 1 << 20  # bytes of an env's file that are read
STALE = 600  # seconds
_LEFT = re.compile(r"\..+\.[0-9a-f]{12}\.new\Z")
_local = threading.local()


# What waits to be written: ``opened`` gives a descriptor of its directory, ``failed`` (or None) is told of an OSError.
# Without ``durable`` it is whole or not at all for whoever reads, but a loss of power may take it.  ``late``: not before
# the batch ends.
_File = namedtuple("_File", "name opened data mode failed durable late")


class Batch:
    """
    Files that one thread writes together: each once, however often it changes, and one commit of the file system's journal
    serves many.

    Each is whole and synced before it gets its name, as without a batch; only the moment is put off, to `flush` or the end.
    Whoever reads meanwhile through this module in the same thread finds what was written.
    """

    def __init__(self):
        self.waiting = {}  # path: _File

    def flush(self, late=True):
        """Make all that waits durable, without ``late`` only what does not wait for the end; raises the first OSError that nobody takes when the rest is done."""
        taken = {path: file for path, file in self.waiting.items() if late or not file.late}
        self.waiting = {path: file for path, file in self.waiting.items() if path not in taken}
        entries, troubles = list(taken.items()), []
        for first in range(0, len(entries), CHUNK):
            _write(entries[first : first + CHUNK], troubles)
        if troubles:
            raise troubles[0]


def _write(entries, troubles):
    """Write [(path, _File)]; an OSError goes to ``failed`` of the file, or to ``troubles``."""
    folders, temps, bad = {}, {}, {}

    def tried(action, path, *args):
        try:
            if path not in bad:
                action(path, *args)
        except OSError as err:
            bad[path] = err

    def make(path, file, folder):
        if folder not in folders:
            folders[folder] = file.opened()
        temps[path] = _temporary(file.name, file.data, file.mode, folders[folder])

    def sync(path, folder):
        fd = os.open(temps[path], os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folders[folder])
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def take(path, file, folder):
        os.replace(temps[path], file.name, src_dir_fd=folders[folder], dst_dir_fd=folders[folder])
        del temps[path]

    def settle(path, folder):
        os.fsync(folders[folder])

    entries = [(path, file, os.path.dirname(path)) for path, file in entries]
    durable = [(path, folder) for path, file, folder in entries if file.durable]
    try:
        for entry in entries:
            tried(make, *entry)
        _each(lambda entry: tried(sync, *entry), durable)
        for entry in entries:
            tried(take, *entry)
        last = {folder: path for path, folder in durable if path not in bad}
        _each(
            lambda entry: tried(settle, *entry), [(path, folder) for folder, path in last.items()]
        )
        for path, file, folder in entries:
            if path in temps:
                with contextlib.suppress(OSError):
                    os.unlink(temps[path], dir_fd=folders[folder])
            if path in bad:
                (file.failed or troubles.append)(bad[path])
    finally:
        for folder in folders.values():
            os.close(folder)


def _each(action, items):
    """``action(item)`` for all, by eight threads: the journal commits once for all that ask at the same moment."""

    def some(part):
        for item in part:
            action(item)

    if len(items) < 3:
        some(items)
        return
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(some, [items[first::8] for first in range(min(8, len(items)))]))


@contextlib.contextmanager
def batch():
    """What this thread writes inside is made durable together at the end; inside another batch it is part of that one."""
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
    """All that this thread has written is durable when this returns; without ``late`` all that does not wait for the end of its batch."""
    if getattr(_local, "batch", None):
        _local.batch.flush(late)


def _waiting(path):
    """What a batch of this thread is going to write to ``path``, as bytes, or None."""
    own = getattr(_local, "batch", None)
    return own.waiting[path].data if own and path in own.waiting else None


def _put(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _new_name(name):
    return f".{name}.{os.urandom(6).hex()}.new"  # as in _LEFT


def _temporary(name, data, mode, dir_fd):
    """Write ``data`` to a new file beside ``name``; returns its name, which nobody could lay out in advance."""
    tmp = _new_name(name)
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=dir_fd)
    try:
        try:
            os.fchmod(fd, mode)
            _put(fd, data)
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(tmp, dir_fd=dir_fd)
        raise
    return tmp


def _replace(path, *file):
    with batch() as own:
        own.waiting[path] = _File(os.path.basename(path), *file)


def write(path, data, mode=0o600, failed=None, durable=True, late=False):
    """
    Replace ``path`` by ``data`` (text or bytes) durably; a crash leaves the old or the new file.

    In a batch an OSError may come later; ``failed`` is called with it, and then nothing is raised. ``durable``, ``late``: _File.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")

    def opened():
        return os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)

    _replace(path, opened, data, mode, failed, durable, late)


def scratch(path, data):
    """Write ``data`` to ``path``, which nobody needs after a crash: not synced, not swapped."""
    remove(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        _put(fd, data.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)


def touch(path):
    """Create the empty file ``path`` unless it is there; a loss of power may take it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def swap_link(link, target):
    """Point the symlink ``link`` at ``target`` durably, in no batch; a crash leaves the old or the new one."""
    folder, name = os.path.split(link)
    dir_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        tmp = _new_name(name)
        os.symlink(target, tmp, dir_fd=dir_fd)
        os.replace(tmp, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.fsync(dir_fd)
    finally:
        os.close(dir_fd)


def write_json(path, data):
    write(path, json.dumps(data, sort_keys=True) + "\n")


def read_json(path, default=None):
    """The content of ``path``, or ``default`` where there is none or it is not JSON."""
    try:
        data = _waiting(path)
        if data is not None:
            return json.loads(data)
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return default


def remove(path):
    if _waiting(path) is not None:
        del _local.batch.waiting[path]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _read_at(dir_fd, name):
    """(text, stat) of the regular file ``name``, or (None, None)."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError:
        return None, None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return None, None
        data, more = b"", True
        while more and len(data) < LIMIT:
            more = os.read(
                fd, min(LIMIT - len(data), info.st_size + 1)
            )  # one call mostly, and no megabyte for it
            data += more
        return data.decode("utf-8", "surrogateescape"), info
    finally:
        os.close(fd)


def tidy(folder):
    """
    Remove what a process that was killed while it wrote has left in ``folder`` (a path or a descriptor).

    Not what is younger than STALE seconds: its writer may live.
    """
    for name in os.listdir(folder):
        if name.endswith(".new") and _LEFT.match(name):
            where = {"dir_fd": folder} if isinstance(folder, int) else {}
            path = name if where else os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if time.time() - os.lstat(path, **where).st_mtime > STALE:
                    os.unlink(path, **where)


def _roots_alone(info):
    """True if nobody but root may write there; group wheel (0) is root's own."""
    if info.st_uid != os.geteuid() or info.st_mode & stat.S_IWOTH:
        return False
    return not info.st_mode & stat.S_IWGRP or info.st_gid == 0


def _ignore(err):
    """What cannot be written in an env's directory keeps no other file from being written."""


class EnvDir:
    """
    The directory ``jails-system/ENV/monit`` of one env.

    ``jails-system/ENV`` may be a symlink (VMs on ZFS); below it nothing is followed, because CBSD gives hook
    directories and the directories of VMs to its user ``cbsd`` while root reads them here.
    """

    def __init__(self, sysdir):
        self.sysdir = sysdir
        self.path = f"{sysdir}/monit"

    def _opened(self):
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    @contextlib.contextmanager
    def _fd(self):
        fd = self._opened()
        try:
            yield fd
        finally:
            os.close(fd)

    def read(self, name):
        """The text of the regular file ``name``, or None."""
        data = _waiting(f"{self.path}/{name}")
        if data is not None:
            return data.decode("utf-8", "surrogateescape")
        try:
            dir_fd = self._opened()
        except OSError:
            return None
        try:
            return _read_at(dir_fd, name)[0]
        finally:
            os.close(dir_fd)

    def load(self, names):
        """
        ({name: text or None}, roots): the files as of one moment, and whether nobody but root could have written them.

        Both answers come from the same open files: what is read later could be somebody else's.
        """
        found, roots = dict.fromkeys(names), False
        try:
            with self._fd() as dir_fd:
                roots = _roots_alone(os.fstat(dir_fd))
                tidy(dir_fd)
                for name in names:
                    found[name], info = _read_at(dir_fd, name)
                    roots = roots and (info is None or _roots_alone(info))
                roots = roots and self._way_up(dir_fd)
        except OSError:
            roots = False
        return found, roots

    def _way_up(self, dir_fd):
        """True if only root can exchange a directory between CBSD's work directory and this env's (links resolved)."""
        work = os.stat(
            os.path.dirname(os.path.dirname(self.sysdir))
        )  # it belongs to user cbsd by CBSD's own design
        way, below = "..", os.fstat(dir_fd)
        while True:
            info = os.stat(way, dir_fd=dir_fd)
            if os.path.samestat(info, work) or os.path.samestat(
                info, below
            ):  # `..` of / is / itself
                return True
            if not _roots_alone(info):
                return False
            way, below = way + "/..", info

    def write(self, name, text, failed=None, durable=True, late=False):
        """
        Replace ``name``.

        In a batch an OSError may come later: then ``failed`` is called with it, and without one it is this env's trouble alone.
        """
        if failed is None and getattr(_local, "batch", None):
            failed = _ignore
        data = text.encode("utf-8", "surrogateescape")
        _replace(f"{self.path}/{name}", self._opened, data, 0o600, failed, durable, late)

    def remove(self, name):
        if _waiting(f"{self.path}/{name}") is not None:
            del _local.batch.waiting[f"{self.path}/{name}"]
        with contextlib.suppress(OSError), self._fd() as dir_fd:
            os.unlink(name, dir_fd=dir_fd)
