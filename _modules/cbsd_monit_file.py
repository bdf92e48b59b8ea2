"""
Durable replacement of files, for the modules and states of ``cbsd_monit``.

A new content is staged beside the file as ``.NAME.salt``, synced, and renamed; so a crash leaves
the old or the new file, and at most a staged one, which the next run removes.

:depends: none
"""

import contextlib
import os
import stat
import types


def tools():
    """
    Internal: Return the functions of this file, without their underscore, as attributes of an
    object.

    They are handed over because Salt's loader takes longer for a call than most of them, and is not
    made to be called by several threads.
    """
    functions = (_temporary, _read, _stage, _unstage, _sync, _take, _write, _tidy)
    return types.SimpleNamespace(**{f.__name__[1:]: f for f in functions})


def _temporary(name):
    """Return the name under which what becomes ``name`` is staged."""
    return f".{name}.salt"


def _read(name, dir_fd=None):
    """Return the text of a regular file, or None; with ``dir_fd`` no symlink is followed."""
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if dir_fd is None else os.O_NOFOLLOW)
    try:
        handle = os.open(name, flags, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    except OSError:
        if dir_fd is None:
            raise
        return None  # a symlink where a file belongs: it is replaced, not read
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return None
    with os.fdopen(handle, "rb") as stream:
        return stream.read().decode("utf-8", "surrogateescape")


def _stage(folder, name, content, mode=0o600):
    """
    Write what becomes ``name`` in the directory ``folder`` (a descriptor); return its descriptor.

    ``content`` is text or bytes. `_sync` comes next, then `_take` or `_unstage`.
    """
    temp, flags = _temporary(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        handle = os.open(temp, flags, mode, dir_fd=folder)
    except FileExistsError:  # of a run that was killed
        os.unlink(temp, dir_fd=folder)
        handle = os.open(temp, flags, mode, dir_fd=folder)
    try:
        os.fchmod(handle, mode)
        is_bytes = isinstance(content, bytes)
        rest = memoryview(content if is_bytes else content.encode("utf-8", "surrogateescape"))
        while rest:
            rest = rest[os.write(handle, rest) :]
    except BaseException:
        os.close(handle)
        _unstage(folder, name)
        raise
    return handle


def _unstage(folder, name):
    """Remove what was staged, in this run or in one that was killed."""
    with contextlib.suppress(OSError):
        os.unlink(_temporary(name), dir_fd=folder)


def _sync(handle):
    """Sync and close what `_stage` returned."""
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take(folder, name):
    """Give what was staged its name; it is durable once ``folder`` is synced."""
    os.replace(_temporary(name), name, src_dir_fd=folder, dst_dir_fd=folder)


def _write(path, content):
    """Replace ``path`` durably, with mode 0600."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    name = os.path.basename(path)
    try:
        handle = _stage(folder, name, content)
        try:
            _sync(handle)
            _take(folder, name)
        except BaseException:
            _unstage(folder, name)
            raise
        os.fsync(folder)
    finally:
        os.close(folder)


def _tidy(path):
    """Remove what a run that was killed staged for ``path``."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(os.path.join(os.path.dirname(path), _temporary(os.path.basename(path))))
