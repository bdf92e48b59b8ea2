"""The loop of `wake run`: the one agent passes over the node and heals until nothing is left."""

import contextlib
import os
import subprocess
import threading
import time

import bugs
import files
import heal
import passes
import policy
import probes
import proof
import records
import spool
from node import AgentError, Busy
from records import say

LINGER = 90  # the agent stays for what is due within this many seconds; cron wakes it for the rest
LOG_SIZE = 1 << 20  # bytes of agent.log before a new one is begun


def run(node):
    """Be the one agent until nothing is left to do; returns at once if there is one already."""
    ticket = node.in_run("agent.pid")
    # Without a ticket, on a full disk, each wake starts one of us: then none waits.
    wait = 5 if os.path.isdir(ticket) else 0
    try:
        with node.lock(node.in_run("agent.lock"), wait=wait, why="agent"):
            with contextlib.suppress(OSError):
                os.makedirs(ticket, 0o700, exist_ok=True)
            log = node.in_state("agent.log")
            if os.path.exists(log) and os.stat(log).st_size > LOG_SIZE:
                os.replace(log, log + ".1")  # ours is open already; the next agent begins a new one
            _sign(ticket)
            Agent(node, ticket).loop()
    except Busy:
        pass  # the one that runs sees our trigger


def _sign(ticket):
    """Write our pid on the ticket; without it, on a full disk, we look as if we were starting."""
    with contextlib.suppress(OSError):
        files.write(os.path.join(ticket, "pid"), f"{os.getpid()}\n")


class Agent:
    """One pass after the other, heals beside them in threads."""

    def __init__(self, node, ticket):
        self.node, self.ticket = node, ticket
        self.heals = {}
        self.trigger = node.in_run("trigger")
        self.failures = 0  # passes in a row that failed

    def loop(self):
        while True:
            files.remove(self.trigger)
            try:
                began = time.monotonic()
                result = one_pass(self.node)
                took = time.monotonic() - began
                self.failures = 0
                wait = self._begin(result)
                if wait is not None and took > 0.5:
                    # A node with a thousand envs spends at most a fifth of the time in passes.
                    wait = max(wait, 4 * took)
            except Exception as err:  # noqa: BLE001 - heals go on and the next pass may succeed
                wait = self._failed(err)
            if wait is not None:
                self._wait(wait)
            elif self._leave():
                return

    def _failed(self, err):
        """Report a pass that failed; returns as `_begin` does."""
        words = f"{type(err).__name__}: {err}"
        if not isinstance(err, (AgentError, OSError, subprocess.SubprocessError)):
            words = bugs.report(self.node, "a pass", err)
        say(f"pass failed: {words}", loud=True)
        self.failures += 1
        self._forget_ended()
        return 1 if self.failures < 3 or self.heals else None

    def _forget_ended(self):
        self.heals = {name: thread for name, thread in self.heals.items() if thread.is_alive()}

    def _begin(self, result):
        """Start the heals that are due; returns seconds until the next pass, or None."""
        self._forget_ended()
        if os.path.exists(self.node.in_run("quit")):
            return 0.5 if self.heals else None
        for due in result.due:
            if due.env in self.heals or len(self.heals) >= self.node.budget["max_concurrent"]:
                continue
            thread = threading.Thread(target=heal.Heal(self.node, *due).run, name=due.env)
            self.heals[due.env] = thread
            thread.start()
        return min(self._reasons_to_look(result), default=None)

    def _reasons_to_look(self, result):
        """Yield after how many seconds something may be different."""
        node, now = self.node, self.node.now()
        if self.heals:
            yield 0.5
        if any(due.env not in self.heals for due in result.due):
            yield 1.0
        if result.unsettled:
            yield 0.3
        if result.look_again_in:
            yield result.look_again_in + 0.05
        for wait, _, _ in probes.due(node, result.running(), result.policies, now)[:1]:
            if wait < LINGER:
                yield wait + 0.05
        if records.UNSAVED or not spool.flush(node):
            yield 5.0  # they would be lost with this process
        for name, record in result.envs.items():
            env = record.at(now)
            if env["op"] and name not in self.heals:
                yield 0.5  # a command that outlived its agent
            if env["phase"] in ("stopping", "starting", "restarting", "removing"):
                yield 1.0
            elif env["state"] == "starting":
                if env.begun() < policy.patience(result.policies[name]) + 30:
                    yield 0.5
            elif env["state"] == "backoff" and 0 < env.waits() < LINGER:
                yield env.waits() + 0.05

    def _wait(self, seconds):
        until = time.monotonic() + seconds
        working = [thread for thread in self.heals.values() if thread.is_alive()]
        while True:
            # Heals ask for the pass lock every 0.02 s: without a pause none would get it.
            time.sleep(0.1 if working else 0.05)
            if os.path.exists(self.trigger) or time.monotonic() >= until:
                return
            if not all(thread.is_alive() for thread in working):
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
        _sign(self.ticket)
        return False


def one_pass(node, **how):
    """One pass; a second one after the probes that are due, where the agent runs them itself."""
    try:
        result = passes.run(node, **how)
    except Exception as err:
        with contextlib.suppress(Exception):  # the first one is what has to be told
            _doubt(node, f"{type(err).__name__}: {err}")
        raise
    due = probes.due(node, result.running(), result.policies, node.now())
    jobs = [(env.name, check) for wait, env, check in due if wait < 0.5]
    if jobs:
        probes.run_all(node, jobs)
        result = passes.run(node)
    return result


def _doubt(node, why):
    """Make every env `unknown` if no pass succeeded for too long; ``why`` the last one failed."""
    with node.pass_lock():
        now = node.now()
        words = proof.load(node).doubt(now)
        if not words:
            return
        for name in sorted(records.names(node)):
            env = records.load(node, name).at(now)
            if not env["op"]:
                env.go("unknown", f"{words}: {why}")
                records.save(node, env)


def free_stale_ticket(node):
    """Remove a ticket whose agent was killed before it signed: no later one would start."""
    try:
        with node.lock(node.in_run("agent.lock"), why="sync"):
            ticket = node.in_run("agent.pid")
            if os.path.isdir(ticket) and time.time() - os.stat(ticket).st_mtime > 10:
                import shutil

                shutil.rmtree(ticket)  # with what an agent that was killed while it signed left
    except (Busy, OSError):
        pass
