"""Commands for jails: create, start, stop, restart, remove, rename, clone, change, execute."""

import os
import time

from sim import freebsd, programs, services, shell
from sim.addresses import bare, family
from sim.inventory import JAIL_ARGS
from sim.kernel import unlink
from sim.layout import read, read_conf, write

# jcreate:572-595: only these directories of share/jail-system-default reach a new jail.
HOOK_DIRS = """clone-local.d clone.d create.d facts.d master_create.d master_poststart.d
master_poststop.d master_prestart.d master_prestop.d remove.d rename.d start.d stop.d""".split()

# etc/defaults/jail-freebsd-default.conf
DEFAULTS = """devfs_ruleset=4 allow_mount=1 allow_nullfs=1 allow_fdescfs=1 allow_devfs=1
exec_timeout=180 exec_fib=0 stop_timeout=900 mount_fdescfs=1 allow_dying=1 allow_procfs=1
allow_tmpfs=1 baserw=0 mdsize=0 mount_src=0 mount_obj=0 mount_ports=1 mount_kernel=0 mount_devfs=1
astart=1 interface=auto vnet=0 applytpl=1 floatresolv=1 mkhostsfile=1 emulator=jail ip4_addr=DHCP
b_order=10 ver=native arch=native protected=0 hidden=0"""
DEFAULTS = dict(setting.split("=") for setting in DEFAULTS.split())
DEFAULTS.update(exec_start="/bin/sh /etc/rc", exec_stop="/bin/sh /etc/rc.shutdown")
CREATE_KEYS = """autorestart ci_gw4 ci_interface2 ci_ip4_addr ci_user_pubkey customskel delpkglist
environment etcupdate_init flavor from fstablocal inter interface2 jconf jname jprofile nic_hwaddr
pkg_bootstrap pkglist quiet removejconf runasap sysrc zfs_snapsrc jailsysskeldir systemskeldir"""
NATIVE = {"ver": "14.1", "arch": "amd64"}

# jset:1052: what can be changed while the jail runs, without more ado.
LIVE = """astart applytpl floatresolv exec_consolelog devfs_ruleset protected hidden boot_delay
cpuset host_hostname mount_src mount_ports mount_kernel mount_fdescfs mount_procfs mount_linprocfs
mount_linsysfs allow_mount allow_raw_sockets allow_read_msgbuf allow_vmm allow_mlock allow_nfsd
allow_reserved_ports allow_unprivileged_proc_debug""".split()
FILE_SYSTEMS = "nullfs fusefs linprocfs linsysfs tmpfs procfs fdescfs".split()
NEEDS_ALLOW_MOUNT = [f"allow_{name}" for name in FILE_SYSTEMS]


def paths_of(layout, jname):
    """The columns that hold paths of a jail of this name."""
    return {
        "path": layout.work("jails", jname),
        "data": layout.data(jname),
        "mount_fstab": layout.work("jails-fstab", jname, "fstab"),
        "rcconf": layout.work("jails-rcconf", f"rc.conf_{jname}"),
    }


def jcreate(session):
    """Create a jail (sudoexec/jcreate)."""
    keys = f"{CREATE_KEYS} {' '.join(JAIL_ARGS)}"
    # jail-freebsd-default.conf is read after the environment, so only other names leak in from it.
    own = "path data host_hostname rcconf mount_fstab sysrc from flavor ci_user_pubkey environment"
    reset = dict.fromkeys((*DEFAULTS, *own.split()), "")
    args = session.parse(optional=keys, sudo=True, reset=reset)
    wanted = {key: value for key, value in args.given.items() if value}
    if args["jconf"]:
        if not os.path.isfile(args["jconf"]):
            session.fail("{N1}no such jconf file{N0}")
        wanted = {**source_conf(args["jconf"]), **wanted}
    jname = wanted.get("jname")
    if not jname:
        session.fail("please set for jcreate", "")
    session.quiet = wanted.get("quiet") == "1"
    if session.inventory.load(jname) is not None:
        if wanted.get("autorestart", "0") == "0":
            hint = "already exist, use autorestart=1 for updating via jset"
            session.fail(f"{{N1}}jail {jname} {hint}{{N0}}")
        return apply_conf(session, jname, wanted, restart=True)
    row = new_row(session, jname, wanted)
    session.queue("jail", "jcreate", jname, f"ip4_addr={row['ip4_addr']}", "status=1")
    session.note("Please wait", "this will take a while...")
    make_system_dir(session, row)
    populate(row, wanted)
    # The script stays where it looked for the skeleton, and so do the master_create.d hooks.
    os.makedirs(session.layout.work("share/FreeBSD-jail-skel"), exist_ok=True)
    os.chdir(session.layout.work("share/FreeBSD-jail-skel"))
    if row["ip4_addr"].upper() == "DHCP":
        problem = f"{jname}: no free IP address for DHCP in 'nodeippool', please check"
        problem = f"{{W1}}jcreate error: {{N1}}{problem}: {{N2}}cbsd initenv-tui{{N0}}"
        row["ip4_addr"] = session.inventory.lease() or session.fail(problem)
    registered = session.inventory.register(row)
    enjoy(session, jname)
    session.inventory.update(jname, state_time=int(time.time()))
    services.install(row["data"], wanted.get("pkglist", ""), wanted.get("sysrc", ""))
    if wanted.get("runasap") == "1" and registered:
        session.cbsd("jstart", f"jname={jname}", f"quiet={int(session.quiet)}")
    running = int(session.kernel.jid(jname) != 0)
    session.queue("jail", "jcreate", jname, "status=2", f"data_status={running}")
    session.done()
    # Exported from what was given, not from the row: the hooks see neither a jid nor a status.
    exported = {key: row.get(key, "0") for key in JAIL_ARGS}
    session.addresses(row["ip4_addr"])
    session.export_for_hooks({**exported, "jname": jname})
    session.hooks.run(jname, "master_create.d")
    session.hooks.in_jail(row, "create.d", start_if_off=True)


def apply_conf(session, jname, wanted, restart):
    """Change what differs from a configuration; a running jail is restarted for it if asked."""
    fixed = ("jname", "path", "data", "rcconf", "mount_fstab", "emulator", "persist", "mdsize")
    changes = []
    for key, value in wanted.items():
        free = key in JAIL_ARGS and key not in fixed and value not in ("native", "DHCP")
        if free and session.inventory.value(jname, key) != value:
            changes.append(f"{key}={value}")
    if not changes:
        return
    restart = restart and session.kernel.jid(jname)
    if restart:
        session.cbsd("jstop", f"jname={jname}")
    session.cbsd("jset", f"jname={jname}", *changes)
    if restart:
        session.cbsd("jstart", f"jname={jname}")


def source_conf(path):
    """A jconf is shell code and is sourced as such; the assignments it makes."""
    keys = [*JAIL_ARGS, *CREATE_KEYS.split()]
    script = f'. "{path}"\n' + "".join(f'echo "{key}=${{{key}}}"\n' for key in keys)
    text = programs.output(["/usr/bin/env", "-i", "/bin/sh", "-c", script])[1].decode()
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value for key, _, value in pairs if value}


def new_row(session, jname, wanted):
    """The row of a new jail: defaults, the profile, then what was asked for."""
    layout = session.layout
    row = {"jname": jname, "host_hostname": f"{jname}.my.domain"}
    row.update(DEFAULTS, **paths_of(layout, jname))
    for name in filter(None, ("default", wanted.get("jprofile"))):
        for directory in ("etc/defaults", "etc"):
            profile = read_conf(layout.work(directory, f"jail-freebsd-{name}.conf"))
            row.update({key: value for key, value in profile.items() if key in JAIL_ARGS})
    row.update({key: value for key, value in wanted.items() if key in JAIL_ARGS})
    for key, value in NATIVE.items():
        if row[key] == "native":
            row[key] = value
    return row


def make_system_dir(session, row):
    """`jails-system/JNAME`: all of the profile's skeleton, hook directories of the default."""
    layout, jname = session.layout, row["jname"]
    target = layout.system(jname)
    remove_tree(target)
    os.makedirs(os.path.join(target, "traffic"))
    write(os.path.join(target, "descr"))
    name = f"share/FreeBSD-{row['emulator']}-{session.args['jprofile'] or 'default'}-system-skel"
    system_skel = session.args["jailsysskeldir"] or layout.work(name)
    if os.path.isdir(system_skel):
        session.note("jcreate: copy system skel from", system_skel)
        copy_tree(system_skel, target)
    else:
        session.note("jcreate: system skel dir not found", system_skel)
    skel = session.args["systemskeldir"] or configured_skel(layout)
    copy_hook_dirs(session, skel, target, HOOK_DIRS, 0o775)


def configured_skel(layout):
    """`systemskeldir`, which an operator can change in jail-freebsd-default.conf."""
    conf = read_conf(layout.work("etc/jail-freebsd-default.conf"))
    skel = conf.get("systemskeldir", layout.work("share/jail-system-default"))
    return skel.replace("${workdir}", layout.workdir).replace("$workdir", layout.workdir)


def copy_hook_dirs(session, skel, target, names, mode):
    """Make the hook directories and fill them from a skeleton; they belong to the user cbsd."""
    for name in names:
        directory = os.path.join(target, name)
        os.makedirs(directory, exist_ok=True)
        os.chmod(directory, mode)
        if os.path.isdir(os.path.join(skel, name)):
            copy_tree(os.path.join(skel, name), directory)
        for place, directories, files in os.walk(directory):
            for entry in (place, *(os.path.join(place, name) for name in directories + files)):
                session.chown(entry)


def copy_tree(source, target):
    """rsync -a: links stay links, and take the place of what was there."""
    import shutil

    for place, directories, files in os.walk(source):
        there = os.path.join(target, os.path.relpath(place, source))
        os.makedirs(there, exist_ok=True)
        for name in directories + files:
            old = os.path.join(there, name)
            replaced = os.path.islink(os.path.join(place, name)) and os.path.isfile(old)
            if replaced or os.path.islink(old):
                os.unlink(old)
    try:
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    except shutil.Error as error:
        if any(os.path.lexists(path) for path, *_ in error.args[0]):
            raise  # cp(1) says what vanished under it, and goes on


def populate(row, wanted):
    """The root of the jail: the directories in which tests and services put something."""
    remove_tree(row["data"])
    for directory in ("bin", "etc", "tmp", "root", "usr/local/bin", "var/run", "var/log"):
        os.makedirs(os.path.join(row["data"], directory))
    os.makedirs(row["path"], exist_ok=True)
    os.makedirs(os.path.dirname(row["mount_fstab"]), exist_ok=True)
    for name in (row["mount_fstab"], row["mount_fstab"] + ".local"):
        with open(name, "a", encoding="utf-8"):
            pass
    if wanted.get("fstablocal"):
        import shutil

        shutil.copy(wanted["fstablocal"], row["mount_fstab"] + ".local")


def enjoy(session, jname):
    session.note("")
    session.note("To edit VM properties use", f"cbsd jconfig jname={jname}")
    for verb in ("start", "stop", "remove"):
        session.note(f"To {verb} VM use", f"cbsd j{verb} {jname}")
    session.note("For attach VM console use", f"cbsd jlogin {jname}")
    session.note("")
    session.note(f"Creating {jname} complete", "Enjoy!")


def jstart(session):
    """Start jails (sudoexec/jstart)."""
    keys = "delay environment jname inter quiet"
    args = session.parse(optional=keys, sudo=True, reset={"jname": "", "delay": ""})
    existing, jname = session.names_of("jail", "No jail specified")
    if len(existing) > 1:
        session.side_by_side("jstart", existing, ["inter=0"])
        session.done()
        session.fail("Multiple start", "done", code=0)
    session.quiet = args["quiet"] == "1"
    row = session.existing(jname)
    wait_delay(args["delay"])
    adjust_native(session, row)
    refuse_state(session, row)
    if row["jid"] != "0":
        session.fail(f"Jail {jname} already running, jid", row["jid"])
    take_lock(session, jname)
    session.queue("jail", "jstart", jname, "status=1", f"workdir={session.layout.workdir}")
    if row["emulator"] == "bhyve":
        session.fail("For bhyve mode use", f"cbsd bstart jname={jname} {{N1}}instead.", code=0)
    start(session, row)
    session.done()


def wait_delay(delay):
    try:
        time.sleep(float(delay or 0))
    except ValueError:
        pass


def adjust_native(session, row):
    """`native` becomes the version and architecture of the host, in the row too."""
    for key, value in NATIVE.items():
        if row.get(key) == "native":
            row[key] = value
            session.inventory.update(row["jname"], **{key: value})
            session.note("adjust version", f"native -> {NATIVE['ver']}")  # for both


def refuse_state(session, row):
    """Neither a slave nor an environment in maintenance can be started."""
    if row["status"] == "2":
        session.fail("{N1}Jail in slave mode. Please {N2}cbsd jswmode mode=master{N1} first{N0}")
    if row["status"] == "3":
        session.fail("{N1}Jail in maintenance mode{N0}")


def take_lock(session, jname):
    """The lock is for a file system shared between nodes: an own one is stale (jstart:348-374)."""
    path = session.layout.system(jname, "locked")
    if not os.path.isfile(path):
        return
    holder = read(path).strip()
    minutes = int((time.time() - os.stat(path).st_mtime) / 60)
    locked = f"{{N1}}Jail {{N2}}{jname}{{N1}} locked by {{N2}}{holder}{{N1}} node"
    if holder in ("", session.layout.nodename()):
        session.note("Remove my stale lock file", path)
    elif minutes > 30:
        session.note(f"{locked}{{N0}}")
        session.note(f"{{N1}}But lock age is too old: {minutes} min. Removing!!!{{N0}}")
    else:
        session.note(f"{locked}, lock age: {minutes} min.{{N0}}")
        advice = "You may remove the lockfile if you believe that jail is not running on this node"
        session.fail(advice, f"rm -f {path}")
    os.unlink(path)


def start(session, row):
    """From the tests to the row: the order when one jail starts (jstart:424-1172)."""
    layout, kernel, jname = session.layout, session.kernel, row["jname"]
    if session.args["inter"]:
        session.environment["NOINTER"] = "1"
    run_mnt_start(session, row)
    session.hooks.tests(jname)
    resolve_dhcp(session, row)
    session.addresses(row["ip4_addr"])
    session.export_for_hooks(row)
    session.hooks.run(jname, "master_prestart.d")
    if row["interface"] == "auto" and session.addresses(row["ip4_addr"]).known:
        session.note("Default NIC automatically selected", layout.settings()["nic"])
    session.note("{N1}set resource limit: [ {N2}{N1}]{N0}")
    session.note("jail renice", "1")
    session.note("Starting jail", f"{jname}, parallel timeout=5")
    os.makedirs(row["path"], exist_ok=True)
    time.sleep(layout.settings()["pause"])
    jid = kernel.create_jail(jname, row["path"], row["data"], row["host_hostname"], row["ip4_addr"])
    if jid is None:
        # Nothing keeps two starts apart: both ran the hooks so far, the slower one ends here.
        session.fail(f'jail: jail "{jname}" already exists')
    if jid:
        time.sleep(kernel.slowness(jname, "start"))
        services.Services(kernel, jname, kernel.read()["jails"][jname]).boot()
        session.inventory.update(jname, state_time=int(time.time()))
        session.hooks.in_jail(row, "start.d")
    # The variable jid is new; status is set after the hooks, the row later still (jstart:1091).
    jid = kernel.jid(jname)
    session.environment["jid"] = str(jid)
    session.hooks.run(jname, "master_poststart.d")
    if jid:
        write(layout.system(jname, "locked"), layout.nodename() + "\n")
        session.chown(layout.system(jname, "locked"))
    else:
        run_column(session, row, "exec_master_poststop", "Master exec afterstop")
        session.hooks.run(jname, "master_poststop.d")
    session.inventory.update(jname, jid=jid, status=int(jid != 0))
    session.queue("jail", "jstart", jname, "status=2", "data_status=1", f"workdir={layout.workdir}")


def run_mnt_start(session, row):
    """`mnt_start`: a program that provides the data; its failure ends the start."""
    program, jname = row["mnt_start"], row["jname"]
    if program in ("", "0"):
        return
    if not os.access(program, os.R_OK | os.X_OK):
        session.fail(f"mnt_start script not exist or not executable: {program}")
    session.note(f"{{N1}}Execute mnt_start script: {{N2}}{program}{{N0}}...")
    fstab = session.layout.work("jails-fstab", jname)
    options = ["-d", row["data"], "-f", fstab, "-j", jname, "-s", session.layout.system(jname)]
    if programs.run([program, *options], env=session.environment):
        session.fail(f"{{W1}}error: {{N1}}mnt_start script failed: {{N2}}{program} {jname}{{N0}}")


def resolve_dhcp(session, row):
    """Replace DHCP by an address of the pool; with its capital P: `dhcp` is not resolved."""
    items, lease = row["ip4_addr"].split(","), session.inventory.lease
    dynamic = [item[:3].upper() == "DHC" and item[3:] == "P" for item in items]
    resolved = [lease() or item if asked else item for item, asked in zip(items, dynamic)]
    if resolved != items:
        session.cbsd("jset", f"jname={row['jname']}", f"ip4_addr={','.join(resolved)}")
        row["ip4_addr"] = ",".join(resolved)


def run_column(session, row, column, title):
    """exec_master_*: a command in the row, split at blanks and run on the host."""
    command = row.get(column, "")
    if command not in ("", "0"):
        session.say(f"{row['jname']} {title}", command)
        environment = {**session.environment, "PATH": "/sbin:/bin:/usr/sbin:/usr/bin"}
        try:
            programs.run(command.split(), env=environment)
        except OSError:
            session.say(f"{session.layout.bin}/cbsd: {command.split()[0]}: not found", stream=2)


def jstop(session):
    """Stop jails (sudoexec/jstop). The result of jail -r is ignored."""
    session.parse(optional="fast inter jname", sudo=True, reset={"jname": "", "fast": ""})
    existing, jname = session.names_of("jail", "No jail specified")
    if len(existing) > 1:
        for name in existing:
            session.in_background("jstop", f"jname={name}")
        session.done()
        session.fail("Multiple stop", "done", code=0)
    row = session.existing(jname)
    if row["jid"] == "0":
        session.fail("Not Running", jname)
    if row["status"] == "3":
        session.fail("{N1}Jail in maintenance mode{N0}")
    if row["emulator"] == "bhyve":
        session.fail("For bhyve jail use", f"cbsd bstop {jname} {{N1}}instead")
    stop(session, row)
    session.done()


def stop(session, row):
    """The stop of one running jail (jstop:210-424)."""
    layout, kernel, jname = session.layout, session.kernel, row["jname"]
    workdir = f"workdir={layout.workdir}"
    session.queue("jail", "jstop", jname, "status=1", workdir)
    session.addresses(row["ip4_addr"])
    session.export_for_hooks(row)
    session.hooks.run(jname, "master_prestop.d")
    run_column(session, row, "exec_master_prestop", "Master exec prestop")
    session.say("Stopping jail", f"{jname}, parallel timeout=5")
    if kernel.jid(jname):
        session.hooks.in_jail(row, "stop.d")
    slow = kernel.slowness(jname, "stop") if session.args["fast"] != "1" else 0
    time.sleep(layout.settings()["pause"] + slow)
    kernel.destroy_jail(jname)
    run_column(session, row, "exec_master_poststop", "Master exec afterstop")
    session.hooks.run(jname, "master_poststop.d")
    session.inventory.update(jname, jid=0, status=0, state_time=int(time.time()))
    unlink(layout.system(jname, "locked"))
    session.queue("jail", "jstop", jname, "status=2", "data_status=0", workdir)


def jrestart(session):
    """Stop and start what runs; everything else is skipped, with exit code 0 (jrestart:63-107)."""
    args = session.parse(optional="jname", reset={"jname": " ".join(session.argv)})
    if not args["jname"]:
        return
    names = args["jname"].split()
    if "*" in args["jname"]:
        names = session.inventory.matching(args["jname"], "jail") or names
    for jname in names:
        row = session.load(jname)
        if row is None:
            session.say("no such jail", jname)
        if not row or row.get("jid", "0") == "0":
            continue
        workdir = f"workdir={session.layout.workdir}"
        session.queue("jail", "jrestart", jname, "status=1", workdir)
        session.cbsd("jstop", f"jname={jname}")
        session.cbsd("jstart", f"jname={jname}")
        state = f"data_status={int(session.inventory.value(jname, 'jid') not in ('', '0'))}"
        session.queue("jail", "jrestart", jname, "status=2", state, workdir)
        session.done()
    session.done()


def jdestroy(session):
    """Remove jails (sudoexec/jdestroy, which jremove is another name of)."""
    args = session.parse(optional="jname inter", sudo=True)
    session.command = session.environment["CBSD_APP"] = "jdestroy"
    words = args.raw[1:] if args["inter"] else args.raw  # `shift`, whatever the first word is
    for jname in to_destroy(session, words, "jail"):
        destroy_one(session, jname)
    session.done()


def to_destroy(session, words, emulator):
    """The names to remove: those that `jname=` means, otherwise the bare words."""
    mask = session.args["jname"]
    names = [mask] if mask else words
    if "*" in mask:
        names = session.inventory.matching(mask, emulator) or names
    return names or session.fail("Give me jname")


def destroy_one(session, jname):
    """Remove one jail: remove.d while it still runs, then stop it, then everything of it."""
    row = session.load(jname)
    if not row:
        return session.say("No such jail", jname)
    if row["protected"] == "1":
        return session.say("Protected/locked jail. Skip for remove", jname)
    session.queue("jail", "jremove", jname, "status=1")
    if os.path.isdir(session.layout.system(jname, "remove.d")):
        session.addresses(row["ip4_addr"])
        session.export_for_hooks(row)
        session.hooks.run(jname, "remove.d")
    erase(session, row)
    session.queue("jail", "jremove", jname, "status=2")


def erase(session, row):
    """Stop it, remove data and row, and at the very end the hooks: nothing runs after that."""
    layout, jname = session.layout, row["jname"]
    if row["jid"] != "0":
        stop = ["bstop", "noacpi=1"] if row["emulator"] == "bhyve" else ["jstop", "fast=1"]
        session.cbsd(stop[0], f"jname={jname}", stop[1])
    session.kernel.destroy_vm(jname)
    session.kernel.destroy_jail(jname)
    remove(row["data"])
    session.inventory.write(f"DELETE FROM jails WHERE jname='{jname}'")
    for path in (layout.work("jails-fstab", jname), layout.system(jname), layout.work("vm", jname)):
        remove(path)
    remove(layout.work("jails", jname))


def remove(path):
    """Remove a file, a link or a tree."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    else:
        remove_tree(path)


def remove_tree(path):
    """Remove a directory and all below it; a link stays."""
    if os.path.isdir(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def jrename(session):
    """Rename a jail. Hostname and address stay unless given; no hook runs (jrename:181)."""
    args = session.parse("old new", "host_hostname ip4_addr restart", reset={"restart": "0"})
    layout, inventory, old, new = session.layout, session.inventory, args["old"], args["new"]
    jid = inventory.value(old, "jid")  # of the row: a jail that crashed counts as online
    if not jid:
        session.fail("No such jail", old)
    if inventory.value(new, "jid"):
        session.fail("Jail already exist", new)
    options = [f"jname={new}", f"ip4_addr={args['ip4_addr']}"]
    session.queue("jail", "jrename", old, *options, "status=1")
    if jid != "0":
        stop_for_rename(session, "jail", "jstop", old)
    row = session.load(old)
    if row["emulator"] == "bhyve":
        session.fail("{N1}Jail in bhyve mode. Use {N2}cbsd brename{N1} instead{N0}")
    check_data(session, old, new)
    session.say("{N1}Rename{N0}", end="")
    session.kernel.destroy_jail(old)
    move_fstab(layout, old, new)
    address = args["ip4_addr"] or row["ip4_addr"]
    if address.upper() == "DHCP":
        problem = "{N1}No free IP address for DHCP in nodeippool{N0}"
        address = inventory.lease() or session.fail(problem)
        session.say("Selected IP", address)
    columns = {"host_hostname": args["host_hostname"] or row["host_hostname"], "jname": new}
    inventory.update(old, **paths_of(layout, new), **columns, ip4_addr=address)
    os.rename(layout.data(old), layout.data(new))
    os.makedirs(layout.work("jails", new), exist_ok=True)
    session.say("{N1}.{N0}", end="")
    if os.path.isdir(layout.system(old)):
        os.rename(layout.system(old), layout.system(new))
    if args["restart"] == "1" and jid != "0":
        session.cbsd("jstart", f"jname={new}")
    state = f"data_status={int(inventory.value(new, 'jid') != '0')}"
    session.queue("jail", "jrename", new, "status=2", state)
    session.say("{N2}ok{N0}")
    session.done()


def stop_for_rename(session, kind, command, name):
    """What is online is only renamed with `restart=1`."""
    if session.args["restart"] != "1":
        text = f"{kind[0].upper()}{kind[1:]} is online. Please stop them: {{N2}}{name}{{N1}} or add"
        why = f"to auto stop and start {kind} during rename"
        session.fail(f"{{N1}}{text} {{N2}}restart=1{{N1}} {why}{{N0}}")
    session.cbsd(command, f"jname={name}")


def check_data(session, old, new):
    """Rename and clone need the data of the one and no data of the other."""
    source, target = session.layout.data(old), session.layout.data(new)
    if not os.path.isdir(source):
        session.fail("No jail data", source)
    if os.path.isdir(target):
        try:
            os.rmdir(target)
        except OSError:
            session.fail("Jail data already exist and it not empty", target)


def move_fstab(layout, old, new):
    source, target = layout.work("jails-fstab", old), layout.work("jails-fstab", new)
    if os.path.isdir(source):
        os.rename(source, target)
        rewrite_fstab(target, old, new)
    else:
        os.makedirs(target, exist_ok=True)


def rewrite_fstab(directory, old, new):
    """sed s:/OLD:/NEW:g"""
    for name in ("fstab", "fstab.local"):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            write(path, read(path).replace(f"/{old}", f"/{new}"))


def jclone(session):
    """Clone a jail: the address is that of the source unless given, the hooks come along."""
    optional = "ip4_addr checkstate verbose promote clone_method mac_reinit"
    reset = {"checkstate": "1", "mac_reinit": "1"}
    args = session.parse("old new host_hostname", optional, reset=reset)
    layout, inventory, old, new = session.layout, session.inventory, args["old"], args["new"]
    jid = inventory.value(old, "jid")
    if not jid:
        session.fail("No such jail", old)
    refuse_online(session, "jail", old, jid)
    if inventory.value(new, "jid"):
        session.fail("Jail already exist", new)
    address = args["ip4_addr"] or inventory.value(old, "ip4_addr")
    session.queue("jail", "jclone", new, f"ip4_addr={args['ip4_addr']}", "status=1")
    if address.upper() == "DHCP":
        problem = "{N1}no free IPv4 address for DHCP in nodeippool{N0}"
        address = inventory.lease() or session.fail(problem)
        session.say("Selected IPv4", address)
    row = session.load(old)
    if row["emulator"] == "bhyve":
        session.fail("{N1}Jail in bhyve mode. Use {N2}cbsd brename{N1} instead{N0}")
    session.addresses(row["ip4_addr"])
    session.export_for_hooks(row, newjname=new, newdata=layout.data(new))
    session.hooks.run(old, "clone.d")
    local = session.hooks.run_local(old, "clone-local.d")
    if local == 2:
        session.fail("{N1}clone-local.d hook failed, cancel clone{N0}")
    if local == 1:
        session.say("{N1}clone-local.d hook success{N0}")
    if local == 0:
        check_data(session, old, new)
    session.say("{N1}Cloning.{N0}", end="")
    copy = {**row, **paths_of(layout, new), "jname": new, "jid": "0", "status": "0"}
    copy.update(ip4_addr=address, host_hostname=args["host_hostname"])
    inventory.register(copy)
    clone_fstab(layout, old, new)
    session.say("{N1}.{N0}", end="")
    if local == 0:
        copy_tree(layout.data(old), layout.data(new))
    elif not os.path.isdir(layout.data(new)):
        text = "jclone error: local script succeeded, however destination dir doesn't exist"
        session.say(text, layout.data(new))
        session.cbsd("jremove", f"jname={new}")
        raise shell.Exit(1)
    session.say("{N1}.{N0}", end="")
    os.makedirs(layout.work("jails", new), exist_ok=True)
    remove(layout.system(new))
    copy_tree(layout.system(old), layout.system(new))
    session.say("{N1}.{N0}", end="")
    session.queue("jail", "jclone", new, "status=2", "data_status=0")
    session.say("{N2}ok{N0}")
    session.done()


def refuse_online(session, kind, name, jid):
    """What is online is only cloned with `checkstate=0`."""
    if session.args["checkstate"] == "1" and jid != "0":
        text = f"{{N1}}{kind} is online, please stop them: {{N2}}{name}{{N1}}"
        session.fail(f"{text} (or use {{N2}}checkstate=0{{N1}}){{N0}}")


def clone_fstab(layout, old, new):
    source, target = layout.work("jails-fstab", old), layout.work("jails-fstab", new)
    os.makedirs(target, exist_ok=True)
    if os.path.isdir(source):
        copy_tree(source, target)
        rewrite_fstab(target, old, new)


def jset(session):
    """Change parameters: prints `key: value` for each one that is another than before."""
    args = session.parse("jname", f"autorestart jconf {' '.join(JAIL_ARGS)} nice nic_address")
    jname = args["jname"]
    if "*" in jname:
        return set_many(session, "jset", "jail")
    row = session.inventory.load(jname) or session.fail("No such jail", jname)
    if args["jconf"]:
        conf = source_conf(args["jconf"])
        return apply_conf(session, jname, conf, args["autorestart"] == "1")
    changed = False
    for word in " ".join(args.raw).split():
        key = word.partition("=")[0]
        if key not in JAIL_ARGS or key in ("exec_poststop", "exec_poststart"):
            continue
        if session.inventory.value(jname, key) != args[key]:
            changed = set_one(session, row, key, args[key]) or changed
    if changed and args["autorestart"] == "1":
        session.cbsd("jrestart", jname)


def set_many(session, command, emulator):
    """The same change of each environment that a mask names."""
    changes = [argument for argument in session.args.raw if not argument.startswith("jname")]
    for name in session.inventory.matching(session.args["jname"], emulator):
        session.cbsd(command, f"jname={name}", *changes)


def set_one(session, row, key, value):
    """Change one parameter of a jail; whether it needs a restart to take effect."""
    jname = row["jname"]
    if row["jid"] != "0" and key not in LIVE:
        if key == "ip4_addr":
            return set_address_live(session, row, value)
        if key in NEEDS_ALLOW_MOUNT:
            store(session, jname, key, value)
            if value != "0" and session.inventory.value(jname, "allow_mount") == "0":
                store(session, jname, "allow_mount", "1")
            return False
        if session.args["autorestart"] != "1":
            session.say(f"{key}: {{N1}}on-the-fly currently unimplemented{{N0}}")
            return False
    if key == "ip4_addr":
        value = validate_address(session, jname, value)
        if value == session.inventory.value(jname, key):
            return False
    if value == "native" and key in NATIVE:
        value = NATIVE[key]
    store(session, jname, key, value)
    if key in ("ip4_addr", "host_hostname", "protected"):
        session.queue("jail", "update", jname, f"{key}={value}", "status=1")
    return True


def store(session, jname, key, value):
    """Write one parameter and say so; a broken statement is not noticed."""
    session.inventory.update(jname, **{key: value})
    session.say(f"{key}: {{N1}}{value}{{N0}}")


def validate_address(session, jname, value):
    """`|` becomes `#`; an interface must exist; an address in use only gives a warning.

    The list is looked at as one word (jset:77-150): everything before its first `#` is taken for
    the interface, so a list with an interface behind its first address is refused, and only the
    first address is compared with those of others.
    """
    value = value.replace("|", "#")
    interface, special, _ = value.partition("#")
    special = special and "#" in value.split(",")[-1] and not interface.startswith("vhid")
    if special and interface != session.layout.settings()["nic"]:
        session.fail(f"jset for {jname} error: interface not exist", interface)
    mine = value.split("/")[0].rpartition("#")[2]
    query = "SELECT jname,ip4_addr FROM jails ORDER BY rowid"
    for other, theirs in session.inventory.rows(query) if family(mine) == 4 else ():
        if other != jname and mine in map(bare, theirs.split(",")):
            text = f"{{W1}}jset warning: {{N1}}IP address {{N2}}{mine}{{N1}} already assigned to"
            session.say(f"{text} jail: {{N2}}{other}{{N0}}")
    return value


def set_address_live(session, row, value):
    """Move a running jail to other addresses (`modify_ipaddr`)."""
    jname = row["jname"]
    if row["interface"] == "0":
        text = "on-the-fly currently disabled because option interface is 0"
        session.say(f"ip4_addr: {{N1}}{text}{{N0}}")
        return False
    value = validate_address(session, jname, value)
    ifconfig = f"/sbin/ifconfig {session.layout.settings()['nic']}"
    words = {4: ("inet", 24), 6: ("inet6", 64)}
    for address in map(bare, row["ip4_addr"].split(",")):
        if family(address):
            inet, _ = words[family(address)]
            session.say("Remove old IP", f"{ifconfig} {inet} {address} -alias")
    items = [session.inventory.lease() or i if i.upper() == "DHCP" else i for i in value.split(",")]
    for item in items:
        if family(bare(item)):
            inet, bits = words[family(bare(item))]
            full = item if "/" in item else f"{item}/{bits}"
            session.say("Setup new IP", f"{ifconfig} {inet} {full} alias")
    store(session, jname, "ip4_addr", ",".join(items))
    session.queue("jail", "update", jname, f"ip4_addr={','.join(items)}", "status=1")
    with session.kernel.changing() as state:
        if jname in state["jails"]:
            state["jails"][jname]["ip4"] = ",".join(items)
    return False


def jexec(session):
    """Run a command in a running jail. The first argument is thrown away, whatever it is."""
    args = session.parse(optional="cmd dir environment jname shell user", sudo=True)
    jname = args["jname"]
    if not jname:
        session.fail("{N1}jexec: give me jname{N0}")
    own_keys = ("dir", "jname", "shell", "user", "cmd")
    words = [word for word in args.raw[1:] if word.partition("=")[0] not in own_keys]
    command = args["cmd"] or " ".join(words)
    row = session.load(jname)
    if row is None:
        session.fail("no such jail", jname)
    if row.get("emulator") == "bhyve":
        session.fail("{N1}Not for bhyve mode{N0}")
    if row.get("jid", "0") == "0":
        session.fail("Not running")
    own = session.layout.system(jname, "cmd", (command.split() or ["-"])[0])
    if os.access(own, os.X_OK) and os.path.isfile(own):
        session.say(f"[debug] external command: {command.split()[0]}", stream=2)
        session.export_for_hooks(row)
        os.execve(own, [own, *command.split()[1:]], session.environment)
    argv = ["/bin/sh", "-c", command] if command else ["/bin/sh"]
    who = {"user": args["user"], "directory": args["dir"]}
    return freebsd.execute(session.kernel, jname, argv, session.environment, **who)


def jswmode(session):
    """Switch between master, slave and maintenance: write `status` and the reason."""
    args = session.parse("jname mode", "comment")
    status = {"master": 0, "slave": 2, "maintenance": 3}.get(args["mode"])
    if status is None:
        session.fail("Unknown mode. Valid is", "master, slave, maintenance")
    if session.inventory.load(args["jname"]) is None:
        session.fail("No such jail", args["jname"])
    reason = {"maintenance": args["comment"]} if args["comment"] else {}
    session.inventory.update(args["jname"], status=status, **reason)


def jcleanup(session):
    """Clear what is left of a jail; a running one is removed without any hook (jcleanup:41)."""
    args = session.parse("jname")
    session.kernel.destroy_jail(args["jname"])
