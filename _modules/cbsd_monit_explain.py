"""
What the pillar means for one env, said so that it can be checked: where each value comes from, what monit is told, and
what happens, in seconds, when a check fails.

Where a value comes from is the word of the merge that makes the policy (``cbsd_monit_policy``), the monit lines are those of
``cbsd_monit.render``. What is computed here is time, by what monit and the agent do:

- monit looks at one network check after the other, sleeps ``poll``, and begins again; a check that gets no answer holds up
  the others for its time-out. A ``check program`` runs beside that, and its result is looked at in a later cycle.
- the agent begins at once, verifies what it did by all of the env's checks, and backs off as ``restart`` says.

:depends: cbsd_monit, cbsd_monit_policy
"""

import datetime
import math
import re

from salt.exceptions import SaltInvocationError

PROBES = (
    "exec",
    "service",
    "unix",
    "process",
    "file",
    "resource",
)  # a program that `wake probe` or the agent runs
UDP = 1.2  # seconds that monit waits for the refusal of a port
PASS = 60  # seconds from one pass that cron begins to the next
LINGER = 90  # the agent stays for what is due within so many seconds, and leaves the rest to cron
STOP = {
    "jail": 210,
    "bhyve": 90,
}  # seconds that a stop may take: CBSD's usual time-outs and a margin
SETTLE = 60  # seconds at most that a first failure waits for the others of a storm
RECHECK = 60  # seconds in which the fleet's answer to `event` counts
PASSIVE = ("alert", "event")
SECRET = "(not shown)"


def explain(spec, node, envs, env, monit_version="5.33.0", lookup=None):
    """
    Internal: Return what the pillar means for one env of a node, as plain data; all times are seconds.

    spec
        The mapping under the pillar key ``cbsd_monit``, as it was written: what it does not say is a built-in default.
    node
        Minion id.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``.
    env
        Name of one of them.
    monit_version
        The node's monit, such as ``5.33.0``; ``None`` where it is not installed yet.
    lookup
        Paths of the node (``libexec``, ``run``, ``state``), where the pillar's ``lookup`` does not say all.

    Returns ``{"env", "emulator", "node", "layers", "policy", "limits", "sweep", "checks"}``: ``layers`` is what was put over
    each other, the nearest last; ``policy`` and each check's ``settings`` map a key such as ``restart:attempts`` to
    ``{"value", "from"}``; ``limits`` are sentences about what keeps the env from being healed; ``sweep`` is how long monit's
    cycle may become. ``checks`` has, by name, ``settings``, ``run_by``, ``monit`` (lines), ``detected``, ``recovered`` (both
    ``{"best", "worst", "worst_sweep"}``), ``timeline`` (``[{"at": [soonest, latest], "usual": [from, to], "what"}]``) and
    ``notes``. ``env`` among the checks is the env itself.

    Raises ``SaltInvocationError`` when the pillar is not valid, or does not mean this env on this node.
    """
    emulator = {row["name"]: row["emulator"] for row in envs}.get(env)
    if emulator is None:
        raise SaltInvocationError(f"env {env} is not on {node}")
    meant = __salt__["cbsd_monit_policy.for_node"](spec, node, envs, origins=True)
    if env not in meant["policies"]:
        raise SaltInvocationError(
            f"env {env} is on {node}, but the pillar does not mean it: it has no entry in cbsd_monit:envs, and no group "
            "holds it"
        )
    rendered = __salt__["cbsd_monit.render"](
        spec,
        node,
        [row for row in envs if row["name"] == env],
        monit_version=monit_version,
        lookup=lookup,
    )
    facts = _facts(env, {**meant["spec"]["lookup"], **(lookup or {})})
    text = re.sub(
        r"%%([A-Z0-9_]+)%%", lambda m: facts.get(m[1], m[0]), rendered["envs"][env]["monitrc.tpl"]
    )
    told = meant["origins"]["envs"][env]
    view = _View(meant, env, emulator, rendered["config"], _services(text))
    checks = {"env": view.alive()}
    for name, settings in told["checks"].items():
        checks[name] = view.check(name, settings)
    if "raw" in told:
        checks["raw"] = view.raw(told["raw"]["from"])
    known = ("heal", "on_failure", "start_period", "restart", "depends_on", "template")
    policy = _flat({key: told[key] for key in known if key in told})
    return {
        "env": env,
        "emulator": emulator,
        "node": node,
        "layers": told["layers"],
        "policy": policy,
        "limits": view.limits(told["left_out"]),
        "sweep": view.sweep,
        "checks": checks,
    }


def _facts(env, paths):
    """Return the facts of docs/contract.md, section 7, that do not need the node."""
    given = {key: value for key, value in paths.items() if value}
    paths = {**__salt__["cbsd_monit_schema.lookup"](), **given}
    coded = re.sub("[A-Z]", lambda match: f"={match[0].lower()}", env)
    wake, dead = f"{paths['libexec']}/wake", f"{paths['run']}/dead/{env}"
    return {"ENV": coded, "JNAME": env, "WAKE": wake, "DEAD": dead}


def _services(text):
    """Return ``{name of the service: its lines}`` of a monit text."""
    found, lines = {}, []
    for line in text.split("\n"):
        start = re.match(r'\s*check\s+\w+\s+"?([^\s"]+)', line, re.I)
        if start:
            lines = found[start[1]] = []
        if line.strip() and not line.lstrip().startswith("#"):
            lines.append(line)
    return found


def _flat(tree, above=""):
    """Return a tree of ``{"value", "from"}`` as one mapping, keys joined with ``:``."""
    flat = {}
    for key, leaf in tree.items():
        if set(leaf) == {"value", "from"}:
            flat[f"{above}{key}"] = leaf
        else:
            flat.update(_flat(leaf, f"{above}{key}:"))
    return flat


def _values(tree):
    return {
        key: leaf["value"] if set(leaf) == {"value", "from"} else _values(leaf)
        for key, leaf in tree.items()
    }


def _serial(check):
    """Return for how long a check keeps monit from all others, at most; 0 if it runs beside them."""
    kind, timeout = check["type"], math.ceil(check["timeout"])
    if kind in ("running", "system", "filesystem", *PROBES):
        return 0
    return {"ping": timeout * check.get("count", 1), "udp": UDP}.get(kind, timeout)


class _View:
    """One env of a node, and what its times are computed from."""

    def __init__(self, meant, env, emulator, config, services):
        self.meant, self.env, self.emulator, self.config, self.services = (
            meant,
            env,
            emulator,
            config,
            services,
        )
        self.policy = meant["policies"][env]
        self.poll = meant["monit"]["poll"]
        self.probes = config["probes"]
        everywhere = [
            check for policy in meant["policies"].values() for check in policy["checks"].values()
        ]
        serial = [_serial(check) for check in [*everywhere, *meant["checks"].values()]]
        seconds = sum(serial)
        self.sweep = {
            "poll": self.poll,
            "serial_checks": sum(1 for cost in serial if cost),
            "seconds": _round(seconds),
            "cycle": _round(self.poll + seconds),
        }
        rows = self.policy["checks"].values()
        interval = max([row["interval"] for row in rows], default=30)
        timeout = max([row["timeout"] for row in rows], default=5)
        patience = max([self.policy["start_period"], *(row["start_period"] for row in rows)])
        self.verified = patience + 2 * interval + timeout + 3 * self.poll + 5

        alive = [
            row for _, row in sorted(self.policy["checks"].items()) if row["type"] == "running"
        ]
        self.dead = {
            **self.policy,
            **(alive[0] if alive else {}),
        }  # what holds when the env itself does not run

    # When it is noticed

    def runs(self, check, count):
        """Return best, worst and worst case in a full sweep until ``count`` runs in a row ended the same way."""
        poll, cycle = self.poll, self.sweep["cycle"]
        every = max(1, math.ceil(check["interval"] / poll))
        if check["type"] not in PROBES:
            cost, step = _serial(check), every * poll
            return _times((count - 1) * step, count * (step + cost), count * every * cycle)
        if self.probes == "agent":
            step = check["interval"] + (PASS if check["interval"] >= LINGER else 0)
            worst = count * (step + check["timeout"])
            return _times((count - 1) * check["interval"], worst, worst)

        def last(cycle, run):
            looked = (
                math.floor(run / cycle) + 1
            ) * cycle  # its result is looked at in the first cycle after its end
            return (count - 1) * (every * cycle + looked - cycle) + looked

        fast, slow = last(poll, 0), every * poll + last(poll, check["timeout"])
        return _times(fast, slow, every * cycle + last(cycle, check["timeout"]))

    def check(self, name, settings):
        """Return what is said about one check."""
        check, carried = _values(settings), self.policy["checks"][name]
        need = check["failure_threshold"]
        failures = need["failures"] if isinstance(need, dict) else need
        ladder = check["on_failure"]
        restart = {**self.policy["restart"], **check.get("restart", {})}
        notes = []
        if check["type"] == "running":
            detected = self.death()
            ladder, restart = (
                self.dead["on_failure"],
                {**self.policy["restart"], **self.dead["restart"]},
            )
            what = f"failing: the {self.emulator} does not run (seen as `env`)"
            recovered = _times(0, self.poll, self.sweep["cycle"])
        else:
            detected, recovered = (
                self.runs(check, failures),
                self.runs(check, check["success_threshold"]),
            )
            step = _round(max(1, math.ceil(check["interval"] / self.poll)) * self.poll)
            if step != check["interval"] and not (
                check["type"] in PROBES and self.probes == "agent"
            ):
                notes.append(f"interval is rounded up to whole cycles of monit: {step} s")
            of = (
                f"{need['failures']} of {need['within']} runs"
                if isinstance(need, dict)
                else _many(failures, "run")
            )
            what = f"failing: {of}{' in a row' if not isinstance(need, dict) and failures > 1 else ''} failed"
        run_by = "monit"
        if check["type"] in PROBES:
            run_by = (
                "wake probe, as monit's check program" if self.probes == "monit" else "the agent"
            )
        lines = self.services.get(f"{_facts(self.env, {})['ENV']}.{name}", [])
        if not lines and run_by != "the agent":
            notes.append(
                "the env's own template renders no service for it: monit does not look at it"
            )
        if "command" in carried and check["type"] != "exec":
            notes.append(f"asked in the jail by: {' '.join(carried['command'])}")
        if check["type"] in PROBES and check["type"] not in ("exec", "service", "unix"):
            notes.append(
                "a probe that cannot find out (exit code 75) is no failure: the env is `unknown` meanwhile"
            )
        grace = 0 if check["type"] == "running" else check["start_period"]
        shown = _flat({"type": settings["type"], **settings})
        if "headers" in shown:
            shown["headers"] = {
                **shown["headers"],
                "value": dict.fromkeys(shown["headers"]["value"], SECRET),
            }
            lines = [re.sub(r"(http headers) \[[^]]*\]", rf"\1 [{SECRET}]", line) for line in lines]
        return {
            "settings": shown,
            "run_by": run_by,
            "monit": lines,
            "detected": detected,
            "recovered": recovered,
            "timeline": self.timeline(
                detected, what, grace, ladder, restart, dead=check["type"] == "running"
            ),
            "notes": notes,
        }

    def death(self):
        """Return how long the end of the env itself goes unseen."""
        if self.probes == "agent":
            return _times(0, PASS, PASS)
        return _times(0, self.poll, self.sweep["cycle"])

    def alive(self):
        """Return what is said about the env itself: it has to run."""
        detected = self.death()
        what = f"failing: the {self.emulator} does not run" + (
            ", found by the pass that cron begins each minute"
            if self.probes == "agent"
            else ", found by cbsd_monit-look, which compares kernel and intent in each cycle of monit"
        )
        return {
            "settings": {},
            "run_by": "monit" if self.probes == "monit" else "the agent",
            "monit": self.services.get(f"{_facts(self.env, {})['ENV']}.env", []),
            "detected": detected,
            "recovered": _times(0, self.poll, self.sweep["cycle"]),
            "timeline": self.timeline(
                detected,
                what,
                0,
                self.dead["on_failure"],
                {**self.policy["restart"], **self.dead["restart"]},
                dead=True,
            ),
            "notes": ["while it is down monit skips its other checks: they cost no time-outs"],
        }

    def raw(self, path):
        """Return what is said about the pillar's own monit text; it may hold passwords and is not repeated."""
        return {
            "settings": {"raw": {"value": SECRET, "from": path}},
            "run_by": "monit",
            "monit": [],
            "detected": None,
            "recovered": None,
            "timeline": self.timeline(
                _times(0, 0, 0),
                "failing: when its own text says so; times count from there",
                self.policy["start_period"],
                self.policy["on_failure"],
                self.policy["restart"],
            ),
            "notes": [f"its text is in jails-system/{self.env}/monit/monitrc"],
        }

    # What happens then

    def timeline(self, detected, what, grace, ladder, restart, dead=False):
        """Return what happens when a check fails and nothing helps, as rows ``{"at", "usual", "what"}``."""
        rows = []
        if grace:
            rows.append(
                _row(
                    None,
                    None,
                    f"within {_round(grace)} s of a start, until all checks have succeeded: no failure counts",
                )
            )
        at, usual = (
            [detected["best"], detected["worst_sweep"]],
            [detected["best"], detected["worst"]],
        )
        told = ", ".join(
            [
                "told in syslog and history",
                *(["and to the fleet, on Salt's bus"] if "event" in ladder else []),
            ]
        )
        rows.append(_row(at, usual, f"{what}; {told}"))
        if not self.policy["heal"]:
            return [*rows, _row(at, usual, "nothing is done: heal is false")]
        rungs = [rung for rung in ladder if rung not in PASSIVE]
        if not rungs:
            words = "nothing is done: on_failure only tells"
            if "event" in ladder:
                words += f"; if the fleet asks for it within {RECHECK} s, it is restarted"
            return [*rows, _row(at, usual, words)]
        if dead:
            if all(rung == "stop" for rung in rungs):
                return [*rows, _row(at, usual, "nothing is done: on_failure would stop it")]
            rungs = ["start"]
        off = "; monitoring is switched off (`gave_up`)" if restart["mode"] == "fail" else ""
        if restart["attempts"] == 0:
            return [
                *rows,
                _row(at, usual, f"nothing is done: restart:attempts is 0{off}"),
            ]
        first = usual, at
        for number in range(1, restart["attempts"] + 1):
            rung = rungs[min(number, len(rungs)) - 1]
            words, longest = self.action(rung, restart, dead)
            rows.append(_row(at, usual, f"attempt {number}: {words}"))
            if rung == "stop" and not dead:
                return rows
            low, high = _wait(restart, number)
            rest = 0 if dead else self.verified
            ends = [at[0], at[1] + longest + self.verified], [usual[0] + rest, usual[1] + rest]
            if number == restart["attempts"]:
                return rows + self.end(restart, first, ends)
            if number > 8:
                rows.append(_row(None, None, f"and so on, {restart['attempts']} attempts in all"))
                return rows + self.end(restart, None, None)
            at = [ends[0][0] + low, max(ends[0][1] + high, at[1] + longest + grace)]
            usual = [
                max(ends[1][0] + low, usual[0] + grace),
                max(ends[1][1] + high, usual[1] + grace),
            ]
        return rows

    def end(self, restart, first, ends):
        """Return the rows that end a timeline: what happens when attempts are used up, and what clears the count."""
        used = f"{_many(restart['attempts'], 'attempt')} within {_round(restart['interval'])} s did not help"
        clear = _row(
            None,
            None,
            f"healthy for {_round(restart['reset_after'])} s: the attempts so far are forgotten (reset_after)",
        )
        at, usual = ends or (None, None)
        if restart["mode"] == "delay":
            again = "when the oldest attempt is older than that, there is another one, for ever (mode delay)"
            return [_row(at, usual, f"{used}: backoff; {again}"), clear]
        rows = [
            _row(
                at,
                usual,
                f"{used}: gave_up; monitoring is off until somebody starts it (mode fail)",
            )
        ]
        if ends and usual[1] - first[0][1] >= restart["interval"]:
            rows = [
                _row(
                    None,
                    None,
                    f"attempts that are verified in vain take {_round(usual[1] - first[0][1])} s together, longer than "
                    f"interval ({_round(restart['interval'])} s): it would never give up; a longer interval would",
                )
            ]
        elif ends and at[1] - first[1][0] >= restart["interval"]:
            rows.append(
                _row(
                    None,
                    None,
                    "should attempts take their longest, the first no longer counts by then, and there is another one",
                )
            )
        return [*rows, clear]

    def action(self, rung, restart, dead):
        """Return what a rung does, and how long that may take before it is verified."""
        verbs = {"jail": "j", "bhyve": "b"}[self.emulator]
        then = f"then verified by all checks, at most {_round(self.verified)} s"
        start = f"cbsd {verbs}start (at most {_round(restart['timeout'])} s)"
        if dead or rung == "start":
            return f"{'start' if dead else 'start, if it does not run'}: {start}, {then}", restart[
                "timeout"
            ]
        stop = STOP[self.emulator]
        if rung == "restart":
            words = f"restart: cbsd {verbs}stop (at most about {stop} s), {start}, {then}"
            return words, stop + restart["timeout"]
        if rung == "stop":
            return f"stop: cbsd {verbs}stop; it stays `stopped` until somebody starts it", stop
        limit = f"(at most {_round(restart['timeout'])} s), {then}"
        if "service_restart" in rung:
            if self.emulator != "jail":
                return "service_restart: fails at once, no command can be run in a VM", 0
            return f"service {rung['service_restart']} restart, in the jail {limit}", restart[
                "timeout"
            ]
        return f"command on the node: {' '.join(rung['command'])} {limit}", restart["timeout"]

    # What keeps it from being healed

    def limits(self, left_out):
        """Return sentences."""
        budget, found = self.meant["budget"], []
        if not self.policy["heal"]:
            found.append("heal is false: it is watched and told of, never healed")
        for silence in self.config["silences"]:
            reason = f": {silence['reason']}" if silence["reason"] else ""
            found.append(f"silenced until {_time(silence['until'])} by {silence['by']}{reason}")
        for other in self.policy["depends_on"]:
            after = f"; after {other} was restarted by the agent it is restarted, too" * (
                other in self.policy["restart_with"]
            )
            here = (
                ""
                if other in self.meant["policies"]
                else " (it is none of this node's: so it is not waited for)"
            )
            found.append(f"depends on {other}: not healed while {other} is not well{here}{after}")
        users = sorted(n for n, p in self.meant["policies"].items() if self.env in p["depends_on"])
        if users:
            also = [n for n in users if self.env in self.meant["policies"][n]["restart_with"]]
            restarted = f"; {', '.join(also)} restarted after it" if also else ""
            found.append(f"waited for by {', '.join(users)}{restarted}")
        found.append(
            f"at most {_many(budget['max_concurrent'], 'heal')} at a time on this node: others wait"
        )
        found.append(
            f"boot: CBSD has {_round(budget['boot_grace'])} s after a boot of the node to start it"
        )
        watched = len(self.meant["policies"])
        many = max(budget["storm_min"], math.floor(budget["storm_threshold"] * watched) + 1)
        share = f"more than {budget['storm_threshold']:.0%} and at least {budget['storm_min']} of those that should run"
        if many > watched:
            found.append(
                f"storm guard: {share}, which the {_many(watched, 'env')} here cannot reach"
            )
        else:
            found.append(
                f"storm guard: {share} (here {many} of {watched}) failing within {_round(budget['storm_window'])} s stop all "
                "healing but the start of what is dead, until fewer fail"
            )
            if any(check["failure_threshold"] == 1 for check in self.policy["checks"].values()):
                found.append(
                    f"a check with failure_threshold 1 waits up to {SETTLE} s before the first attempt: others may follow"
                )
        found.append("a reload of monit, when what is published changes, lets it count runs anew")
        if left_out:
            found.append(f"left out, they look into a jail: {', '.join(left_out)}")
        return found


def _many(count, noun):
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _wait(restart, attempts):
    """Return the shortest and the longest back-off after so many attempts, in seconds."""
    base = restart["delay"]
    if restart["delay_function"] == "exponential":
        base *= 2 ** (min(attempts, 30) - 1)
    base = min(base, max(restart["max_delay"], restart["delay"]))
    return base * (1 - restart["jitter"]), base * (1 + restart["jitter"])


def _times(best, worst, sweep):
    return {"best": _round(best), "worst": _round(worst), "worst_sweep": _round(max(worst, sweep))}


def _row(at, usual, what):
    return {
        "at": None if at is None else [_round(at[0]), _round(at[1])],
        "usual": None if usual is None else [_round(usual[0]), _round(usual[1])],
        "what": what,
    }


def _round(seconds):
    seconds = round(seconds, 1)
    return int(seconds) if seconds == int(seconds) else seconds


# --- As a person reads it


def text(told):
    """
    Internal: Return what :py:func:`explain` returned as a text.

    told
        Its answer.
    """
    units = _units()
    sweep = told["sweep"]
    lines = [f"{told['env']}, a {told['emulator']} on {told['node']}", ""]
    lines += [
        "Put over each other, the nearest last:",
        *(f"  {layer}" for layer in told["layers"]),
        "",
    ]
    lines += ["Policy", *_table(told["policy"], units), ""]
    lines += ["Besides", *(f"  {limit}" for limit in told["limits"])]
    lines.append(
        f"  monit sleeps {sweep['poll']} s and looks at {_many(sweep['serial_checks'], 'network check')} of this node in turn: "
        f"if none of them gets an answer, a cycle takes {sweep['cycle']} s"
    )
    for name, check in told["checks"].items():
        lines += ["", f"{name} (run by {check['run_by']})", *_table(check["settings"], units)]
        lines += [f"  | {line}" for line in check["monit"]]
        lines += [f"  {note}" for note in check["notes"]]
        if check["detected"]:
            lines.append(
                f"  counts as failed after {_case(check['detected'])}; as good again after {_case(check['recovered'])}"
            )
        for row in check["timeline"]:
            usual = f"{row['usual'][0]} - {row['usual'][1]} s" if row["usual"] else ""
            bounds = (
                f" [{row['at'][0]} - {row['at'][1]} s]"
                if row["at"] and row["at"] != row["usual"]
                else ""
            )
            lines.append(f"  {usual:>16}  {row['what']}{bounds}")
    return "\n".join(lines)


def _case(times):
    full = (
        f", {times['worst_sweep']} s if all checks time out"
        if times["worst_sweep"] > times["worst"]
        else ""
    )
    return f"{times['best']} - {times['worst']} s{full}"


def _table(settings, units):
    """Return key, value and origin of settings as aligned lines."""
    rows = [
        (key, _shown(row["value"], key.split(":")[-1] in units), row["from"])
        for key, row in settings.items()
    ]
    return [f"  {line}" for line in table(rows, 40)]


def table(rows, widest):
    """
    Internal: Return rows of text as lines with aligned columns, none padded beyond ``widest``.

    The runner has the same: Salt loads it without the execution modules.
    """
    widths = [min(widest, max(map(len, column))) for column in zip(*rows)]
    padded = ([f"{cell:<{width}}" for cell, width in zip(row, widths)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def _units():
    """Return the keys whose values are seconds."""
    tables = __salt__["cbsd_monit_schema.schema"]()
    rows = [
        tables["check"],
        tables["sections"]["restart"],
        *(kind["fields"] for kind in tables["checks"].values()),
    ]
    return {key for table in rows for key, row in table.items() if row.get("unit") == "s"}


def _shown(value, seconds=False):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict) and "env" in value:
        return f"{value['env']} (restarted after it)"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return f"{value} s" if seconds else f"{value}"


def _time(moment):
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).strftime(
        "%Y-%m-%d %H:%M UTC"
    )
