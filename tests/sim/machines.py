"""Commands for bhyve machines."""

import os
import time

from sim import jails, procs, programs, quick_json
from sim.addresses import Addresses
from sim.inventory import VM_SETTINGS, to_bytes
from sim.layout import read
from sim.session import bhyverun_of

# bcreate:871-892
HOOK_DIRS = """create.d facts.d master_create.d master_poststart.d master_poststop.d
master_prestart.d master_prestop.d master_reboot.d remove.d start.d stop.d""".split()
ROW_KEYS = "host_hostname interface astart protected hidden ver arch tags"
SET_KEYS = "nice vm_pid gid quiet"


def bcreate(session):
    """Create a machine; the hooks of its creation run before a first start (bcreate:1165)."""
    own = f"jconf inter quiet runasap removejconf imgsize {ROW_KEYS} {' '.join(VM_SETTINGS)}"
    reset = dict.fromkeys(own.split(), "")
    args = session.parse(optional=f"jname {own}", sudo=True, reset=reset)
    layout, jname, session.quiet = session.layout, args["jname"], args["quiet"] == "1"
    if not jname:
        session.fail("bcreate: please set", "jname=")
    if session.inventory.load(jname) is not None:
        session.fail("VM already exist", jname)
    address = args["ip4_addr"] or "DHCP"
    session.queue("bhyve", "bcreate", jname, f"vm_ram={args['vm_ram']}", "status=1")
    make_dirs(session, jname)
    settings = {key: args[key] for key in VM_SETTINGS if args[key]}
    if args["vm_ram"]:
        settings["vm_ram"] = str(to_bytes(args["vm_ram"]) or 0)
    session.inventory.create_settings(jname, {**settings, "ip4_addr": address})
    row = {"jname": jname, "host_hostname": f"{jname}.my.domain", "emulator": "bhyve"}
    row.update(jails.paths_of(layout, jname), ver="native", arch="native", interface="auto")
    row.update({key: args[key] for key in ROW_KEYS.split() if args[key]}, ip4_addr=address)
    session.inventory.register(row)
    session.note(f"Creating {jname} complete", "Enjoy!")
    session.export_for_hooks(session.load(jname))
    session.hooks.run(jname, "master_create.d")
    session.queue("bhyve", "bcreate", jname, "status=2", "data_status=0")
    if args["runasap"] == "1":
        session.cbsd("bstart", f"jname={jname}")
    session.done()


def make_dirs(session, jname):
    """The directories of a machine, for user and group cbsd only."""
    layout = session.layout
    for path in (layout.data(jname), layout.system(jname), layout.work("jails-fstab", jname)):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o770)
        session.chown(path)
    os.makedirs(layout.work("jails", jname), exist_ok=True)
    skel = layout.work("share/bhyve-system-default")
    jails.copy_hook_dirs(session, skel, layout.system(jname), HOOK_DIRS, 0o770)


def bstart(session):
    """Start machines (sudoexec/bstart). A machine without a pid is no failure."""
    keys = "bhyverun_wrapper checkpoint debug delay inter jname quiet"
    args = session.parse(optional=keys, sudo=True, reset={"jname": "", "delay": "", "quiet": ""})
    existing, jname = session.names_of("bhyve", "No vm specified")
    if len(existing) > 1:
        session.side_by_side("bstart", existing, [])
        session.done()
        session.fail("Multiple bstart", "done", code=0)
    session.quiet = args["quiet"] == "1"
    row = session.existing(jname, "No such domain")
    jails.wait_delay(args["delay"])
    if row["jid"] != "0":
        session.fail(f"Jail {jname} already running, jid", row["jid"])
    if row["status"] == "2":
        jails.refuse_state(session, row)
    if row["emulator"] != "bhyve":
        session.fail("{N1}Not bhyve mode{N0}")
    if row["status"] == "3":
        # What a killed bstop leaves behind, too. bstart empties the reason before it reads it, so
        # it never recognises its own "Stopping_VM".
        session.inventory.update(jname, maintenance="")
        session.say("Bhyve in maintenance", "")
        command = f"jswmode jname={jname} mode=master comment='0'"
        session.fail("Please finish maintenance and switch mode via", command)
    if session.args["inter"]:
        session.environment["NOINTER"] = "1"
    run_start(session, row)
    session.done()


def run_start(session, row):
    """Hooks and process of a machine that starts; the row has its pid before master_poststart.d."""
    jname, kernel, layout = row["jname"], session.kernel, session.layout
    workdir = f"workdir={layout.workdir}"
    session.queue("bhyve", "bstart", jname, "status=1", workdir)
    session.export_for_hooks(row)
    session.hooks.run(jname, "master_prestart.d")
    time.sleep(kernel.slowness(jname, "start"))
    pid = kernel.create_vm(jname, guest_of(layout, jname), Addresses(row["ip4_addr"]).loopback())
    session.note("{N1}Waiting for PID{N0}")
    session.note("PID", pid)
    session.inventory.update(jname, jid=pid, state_time=int(time.time()))
    session.hooks.run(jname, "master_poststart.d")
    session.queue("bhyve", "bstart", jname, "status=2", "data_status=1", workdir)


def guest_of(layout, jname):
    """What the operating system in the machine runs; see `node.py guest`."""
    return quick_json.loads(read(layout.data(jname, "sim-guest.json"), missing="null"))


def bstop(session):
    """Stop a machine. One that does not run is "stopped" all the same: hooks, exit code 0."""
    keys = "checkpoint hard_timeout jname inter noacpi"
    reset = {"jname": "", "noacpi": "0", "hard_timeout": "30"}
    args = session.parse(optional=keys, sudo=True, reset=reset)
    names = session.from_cbsdfile("bhyve")
    words = args.raw[1:] if args["inter"] else args.raw  # `shift`, whatever the first word is
    if not (args["jname"] or args.raw or names):
        session.fail("{N1}No bhyve specified{N0}")
    if names is None:
        mask = args["jname"]
        names = session.inventory.matching(mask, "bhyve") if "*" in mask else words
    existing = [name for name in names if session.inventory.is_a(name, "bhyve")]
    if len(existing) > 1:
        options = [f"noacpi={args['noacpi']}", f"hard_timeout={args['hard_timeout']}"]
        for name in existing:
            session.in_background("bstop", f"jname={name}", *options)
        seconds = int(time.time() - session.started)
        session.fail("Multiple stop", f"done in {seconds} seconds", code=0)
    jname = args["jname"] or (existing or words or [""])[0]
    if not jname:
        session.fail("{N1}Give me domain name{N0}")
    row = session.existing(jname, "No such domain")
    if row["emulator"] != "bhyve":
        session.fail("{N1}Not in bhyve mode{N0}")
    run_stop(session, row)
    session.done()


def run_stop(session, row):
    """Hooks and end of a machine. While it stops, its status is 3 and the reason is shown."""
    jname, kernel, layout = row["jname"], session.kernel, session.layout
    workdir = f"workdir={layout.workdir}"
    session.queue("bhyve", "bstop", jname, "status=1", "data_status=1", workdir)
    pid = kernel.vm_pid(jname)
    session.export_for_hooks(row)
    session.hooks.run(jname, "master_prestop.d")
    switch_mode(session, jname, 3, "Stopping_VM")
    if pid and session.args["noacpi"] == "0":
        ask_to_power_off(session, jname, pid)
    elif not pid and session.args["noacpi"] == "0":
        session.say("Warning: unable to determine bhyve pid for", jname)
    kernel.destroy_vm(jname)
    procs.kill(bhyverun_of(layout, jname))
    switch_mode(session, jname, 0, "0")
    session.inventory.update(jname, jid=0, state_time=int(time.time()))
    session.hooks.run(jname, "master_poststop.d")
    session.queue("bhyve", "bstop", jname, "status=2", "data_status=0", workdir)


def switch_mode(session, jname, status, reason):
    """`jswmode`, for the machine's own settings too."""
    session.inventory.update(jname, status=status, maintenance=reason)
    session.inventory.set_setting(jname, "maintenance", reason)


def ask_to_power_off(session, jname, pid):
    """SIGTERM is the power button; a guest that does not react is killed by `destroy_vm`."""
    timeout = int(session.args["hard_timeout"] or 30)
    reaction = session.kernel.slowness(jname, "stop")
    text = f"{{N1}}Send SIGTERM to {{N2}}{jname}{{N1}}. Soft timeout is {{N2}}{timeout}{{N1}} sec."
    session.say(f"{text} {{W1}}{timeout - 1}{{N1}} seconds left [{{N0}}{{N1}}.", end="")
    ident = procs.identity(pid)
    if reaction < timeout:
        time.sleep(reaction)
        procs.kill([ident], programs.SIGTERM)
        procs.wait_gone([ident] if ident else [], timeout - reaction)
    else:
        time.sleep(timeout)
    session.say("]{N0}")


def brestart(session):
    """bstop, then bstart; a stopped machine is started as well."""
    args = session.parse(optional="jname", reset={"jname": " ".join(session.argv)})
    for jname in args["jname"].split():
        if session.load(jname) is None:
            session.say("No such jail", jname)
            continue
        session.queue("bhyve", "brestart", jname, "status=1")
        silent = {"MOD_CBSD_QUEUE_DISABLED": "1"}
        session.cbsd("bstop", "inter=0", jname, env=silent)
        session.queue("bhyve", "brestart", jname, "status=1", "data_status=1")
        time.sleep(session.layout.settings()["delay_unit"])
        session.cbsd("bstart", "inter=0", jname, env=silent)
        session.queue("bhyve", "brestart", jname, "status=2", "data_status=1")


def bdestroy(session):
    """Remove machines; a running one is switched off."""
    args = session.parse(optional="jname", sudo=True)
    session.command = session.environment["CBSD_APP"] = "bdestroy"
    for jname in jails.to_destroy(session, args.raw, "bhyve"):
        row = session.load(jname)
        if not row:
            session.say("No such domain", jname)
            continue
        if row["protected"] == "1":
            session.say("Protected/locked jail. Skip for remove", jname)
            continue
        session.queue("bhyve", "bremove", jname, "status=1")
        session.export_for_hooks(row)
        session.hooks.run(jname, "remove.d")
        jails.erase(session, row)
        session.queue("bhyve", "bremove", jname, "status=2")
    session.done()


def brename(session):
    """Rename a machine; no hook runs unless it is restarted."""
    args = session.parse("old new", "host_hostname restart", reset={"restart": "0"})
    layout, inventory, old, new = session.layout, session.inventory, args["old"], args["new"]
    row = session.load(old) or {}
    if row.get("emulator") != "bhyve":
        session.fail("{N1}Not bhyve mode{N0}")
    if inventory.value(new, "jname"):
        session.fail("Jail already exist", new)
    session.queue("bhyve", "brename", old, f"jname={new}", "status=1")
    online = row["status"] != "0"
    if online:
        jails.stop_for_rename(session, "VM", "bstop", old)
    jails.check_data(session, old, new)
    session.say("{N1}Rename{N0}", end="")
    hostname = args["host_hostname"] or row["host_hostname"]
    inventory.update(old, **jails.paths_of(layout, new), jname=new, host_hostname=hostname)
    os.rename(layout.data(old), layout.data(new))
    session.say("{N1}.{N0}", end="")
    os.rename(layout.system(old), layout.system(new))
    jails.move_fstab(layout, old, new)
    if online:
        session.cbsd("bstart", f"jname={new}")
    session.queue("bhyve", "brename", new, "status=2", f"data_status={int(online)}")
    session.say(" {N2}ok{N0}")
    session.done()


def bclone(session):
    """Clone a machine: on UFS everything in its directory comes along, hooks included."""
    optional = "verbose ip4_addr checkstate host_hostname promote mac_reinit"
    args = session.parse("old new", optional, reset={"checkstate": "1"})
    layout, inventory, old, new = session.layout, session.inventory, args["old"], args["new"]
    row = session.existing(old, "no such bhyve")
    if row["emulator"] != "bhyve":
        session.fail("{N1}Not in bhyve mode{N0}")
    jails.refuse_online(session, "bhyve", old, row["jid"])
    if inventory.value(new, "jname"):
        session.fail("Bhyve already exist", new)
    session.queue("bhyve", "bclone", new, "status=1", f"vm_ram={row['vm_ram']}")
    session.say("{N1}Cloning.{N0}", end="")
    jails.check_data(session, old, new)
    jails.remove(layout.system(new))
    jails.copy_tree(layout.system(old), layout.system(new))
    session.say("{N1}.{N0}", end="")
    copy = {**row, **jails.paths_of(layout, new), "jname": new, "jid": "0", "status": "0"}
    # Without host_hostname= the clone has none.
    copy.update(host_hostname=args["host_hostname"], ip4_addr=args["ip4_addr"] or row["ip4_addr"])
    inventory.register(copy)
    if args["ip4_addr"]:
        inventory.set_setting(new, "ip4_addr", args["ip4_addr"])
    jails.clone_fstab(layout, old, new)
    os.makedirs(layout.work("jails", new), exist_ok=True)
    jails.copy_tree(layout.data(old), layout.data(new))
    session.say("{N1}.{N0}", end="")
    session.queue("bhyve", "bclone", new, "status=2", "data_status=0")
    session.say("{N2}ok{N0}")
    session.done()


def bset(session):
    """Change parameters of a machine; prints each one that was given as changed."""
    args = session.parse("jname", f"jconf {' '.join(VM_SETTINGS)} {SET_KEYS}", reset={"quiet": "0"})
    jname, session.quiet = args["jname"], args["quiet"] == "1"
    if "*" in jname:
        return jails.set_many(session, "bset", "bhyve")
    if session.inventory.load(jname) is None:
        session.fail("No such bhyve", jname)
    for argument in args.raw:
        key = argument.partition("=")[0]
        if key == "quiet" or key not in (*VM_SETTINGS, *SET_KEYS.split()):
            continue
        value = args[key].replace("%", " ")
        if key == "vm_ram":
            size = to_bytes(value) or 0
            value = str(size * 2**20 if value.isdigit() else size)
        if key == "vm_pid":
            pid = session.kernel.vm_pid(jname) if value.lower() == "auto" else value
            session.inventory.update(jname, jid=pid)
        elif key == "gid":
            session.inventory.update(jname, gid=value)
        else:
            session.inventory.set_setting(jname, key, value)
            if key == "ip4_addr":
                session.inventory.update(jname, ip4_addr=value)
        session.note(f"{key}: {{N1}}changed{{N0}}")


def bhyve_exist(session):
    """The pid of a machine's process, exit code 1 when there is one."""
    args = session.parse("jname")
    pid = session.kernel.vm_pid(args["jname"])
    if pid:
        session.write(f"{pid}\n")
    return int(pid != 0)
