"""
The fleet: what every node's envs do, silences, rolling restarts, and telling people.

Each function asks the minions by one targeted command, in parallel. Minions that do not answer are listed as such.

:depends: a master; on a node use the execution modules ``cbsd_monit`` and ``cbsd``
:configuration: ``cbsd_monit_notify`` in the master's configuration says who is told of ``gave_up``, ``quarantined`` and ``storm``:
    a list of ``webhook``, ``chat``, ``mail`` and ``runner``, as in ``salt://cbsd_monit/reactor/master.conf.example``
"""

import contextlib
import email.message
import fcntl
import json
import logging
import os
import smtplib
import sys
import time
import urllib.request

import salt.client
import salt.key
import salt.utils.minions
import salt.utils.user
from salt.exceptions import CommandExecutionError, SaltInvocationError

log = logging.getLogger(__name__)

__virtualname__ = "cbsd_monit"

LINES = 50  # in one message; the others are counted
PAUSE = 5  # seconds from one message to the next
REMEMBERED = 1000  # ids of records that were told


def __virtual__():
    return __virtualname__


# Asking the minions


class _Answers(dict):
    """{minion: what it returned}; who said nothing is in ``silent``, who could not do it in ``errors``."""

    def __init__(self):
        super().__init__()
        self.silent, self.errors = [], {}


def _ask(tgt, fun, tgt_type="glob", timeout=None, **kwarg):
    found, began, said = _Answers(), time.monotonic(), 0
    kwarg = {key: value for key, value in kwarg.items() if value is not None}
    # Salt 3008 counts resources among the targets; those are not asked, their nodes are.
    nodes = sorted(
        _nodes()
        & set(salt.utils.minions.CkMinions(__opts__).check_minions(tgt, tgt_type)["minions"])
    )
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
                    found[minion] = item.get("ret")
            if time.monotonic() - began > 2 + said:
                said += 1
                _progress(f"{len(found) + len(found.errors)} of {len(expected)} nodes answered")
            if answer is None:
                time.sleep(0.01)
    found.silent = sorted(expected - set(found) - set(found.errors))
    return found


def _progress(words):
    """Tell who waits at a terminal."""
    if sys.stderr.isatty():
        print(words, file=sys.stderr, flush=True)


def _nodes():
    """The minions whose keys are accepted."""
    return set(salt.key.get_key(__opts__).list_status("accepted")["minions"])


def _summary(answers, **more):
    """``more``, and who did not answer or could not do it, where there is one."""
    if answers.silent:
        more["no_answer"] = answers.silent
    if answers.errors:
        more["errors"] = answers.errors
    return more


def _shown(result, columns):
    """``result``, on a terminal as a table of its ``envs``."""
    if not sys.stdout.isatty() or __opts__.get("output"):
        return result
    cells = [columns] + [[_cell(key, row.get(key)) for key in columns] for row in result["envs"]]
    widths = [min(60, max(len(line[i]) for line in cells)) for i in range(len(columns))]
    lines = [
        "  ".join(f"{text:<{width}}" for text, width in zip(line, widths)).rstrip()
        for line in cells
    ]
    lines += [f"{minion} does not answer" for minion in result.get("no_answer", ())]
    lines += [
        f"{minion}: {_clean(words)}" for minion, words in sorted(result.get("errors", {}).items())
    ]
    return {"outputter": "txt", "data": "\n".join(lines)}


def _cell(key, value):
    if value is None or value == "":
        return "-"
    if key in ("since", "next", "time") and isinstance(value, (int, float)):
        return time.strftime("%m-%d %H:%M:%S", time.localtime(value))
    return _clean(value)[:60]


def _clean(value):
    """Printable text: what a minion says may hold anything, and a terminal obeys escapes."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def fleet(tgt="*", tgt_type="glob", env=None, group=None, state=None, timeout=None):
    """
    Return the present state of every env of every node.

    ``{"envs": [{"node", "env", "emulator", "state", "since", "check", "reason", "restarts", "next"}, …], "no_answer": [minion],
    "errors": {minion: why}}``; ``since`` and ``next`` (the next attempt) in seconds since 1970, ``restarts`` within the interval of the
    env's policy. On a terminal a table, with ``--out=json`` and the like data.

    tgt, tgt_type
        Which minions.
    env
        Name or glob.
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


COLUMNS = ["node", "env", "state", "since", "check", "reason", "restarts", "next"]


def _fleet(tgt, tgt_type, env, group, state, timeout, trouble=None):
    states = [s.strip() for s in state.split(",")] if isinstance(state, str) else state
    answers = _ask(
        tgt,
        "cbsd_monit_fleet.report",
        tgt_type,
        timeout,
        env=env,
        group=group,
        state=states,
        trouble=trouble,
    )
    envs = []
    for minion in sorted(answers):
        for name, row in sorted(answers[minion].items()):
            envs.append({"node": minion, "env": name, "restarts": row.pop("attempts", 0), **row})
    return _summary(answers, envs=envs)


def failing(tgt="*", tgt_type="glob", env=None, group=None, timeout=None):
    """
    Return the envs that need somebody's attention: failing, healing, backoff, gave_up, quarantined, unknown.

    Parameters and result as of :py:func:`fleet`.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.failing
    """
    return _shown(_fleet(tgt, tgt_type, env, group, None, timeout, True), COLUMNS)


def history(env, tgt="*", tgt_type="glob", limit=50, timeout=None):
    """
    Return what happened to an env, on whichever nodes it lived: ``{"envs": [record, …]}``, oldest first.

    env
        Its name.
    limit
        At most so many of the newest.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.history lb1
    """
    answers = _ask(tgt, "cbsd_monit.history", tgt_type, timeout, env=env)
    records = {
        r["id"]: r for minion in sorted(answers) for r in answers[minion]
    }  # an env that moved took its history along
    newest = sorted(records.values(), key=lambda r: r["time"])[-int(limit) :]
    return _shown(
        _summary(answers, envs=newest),
        ["time", "node", "env", "transition", "check", "reason", "attempt", "duration"],
    )


def silence(until, reason, env=None, group=None, node="*", who=None, tgt_type="glob", timeout=None):
    """
    Have envs not healed before ``until``; that expires by itself.

    until
        Seconds since 1970, or a duration from now: ``30m``, ``2h``, ``1d``.
    reason
        Why, in one line.
    env, group
        Name or glob of envs, group of the nodes' pillar; without them all envs of ``node``, which then has to be given.
    node
        Which minions.
    who
        Who says so; default: whoever runs this.

    Returns ``{"silenced": {node: {env: until}}, "no_answer": [minion], "errors": {minion: why}}``.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.silence 2h 'kernel upgrade' group=web
        salt-run cbsd_monit.silence 1h 'new disks' node='hv3*'
    """
    _meant(env, group, node)
    who = who or salt.utils.user.get_specific_user()
    answers = _ask(
        node,
        "cbsd_monit_fleet.silence",
        tgt_type,
        timeout,
        until=until,
        reason=reason,
        by=who,
        env=env,
        group=group,
    )
    return _summary(answers, silenced={m: envs for m, envs in sorted(answers.items()) if envs})


def unsilence(env=None, group=None, node="*", tgt_type="glob", timeout=None):
    """
    Take back what :py:func:`silence` said; parameters as there.

    Returns ``{"unsilenced": {node: [env]}, …}``.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.unsilence group=web
    """
    _meant(env, group, node)
    answers = _ask(node, "cbsd_monit_fleet.unsilence", tgt_type, timeout, env=env, group=group)
    return _summary(answers, unsilenced={m: envs for m, envs in sorted(answers.items()) if envs})


def _meant(env, group, node):
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
    Restart the running envs of a group across nodes, so many at a time, and go on only while each becomes healthy again.

    group, env
        Which: a group of the nodes' pillar, a name or a glob.
    max_parallel
        Envs at a time.
    min_healthy_time
        Seconds that an env has to be healthy before the next is begun.
    healthy_deadline
        Seconds in which it has to get there.

    Returns ``{"restarted": ["node/env", …]}``. Raises ``CommandExecutionError`` that says where it stopped and what is left: at the
    first env that is not healthy before it begins, cannot be restarted, or does not become healthy. Envs that are stopped,
    silenced, in maintenance or slaves are left alone.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.rolling_restart group=web max_parallel=2
    """
    if group is None and env is None:
        raise SaltInvocationError("which: give group or env")
    max_parallel, done = max(1, int(max_parallel)), []
    asked = _fleet(tgt, tgt_type, env, group, None, timeout)
    if asked.get("no_answer") or asked.get("errors"):
        raise CommandExecutionError(f"nothing was restarted: {_trouble(asked)}")
    rows = [
        r
        for r in asked["envs"]
        if r["state"] not in ("stopped", "silenced", "maintenance", "slave")
    ]
    ill = [
        f"{_place(r)} is {r['state']}: {r.get('reason', '')}"
        for r in rows
        if r["state"] != "healthy"
    ]
    if ill:
        raise CommandExecutionError(f"nothing was restarted: {'; '.join(ill)}")
    while rows:
        wave, rows = rows[:max_parallel], rows[max_parallel:]
        _progress(
            f"{len(done)} restarted, {len(wave) + len(rows)} to go: {', '.join(map(_place, wave))}"
        )
        bad = _restart(wave, timeout) or _settle(
            wave, float(min_healthy_time), float(healthy_deadline), timeout
        )
        done += [_place(r) for r in wave if _place(r) not in bad]
        if bad:
            words = "; ".join(f"{place}: {why}" for place, why in sorted(bad.items()))
            raise CommandExecutionError(
                f"stopped at {words}. Restarted: {', '.join(done) or 'none'}. Left as they are: {', '.join(map(_place, rows)) or 'none'}."
            )
    return {"restarted": done}


def _place(row):
    return f"{row['node']}/{row['env']}"


def _trouble(asked):
    words = [f"{minion} does not answer" for minion in asked.get("no_answer", ())]
    return "; ".join(
        words + [f"{minion}: {why}" for minion, why in sorted(asked.get("errors", {}).items())]
    )


def _restart(wave, timeout):
    """Restart all of ``wave`` at once; returns {place: why not}."""
    bad = {}
    with salt.client.get_local_client(__opts__["conf_file"], mopts=__opts__) as client:
        jobs = [
            (
                row,
                client.run_job(
                    [row["node"]],
                    "cbsd.restart",
                    [row["env"]],
                    tgt_type="list",
                    listen=True,
                    timeout=30,
                ),
            )
            for row in wave
        ]
        for row, job in jobs:
            found = {}
            if job:
                for answer in client.get_iter_returns(
                    job["jid"],
                    job["minions"],
                    timeout=int(timeout or 30),
                    tgt=[row["node"]],
                    tgt_type="list",
                ):
                    found.update(answer or {})
            said = found.get(row["node"])
            if not said or said.get("failed"):
                bad[_place(row)] = "the node does not answer"
            elif said.get("retcode") or not said.get("success", True):
                bad[_place(row)] = str(said.get("ret"))[:500]
    return bad


def _settle(wave, healthy_time, deadline, timeout):
    """Wait until all of ``wave`` have been healthy for ``healthy_time`` seconds; returns {place: why not}."""
    began = time.monotonic()
    before = {_place(row): row.get("since") for row in wave}
    healthy, last = {}, {}
    while True:
        asked = _fleet(sorted({row["node"] for row in wave}), "list", None, None, None, timeout)
        now = time.monotonic()
        rows = {_place(row): row for row in asked["envs"]}
        for place in before:
            row = rows.get(place)
            last[place] = (
                f"{row['state']} {row.get('check') or ''} {row.get('reason') or ''}".strip()
                if row
                else "not there"
            )
            # An env without checks is healthy all the time; any other is `starting` first, so its `since` changes.
            anew = row and (row.get("since") != before[place] or now - began > 5)
            if not row or row["state"] != "healthy" or not anew:
                healthy.pop(place, None)
            else:
                healthy.setdefault(place, now)
        if len(healthy) == len(before) and all(
            now - moment >= healthy_time for moment in healthy.values()
        ):
            return {}
        given_up = {
            p: w for p, w in last.items() if w.startswith(("gave_up", "quarantined", "not there"))
        }
        if given_up or now - began > deadline:
            late = {
                p: f"not healthy after {now - began:.0f} s: {w}"
                for p, w in last.items()
                if p not in healthy or not given_up
            }
            return given_up or late
        time.sleep(1)


# Telling people


def notify(wait=0):
    """
    Tell what the reactor has put into the queue, by all of ``cbsd_monit_notify``; one at a time, and until nothing is left.

    wait
        Seconds to go on looking after the last message: what comes meanwhile needs nobody to be started.

    Returns ``{"told": records, "failed": {hook: why}}``; what a hook failed at is tried again with the next message, thrice at most.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.notify
    """
    folder = os.path.join(__opts__["cachedir"], "cbsd_monit")
    os.makedirs(folder, 0o700, exist_ok=True)
    told, failed = 0, {}
    with open(os.path.join(folder, "notify.running"), "a") as running:
        try:
            fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return {"told": 0, "failed": {}}
        until = free = time.monotonic()
        while True:
            now = time.monotonic()
            with open(os.path.join(folder, "notify.started"), "w"):
                pass  # while this is fresh the reactor starts no other
            records = _taken(folder) if now >= free else []
            if records:
                failed = _tell(records)
                told += len(records)
                free = time.monotonic() + PAUSE
                until = free + float(wait)
            elif now >= until and _rests(folder):
                return {"told": told, "failed": failed}
            time.sleep(0.2)


def _rests(folder):
    """True, and the reactor knows that it has to start the next one, if the queue is empty."""
    with open(os.path.join(folder, "notify.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(os.path.join(folder, "notify.jsonl")):
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, "notify.started"))
        return True


def _taken(folder):
    """What waits in the queue and was not told before: a record may arrive twice, its id is the same."""
    queue, seen_path = os.path.join(folder, "notify.jsonl"), os.path.join(folder, "notify.told")
    with open(os.path.join(folder, "notify.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with open(queue, encoding="ascii") as lines:
                records = [json.loads(line) for line in lines if line.endswith("\n")]
            os.unlink(queue)
        except FileNotFoundError:
            return []
    seen = []
    if os.path.exists(seen_path):
        with open(seen_path, encoding="utf-8") as lines:
            seen = lines.read().splitlines()
    known, fresh = set(seen), []
    for record in records:
        key = f"{record['node']} {_clean(record['id'])}"
        if key not in known:
            known.add(key)
            seen.append(key)
            fresh.append(record)
    with open(seen_path, "w", encoding="utf-8") as out:
        out.writelines(f"{key}\n" for key in seen[-REMEMBERED:])
    return fresh


def _tell(records):
    """Tell ``records`` by each hook; returns {hook: why not}."""
    lines = []
    for record in records[:LINES]:
        check = f" ({_clean(record['check'])})" if record["check"] else ""
        lines.append(
            f"{record['node']}/{record['env']} {record['transition']}{check}: {_clean(record['reason'])}"
        )
    if len(records) > LINES:
        lines.append(f"… and {len(records) - LINES} more")
    failed, text = {}, "\n".join(lines)
    for entry in __opts__.get("cbsd_monit_notify") or []:
        for kind, settings in entry.items():
            for attempt in range(3):
                try:
                    HOOKS[kind](settings, text, records[:LINES])
                    failed.pop(kind, None)
                    break
                except Exception as err:  # noqa: BLE001 - whatever it is, the other hooks are still tried
                    failed[kind] = f"{type(err).__name__}: {err}"
                    time.sleep(attempt + 1)
    for kind, why in failed.items():
        log.error("cbsd_monit: %s could not be told: %s", kind, why)
    return failed


def _post(url, body, timeout):
    if not str(url).startswith(("https://", "http://")):
        raise ValueError(f"cbsd_monit_notify: expected an http or https URL, got {url!r}")
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        answer.read()


def _webhook(settings, text, records):
    _post(settings["url"], {"text": text, "records": records}, settings.get("timeout", 10))


def _chat(settings, text, records):
    _post(settings["url"], {"text": text}, settings.get("timeout", 10))


def _mail(settings, text, records):
    message = email.message.EmailMessage()
    message["From"], message["To"] = settings["from"], ", ".join(settings["to"])
    first = records[0]
    more = f" and {len(records) - 1} more" if len(records) > 1 else ""
    message["Subject"] = f"cbsd_monit: {first['node']}/{first['env']} {first['transition']}{more}"
    message.set_content(text)
    with smtplib.SMTP(
        settings.get("host", "127.0.0.1"),
        settings.get("port", 25),
        timeout=settings.get("timeout", 10),
    ) as server:
        server.send_message(message)


def _runner(settings, text, records):
    __salt__[settings["fun"]](text=text, records=records)


HOOKS = {"webhook": _webhook, "chat": _chat, "mail": _mail, "runner": _runner}
