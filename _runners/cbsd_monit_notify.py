"""
``cbsd_monit.notify``: people are told what is beyond the agents, or over; docs/events.md says what.

The reactor puts what happened into a queue below the master's ``cachedir`` and starts this.

:configuration: ``cbsd_monit_notify`` in the master's configuration says who is told: a list of
    ``webhook``, ``chat``, ``mail`` and ``runner``, as in
    ``salt://cbsd_monit/reactor/master.conf.example``
"""

import contextlib
import email.message
import fcntl
import json
import logging
import os
import smtplib
import time
import urllib.request

from salt.exceptions import SaltException

log = logging.getLogger(__name__)

__virtualname__ = "cbsd_monit"

LINES = 50  # in one message; the others are counted
PAUSE = 5  # seconds from one message to the next
REMEMBERED = 1000  # ids of records that were told
# What a receiver may raise when it is not reached or its settings are wrong; all else is a bug.
FORESEEN = (OSError, ValueError, LookupError, SaltException)


def __virtual__():
    return __virtualname__


def notify(wait=0):
    """
    Send what the reactor has put into the queue to all of ``cbsd_monit_notify``, until nothing is
    left.

    Only one runs at a time; a second one returns at once.

    wait
        Seconds to go on looking after the last message: what comes meanwhile needs no other start.

    Returns ``{"told": number of records, "failed": {receiver: why}}``. Each receiver is tried three
    times.

    CLI Example:

    .. code-block:: bash

        salt-run cbsd_monit.notify
    """
    folder = os.path.join(__opts__["cachedir"], "cbsd_monit")
    os.makedirs(folder, 0o700, exist_ok=True)
    sent, failed = 0, {}
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
                failed = _send(records)
                sent += len(records)
                free = time.monotonic() + PAUSE
                until = free + float(wait)
            elif now >= until and _rests(folder):
                return {"told": sent, "failed": failed}
            time.sleep(0.2)


def _rests(folder):
    """Return whether the queue is empty; if so, have the reactor start the next ``notify``."""
    with open(os.path.join(folder, "notify.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(os.path.join(folder, "notify.jsonl")):
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, "notify.started"))
        return True


def _taken(folder):
    """Return what waits in the queue and was not sent before: a record may arrive twice."""
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


def _clean(value):
    """Return printable text: a minion may answer anything, and a terminal obeys escapes."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _send(records):
    """Send ``records`` to each receiver; return ``{receiver: why not}``."""
    lines = []
    for record in records[:LINES]:
        check = f" ({_clean(record['check'])})" if record["check"] else ""
        what = f"{record['node']}/{record['env']} {record['transition']}{check}"
        words = [_clean(record["reason"])] if record["reason"] else []
        if record["transition"] == "gave_up":
            words.append(f"end it: salt-run cbsd_monit.retry env={record['env']}")
        lines.append(": ".join(filter(None, [what, "; ".join(words)])))
    if len(records) > LINES:
        lines.append(f"… and {len(records) - LINES} more")
    failed, text = {}, "\n".join(lines)
    for entry in __opts__.get("cbsd_monit_notify") or []:
        for kind, settings in entry.items():
            for attempt in range(3):
                try:
                    RECEIVERS[kind](settings, text, records[:LINES])
                    failed.pop(kind, None)
                    break
                except Exception as err:  # whatever it is, the other receivers are still tried
                    failed[kind] = f"{type(err).__name__}: {err}"
                    if not isinstance(err, FORESEEN):
                        failed[kind] += " (a bug; its traceback is in the master's log)"
                        log.error("cbsd_monit: a bug in %s", kind, exc_info=attempt == 0)
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
    place = settings.get("host", "127.0.0.1"), settings.get("port", 25)
    with smtplib.SMTP(*place, timeout=settings.get("timeout", 10)) as server:
        server.send_message(message)


def _runner(settings, text, records):
    __salt__[settings["fun"]](text=text, records=records)


RECEIVERS = {"webhook": _webhook, "chat": _chat, "mail": _mail, "runner": _runner}
