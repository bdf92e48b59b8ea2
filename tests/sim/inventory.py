"""CBSD's inventory: the table `jails`, the settings of machines, and the live repair of rows.

SQL is put together by concatenation, as CBSD does it, so that quotes in values break the same
things (sqlcmd.c, subr/rcconf.subr).
"""

import os
import time

from sim import addresses, quick_sqlite

DEFAULT_ZERO = """mount_devfs allow_mount allow_devfs allow_nullfs mount_fstab mkhostsfile
devfs_ruleset interface basename slavenode baserw mount_src mount_obj mount_kernel mount_ports
astart data vnet applytpl mdsize rcconf floatresolv ver arch masterhost exec_start exec_stop
exec_poststart exec_poststop exec_prestart exec_prestop exec_master_poststart
exec_master_poststop exec_master_prestart exec_master_prestop status exec_timeout exec_fib
stop_timeout mount_fdescfs allow_dying depend allow_procfs allow_tmpfs allow_zfs cpuset emulator
emulator_flags allow_kmem exec_consolelog jdomain b_order allow_fdescfs allow_sysvipc protected
hidden maintenance allow_reserved_ports childrenmax persist enforce_statfs state_time
allow_raw_sockets allow_fusefs allow_linsysfs allow_linprocfs allow_read_msgbuf allow_vmm
allow_unprivileged_proc_debug allow_mlock allow_nfsd mnt_start mnt_stop tags mount_procfs
mount_linprocfs mount_linsysfs sysvsem sysvshm sysvmsg zfs_encryption boot_delay ci_gw4
jnameserver gid""".split()
COLUMNS = ["jname", "jid", "path", "host_hostname", "ip4_addr", *DEFAULT_ZERO]
NUMBERS = {"jid", "status", "gid", "state_time", "b_order"}

# share/jail-arg: what jget and jset know, in this order.
NOT_ARGUMENTS = {"jname", "jid", "status", "gid", "state_time", "maintenance"}
JAIL_ARGS = [column for column in COLUMNS if column not in NOT_ARGUMENTS]

# share/bhyve_settings.conf: the columns of a machine's own table `settings`.
VM_SETTINGS = """created astart vm_cpus vm_ram vm_os_type vm_boot vm_os_profile bhyve_flags
vm_vnc_port virtio_type bhyve_vnc_tcp_bind bhyve_vnc_resolution cd_vnc_wait protected hidden
maintenance ip4_addr vnc_password state_time vm_hostbridge vm_iso_path vm_console vm_efi
vm_rd_port bhyve_generate_acpi bhyve_wire_memory bhyve_rts_keeps_utc bhyve_force_msi_irq
bhyve_x2apic_mode bhyve_mptable_gen bhyve_ignore_msr_acc bhyve_vnc_vgaconf media_auto_eject
vm_cpu_topology debug_engine xhci cd_boot_firmware jailed vm_iso_path2 on_poweroff on_reboot
on_crash vm_zfs_guid mnt_start mnt_stop double_acpi boot_delay pid_wait tags vnc_port
uuid""".split()
VM_DEFAULTS = """vm_cpus=1 vm_ram=1073741824 vm_os_type=freebsd vm_boot=hdd vm_vnc_port=0 vnc_port=0
bhyve_vnc_tcp_bind=127.0.0.1 on_poweroff=destroy on_reboot=restart on_crash=destroy pid_wait=1"""
VM_DEFAULTS = dict(setting.split("=") for setting in VM_DEFAULTS.split())

# rcconf.subr empties these when they are 0.
EMPTY_WHEN_ZERO = """basename slavenode masterhost exec_stop exec_poststart exec_poststop
exec_prestart exec_prestop""".split()

STATUS = {"0": "Off", "1": "On", "2": "Slave", "3": "Maintenance"}


class BrokenRow(Exception):
    """A `|` in a column: CBSD cannot read the row (subr/strings.subr:8)."""


class Inventory:
    """`var/db/local.sqlite` and the `local.sqlite` of each environment."""

    def __init__(self, layout, kernel):
        self.layout, self.kernel = layout, kernel
        self.file = layout.work("var/db/local.sqlite")

    def execute(self, query, path=None):
        """Run one statement; the rows. Errors are sqlite3's."""
        connection = quick_sqlite.connect(path or self.file, timeout=25, isolation_level=None)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def exists(self):
        """Whether the database is there; CBSD goes on without it, with strange results."""
        return os.path.isfile(self.file)

    def rows(self, query):
        """The rows, or none when the statement is broken or the database is missing."""
        if not self.exists():
            return []
        try:
            return self.execute(query)
        except quick_sqlite.Error:
            return []

    def write(self, query, path=None):
        """Change something; False when SQLite refuses the statement, which CBSD never notices."""
        try:
            self.execute(query, path)
        except quick_sqlite.Error:
            return False
        return True

    def update(self, jname, /, **columns):
        """Set columns of one row, the name too."""
        assignments = ",".join(f"{column}='{value}'" for column, value in columns.items())
        return self.write(f"UPDATE jails SET {assignments} WHERE jname='{jname}'")

    def create(self, path):
        """A new database with the empty table `jails`."""
        connection = quick_sqlite.connect(path)
        connection.execute("PRAGMA journal_mode=WAL")
        columns = ["jname text unique PRIMARY KEY"]
        columns += [f"{c} {'integer' if c in NUMBERS else 'text'} default 0" for c in COLUMNS[1:]]
        connection.execute(f"CREATE TABLE jails ({','.join(columns)})")
        connection.commit()
        connection.close()

    def register(self, row):
        """Insert a row (jregister). False when a quote in a value loses it."""
        columns = [column for column in row if column in COLUMNS]
        values = ",".join(f"'{row[column]}'" for column in columns)
        return self.write(f"INSERT INTO jails ({','.join(columns)}) VALUES ({values})")

    def names(self, condition="1"):
        """Names of environments, in the order in which they were created."""
        rows = self.rows(f"SELECT jname FROM jails WHERE {condition} ORDER BY rowid")
        return [row[0] for row in rows]

    def value(self, jname, column):
        """One column of one row as text, '' when there is none."""
        rows = self.rows(f"SELECT {column} FROM jails WHERE jname='{jname}'")
        return text(rows[0][0]) if rows else ""

    def is_a(self, jname, emulator):
        """Whether `jname` is a jail, or a bhyve machine."""
        return bool(self.names(f"jname='{jname}' AND emulator='{emulator}'"))

    def matching(self, mask, emulator):
        """The environments that a mask such as `web*` names."""
        return self.names(f"emulator='{emulator}' AND jname LIKE '{mask.replace('*', '%')}'")

    def load(self, jname):
        """The row of an environment, live: what sourcing rcconf.subr sets (and repairs).

        None when there is no such environment. An empty dictionary, which counts as "exists", when
        the database is missing, or the name has a blank: its second word names another database.
        """
        if " " in jname or not self.exists():
            return {}
        rows = self.rows(f"SELECT {','.join(COLUMNS)} FROM jails WHERE jname='{jname}'")
        if not rows:
            return None
        row = dict(zip(COLUMNS, map(text, rows[0])))
        if any("|" in value for value in row.values()):
            raise BrokenRow(jname)
        self._repair(row)
        for column in EMPTY_WHEN_ZERO:
            if row[column] == "0":
                row[column] = ""
        if row["emulator"] == "bhyve":
            row.update(self.settings(jname))
        return row

    def _repair(self, row):
        """Compare jid and status with the kernel; the row follows (rcconf.subr:272-360)."""
        jname, status = row["jname"], row["status"]
        jid = self.kernel.jid(jname)
        if row["emulator"] == "bhyve" and os.path.exists(self.kernel.vmm(jname)):
            status = "3" if status == "3" else "1"
            jid = int(row["jid"]) or 1  # without a known pid it counts as running all the same
            row["jid"] = str(jid)
        fixes = {"jid": jid} if str(jid) != row["jid"] else {}
        if status in "01" and status != str(int(jid != 0)):
            status = fixes["status"] = str(int(jid != 0))
        row.update(jid=str(jid), status=status)
        if fixes:
            self.update(jname, **fixes)

    def lease(self):
        """The next free address of the node's pool."""
        used = [row[0] for row in self.rows("SELECT ip4_addr FROM jails")]
        return addresses.lease(self.layout.settings()["ippool"], used)

    def settings_file(self, jname):
        return self.layout.system(jname, "local.sqlite")

    def settings(self, jname):
        """The live settings of a machine; CBSD's global table has only copies."""
        path = self.settings_file(jname)
        if not os.path.isfile(path):
            return {}
        try:
            row = self.execute(f"SELECT {','.join(VM_SETTINGS)} FROM settings LIMIT 1", path)[0]
        except (quick_sqlite.Error, IndexError):
            return {}
        return dict(zip(VM_SETTINGS, map(text, row)))

    def create_settings(self, jname, values):
        """A machine's own database, with one row."""
        path = self.settings_file(jname)
        columns = ",".join(f"{column} text default 0" for column in VM_SETTINGS)
        self.write(f"CREATE TABLE settings ({columns})", path)
        known = {**VM_DEFAULTS, "created": str(int(time.time())), **values}
        known = {column: value for column, value in known.items() if column in VM_SETTINGS}
        quoted = ",".join(f"'{value}'" for value in known.values())
        self.write(f"INSERT INTO settings ({','.join(known)}) VALUES ({quoted})", path)

    def set_setting(self, jname, column, value):
        self.write(f"UPDATE settings SET {column}='{value}'", self.settings_file(jname))


def text(value):
    """A column as a shell sees it."""
    return "" if value is None else str(value)


def to_bytes(size):
    """`1g` or `512m` in bytes; None for what is no size."""
    factor = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}.get(size[-1:].lower())
    digits = size[:-1] if factor else size
    return int(digits) * (factor or 1) if digits.isdigit() else None
