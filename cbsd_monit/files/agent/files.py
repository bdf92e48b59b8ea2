"""Files: written whole or not at all, and never through somebody else's symlink."""

import contextlib
import json
import os
import stat


def _replace(name, data, mode, dir_fd):
    tmp = f".{name}.{os.urandom(6).hex()}.new"
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=dir_fd)
    try:
        try:
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(tmp, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(tmp, dir_fd=dir_fd)
        raise
    os.fsync(dir_fd)


def write(path, data, mode=0o600):
    """Replace ``path`` by ``data`` (text or bytes) durably; a crash leaves the old or the new file."""
    if isinstance(data, str):
        data = data.encode()
    folder, name = os.path.split(path)
    dir_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _replace(name, data, mode, dir_fd)
    finally:
        os.close(dir_fd)


def write_json(path, data):
    write(path, json.dumps(data, sort_keys=True) + "\n")


def read_json(path, default=None):
    """The content of ``path``, or ``default`` where there is none or it is not JSON."""
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return default


def remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _read_at(dir_fd, name):
    """(text, stat) of the regular file ``name``, or (None, None)."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError:
        return None, None
    with os.fdopen(fd, "rb") as handle:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return None, None
        return handle.read(1 << 20).decode("utf-8", "surrogateescape"), info


def _roots_alone(info):
    """True if nobody but root may write there; group wheel (0) is root's own."""
    if info.st_uid != os.geteuid() or info.st_mode & stat.S_IWOTH:
        return False
    return not info.st_mode & stat.S_IWGRP or info.st_gid == 0


class EnvDir:
    """
    The directory ``jails-system/ENV/monit`` of one env.

    ``jails-system/ENV`` may be a symlink (VMs on ZFS); below it nothing is followed, because CBSD gives hook
    directories and the directories of VMs to its user ``cbsd`` while root reads them here.
    """

    def __init__(self, sysdir):
        self.sysdir = sysdir
        self.path = os.path.join(sysdir, "monit")

    @contextlib.contextmanager
    def _fd(self):
        top = os.open(self.sysdir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fd = os.open("monit", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        finally:
            os.close(top)
        try:
            yield fd
        finally:
            os.close(fd)

    def read(self, name):
        """The text of the regular file ``name``, or None."""
        try:
            with self._fd() as dir_fd:
                return _read_at(dir_fd, name)[0]
        except OSError:
            return None

    def load(self, names):
        """
        ({name: text or None}, roots): the files as of one moment, and whether nobody but root could have written them.

        Both answers come from the same open files: what is read later could be somebody else's.
        """
        found, roots = dict.fromkeys(names), False
        try:
            with self._fd() as dir_fd:
                roots = _roots_alone(os.fstat(dir_fd))
                for name in names:
                    found[name], info = _read_at(dir_fd, name)
                    roots = roots and (info is None or _roots_alone(info))
        except OSError:
            pass
        return found, roots and self._way_up()

    def _way_up(self):
        """True if only root can exchange a directory between CBSD's work directory and this env's (links resolved)."""
        path = os.path.realpath(self.sysdir)
        top = os.path.realpath(
            os.path.dirname(os.path.dirname(self.sysdir))
        )  # it belongs to user cbsd by CBSD's own design
        while path not in (top, "/"):
            try:
                if not _roots_alone(os.stat(path)):
                    return False
            except OSError:
                return False
            path = os.path.dirname(path)
        return True

    def write(self, name, text):
        """Replace ``name`` if its content differs; True if it did."""
        data = text.encode("utf-8", "surrogateescape")
        if self.read(name) == text:
            return False
        with self._fd() as dir_fd:
            _replace(name, data, 0o600, dir_fd)
        return True

    def remove(self, name):
        with contextlib.suppress(OSError), self._fd() as dir_fd:
            os.unlink(name, dir_fd=dir_fd)
