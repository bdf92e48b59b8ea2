"""
The commands of the agent. Usage: agent CONFIG run|sync|look|probe|status|history …

docs/contract.md section 6 has the table of commands. What only some commands need is imported by
them: monit runs `look` each cycle.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys

import bugs
import files
import policy
import records
from node import NAME, AgentError, Node


def _wake(node, why):
    subprocess.run([node.wake, "monit", why], check=False, stdin=subprocess.DEVNULL)


def run(node):
    """Be the one agent: pass over the node and heal until nothing is left to do."""
    import loop

    with contextlib.suppress(OSError):
        os.setsid()  # whoever kills the group of the hook that woke us does not mean us
    loop.run(node)
    return 0


def sync(node, *options):
    """One pass now; heals that are due are left to the agent, which is woken."""
    import loop
    import passes

    dry, overlay = "--dry-run" in options, {}
    if "--overlay" in options:
        overlay = files.read_json(options[options.index("--overlay") + 1])
    new = overlay.pop("", None)  # the node's own configuration, as it would be
    if new:
        node.use({**node.conf, **new["config"]})
    error, result = "", None
    try:
        result = passes.dry(node, overlay) if dry else loop.one_pass(node, start_monit=True)
    except (AgentError, OSError, subprocess.SubprocessError) as err:
        error = str(err)
    except Exception as err:  # noqa: BLE001 - whoever asked is told that it is ours
        error = bugs.report(node, "a pass", err)
    if error:
        records.say(f"sync failed: {error}", loud=True)
    if not dry:
        loop.free_stale_ticket(node)
        if error or result.due or result.unsettled or _goes_on(result):
            _wake(node, "sync")
    if "--json" in options:
        print(json.dumps(_answer(node, result, error), sort_keys=True))
    return 1 if error else 0


def _goes_on(result):
    return any(
        env["phase"] or env["state"] in ("starting", "backoff") for env in result.envs.values()
    )


def _answer(node, result, error=""):
    """What `sync --json` and `rollback` print of a Pass, which is None after an error."""
    import generations

    if result is None:
        return {"error": error}
    publication = result.publication
    return {
        "changed": publication.changed,
        "published": generations.number(node),
        "reloaded": publication.reloaded,
        "started": publication.started,
        "quarantined": {env: why["reason"] for env, why in publication.quarantined.items()},
        "errors": result.errors,
        "foreign": publication.foreign,
        "warnings": result.warnings,
        "held": publication.held,
        "verify_wait_s": publication.verify_wait,
        "services": len(publication.services),
        "envs": {name: env["state"] for name, env in result.envs.items()},
    }


def rollback(node, number=None):
    """Publish the generation before (or that of a number) until the inputs change; or `undo`."""
    import passes

    if number == "undo":
        result = passes.undo_rollback(node)
    elif number is None or number.isdigit():
        result = passes.rollback(node, number and int(number))
    else:
        raise AgentError(f"expected the number of a generation or undo, got {number!r}")
    print(json.dumps(_answer(node, result), sort_keys=True))
    return 1 if "(monit)" in result.errors else 0


def leave(node):
    """Let the agent finish the heals that it began, begin no other, and end; waits for that."""
    mark = node.in_run("quit")
    files.write(mark, "")
    try:
        with node.lock(node.in_run("agent.lock"), wait=1800, why="quit"):
            return 0
    finally:
        files.remove(mark)


def probe(node, name, check):
    """Run a check that is a program or looks into the jail: exit code 0, 1 or 75, and why."""
    import probes

    code, words = probes.run(node, records.load(node, name), check)
    if words:
        print(words)
    return code


def _changing(node, name):
    """The record of a watched env, to be changed; raises AgentError for any other name."""
    if records.load(node, name).new:
        raise AgentError(f"no env {name} is watched on this node")
    return records.changing(node, name)


def recheck(node, name):
    """The fleet's answer to an `event`: look at the env again; what follows is for its policy."""
    with _changing(node, name) as env:
        if env.age("recheck") < 10:
            return 0
        env["recheck"] = env.now.stamp()
    _wake(node, "recheck")
    return 0


def status(node, name=None):
    """What is known of every env of the node (or of one) and of the node itself, as JSON."""
    import report

    print(json.dumps(report.rows(node, node.now(), name), sort_keys=True))
    return 0


def history(node, name):
    """The transitions of one env, JSON lines, oldest first."""
    sys.stdout.write(files.EnvDir(node.sysdir(name)).read("history.jsonl") or "")
    return 0


def silence(node, name, until=None, by="", *reason):
    """Silence an env until a moment (seconds since 1970), or take that back."""
    with _changing(node, name) as env:
        try:
            moment = None if until is None else float(until)
        except ValueError:
            raise AgentError(f"until: expected seconds since 1970, got {until!r}") from None
        policy.silence(node, name, moment, by, " ".join(reason), env.now)
    _wake(node, "silence")
    return status(node, name)


def retry(node, name):
    """End `gave_up`: watch the env again, and heal it anew if it fails."""
    with _changing(node, name) as env:
        if env["gave_up"]:
            env["gave_up"], env["warm"], env["proof_from"] = False, False, env.now.stamp()
            env.reset_attempts()
            env.go("starting", "its checks are tried again")
    _wake(node, "retry")
    return status(node, name)


def look(node):
    """The cheap look at the kernel that monit runs each cycle."""
    import survey

    if survey.look(node):
        _wake(node, "look")
    return 0


# command: (what it does, names of its arguments; those from the bar on may be left out)
COMMANDS = {
    "run": (run, ""),
    "sync": (sync, "| --json --dry-run --overlay FILE"),
    "look": (look, ""),
    "probe": (probe, "ENV CHECK"),
    "recheck": (recheck, "ENV"),
    "status": (status, "| ENV"),
    "history": (history, "ENV"),
    "silence": (silence, "ENV UNTIL WHO | REASON…"),
    "unsilence": (silence, "ENV"),
    "retry": (retry, "ENV"),
    "rollback": (rollback, "| NUMBER"),
    "quit": (leave, ""),
}


def main(argv):
    for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)  # monit 6.0 passes on signals that it ignores
    os.umask(0o077)
    config, command, *args = [*argv, ""][: max(2, len(argv))]
    function, names = COMMANDS.get(command, (None, ""))
    needed, _, more = (part.split() for part in names.partition("|"))
    if function is None or not len(needed) <= len(args) <= len(needed) + (
        99 if "REASON…" in more else len(more)
    ):
        usage = "\n".join(
            f"  wake {name} {words.replace('| ', '[')}{']' * ('|' in words)}"
            for name, (_, words) in COMMANDS.items()
        )
        print(f"expected one of\n{usage}\ngot {' '.join(argv[1:]) or 'nothing'}", file=sys.stderr)
        return 2
    node = None
    try:
        for name, value in zip([*needed, *more], args):
            if name in ("ENV", "CHECK") and not NAME.match(value):
                raise AgentError(f"expected a name of letters, digits, _ and -, got {value!r}")
        node = Node(config)
        return function(node, *args)
    except (AgentError, OSError) as err:
        words = str(err)
    except Exception as err:  # noqa: BLE001 - the user is told whose fault it is
        if node is None:
            raise
        words = bugs.report(node, f"wake {command}", err)
    import monit

    print(f"cbsd_monit: {words}", file=sys.stderr)
    return monit.UNASKED if command == "probe" else 1
