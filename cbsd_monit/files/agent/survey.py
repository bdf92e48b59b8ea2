"""What is true now, as of one moment: CBSD's inventory, the kernel, the envs' files and records."""

import os
import time
from collections import namedtuple

import cbsd
import files
import hooks
import records
from node import AgentError
from states import LEFT_ALONE

# What lies in an env's directory; ``linked``: its stop hook is ours; ``there``: CBSD's own
# directory of the env exists.
Found = namedtuple("Found", "template policy roots linked there")
_Moment = namedtuple("_Moment", "rows broken kernel hooks unreadable moving errors")


class Survey(
    namedtuple(
        "Survey",
        "rows broken kernel hooks unreadable moving managed envs found histories trust errors",
    )
):
    """
    The node as it was read; nothing was written.

    rows {env: {column: text}}; broken: envs whose row cannot be read; kernel {emulator: names} or
    None; hooks [(path, HookRecord)] of envs that hold still; moving: envs whose hooks are still
    coming in; managed: envs with a template; envs {name: Record}; found {name: Found}; histories
    {name: entries} of first-seen envs; trust: trust.json; errors {env or "(kernel)": words}.
    """

    def up(self, env):
        """Whether the kernel runs an env (a Record), None if it cannot be asked."""
        row = self.rows.get(env.name, env)
        return None if self.kernel is None else env.name in self.kernel.get(row["emulator"], ())

    def linked(self, name):
        return name in self.found and self.found[name].linked


def take(node, overlay=None, dry=False):
    """
    Survey the node.

    overlay
        {env: {"monitrc.tpl": text} or None}: templates as a dry run would have them.
    dry
        Leave the inbox alone, even what cannot be read in it.

    Raises AgentError when CBSD's inventory cannot be read.
    """
    overlay = overlay or {}
    moment = _moment(node, dry=dry)
    errors = dict(moment.errors)
    found = {name: _found(node, name) for name in moment.rows}
    managed = {n for n, f in found.items() if f.template is not None and n not in overlay}
    managed |= {n for n in moment.rows if overlay.get(n) is not None}
    names = managed | records.names(node)
    for name in {hook.env for _, hook in moment.hooks} - names:
        found.setdefault(name, _found(node, name))
        names |= {name} if found[name].template is not None else set()
    envs = {name: records.load(node, name) for name in sorted(names)}
    broken = moment.broken & set(envs)
    for name in broken:  # nothing is known of it, nothing forgotten; its text stays published
        why = "a value holds a | or a line break"
        errors[name] = f"its row in CBSD's inventory cannot be read: {why}"
        del envs[name]
    moving = moment.moving & set(envs)
    for name in [n for n in moving if envs[n].new]:
        del envs[name]
    return Survey(
        rows=moment.rows,
        broken=broken,
        kernel=moment.kernel,
        hooks=[(path, hook) for path, hook in moment.hooks if hook.env not in moving],
        unreadable=moment.unreadable,
        moving=moving,
        managed=managed,
        envs=envs,
        found=found,
        histories={n: records.history(node, n) for n, e in envs.items() if e.new},
        trust=records.trust(node),
        errors=errors,
    )


def current(node, name):
    """The Record of one env as of now, with the hooks that nobody has taken in yet."""
    env = records.load(node, name).at(node.now())
    for _, hook in hooks.waiting_of(node, name):
        hooks.apply(env, hook)
    return env


def one(node, name):
    """
    (Record, row, up, why) of one env as of now, with the hooks that nobody has taken in yet.

    The row is None if CBSD has no such env, or none that is watched; ``up`` is None if the kernel
    cannot be asked, and ``why`` says why. Nothing is written. Raises AgentError when the inventory
    cannot be read.
    """
    moment = _moment(node, until=name)
    env = records.load(node, name).at(node.now())
    for _, hook in moment.hooks:
        if hook.env == name and name not in moment.moving:
            hooks.apply(env, hook)
    row = moment.rows.get(name)
    if row is None or records.env_files(node, name).template is None:
        return env, None, None, ""
    if moment.kernel is None:
        return env, row, None, moment.errors["(kernel)"]
    return env, row, name in moment.kernel.get(row["emulator"], ()), ""


def _moment(node, dry=False, until=None):
    """
    Inbox, inventory and kernel as of one moment: no hook of an env ran while the kernel was asked.

    A start announced after the kernel was asked would make a jail that just came up look dead, and
    a stop announced just before would make it look crashed. Envs whose hooks do not cease are
    ``moving``: nothing is known of them now, and none of their hooks is taken, because a directory
    that is read while files are added may show the second without the first. With ``until`` only
    the hooks of that env are waited for.
    """
    moving = set()
    for tries in range(100):
        inbox, unreadable = ([], []) if dry else hooks.waiting(node)
        kernel, errors = None, {}
        try:
            kernel = cbsd.kernel(node)
        except AgentError as err:
            errors["(kernel)"] = str(err)
        # After the kernel: CBSD writes what it did after it was done.
        rows, broken = cbsd.inventory(node)
        if dry:
            break
        before = {path for path, _ in inbox}
        moving = {hook.env for path, hook in hooks.waiting(node)[0] if path not in before}
        if not moving or tries and until not in moving:
            break
    return _Moment(rows, broken, kernel, inbox, unreadable, moving, errors)


def _found(node, name):
    texts, sysdir = records.env_files(node, name), node.sysdir(name)
    linked = os.path.lexists(os.path.join(sysdir, "master_prestop.d", "cbsd_monit"))
    return Found(*texts, linked, texts.template is not None or os.path.isdir(sysdir))


def look(node):
    """
    Compare kernel and intent, keep the dead markers; True if the agent should be woken.

    monit runs this each cycle: it takes no lock, asks neither CBSD nor monit, and starts one
    process, `jls`.
    """
    alive = cbsd.kernel(node)
    now = node.now()
    wake = os.path.exists(node.in_run("trigger"))
    for name in sorted(records.names(node)):
        env = records.load(node, name).at(now)
        if env["boot"] != node.boot:
            wake = True  # whether CBSD starts it at boot is for the pass to find out
            continue
        if env["op"]:
            wake = True  # if its agent lives, waking costs nothing; if not, somebody has to finish
        if env["intent"] is None or env["op"] or env["phase"]:
            continue
        up = name in alive.get(env["emulator"], ())
        heeded = env["state"] not in LEFT_ALONE
        marker = node.dead_marker(name)
        if env["intent"] == "running" and not up:
            if not os.path.exists(marker):
                files.touch(marker)
            wake = wake or heeded and not (env["gave_up"] or env.waits())
        elif os.path.exists(marker) or heeded and env["intent"] == "stopped" and up:
            wake = True
    with open(node.in_run("look"), "w", encoding="ascii") as handle:
        handle.write(f"{time.time():.0f}\n")
    return wake
