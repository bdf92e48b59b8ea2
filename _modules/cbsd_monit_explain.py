"""
What the pillar means for one env: where each value comes from, how monit is configured, and what
happens when a check fails, in seconds.

The merge that makes the policy (``cbsd_monit_policy``) says where values come from, and
``cbsd_monit.render`` gives the monit lines. Times are computed here:

- monit looks at one network check after the other, sleeps ``poll``, and begins again; a check
  without
  an answer delays the others by its time-out. A ``check program`` runs beside that, and its result
  is looked at in a later cycle.
- the agent begins at once, verifies what it did by all of the env's checks, and waits between
  attempts
  as ``restart`` says.

:depends: cbsd_monit, cbsd_monit_policy
"""

import datetime
import math
import re

from salt.exceptions import SaltInvocationError

# Checks that a program does, run by `wake probe` or the agent.
PROBES = ("exec", "service", "unix", "process", "file", "resource")
UDP = 1.2  # seconds that monit waits for the refusal of a port
PASS = 60  # seconds from one pass that cron begins to the next
LINGER = 90  # the agent waits for what is due within so many seconds, and leaves the rest to cron
STOP = {"jail": 210, "bhyve": 90}  # seconds that a stop may take: CBSD's time-outs and a margin
WORST, MARGIN = 600, 90  # seconds: the most that a cycle is taken for; what is allowed besides
SETTLE = 60  # seconds at most that a first failure waits for the others of a storm
RECHECK = 60  # seconds in which the fleet's answer to `event` counts
PASSIVE = ("alert", "event")
SECRET = "(not shown)"


def explain(spec, node, envs, env, monit_version="5.33.0", lookup=None, status=None):
    """
    Internal: Return what the pillar means for one env of a node, as plain data; all times are
    seconds.

    spec
        The mapping under the pillar key ``cbsd_monit``, as it was written.
    node
        Minion id.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``.
    env
        Name of one of them.
    monit_version
        The node's monit, such as ``5.33.0``; ``None`` where it is not installed yet.
    lookup
        Paths of the node (``libexec``, ``run``, ``state``) that the pillar's ``lookup`` does not
        give.
    status
        The agent's rows of the env and of the node, as :py:func:`cbsd_monit.status` has them: it
        alone knows all the text that monit reads. ``None`` if it did not answer.

    Returns ``{"env", "emulator", "node", "layers", "policy", "limits", "sweep", "worst_cycle",
    "checks"}``: ``layers`` is what was merged, the nearest last; ``policy`` and each check's
    ``settings`` map a key such as ``restart:attempts`` to ``{"value", "from"}``; ``limits`` are
    sentences about what keeps the env from being healed; ``sweep`` is how long monit's cycle may
    become by the pillar, ``worst_cycle`` by all that is published (``None`` without the agent's
    answer). ``checks`` has, by name, ``settings``, ``run_by``, ``monit`` (lines), ``detected``,
    ``recovered`` (both ``{"best", "worst", "worst_sweep"}``), ``bound`` (a good run that is older
    proves nothing; ``None`` without the agent's answer), ``timeline`` (``[{"at": [soonest, latest],
    "usual": [from, to], "what"}]``) and ``notes``. ``env`` among the checks is the env itself.

    Raises ``SaltInvocationError`` when the pillar is not valid, or gives this env no policy on this
    node.
    """
    emulator = {row["name"]: row["emulator"] for row in envs}.get(env)
    if emulator is None:
        raise SaltInvocationError(f"env {env} is not on {node}")
    meant = __salt__["cbsd_monit_policy.for_node"](spec, node, envs, origins=True)
    if env not in meant["policies"]:
        raise SaltInvocationError(
            f"env {env} is on {node}, but the pillar gives it no policy: it has no entry in"
            " cbsd_monit:envs, and no group holds it"
        )
    rows = [row for row in envs if row["name"] == env]
    there = {"monit_version": monit_version, "lookup": lookup}
    rendered = __salt__["cbsd_monit.render"](spec, node, rows, **there)
    facts = _facts(env, {**meant["spec"]["lookup"], **(lookup or {})})
    text = rendered["envs"][env]["monitrc.tpl"]
    text = re.sub(r"%%([A-Z0-9_]+)%%", lambda m: facts.get(m[1], m[0]), text)
    traced = meant["origins"]["envs"][env]
    view = _View(meant, env, emulator, rendered["config"], _services(text))
    checks = {"env": view.alive()}
    for name, settings in traced["checks"].items():
        checks[name] = view.check(name, settings)
    if "raw" in traced:
        checks["raw"] = view.raw(traced["raw"]["from"])
    status = status or {}
    proven = (status.get(env) or {}).get("checks") or {}
    for name, check in checks.items():
        check["bound"] = (proven.get(name) or {}).get("bound")
    known = ("heal", "on_failure", "start_period", "restart", "depends_on", "template")
    policy = _flat({key: traced[key] for key in known if key in traced})
    return {
        "env": env,
        "emulator": emulator,
        "node": node,
        "layers": traced["layers"],
        "policy": policy,
        "limits": view.limits(traced["left_out"]),
        "sweep": view.sweep,
        "worst_cycle": (status.get("(node)") or {}).get("worst_cycle"),
        "checks": checks,
    }


def _facts(env, paths):
    """Return the facts of docs/contract.md, section 7, that do not need the node."""
    given = {key: value for key, value in paths.items() if value}
    paths = {**__salt__["cbsd_monit_schema.lookup"](), **given}
    wake, dead = f"{paths['libexec']}/wake", f"{paths['run']}/dead/{env}"
    return {"ENV": _coded(env), "JNAME": env, "WAKE": wake, "DEAD": dead}


def _coded(env):
    """Return a name for monit, which ignores case."""
    return re.sub("[A-Z]", lambda match: f"={match[0].lower()}", env)


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
    """Return how many seconds a check delays all others, at most; 0 if it runs beside them."""
    kind, timeout = check["type"], math.ceil(check["timeout"])
    if kind in ("running", "system", "filesystem", *PROBES):
        return 0
    return {"ping": timeout * check.get("count", 1), "udp": UDP}.get(kind, timeout)


class _View:
    """One env of a node, and what its times are computed from."""

    def __init__(self, meant, env, emulator, config, services):
        self.meant, self.env, self.emulator = meant, env, emulator
        self.config, self.services = config, services
        self.policy = meant["policies"][env]
        self.poll = meant["monit"]["poll"]
        self.probes = config["probes"]
        everywhere = [policy["checks"] for policy in meant["policies"].values()]
        everywhere.append(meant["checks"])
        serial = [_serial(check) for checks in everywhere for check in checks.values()]
        seconds = sum(serial)
        self.sweep = {
            "poll": self.poll,
            "serial_checks": sum(1 for cost in serial if cost),
            "seconds": _round(seconds),
            "cycle": _round(self.poll + seconds),
        }
        rows = self.policy["checks"].values()
        timeout = max([row["timeout"] for row in rows], default=5)
        patience = max([self.policy["start_period"], *(row["start_period"] for row in rows)])
        # A check that runs more seldom is not waited for.
        soon = patience + 2 * min(WORST, self.poll + seconds) + MARGIN
        intervals = [row["interval"] for row in rows]
        interval = max((every for every in intervals if every <= soon), default=30)
        self.verified = patience + 2 * interval + timeout + 3 * self.poll + 5

        alive = [
            row for _, row in sorted(self.policy["checks"].items()) if row["type"] == "running"
        ]
        # What holds when the env itself does not run.
        self.dead = {**self.policy, **(alive[0] if alive else {})}

    # When it is noticed

    def runs(self, check, count):
        """Return the times until ``count`` runs in a row ended the same way."""
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
            # Its result is looked at in the first cycle after its end.
            looked = (math.floor(run / cycle) + 1) * cycle
            return (count - 1) * (every * cycle + looked - cycle) + looked

        fast, slow = last(poll, 0), every * poll + last(poll, check["timeout"])
        return _times(fast, slow, every * cycle + last(cycle, check["timeout"]))

    def check(self, name, settings):
        """Return the entry of one check."""
        check, carried = _values(settings), self.policy["checks"][name]
        need = check["failure_threshold"]
        failures = need["failures"] if isinstance(need, dict) else need
        ladder = check["on_failure"]
        restart = {**self.policy["restart"], **check.get("restart", {})}
        notes = []
        if check["type"] == "running":
            detected, ladder = self.death(), self.dead["on_failure"]
            restart = {**self.policy["restart"], **self.dead["restart"]}
            what = f"failing: the {self.emulator} does not run (seen as `env`)"
            recovered = _times(0, self.poll, self.sweep["cycle"])
        else:
            detected = self.runs(check, failures)
            recovered = self.runs(check, check["success_threshold"])
            step = _round(max(1, math.ceil(check["interval"] / self.poll)) * self.poll)
            if step != check["interval"] and not (
                check["type"] in PROBES and self.probes == "agent"
            ):
                notes.append(f"interval is rounded up to whole cycles of monit: {step} s")
            if isinstance(need, dict):
                runs = f"{need['failures']} of {need['within']} runs"
            else:
                runs = _many(failures, "run") + " in a row" * (failures > 1)
            what = f"{_illness(ladder)}: {runs} failed"
        run_by = "monit"
        if check["type"] in PROBES:
            run_by = (
                "wake probe, as monit's check program" if self.probes == "monit" else "the agent"
            )
        lines = self.services.get(f"{_coded(self.env)}.{name}", [])
        if not lines and run_by != "the agent":
            notes.append(
                "the env's own template renders no service for it: monit does not look at it"
            )
        if "command" in carried and check["type"] != "exec":
            notes.append(f"asked in the jail by: {' '.join(carried['command'])}")
        if check["type"] in PROBES and check["type"] not in ("exec", "service", "unix"):
            notes.append(
                "a probe that cannot find out (exit code 75) is no failure: the env is `unknown`"
                " meanwhile"
            )
        grace = 0 if check["type"] == "running" else check["start_period"]
        shown = _flat({"type": settings["type"], **settings})
        if "headers" in shown:
            hidden = dict.fromkeys(shown["headers"]["value"], SECRET)
            shown["headers"] = {**shown["headers"], "value": hidden}
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
        """Return the entry of the env itself, which has to run."""
        detected = self.death()
        finder = (
            "the pass that cron begins each minute"
            if self.probes == "agent"
            else "cbsd_monit-look, which compares kernel and intent in each cycle of monit"
        )
        what = f"failing: the {self.emulator} does not run, found by {finder}"
        return {
            "settings": {},
            "run_by": "monit" if self.probes == "monit" else "the agent",
            "monit": self.services.get(f"{_coded(self.env)}.env", []),
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
        """Return the entry of the pillar's own monit text, not shown: it may hold passwords."""
        state = _illness(self.policy["on_failure"])
        return {
            "settings": {"raw": {"value": SECRET, "from": path}},
            "run_by": "monit",
            "monit": [],
            "detected": None,
            "recovered": None,
            "timeline": self.timeline(
                _times(0, 0, 0),
                f"{state}: when its own text says so; times count from there",
                self.policy["start_period"],
                self.policy["on_failure"],
                self.policy["restart"],
            ),
            "notes": [f"its text is in jails-system/{self.env}/monit/monitrc"],
        }

    # What happens then

    def timeline(self, detected, what, grace, ladder, restart, dead=False):
        """Return what happens if nothing helps, as rows ``{"at", "usual", "what"}``."""
        rows = []
        if grace:
            words = f"within {_round(grace)} s of a start, until all checks have succeeded"
            rows.append(_row(None, None, f"{words}: no failure counts"))
        at = [detected["best"], detected["worst_sweep"]]
        usual = [detected["best"], detected["worst"]]
        fleet = ", and to the fleet, on Salt's bus" if "event" in ladder else ""
        rows.append(_row(at, usual, f"{what}; told in syslog and history{fleet}"))
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
            return [*rows, _row(at, usual, f"nothing is done: restart:attempts is 0{off}")]
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
                max(end + wait, now + grace) for end, wait, now in zip(ends[1], (low, high), usual)
            ]
        return rows

    def end(self, restart, first, ends):
        """Return the last rows: what happens without attempts left, and what clears the count."""
        interval = _round(restart["interval"])
        used = f"{_many(restart['attempts'], 'attempt')} within {interval} s did not help"
        clear = f"healthy for {_round(restart['reset_after'])} s: the attempts so far are forgotten"
        clear = _row(None, None, f"{clear} (reset_after)")
        at, usual = ends or (None, None)
        if restart["mode"] == "delay":
            again = "when the oldest attempt is older than that, there is another one, for ever"
            return [_row(at, usual, f"{used}: backoff; {again} (mode delay)"), clear]
        until = f"until somebody starts it or says cbsd_monit.retry {self.env}"
        words = f"{used}: gave_up; monitoring is off {until} (mode fail)"
        rows = [_row(at, usual, words)]
        if ends and usual[1] - first[0][1] >= restart["interval"]:
            words = (
                f"attempts that are verified in vain take {_round(usual[1] - first[0][1])} s"
                f" together, longer than interval ({interval} s): it would never give up; a longer"
                " interval would"
            )
            rows = [_row(None, None, words)]
        elif ends and at[1] - first[1][0] >= restart["interval"]:
            words = (
                "should attempts take their longest, the first no longer counts by then, and"
                " there is another one"
            )
            rows.append(_row(None, None, words))
        return [*rows, clear]

    def action(self, rung, restart, dead):
        """Return what a rung does, and how long that may take before it is verified."""
        verbs = {"jail": "j", "bhyve": "b"}[self.emulator]
        then = f"then verified by all checks, at most {_round(self.verified)} s"
        start = f"cbsd {verbs}start (at most {_round(restart['timeout'])} s)"
        timeout = restart["timeout"]
        if dead or rung == "start":
            return f"{'start' if dead else 'start, if it does not run'}: {start}, {then}", timeout
        stop = STOP[self.emulator]
        if rung == "restart":
            words = f"restart: cbsd {verbs}stop (at most about {stop} s), {start}, {then}"
            return words, stop + timeout
        if rung == "stop":
            return f"stop: cbsd {verbs}stop; it stays `stopped` until somebody starts it", stop
        limit = f"(at most {_round(restart['timeout'])} s), {then}"
        if "service_restart" in rung:
            if self.emulator != "jail":
                return "service_restart: fails at once, no command can be run in a VM", 0
            return f"service {rung['service_restart']} restart, in the jail {limit}", timeout
        return f"command on the node: {' '.join(rung['command'])} {limit}", timeout

    # What keeps it from being healed

    def limits(self, left_out):
        """Return sentences about what keeps the env from being healed."""
        budget, found = self.meant["budget"], []
        if not self.policy["heal"]:
            found.append("heal is false: it is watched and told of, never healed")
        for silence in self.config["silences"]:
            reason = f": {silence['reason']}" if silence["reason"] else ""
            found.append(f"silenced until {_time(silence['until'])} by {silence['by']}{reason}")
        for other in self.policy["depends_on"]:
            if isinstance(other, dict):
                gone = " (this node has no such check: it holds nothing)"
                gone *= other["node"] not in self.meant["checks"]
                own = f"the node's own check {other['node']}"
                found.append(f"depends on {own}: not healed while {own} fails{gone}")
                continue
            again = other in self.policy["restart_with"]
            after = f"; after {other} was restarted by the agent it is restarted, too" * again
            elsewhere = " (it is none of this node's: so it is not waited for)"
            here = "" if other in self.meant["policies"] else elsewhere
            found.append(f"depends on {other}: not healed while {other} is not well{here}{after}")
        users = sorted(n for n, p in self.meant["policies"].items() if self.env in p["depends_on"])
        if users:
            also = [n for n in users if self.env in self.meant["policies"][n]["restart_with"]]
            restarted = f"; {', '.join(also)} restarted after it" if also else ""
            found.append(f"waited for by {', '.join(users)}{restarted}")
        heals, grace = _many(budget["max_concurrent"], "heal"), _round(budget["boot_grace"])
        found.append(f"at most {heals} at a time on this node: others wait")
        found.append(f"boot: CBSD has {grace} s after a boot of the node to start it")
        watched = len(self.meant["policies"])
        many = max(budget["storm_min"], math.floor(budget["storm_threshold"] * watched) + 1)
        share = f"more than {budget['storm_threshold']:.0%} and at least {budget['storm_min']}"
        share = f"storm guard: {share} of those that should run"
        if many > watched:
            found.append(f"{share}, which the {_many(watched, 'env')} here cannot reach")
        else:
            window = f"failing within {_round(budget['storm_window'])} s"
            found.append(
                f"{share} (here {many} of {watched}) {window} stop all healing but the start of"
                " what is dead, until fewer fail"
            )
            if any(check["failure_threshold"] == 1 for check in self.policy["checks"].values()):
                found.append(
                    f"a check with failure_threshold 1 waits up to {SETTLE} s before the first"
                    " attempt: others may follow"
                )
        found.append("a reload of monit, when what is published changes, lets it count runs anew")
        if left_out:
            found.append(f"left out, they look into a jail: {', '.join(left_out)}")
        return found


def _illness(ladder):
    """Return the state of an env that runs while a check with this ladder fails."""
    return "warning" if all(rung == "alert" for rung in ladder) else "failing"


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


def text(found):
    """
    Internal: Return as a text to read what :py:func:`explain` returned.
    """
    units = _units()
    sweep, network = found["sweep"], _many(found["sweep"]["serial_checks"], "network check")
    lines = [f"{found['env']}, a {found['emulator']} on {found['node']}", ""]
    lines += ["Merged, the nearest last:", *(f"  {layer}" for layer in found["layers"]), ""]
    lines += ["Policy", *_table(found["policy"], units), ""]
    lines += ["Besides", *(f"  {limit}" for limit in found["limits"])]
    lines.append(
        f"  monit sleeps {sweep['poll']} s and looks at {network} of this node in turn:"
        f" if none of them gets an answer, a cycle takes {sweep['cycle']} s"
    )
    for name, check in found["checks"].items():
        lines += ["", f"{name} (run by {check['run_by']})", *_table(check["settings"], units)]
        lines += [f"  | {line}" for line in check["monit"]]
        lines += [f"  {note}" for note in check["notes"]]
        if check["detected"]:
            good = f"as good again after {_case(check['recovered'])}"
            lines.append(f"  counts as failed after {_case(check['detected'])}; {good}")
            lines.append(f"  {_proof(check['bound'], found['worst_cycle'])}")
        for row in check["timeline"]:
            usual = f"{row['usual'][0]} - {row['usual'][1]} s" if row["usual"] else ""
            at = row["at"]
            bounds = f" [{at[0]} - {at[1]} s]" if at and at != row["usual"] else ""
            lines.append(f"  {usual:>16}  {row['what']}{bounds}")
    return "\n".join(lines)


def _proof(bound, worst):
    """Return how long a good run of a check proves that it holds."""
    if bound is None:
        return "how old its last good run may be for `healthy` is known after the agent's first run"
    worst = "" if worst is None else f"{_round(worst)} s, "
    return (
        f"healthy only by a good run of the last {_round(bound)} s: interval in whole cycles"
        f" + 2 x the worst cycle ({worst}at most 600 s) + 90 s"
    )


def _case(times):
    usual, sweep = f"{times['best']} - {times['worst']} s", times["worst_sweep"]
    return f"{usual}, {sweep} s if all checks time out" if sweep > times["worst"] else usual


def _table(settings, units):
    """Return key, value and origin of settings as aligned lines."""
    seconds = {key: key.split(":")[-1] in units for key in settings}
    rows = [(k, _shown(row["value"], seconds[k]), row["from"]) for k, row in settings.items()]
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
    fields = (kind["fields"] for kind in tables["checks"].values())
    rows = [tables["check"], tables["sections"]["restart"], *fields]
    return {key for table in rows for key, row in table.items() if row.get("unit") == "s"}


def _shown(value, seconds=False):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict) and "env" in value:
        return f"{value['env']} (restarted after it)"
    if isinstance(value, dict) and set(value) == {"node"}:
        return f"the node's check {value['node']}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return f"{value} s" if seconds else f"{value}"


def _time(moment):
    utc = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    return utc.strftime("%Y-%m-%d %H:%M UTC")
