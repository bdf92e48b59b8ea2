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
import files
import generations
import hooks
import judge
import policy
import publish
import records
import reload
import restrain
import spool
import survey
from monit import PROBES, Monit, Outcome
from node import AgentError, Busy
from records import say
from states import UNMONITORED
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
        meanwhile = functools.partial(policies.read, settled)
        publication = publish.publish(node, monit, seen, envs, meanwhile=meanwhile)
        if start_monit:
            publication = reload.ensure_monit(node, monit, publication, meanwhile)
        now, services = node.now(), _by_env(publication.services)
        verdicts = _judge(node, now, seen, envs, publication, policies, services, settled)
        judged = _judged(envs, policies, verdicts)
        storm = files.read_json(node.in_state("storm.json"), {})
        restraint = _restrain(node, judged, storm, now, publication.errors)
        _write_down(node, seen, verdicts, judged.envs, restraint, storm)
        errors, unsettled = publication.errors, bool(seen.moving)
        for verdict in verdicts:
            if verdict.checked and policies[verdict.env.name]["trouble"]:
                errors.setdefault(verdict.env.name, policies[verdict.env.name]["trouble"])
        try:
            if publication.status is not None:
                _announce_node(node, publication.status)
                unsettled = _switch(monit, judged.envs, services, publication.status)
        except OSError as err:
            errors.setdefault("(monit)", str(err))
        try:
            written.flush()
        except OSError as err:
            errors.setdefault("(disk)", str(err))
            say(f"records: {err}", loud=True)
        warnings = publication.warnings + _unlinked(seen, settled, judged.envs)
        more = (warnings, errors, unsettled, restraint.look_again_in)
        result = Pass(seen, judged.envs, policies, publication, restraint.due, *more)
        _remember(node, result)
        for folder in (node.state, node.in_state("envs"), node.in_state("generations")):
            files.tidy(folder)
        for name in settled:
            files.EnvDir(node.sysdir(name)).tidy()
        return result


def _by_env(services):
    """{env: {service: check}} of {service: (env, check)}."""
    found = {}
    for service, (name, check) in services.items():
        found.setdefault(name, {})[service] = check
    return found


def _judge(node, now, seen, envs, publication, policies, services, settled):
    """[Verdict] on the ``settled`` envs; a bug of ours in judging one leaves all others judged."""
    silences, verdicts = policy.silences(node, now), []
    for name in settled:
        env, refused = envs[name], publication.quarantined.get(name)
        try:
            own = services.get(name, {})
            facts = judge.Facts(
                row=seen.rows[name],
                up=seen.up(env),
                results=_results(node, env, policies[name], own, publication.status),
                busy=bool(env["op"]) and env["boot"] == now.b and _busy(node, name),
                silence=silences.get(name),
                quarantined=refused and refused["reason"],
                missing=publication.missing,
                kernel_error=seen.errors.get("(kernel)", ""),
                boot_grace=node.budget["boot_grace"],
            )
            verdicts.append(judge.judge(env, policies[name], facts, now))
        except Exception as err:  # noqa: BLE001 - one env's trouble never ends the pass
            env = env.at(now)
            env.go("unknown", bugs.report(node, f"judging {name}", err))
            verdicts.append(judge.Verdict(env, None, False, None, False, False))
    return verdicts


def _judged(envs, policies, verdicts):
    return restrain.Judged(
        {**envs, **{v.env.name: v.env for v in verdicts}},
        policies,
        [restrain.Due(v.env.name, *v.due) for v in verdicts if v.due],
        {v.env.name for v in verdicts if v.suspect},
        {v.env.name: v.ran for v in verdicts if v.ran is not None},
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
    for name, transition, words in restraint.announcements:
        envs[name].announce(transition, words)
        records.save(node, envs[name])


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


def _results(node, env, policy_of_env, services, status):
    """[(check, Service, Outcome or None)] of all checks of an env, None while monit is silent."""
    if status is None:
        return None
    found = [(services[name], status.services.get(name)) for name in sorted(services)]
    if node.conf.get("probes") == "agent":
        last = env["probes"] or {}
        for check, row in sorted(policy_of_env["checks"].items()):
            if row.get("type") in PROBES:
                found.append((check, Outcome(row, last[check]) if check in last else None))
    return found


def _mark_dead(node, env, up):
    """`dead/ENV` exists while it should run and is known not to: its checks cost no time-outs."""
    path = node.dead_marker(env.name)
    dead = up is False and env["intent"] == "running" and env["phase"] is None
    if dead != os.path.exists(path):
        files.touch(path) if dead else files.remove(path)


def _announce_node(node, status):
    """The node's own checks (`node-CHECK`): announced when they change, never healed."""
    path = node.in_state("node-checks.json")
    before = files.read_json(path, {})
    now = {}
    for name, service in status.services.items():
        if name.startswith("node-") and "." not in name and service.watched:
            now[name[5:]] = service.reason if service.failing else ""
    for check, reason in now.items():
        if bool(reason) != bool(before.get(check)):
            transition = "failing" if reason else "healthy"
            say(f"node: {transition} ({check}) {reason}", loud=bool(reason))
            spool.append(node, spool.event(node, transition, reason=reason, check=check))
    if now != before:
        files.write_json(path, now)


def _switch(monit, envs, services, status):
    """
    Monitor the services of envs that should be up, unmonitor the others; True if any was asked for.

    Each by name, children after their parent.
    """
    asked = {"monitor": [], "unmonitor": []}
    for name, own in services.items():
        if name not in envs:
            continue
        env = envs[name]
        wanted = env["intent"] == "running" and env["state"] not in UNMONITORED
        for service in sorted(own, key=lambda s: own[s] != "env"):
            known = status.services.get(service)
            if known is not None and not known.pending and bool(known.monitor) != wanted:
                asked["monitor" if wanted else "unmonitor"].append(service)
    for action, names in asked.items():
        monit.act(names, action)
    if any(asked.values()):
        monit.hurry(status.version)
    return any(asked.values())


def _remember(node, result):
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
        "answer": {
            "quarantined": {env: why["reason"] for env, why in publication.quarantined.items()},
            "foreign": publication.foreign,
            "warnings": result.warnings,
            "held": publication.held,
        },
    }
    files.scratch(path + ".new", json.dumps(passed))
    os.replace(path + ".new", path)


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
