"""The program `cbsd`: finds the command and runs it (bin/cbsdsh).

Here and in the modules it uses, an import inside a function is one that few commands need: a test
waits for the start of hundreds of these processes.
"""

import os
import sys
import time

from sim.layout import HOST_PATH, NESTED, VERSION, Layout, append_json

# command -> module and function; modules are imported when they are needed, to start fast.
COMMANDS = {
    "jls": "listing.jls",
    "bls": "listing.bls",
    "jget": "listing.jget",
    "bget": "listing.bget",
    "jstatus": "listing.jstatus",
    "jcreate": "jails.jcreate",
    "jstart": "jails.jstart",
    "jstop": "jails.jstop",
    "jrestart": "jails.jrestart",
    "jremove": "jails.jdestroy",
    "jdestroy": "jails.jdestroy",
    "jrename": "jails.jrename",
    "jclone": "jails.jclone",
    "jset": "jails.jset",
    "jexec": "jails.jexec",
    "jswmode": "jails.jswmode",
    "jcleanup": "jails.jcleanup",
    "jexport": "images.jexport",
    "jimport": "images.jimport",
    "bcreate": "machines.bcreate",
    "bstart": "machines.bstart",
    "bstop": "machines.bstop",
    "brestart": "machines.brestart",
    "bremove": "machines.bdestroy",
    "bdestroy": "machines.bdestroy",
    "brename": "machines.brename",
    "bclone": "machines.bclone",
    "bset": "machines.bset",
    "bhyve-exist": "machines.bhyve_exist",
    "module": "modules.module",
    "initenv": "modules.initenv",
}
# cbsd.conf:122, behind the module directory: names that CBSD does not have hit the host's programs.
SYSTEM_PATH = "/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin"


def main(root, argv):
    """Run `cbsd ARGV`; the exit code."""
    parent = os.environ.pop(NESTED, None)
    workdir = os.environ.get("workdir") or configured_workdir(Layout(root).rcconf)
    layout = Layout(root, workdir or None)
    log = Log(layout, argv, parent)
    code = 255
    try:
        code = dispatch(layout, argv) if workdir else no_workdir()
    finally:
        log.write("end", rc=code)
    return code


class Log:
    """log/cbsd.log: tests count commands and look at who ran them.

    A program that replaces this process leaves no line for its end.
    """

    def __init__(self, layout, argv, parent):
        self.layout = layout
        self.who = {"pid": os.getpid(), "ppid": os.getppid(), "argv": argv, "nested": bool(parent)}
        self.who["parent_pid"] = int(parent) if parent else None
        self.write("start")

    def write(self, event, **more):
        """One line."""
        append_json(self.layout.cbsd_log, {"t": time.time(), "event": event, **self.who, **more})


def no_workdir():
    """Neither the environment nor rc.conf names the working directory."""
    sys.stderr.write("cbsd: no workdir defined\n")
    return 1


def dispatch(layout, argv):
    """Find what `cbsd ARGV` means and run it."""
    if not argv or argv[0] == "-c":
        return script(layout, argv[1] if len(argv) > 1 else None)
    command, arguments = argv[0], argv[1:]
    if command in ("version", "--version"):
        sys.stdout.write(VERSION + "\n")
        return 0
    external = find_external(layout, command)
    if external or command not in COMMANDS:
        return run_external(layout, command, arguments, external)
    import _signal  # without the enums of `signal`

    # `init` traps these without ending the script; only SIGKILL ends a running command.
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
        _signal.signal(number, lambda *_: None)
    return run(layout, command, arguments)


def configured_workdir(rcconf):
    """cbsd_workdir of rc.conf."""
    try:
        with open(rcconf, encoding="utf-8") as conf:
            lines = [line.strip().partition("=") for line in conf]
    except FileNotFoundError:
        return ""
    return "".join(value.strip("\"'") for key, _, value in lines if key == "cbsd_workdir")


def run(layout, command, arguments):
    """Run one of CBSD's own commands."""
    from sim.inventory import BrokenRow
    from sim.kernel import unlink
    from sim.session import Session
    from sim.shell import Exit

    session = Session(layout, command, arguments, dict(os.environ))
    if not os.path.isdir(layout.workdir):
        session.say(f"{{N1}}{command}: no such workdir: {{N2}}{layout.workdir}{{N0}}")
        return 1
    session.prepare()
    module, _, function = COMMANDS[command].partition(".")
    record = session.kernel.register()
    try:
        found = __import__(f"sim.{module}", fromlist=[function])
        return getattr(found, function)(session)
    except Exit as end:
        return end.code
    except BrokenRow:
        session.say("export: =0: bad variable name", stream=2)
        return 2
    finally:
        unlink(record)


def find_external(layout, command):
    """A command of a module: it wins over everything that CBSD has itself."""
    path = layout.work("modules", command)
    return path if os.path.isfile(path) and os.access(path, os.X_OK) else None


def run_external(layout, command, arguments, path):
    """A module's command, or a program of the host; 127 when there is neither."""
    environment = dict(os.environ, workdir=layout.workdir)
    if path is None:
        path = next(
            (
                os.path.join(directory, command)
                for directory in SYSTEM_PATH.split(":")
                if os.access(os.path.join(directory, command), os.X_OK)
            ),
            None,
        )
        if path is None or "/" in command:
            sys.stderr.write(f"{layout.bin}/cbsd: {command}: not found\n")
            return 127
    with open(path, "rb") as program:
        interpreter = program.readline()
    if interpreter.startswith(b"#!/usr/local/bin/cbsd"):
        from sim.modules import run_script
        from sim.session import Session

        return run_script(Session(layout, command, arguments, environment).prepare(), path)
    environment["PATH"] = f"{layout.work('modules')}:{SYSTEM_PATH}"
    os.execve(path, [path, *arguments], environment)
    return 126


def script(layout, code):
    """`cbsd -c CODE`, or CBSD's shell reading standard input; SQL builtins are commands here."""
    if code and code.startswith(("cbsdsqlro ", "cbsdsqlrw ")) and not set(code) & set("|&;<>$`\n"):
        return sql(layout, words_of(code)[1:])
    path = f"{layout.work('modules')}:{layout.bin}/commands:{HOST_PATH}"
    environment = dict(os.environ, workdir=layout.workdir, PATH=path)
    argv = ["/bin/sh"] if code is None else ["/bin/sh", "-c", code]
    os.execve("/bin/sh", argv, environment)
    return 126


def words_of(code):
    """The words of a simple command, as a shell sees them."""
    if not set(code) & set("'\"\\"):
        return code.split()
    import shlex

    return shlex.split(code)


def sql(layout, words):
    """cbsdsqlro DATABASE STATEMENT...: one line per row, columns separated by `|`."""
    from sim import quick_sqlite

    name = words[0] if words else ""
    path = name if name.startswith("/") else layout.work(f"var/db/{name}.sqlite")
    if not os.path.isfile(path):
        sys.stdout.write(f"cbsdsql: Can't open database file: {path}\n")
        return 1
    separator = os.environ.get("sqldelimer", "|")
    connection = quick_sqlite.connect(path, timeout=25, isolation_level=None)
    try:
        for row in connection.execute(" ".join(words[1:])):
            sys.stdout.write(separator.join("" if v is None else str(v) for v in row) + "\n")
    except quick_sqlite.Error as error:
        sys.stderr.write(f"cbsdsql: {error}\n")
        return 1
    finally:
        connection.close()
    return 0
