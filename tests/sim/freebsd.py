"""Programs of the base system: jls, jexec, sysrc, ps, rctl, and service(8) inside a jail."""

import os
import pwd
import sys

from sim import procs, programs, quick_json
from sim.addresses import bare
from sim.kernel import Kernel
from sim.layout import Layout, read, read_conf


def main(program, root, argv):
    """Run one of the programs; its exit code."""
    return PROGRAMS[program](Layout(root), argv)


def complain(text, code=1):
    """Print an error; the exit code for it."""
    sys.stderr.write(text + "\n")
    return code


PARAMETERS = {
    "jid": lambda name, jail: str(jail["jid"]),
    "name": lambda name, jail: name,
    "path": lambda name, jail: jail["path"],
    "host.hostname": lambda name, jail: jail["hostname"],
    "ip4.addr": lambda name, jail: ipv4(jail),
    "dying": lambda name, jail: "false",
    "persist": lambda name, jail: "false",
}


def ipv4(jail):
    """The IPv4 addresses of a jail, as jls shows them."""
    return ",".join(item for item in map(bare, jail["ip4"].split(",")) if item.count(".") == 3)


def jls(layout, argv):
    """jls [-dhNnqsv] [--libxo json] [-j jail] [parameter ...]"""
    flags, wanted, parameters, as_json = set(), None, [], False
    words = iter(argv)
    for word in words:
        if word in ("--libxo", "--libxo=json"):
            as_json = (next(words, "") if word == "--libxo" else "json").startswith("json")
        elif word.startswith("-j"):
            wanted = word[2:] or next(words, "")
        elif word.startswith("-"):
            flags.update(word[1:])
        else:
            parameters.append(word)
    kernel = Kernel(layout)
    found = sorted(kernel.jails().items(), key=lambda item: item[1]["jid"])
    if wanted is not None:
        found = list(filter(None, [kernel.find(wanted)]))
        if not found:
            return complain(f'jls: jail "{wanted}" not found')
    unknown = [name for name in parameters if name not in PARAMETERS]
    if unknown:
        return complain(f"jls: unknown parameter: {unknown[0]}")
    if as_json:
        print_json(found)
    elif parameters or flags & set("nshq"):
        print_parameters(found, parameters or list(PARAMETERS), flags)
    else:
        print("   JID  IP Address      Hostname                      Path")
        for _, jail in found:
            address = ipv4(jail).split(",")[0]
            print(f"{jail['jid']:6}  {address:15.15} {jail['hostname']:29.29} {jail['path']:.74}")
    return 0


def print_parameters(found, parameters, flags):
    """One jail a line: values, or name=value with -n."""
    if "h" in flags:
        print(*parameters)
    for name, jail in found:
        values = [PARAMETERS[parameter](name, jail) or "-" for parameter in parameters]
        if flags & set("ns"):
            values = [f"{key}={value}" for key, value in zip(parameters, values)]
        print(*values)


def print_json(found):
    entries = []
    for name, jail in found:
        entry = {"jid": jail["jid"], "ipv4": ipv4(jail).split(",")[0]}
        entries.append({**entry, "hostname": jail["hostname"], "path": jail["path"], "name": name})
    print(quick_json.dumps({"__version": "2", "jail-information": {"jail": entries}}))


def jexec(layout, argv):
    """jexec [-l] [-n] [-d dir] [-u user | -U user] jail [command ...]"""
    usage = "usage: jexec [-l] [-d working-directory] [-u username | -U username]"
    user = directory = ""
    words = list(argv)
    while words and words[0].startswith("-") and words[0] != "--":
        flag = words.pop(0)
        if flag[1:2] in ("u", "U"):
            user = flag[2:] or words.pop(0)
        elif flag[1:2] == "d":
            directory = flag[2:] or words.pop(0)
        elif flag.strip("-ln"):
            return complain(usage)
    if words[:1] == ["--"]:
        words.pop(0)
    if not words:
        return complain(usage)
    kernel = Kernel(layout)
    found = kernel.find(words[0])
    if not found:
        return complain(f'jexec: jail "{words[0]}" not found')
    return execute(kernel, found[0], words[1:] or ["/bin/sh"], dict(os.environ), user, directory)


def execute(kernel, name, argv, environment, user="", directory=""):
    """Become a process of a jail and run a program there. Returns only when that is impossible.

    The root of the jail is a directory of this machine, not a new root: absolute paths of
    programs are looked up below it first, relative ones in its bin and usr/local/bin.
    """
    jail = kernel.jails()[name]
    data = jail["data"]
    environment = kernel.jail_environment(name, jail, environment)
    kernel.add_process(name, os.getpid())
    if user and user != "root":
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            return complain(f"jexec: {user}: no such user")
    try:
        os.chdir(os.path.join(data, directory.lstrip("/")))
    except OSError as error:
        return complain(f"jexec: chdir(): {error.strerror}")
    if user and user != "root":
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    argv = [*argv]
    if argv[:2] == ["/bin/sh", "-c"]:
        first, blank, rest = argv[2].partition(" ")
        argv[2] = inside(kernel.layout, data, first) + blank + rest
    program = inside(kernel.layout, data, argv[0])
    try:
        os.execvpe(program, [program, *argv[1:]], environment)
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        return complain(f"jexec: {argv[0]}: {error.strerror}", code)


def inside(layout, data, program):
    """The file of this machine that an absolute path names in a jail."""
    if not program.startswith("/"):
        return program
    own = os.path.join(data, program.lstrip("/"))
    provided = os.path.join(layout.jailbin, os.path.basename(program))
    return next((path for path in (own, provided) if os.access(path, os.X_OK)), program)


def ps(layout, argv):
    """ps -J jail -o pid= -o comm="""
    if argv[:1] != ["-J"] or argv[2:] != ["-o", "pid=", "-o", "comm="]:
        return complain("ps: only -J JAIL -o pid= -o comm= is simulated", 64)
    kernel = Kernel(layout)
    found = kernel.find(argv[1])
    if not found:
        return complain(f"ps: Invalid jail ID: {argv[1]}")
    name, jail = found
    idents = [jail["holder"], *filter(None, jail["pids"])]
    for pid, _ in sorted(procs.family(idents, kernel.marker(name, jail))):
        comm = read(f"/proc/{pid}/comm", missing="")
        if comm:
            print(f"{pid:5} {comm.strip()}")
    return 0


def rctl(layout, argv):
    """rctl -u jail:NAME: print DIR/kernel/rctl/NAME; without that file RACCT is disabled."""
    if argv[:1] != ["-u"] or not argv[1:2] or not argv[1].startswith("jail:"):
        return complain("usage: rctl -u filter", 64)
    try:
        sys.stdout.write(read(os.path.join(layout.kernel, "rctl", argv[1][5:])))
    except FileNotFoundError:
        problem = "RACCT/RCTL present, but disabled; enable using kern.racct.enable=1 tunable"
        return complain(f"rctl: {problem}")
    return 0


def this_jail(layout):
    """(kernel, name, record) of the jail that this process is in."""
    name, jid = os.environ["CBSD_SIM_JAIL"].rsplit(":", 2)[1:]
    kernel = Kernel(layout)
    jail = kernel.read()["jails"].get(name)
    return kernel, name, jail if jail and str(jail["jid"]) == jid else None


def service(layout, argv):
    """service -e | service NAME VERB"""
    kernel, name, jail = this_jail(layout)
    if not jail:
        return complain("service: the jail is gone")
    from sim.services import Services  # not needed by most, and not cheap

    services = Services(kernel, name, jail)
    if argv[:1] == ["-e"]:
        for package in services.packages():
            if services.enabled(package):
                print(f"/usr/local/etc/rc.d/{package}")
        return 0
    words = [word for word in argv if not word.startswith("-")]
    if len(words) < 2:
        return complain("usage: service <rc.d script> start|stop|etc.")
    code, text = services.run(words[0], words[1])
    sys.stdout.write(text)
    return code


def sysrc(layout, argv):
    """sysrc [-f file] [-n] [-x] name[=value] ...; in a jail, its own rc.conf."""
    path, names_only, delete, words = layout.rcconf, False, False, []
    if "CBSD_SIM_JAIL" in os.environ:
        jail = this_jail(layout)[2]
        path = os.path.join(jail["data"], "etc/rc.conf")
    arguments = iter(argv)
    for word in arguments:
        if word == "-f":
            path = next(arguments, path)
        elif word.startswith("-"):
            names_only, delete = names_only or "n" in word, delete or "x" in word
        else:
            words.append(word)
    from sim.services import write_conf

    code = 0
    for word in words:
        key, assigned, value = word.partition("=")
        known = read_conf(path)
        if assigned:
            write_conf(path, {**known, key: value})
            print(value if names_only else f"{key}: {known.get(key, '')} -> {value}")
        elif key not in known:
            code = complain(f"sysrc: unknown variable '{key}'")
        elif delete:
            del known[key]
            write_conf(path, known)
        else:
            print(known[key] if names_only else f"{key}: {known[key]}")
    return code


def jails_astart(layout, argv):
    """rc.d/jails-astart: what rc does with the environments of the node at boot and at shutdown."""
    cbsd = os.path.join(layout.bin, "cbsd")
    if argv[:1] == ["start"]:
        return astart(layout, cbsd)
    from sim.inventory import Inventory  # not needed by the other programs, and not cheap

    inventory = Inventory(layout, Kernel(layout))
    for jname in inventory.names("emulator='bhyve'"):
        if Kernel(layout).vm_pid(jname):
            programs.run([cbsd, "bstop", f"jname={jname}"])
    for jname in inventory.names("emulator='jail'"):
        # A typing error of CBSD 14.1.3a (jails-astart:27): `name=` is no key, nothing is stopped.
        programs.run([cbsd, "jstop", f"name={jname}"], stdout=programs.DEVNULL)
    return 0


def astart(layout, cbsd):
    """Start what has astart=1: all jails side by side, and all machines."""
    from sim.inventory import Inventory

    inventory = Inventory(layout, Kernel(layout))
    inventory.write("UPDATE jails SET status='0' WHERE status='3'")
    running = []
    for command, emulator in (("jstart", "jail"), ("bstart", "bhyve")):
        names = inventory.names(f"emulator='{emulator}'")
        if emulator == "bhyve":  # its own settings have the word
            chosen = [name for name in names if inventory.settings(name).get("astart") == "1"]
        else:
            chosen = [name for name in names if inventory.value(name, "astart") == "1"]
        if chosen:
            argv = [cbsd, command, "inter=0", *chosen]
            null = {"stdin": programs.DEVNULL, "stdout": programs.DEVNULL}
            running.append(programs.Program(argv, **null))
    for process in running:
        process.wait()
    return 0


def bhyverun(layout, argv):
    """share/bhyverun.sh -c CONF: the guest has powered itself off, bhyve has ended."""
    jname = os.path.basename(os.path.dirname(argv[argv.index("-c") + 1]))
    kernel = Kernel(layout)
    kernel.destroy_vm(jname)
    stop = [os.path.join(layout.bin, "cbsd"), "bstop", "cbsd_queue_name=none", f"jname={jname}"]
    stops = [stop] * (2 if "--twice" in argv else 1)
    for process in [programs.Program(stop, stdin=programs.DEVNULL) for stop in stops]:
        process.wait()
    return 0


PROGRAMS = {function.__name__: function for function in (jls, jexec, sysrc, ps, rctl, service)}
PROGRAMS.update({"jails-astart": jails_astart, "bhyverun.sh": bhyverun})
