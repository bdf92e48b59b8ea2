"""Start programs without `subprocess`: importing that takes longer than all else in a command."""

import os
import time

DEVNULL, PIPE = -3, -1  # as in `subprocess`
RESTORED = (13, 25)  # SIGPIPE and SIGXFSZ: Python ignores them, a program should not
SIGHUP, SIGKILL, SIGTERM = 1, 9, 15  # the module `signal` is not cheap to import


class Program:
    """A program that runs; arguments as `subprocess.Popen` has them, of pipes only one."""

    def __init__(self, argv, env=None, stdin=None, stdout=None, stderr=None, **options):
        wanted, self.pipe, writer = [stdin, stdout, stderr], None, None
        if PIPE in wanted:
            self.pipe, writer = os.pipe()
        fds = options.pop("pass_fds", ())
        for fd in fds:
            os.set_inheritable(fd, True)
        actions = [(os.POSIX_SPAWN_CLOSE, fd) for fd in inheritable() if fd not in fds]
        for number, source in enumerate(wanted):
            if source == DEVNULL:
                actions.append((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0))
            elif source is not None:
                source = writer if source == PIPE else source
                actions.append((os.POSIX_SPAWN_DUP2, source, number))
        options["setsid"] = options.pop("start_new_session", False)
        options.update(file_actions=actions, setsigdef=RESTORED)
        try:
            self.pid = spawn(argv, os.environ if env is None else env, **options)
        except OSError:
            if self.pipe is not None:
                os.close(self.pipe)
            raise
        finally:
            if writer is not None:
                os.close(writer)

    def wait(self, timeout=None):
        """The exit code, negative after a signal; None when `timeout` seconds are over."""
        if timeout is None:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        return None


def spawn(argv, env, executable=None, **options):
    """The pid of a new program, looked for in the PATH of `env`; OSError as execve(2) raises it."""
    name, failure = executable or argv[0], None
    for directory in [""] if "/" in name else os.get_exec_path(env):
        try:
            return os.posix_spawn(os.path.join(directory, name), argv, env, **options)
        except OSError as error:
            if failure is None or isinstance(failure, (FileNotFoundError, NotADirectoryError)):
                failure = error
    raise failure


def inheritable():
    """The file descriptors above 2 that a program would get from this process."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:  # the one that listed the directory
            pass
    return found


def run(argv, **options):
    """Run a program to its end; its exit code."""
    return Program(argv, **options).wait()


def output(argv, stream="stdout", **options):
    """Run a program to its end; (exit code, what it wrote to `stream`)."""
    program = Program(argv, **{stream: PIPE}, **options)
    with open(program.pipe, "rb") as source:
        data = source.read()
    return program.wait(), data
