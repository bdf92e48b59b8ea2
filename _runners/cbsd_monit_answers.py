"""
The last answer of each node, kept on the master for the time in which the node does not answer.

The runner ``cbsd_monit`` uses these. A minion may answer anything: what is not of the shape of
``cbsd_monit_fleet.report`` is no answer, and the rest is bounded and made printable. Below
``<cachedir>/cbsd_monit/answers`` there is one file a node, of at most 1 MiB, for the 2,000 nodes
that answered last.

:depends: a master
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
import time

log = logging.getLogger(__name__)

NODE = "(node)"
NODES = 2000
BYTES = 1 << 20
ROWS = 10000
# What each row has, None where the node did not say it.
SHOWN = "emulator state age since check reason restarts attempts next last_known groups".split()
NUMBERS = ("age", "since", "restarts", "attempts", "next", "limit", "worst_cycle")
TYPES = {
    **dict.fromkeys(("state", "emulator", "check", "reason", "intent", "quarantined"), str),
    **dict.fromkeys(NUMBERS, (int, float)),
    **dict.fromkeys(("failing", "silence", "last_known", "held", "intent_why"), dict),
    "groups": list,
}
KEPT = (*(key for key in SHOWN if key != "next"), "limit")
# Seconds in which what is known of a node becomes too old, whatever it says; the most if it did
# not say.
LEAST, MOST = 90, 1300


def keep(answers, moments):
    """
    Keep what nodes answered, and return it as it may be shown.

    answers
        ``{minion: what cbsd_monit_fleet.report returned}``
    moments
        ``{minion: when that arrived}``, in seconds since 1970.

    Returns ``{minion: {env: row}}``, with ``None`` for what is no such answer. Each row has all of
    ``SHOWN``; its ``age`` counts the time since the answer arrived as well.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit_answers.keep '{hv1: {lb1: {state: stopped}}}' '{hv1: 1798783200}'
    """
    now, found = time.time(), {}
    for minion, answer in answers.items():
        rows = found[minion] = _rows(answer)
        if rows is not None:
            _write(minion, rows, moments[minion])
            for row in rows.values():
                row["age"] = _age(row, max(0, now - moments[minion]))
    _drop_oldest()
    return found


def last(nodes):
    """
    Return the last answers of nodes, as far as they still count: ``{minion: {env: row}}``.

    What is older than the node's own ``limit`` (of its row ``(node)``: 90 s at least, 1300 s at
    most and if it did not say) is ``unknown``, with ``last_known`` beside it.

    nodes
        Minion ids; who has not answered before is left out.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit_answers.last '[hv1]'
    """
    found = {}
    for minion in nodes:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            moment, rows = _read(minion)
            limit = min(max(rows.get(NODE, {}).get("limit") or MOST, LEAST), MOST)
            found[minion] = {name: _aged(row, moment, limit) for name, row in rows.items()}
    return found


# The shape of an answer


def _rows(answer):
    """Return the rows of an answer in the shape that is shown, None if it is no answer."""
    if not isinstance(answer, dict):
        return None
    rows = {}
    for name, row in list(answer.items())[:ROWS]:
        named = isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100
        if not named or not isinstance(row, dict) or not isinstance(row.get("state"), str):
            return None
        rows[name] = _row(row)
    return rows


def _row(said):
    row = {**dict.fromkeys(SHOWN), "state": said["state"]}
    for key, value in list(said.items())[:100]:
        if key in TYPES and isinstance(value, TYPES[key]):
            row[key] = _plain(value, 3)
    for key in NUMBERS:
        if row.get(key) is not None and not 0 <= row[key] < 1e11:  # else it is no moment
            row[key] = None
    return row


def _plain(value, depth):
    """Return a copy of what a minion said, bounded and printable."""
    if isinstance(value, str):
        value = value[:500]
        return value if value.isprintable() else _clean(value)
    if isinstance(value, int) or isinstance(value, float) and math.isfinite(value):
        return value
    if depth and isinstance(value, dict):
        pairs = list(value.items())[:100]
        return {_plain(str(k), 0): _plain(v, depth - 1) for k, v in pairs}
    if depth and isinstance(value, list):
        return [_plain(item, depth - 1) for item in value[:100]]
    return None


def _clean(value):
    """Return printable text: a minion may answer anything, and a terminal obeys escapes."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


# What it means later


def _age(row, passed):
    return None if row["age"] is None else round(row["age"] + passed, 1)


def _aged(row, moment, limit):
    """Return the row as it is now, when its node does not answer."""
    passed, age = time.time() - moment, row["age"] or 0
    row["age"] = _age(row, passed) if passed >= 0 else None  # the clock was set back
    fresh = 0 <= passed and age + passed < limit
    if fresh or row["state"] in ("unwatched", "unknown"):
        return row
    known = {key: row[key] for key in ("state", "reason", "since")}
    since = round(moment + max(0, limit - age), 1)
    words = {"state": "unknown", "since": since, "check": None, "reason": "no word from its node"}
    return {**row, **words, "last_known": known}


# The files


def _folder():
    return os.path.join(__opts__["cachedir"], "cbsd_monit", "answers")


def _path(minion):
    return os.path.join(_folder(), hashlib.sha256(minion.encode()).hexdigest()[:32])


def _write(minion, rows, moment):
    """Replace the node's file: a line about it, then one for each row, the node's own first."""
    lines = [json.dumps({"node": minion, "time": moment})]
    size = len(lines[0]) + 1
    for name in sorted(rows, key=lambda name: (name != NODE, name)):
        known = {key: rows[name].get(key) for key in KEPT if rows[name].get(key) is not None}
        lines.append(json.dumps([name, known]))
        size += len(lines[-1]) + 1
        if size > BYTES:
            del lines[-1]
            break
    try:
        os.makedirs(_folder(), 0o700, exist_ok=True)
        handle, new = tempfile.mkstemp(dir=_folder())
        with open(handle, "w", encoding="ascii") as out:
            out.write("\n".join(lines) + "\n")
        os.replace(new, _path(minion))
    except OSError as err:
        log.warning("cbsd_monit: the last answer of %s is not kept: %s", minion, err)


def _read(minion):
    """Return (when it arrived, its rows)."""
    with open(_path(minion), encoding="ascii") as lines:
        head, *rows = [json.loads(line) for line in lines]
    if head["node"] != minion:
        raise ValueError(minion)
    return head["time"], {name: _row(row) for name, row in rows}


def _drop_oldest():
    with contextlib.suppress(OSError), os.scandir(_folder()) as entries:
        files = sorted((entry.stat().st_mtime, entry.path) for entry in entries)
        for _, path in files[:-NODES]:
            os.unlink(path)
