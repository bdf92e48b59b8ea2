"""The starting nodes of the recorded cases, see conformance/FORMAT.md."""

import os

import yaml

from sim import jails, machines
from sim.inventory import Inventory, to_bytes
from sim.kernel import Kernel
from sim.layout import read, write

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def load():
    return yaml.safe_load(read(os.path.join(TESTS, "conformance/fixtures.yaml")))


class Builder:
    """Puts the environments of a fixture on a new node, without running a single command."""

    def __init__(self, layout, description):
        self.layout, self.description = layout, description
        self.kernel = Kernel(layout)
        self.inventory = Inventory(layout, self.kernel)

    def build(self, fixture):
        for jname, values in fixture["jails"].items():
            self.jail(jname, {**self.description["jail_defaults"], **values})
        for jname, values in fixture["vms"].items():
            self.machine(jname, {**self.description["vm_defaults"], **values})

    def row(self, jname, values):
        """The columns of an environment; placeholders become paths."""
        row = jails.paths_of(self.layout, jname)
        for key, value in values.items():
            if key != "state":
                text = str(value).replace("{jname}", jname)
                row[key] = text.replace("{workdir}", self.layout.workdir)
        return {**row, "jname": jname}

    def directories(self, jname, hook_dirs):
        """What belongs to an environment in the file system."""
        for name in hook_dirs:
            os.makedirs(self.layout.system(jname, name))
        for path in (self.layout.work("jails", jname), self.layout.work("jails-fstab", jname)):
            os.makedirs(path)
        os.makedirs(self.layout.data(jname, "etc"))

    def jail(self, jname, values):
        """One jail, running if the fixture says so."""
        row = {**jails.DEFAULTS, **self.row(jname, values)}
        self.directories(jname, jails.HOOK_DIRS)
        if values["state"] == "On":
            record = [row[key] for key in ("path", "data", "host_hostname", "ip4_addr")]
            row.update(jid=self.kernel.create_jail(jname, *record), status=1)
            write(self.layout.system(jname, "locked"), self.layout.nodename() + "\n")
        self.inventory.register(row)

    def machine(self, jname, values):
        """One machine; none of them runs."""
        row = self.row(jname, values)
        self.directories(jname, machines.HOOK_DIRS)
        bind, _, port = row.pop("vnc").rpartition(":")
        copied = ("vm_cpus", "vm_os_type", "ip4_addr", "astart", "protected")
        settings = {key: row.get(key) for key in copied}
        settings.update(vm_ram=to_bytes(row["vm_ram"]), bhyve_vnc_tcp_bind=bind, vnc_port=port)
        self.inventory.create_settings(jname, settings)
        self.inventory.register(row)
