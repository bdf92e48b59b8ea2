"""
What an operator types on a node: read a pillar, see what it means, and ask or command the agent.

:depends: cbsd_monit_schema, cbsd_monit_pillar, cbsd_monit_policy, cbsd_monit_explain, cbsd;
    ``cbsd_monit.render`` is in ``cbsd_monit_render.py``
:configuration: ``cbsd_monit:lookup`` in pillar or minion configuration says where ``wake`` (in
    ``libexec``) and ``monit`` are.
"""

import json
import re
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError


def validate(spec):
    """
    Return the pillar in its normal form: durations in seconds, ladders as lists, defaults filled
    in.

    spec
        The mapping under the pillar key ``cbsd_monit``.

    Raises ``SaltInvocationError`` that names every error with its path.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.validate '{envs: {lb1: {checks: {http: {type: http}}}}}'
    """
    return __salt__["cbsd_monit_pillar.validate"](spec)


def schema():
    """
    Return the vocabulary as plain data: sections, check types and types of fields.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.schema
    """
    return __salt__["cbsd_monit_schema.schema"]()


def effective(spec, node, envs):
    """
    Return what the pillar means for the envs of a node: ``{name: policy}``, as in ``policy.json``.

    An env gets a policy from an entry of ``envs``, a group that holds it, or the node's own
    ``envs``. The nearer wins: defaults, node, groups in the order of their names, env, check.

    spec
        The mapping under the pillar key ``cbsd_monit``.
    node
        Minion id.
    envs
        Envs that exist on the node: ``[{"name": "lb1", "emulator": "jail"}]``, emulator ``jail`` or
        ``bhyve``.

    Raises ``SaltInvocationError`` when the pillar is not valid.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.effective '{envs: {lb1: {}}}' hv1 '[{name: lb1, emulator: jail}]'
    """
    return __salt__["cbsd_monit_policy.for_node"](spec, node, envs)["policies"]


# --- The node's agent


def _lookup(key):
    configured = __salt__["config.get"]("cbsd_monit:lookup", {}) or {}
    return configured.get(key) or __salt__["cbsd_monit_schema.lookup"]()[key]


def _wake(*args, timeout=60):
    """Run the agent; the one place where this module does."""
    argv = [f"{_lookup('libexec')}/wake", *args]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, ignore_retcode=True, timeout=timeout, stdin=""
    )
    return answer, " ".join(argv)


def _failure(command, answer):
    words = answer["stderr"] or answer["stdout"]
    return CommandExecutionError(f"`{command}` exited {answer['retcode']}: {words}")


def _answer(*args, timeout=60):
    answer, command = _wake(*args, timeout=timeout)
    if answer["retcode"]:
        raise _failure(command, answer)
    return answer["stdout"], command


def _json(text, command):
    try:
        return json.loads(text)
    except ValueError as err:
        raise CommandExecutionError(f"`{command}` did not answer in JSON: {text[:200]!r}") from err


def _named(env):
    if not isinstance(env, str) or not re.fullmatch(__salt__["cbsd_monit_schema.env_name"](), env):
        raise SaltInvocationError(f"env: expected the name of an env, got {ascii(env)}")
    return env


def sync():
    """
    Have the agent look at the whole node now and publish what changed; return what it did.

    Returns ``{"changed": [env], "published": N, "reloaded": bool, "quarantined": {env: why},
    "errors": {env: why}, "services": N}``. Waits for the pass (at most 600 s), not for heals.

    Raises ``CommandExecutionError`` when the agent cannot be run or says that it failed.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit.sync
    """
    answer, command = _wake("sync", "--json", timeout=600)
    try:
        return _json(answer["stdout"], command)  # of use also where errors of envs make it exit 1
    except CommandExecutionError:
        if not answer["retcode"]:
            raise
    raise _failure(command, answer)


def status(env=None, text=False):
    """
    Return the present state of every env of the node, or of one, and of the node itself.

    Returns ``{name: row}``: a row of each env, and ``(node)``, which stands for the node's own
    checks. An env without checks is ``unwatched``. What an older agent does not say is missing. A
    row is a mapping:

    emulator, intent, intent_why
        What it is; whether it should run, and who said so.
    state, since, age
        The state, since when (seconds since 1970), and how many seconds ago it was last confirmed
        (``None``: never). A state that nothing confirms any longer becomes ``unknown``.
    last_known
        Beside such an ``unknown``, what it was before: ``{"state", "reason", "since"}``.
    check, reason
        The check that decides its state, and why.
    failing
        All checks that fail: ``{check: {"since", "reason", "warning"}}``; ``warning`` is true where
        ``on_failure`` is only ``alert``, so that it is never healed.
    checks
        What is known of each: ``{check: {"result", "age", "bound"}}``. The result is ``good``,
        ``failed`` (too seldom to count), ``bad``, ``unasked``, ``never`` or ``unwatched``, ``age``
        is that of its last run, and a good one older than ``bound`` proves nothing; both in
        seconds.
    attempts, restarts, next
        The attempts that still count, all restarts that the env's history knows, and when the next
        attempt may begin (seconds since 1970; ``None`` where there is none).
    quarantined
        Why what is wanted is not live, and whose refusal that is.
    silence, last
        The silence that holds, and the last transitions.
    held, worst_cycle, limit
        Of ``(node)`` only: the rollback or text that is kept (``{"generation", "why"}``), how long
        monit's cycle may become, and after how many seconds without a confirmation states become
        ``unknown``.

    env
        Name of an env; all when it is not given.
    text
        Return a table instead, what fails below each row; for one env also how fresh each of its
        checks is, and its last transitions.

    Raises ``CommandExecutionError`` when the agent cannot be run.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit.status lb1
        salt '*' cbsd_monit.status text=True
    """
    found = _json(*_answer("status", *([] if env is None else [_named(env)])))
    return _status_text(found, time.time(), env) if text else found


def _status_text(found, now, env=None):
    """Return the agent's answer as an aligned table; older agents say less."""
    rows = [["env", "state", "since", "age", "restarts", "next attempt"]]
    for name, row in sorted(found.items()):
        due = row.get("next") if row.get("state") != "gave_up" else None
        rows.append(
            [
                name,
                row.get("state") or "unknown",
                _clock(row.get("since")),
                _span(row.get("age")),
                str(row.get("restarts", "-")),
                "-" if not due else f"in {due - now:.0f} s" if due > now else "now",
            ]
        )
    head, *table = _table(rows)
    lines = [head]
    for line, (_, row) in zip(table, sorted(found.items())):
        lines += [line, *(f"  {_printable(words)}" for words in _told(row, now))]
    row = found.get(env) or {}
    rows = [["check", "result", "age", "bound"]]
    for name, what in sorted((row.get("checks") or {}).items()):
        bound = what.get("bound")
        bound = "-" if bound is None else f"{bound:g} s"
        rows.append([name, what.get("result") or "-", _span(what.get("age")), bound])
    lines += ["", *_table(rows), ""] if rows[1:] else []
    for record in row.get("last") or []:
        words = [record.get(key) for key in ("transition", "check", "reason")]
        lines.append("  ".join([_clock(record.get("time")), *map(_printable, filter(None, words))]))
    return "\n".join(lines)


def _told(row, now):
    """Yield the sentences about a row of :py:func:`status`, nothing twice."""
    before, kept, failing = (row.get(key) or {} for key in ("last_known", "held", "failing"))
    check, reason, refused = (row.get(key) or "" for key in ("check", "reason", "quarantined"))

    def about(name, words):
        return f"{name}{' (warning)' * bool(failing.get(name, {}).get('warning'))}: {words}"

    if before:
        ago = row.get("age")
        ago = now - before["since"] if ago is None and before.get("since") else ago
        why = f": {before['reason']}" if before.get("reason") else ""
        yield f"was {before['state']} {_span(ago)} ago{why}"
    if kept:
        yield f"generation {kept['generation']} is published and kept: {kept['why']}"
    if refused:
        yield f"quarantined: {refused}"
    if reason and reason != refused:
        yield about(check, reason) if check else reason
    for name, what in sorted(failing.items()):
        words = what.get("reason") or "it fails"
        if name != check or words not in reason:
            yield about(name, words)


def _table(rows):
    rows = [[_printable(cell) for cell in row] for row in rows]
    return __salt__["cbsd_monit_explain.table"](rows, 100)


def _printable(words):
    """Return words as one line: they may be a server's, and a terminal obeys escapes."""
    words = "".join(c if c.isprintable() or c.isspace() else "?" for c in str(words))
    return " ".join(words.split())


def _clock(moment):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else "-"


def _span(seconds):
    """Return how long that is, in the unit that leaves at least two of it."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def explain(env, text=False):
    """
    Return what the pillar means for an env of this node: where each value of its checks comes from,
    how monit is configured, how long a good run of a check proves that it holds, and what happens
    when it fails, in seconds.

    env
        Name of an env of this node to which the pillar gives a policy.
    text
        Return a text to read instead of data.

    Returns the data of ``cbsd_monit_explain.explain``. The pillar is the one that the states get:
    as the minion has it now.

    Raises ``CommandExecutionError`` when the pillar is not valid or gives this env no policy, or
    CBSD cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt-call cbsd_monit.explain lb1 text=True
    """
    _named(env)
    # Salt 3008 shows pillar to templates only; the states have theirs from this one.
    source = '{%- from "cbsd_monit/map.jinja" import spec with context %}{{ spec | json }}'
    spec = __salt__["slsutil.renderer"](string=source, default_renderer="jinja|json")
    envs = [
        {"name": name, "emulator": row["emulator"]}
        for name, row in __salt__["cbsd.list"]().items()
        if row["emulator"] in ("jail", "bhyve")
    ]
    try:
        version = _version(spec["lookup"].get("monit") or "monit")
    except CommandExecutionError:
        version = None
    try:
        told = status(env)
    except CommandExecutionError:  # it is not installed yet, or does not know this env
        told = None
    there = {"monit_version": version, "lookup": spec["lookup"], "status": told}
    try:
        found = __salt__["cbsd_monit_explain.explain"](
            spec["pillar"], __opts__["id"], envs, env, **there
        )
    except SaltInvocationError as err:  # the call is right: Salt must not show its usage
        raise CommandExecutionError(str(err)) from err
    return __salt__["cbsd_monit_explain.text"](found) if text else found


def silence(env, until, reason, by="salt"):
    """
    Do not heal ``env`` before ``until``, whatever its checks say; a silence ends by itself.

    env
        Name of an env that is watched on this node.
    until
        Seconds since 1970, or a duration from now: ``30m``, ``2h``, ``1d``.
    reason
        Why, in one line; it is shown wherever the state of the env is.
    by
        Who asks for it.

    Returns the env's status, as :py:func:`status` does. Raises ``SaltInvocationError`` for a bad
    name or time, ``CommandExecutionError`` with the agent's words when it refuses.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.silence lb1 2h 'kernel upgrade' by=ann
    """
    moment = re.fullmatch(r"([0-9]+)([smhd]?)", str(until))
    if not moment:
        what = f"expected seconds since 1970 or a duration such as 30m, got {until!r}"
        raise SaltInvocationError(f"until: {what}")
    number, unit = int(moment.group(1)), moment.group(2)
    if unit:
        number = int(time.time()) + number * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    for name, text in (("reason", reason), ("by", by)):
        if not isinstance(text, str) or not text.isprintable() or not text or text.startswith("-"):
            raise SaltInvocationError(f"{name}: expected one line of text, got {text!r}")
    return _json(*_answer("silence", _named(env), str(number), by, reason))


def unsilence(env):
    """
    End the silence that :py:func:`silence` gave to ``env``; silences of the pillar stay.

    What gave up stays ``gave_up``: :py:func:`retry` ends that.

    env
        Name of an env that is watched on this node.

    Returns the env's status. Raises as :py:func:`silence`.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.unsilence lb1
    """
    return _json(*_answer("unsilence", _named(env)))


def retry(env):
    """
    End ``gave_up`` of ``env`` without a restart of it: monit looks at it again, and attempts count
    anew if it still fails.

    env
        Name of an env that is watched on this node.

    Returns the env's status, as :py:func:`status` does. Raises ``SaltInvocationError`` for a bad
    name, ``CommandExecutionError`` with the agent's words when it refuses.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.retry lb1
    """
    return _json(*_answer("retry", _named(env)))


def history(env):
    """
    Return the transitions of an env on this node and those it came from, oldest first, as a list of
    mappings.

    env
        Name of an env.

    Raises ``CommandExecutionError`` when the agent cannot be run.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit.history lb1
    """
    text, command = _answer("history", _named(env))
    return [_json(line, command) for line in text.splitlines() if line.strip()]


def monit_version():
    """
    Return the version of the node's monit, such as ``5.33.0``.

    Raises ``CommandExecutionError`` when it cannot be run or does not say.

    CLI Example:

    .. code-block:: bash

        salt '*' cbsd_monit.monit_version
    """
    return _version(_lookup("monit"))


def _version(monit):
    argv = [monit, "-V"]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, ignore_retcode=True, timeout=20, stdin=""
    )
    match = re.search(r"version\s+([0-9]+(?:\.[0-9]+)+)", answer["stdout"])
    if answer["retcode"] or not match:
        raise _failure(" ".join(argv), answer)
    return match[1]


def recheck(envs=(), adopt=False):
    """
    Have the agent look at the node again: all that an event can cause.

    The node decides what follows, by the agent's own status, lock and policy: an env of ``envs`` is
    healed only if it fails and its policy says ``on_failure: event``. A second call for the same
    env within 10 s changes nothing.

    envs
        Names of envs, at most 50; those that are not watched here are left out.
    adopt
        Also apply this node's own checks if its pillar names an env that has none yet.

    Returns ``{"rechecked": [env], "adopted": [env]}``. Raises ``SaltInvocationError`` for what
    cannot be a name.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.recheck '[lb1]'
    """
    if isinstance(envs, str) or len(envs) > 50:
        got = ascii(envs)[:60]
        raise SaltInvocationError(f"envs: expected a list of at most 50 names, got {got}")
    names = sorted({_named(env) for env in envs})
    done = [name for name in names if not _wake("recheck", name)[0]["retcode"]]
    if not envs:
        _wake("monit", "recheck")
    adopted = __salt__["cbsd_monit_fleet.adopt"]() if adopt is True else []
    return {"rechecked": done, "adopted": adopted}


def rollback(generation=None, undo=False):
    """
    Have monit include what was published before, until pillar, hooks or operators change what they
    ask.

    generation
        Number of one of the last five generations, which are kept. Default: the one before the
        present.
    undo
        Publish again what pillar, hooks and operators ask for.

    Returns what :py:func:`sync` returns; its ``held`` says which generation is kept and why. Raises
    ``CommandExecutionError`` with the agent's words when there is no such generation, or monit
    refuses it.

    CLI Example:

    .. code-block:: bash

        salt 'hv1*' cbsd_monit.rollback
        salt 'hv1*' cbsd_monit.rollback undo=True
    """
    if generation is not None and (
        not isinstance(generation, int) or isinstance(generation, bool) or generation < 1
    ):
        raise SaltInvocationError(f"generation: expected a number, got {ascii(generation)[:60]}")
    which = ["undo"] if undo else [] if generation is None else [str(generation)]
    return _json(*_answer("rollback", *which, timeout=600))
