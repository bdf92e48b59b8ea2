"""
What an operator types on the master: the state of the fleet, silences, rolling restarts.

Each function asks the minions by one targeted command, in parallel, and lists those that do not
answer.

:depends: cbsd_monit_answers, and a master; on a node use the execution modules ``cbsd_monit`` and
    ``cbsd``; ``cbsd_monit.notify`` is in ``cbsd_monit_notify.py``
"""

import fnmatch
import sys
import time

import salt.client
import salt.key
import salt.utils.minions
import salt.utils.user
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "cbsd_monit"

COLUMNS = ["node", "env", "state", "age", "since", "check", "reason", "restarts", "next"]
NODE = "(node)"  # the row of a node's own checks
TROUBLE = ("warning", "failing", "healing", "backoff", "gave_up", "quarantined", "unknown")
NOT_RESTARTED = ("stopped", "silenced", "maintenance", "slave", "unwatched")
WELL = ("healthy", "warning")  # a warning is no illness
GIVEN_UP = ("gave_up", "quarantined", "not there")  # nobody waits for these to become healthy


def __virtual__():
    return __virtualname__


# Asking the minions


class _Answers(dict):
    """
    ``{minion: answer}``; ``silent`` lists those without one, ``errors`` why others failed,
    ``moments`` when each arrived.
    """

    def __init__(self):
        super().__init__()
        self.silent, self.errors, self.moments = [], {}, {}


def _ask(tgt, fun, tgt_type="glob", timeout=None, **kwarg):
    found, began, reports = _Answers(), time.monotonic(), 0
    kwarg = {key: value for key, value in kwarg.items() if value is not None}
    # Salt 3008 counts resources among the targets; those are not asked, their nodes are.
    targets = salt.utils.minions.CkMinions(__opts__).check_minions(tgt, tgt_type)["minions"]
    nodes = sorted(_nodes() & set(targets))
    if not nodes:
        return found
    with salt.client.get_local_client(__opts__["conf_file"], mopts=__opts__) as client:
        timeout = int(timeout or __opts__["timeout"])
        job = client.run_job(nodes, fun, tgt_type="list", kwarg=kwarg, timeout=timeout, listen=True)
        expected = set(nodes)
        if not job:
            found.silent = nodes
            return found
        for answer in client.get_iter_returns(
            job["jid"], expected, timeout=timeout, tgt=nodes, tgt_type="list", block=False
        ):
            for minion, item in (answer or {}).items():
                if item.get("failed") or minion not in expected:
                    continue
                if item.get("retcode") or not item.get("success", True):
                    found.errors[minion] = str(item.get("ret"))[:500]
                else:
                    found[minion], found.moments[minion] = item.get("ret"), time.time()
            if time.monotonic() - began > 2 + reports:
                reports += 1
                _progress(f"{len(found) + len(found.errors)} of {len(expected)} nodes answered")
            if answer is None:
                time.sleep(0.01)
    found.silent = sorted(expected - set(found) - set(found.errors))
    return found


def _progress(words):
    """Show progress to whoever waits at a terminal."""
    if sys.stderr.isatty():
        print(words, file=sys.stderr, flush=True)


def _nodes():
    """Return the minions whose keys are accepted."""
    return set(salt.key.get_key(__opts__).list_status("accepted")["minions"])


def _summary(answers, **more):
    """Return ``more``, with the minions that did not answer or failed, if there are any."""
    if answers.silent:
        more["no_answer"] = answers.silent
    if answers.errors:
        more["errors"] = answers.errors
    return more


def _shown(result, columns):
    """Return ``result``; where a terminal shows it, as a table of its ``envs``."""
    if not sys.stdout.isatty() or __opts__.get("output"):
        return result
    rows = [[_cell(key, row) for key in columns] for row in result["envs"]]
    lines = _table([columns, *rows], 60)
    lines += [f"{minion} does not answer" for minion in result.get("no_answer", ())]
    errors = sorted(result.get("errors", {}).items())
    lines += [f"{minion}: {_clean(words)}" for minion, words in errors]
    return {"outputter": "txt", "data": "\n".join(lines)}


def _cell(key, row):
    value = row.get(key)
    if key == "check" and row.get("failing"):
        value = ", ".join(filter(None, [value, *sorted(set(row["failing"]) - {value})]))
    if value is None or value == "":
        return "-"
    if key == "age":
        return f"{value:.0f} s"
    if key == "state" and row.get("last_known"):
        value = f"{value} (was {row['last_known'].get('state')})"
    if key in ("since", "next", "time") and isinstance(value, (int, float)):
        return time.strftime("%m-%d %H:%M:%S", time.localtime(value))
    return _clean(value)[:60]


def _table(rows, widest):
    """Return rows of text as lines with aligned columns, none padded beyond ``widest``."""
    widths = [min(widest, max(map(len, column))) for column in zip(*rows)]
    padded = ([f"{cell:<{width}}" for cell, width in zip(row, widths)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def _clean(value):
    """Return printable text: a minion may answer anything, and a terminal obeys escapes."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def fleet(tgt="*", tgt_type="glob", env=None, group=None, state=None, timeout=None):
    """
    Return the present state of every env of every node, and of the nodes' own checks as ``(node)``.

    ``{"envs": [{"node", "env", "emulator", "state", "age", "since", "check", "reason", "restarts",
    "next", "last_known", "failing", "groups", …}, …], "no_answer": [minion], "errors": {minion:
    why}}``; ``age`` is how many seconds ago this was found to be so, ``since`` and ``next`` (the
    next attempt) are seconds since 1970, ``restarts`` counts all that the env's history knows. A
    terminal gets a table, unless ``--out=json`` or the like asks for data.

    Of a node that does not answer the last answer counts for as long as the node itself would trust
    what it knows; then its envs are ``unknown``, with ``last_known`` beside it. An env without
    checks is ``unwatched``.

    tgt, tgt_type
        Which minions.
    env
        Name or glob; ``(node)`` has to be spelled out.
    group
        A group of the nodes' pillar.
    state
        One state, or several with commas between.
    timeout
        Seconds to wait for an answer.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.fleet
        salt-run cbsd_monit.fleet group=web state=failing,gave_up
    """
    return _shown(_fleet(tgt, tgt_type, env, group, state, timeout), COLUMNS)


def _fleet(tgt, tgt_type, env, group, state, timeout, last=True):
    """Ask for whole reports, which are kept; ``last`` adds what silent nodes said before."""
    for what, value in (("env", env), ("group", group)):
        if value is not None and not isinstance(value, str):
            raise SaltInvocationError(f"{what}: expected a name, got {value!r}")
    states = [s.strip() for s in state.split(",")] if isinstance(state, str) else state
    answers = _ask(tgt, "cbsd_monit_fleet.report", tgt_type, timeout)
    found = __salt__["cbsd_monit_answers.keep"](dict(answers), answers.moments)
    for minion in [minion for minion, rows in found.items() if rows is None]:
        del found[minion]
        answers.errors[minion] = "what it answers is no report of envs"
    if last:
        found.update(__salt__["cbsd_monit_answers.last"]([*answers.silent, *answers.errors]))
    envs = []
    for minion, rows in sorted(found.items()):
        if group is not None and any(row["groups"] is None for row in rows.values()):
            answers.errors[minion] = "it is older than this runner: saltutil.sync_modules"
            continue
        for name, row in sorted(rows.items()):
            if _is_meant(name, row, env, group) and (not states or row["state"] in states):
                envs.append({"node": minion, "env": name, **row})
    return _summary(answers, envs=envs)


def _is_meant(name, row, env, group):
    """Return whether a glob and a group select the row; no glob means the node's own."""
    named = env is None or name == env or name != NODE and fnmatch.fnmatchcase(name, env)
    return named and (group is None or group in row["groups"])


def failing(tgt="*", tgt_type="glob", env=None, group=None, timeout=None):
    """
    Return the envs that need attention:
    warning, failing, healing, backoff, gave_up, quarantined, unknown.

    Parameters and result as of :py:func:`fleet`.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.failing
    """
    return _shown(_fleet(tgt, tgt_type, env, group, TROUBLE, timeout), COLUMNS)


def history(env, tgt="*", tgt_type="glob", limit=50, timeout=None):
    """
    Return what happened to an env, on all nodes it lived on: ``{"envs": [record, …]}``, oldest
    first.

    env
        Its name.
    limit
        At most so many of the newest.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.history lb1
    """
    answers = _ask(tgt, "cbsd_monit.history", tgt_type, timeout, env=env)
    # An env that moved took its history along: the same record may come from two nodes.
    records = {r["id"]: r for minion in sorted(answers) for r in answers[minion]}
    newest = sorted(records.values(), key=lambda r: r["time"])[-int(limit) :]
    columns = "time node env transition check reason attempt duration".split()
    return _shown(_summary(answers, envs=newest), columns)


def silence(until, reason, env=None, group=None, node="*", who=None, tgt_type="glob", timeout=None):
    """
    Do not heal envs before ``until``; a silence ends by itself.

    until
        Seconds since 1970, or a duration from now: ``30m``, ``2h``, ``1d``.
    reason
        Why, in one line.
    env, group
        Name or glob of envs, group of the nodes' pillar; without them all envs of ``node``, which
        then has to be given.
    node
        Which minions.
    who
        Who asks for it; default: whoever runs this.

    Returns ``{"silenced": {node: {env: until}}, "no_answer": [minion], "errors": {minion: why}}``.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.silence 2h 'kernel upgrade' group=web
        salt-run cbsd_monit.silence 1h 'new disks' node='hv3*'
    """
    who = who or salt.utils.user.get_specific_user()
    wanted = {"until": until, "reason": reason, "by": who}
    return _on_envs("silence", "silenced", env, group, node, tgt_type, timeout, **wanted)


def unsilence(env=None, group=None, node="*", tgt_type="glob", timeout=None):
    """
    End silences that :py:func:`silence` gave; parameters as there.

    Returns ``{"unsilenced": {node: [env]}, …}``.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.unsilence group=web
    """
    return _on_envs("unsilence", "unsilenced", env, group, node, tgt_type, timeout)


def retry(env=None, group=None, node="*", tgt_type="glob", timeout=None):
    """
    Have the agents try again what they gave up, without restarting what works meanwhile.

    env, group
        Name or glob of envs, group of the nodes' pillar; without them all envs of ``node``, which
        then has to be given. Only those that are ``gave_up`` are meant.
    node
        Which minions.

    Returns ``{"retried": {node: [env]}, "no_answer": [minion], "errors": {minion: why}}``.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.retry env=lb1
    """
    return _on_envs("retry", "retried", env, group, node, tgt_type, timeout)


def _on_envs(verb, done, env, group, node, tgt_type, timeout, **wanted):
    """Have nodes do ``verb`` to the envs that are meant; return ``{done: {node: envs}, …}``."""
    _meant(env, group, node)
    wanted.update(env=env, group=group)
    answers = _ask(node, f"cbsd_monit_fleet.{verb}", tgt_type, timeout, **wanted)
    return _summary(answers, **{done: {m: envs for m, envs in sorted(answers.items()) if envs}})


def _meant(env, group, node):
    if env == NODE:
        raise SaltInvocationError(f"env: {NODE} stands for a node's own checks; it is no env")
    if env is None and group is None and node == "*":
        raise SaltInvocationError(
            "which: give env, group or node (node='*' env='*' for every env of every node)"
        )


# Restarting one after the other


def rolling_restart(
    group=None,
    env=None,
    tgt="*",
    tgt_type="glob",
    max_parallel=1,
    min_healthy_time=10,
    healthy_deadline=300,
    timeout=None,
):
    """
    Restart the running envs of a group across nodes, a few at a time, while each becomes healthy
    again; here a ``warning`` is as good.

    group, env
        Which: a group of the nodes' pillar, a name or a glob.
    max_parallel
        Envs at a time.
    min_healthy_time
        Seconds that an env has to be healthy before the next is begun.
    healthy_deadline
        Seconds in which it has to get there.

    Returns ``{"restarted": ["node/env", …]}``. Raises ``CommandExecutionError`` that says where it
    stopped and what is left: at the first env that is not healthy before it begins, cannot be
    restarted, or does not become healthy. Envs that are stopped, silenced, in maintenance, slaves
    or unwatched are left alone.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.rolling_restart group=web max_parallel=2
    """
    if group is None and env is None:
        raise SaltInvocationError("which: give group or env")
    _meant(env, group, tgt)
    max_parallel, done = max(1, int(max_parallel)), []
    asked = _fleet(tgt, tgt_type, env, group, None, timeout, False)
    if asked.get("no_answer") or asked.get("errors"):
        raise CommandExecutionError(f"nothing was restarted: {_trouble(asked)}")
    rows = [r for r in asked["envs"] if r["state"] not in NOT_RESTARTED]
    ill = [row for row in rows if row["state"] not in WELL]
    ill = [f"{_place(row)} is {row['state']}: {row.get('reason') or ''}" for row in ill]
    if ill:
        raise CommandExecutionError(f"nothing was restarted: {'; '.join(ill)}")
    while rows:
        wave, rows = rows[:max_parallel], rows[max_parallel:]
        names = ", ".join(map(_place, wave))
        _progress(f"{len(done)} restarted, {len(wave) + len(rows)} to go: {names}")
        patience = float(min_healthy_time), float(healthy_deadline)
        bad = _restart(wave, timeout) or _settle(wave, *patience, timeout)
        done += [_place(r) for r in wave if _place(r) not in bad]
        if bad:
            words = "; ".join(f"{place}: {why}" for place, why in sorted(bad.items()))
            left = ", ".join(map(_place, rows)) or "none"
            raise CommandExecutionError(
                f"stopped at {words}. Restarted: {', '.join(done) or 'none'}."
                f" Left as they are: {left}."
            )
    return {"restarted": done}


def _place(row):
    return f"{row['node']}/{row['env']}"


def _trouble(asked):
    words = [f"{minion} does not answer" for minion in asked.get("no_answer", ())]
    errors = sorted(asked.get("errors", {}).items())
    return "; ".join([*words, *(f"{minion}: {why}" for minion, why in errors)])


def _restart(wave, timeout):
    """Restart all of ``wave`` at once; return ``{place: why not}``."""
    bad = {}
    with salt.client.get_local_client(__opts__["conf_file"], mopts=__opts__) as client:
        more = {"tgt_type": "list", "listen": True, "timeout": 30}
        jobs = [client.run_job([r["node"]], "cbsd.restart", [r["env"]], **more) for r in wave]
        for row, job in zip(wave, jobs):
            found = {}
            if job:
                seconds, tgt = int(timeout or 30), [row["node"]]
                for returned in client.get_iter_returns(
                    job["jid"], job["minions"], timeout=seconds, tgt=tgt, tgt_type="list"
                ):
                    found.update(returned or {})
            answer = found.get(row["node"])
            if not answer or answer.get("failed"):
                bad[_place(row)] = "the node does not answer"
            elif answer.get("retcode") or not answer.get("success", True):
                bad[_place(row)] = str(answer.get("ret"))[:500]
    return bad


def _settle(wave, healthy_time, deadline, timeout):
    """Wait until all were healthy for ``healthy_time`` seconds; return ``{place: why not}``."""
    began = time.monotonic()
    before = {_place(row): (row["state"], row.get("since")) for row in wave}
    healthy, last, anew = {}, {}, set()
    while True:
        nodes = sorted({row["node"] for row in wave})
        asked = _fleet(nodes, "list", None, None, None, timeout, False)
        now = time.monotonic()
        rows = {_place(row): row for row in asked["envs"]}
        for place in before:
            row = rows.get(place)
            last[place] = (
                f"{row['state']} {row.get('check') or ''} {row.get('reason') or ''}".strip()
                if row
                else "not there"
            )
            well = row and row["state"] in WELL
            # An env is `starting` first, so `since` changes; that of another state that is well may
            # have changed before the restart was seen.
            state, since = before[place]
            if row and (not well or (row["state"] == state and row.get("since") != since)):
                anew.add(place)
            if well and (place in anew or now - began > 5):
                healthy.setdefault(place, now)
            else:
                healthy.pop(place, None)
        if len(healthy) == len(before) and all(
            now - moment >= healthy_time for moment in healthy.values()
        ):
            return {}
        given_up = {p: w for p, w in last.items() if w.startswith(GIVEN_UP)}
        if given_up or now - began > deadline:
            late = {
                p: f"not healthy after {now - began:.0f} s: {w}"
                for p, w in last.items()
                if p not in healthy or not given_up
            }
            return given_up or late
        time.sleep(1)
