"""Where the files of one node are, and what is configured about the node itself."""

import os

from sim import quick_json

VERSION = "14.1.3a"

# What CBSD gives to hooks, and what a FreeBSD root shell has (subr/jcreate.subr resets to it).
HOST_PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"

# Internal to the simulator: a command that another command runs. It never reaches a hook.
NESTED = "CBSD_SIM_NESTED"

DEFAULTS = {
    "nodename": "node1.my.domain",
    "nic": "em0",
    "jid_start": 1,
    "ippool": "10.10.0.0/24",
    # How long one second of `delay=` lasts when CBSD itself spreads a mass start over time.
    "delay_unit": 0.05,
    # What jail(8) takes at least. Seconds in reality, which is why two stops of one jail overlap.
    "pause": 0.0,
    # Module name -> git repository; a module without an entry cannot be fetched.
    "module_url": {},
}


class Layout:
    """The directories of a node below `root`."""

    def __init__(self, root, workdir=None):
        self.root = os.path.abspath(root)
        self.workdir = workdir or self.path("usr/jails")
        self.distdir = self.path("usr/local/cbsd")
        self.bin = self.path("bin")
        self.jailbin = self.path("usr/local/libexec/jail")
        self.kernel = self.path("kernel")
        self.vmm = self.path("dev/vmm")
        self.rcconf = self.path("etc/rc.conf")
        self.simconf = self.path("etc/sim.json")
        self.cbsd_log = self.path("log/cbsd.log")
        self.hooks_log = self.path("log/hooks.log")

    def path(self, relative):
        """A path below the root of the node."""
        return os.path.join(self.root, relative)

    def work(self, *parts):
        """A path below CBSD's working directory."""
        return os.path.join(self.workdir, *parts)

    def system(self, jname, *parts):
        """A path below `jails-system/JNAME`."""
        return self.work("jails-system", jname, *parts)

    def data(self, jname, *parts):
        """A path below the root of a jail or the disk directory of a VM."""
        return self.work("jails-data", jname + "-data", *parts)

    def settings(self):
        """The configuration of the simulator for this node."""
        return {**DEFAULTS, **quick_json.loads(read(self.simconf, missing="{}"))}

    def nodename(self):
        """CBSD's own name of the node, which it writes into locks."""
        return (read(self.work("nodename"), missing="").split() or [""])[0]


def read(path, missing=None):
    """The text of a file; `missing`, unless it is None, where there is no file."""
    try:
        with open(path, encoding="utf-8") as source:
            return source.read()
    except FileNotFoundError:
        if missing is None:
            raise
        return missing


def read_conf(path):
    """The assignments of a shell configuration file; a missing file has none."""
    found = {}
    for line in read(path, missing="").splitlines():
        key, equals, value = line.strip().rstrip(";").partition("=")
        if equals and not key.startswith("#"):
            found[key.strip()] = value.strip().strip("\"'")
    return found


def write(path, text=""):
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)


def append_json(path, record):
    """Append one line to a log that many processes write: one write(2), so lines never mix."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, (quick_json.dumps(record) + "\n").encode())
    finally:
        os.close(fd)


def write_atomic(path, text, mode=0o644):
    """Replace a file so that a reader sees either the old or the new text."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as out:
        out.write(text)
    os.chmod(temporary, mode)
    os.replace(temporary, path)
