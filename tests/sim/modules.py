"""Modules of CBSD: fetching, enabling, and the initialisation that links their commands."""

import os

from sim import programs, shell
from sim.jails import HOOK_DIRS, copy_tree
from sim.layout import HOST_PATH, VERSION, read, read_conf, write
from sim.machines import HOOK_DIRS as VM_HOOK_DIRS

DIRECTORIES = """etc/defaults export ftmp import jails jails-data jails-fstab jails-rcconf
jails-system modules nodes share src tmp var/db var/log var/run var/spool vm"""
REAL_PREFIX = "/usr/local/cbsd"


def module(session):
    """cbsd module mode=install|upgrade|list [NAME] (system/module)."""
    args = session.parse("mode", "version")
    names = [word for word in args.words if "=" not in word]
    if args["mode"] == "list":
        return list_modules(session)
    if args["mode"] not in ("install", "upgrade"):
        session.fail("module: unknown mode", args["mode"])
    return fetch(session, names[-1] if names else "", args["mode"], args["version"] or "main")


def fetch(session, name, mode, version):
    """Clone or update one module; messages go to standard error."""
    url = session.layout.settings()["module_url"].get(name)
    raw = f"https://raw.githubusercontent.com/cbsd/modules-{name}/{version}/metadata.conf"
    directory = None if not url else metadata(url).get("MODULE_DIR", "")
    if directory is None:
        tool = f"{REAL_PREFIX}/bin/cfetch -u"
        return complain(session, f"unable to fetch metadata via: {tool} {{N2}}{raw}")
    if not directory:
        text = "unable to extract MODULE_DIR= variable from manifest"
        return complain(session, f"{text}: {{N2}}{raw}")
    if not directory.startswith(f"{REAL_PREFIX}/modules"):
        text = f"MODULE_DIR != {REAL_PREFIX}/modules in manifest: {{N2}}{directory}"
        return complain(session, text)
    target = session.layout.distdir + directory[len(REAL_PREFIX) :]
    if mode == "upgrade":
        if not os.path.isdir(target):
            return complain(session, f"MODULE_DIR doesn't exist: {{N2}}{directory}")
        return git(session, ["-C", target, "pull", "--ff-only"], "git pull error")
    if os.path.isdir(target):
        try:
            os.rmdir(target)
        except OSError:
            hint = f"cbsd module mode=upgrade {name}"
            text = f"MODULE_DIR already exist: {{N2}}{directory}{{N1}}. Maybe you want to upgrade"
            return complain(session, f"{text}: {{N2}}{hint}")
        return 0  # as system/module:85: an empty directory is removed, and that was it
    clone = ["clone", "--quiet", "--depth=1", "--single-branch", url, target]
    code = git(session, clone, "clone error")
    if code == 0:
        session.say("module: module installed", name, stream=2)
    return code


def complain(session, text):
    """An error of this command."""
    session.say(f"{{N1}}module: {text}{{N0}}", stream=2)
    return 1


def metadata(url):
    """metadata.conf of a module's repository."""
    show = ["git", "-C", url.removeprefix("file://"), "show", "HEAD:metadata.conf"]
    text = programs.output(show, stderr=programs.DEVNULL)[1].decode()
    lines = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip().strip('"') for key, _, value in lines}


def git(session, argv, problem):
    """Run git as CBSD does, with the PATH of the host."""
    environment = {**session.environment, "PATH": HOST_PATH}
    if programs.run(["git", *argv], env=environment):
        return complain(session, problem)
    return 0


def list_modules(session):
    """NAME on|off for each module with a manifest."""
    session.write(f"{'MODULE':18}  {'STATUS':3}\n")
    base, wanted = os.path.join(session.layout.distdir, "modules"), enabled(session.layout)
    for entry in sorted(os.listdir(base)):
        if entry.endswith(".d") and os.path.isfile(os.path.join(base, entry, "metadata.conf")):
            session.write(f"{entry[:-2]:19}  {'on' if entry in wanted else 'off':3}\n")


def enabled(layout):
    """The lines of etc/modules.conf."""
    lines = map(str.strip, read(layout.work("etc/modules.conf"), missing="").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def initenv(session):
    """Bring the working directory up to date (sudoexec/initenv)."""
    session.parse(optional="inter")
    initialise(session.layout)
    session.say("{N1}initenv done{N0}")


def initialise(layout):
    """What initenv does to a working directory, new or not."""
    for directory in DIRECTORIES.split():
        os.makedirs(layout.work(directory), exist_ok=True)
    # An upgrade never touches the skeletons of an operator.
    skeletons = (("jail-system-default", HOOK_DIRS), ("bhyve-system-default", VM_HOOK_DIRS))
    for name, directories in skeletons:
        skeleton = layout.work("share", name)
        if not os.path.isdir(skeleton):
            for directory in directories:
                os.makedirs(os.path.join(skeleton, directory))
                write(os.path.join(skeleton, directory, "placeholder"))
            shipped = os.path.join(layout.distdir, "share", name)
            if os.path.isdir(shipped):
                copy_tree(shipped, skeleton)
    if not os.path.exists(layout.work("etc/modules.conf")):
        write(layout.work("etc/modules.conf"), "pkg.d\nbsdconf.d\nzfsinstall.d\n")
    write(layout.work("ver"), VERSION)
    link_commands(layout)
    write_inventory(layout)


def link_commands(layout):
    """Link the commands of enabled modules into the directory that PATH begins with."""
    directory = layout.work("modules")
    base = os.path.join(layout.distdir, "modules")
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if os.path.islink(path) and os.readlink(path).startswith(base):
            os.unlink(path)
    for entry in enabled(layout):
        for command in secure_commands(os.path.join(base, entry, "securecmd")):
            link = os.path.join(directory, command)
            if not os.path.lexists(link):
                os.symlink(os.path.join(base, entry, command), link)


def secure_commands(path):
    """SECCMD of a module's securecmd, which is sourced."""
    if not os.path.isfile(path):
        return []
    script = ["/bin/sh", "-c", '. "$1"; echo $SECCMD', "sh", path]
    return programs.output(script, stdin=programs.DEVNULL)[1].decode().split()


def write_inventory(layout):
    """nc.inventory is written anew: what was added by hand is lost."""
    settings = layout.settings()
    lines = {"nodename": settings["nodename"], "nodeippool": settings["ippool"]}
    lines.update(dict.fromkeys(("nodeip", "jnameserver"), "127.0.0.1"))
    lines.update(zfsfeat=0, racct=0, vnet=0, sqlreplica=1, parallel=5, workdir=layout.workdir)
    lines.update({f"mod_{entry.removesuffix('.d')}_enabled": "YES" for entry in enabled(layout)})
    text = "".join(f'{key}="{value}";\n' for key, value in lines.items())
    write(layout.work("nc.inventory"), text)
    os.chmod(layout.work("nc.inventory"), 0o640)


def run_script(session, path):
    """Run a CBSD script (`#!/usr/local/bin/cbsd`) of a module, as far as /bin/sh can.

    It gets CBSD's variables and a few of its functions; see share/subr of the simulated
    distribution.
    """
    layout, subr = session.layout, os.path.join(session.layout.distdir, "subr")
    files = {"subr": "nc", "cbsdinit": "cbsdinit", "jrcconf": "rcconf"}
    files.update(dict.fromkeys(("system", "strings", "tools"), "empty"))
    variables = {f"{colour}_COLOR": "" for colour in ("N0", "N1", "N2", "H3", "W1")}
    variables.update(nodename=layout.nodename(), distdir=layout.distdir, subrdir=subr)
    variables.update({key: f"{subr}/{name}.subr" for key, name in files.items()})
    variables.update(jailsysdir=layout.work("jails-system"), moduledir=layout.work("modules"))
    variables.update(dbdir=layout.work("var/db"), ftmpdir=layout.work("ftmp"), ECHO="echo")
    variables.update(SED_CMD="/bin/sed", AWK_CMD="/usr/bin/awk")
    variables["PATH"] = f"{layout.bin}/commands:{HOST_PATH}"
    inventory = read_conf(layout.work("nc.inventory"))
    environment = {**session.environment, **inventory, **variables}
    os.execve("/bin/sh", ["/bin/sh", path, *session.argv], environment)
    raise shell.Exit(126)


SUBR = {
    "empty.subr": "",
    "nc.subr": """\
err() { _code=$1; shift; echo "$*"; exit $_code; }
log_err() { err "$@"; }
""",
    "cbsdinit.subr": """\
for _argument; do
    case "$_argument" in *=*) eval "${_argument%%=*}=\\"${_argument#*=}\\"";; esac
done
for _key in ${MYARG}; do
    eval "_value=\\"\\${$_key}\\""
    [ -n "$_value" ] || err 1 "Please set ${CBSD_APP}: ${_key}"
done
""",
    "rcconf.subr": """\
jstatus jname="${jname}" > /dev/null
[ $? -ne 0 ]
""",
}


def write_subr(layout):
    """The part of CBSD's library that modules use, for `run_script`."""
    directory = os.path.join(layout.distdir, "subr")
    os.makedirs(directory, exist_ok=True)
    for name, text in SUBR.items():
        write(os.path.join(directory, name), text)
