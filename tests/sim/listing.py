"""Commands that only look: jls, bls, jget, bget, jstatus."""

import os

from sim import programs, shell
from sim.addresses import without_interface
from sim.inventory import COLUMNS, JAIL_ARGS, STATUS, VM_SETTINGS, BrokenRow

JAIL_EMULATORS = "emulator='jail' OR emulator LIKE 'qemu-%-static'"
JLS_KEYS = "alljails display header jname node order shownode"


def jls(session):
    """The table of jails. Exit code 0 whatever it shows."""
    args = session.parse(optional=JLS_KEYS, reset={"jname": ""})
    extra = ""
    for argument in args.raw:
        key, equals, value = argument.partition("=")
        if equals and key and key not in JLS_KEYS.split():
            if key == "status":
                value = {"on": "1", "off": "0"}.get(value.lower(), value)
            extra += f' AND {key}="{value}"'
    names = listed(session, f"({JAIL_EMULATORS}){extra}")
    table = Table(session, "jname,jid,ip4_addr,host_hostname,path,status", jail_cell)
    for jname in names:
        try:
            table.add(jname)
        except BrokenRow:
            # The loop of the shell script ends here, the rows behind are lost.
            session.say("export: =0: bad variable name", stream=2)
            break
    table.print()


def bls(session):
    """The table of machines."""
    session.parse(optional=JLS_KEYS, reset={"jname": "", "order": ""})
    names = listed(session, "emulator='bhyve'")
    table = Table(session, "jname,jid,vm_ram,vm_cpus,vm_os_type,ip4_addr,status,vnc", vm_cell)
    broken = []
    for jname in names:
        path = session.inventory.settings_file(jname)
        if session.inventory.exists() and not os.path.isfile(path):
            broken.append((f"{jname}: can't open database file for {jname}", path))
        else:
            table.add(jname)
    table.print()
    if broken:
        session.say("{N1}Error:{N0}", stream=2)
    for text, path in broken:
        session.say(text, path, stream=2)


def listed(session, condition):
    """The names of the rows to show, sorted as asked."""
    args, inventory = session.args, session.inventory
    if not os.path.isdir(session.layout.workdir):
        session.fail(f"{session.command}: no such workdir", session.layout.workdir)
    wanted = [*args["jname"].split(), *args.words]
    if not inventory.exists() or args["node"]:
        # The complaint of the SQL builtin is read as a row (sqlcmd.c:496).
        return ["cbsdsql:"] if not wanted or "cbsdsql:" in wanted else []
    order = "DESC" if args["order"].lower() == "desc" else "ASC"
    query = f"SELECT jname,hidden FROM jails WHERE {condition} ORDER BY jname {order}"
    rows = inventory.rows(query)
    show_hidden = session.environment.get("hidden") != "0"
    names = [jname for jname, hidden in rows if show_hidden or str(hidden) != "1"]
    return [jname for jname in names if not wanted or jname in wanted]


class Table:
    """The output of jls and bls."""

    def __init__(self, session, default, cell):
        args, colours = session.args, session.colours
        node = "nodename," if args["shownode"] == "1" else ""
        self.columns = (args["display"] or node + default).replace(",", " ").split()
        self.session, self.cell, self.rows = session, cell, []
        if (args["header"] or "1") == "1" and not args["node"]:
            names = " ".join(self.columns).upper()
            self.rows.append(f"{colours['H1']}{colours['BOLD']}{names}{colours['N0']}")

    def add(self, jname):
        """One row; reading it repairs jid and status in the database."""
        session, colours = self.session, self.session.colours
        row = {"jname": jname, "nodename": session.layout.nodename()}
        live = session.load(jname) or {}
        row.update(live, status=status_word(live))
        if row.get("baserw") == "1":
            row["path"] = row["data"]
        colour = colours["N4"] if live.get("jid") == "0" else colours["N2"]
        cells = [shell.printf(self._value(row, column)) for column in self.columns]
        self.rows.append(f"{colours['N0']}{colour}{' '.join(cells)} {colours['N0']}")

    def _value(self, row, column):
        """A fact of the environment hides a column of the same name."""
        fact = fact_of(self.session, row, column)
        return (self.cell(row, column) if fact is None else fact) or "-"

    def print(self):
        """Everything, through column -t."""
        self.session.write(shell.column(self.rows))


def status_word(row):
    """`conv_status`; machines show why they are in maintenance."""
    word = STATUS.get(row.get("status"), "Unknown")
    reason = row.get("maintenance", "0") if row.get("emulator") == "bhyve" else "0"
    return f"{word}:{reason}" if word == "Maintenance" and reason not in ("", "0") else word


def jail_cell(row, column):
    if column == "ip4_addr":
        return without_interface(row.get("ip4_addr", "")) or "0"
    return row.get(column, "0" if column == "etcver" else "")


def vm_cell(row, column):
    """One cell of bls: unknown columns are 0."""
    if column == "vm_ram":
        return str(int(row.get("vm_ram") or 0) // 2**20)
    if column == "vnc":
        return f"{row.get('bhyve_vnc_tcp_bind', '')}:{row.get('vnc_port', '')}"
    return row.get(column) or "0"


def fact_of(session, row, name):
    """The first word that an executable `facts.d/NAME` of the environment prints, or None."""
    path = session.layout.system(row["jname"], "facts.d", name)
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        return None
    if "emulator" in row:
        session.export_for_hooks({key: row[key] for key in COLUMNS if key in row})
    text = programs.output([path], env=session.environment, stdin=programs.DEVNULL)[1]
    line = text.decode(errors="replace").split("\n")[0].split()
    return line[0] if line else ""


def jget(session):
    """Parameters of a jail, in the order asked for."""
    args = session.parse("jname", f"{' '.join(JAIL_ARGS)} nic_address mode", reset={"jname": ""})
    row = loaded(session, args["jname"], "jail", "No such jail")
    if row["baserw"] == "1":
        row["path"] = row["data"]
    return get(session, row, {**{key: row[key] for key in JAIL_ARGS}, "nic_address": "0"})


def bget(session):
    """Parameters of a machine: what its own database says."""
    args = session.parse("jname", f"{' '.join(VM_SETTINGS)} gid mode", reset={"jname": ""})
    row = loaded(session, args["jname"], "bhyve", "No such bhyve")
    settings = session.inventory.settings(args["jname"])
    known = {key: settings.get(key) or "0" for key in VM_SETTINGS}
    known.update(gid=row["gid"], vnc=vm_cell(row, "vnc"))
    return get(session, row, known)


def loaded(session, jname, emulator, missing):
    """The row, or the error for an unknown name or the wrong kind."""
    defined = session.from_cbsdfile_names(emulator)
    if defined is not None and jname not in defined:
        session.fail(f"{session.command}: no such {emulator}", jname)
    row = session.load(jname)
    if row is None:
        session.fail(missing, jname)
    if row.get("emulator") != emulator:
        session.fail(f"not {emulator} engine, emulator", row.get("emulator", ""))
    return row


def get(session, row, known):
    """Print what was asked for; when none of it is known, print everything (jget:145)."""
    asked = [word for word in session.args.raw if not word.startswith(("jname=", "mode="))]
    names = [word for word in asked if word in known] or [key for key in known if key != "vnc"]
    quiet = session.args["mode"] == "quiet"
    for name in names:
        session.write(f"{known[name]}\n" if quiet else f"{name}: {known[name]}\n")
    for name in asked:
        fact = None if name in known or "=" in name else fact_of(session, row, name)
        if fact is not None:
            session.write(f"{fact}\n" if quiet else f"{name}: {fact}\n")


def jstatus(session):
    """The jid, or nothing. Exit code 1 means that it exists, unless `invert=` is given."""
    args = session.parse(optional="jname invert")
    jname = args["jname"] or args.first()
    row = session.load(jname) if jname else None
    if row is not None:
        session.write(row.get("jid", "") + "\n")
    return int(bool(jname) and (row is None) == bool(args["invert"]))
