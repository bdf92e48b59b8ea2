"""
Bring this node's transitions from the agent's spool to the master's event bus, in order.

.. code-block:: yaml

    engines:
      - cbsd_monit:
          spool: /var/db/cbsd_monit/spool

The SLS ``cbsd_monit.events`` writes that, and restarts the minion once. On the bus appear:

``cbsd_monit/<minion>/batch``
    ``data.data``: ``{"schema": 1, "records": [record, …]}``, the records of docs/contract.md
    section 8 in the order in which they happened.
``cbsd_monit/<minion>/<env>/<transition>``
    What people are told of is also sent alone, ``ALONE`` of envs and ``OF_NODE`` of ``(node)``:
    ``data.data`` is the record, with the ``id`` that it has in its batch.
``cbsd_monit/<minion>/hello``
    The engine found its master (again), or had nothing to send for a while: what it sent before has
    arrived.

It is an engine because that has a process of its own: a beacon would block the minion's main loop,
and its events carry an id that another minion can forge. Here each message is a request of this
minion's own, whose ``id`` the master verifies, and the spool is freed only when the master has
answered it.

An answer means that a worker of the master has handed the event on, not that the bus had it before
the master died. So what was answered within ``RISK`` seconds before the last answer is sent again
after an interruption: each record arrives at least once, with the same ``id``.

:depends: a master; masterless it does nothing
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import time

import salt.channel.client
import salt.minion

log = logging.getLogger(__name__)

__virtualname__ = "cbsd_monit"

SCHEMA = 1
ALONE = ("gave_up", "quarantined", "storm", "calm", "warning", "recovered")
NODE = "(node)"  # stands where the name of an env does; no env has such a name
OF_NODE = ("failing", "healthy", "storm", "calm")  # of its own checks, and of many envs
ENV = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\Z")
# Seconds: what was answered so shortly before the last answer may have died with the master.
RISK = 15
BATCH_BYTES = 256 << 10
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, IndexError)  # a position file
RETRY = (0.5, 1, 2, 5)  # seconds before the next try, the last again and again
# What Salt's transport does not raise when a master is away: a bug, here or there.
BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError)


def __virtual__():
    return __virtualname__


def start(spool="/var/db/cbsd_monit/spool", interval=0.1, gap=0.5, batch=200, settle=5, timeout=10):
    """
    Send until the minion ends.

    spool
        The directory that the agent writes; while there is none, nothing is done.
    interval
        Seconds from one look into the spool to the next.
    gap
        Seconds at least from one batch to the next: what happens meanwhile is one message.
    batch
        Records in one message at most.
    settle
        Seconds to wait once the master answers (again): its reactor listens later than its workers.
    timeout
        Seconds to wait for an answer.
    """
    parent = os.getppid()
    masterless = (
        "local" in (__opts__.get("file_client"), __opts__.get("master_type"))
        or __opts__.get("master_type") == "disable"
    )
    if masterless and not __opts__.get("use_master_when_local"):
        log.info("cbsd_monit: no master, no events")
    courier = Courier(spool, Master(__opts__, timeout), gap=gap, batch=batch, settle=settle)
    while os.getppid() == parent:  # a killed minion's engine must not run on beside the next one
        wait = interval
        if not masterless:
            try:
                wait = courier.work() or interval
            except OSError as err:
                log.error("cbsd_monit: spool %s: %s", spool, err)
                wait = 5
        until = time.monotonic() + wait
        while time.monotonic() < until and os.getppid() == parent:
            time.sleep(min(interval, wait))
    courier.close()


def _alone(env, transition):
    """Return whether this transition of this env, or of the node, is also sent alone."""
    if env == NODE:
        return transition in OF_NODE
    return transition in ALONE and isinstance(env, str) and bool(ENV.match(env))


class Unanswered(Exception):
    """The master did not take it, or did not say so."""


class Master:
    """The master of this minion, asked in the one form whose sender it verifies."""

    def __init__(self, opts, timeout):
        self.opts, self.timeout = opts, timeout
        self.channel = None
        masters = opts.get("master")
        masters = masters if isinstance(masters, list) else [masters]
        self.names = [name for name in masters if isinstance(name, str)]
        self.turn = 0

    @property
    def key(self):
        """Return a word for this minion's masters, the same after a restart."""
        names = " ".join(f"{name}:{self.opts.get('master_port')}" for name in sorted(self.names))
        return hashlib.sha256(names.encode()).hexdigest()[:12]

    @property
    def session(self):
        """Return what the master changes at each start: another value means another process."""
        auth = getattr(self.channel.obj, "auth", None) if self.channel else None
        return ((auth and auth.creds) or {}).get("aes")

    def send(self, tag, data):
        """Fire one event on the master; raise Unanswered if it is not known to have it."""
        load = {"cmd": "_minion_event", "id": self.opts["id"], "tag": tag, "data": data}
        try:
            if self.channel is None:
                self._open()
            answer = self.channel.send(load, tries=1, timeout=self.timeout)
        except Exception as err:  # whatever Salt's transport raises, the event was not taken
            self.close()
            self.turn += 1
            raise Unanswered(f"{type(err).__name__}: {err}") from err
        if answer is not None:  # a worker answers only if it failed or refused
            self.close()
            raise Unanswered(f"the master answers {answer!r}")

    def _open(self):
        opts = dict(self.opts)
        # One try at a time: this engine repeats them itself, and ends when its parent does.
        opts.update(
            auth_tries=1,
            auth_timeout=self.timeout,
            auth_safemode=False,
            auth_retries=1,
            acceptance_wait_time=1,
        )
        opts.update(request_channel_tries=1, request_channel_timeout=self.timeout, retry_dns=0)
        if isinstance(opts.get("master"), list):
            opts["master"] = self.names[self.turn % len(self.names)]
        opts.update(salt.minion.prep_ip_port(opts))
        opts.update(salt.minion.resolve_dns(opts, fallback=False))
        self.channel = salt.channel.client.ReqChannel.factory(opts)

    def close(self):
        channel, self.channel = self.channel, None
        if channel is not None:
            with contextlib.suppress(Exception):
                channel.close()


class Courier:
    """Reads the spool from where the master's last answer left off."""

    def __init__(self, folder, master, gap=0.5, batch=200, settle=5):
        self.folder, self.master = folder, master
        self.gap, self.batch, self.settle = gap, batch, settle
        self.lock = None
        self.failures = 0
        self.ready = 0  # monotonic: not before
        self.greeted = False
        self.session = None
        self.answered = []  # [(monotonic, position before)] of the batches that are at risk

    def close(self):
        self.master.close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def work(self):
        """Send what is due; return the seconds until the next look, None for soon."""
        if not os.path.isdir(self.folder):
            if self.lock is not None:
                self.close()
            return 2
        if self.lock is None and not self._begin():
            return 1
        try:
            return self._work()
        except Unanswered as err:
            wait = RETRY[min(self.failures, len(RETRY) - 1)]
            self.failures += 1
            bug = err.__cause__ if isinstance(err.__cause__, BUGS) else None
            if self.failures in (1, 10) or self.failures % 100 == 0:
                level, what = (logging.ERROR, "a bug: ") if bug else (logging.WARNING, "")
                log.log(level, "cbsd_monit: %sevents wait, %s", what, err, exc_info=bug)
            self._interrupted()
            return wait

    def _begin(self):
        """Become the only reader for this master; False while a killed minion's engine still is."""
        path = self._path(f"reader-{self.master.key}")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self.lock = handle
        saved = self._read_position()
        self.position = self.safe = tuple(saved.get("safe") or ("", 0))
        self.answered, self.greeted = [], False
        return True

    def _interrupted(self):
        """Go back to the first record that may have died with the master."""
        self.position, self.answered, self.greeted = self.safe, [], False

    def _work(self):
        now = time.monotonic()
        if not self.greeted:
            self._hello()
            self.greeted, self.failures, self.ready = True, 0, time.monotonic() + self.settle
            return None
        if now < self.ready:
            return None
        records, after = self._read()
        if not records and after == self.position:
            if self.answered and now - self.answered[-1][0] > RISK:
                self._hello()
                if self._same_session():
                    self.answered, self.safe = [], self.position
                    self._save()
            return None
        before = self.position
        if records:
            tag = f"cbsd_monit/{self.master.opts['id']}/batch"
            self.master.send(tag, {"schema": SCHEMA, "records": records})
        for record in records:
            env, transition = record.get("env"), record.get("transition")
            if _alone(env, transition):
                self.master.send(f"cbsd_monit/{self.master.opts['id']}/{env}/{transition}", record)
        if not self._same_session():
            return None
        now = time.monotonic()
        self.position = after
        self.answered.append((now, before))
        while self.answered and self.answered[0][0] < now - RISK:
            self.answered.pop(0)
        self.safe = self.answered[0][1]
        self._save()
        self.ready = now + self.gap
        return None

    def _hello(self):
        self.master.send(f"cbsd_monit/{self.master.opts['id']}/hello", {"schema": SCHEMA})
        if self.session is None or not self.greeted:
            self.session = self.master.session

    def _same_session(self):
        """Return whether the master is the same process; another one gets what is at risk again."""
        if self.session == self.master.session:
            return True
        log.info("cbsd_monit: the master was restarted; what it may have lost is sent again")
        self._interrupted()
        return False

    # The spool

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _segments(self):
        return sorted(n for n in os.listdir(self.folder) if n.endswith(".jsonl"))

    def _read(self):
        """
        Return the next records and the position after them.

        They are the next whole lines; a line that cannot be read is a record of a dropped one.
        """
        segment, offset = self.position
        names = self._segments()
        if segment not in names:  # dropped meanwhile, or the first look
            names = [n for n in names if n > segment]
            segment, offset = (names[0], 0) if names else (segment, offset)
        else:
            names = [n for n in names if n >= segment]
        records = []
        for name in names:
            if name != segment:
                segment, offset = name, 0
            with contextlib.suppress(FileNotFoundError), open(self._path(name), "rb") as handle:
                if os.fstat(handle.fileno()).st_size < offset:
                    offset = 0  # not the file it was: better twice than never
                handle.seek(offset)
                text = handle.read(BATCH_BYTES)
                if b"\n" not in text and len(text) == BATCH_BYTES:
                    text += handle.readline()
                for line in text.splitlines(True):
                    if not line.endswith(b"\n"):
                        break
                    offset += len(line)
                    records.append(self._record(line, name, offset))
                    if len(records) == self.batch:
                        return records, (segment, offset)
                if records:
                    return records, (segment, offset)
        return records, (segment, offset)

    def _record(self, line, name, offset):
        try:
            record = json.loads(line)
            if isinstance(record, dict):
                return record
        except ValueError:
            pass
        digest = hashlib.sha256(f"{name} {offset}".encode() + line).hexdigest()[:16]
        record = {
            "id": digest,
            "time": round(time.time(), 3),
            "node": self.master.opts["id"],
            "transition": "dropped",
        }
        return {**record, "env": None, "count": 1, "reason": "a line of the spool cannot be read"}

    def _read_position(self):
        try:
            with open(self._path(f"position-{self.master.key}"), encoding="ascii") as handle:
                saved = json.load(handle)
            return saved if isinstance(saved, dict) else {}
        except (OSError, ValueError):
            return {}

    def _save(self):
        """Save the position (not synced: records may come twice); free what every master has."""
        path = self._path(f"position-{self.master.key}")
        saved = dict(zip(("segment", "offset"), self.position), safe=list(self.safe))
        with open(path + ".new", "w", encoding="ascii") as handle:
            json.dump({**saved, "time": round(time.time(), 3)}, handle)
        os.replace(path + ".new", path)
        done = [self.safe[0]]
        for name in os.listdir(self.folder):
            if re.fullmatch("position-(?!.*[.]new$).*", name) and self._path(name) != path:
                with contextlib.suppress(*UNREADABLE), open(self._path(name)) as handle:
                    done.append(str((json.load(handle).get("safe") or [""])[0]))
        for name in self._segments()[:-1]:
            if name < min(done):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(name))
