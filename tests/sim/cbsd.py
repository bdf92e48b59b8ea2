"""The program `cbsd`: finds the command and runs it (bin/cbsdsh).

Here and in the modules it uses, an import inside a function is one that few commands need: a test
waits for the start of hundreds of these processes.
"""

import os
import sys
import time

from sim.layout import HOST_PATH, NESTED, VERSION, Layout, append_json, read_conf

# Modules are imported when one of their commands is run, to start fast.
MODULES = {
    "listing": "jls bls jget bget jstatus",
    "jails": "jcreate jstart jstop jrestart jdestroy jrename jclone jset jexec jswmode jcleanup",
    "images": "jexport jimport",
    "machines": "bcreate bstart bstop brestart bdestroy brename bclone bset bhyve-exist",
    "modules": "module initenv",
}
COMMANDS = {name: module for module, names in MODULES.items() for name in names.split()}
OTHER_NAMES = {"jremove": "jdestroy", "bremove": "bdestroy"}
COMMANDS.update({alias: COMMANDS[name] for alias, name in OTHER_NAMES.items()})
# cbsd.conf:122, behind the module directory: names that CBSD does not have hit the host's programs.
SYSTEM_PATH = "/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin"


def main(root, argv):
    """Run `cbsd ARGV`; the exit code."""
    parent = os.environ.pop(NESTED, None)
    workdir = os.environ.get("workdir") or read_conf(Layout(root).rcconf).get("cbsd_workdir")
    layout = Layout(root, workdir)
    # A program that replaces this process leaves no line for its end.
    who = {"pid": os.getpid(), "ppid": os.getppid(), "argv": argv, "nested": bool(parent)}
    who["parent_pid"] = int(parent) if parent else None
    append_json(layout.cbsd_log, {"t": time.time(), "event": "start", **who})
    code = 255
    try:
        if workdir:
            code = dispatch(layout, argv)
        else:
            sys.stderr.write("cbsd: no workdir defined\n")
            code = 1
    finally:
        append_json(layout.cbsd_log, {"t": time.time(), "event": "end", **who, "rc": code})
    return code


def dispatch(layout, argv):
    """Find what `cbsd ARGV` means and run it."""
    if not argv or argv[0] == "-c":
        return script(layout, argv[1] if len(argv) > 1 else None)
    command, *arguments = argv
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


def run(layout, command, arguments):
    from sim.inventory import BrokenRow
    from sim.kernel import unlink
    from sim.session import Session
    from sim.shell import Exit

    session = Session(layout, command, arguments, dict(os.environ))
    if not os.path.isdir(layout.workdir):
        session.say(f"{command}: no such workdir", layout.workdir)
        return 1
    session.prepare()
    function = OTHER_NAMES.get(command, command).replace("-", "_")
    record = session.kernel.register()
    try:
        module = __import__(f"sim.{COMMANDS[command]}", fromlist=[function])
        return getattr(module, function)(session) or 0
    except Exit as end:
        return end.args[0]
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
        candidates = (os.path.join(directory, command) for directory in SYSTEM_PATH.split(":"))
        path = next((path for path in candidates if os.access(path, os.X_OK)), None)
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
