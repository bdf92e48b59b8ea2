"""
Whoever asks is told the same: `wake status`, the fleet's runner, and the records for the bus.

Each state is reached by real passes (and heals) over generated nodes; only CBSD's answers, monit's
status and the clocks are made up.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import re
import tempfile
import time
from collections import namedtuple

import cbsd
import commands
import heal
import passes
import pytest
from monit import Status
from node import AgentError
from states import NODE, STATES

from tests.unit.loaded import load, modules, public

from .conftest import Daemon, World, configuration, deliver, node_of

WORLDS = 30  # for each state
ODD = (
    "Connection refused",
    "Zertifikat läuft ab — in 3 Tagen",
    "証明書の期限切れ ✗",
    "a \x85 tab\tand \u202e turned \x9b[2J",
    "x" * 190,
    "'; rm -rf / #\" & <b>",
)
KEYS = (
    "state reason check since restarts attempts next last_known failing silence quarantined intent"
    " emulator held worst_cycle limit"
).split()


class Clock:
    """Time that passes when a test says so, or when somebody sleeps."""

    def __init__(self, monkeypatch):
        self.t, self.m = 1.8e9, 5e4
        monkeypatch.setattr(time, "time", lambda: self.t)
        monkeypatch.setattr(time, "monotonic", lambda: self.m)
        monkeypatch.setattr(time, "sleep", self.go_on)

    def go_on(self, seconds):
        self.t, self.m = self.t + seconds, self.m + seconds


class Told(Daemon):
    """A monit that says of services what ``said`` holds; from ``stopped`` on it runs none."""

    def __init__(self, node, clock):
        super().__init__(node)
        self.clock, self.said, self.stopped = clock, {}, None
        self.read()

    def status(self, timeout=5):
        if self.services is None or self.silent:
            return None
        rows = "".join(map(self._row, self.services))
        return Status(f"<monit><server/>{rows}</monit>".encode())

    def _row(self, name):
        said = {"result": "good", "age": 1, "words": "", "every": 1, **self.said.get(name, {})}
        result, words = said["result"], said["words"]
        if result == "absent":
            return ""
        moment = max(self.began + 0.01, (self.stopped or self.clock.t) - said["age"])
        tags = {
            "name": name,
            "status": 32 if result == "bad" else 0,
            "monitor": {"never": 2, "unwatched": 0}.get(result, 1 if said["every"] == 1 else 5),
            "collected_sec": int(moment),
            "collected_usec": int(moment % 1 * 1e6),
        }
        more = f"<every><type>2</type><number>{said['every']}</number></every>"
        code = {"bad": 1, "failed": 1, "unasked": 75}.get(result, 0)
        if code and words or result in ("failed", "unasked"):
            words = words.replace("&", "&amp;").replace("<", "&lt;")
            more += f"<program><status>{code}</status><output>{words}</output></program>"
        return f"<service>{''.join(f'<{k}>{v}</{k}>' for k, v in tags.items())}{more}</service>"


class Bus:
    """A master that keeps the records which the engine sends."""

    key, session = "m", 1

    def __init__(self, engine, spool):
        self.opts, self.records, self.engine, self.spool = {"id": "hv1"}, [], engine, spool
        os.mkdir(spool)
        self.begin()

    def begin(self):
        """The engine begins, with its minion."""
        self.courier = self.engine.Courier(self.spool, self, gap=0, batch=1000, settle=0)

    def send(self, tag, data):
        self.records += data["records"] if tag.endswith("/batch") else []

    def read(self):
        for _ in range(3):
            self.courier.work()
        return list(self.records)

    def close(self):
        pass


class Site(World):
    """
    A generated node, and everybody who is asked about it.

    Its env ``name`` is led to a state; others have states of their own.
    """

    def __init__(self, top, clock, engine, master, rng, monkeypatch):
        self.conf = configuration(top)
        self.conf["head"] = 'set daemon 5\ncheck filesystem "node-disk" with path "/"\n'
        super().__init__(top, node_of(top, self.conf))
        self.clock, self.rng, self.patch = clock, rng, monkeypatch
        self.monit, self.master = Told(self.node, clock), master
        self.bus = Bus(engine, self.node.in_state("spool"))
        self.kernel_error, self.hooks, self.passed, self.looks = "", 0, None, []
        monkeypatch.setattr(passes, "Monit", lambda node: self.monit)
        monkeypatch.setattr(heal, "Monit", lambda node: self.monit)
        monkeypatch.setattr(cbsd, "run", self.answer)
        self.name = self.word("lb1 db_1 Web-1 " + "e" * 100)

    # What may be as it likes

    def word(self, words):
        return self.rng.choice(words.split())

    def odd(self):
        return self.rng.choice(ODD)

    def wild(self):
        """What monit's XML cannot hold, but an operator or a program of the host may say."""
        return self.odd() + self.rng.choice(["", " \x1b[2J\x07 bell", "\nsecond line", "y" * 600])

    def between(self, least, most):
        return round(self.rng.uniform(least, most), 3)

    # CBSD and the kernel

    def answer(self, argv, *_, **__):
        if argv[0] == self.conf["jls"] and self.kernel_error:
            return cbsd.Result(1, self.kernel_error)
        return cbsd.Result(0, (self.tmp_path / os.path.basename(argv[0])).read_text())

    def write(self):
        super().write()
        (self.tmp_path / "cbsd").write_text((self.tmp_path / "rows").read_text())
        (self.tmp_path / "jls").write_text("".join(f"{n}\n" for n in self.up if self.jail(n)))
        machines = {name for name in self.up if not self.jail(name)}
        for name in machines ^ set(os.listdir(self.conf["vmm"])):
            path = self.tmp_path / "vmm" / name
            path.touch() if name in machines else path.unlink()

    def jail(self, name):
        return self.rows[name]["emulator"] == "jail"

    def make(self, ladders=(["restart"],), name=None, up=True, emulator=None, extra="", **policy):
        """An env with one check for each of ``ladders``, and some more; returns its checks."""
        name = name or self.name
        more = [["restart"], ["alert"], ["alert", "event"]]
        ladders = [*ladders, *self.rng.choices(more, k=self.rng.randint(0, 2))]
        names = self.rng.sample(["http", "tls", "App", "c-1", "z_9"], len(ladders))
        rows = {c: {"type": "tcp", "on_failure": list(s)} for c, s in zip(names, ladders)}
        template = "".join(
            f'check host "%%ENV%%.{check}" with address "%%ADDRESS%%"\n  if exist then alert\n'
            for check in names
        )
        policy = {"start_period": 10, "checks": rows, **policy}
        emulator = emulator or self.word("jail jail jail bhyve")
        self.env(name, up, template + extra, policy, emulator=emulator)
        for check in names:
            self.says(check, "good", name, age=self.between(0, 4), every=self.word("1 1 3"))
        return names

    def says(self, check, result, name=None, **more):
        from text import service_prefix

        service = f"{service_prefix(name or self.name)}.{check}"
        before = self.monit.said.get(service, {})
        self.monit.said[service] = {**before, "result": result, **more}

    def neighbours(self):
        """Other envs, at most two and of any kind; some depend on the one that is meant."""
        for number in range(self.rng.randint(0, 2)):
            name = f"other{number}"
            depends = self.rng.choice([[], [self.name], [{"node": "disk"}]])
            up = self.rng.random() < 0.8
            checks = self.make(name=name, up=up, depends_on=depends)
            self.says(checks[0], self.word("good bad failed unasked"), name, words=self.odd())
        if self.rng.random() < 0.3:
            (self.tmp_path / "work/jails-system/plain/monit").mkdir(parents=True)
            self.env("plain", self.rng.random() < 0.5)
            (self.tmp_path / "work/jails-system/plain/monit/monitrc.tpl").unlink()
        result = self.word("good good bad")
        self.monit.said["node-disk"] = {"result": result, "words": self.odd()}

    def hook(self, kind, **environ):
        self.hooks += 1
        row = self.rows[self.name]
        environ = {"emulator": row["emulator"], "jid": "7", **environ}
        deliver(self.node, self.hooks, kind, self.name, **environ)

    # The agent

    def run(self):
        found = passes.run(self.node)
        self.passed = self.clock.t
        return found

    def go_on(self, least, most):
        self.clock.go_on(self.between(least, most))

    def settle(self, *args, **how):
        """The env runs and was seen good since its start, and the others are what they are."""
        checks = self.make(*args, **how)
        self.neighbours()
        self.run()
        self.go_on(20, 90)
        self.run()
        self.go_on(5, 60)
        return checks

    def boots(self):
        """Everything is down, the monotonic clock begins anew, and no pass was made yet."""
        self.clock.t, self.clock.m = self.clock.t + 100, self.between(10, 20)
        (self.tmp_path / "boot_id").write_text("boot-2\n")
        self.node.boot = "boot-2"
        self.kill(*self.rows)
        self.bus.courier.close()
        self.bus.begin()

    def heal(self, check, during):
        """A heal of the env, in which ``during`` stands for what it does to the env."""
        self.patch.setattr(heal.Heal, "_act", lambda *_: during())
        heal.Heal(self.node, self.name, check, self.wild()).run()

    def heals_in_vain(self, check, words):
        def act():
            self.clock.go_on(self.between(0, 3))
            raise AgentError(words)

        self.heal(check, act)

    def is_looked_at(self):
        """In the middle of a heal, which then ends."""
        self.looks.append(self.look())
        raise heal.Abandoned("seen")

    def command(self, name, *args):
        """What a command of `wake` prints."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert commands.COMMANDS[name][0](self.node, *args) == 0
        return out.getvalue()

    def look(self):
        """All answers of this moment."""
        self.master.said, late = self.command("status"), self.between(0, 3)
        rows, seen = json.loads(self.master.said), self.master.fleet(late)
        return Look(self.clock.t, self.passed, rows, seen, late, self.bus.read())


class Master:
    """The runner on a master, and hv1, a minion whose agent says what is ``said``."""

    def __init__(self, top):
        dunders = {"opts": {"cachedir": str(top / "master")}, "salt": {}}
        self.runner = load("_runners/cbsd_monit.py", **dunders)
        answers = public(load("_runners/cbsd_monit_answers.py", **dunders))
        dunders["salt"].update({f"cbsd_monit_answers.{n}": f for n, f in answers.items()})
        functions = {"config.get": lambda key, default=None: default, "cmd.run_all": self.wake}
        names = "cbsd_monit_schema", "cbsd_monit", "cbsd_monit_fleet"
        self.minion, self.said = modules(*names, **functions), ""

    def wake(self, argv, **_):
        assert argv[1:] == ["status"]
        return {"retcode": 0, "stdout": self.said, "stderr": ""}

    def fleet(self, late=None):
        """What `fleet` shows of hv1, which answered ``late`` seconds ago; None: it does not."""

        def ask(tgt, fun, *_):
            found = self.runner._Answers()
            if late is None:
                found.silent = ["hv1"]
            else:
                found["hv1"] = json.loads(json.dumps(self.minion[fun]()))
                found.moments["hv1"] = time.time() - late
            return found

        self.runner._ask = ask
        return {row["env"]: row for row in self.runner.fleet()["envs"]}


# What has to agree


def printable(value):
    """``value`` as the master keeps it: a terminal obeys what is in it."""
    if isinstance(value, dict):
        return {key: printable(item) for key, item in value.items()}
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value[:500])
    return value


def same(reason, told):
    """
    True if a reason is the one that a record told.

    The seconds in it pass; and why nothing is done about it may stand behind it.
    """
    reason, told = (re.sub(r"\d+", "N", words or "") for words in (reason, told))
    return reason == told or reason.startswith(told + "; ")


class Look(namedtuple("Look", "now passed rows fleet late records")):
    """
    The answers of one moment.

    rows: of `wake status`; fleet: of the runner, which had them ``late`` seconds ago; records: all
    that the engine ever sent; passed: when the last pass was.
    """

    def agree(self):
        assert set(self.fleet) == set(self.rows)
        for name, row in self.rows.items():
            self._fleet_agrees(row, self.fleet[name])
            if name == NODE:
                self._node_is_told(row)
            elif row["state"] == "unwatched":
                assert not [r for r in self.records if r["env"] == name]
            else:
                self._state_is_told(name, row)

    def _fleet_agrees(self, row, there):
        here = {key: None if row[key] in ("", {}) else printable(row[key]) for key in KEYS}
        assert {key: there.get(key) for key in KEYS} == here
        age = None if row["age"] is None else pytest.approx(row["age"] + self.late, abs=0.11)
        assert there["age"] == age

    def _is_old(self, row):
        return row["age"] is None or row["age"] > self.rows[NODE]["limit"]

    def _state_is_told(self, name, row):
        assert row["age"] is None or row["age"] >= self.now - self.passed - 0.1
        told = [r for r in self.records if r["env"] == name and _is_of_state(r, row)]
        told = told[-1] if told else {"transition": "unknown", "reason": row["reason"]}
        known = row
        if row["state"] == "unknown" != told["transition"]:
            assert self._is_old(row) and self.passed != self.now, "a pass would have told it"
            known = row["last_known"]
        elif row["state"] != "unknown":
            assert not self._is_old(row)
        assert known["state"] == told["transition"]
        later = told.get("time", self.now) < round(self.passed, 3)  # than the record: the reason
        if not later:
            assert same(known["reason"], told["reason"]), (known["reason"], told["reason"])
        if told.get("from") and row["state"] == told["transition"] == "unknown":
            assert row["last_known"]["state"] == told["from"]

    def _node_is_told(self, row):
        told = {r["check"]: r for r in self.records if r["env"] == NODE and r["check"]}
        failing = {c: r["reason"] for c, r in told.items() if r["transition"] == "failing"}
        assert {check: found["reason"] for check, found in row["failing"].items()} == failing
        assert (row["state"] == "unknown") is self._is_old(row)
        known = row if row["state"] != "unknown" else row["last_known"]
        assert known is None or known["state"] == ("failing" if failing else "healthy")


def _is_of_state(record, row):
    """False for what goes on beside the state: another check, a quarantine of something live."""
    known = row["last_known"] if row["last_known"] and row["state"] == "unknown" else row
    if record["transition"] == "quarantined" != known["state"] and row["quarantined"]:
        return False
    return record["transition"] in STATES and record["check"] in (None, row["check"])


# The ways into each state


def waits(site):
    checks = site.make()
    site.neighbours()
    site.says(checks[0], "never")
    site.run()


def is_restarted_by_cbsd(site):
    site.settle()
    site.hook("master_prestop.d", CBSD_MONIT_CAUSE="restart")
    site.kill(site.name)
    site.run()


def is_not_started_since_the_boot(site):
    site.settle()
    site.boots()
    site.run()


def fails_in_its_grace(site):
    check, *_ = site.settle([["restart"]], start_period=60)
    site.hook("master_poststart.d")
    site.run()
    site.go_on(5, 20)
    site.says(check, "bad", age=1, words=site.odd())
    site.run()


def is_tried_again(site):
    uses_up_its_attempts(site)
    site.command("retry", site.name)


def is_good(site):
    site.settle()
    site.run()


def recovers(site):
    check, *_ = site.settle([site.rng.choice([["restart"], ["alert"], ["alert", "event"]])])
    site.says(check, "bad", words=site.odd())
    site.run()
    site.says(check, "good")
    site.go_on(1, 50)
    site.run()


def is_healed(site):
    check = fails(site)
    site.says(check, "good", age=0)
    site.heal(check, lambda: site.go_on(0, 3))
    site.run()


def failed_once(site):
    check, *_ = site.settle([["restart"]])
    site.says(check, "failed", words=site.odd())
    site.run()


def is_not_proven_for_a_while(site):
    site.settle()
    site.monit.stopped = site.clock.t
    site.go_on(5, 80)
    site.run()


def warns(site):
    check, *_ = site.settle([["alert"]])
    site.says(check, "bad", words=site.odd())
    site.run()


def warns_twice(site):
    for check in site.settle([["alert"], ["alert"]])[:2]:
        site.says(check, "bad", words=site.odd())
    site.run()


def only_warns_any_more(site):
    one, two, *_ = site.settle([["restart"], ["alert"]])
    for check in (one, two):
        site.says(check, "bad", words=site.odd())
    site.run()
    site.go_on(1, 50)
    site.says(one, "good")
    site.run()


def is_healed_but_warns(site):
    one, two, *_ = site.settle([["restart"], ["alert"]])
    for check in (one, two):
        site.says(check, "bad", words=site.odd())
    site.run()
    site.says(one, "good", age=0)
    site.heal(one, lambda: site.go_on(0, 3))
    site.says(two, "bad", words=site.odd(), age=0)
    site.run()


def fails(site, **policy):
    check, *_ = site.settle([["restart"]], **policy)
    site.says(check, "bad", words=site.odd())
    site.run()
    return check


def fails_and_is_not_healed(site):
    fails(site, heal=False)


def asks_the_fleet(site):
    check, *_ = site.settle([["alert", "event"]])
    site.says(check, "bad", words=site.odd())
    site.run()


def fails_twice(site):
    for check in site.settle([["restart"], ["restart"], ["alert"]])[:3]:
        site.says(check, "bad", words=site.odd())
    site.run()


def dies(site):
    site.settle(emulator="jail")
    site.kill(site.name)
    site.run()
    return "env"


def fails_and_waits(*others):
    def way(site):
        site.make(name="db", up=False)
        fails(site, depends_on=others)

    return way


def was_healed_in_vain(site):
    site.heals_in_vain(site.rng.choice([fails, dies])(site), site.wild())


def is_being_healed(site):
    check = site.rng.choice([fails, dies])(site)
    site.heal(check, site.is_looked_at)


def is_being_healed_while_passes_go_on(site):
    def act():
        site.go_on(1, 20)
        site.run()
        site.is_looked_at()

    site.heal(fails(site), act)


def waits_after_a_heal(site):
    was_healed_in_vain(site)
    site.go_on(0, 5)
    site.run()


def waits_until_attempts_are_forgotten(site):
    restart = {"attempts": 1, "mode": "delay", "delay": 0}
    site.heals_in_vain(fails(site, restart=restart), site.wild())
    site.go_on(0, 5)
    site.run()


def uses_up_its_attempts(site):
    site.heals_in_vain(fails(site, restart={"attempts": 1}), site.wild())
    site.go_on(0, 5)
    site.run()


def has_no_attempt(site):
    fails(site, restart={"attempts": 0})


def is_silenced(site):
    site.rng.choice([is_good, fails, dies, warns])(site)
    site.command("silence", site.name, str(site.clock.t + 9e3), "ann", site.wild())
    site.run()


def is_silenced_by_pillar(site):
    site.settle()
    site.node.silences = [{"env": site.name, "until": site.clock.t + 9e3, "reason": site.wild()}]
    site.run()


def is_in_status(number, *before):
    def way(site):
        site.rng.choice(before)(site)
        site.change(site.name, status=str(number))
        site.run()

    return way


def is_refused(words):
    """The env was fine, and its next text is refused."""

    def way(site):
        site.settle()
        path = site.tmp_path / "work/jails-system" / site.name / "monit/monitrc.tpl"
        path.write_text(path.read_text() + words)
        site.run()

    return way


def is_refused_from_the_first(words):
    def way(site):
        site.make(extra=words)
        site.neighbours()
        site.run()

    return way


def has_no_address(site):
    site.make()
    site.change(site.name, ip4_addr="REALDHCP")
    site.run()


def is_rolled_back(site):
    is_good(site)
    path = site.tmp_path / "work/jails-system" / site.name / "monit/monitrc.tpl"
    path.write_text(path.read_text() + "# more\n")
    site.run()
    site.go_on(5, 60)
    passes.rollback(site.node)
    site.passed = site.clock.t


def is_stopped(site):
    site.rng.choice([is_good, fails, warns])(site)
    site.hook("master_prestop.d", CBSD_APP=site.wild())
    site.hook("master_poststop.d")
    site.kill(site.name)
    site.run()


def was_never_up(site):
    site.make(up=False)
    site.neighbours()
    site.run()


def is_not_started_at_boot(site):
    site.settle()
    site.change(site.name, astart="0")
    site.boots()
    site.run()


def cannot_be_asked(site):
    site.settle()
    site.kernel_error = site.wild()
    site.run()


def is_no_jail(site):
    site.settle()
    site.change(site.name, emulator="qemu-" + site.word("arm64 mips64"))
    site.run()


def never_was_a_jail(site):
    site.make()
    site.change(site.name, emulator="virtualbox")
    site.run()


def has_a_row_that_cannot_be_read(site):
    site.make(name="db")
    site.settle()
    site.change(site.name, path="/a|b")
    site.run()


def monit_never_answered(site):
    site.monit.silent = True
    site.make()
    site.run()
    site.go_on(1, 60)
    site.run()


def monit_stands_still(site):
    site.rng.choice([is_good, warns, fails, waits_until_attempts_are_forgotten])(site)
    site.monit.stopped = site.clock.t
    for _ in range(3):
        site.go_on(50, 90)
        site.run()


def one_check_proves_nothing(result):
    def way(site):
        check, *_ = site.settle([["restart"]])
        site.says(check, result, words=site.odd())
        site.run()

    return way


def ran_too_long_ago(site):
    check, *_ = site.settle([["restart"], ["restart"]])
    site.says(check, "good", age=400, every=1)
    site.go_on(500, 600)
    site.run()


def no_pass_succeeds(site):
    site.rng.choice([is_good, warns, fails, waits_after_a_heal, is_silenced, is_stopped])(site)
    site.go_on(200, 900)


def no_pass_since_the_boot(site):
    site.rng.choice([is_good, warns, fails, waits_after_a_heal, is_silenced, is_stopped])(site)
    site.boots()


WAYS = {
    "starting": [
        waits,
        is_restarted_by_cbsd,
        is_not_started_since_the_boot,
        fails_in_its_grace,
        is_tried_again,
    ],
    "healthy": [is_good, recovers, is_healed, failed_once, is_not_proven_for_a_while],
    "warning": [warns, warns_twice, only_warns_any_more, is_healed_but_warns],
    "failing": [
        fails,
        fails_and_is_not_healed,
        asks_the_fleet,
        fails_twice,
        dies,
        fails_and_waits("db"),
        fails_and_waits({"node": "disk"}),
        was_healed_in_vain,
    ],
    "healing": [is_being_healed, is_being_healed_while_passes_go_on],
    "backoff": [waits_after_a_heal, waits_until_attempts_are_forgotten],
    "gave_up": [uses_up_its_attempts, has_no_attempt],
    "silenced": [is_silenced, is_silenced_by_pillar],
    "maintenance": [is_in_status(3, is_good, fails, warns, dies, uses_up_its_attempts)],
    "slave": [is_in_status(2, is_good, fails, warns, dies, uses_up_its_attempts)],
    "quarantined": [
        is_refused("# bad\n"),
        is_refused('check host "x" with address "%%NOSUCHFACT%%"\n'),
        is_refused_from_the_first("# bad\n"),
        is_refused_from_the_first("set alert a@example.org\n"),
        has_no_address,
        is_rolled_back,
    ],
    "stopped": [is_stopped, was_never_up, is_not_started_at_boot],
    "unknown": [
        cannot_be_asked,
        is_no_jail,
        never_was_a_jail,
        has_a_row_that_cannot_be_read,
        monit_never_answered,
        monit_stands_still,
        *map(one_check_proves_nothing, ("unwatched", "unasked", "absent")),
        ran_too_long_ago,
        no_pass_succeeds,
        no_pass_since_the_boot,
    ],
}


@pytest.fixture
def make_site(monkeypatch):
    engine, clock = load("_engines/cbsd_monit.py"), Clock(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(commands, "_wake", lambda node, why: None)
    monkeypatch.setattr("reload.VERIFY", 0.3)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # half as long as on a disk
    with contextlib.ExitStack() as made:
        top = pathlib.Path(made.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        master = Master(top)

        def make(seed):
            (top / str(seed)).mkdir()
            rng = random.Random(seed)
            site = Site(top / str(seed), clock, engine, master, rng, monkeypatch)
            made.callback(lambda: site.bus.courier.close())
            return site

        yield make


def stands_still(site):
    """Monit's loop does: `wake status` knows that as soon as the next pass does, and as well."""
    site.go_on(1, 10)
    site.run()
    site.monit.stopped, site.monit.deaf = site.monit.stopped or site.clock.t, True
    site.go_on(45, 80)
    site.run()
    site.go_on(45, 80)
    before = site.look()
    site.run()
    after = site.look()
    for look in (before, after):
        look.agree()
    for name, row in before.rows.items():
        there = after.rows[name]
        if row["state"] != "unknown":
            assert there["state"] != "unknown" or row["state"] == "starting", (row, there)
        elif row["reason"] == before.rows[NODE]["reason"]:
            assert there["state"] == "unknown" and same(there["reason"], row["reason"])


def falls_silent(site):
    """The node does, and is not looked at: the master knows of it what the node itself does."""
    limit = site.look().rows[NODE]["limit"]
    site.go_on(1, 2 * limit)
    fleet, look = site.master.fleet(), site.look()
    look.agree()
    for name, row in look.rows.items():
        there = fleet[name]
        if row["age"] is None or abs(row["age"] - limit) > 5:
            assert there["state"] == row["state"], (name, row, there)
            known = [r["last_known"] and r["last_known"]["state"] for r in (row, there)]
            assert known[0] == known[1]


@pytest.mark.parametrize("state", STATES)
def test_status_the_fleet_and_the_bus_agree(state, make_site):
    for seed in range(WORLDS):
        turn, way = divmod(seed, len(WAYS[state]))
        site, way = make_site(seed), WAYS[state][way]
        with told_where(f"{way.__qualname__}, seed {seed}"):
            way(site)
            for look in site.looks or [site.look()]:
                assert look.rows[site.name]["state"] == state
                look.agree()
            (stands_still, falls_silent, lambda _: None)[turn % 3](site)


@contextlib.contextmanager
def told_where(where):
    try:
        yield
    except Exception as err:
        err.args = (f"{where}: {err}",)
        raise
