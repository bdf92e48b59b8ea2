"""One running `cbsd` command: its environment, its output, its way to other commands."""

import os
import pwd
import time

from sim import procs, programs, shell
from sim.addresses import Addresses
from sim.hooks import HookRunner
from sim.inventory import Inventory
from sim.kernel import Kernel
from sim.layout import HOST_PATH, NESTED, VERSION

PARALLEL = 5  # seconds that cbsd_pwait waits for a child at most

COLOURS = {
    "N0": "\033[0m",
    "N1": "\033[0;35m",
    "N2": "\033[0;32m",
    "N4": "\033[0;36m",
    "H1": "\033[1;37m",
    "W1": "\033[1;31m",
    "BOLD": "\033[1m",
}


class Session:
    """What a CBSD script has at hand. Texts take `{N1}` and the like for colours."""

    def __init__(self, layout, command, argv, environment):
        self.layout, self.command = layout, command
        self.environment = environment
        self.kernel = Kernel(layout)
        self.inventory = Inventory(layout, self.kernel)
        self.argv = argv
        self.args = None
        self.started = time.time()
        plain = environment.get("NOCOLOR") or environment.get("ECHO")
        self.colours = dict.fromkeys(COLOURS, "") if plain else COLOURS
        self.hooks = HookRunner(self)

    def prepare(self):
        """The environment of every CBSD command (cbsd.conf)."""
        os.umask(0o002)
        os.makedirs(shell.EMPTY_DIR, mode=0o555, exist_ok=True)
        cwd = os.getcwd()
        os.chdir(shell.EMPTY_DIR)
        self.environment.update(
            CBSD_PWD=cwd,
            CBSD_CWD=cwd,
            PWD=shell.EMPTY_DIR,
            CBSD_APP=self.command,
            NO_CBSD_HISTORY="yes",
            PS1="cbsd@> ",
            freebsdhostversion="1401000",
            workdir=self.layout.workdir,
        )
        if self.environment.get("NOINTER"):
            self.environment.update(NOINTER="1", inter="0")
        return self

    # -- arguments ---------------------------------------------------------------------------------

    def parse(self, required="", optional="", sudo=False, reset=None):
        """Run CBSD's argument parser; a required key without value ends the command."""
        self.check_version()
        raw = shell.requote(self.argv) if sudo else self.argv
        declared = f"{required} {optional}".split()
        self.args = shell.Arguments(raw, declared, self.environment, reset or {})
        for key in required.split():
            if not self.args[key]:
                self.fail(f"{{N1}}Please set {self.command}: {{N2}}{key}{{N0}}")
        return self.args

    def check_version(self):
        """Compare the version of the working directory, which a first command writes down."""
        path = self.layout.work("ver")
        try:
            with open(path, encoding="utf-8") as source:
                found = source.read().strip()
        except FileNotFoundError:
            with open(path, "w", encoding="utf-8") as out:
                out.write(VERSION)
            return
        if found != VERSION:
            self.say(
                f"{{W1}}Warning{{N1}}: CBSD is {VERSION} while workdir initializated for {found}. "
                f"Please re-run: {{N2}}env workdir={self.layout.workdir} cbsd initenv{{N0}}",
                stream=2,
            )

    # -- output ------------------------------------------------------------------------------------

    def say(self, text, end="\n", stream=1):
        """Print a text with its colours."""
        for name, code in self.colours.items():
            text = text.replace(f"{{{name}}}", code)
        self.write(text + end, stream)

    @staticmethod
    def write(text, stream=1):
        """Print a text as it is."""
        data = text.encode(errors="surrogateescape")
        while data:
            data = data[os.write(stream, data) :]

    def fail(self, text, code=1):
        """`err`: the message goes to standard output."""
        self.say(text)
        raise shell.Exit(code)

    def done(self, command=None):
        """The trailer of a successful command."""
        seconds = int(time.time() - self.started)
        self.say(f"{{N1}}{command or self.command} done {{N2}}in {seconds} seconds{{N0}}")

    # -- environments ------------------------------------------------------------------------------

    def load(self, jname):
        """The live row of an environment, exported as rcconf.subr exports it; None if missing."""
        row = self.inventory.load(jname)
        if row:
            self.environment.update(row)
        return row

    def addresses(self, ip4_addr):
        """Look through an `ip4_addr`, complaining as CBSD does (`geniplist`)."""
        found = Addresses(ip4_addr)
        for item in found.unknown:
            self.say(f"{{N1}}ip not identified: {{N2}}{item}{{N0}}")
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
        self.say(f"{{N1}}found CBSDfile: {{N2}}{path}{{N0}}", stream=2)
        # The file is shell code and is run, as root.
        programs.run(["/bin/sh", path], env=self.environment, stdin=programs.DEVNULL)
        prefix = {"jail": "jail_", "bhyve": "bhyve_"}[emulator]
        with open(path, encoding="utf-8") as source:
            lines = [line.rstrip() for line in source]
        return [
            line[len(prefix) : -2]
            for line in lines
            if line.startswith(prefix) and line[-2:] == "()"
        ]

    def from_cbsdfile(self, emulator):
        """The names that a CBSDfile restricts the command to; None without one."""
        defined = self.from_cbsdfile_names(emulator)
        if defined is None:
            return None
        if self.args["jname"]:
            return [self.args["jname"]]
        for word in self.args.words:
            if word not in defined:
                text = f"{{N1}}{self.command}: env absent in CBSDfile: {{N2}}{word}{{N0}}"
                self.say(text, stream=2)
        names = (
            [word for word in self.args.words if word in defined] if self.args.words else defined
        )
        if not names:
            self.fail(f"{{N1}}{self.command}: give me jname{{N0}}")
        return names

    # -- other commands ----------------------------------------------------------------------------

    def cbsd(self, *argv, background=False, env=None):
        """Run another CBSD command as a child; its exit code, or the process in the background."""
        command = [os.path.join(self.layout.bin, "cbsd"), *argv]
        environment = {
            **self.environment,
            "PATH": HOST_PATH,
            NESTED: str(os.getpid()),
            **(env or {}),
        }
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
        children = []
        for number, jname in enumerate(names):
            argv = [command, *options, f"jname={jname}", f"delay={number * unit}"]
            children.append(self.cbsd(*argv, background=True, env={"NOINTER": "1", "inter": "0"}))
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
        conf = {"cbsd_jail_queue_name": "/clonos/jailscontainers/"}
        conf["cbsd_bhyve_queue_name"] = "/clonos/bhyvevms/"
        for directory in ("etc/defaults", "etc"):
            conf.update(read_conf(self.layout.work(directory, "cbsd_queue.conf")))
        backend = conf.get("cbsd_queue_backend", "").split()
        name = conf[f"cbsd_{emulator}_queue_name"]
        if not (backend and name):
            return
        words = [*backend, f"cbsd_queue_name={name}", f"id={jname}", f"cmd={cmd}", *settings]
        try:
            programs.run(words, env=self.environment, stdin=programs.DEVNULL)
        except OSError:
            self.say(f"{self.layout.bin}/cbsd: {backend[0]}: not found", stream=2)


def read_conf(path):
    """The assignments of a shell configuration file; a missing file has none."""
    found = {}
    try:
        with open(path, encoding="utf-8") as source:
            for line in source:
                key, equals, value = line.strip().rstrip(";").partition("=")
                if equals and not key.startswith("#"):
                    found[key.strip()] = value.strip().strip("\"'")
    except FileNotFoundError:
        pass
    return found


def bhyverun_of(layout, jname):
    """The processes that supervise a machine: bstop kills them by their command line."""
    wanted = f"bhyverun.sh -c {layout.system(jname)}/bhyve.conf"
    found = []
    for pid in procs.table():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as source:
                line = source.read().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ProcessLookupError):
            continue
        if wanted in line:
            found.append(procs.identity(pid))
    return [ident for ident in found if ident]
