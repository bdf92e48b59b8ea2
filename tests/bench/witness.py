"""
A watcher beside the agent: is it proven, at each second, what `wake status` calls healthy?

It asks the simulated kernel, monit's socket, what lies in the envs' directories and what monit
includes; of a check that a probe of ours asks, what the probe's peer saw. What the agent judged
does not count.
"""

import contextlib
import functools
import json
import pathlib
import re
import threading
import time
from collections import namedtuple

# Seconds; docs/contract.md section 12, and monit's own time-out.
MARGIN, WORST, TIMEOUT = 90, 600, 5
# What monit finds is news that is on its way for as long: what `detect_s` measures, on a node that
# is busy with fifty envs at once.
REACTION = 5.0
# States that rounds of monit have to prove: told for longer than the limit without one, they lie.
BY_ROUNDS = ("healthy", "warning", "starting", "backoff", "failing")
_TEST = re.compile(r"(?<!else )\bif\s+(?:failed|succeeded)\b(.*?)\bthen\b", re.I | re.S)
_FACT = re.compile(r"%%([A-Za-z0-9_]+)%%")
_CHECK = re.compile(r"(?mi)^(?=[ \t]*check\s)")
_NAME = re.compile(r"\s*check\s+\w+\s+(\"[^\"]*\"|'[^']*'|\S+)", re.I)
_FILES = "policy.json", "monitrc.tpl"
NODE = "(node)"
# `cbsd jrestart` becomes a wake of the agent, and so does what would only tell or unmonitor.
_EXEC = re.compile(r"\bexec\s+\"[^\"]*\"|(?<=then )(?:alert|unmonitor|stop)\b", re.I)

# What is true at one moment. running: envs that the kernel runs; services: {name: element} or None
# while monit does not answer; live: {env: its part of what monit includes}; worst: seconds of
# monit's worst cycle.
Evidence = namedtuple("Evidence", "time running services live worst")
# What the watcher saw of a service when monit last watched it.
Run = namedtuple("Run", "text status collected")


def _read(path):
    """What a file holds; '' if there is none."""
    return path.read_text() if path.exists() else ""


def blocks(text):
    """{service: its part} of a text for monit."""
    found = ((_NAME.match(part), part) for part in _CHECK.split(text))
    return {match.group(1).strip("\"'"): part for match, part in found if match}


def parts(published):
    """{env: its part} of what monit includes; the head is the part named ''."""
    head, *rest = re.split(r"(?m)^# --- cbsd_monit (.*)\n", published)
    return {"": head, **dict(zip(rest[::2], rest[1::2]))}


def worst_cycle(published, poll):
    """Seconds of a round of monit in which no address answers."""
    total = 0
    for block in blocks(published).values():
        if not re.match(r"\s*check\s+(host|remote)\b", block, re.I):
            continue
        for test in _TEST.findall(block):
            number = dict(re.findall(r"\b(timeout|retry|count)\s+(\d+)", test.lower()))
            pings = re.search(r"\bping[46]?\b", test, re.I)
            times = number.get("count", 3) if pings else number.get("retry", 1)
            total += int(number.get("timeout", TIMEOUT)) * int(times)
    return min(WORST, poll + total)


def _prefix(env):
    """The env's name as its services' names begin."""
    return re.sub("[A-Z]", lambda m: "=" + m.group().lower(), env)


@functools.lru_cache(maxsize=1024)
def wanted(env, template, policy):
    """
    What the two files of an env ask for: (services, checks, pattern of the text that has to live).

    The pattern is the template with any facts and any commands.
    """
    prefix = _prefix(env)
    own = {"ENV": prefix, "JNAME": env}
    named = _FACT.sub(lambda m: own.get(m.group(1).upper(), m.group()), template)
    checks = set(json.loads(policy)["checks"]) if policy else set()
    services = {*blocks(named), *([f"{prefix}.env"] if policy else [])}
    pieces = re.split(r"%%[A-Za-z0-9_]+%%", _EXEC.sub("exec", template.rstrip()))
    return services, checks, re.compile(r"[^\s\"]+".join(map(re.escape, pieces)) + r"\s*")


def _fails(service):
    """True if the last run failed, whether or not that counts yet."""
    times = [element.text or "" for element in service.iter("responsetime")]
    return any(t.startswith("-") for t in times) or service.findtext("program/status", "0") != "0"


class Witness(threading.Thread):
    """
    Samples one node each second until ``close``.

    node, poll
        A SaltNode, and the seconds of one cycle of its monit.
    power
        Whether the node has power: without it there is nobody to ask.
    peers
        {(env, check): file that the peer of a probe touches whenever it is asked, and is good}.

    Afterwards ``healthy`` is how many env-seconds were called healthy, ``lapses`` [[env, begin,
    end, why]] the stretches of them without proof, and ``told`` [(begin, end, {env: (state,
    check)})] all that `wake status` said.
    """

    def __init__(self, node, poll, power=lambda: True, peers=()):
        super().__init__(daemon=True)
        self.node, self.poll, self.power, self.peers = node, poll, power, dict(peers)
        self.system = pathlib.Path(node.sim.workdir) / "jails-system"
        self.done, self.problem = threading.Event(), None
        self.texts, self.runs = {}, {}  # {service: (its text, since when)}; {service: Run}
        self.healthy, self.lapses, self.told = 0.0, [], []
        self.open = {}  # {env: its lapse that goes on}

    def run(self):
        last = time.time()
        while not self.done.wait(max(0.0, last + 1 - time.time())):
            began = time.time()
            try:
                # Before the formula was applied, and while agents are killed, nobody answers.
                with contextlib.suppress(OSError, ValueError):
                    self._sample(began, began - last)
            except Exception as err:  # noqa: BLE001 - told by ``close``
                self.problem = err
                return
            last = began

    def close(self):
        """No further samples; raises what kept it from taking them."""
        self.done.set()
        self.join()
        if self.problem:
            raise self.problem

    def _sample(self, began, seconds):
        powered = self.power()
        before, rows, after = self.evidence(), self.node.status(), self.evidence()
        states = {env: (row["state"], row["check"]) for env, row in rows.items()}
        if not (powered and self.power()):
            self.open.clear()
            return
        self._compare(states, before, after, seconds)
        self.told.append((began, time.time(), states))

    def limit(self):
        """Seconds after which what was known without a round of monit is no more."""
        return 2 * self.evidence().worst + MARGIN

    def lies(self, since, until=float("inf")):
        """Seconds between two moments in which some env was in a state that needs monit's word."""
        wrong, last = 0.0, since
        for began, ended, states in self.told:
            if since < began and ended < until:
                if any(s in BY_ROUNDS and check != "env" for s, check in states.values()):
                    wrong += began - last
                last = began
        return wrong

    def unproven(self):
        """Env-seconds called healthy without proof, beyond the time in which news arrive."""
        return sum(end - begin for _, begin, end, _ in self.lapses if end - begin > REACTION)

    def _compare(self, states, before, after, seconds):
        for env, (state, _) in states.items():
            why = set()
            if state == "healthy" and env != NODE:
                self.healthy += seconds
                why = self.doubts(env, before) & self.doubts(env, after)
            if not why:
                self.open.pop(env, None)
            elif env in self.open:
                self.open[env][2:] = after.time, sorted(why)
            else:
                self.open[env] = [env, before.time, after.time, sorted(why)]
                self.lapses.append(self.open[env])

    def evidence(self):
        """The Evidence of this moment; learns from it."""
        path, services = self.node.state_dir / "published", None
        published, since = path.read_text(), path.stat().st_mtime
        live = parts(published)
        for text in live.values():
            for service, block in blocks(text).items():
                if self.texts.get(service, ("",))[0] != block:
                    self.texts[service] = block, since
        with contextlib.suppress(OSError):
            found = self.node.services(timeout=0.5)
            services = {service.findtext("name"): service for service in found}
        for name, service in (services or {}).items():
            text, since = self.texts.get(name, ("", 0))
            seconds, more = (service.findtext(f"collected_{unit}sec") for unit in ("", "u"))
            collected = int(seconds) + int(more) / 1e6
            if int(service.findtext("monitor")) & 1 and collected > since:
                status, last = int(service.findtext("status")), self.runs.get(name)
                if not status and last and last.text == text and _fails(service):
                    status = last.status  # a reload makes monit count anew, but nothing recovered
                self.runs[name] = Run(text, status, collected)
        worst = worst_cycle(published, self.poll)
        return Evidence(time.time(), set(self.node.running()), services, live, worst)

    def doubts(self, env, evidence):
        """What of ``env`` is not proven by ``evidence``."""
        if env not in evidence.running:
            return {"does not run"}
        limit, found = 2 * evidence.worst + MARGIN, set()
        policy, template = (_read(self.system / env / "monit" / name) for name in _FILES)
        services, checks, text = wanted(env, template, policy)
        if not text.fullmatch(_EXEC.sub("exec", evidence.live.get(env, ""))):
            found.add("its text is not live")
        for check in checks:
            peer = self.peers.get((env, check))
            if peer:
                interval = json.loads(policy)["checks"][check]["interval"]
                asked = peer.stat().st_mtime if peer.exists() else 0
                if evidence.time - asked > interval + limit:
                    found.add(f"{check} was not asked")
            elif f"{_prefix(env)}.{check}" not in services:
                found.add(f"nobody asks {check}")
        return found | {f"{s}: {why}" for s in services if (why := self._doubt(s, evidence, limit))}

    def _doubt(self, service, evidence, limit):
        """Why ``service`` is not proven to be good; '' if it is."""
        run, text = self.runs.get(service), self.texts.get(service, ("",))[0]
        if evidence.services is not None:  # else monit stands still: what it saw before has an age
            element = evidence.services.get(service)
            if element is None:
                return "not live"
            if not int(element.findtext("monitor")):
                return "not watched"
        if run is None or run.text != text:
            return "never ran"
        every = re.search(r"(?mi)^\s*every\s+(\d+)\s+cycles?", text)
        bound = self.poll * int(every.group(1) if every else 1) + limit
        if evidence.time - run.collected > bound:
            return "not looked at"
        return "failed" if run.status else ""
