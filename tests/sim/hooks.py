"""Hook scripts on the host (subr/jcreate.subr:152-237)."""

import errno
import os
import stat
import time

from sim import programs
from sim.layout import HOST_PATH, append_json


class HookRunner:
    """Runs the scripts of a hook directory the way CBSD's shell does."""

    def __init__(self, session):
        self.session = session

    def run(self, jname, directory):
        """Run all executables of `jails-system/JNAME/DIRECTORY`; failures are ignored."""
        for _ in self._each(jname, directory, "Execute master script"):
            pass

    def run_local(self, jname, directory):
        """clone-local.d: 0 without scripts, 1 after success, 2 as soon as one fails."""
        result = 0
        for code in self._each(jname, directory, "Execute local script"):
            if code:
                return 2
            result = 1
        return result

    def _each(self, jname, directory, title):
        """Run one script after the other, yielding the exit codes.

        Standard input of a script is the pipe that the shell's loop reads the names of the further
        scripts from, so a script that reads it suppresses those.
        """
        source = self.session.layout.system(jname, directory)
        files = executables(source)
        if not files:
            return
        reader, writer = os.pipe()
        os.write(writer, "".join(name + "\n" for name in files).encode(errors="surrogateescape"))
        os.close(writer)
        try:
            while True:
                name = read_line(reader)
                if not name:
                    return
                self.session.note(title, name)
                self.session.note(f"{{N1}} :: {source}/{name}{{N0}}")
                yield self._script(jname, directory, f"{source}/{name}", reader)
        finally:
            os.close(reader)

    def _script(self, jname, directory, path, stdin):
        """Run one script and log it; its exit code as a shell shows it."""
        session = self.session
        environment = {**session.environment, "PATH": HOST_PATH, "CBSD_PWD": "", "CBSD_CWD": ""}
        record = {"env": jname, "dir": directory, "file": os.path.basename(path)}
        record.update(start=time.time(), command=session.command, pid=os.getpid())
        code = run_script(path.split(" "), environment, stdin, session)
        append_json(session.layout.hooks_log, {**record, "end": time.time(), "rc": code})
        return code

    def in_jail(self, row, directory, start_if_off=False):
        """start.d, stop.d and create.d: copied into the jail, then run there one by one."""
        session, jname = self.session, row["jname"]
        source = session.layout.system(jname, directory)
        files = executables(source)
        if not files or not os.path.isdir(row["data"]):
            return
        import shutil

        target = os.path.join(row["data"], "tmp", directory)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)
        temporary = start_if_off and not session.kernel.jid(jname)
        if temporary:
            names = " ".join(os.listdir(source))
            session.say(f"{{N1}}Jail has custom exec script [{names}], run it for a while...{{N0}}")
            session.cbsd("jstart", jname)
        for name in files:
            session.say("Execute script", name)
            session.cbsd("jexec", f"jname={jname}", f"/tmp/{directory}/{name}")
        if temporary:
            session.cbsd("jstop", jname)
        shutil.rmtree(target, ignore_errors=True)

    def tests(self, jname):
        """`tests/`: any program there that fails, or cannot be run, stops the start."""
        session = self.session
        directory = session.layout.system(jname, "tests")
        for name in os.listdir(directory) if os.path.isdir(directory) else ():
            path = os.path.join(directory, name)
            if not os.path.isfile(path) or os.path.islink(path):
                continue
            session.note("Check environment script", name)
            environment = {**session.environment, "jname": jname}
            if run_script([path], environment, programs.DEVNULL, session):
                session.fail("Error", name)


def executables(directory):
    """Names of the executable files and links of a directory, in no useful order.

    find(1) does not follow a directory that is a link itself, looks at the mode of a link and not
    of its target, and lists in directory order; the shuffle shows who relies on an order.
    """
    if os.path.islink(directory) or not os.path.isdir(directory):
        return []
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            regular = entry.is_symlink() or entry.is_file(follow_symlinks=False)
            mode = entry.stat(follow_symlinks=False).st_mode
            if regular and mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
                found.append(entry.name)
    if len(found) > 1:
        import random

        random.shuffle(found)
    return found


def read_line(fd):
    """One line, byte by byte: the rest must stay in the pipe for the script."""
    line = b""
    while True:
        byte = os.read(fd, 1)
        if byte in (b"", b"\n"):
            return line.decode(errors="surrogateescape")
        line += byte


def run_script(argv, environment, stdin, session):
    """Run a program as a shell would: without `#!` it is a shell script; 126 and 127 as usual."""
    try:
        return status(programs.run(argv, env=environment, stdin=stdin))
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            return status(programs.run(["/bin/sh", *argv], env=environment, stdin=stdin))
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        reason = "not found" if missing else "Permission denied"
        session.say(f"{session.layout.bin}/cbsd: {argv[0]}: {reason}", stream=2)
        return 127 if missing else 126


def status(returncode):
    """An exit code as a shell shows it."""
    return 128 - returncode if returncode < 0 else returncode
