"""
One heal of one env: look, act, look again, verify, record.

The env's lock is held throughout, the pass lock only for moments.  What is being done stands in the env's record (`op`)
before it is done; whoever finds an `op` whose lock is free knows that a heal was killed there, and starts from what is
true now.
"""

import os
import subprocess
import time

import cbsd
import files
import passes
import policy
import probes
import publish
import state
from monit import PROBES, Monit, Outcome
from node import AgentError, Busy

PATIENCE = 600  # seconds: what was done to an env is recorded, however loaded the node is


class Given(AgentError):
    """The heal ends without a result: the env is no longer ours to heal."""


class Heal:
    """A heal of ``name`` because ``check`` fails."""

    def __init__(self, node, name, check, reason):
        self.node, self.name, self.check, self.reason = node, name, check, reason
        self.lock = self.restarted = None

    def run(self):
        """Carry it out; returns True if the env is healthy afterwards."""
        try:
            with self.node.env_lock(self.name, f"heal: {self.check}") as self.lock:
                return self._run()
        except Busy as err:
            state.say(f"{self.name}: not healed now, {err}")
        except Given as err:
            state.say(f"{self.name}: heal given up, {err}")
        return False

    def _run(self):
        began = time.monotonic()
        with self._record() as env:
            if env["intent"] != "running" or env["phase"]:
                raise Given(f"intent {env['intent']}, phase {env['phase']}")
            said = policy.of(self.node, env)
            self.trusted = publish.trusted(self.node, env)
            ladder, self.restart = policy.of_check(said, self.check)
            self.event = {"event": True} if "event" in ladder else {}
            number = (
                len([a for a in env["attempts"] if self.node.age(a) < self.restart["interval"]]) + 1
            )
            rung = self._rung(env, ladder)
            env["attempts"] = [*env["attempts"], self.node.stamp()][-64:]
            env["heals"] = (env["heals"] or 0) + 1
            env["op"] = {
                "id": os.urandom(4).hex(),
                "action": rung,
                "step": "begin",
                **self.node.stamp(),
            }
            env.go("healing", self.reason, self.check, attempt=number, action=rung)
        try:
            self._act(rung)
            self._verify(said, self.node.stamp())
        except Given as err:
            self._end(began, number, "given", str(err))
            raise
        except (AgentError, OSError, subprocess.SubprocessError) as err:
            self._end(began, number, "failed", str(err))
            return False
        self._end(began, number, "healed", "")
        return True

    def _rung(self, env, ladder):
        """The first rung that acts, from where the last heal left off; a dead env is started whatever the rung says."""
        active = [r for r in ladder if r not in policy.PASSIVE] or ["restart"]
        if self.check in ("env", "depends_on"):
            return "restart"
        return active[min(env["rung"] or 0, len(active) - 1)]

    def _record(self):
        return _Record(self.node, self.name)

    def _step(self, step):
        with self._record() as env:
            env["op"] = {**env["op"], "step": step}

    def _look(self):
        """(row, up): what is true now; raises Given when the env must not be touched any more."""
        with self.node.pass_lock(PATIENCE):
            seen = passes.Pass(self.node)
            seen.look(until=self.name)
            env = seen.envs.get(self.name)
            if env is None or self.name not in seen.rows:
                raise Given("the env is gone")
            if env["intent"] == "stopped":
                why = env["intent_why"] or {}
                raise Given(f"stopped meanwhile by {why.get('cause')}: {why.get('by')}")
            if seen.kernel is None:
                raise AgentError(seen.errors.get("(kernel)", "the kernel does not answer"))
            row = seen.rows[self.name]
            if row["status"] == str(cbsd.SLAVE):
                raise Given("the env became a slave copy")
            return row, self.name in seen.kernel.get(row["emulator"], ())

    def _act(self, rung):
        row, up = self._look()
        if up and self.check == "env":
            raise Given("it runs again")
        if rung in ("restart", "start"):
            if up and rung == "restart":
                self._step("stop")
                answer = cbsd.stop(self.node, row, "heal", self.lock)
                row, up = self._look()
                if up:
                    raise AgentError(f"it did not stop: {answer.last_words}")
            if not up:
                self._step("start")
                answer = cbsd.start(self.node, row, self.restart["timeout"], "heal", self.lock)
                row, up = self._look()
                if not up:
                    raise AgentError(f"it did not start: {answer.last_words}")
                self.restarted = self.node.stamp()
        elif rung == "stop":
            self._step("stop")
            with self._record() as env:
                env.intend("stopped", "policy", f"on_failure: stop ({self.check})")
            cbsd.stop(self.node, row, "heal", self.lock)
            raise Given("stopped, as its policy says")
        else:
            self._step("command")
            self._command(row, rung)

    def _command(self, row, rung):
        if not self.trusted:
            raise AgentError(
                "its policy's command is not run: neither pillar says so nor is it root's alone"
            )
        if "service_restart" in rung:
            argv, where = ["/usr/sbin/service", rung["service_restart"], "restart"], "jail"
        else:
            argv, where = rung["command"], rung.get("in", "host")
        answer = cbsd.command(self.node, row, argv, where, self.restart["timeout"], self.lock)
        if answer.code != 0:
            raise AgentError(f"{' '.join(argv)}: {answer.last_words}")

    def _verify(self, said, done):
        """Wait until every check of the env was found good after the stamp ``done``; raises AgentError when it is not."""
        with self._record() as env:
            env["started"], env["warm"] = self.node.stamp(), False
        checks = said["checks"].values()
        interval = max([c.get("interval", 30) for c in checks] or [30])
        timeout = max([c.get("timeout", 5) for c in checks] or [5])
        seconds = policy.patience(said) + 2 * interval + timeout + 3 * self.node.poll + 5
        until = time.monotonic() + seconds
        monit = Monit(self.node)
        missing = "monit does not answer"
        while time.monotonic() < until:
            found = self._results(monit, said)
            if found is not None:
                moment = time.time() - self.node.age(done)  # by the clock that monit has now
                bad = [
                    name
                    for name in sorted(found)
                    if not (found[name] and found[name].good_since(moment))
                ]
                if not bad:
                    return
                missing = f"{bad[0]}: {found[bad[0]] and found[bad[0]].message or 'no success yet'}"
            self._still_ours()
            time.sleep(0.2)
        raise AgentError(f"not healthy {seconds:.0f} s after it: {missing}")

    def _results(self, monit, said):
        """{service or check: how it fares} of all that has to be good again, or None while monit does not answer."""

        def counts(check):
            return check in ("env", self.check) or policy.acts(said, check)

        status = monit.status()
        if status is None:
            return None
        services = files.read_json(self.node.in_state("services.json"), {})
        found = {
            n: status.services.get(n)
            for n, (env, c) in services.items()
            if env == self.name and counts(c)
        }
        if self.node.conf.get("probes") == "agent":
            own = [
                c for c, row in said["checks"].items() if row.get("type") in PROBES and counts(c)
            ]
            probes.run_all(self.node, [(self.name, c) for c in own])
            last = state.Env(self.node, self.name)["probes"] or {}
            found.update({c: Outcome(said["checks"][c], last[c]) for c in own if c in last})
        return found

    def _still_ours(self):
        with self._record() as env:
            if env["intent"] != "running" or env["phase"] == "stopping":
                raise Given("stopped while it was being verified")

    def _end(self, began, number, outcome, words):
        with self._record() as env:
            env["op"] = None
            took = round(time.monotonic() - began, 2)
            if outcome == "healed":
                env["next"], env["rung"], env["warm"], env["recheck"] = None, 0, True, None
                env["restarted"] = self.restarted or env["restarted"]
                env.tell("healed", "", self.check, attempt=number, duration=took)
                env.go("healthy")
            elif outcome == "failed":
                wait = policy.delay(self.restart, number)
                env["next"], env["recheck"] = (
                    {"after": self.node.stamp(), "seconds": round(wait, 2)},
                    None,
                )
                env["rung"] = (env["rung"] or 0) + 1
                env.go("failing", words, self.check, attempt=number, duration=took, **self.event)
            else:
                env["next"] = None


class _Record:
    """The env's record, changed under the pass lock and saved."""

    def __init__(self, node, name):
        self.node, self.name = node, name

    def __enter__(self):
        self.lock = self.node.pass_lock(PATIENCE)
        self.lock.__enter__()
        self.env = state.Env(self.node, self.name)
        return self.env

    def __exit__(self, *exc):
        try:
            if not self.env.new:
                self.env.save()
        finally:
            self.lock.__exit__(None, None, None)
