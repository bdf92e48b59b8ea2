"""One running `cbsd` command: its environment, its output, its way to other commands."""

import os
import pwd
import time

from sim import procs, programs, shell
from sim.addresses import Addresses
from sim.hooks import HookRunner
from sim.inventory import Inventory
from sim.kernel import Kernel
from sim.layout import HOST_PATH, NESTED, VERSION, read, read_conf, write

PARALLEL = 5  # seconds that cbsd_pwait waits for a child at most

COLOURS = "N0=0 N1=0;35 N2=0;32 N4=0;36 H1=1;37 W1=1;31 BOLD=1".split()
COLOURS = {name: f"\033[{code}m" for name, code in (item.split("=") for item in COLOURS)}


class Session:
    """What a CBSD script has at hand. Texts take `{N1}` and the like for colours."""

    def __init__(self, layout, command, argv, environment):
        self.layout, self.command, self.argv, self.args = layout, command, argv, None
        self.environment, self.quiet, self.started = environment, False, time.time()
        self.kernel = Kernel(layout)
        self.inventory = Inventory(layout, self.kernel)
        plain = environment.get("NOCOLOR") or environment.get("ECHO")
        self.colours = dict.fromkeys(COLOURS, "") if plain else COLOURS
        self.hooks = HookRunner(self)

    def prepare(self):
        """The environment of every CBSD command (cbsd.conf)."""
        os.umask(0o002)
        os.makedirs(shell.EMPTY_DIR, mode=0o555, exist_ok=True)
        cwd = os.getcwd()
        os.chdir(shell.EMPTY_DIR)
        own = {"CBSD_PWD": cwd, "CBSD_CWD": cwd, "CBSD_APP": self.command, "PS1": "cbsd@> "}
        own.update(NO_CBSD_HISTORY="yes", freebsdhostversion="1401000", PWD=shell.EMPTY_DIR)
        self.environment.update(own, workdir=self.layout.workdir)
        if self.environment.get("NOINTER"):
            self.environment.update(NOINTER="1", inter="0")
        return self

    def parse(self, required="", optional="", sudo=False, reset=None):
        """Run CBSD's argument parser; a required key without value ends the command."""
        self.check_version()
        raw = shell.requote(self.argv) if sudo else self.argv
        declared = f"{required} {optional}".split()
        self.args = shell.Arguments(raw, declared, self.environment, reset or {})
        for key in required.split():
            if not self.args[key]:
                self.fail(f"Please set {self.command}", key)
        return self.args

    def check_version(self):
        """Compare the version of the working directory, which a first command writes down."""
        path = self.layout.work("ver")
        if not os.path.exists(path):
            write(path, VERSION)
        found = read(path).strip()
        if found != VERSION:
            text = f"{{W1}}Warning{{N1}}: CBSD is {VERSION} while workdir initializated for {found}"
            command = f"env workdir={self.layout.workdir} cbsd initenv"
            self.say(f"{text}. Please re-run: {{N2}}{command}{{N0}}", stream=2)

    def say(self, text, value=None, end="\n", stream=1):
        """Print a text with its colours; with a value, `TEXT: VALUE` in the two usual ones."""
        if value is not None:
            text = f"{{N1}}{text}: {{N2}}{value}{{N0}}"
        for name, code in self.colours.items():
            text = text.replace(f"{{{name}}}", code)
        self.write(text + end, stream)

    def note(self, text, value=None):
        """Print what a command with `quiet=1` does not."""
        if not self.quiet:
            self.say(text, value)

    @staticmethod
    def write(text, stream=1):
        data = text.encode(errors="surrogateescape")
        while data:
            data = data[os.write(stream, data) :]

    def fail(self, text, value=None, code=1):
        """`err`: the message goes to standard output."""
        self.say(text, value)
        raise shell.Exit(code)

    def done(self):
        """The trailer of a successful command."""
        seconds = int(time.time() - self.started)
        self.note(f"{{N1}}{self.command} done {{N2}}in {seconds} seconds{{N0}}")

    def load(self, jname):
        """The live row of an environment, exported as rcconf.subr exports it; None if missing."""
        row = self.inventory.load(jname)
        if row:
            self.environment.update(row)
        return row

    def existing(self, jname, missing="No such jail"):
        """The same of an environment that the command cannot do without."""
        return self.load(jname) or self.fail(missing, jname)

    def addresses(self, ip4_addr):
        """Look through an `ip4_addr`, complaining as CBSD does (`geniplist`)."""
        found = Addresses(ip4_addr)
        for item in found.unknown:
            self.say("ip not identified", item)
        return found

    def export_for_hooks(self, row, **more):
        """Export the row and what its addresses say (`export_jail_data_for_external_hook`)."""
        facts = self.addresses(row["ip4_addr"]).facts if row["ip4_addr"] else {}
        extra = {"nic_address": "0", "nic_hwaddr": "0"} if row["emulator"] == "jail" else {}
        self.environment.update({**row, **facts, **extra, **more})

    def chown(self, path):
        """Give a file to the user cbsd, if the host has one."""
        try:
            user = pwd.getpwnam("cbsd")
        except KeyError:
            return
        os.lchown(path, user.pw_uid, user.pw_gid)

    def names_of(self, emulator, required):
        """The environments a start or stop is about: ([existing ones], the single name).

        From `jname=` or the bare words, a mask replaced by what it matches; names that are not in
        the inventory are dropped, and with none left `$1` is taken as it is, quotes and all.
        """
        args = self.args
        names = self.from_cbsdfile(emulator)
        if names is None:
            names = [args["jname"]] if args["jname"] else args.words
        if not names:
            self.fail(f"{{N1}}{required}{{N0}}")
        if len(names) == 1 and "*" in names[0]:
            names = self.inventory.matching(names[0], emulator) or names
        existing = [name for name in names if self.inventory.is_a(name, emulator)]
        return existing, existing[0] if existing else args.first()

    def from_cbsdfile_names(self, emulator):
        """The environments that a CBSDfile in the caller's directory defines; None without one."""
        path = os.path.join(self.environment["CBSD_PWD"], "CBSDfile")
        if not os.access(path, os.R_OK):
            return None
        self.say("found CBSDfile", path, stream=2)
        # The file is shell code and is run, as root.
        programs.run(["/bin/sh", path], env=self.environment, stdin=programs.DEVNULL)
        prefix = {"jail": "jail_", "bhyve": "bhyve_"}[emulator]
        lines = [line.rstrip() for line in read(path).splitlines()]
        return [ln[len(prefix) : -2] for ln in lines if ln.startswith(prefix) and ln[-2:] == "()"]

    def from_cbsdfile(self, emulator):
        """The names that a CBSDfile restricts the command to; None without one."""
        defined = self.from_cbsdfile_names(emulator)
        if defined is None:
            return None
        if self.args["jname"]:
            return [self.args["jname"]]
        words = self.args.words
        for word in words:
            if word not in defined:
                self.say(f"{self.command}: env absent in CBSDfile", word, stream=2)
        names = [word for word in words if word in defined] if words else defined
        return names or self.fail(f"{{N1}}{self.command}: give me jname{{N0}}")

    def cbsd(self, *argv, background=False, env=None):
        """Run another CBSD command as a child; its exit code, or the process in the background."""
        command = [os.path.join(self.layout.bin, "cbsd"), *argv]
        own = {"PATH": HOST_PATH, NESTED: str(os.getpid())}
        environment = {**self.environment, **own, **(env or {})}
        if not background:
            return programs.run(command, env=environment)
        null = dict.fromkeys(("stdin", "stdout", "stderr"), programs.DEVNULL)
        return programs.Program(command, environment, **null, start_new_session=True)

    def side_by_side(self, command, names, options):
        """Start several environments at once (jstart:205-259, bstart).

        Each child waits one second longer than the one before; CBSD waits for each at most
        `parallel` seconds and never looks at an exit code. How long "a second" is, the node's
        settings say.
        """
        unit = self.layout.settings()["delay_unit"]
        children, env = [], {"NOINTER": "1", "inter": "0"}
        for number, jname in enumerate(names):
            argv = [command, *options, f"jname={jname}", f"delay={number * unit}"]
            children.append(self.cbsd(*argv, background=True, env=env))
        for child in children:
            child.wait(PARALLEL)

    def in_background(self, *argv):
        """One of several commands that CBSD runs one after the other, waiting a while for each."""
        child = self.cbsd(*argv, background=True, env={"NOINTER": "1", "inter": "0"})
        child.wait(PARALLEL)

    def queue(self, emulator, cmd, jname, *settings):
        """Call the backend of the module cbsd_queue, if it is enabled and configured."""
        if self.environment.get("MOD_CBSD_QUEUE_DISABLED"):
            return
        if read_conf(self.layout.work("nc.inventory")).get("mod_cbsd_queue_enabled") != "YES":
            return
        conf = read_conf(self.layout.work("etc/defaults/cbsd_queue.conf"))
        conf.update(read_conf(self.layout.work("etc/cbsd_queue.conf")))
        backend = conf.get("cbsd_queue_backend", "").split()
        default = {"jail": "/clonos/jailscontainers/", "bhyve": "/clonos/bhyvevms/"}[emulator]
        name = conf.get(f"cbsd_{emulator}_queue_name", default)
        if not (backend and name):
            return
        words = [*backend, f"cbsd_queue_name={name}", f"id={jname}", f"cmd={cmd}", *settings]
        try:
            programs.run(words, env=self.environment, stdin=programs.DEVNULL)
        except OSError:
            self.say(f"{self.layout.bin}/cbsd: {backend[0]}: not found", stream=2)


def bhyverun_of(layout, jname):
    """The processes that supervise a machine: bstop kills them by their command line."""
    wanted = f"bhyverun.sh -c {layout.system(jname)}/bhyve.conf"
    found = []
    for pid in procs.table():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as source:
                line = source.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if wanted in line:
            found.append(procs.identity(pid))
    return list(filter(None, found))
