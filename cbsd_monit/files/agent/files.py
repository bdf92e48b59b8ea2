"""Files: written whole or not at all, and never through somebody else's symlink."""
import contextlib
import json
import os
import stat


def _replace(name, data, mode, dir_fd):
    tmp = f".{name}.{os.getpid()}.new"
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode, dir_fd=dir_fd)
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
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                fd = os.open(name, flags, dir_fd=dir_fd)
                with os.fdopen(fd, "rb") as handle:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        return None
                    return handle.read(1 << 20).decode("utf-8", "surrogateescape")
        except OSError:
            return None

    def read_json(self, name):
        try:
            found = json.loads(self.read(name) or "")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

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

    def only_roots(self):
        """True if nobody but root could have written here: the env's directory, ``monit`` and its files."""
        paths = [self.sysdir, self.path]
        paths += [os.path.join(self.path, n) for n in ("monitrc.tpl", "policy.json")]
        for path in paths:
            try:
                info = os.stat(path) if path == self.sysdir else os.lstat(path)
            except FileNotFoundError:
                continue
            if info.st_uid != os.geteuid() or info.st_mode & stat.S_IWOTH:
                return False
            if info.st_mode & stat.S_IWGRP and info.st_gid != 0:
                return False
        return True
