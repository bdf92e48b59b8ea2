"""
One pass over the node: survey, take in, publish, judge, restrain, write down, switch.

Level, not edges: whatever woke us, the truth is derived anew; lost triggers are harmless.
"""

import contextlib
import functools
import json
import os
from collections import namedtuple

import bugs
import cbsd
import descriptions
import files
import generations
import hooks
import judge
import policy
import probes
import proof
import publish
import records
import reload
import restrain
import spool
import survey
from monit import PROBES, Monit, Outcome
from node import AgentError, Busy
from records import say
from states import LOUD, NODE, UNMONITORED
from text import digest

_FIELDS = "survey envs policies publication due warnings errors unsettled look_again_in"


class Pass(namedtuple("Pass", _FIELDS)):
    """
    What one pass found and did.

    envs {name: Record}; policies {name: policy}; due [restrain.Due]; errors {env, "(monit)",
    "(kernel)" or "(disk)": words}; unsettled: something is still changing; look_again_in: seconds
    or None.
    """

    def running(self):
        """The Records of the envs that the kernel runs."""
        alive = self.survey.kernel or {}
        envs = [env for _, env in sorted(self.envs.items())]
        return [env for env in envs if env.name in alive.get(env["emulator"], ())]


class _Policies(dict):
    """{name: policy}, each read once, from the texts of a Survey."""

    def __init__(self, node, found):
        super().__init__()
        self.node, self.found = node, found

    def __missing__(self, name):
        self[name] = policy.load(self.node, self.found[name].policy)
        return self[name]

    def read(self, names):
        for name in names:
            with contextlib.suppress(Exception):  # whoever judges it will report it
                self[name]  # noqa: B018


def run(node, start_monit=False):
    """One whole pass under the pass lock; returns the Pass."""
    with node.pass_lock(), files.batch() as written:
        seen = survey.take(node)
        envs, changes = hooks.take_in(seen, node.now())
        hooks.write_down(node, seen, changes)
        seen = seen._replace(envs=envs)  # a thousand records need not be kept twice
        settled = [name for name in sorted(envs) if name not in seen.moving]
        policies, monit = _Policies(node, seen.found), Monit(node)
        number = generations.number(node)
        meanwhile = functools.partial(policies.read, settled)
        publication = publish.publish(node, monit, seen, envs, meanwhile=meanwhile)
        if start_monit:
            publication = reload.ensure_monit(node, monit, publication, meanwhile)
        now, before = node.now(), proof.load(node, number)
        outcomes = _outcomes(node, envs, policies, settled)
        proven = proof.take(node, now, before, publication, outcomes, _warm(envs))
        verdicts = _judge(node, now, seen, envs, publication, policies, proven, settled)
        judged = _judged(envs, policies, verdicts, proven)
        storm = files.read_json(node.in_state("storm.json"), {})
        restraint = _restrain(node, judged, storm, now, publication.errors)
        _write_down(node, seen, verdicts, judged.envs, restraint, storm)
        errors, unsettled = publication.errors, bool(seen.moving)
        if proven.round and proven.stalled(now):
            errors.setdefault("(monit)", proven.stalled(now))
        for verdict in verdicts:
            if verdict.checked and policies[verdict.env.name]["trouble"]:
                errors.setdefault(verdict.env.name, policies[verdict.env.name]["trouble"])
        try:
            if publication.status is not None:
                _announce_node(node, proven.checks.get(NODE, {}))
                services = _by_env(publication.services)
                unsettled = _switch(monit, judged.envs, services, publication)
        except OSError as err:
            errors.setdefault("(monit)", str(err))
        try:
            written.flush()
        except OSError as err:
            errors.setdefault("(disk)", str(err))
            say(f"records: {err}", loud=True)
        warnings = publication.warnings + _unlinked(seen, settled, judged.envs)
        if publication.status is not None:
            warnings += _without_node_check(proven, judged.envs, policies)
        more = (warnings, errors, unsettled, restraint.look_again_in)
        result = Pass(seen, judged.envs, policies, publication, restraint.due, *more)
        _remember(node, result, proven)
        _keep_proof(node, result, proven, before)
        for folder in (node.state, node.in_state("envs"), node.in_state("generations")):
            files.tidy(folder)
        for name in settled:
            files.EnvDir(node.sysdir(name)).tidy()
        return result


def _warm(envs):
    """The envs that monit has watched since their start, and should."""
    found = {name for name, env in envs.items() if env["warm"] and env["intent"] == "running"}
    return {name for name in found if envs[name]["state"] not in UNMONITORED}


def _by_env(services):
    """{env: {service: check}} of {service: (env, check)}."""
    found = {}
    for service, (name, check) in services.items():
        found.setdefault(name, {})[service] = check
    return found


def _judge(node, now, seen, envs, publication, policies, proven, settled):
    """[Verdict] on the ``settled`` envs; a bug of ours in judging one leaves all others judged."""
    silences, verdicts = policy.silences(node, now), []
    stalled = proven.stalled(now)
    owners = (publication.services.get(service) for service in publication.renewed)
    renewed = {owner[0] for owner in owners if owner}
    for name in settled:
        env, refused = envs[name], publication.quarantined.get(name)
        try:
            facts = judge.Facts(
                row=seen.rows[name],
                up=seen.up(env),
                results=None if stalled else proven.checks.get(name, {}),
                monit=stalled,
                busy=bool(env["op"]) and env["boot"] == now.b and _busy(node, name),
                silence=silences.get(name),
                quarantined=refused["reason"] if refused else policies[name]["trouble"] or None,
                moved=name in publication.moved,
                kernel_error=seen.errors.get("(kernel)", ""),
                boot_grace=node.budget["boot_grace"],
                limit=proven.limit,
                renewed=name in renewed and not env.fresh,
            )
            verdicts.append(judge.judge(env, policies[name], facts, now))
        except Exception as err:  # noqa: BLE001 - one env's trouble never ends the pass
            env = env.at(now)
            env.go("unknown", bugs.report(node, f"judging {name}", err))
            verdicts.append(judge.Verdict(env, None, False, None, False, False))
    for name in sorted(seen.broken):  # what CBSD says of it cannot be read
        env = records.load(node, name).at(now)
        if not env.new:
            env.go("unknown", seen.errors[name])
            verdicts.append(judge.Verdict(env, None, False, None, False, False))
    return verdicts


def _judged(envs, policies, verdicts, proven):
    return restrain.Judged(
        {**envs, **{v.env.name: v.env for v in verdicts}},
        policies,
        [restrain.Due(v.env.name, *v.due) for v in verdicts if v.due],
        {v.env.name for v in verdicts if v.suspect},
        {v.env.name: v.ran for v in verdicts if v.ran is not None},
        proven.checks.get(NODE, {}),
    )


def _restrain(node, judged, storm, now, errors):
    """The Restraint; after a bug of ours nothing is healed, and what was judged is still kept."""
    try:
        return restrain.restrain(judged, storm, node.budget, node.poll, now)
    except Exception as err:  # noqa: BLE001
        errors["(agent)"] = bugs.report(node, "holding back heals", err)
        say(errors["(agent)"], loud=True)
        return restrain.Restraint([], {}, [], storm, None)


def _write_down(node, seen, verdicts, envs, restraint, storm):
    """Keep what was judged: records, transitions, dead markers, the storm."""
    for verdict in verdicts:
        env = verdict.env
        if verdict.orphan:
            cbsd.end_orphan(node, env.name)
        if env.name in restraint.reasons:
            env["reason"] = restraint.reasons[env.name]
        _mark_dead(node, env, seen.up(env))
        records.save(node, env)
    if restraint.storm != storm:
        with contextlib.suppress(OSError):  # on a full disk it holds all the same
            files.write_json(node.in_state("storm.json"), restraint.storm)
    for transition, reason in restraint.announcements:
        _announce(node, transition, reason)


def _announce(node, transition, reason="", check=None):
    """Tell of the node itself: a storm, its own checks."""
    loud = transition in LOUD
    words = f"{NODE}: {transition}" + (f" ({check})" if check else "")
    say(words + (f": {reason}" if reason else ""), loud=loud)
    spool.append(node, spool.event(node, transition, NODE, reason=reason, check=check))


def _unlinked(seen, settled, envs):
    """Warnings about envs whose stops CBSD cannot announce."""
    words = "CBSD cannot tell of its stops, its hooks are not linked: run the formula again"
    names = [name for name in settled if not seen.linked(name)]
    return [f"{name}: {words}" for name in names if envs[name]["intent"] == "running"]


def _busy(node, name):
    """True while somebody holds the env's lock: the heal that its journal names still goes on."""
    try:
        with node.env_lock(name, "look"):
            return False
    except (Busy, OSError):  # a lock file that we cannot open is not ours to touch either
        return True


def _outcomes(node, envs, policies, settled):
    """{env: {check: (Outcome or None, seconds between two runs)}} of what the agent runs itself."""
    if node.conf.get("probes") != "agent":
        return {}
    found = {}
    for name in settled:
        with contextlib.suppress(Exception):  # whoever judges the env will report it
            for check, row in policies[name]["checks"].items():
                if row.get("type") in PROBES:
                    last = probes.last_of(envs[name], check, row)
                    outcome = Outcome(row, last) if last else None
                    found.setdefault(name, {})[check] = outcome, row.get("interval", 30)
    return found


def _mark_dead(node, env, up):
    """`dead/ENV` exists while it should run and is known not to: its checks cost no time-outs."""
    path = node.dead_marker(env.name)
    dead = up is False and env["intent"] == "running" and env["phase"] is None
    if dead != os.path.exists(path):
        files.touch(path) if dead else files.remove(path)


def _announce_node(node, rows):
    """The node's own checks: announced when they change, never healed."""
    path = node.in_state("node-checks.json")
    before, now = files.read_json(path, {}), {}
    for check, seen in rows.items():
        if seen.live and seen.result in ("good", "failed", "bad"):
            now[check] = seen.reason if seen.result == "bad" else ""
        elif check in before:
            now[check] = before[check]
    for check, reason in {**dict.fromkeys(before, ""), **now}.items():  # some are there no more
        if bool(reason) != bool(before.get(check)):
            _announce(node, "failing" if reason else "healthy", reason, check)
    if now != before:
        files.write_json(path, now)


def _without_node_check(proven, envs, policies):
    """Warnings about envs that depend on a check that this node does not have."""
    own = proven.checks.get(NODE, {})
    return [
        f"{name}: depends_on: this node has no check {check}, which therefore holds nothing"
        for name in sorted(envs.keys() & policies.keys())
        for check in policy.of_node(policies[name])
        if check not in own
    ]


def _switch(monit, envs, services, publication):
    """
    Monitor the services of envs that should be up, unmonitor the others; True if any was asked for.

    Each by name, children after their parent. The node's own are always watched. What monit itself
    unmonitors again and again is asked for in each pass, and no reason for another one.
    """
    status, asked, news = publication.status, {"monitor": [], "unmonitor": []}, False
    for name, own in [(NODE, dict.fromkeys(publication.own, "")), *services.items()]:
        if name not in envs and name != NODE:
            continue
        env = envs.get(name)
        wanted = env is None or env["intent"] == "running" and env["state"] not in UNMONITORED
        for service in sorted(own, key=lambda s: own[s] != "env"):
            known = status.services.get(service)
            if known is not None and not known.pending and bool(known.monitor) != wanted:
                asked["monitor" if wanted else "unmonitor"].append(service)
                news = news or env is not None and not (wanted and env["warm"])
    for action, names in asked.items():
        monit.act(names, action)
    if any(asked.values()):
        monit.hurry(status.version)
    return news


def _remember(node, result, proven):
    """
    Cache this pass's answer for a highstate with unchanged inputs.

    It is gone after a boot, and after a pass with errors.
    """
    path, publication = node.in_run("passed.json"), result.publication
    if result.errors or publication.status is None or publication.missing:
        files.remove(path)
        return
    inputs = {"config": node.conf, "trust": result.survey.trust}
    passed = {
        **node.stamp(),
        **{key: digest(json.dumps(value, sort_keys=True)) for key, value in inputs.items()},
        "published": digest(generations.published(node)),
        "limit": proven.limit,
        "answer": {
            "quarantined": {env: why["reason"] for env, why in publication.quarantined.items()},
            "foreign": publication.foreign,
            "warnings": result.warnings,
            "held": publication.held,
        },
    }
    files.scratch(path + ".new", json.dumps(passed))
    os.replace(path + ".new", path)


def _keep_proof(node, result, proven, before):
    """Keep what was proven, for the next pass and for whoever asks."""
    rows, alive = result.survey.rows, result.survey.kernel or {}
    unwatched = {
        name: {"emulator": row["emulator"], "up": name in alive.get(row["emulator"], ())}
        for name, row in rows.items()
        if name not in result.survey.managed
    }
    number = generations.number(node)
    more = {"unwatched": unwatched, "held": result.publication.held, "generation": number}
    more = {**proven.more, **more}
    try:
        proof.save(node, proven._replace(more=more), before)
        if result.publication.changed:
            descriptions.tidy(node, result.publication.services)
    except OSError as err:
        say(f"the proof of this pass cannot be kept: {err}", loud=True)


def dry(node, overlay):
    """What a pass would change, without changing anything; ``overlay`` is as for `survey.take`."""
    seen = survey.take(node, overlay, dry=True)
    publication = publish.publish(node, Monit(node), seen, seen.envs, overlay, dry=True)
    errors, warnings = publication.errors, publication.warnings
    return Pass(seen, seen.envs, {}, publication, [], warnings, errors, bool(seen.moving), None)


def rollback(node, number=None):
    """
    Publish generation ``number``, by default the one before the present; returns the Pass.

    It is kept until what pillar, hooks or operators ask for changes, or until it is undone. Raises
    AgentError if there is no such generation.
    """
    with node.pass_lock():
        wanted = publish.wanted(node, survey.take(node, dry=True))
        target = generations.older(node) if number is None else number
        there = generations.numbers(node)
        if target not in there:
            which = "before the present one" if target is None else target
            listed = ", ".join(map(str, there)) or "none"
            raise AgentError(f"no generation {which}; there are: {listed}")
        why = {"generation": target, "why": "rolled back by an operator"}
        files.write_json(node.in_state("held.json"), {"digest": wanted, **why, **node.stamp()})
    return run(node)


def undo_rollback(node):
    """Publish what the inputs ask for again; returns the Pass."""
    with node.pass_lock():
        files.remove(node.in_state("held.json"))
    return run(node)
