"""
The commands of the agent.  Usage: agent CONFIG run|sync|look|probe|status|history …

docs/contract.md section 6 has the table of commands.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import files
import heal
import passes
import policy
import probes
import spool
import state
from monit import UNASKED
from node import NAME, AgentError, Busy, Node

LINGER = 90  # the agent stays for what is due within this many seconds; cron wakes it for the rest


def run(node):
    """Be the one agent: pass over the node and heal until nothing is left to do."""
    ticket = node.in_run("agent.pid")
    try:
        # Without a ticket, on a full disk, each wake starts one of us: then none waits.
        with node.lock(
            node.in_run("agent.lock"), wait=5 if os.path.isdir(ticket) else 0, why="agent"
        ):
            with contextlib.suppress(OSError):
                os.makedirs(ticket, 0o700, exist_ok=True)
            log = node.in_state("agent.log")
            if os.path.exists(log) and os.stat(log).st_size > 1 << 20:
                os.replace(log, log + ".1")  # ours is open already; the next agent begins a new one
            agent = Agent(node, ticket)
            agent.sign()
            agent.loop()
    except Busy:
        pass  # the one that runs sees our trigger
    return 0


class Agent:
    """The loop of `run`: one pass after the other, heals beside them in threads."""

    def __init__(self, node, ticket):
        self.node, self.ticket = node, ticket
        self.heals = {}
        self.trigger = node.in_run("trigger")
        self.troubles = 0

    def sign(self):
        """Write our pid on the ticket; without it, on a full disk, others take us for one that just starts."""
        with contextlib.suppress(OSError):
            files.write(os.path.join(self.ticket, "pid"), f"{os.getpid()}\n")

    def loop(self):
        while True:
            files.remove(self.trigger)
            try:
                began = time.monotonic()
                seen = _pass(self.node)
                took = time.monotonic() - began
                self.troubles = 0
                wait = self._begin(seen)
                if wait is not None and took > 0.5:
                    wait = max(
                        wait, 4 * took
                    )  # a node with a thousand envs is looked at no more than a fifth of the time
            except Exception as err:  # noqa: BLE001 - whatever it is, heals go on and the next pass may succeed
                state.say(f"pass failed: {type(err).__name__}: {err}", loud=True)
                self.troubles += 1
                self.heals = {n: t for n, t in self.heals.items() if t.is_alive()}
                wait = 1 if self.troubles < 3 or self.heals else None
            if wait is None:
                if self._leave():
                    return
                continue
            self._wait(wait)

    def _begin(self, seen):
        """Start the heals that are due; returns after how many seconds to look again, None for not at all."""
        self.heals = {n: t for n, t in self.heals.items() if t.is_alive()}
        if os.path.exists(self.node.in_run("quit")):
            return 0.5 if self.heals else None
        for env, check, reason in seen.due:
            if env.name in self.heals or len(self.heals) >= self.node.budget["max_concurrent"]:
                continue
            job = heal.Heal(self.node, env.name, check, reason)
            thread = threading.Thread(target=job.run, name=env.name)
            self.heals[env.name] = thread
            thread.start()
        soon = [0.5] if self.heals else []
        soon += [1.0 for env, _, _ in seen.due if env.name not in self.heals]
        if seen.unsettled:
            soon.append(0.3)
        if seen.soon:
            soon.append(seen.soon + 0.05)
        soon += [
            wait + 0.05 for wait, _, _ in probes.due(self.node, seen.running())[:1] if wait < LINGER
        ]
        if state.UNSAVED or not spool.flush(self.node):
            soon.append(5.0)  # they would be lost with this process
        for env in seen.envs.values():
            if env["op"] and env.name not in self.heals:
                soon.append(0.5)  # a command that outlived its agent
            if env["phase"] in ("stopping", "starting", "restarting", "removing"):
                soon.append(1.0)
            elif env["state"] == "starting" and env.age("started") < self._patience(env):
                soon.append(0.5)
            elif env["state"] == "backoff" and 0 < policy.waits(env) < LINGER:
                soon.append(policy.waits(env) + 0.05)
        return min(soon) if soon else None

    def _patience(self, env):
        return policy.patience(policy.of(self.node, env)) + 30

    def _wait(self, seconds):
        until = time.monotonic() + seconds
        working = set(n for n, t in self.heals.items() if t.is_alive())
        while True:
            time.sleep(
                0.1 if working else 0.05
            )  # heals ask for the pass lock every 0.02 s: without a breath none would get it
            if os.path.exists(self.trigger) or time.monotonic() >= until:
                return
            if any(not self.heals[n].is_alive() for n in working):
                return

    def _leave(self):
        """Give the ticket back; False if somebody called in between and we took it again."""
        import shutil

        gone = self.ticket + ".gone"
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rename(self.ticket, gone)  # at once: half a ticket would keep others away
        shutil.rmtree(gone, ignore_errors=True)
        if not os.path.exists(self.trigger) or os.path.exists(self.node.in_run("quit")):
            return True
        try:
            os.mkdir(self.ticket, 0o700)
        except OSError:
            return True  # the caller started the next agent, which waits for our lock
        self.sign()
        return False


def _pass(node, **how):
    """One pass; where the agent has to run probes itself and some are due, they are run and it looks once more."""
    seen = passes.run(node, **how)
    jobs = [
        (env.name, check) for wait, env, check in probes.due(node, seen.running()) if wait < 0.5
    ]
    if jobs:
        probes.run_all(node, jobs)
        seen = passes.run(node)
    return seen


def _free_stale_ticket(node):
    """A ticket without an agent (killed between mkdir and its first breath) would keep every later one away."""
    try:
        with node.lock(node.in_run("agent.lock"), why="sync"):
            ticket = node.in_run("agent.pid")
            if os.path.isdir(ticket) and time.time() - os.stat(ticket).st_mtime > 10:
                import shutil

                shutil.rmtree(
                    ticket
                )  # with what an agent that was killed while it wrote its pid left there
    except (Busy, OSError):
        pass


def sync(node, as_json=False, dry=False, overlay=None):
    """One pass now; heals that are due are left to the agent, which is woken."""
    error, seen = "", None
    try:
        seen = passes.dry(node, overlay) if dry else _pass(node, start_monit=True)
    except (AgentError, OSError, subprocess.SubprocessError) as err:
        error = str(err)
        state.say(f"sync failed: {error}", loud=True)
    if not dry:
        _free_stale_ticket(node)
        if (
            error
            or seen.due
            or seen.unsettled
            or any(e["phase"] or e["state"] in ("starting", "backoff") for e in seen.envs.values())
        ):
            subprocess.run([node.wake, "monit", "sync"], check=False, stdin=subprocess.DEVNULL)
    if as_json:
        print(json.dumps(_answer(node, seen, error), sort_keys=True))
    return 1 if error else 0


def _answer(node, seen, error=""):
    """What `sync --json` and `rollback` say of a pass."""
    answer = {"error": error} if error else {}
    if seen is not None:
        answer.update(
            changed=seen.changed,
            published=seen.publisher.generation(),
            reloaded=seen.reloaded,
            started=seen.started,
            quarantined={e: q["reason"] for e, q in seen.quarantined.items()},
            errors=seen.errors,
            foreign=seen.foreign,
            warnings=seen.warnings,
            held=seen.held,
            verify_wait_s=seen.verify_wait,
            services=len(seen.services),
            envs={n: e["state"] for n, e in seen.envs.items()},
        )
    return answer


def rollback(node, number=None):
    """Publish the generation before (or that of a number), and keep to it until the inputs change; `undo` takes that back."""
    if number == "undo":
        seen = passes.undo_rollback(node)
    elif number is None or number.isdigit():
        seen = passes.rollback(node, number and int(number))
    else:
        raise AgentError(f"expected the number of a generation or undo, got {number!r}")
    print(json.dumps(_answer(node, seen), sort_keys=True))
    return 1 if "(monit)" in seen.errors else 0


def leave(node):
    """Let the agent finish the heals that it began, begin no other, and end; returns when none runs."""
    mark = node.in_run("quit")
    files.write(mark, "")
    try:
        with node.lock(node.in_run("agent.lock"), wait=1800, why="quit"):
            return 0
    finally:
        files.remove(mark)


def probe(node, name, check):
    """Run one check that is a program or looks into the jail: exit code 0, 1 or 75 (cannot be asked) and one line why."""
    code, words = probes.run(node, state.Env(node, name), check)
    if words:
        print(words)
    return code


def recheck(node, name):
    """The fleet's answer to an `event`: look at the env again; what follows is for its state and policy to decide."""
    with node.pass_lock():
        env = state.Env(node, name)
        if env.new:
            raise AgentError(f"no env {name} is watched on this node")
        if env.age("recheck") < 10:
            return 0
        env["recheck"] = node.stamp()
        env.save()
    subprocess.run([node.wake, "monit", "recheck"], check=False, stdin=subprocess.DEVNULL)
    return 0


def status(node, name=None):
    """What is known of every env (or of one), as JSON."""
    found = {}
    silenced = policy.silences(node)
    quarantined = files.read_json(node.in_state("quarantine.json"), {})
    for file_name in sorted(os.listdir(node.in_state("envs"))):
        env = state.Env(node, file_name[: -len(".json")])
        if env.new or (name and env.name != name):
            continue
        found[env.name] = {
            "emulator": env["emulator"],
            "state": env["state"],
            "since": (env["since"] or {}).get("t"),
            "check": env["check"],
            "reason": env["reason"],
            "intent": env["intent"],
            "intent_why": env["intent_why"],
            "attempts": len(env["attempts"]),
            "restarts": env["heals"] or 0,
            "last": env.history()[-5:],
            "next": env["next"] and round(env["next"]["after"]["t"] + env["next"]["seconds"], 3),
            "silence": silenced.get(env.name),
            "quarantined": quarantined.get(env.name, {}).get("reason"),
        }
    print(json.dumps(found, sort_keys=True))
    return 0


def history(node, name):
    """The transitions of one env, JSON lines, oldest first."""
    sys.stdout.write(state.Env(node, name).dir.read("history.jsonl") or "")
    return 0


def silence(node, name, until=None, by="", *reason):
    """Silence an env until a moment (seconds since 1970), or take that back."""
    env = state.Env(node, name)
    if env.new:
        raise AgentError(f"no env {name} is watched on this node")
    try:
        moment = None if until is None else float(until)
    except ValueError:
        raise AgentError(f"until: expected seconds since 1970, got {until!r}") from None
    with node.pass_lock():
        policy.silence(node, name, moment, by, " ".join(reason))
        if moment is None:  # somebody took it in hand: what was given up may be tried again
            env = state.Env(node, name)
            env.reset_attempts()
            env["gave_up"] = False
            env.save()
    subprocess.run([node.wake, "monit", "silence"], check=False, stdin=subprocess.DEVNULL)
    return status(node, name)


def look(node):
    """The cheap look at the kernel that monit runs each cycle."""
    if passes.look(node):
        subprocess.run([node.wake, "monit", "look"], check=False, stdin=subprocess.DEVNULL)
    return 0


def _run(node):
    with contextlib.suppress(OSError):
        os.setsid()  # whoever kills the group of the hook that woke us does not mean us
    return run(node)


def _sync(node, *options):
    words = list(options)
    overlay = {}
    if "--overlay" in words:
        at = words.index("--overlay")
        overlay = files.read_json(words[at + 1])
        del words[at : at + 2]
    new = overlay.pop("", None)  # the node's own configuration, as it would be
    if new:
        node.use({**node.conf, **new["config"]})
    return sync(node, "--json" in words, "--dry-run" in words, overlay)


# command: (what it does, names of its arguments; those from the bar on may be left out)
COMMANDS = {
    "run": (_run, ""),
    "sync": (_sync, "| --json --dry-run --overlay FILE"),
    "look": (look, ""),
    "probe": (probe, "ENV CHECK"),
    "recheck": (recheck, "ENV"),
    "status": (status, "| ENV"),
    "history": (history, "ENV"),
    "silence": (silence, "ENV UNTIL WHO | REASON…"),
    "unsilence": (silence, "ENV"),
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
            f"  wake {name} {told.replace('| ', '[')}{']' * ('|' in told)}"
            for name, (_, told) in COMMANDS.items()
        )
        print(f"expected one of\n{usage}\ngot {' '.join(argv[1:]) or 'nothing'}", file=sys.stderr)
        return 2
    try:
        for name, value in zip([*needed, *more], args):
            if name in ("ENV", "CHECK") and not NAME.match(value):
                raise AgentError(f"expected a name of letters, digits, _ and -, got {value!r}")
        return function(Node(config), *args)
    except AgentError as err:
        print(f"cbsd_monit: {err}", file=sys.stderr)
        return UNASKED if command == "probe" else 1
