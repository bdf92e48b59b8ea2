"""
One heal of one env: look, act, look again, verify, record.

The env's lock is held throughout, the pass lock only for moments. What is being done stands in the
env's record (`op`) before it is done; whoever finds an `op` whose lock is free knows that a heal
was killed there, and starts from what is true now.
"""

import os
import subprocess
import time

import bugs
import cbsd
import files
import hooks
import policy
import probes
import proof
import records
import survey
import text
from monit import PROBES, Monit, Outcome
from node import AgentError, Busy
from records import say

PATIENCE = 600  # seconds: what was done to an env is recorded, however loaded the node is


class Abandoned(AgentError):
    """The heal ends without a result: the env is no longer ours to heal."""


class Heal:
    """A heal of ``name`` because ``check`` fails."""

    def __init__(self, node, name, check, reason):
        self.node, self.name, self.check, self.reason = node, name, check, reason

    def run(self):
        """Carry it out; True if the env is healthy afterwards."""
        try:
            with self.node.env_lock(self.name, f"heal: {self.check}") as lock:
                return self._heal(lock)
        except Busy as err:
            say(f"{self.name}: not healed now, {err}")
        except Abandoned as err:
            say(f"{self.name}: heal given up, {err}")
        return False

    def _heal(self, lock):
        began = time.monotonic()
        with self._record() as env:
            if env["intent"] != "running" or env["phase"]:
                raise Abandoned(f"intent {env['intent']}, phase {env['phase']}")
            own = records.env_files(self.node, self.name)
            rules = policy.load(self.node, own.policy)
            ladder, restart = policy.of_check(rules, self.check)
            number = len(env.recent(restart["interval"])) + 1
            step = _step(ladder, self.check, env["rung"] or 0)
            stamp = env.now.stamp()
            env["attempts"] = [*env["attempts"], stamp][-records.ATTEMPTS :]
            env["heals"] = (env["heals"] or 0) + 1
            env["op"] = {"id": os.urandom(4).hex(), "action": step, "step": "begin", **stamp}
            env.go("healing", self.reason, self.check, attempt=number, action=step)
        outcome, words = "healed", ""
        try:
            self._act(step, lock, restart, own)
            if not self._verify(rules):
                outcome = "unproven"
        except Abandoned as err:
            outcome, words = "abandoned", str(err)
        except (AgentError, OSError, subprocess.SubprocessError) as err:
            outcome, words = "failed", str(err)
        except Exception as err:  # noqa: BLE001 - a bug of ours is an attempt that did not help
            outcome, words = "failed", bugs.report(self.node, f"healing {self.name}", err)
        event = {"event": True} if "event" in ladder else {}
        self._end(outcome, words, number, restart, event, began)
        if outcome == "abandoned":
            raise Abandoned(words)
        return outcome in ("healed", "unproven")

    def _record(self):
        return records.changing(self.node, self.name, PATIENCE)

    def _journal(self, step):
        with self._record() as env:
            env["op"] = {**env["op"], "step": step}

    def _look(self):
        """(row, up): what is true now; raises Abandoned if the env must not be touched any more."""
        with self.node.pass_lock(PATIENCE):
            env, row, up, why = survey.one(self.node, self.name)
        if row is None:
            raise Abandoned("the env is gone")
        if env["intent"] == "stopped":
            raise Abandoned("stopped meanwhile by {}: {}".format(*env.why()))
        if up is None:
            raise AgentError(why)
        if row["status"] == str(cbsd.SLAVE):
            raise Abandoned("the env became a slave copy")
        return row, up

    def _act(self, step, lock, restart, own):
        """Carry out one step of the ladder."""
        row, up = self._look()
        if up and self.check == "env":
            raise Abandoned("it runs again")
        if step == "stop":
            self._journal("stop")
            with self._record() as env:
                env.intend("stopped", "policy", f"on_failure: stop ({self.check})")
            cbsd.stop(self.node, row, "heal", lock)
            raise Abandoned("stopped, as its policy says")
        if step not in ("restart", "start"):
            self._journal("command")
            self._command(row, step, lock, restart, own)
            return
        if up and step == "restart":
            self._journal("stop")
            answer = cbsd.stop(self.node, row, "heal", lock)
            row, up = self._look()
            if up:
                raise AgentError(f"it did not stop: {answer.last_words}")
        if up:
            return
        self._journal("start")
        answer = cbsd.start(self.node, row, restart["timeout"], "heal", lock)
        row, up = self._look()
        if not up:
            raise AgentError(f"it did not start: {answer.last_words}")
        with self._record() as env:  # at once: it may help late, and we may be killed
            env["restarted"] = env.now.stamp()

    def _command(self, row, step, lock, restart, own):
        if not text.trusted(own, records.trust(self.node).get(self.name)):
            raise AgentError(
                "its policy's command is not run: neither pillar says so nor is it root's alone"
            )
        if "service_restart" in step:
            argv, where = ["/usr/sbin/service", step["service_restart"], "restart"], "jail"
        else:
            argv, where = step["command"], step.get("in", "host")
        answer = cbsd.command(self.node, row, argv, where, restart["timeout"], lock)
        if answer.code != 0:
            raise AgentError(f"{' '.join(argv)}: {answer.last_words}")

    def _verify(self, rules):
        """
        Wait until every check that runs soon was found good since now; True if ours is one of them.

        Raises AgentError when one is not.
        """
        done = self.node.stamp()
        with self._record() as env:
            # Our own hooks first: taken in later, they would begin another start.
            hooks.take_in_of(self.node, env)
            env["started"], env["warm"] = env.now.stamp(), False
        checks = rules["checks"].values()
        soon = policy.patience(rules) + proof.load(self.node).limit
        intervals = [check.get("interval", 30) for check in checks]
        interval = max([seconds for seconds in intervals if seconds <= soon] or [30])
        timeout = max([check.get("timeout", 5) for check in checks] or [5])
        seconds = policy.patience(rules) + 2 * interval + timeout + 3 * self.node.poll + 5
        until = time.monotonic() + seconds
        monit = Monit(self.node)
        missing = "monit does not answer"
        while time.monotonic() < until:
            self._still_ours()
            found = self._results(monit, rules, soon)
            if found is not None:
                moment = time.time() - self.node.age(done)  # by the clock that monit has now
                bad = [n for n in sorted(found) if not (found[n] and found[n].good_since(moment))]
                if not bad:
                    return self.check in ("env", "depends_on", *self._awaited(found))
                missing = f"{bad[0]}: {found[bad[0]] and found[bad[0]].message or 'no success yet'}"
            time.sleep(0.2)
        raise AgentError(f"not healthy {seconds:.0f} s after it: {missing}")

    def _results(self, monit, rules, soon):
        """
        {service or check: result} of all that has to be good again, None if monit is silent.

        A check that runs more seldom than every ``soon`` seconds is not waited for.
        """

        def counts(check):
            return check in ("env", self.check) or policy.acts(rules, check)

        def awaited(service):
            interval = service.interval(self.node.poll)
            return interval is not None and interval <= soon

        status = monit.status()
        if status is None:
            return None
        services = files.read_json(self.node.in_state("services.json"), {})
        mine = [n for n, (env, check) in services.items() if env == self.name and counts(check)]
        found = {name: status.services.get(name) for name in mine}
        found = {
            name: service for name, service in found.items() if not service or awaited(service)
        }
        if self.node.conf.get("probes") == "agent":
            own = {c: row for c, row in rules["checks"].items() if row.get("type") in PROBES}
            own = {
                c: row for c, row in own.items() if counts(c) and row.get("interval", 30) <= soon
            }
            probes.run_all(self.node, [(self.name, check) for check in own])
            env = records.load(self.node, self.name)
            last = {check: probes.last_of(env, check, row) for check, row in own.items()}
            found.update({c: Outcome(row, last[c]) for c, row in own.items() if last[c]})
        return found

    def _awaited(self, found):
        """The checks that `_results` is about."""
        services = files.read_json(self.node.in_state("services.json"), {})
        return [services[name][1] if name in services else name for name in found]

    def _still_ours(self):
        with self.node.pass_lock(PATIENCE):
            env = survey.current(self.node, self.name)
        if env["intent"] != "running" or env["phase"] == "stopping":
            raise Abandoned("stopped while it was being verified")

    def _end(self, outcome, words, number, restart, event, began):
        with self._record() as env:
            env["op"] = None
            took = round(time.monotonic() - began, 2)
            if outcome in ("healed", "unproven"):
                env["next"], env["rung"], env["warm"], env["recheck"] = None, 0, True, None
                rows = (env["failing"] or {}).items()  # what only alerts was not verified
                left = {c: row for c, row in rows if row["warning"] and c != self.check}
                env["failing"] = left or None
                if outcome == "healed":  # the next pass says in which state that leaves the env
                    env.announce("healed", "", self.check, attempt=number, duration=took)
            elif outcome == "failed":
                wait = round(policy.delay(restart, number), 2)
                env["next"], env["recheck"] = {"after": env.now.stamp(), "seconds": wait}, None
                env["rung"] = (env["rung"] or 0) + 1
                env.go("failing", words, self.check, attempt=number, duration=took, **event)
            else:
                env["next"] = None


def _step(ladder, check, rung):
    """The step of the ladder to take; a dead env is started whatever the ladder says."""
    if check in ("env", "depends_on"):
        return "restart"
    active = [step for step in ladder if step not in policy.PASSIVE] or ["restart"]
    return active[min(rung, len(active) - 1)]
