"""What was once called healthy, healed or failing without proof, through whole passes."""

import json
import os
import shutil
import sys

import cbsd
import heal
import monit
import passes
import probes
import proof
import pytest
import records
import report
from states import NODE

from .conftest import Daemon, World, cases, node_of, remember
from .test_agreement import Clock

LOOK = 'set daemon 5\ncheck program "cbsd_monit-look" with path "/x look"\n  if exist then alert\n'
HEAD = LOOK + 'check filesystem "node-disk" with path "/"\n  if changed fsflags then alert\n'
ALERTS, UNHEALED = {"on_failure": ["alert"]}, {"heal": False}
DAILY = "<every><type>2</type><counter>1</counter><number>17280</number></every>"
HOURS = "<every><type>3</type><cron>* 8-19 * * *</cron></every>"
# What monit says of a service.
GOOD, BAD, UNWATCHED = {}, {"status": 32}, {"monitor": 0}
FAILED = {"more": "<port><portnumber>1</portnumber><responsetime>-1</responsetime></port>"}
NEVER = {"monitor": 2}  # it has just read its control file


def check(name, port=1, more=""):
    host = f'check host "%%ENV%%.{name}" with address "%%ADDRESS%%"\n'
    return f"{host}  if failed port {port} for 3 cycles then alert{more}\n"


TWO = check("http") + check("web", 2)
CERT = check("http") + check("cert", 443)
DAEMON = 'check host "{}" with address "%%ADDRESS%%"\n  if failed port 1 then alert\n'


class Monit(Daemon):
    """A monit that says of each service what ``rows`` holds, else that it is good."""

    def __init__(self, node, clock):
        super().__init__(node)
        self.clock, self.rows = clock, {}

    def status(self, timeout=5):
        if self.services is None or self.silent:
            return None
        rows = "".join(map(self._row, dict.fromkeys([*self.services, *self.rows])))
        head = '<?xml version="1.0" encoding="ISO-8859-1"?>'
        return monit.Status(f"{head}<monit><server/>{rows}</monit>".encode())

    def _row(self, name):
        row = {"status": 0, "monitor": 1, "collected_sec": int(self.clock.t) - 1, "more": ""}
        row.update(self.rows.get(name, {}))
        more = row.pop("more")
        tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in row.items())
        return f"<service><name>{name}</name>{tags}{more}</service>"


class Site(World):
    """A node whose clock goes on with each pass."""

    def __init__(self, tmp_path, conf, monkeypatch):
        super().__init__(tmp_path, node_of(tmp_path, {**conf, "head": HEAD}))
        self.clock, self.patch, self.read = Clock(monkeypatch), monkeypatch, {}
        self.monit = Monit(self.node, self.clock)
        self.monit.read()
        monkeypatch.setattr("passes.Monit", lambda _: self.monit)
        monkeypatch.setattr("heal.Monit", lambda _: self.monit)
        monkeypatch.setattr("monit.Status.begun_since", lambda *_: True)
        monkeypatch.setattr(os, "fsync", lambda _: None)
        monkeypatch.setattr(cbsd, "run", self.answer)

    def answer(self, argv, *_, **__):
        source = {"cbsd": "rows", "jls": "kernel"}[os.path.basename(argv[0])]
        return cbsd.Result(0, (self.tmp_path / source).read_text())

    def text(self, *names, template=None, **policy):
        for name in names:
            folder = self.env(name, template=template or check("http"))
            own = {"schema": 1, "env": name, "start_period": 0, "restart": {"delay": 1}, **policy}
            (folder / "policy.json").write_text(json.dumps(own))
        return folder

    def live(self, *names, **how):
        """Envs that run and are proven; returns the `monit` folder of the last."""
        folder = self.text(*names, **how)
        self.run()
        self.run(after=20)
        assert {self.state(name) for name in names} == {"healthy"}
        for name in names:
            self.news(name)
        return folder

    def run(self, rows=None, after=5):
        """A pass ``after`` seconds in which monit began to say ``rows``."""
        self.clock.go_on(after)
        self.monit.rows.update(rows or {})
        return passes.run(self.node)

    def due(self, rows=None):
        return [found.env for found in self.run(rows).due]

    def heal(self, check, rows):
        """What a heal of lb1 tells, after which monit says ``rows``."""
        self.patch.setattr(heal.Heal, "_act", lambda *_: self.monit.rows.update(rows))
        self.news("lb1")
        heal.Heal(self.node, "lb1", check, "x").run()
        return self.news("lb1")

    def record(self, name):
        return records.load(self.node, name)

    def state(self, name):
        return self.record(name)["state"]

    def row(self, name=NODE):
        return report.rows(self.node, self.node.now())[name]

    def news(self, name):
        """[(transition, check)] that were told since the last time."""
        told = [(r["transition"], r["check"]) for r in records.history(self.node, name)]
        before, self.read[name] = self.read.get(name, 0), len(told)
        return told[before:]


@pytest.fixture
def site(tmp_path, conf, monkeypatch):
    return Site(tmp_path, conf, monkeypatch)


# What fails is failing until a run says otherwise.


@cases(
    ("how", "wait", "state", "due"),
    ({}, 0, "failing", ["lb1"]),
    (UNHEALED, 0, "failing", []),
    (ALERTS, 0, "warning", []),
    ({}, 900, "backoff", []),
)
def test_reload_of_monit_ends_no_failing_and_heals_none(site, how, wait, state, due):
    site.live("lb1", "lb2", **how)
    now = site.node.stamp()
    if wait:  # after a heal that did not help
        remember(site.node, "lb1", next={"after": now, "seconds": wait}, started=now, warm=False)
    assert site.due({"lb1.http": BAD}) == due
    site.news("lb1")
    for port in (7, 8):
        site.text("lb2", template=check("http", port))
        for row in (NEVER, FAILED, FAILED):
            assert (site.due({"lb1.http": row}), site.state("lb1")) == ([], state)
        assert site.due({"lb1.http": BAD}) == due
    assert [name for name, _ in site.monit.asked].count("reload") == 3
    assert (site.state("lb1"), site.news("lb1")) == (state, [])


@cases(
    ("port", "rows"),
    (2, {"lb1.web": UNWATCHED}),
    (3, {"lb1.http": NEVER, "lb1.web": NEVER}),  # other words for one of them
)
def test_what_fails_before_and_after_a_pass_without_a_result_is_told_once(site, port, rows):
    site.live("lb1", template=TWO, **UNHEALED)
    failing = {"lb1.http": BAD, "lb1.web": BAD}
    site.run(failing)
    site.news("lb1")
    site.text("lb1", template=TWO.replace("port 2", f"port {port}"), **UNHEALED)
    for seen in (rows, failing):
        site.run(seen)
    assert (site.state("lb1"), site.news("lb1")) == ("failing", [])


def test_check_that_did_not_run_since_the_start_does_not_hold_again(site):
    site.live("lb1", template=CERT, heal=False, checks={"cert": ALERTS})
    site.run({"lb1.http": BAD, "lb1.cert": {**BAD, "more": DAILY}})
    remember(site.node, "lb1", started=site.node.stamp(), warm=False)  # as a start hook says
    before = {"collected_sec": int(site.clock.t) - 2}
    site.run({name: {**row, **before} for name, row in site.monit.rows.items()})
    assert not [r for r in records.history(site.node, "lb1") if "holds again" in r["reason"]]


def test_end_of_a_quarantine_is_told_beside_what_fails(site):
    site.live("lb1", **UNHEALED)
    site.text("lb1", template=check("http", more=" # bad"), **UNHEALED)
    site.run({"lb1.http": BAD})
    site.news("lb1")
    site.text("lb1", template=check("http", more=" # mended"), **UNHEALED)
    site.run()
    assert site.news("lb1") == [("failing", "http")]
    words = "all that is wanted for it is live again"
    assert records.history(site.node, "lb1")[-1]["reason"] == words


def test_gave_up_after_a_silence_says_why_and_how_to_end_it(site):
    site.live("lb1", restart={"attempts": 0})
    site.run({"lb1.http": {**BAD, **FAILED}})
    before = site.record("lb1")
    site.node.silences = [{"env": "lb1", "until": site.clock.t + 60}]
    site.run()
    assert site.state("lb1") == "silenced"
    site.run(after=60)
    found = site.record("lb1")
    assert all(found[key] == before[key] for key in ("state", "reason", "check"))
    assert found["reason"] == "0 attempts did not help: port 1 failed; `retry` ends this"


def test_check_that_monit_unmonitors_itself_is_asked_for_again_and_no_health(site):
    site.live("lb1", **UNHEALED)
    at, unsettled = int(site.clock.t), []
    for _ in range(4):
        for row in (UNWATCHED, NEVER):
            seen = site.run({"lb1.http": {**row, "collected_sec": at}})
            unsettled.append(seen.unsettled)
        assert site.state("lb1") != "healthy"
    assert "healthy" not in dict(site.news("lb1")) and not any(unsettled)
    assert ("monitor", "lb1.http") in site.monit.asked


# What monit cannot say, or says of something else.


def test_broken_control_file_of_the_operator_makes_nothing_unknown(site):
    site.live("lb1", "lb2", "lb3")
    site.monit.test = lambda _: "/etc/monitrc:7: syntax error 'x'"
    site.text("lb2", template=check("http", 7))
    assert site.due({"lb1.http": BAD}) == ["lb1"] and site.state("lb2") == "quarantined"
    for after in (5, 300):
        site.run(after=after)
        assert [site.row(name)["state"] for name in ("lb1", "lb3")] == ["failing", "healthy"]


def test_refusal_by_the_control_file_is_tried_again_when_that_is_mended(site, tmp_path):
    site.live("lb2")
    site.text("lb1", template=check("http", more=" # bad"))
    site.run()
    site.monit.bad, trials = "nothing is refused now", site.monit.trials
    site.run()
    assert (site.state("lb1"), site.monit.trials) == ("quarantined", trials)
    (tmp_path / "monitrc").write_text("set daemon 5\n# mended\n")
    site.run()
    assert site.state("lb1") != "quarantined"


def test_monit_that_only_looks_goes_round_as_well(site):
    site.node.head = LOOK
    site.live("lb1")
    site.kill("lb1")
    remember(site.node, "lb1", intent="stopped", started=None)
    at = int(site.clock.t)
    for _ in range(3):
        seen = site.run({"lb1.http": {**UNWATCHED, "collected_sec": at}}, after=300)
        assert seen.errors == {} and site.row()["state"] == "healthy"
    site.news("lb1")
    site.start("lb1")
    site.run()
    assert site.state("lb1") == "starting" and ("unknown", None) not in site.news("lb1")


def test_text_that_ends_monit_is_taken_back_and_leaves_all_others_as_they_are(site):
    site.live("lb1", "lb2")
    site.run(after=999)
    site.text("lb3", template=check("http", more=" # fatal"))
    for _ in range(2):
        site.run({"lb1.http": NEVER, "lb2.http": NEVER})
        assert site.news("lb1") == site.news("lb2") == []
    assert "start" in site.monit.asked and site.state("lb3") == "quarantined"


def test_killed_pass_forgets_only_the_envs_whose_text_changed(site, monkeypatch):
    site.live("lb1", "lb2")
    site.run(after=999)
    site.text("lb2", template=check("http", 7))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(proof, "take", lambda *_: sys.exit())  # monit has read it by now
        site.run()
    site.run({"lb1.http": NEVER, "lb2.http": NEVER})
    assert (site.state("lb1"), site.news("lb1")) == ("healthy", [])
    assert site.state("lb2") != "healthy"


@cases("lost", True, False)
def test_silent_monit_makes_nothing_healthy(site, tmp_path, lost):
    site.live("lb1", **UNHEALED)
    site.run({"lb1.http": BAD})
    site.monit.silent = True
    if lost:
        (tmp_path / "run/proof.json").unlink()
    site.text("lb2")
    for after in (5, 5, 300, 300):
        site.run(after=after)
        assert "healthy" not in (site.state("lb1"), site.state("lb2"))
        assert site.row("lb2")["state"] != "healthy"
    assert "recovered" not in dict(site.news("lb1")) and site.state("lb1") == "unknown"


def test_result_of_a_check_limited_to_hours_stands_over_a_boot(site, tmp_path):
    site.live("lb1", template=CERT)
    site.run({"lb1.cert": {"more": HOURS}})
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "boot_id").write_text("boot-2\n")
    site.clock.m = 9.0
    site.monit.node = site.node = node_of(tmp_path, site.node.conf)
    for _ in range(2):
        site.run({"lb1.cert": {**NEVER, "more": HOURS}})
        assert proof.load(site.node).checks["lb1"]["cert"].result == "good"
    assert json.loads((tmp_path / "state/seldom.json").read_text())["checks"]["lb1"]


def test_clock_that_was_set_forward_since_the_last_run_makes_nothing_old(site):
    site.live("lb1")
    at = int(site.clock.t) + 3
    site.clock.t += 3600
    seen = site.run({name: {"collected_sec": at} for name in site.monit.services})
    assert seen.errors == {} and site.news("lb1") == []
    assert (site.state("lb1"), site.row()["state"]) == ("healthy", "healthy")
    assert site.row("lb1")["checks"]["http"]["age"] <= 5


# The node's own checks.


def test_service_that_only_sounds_like_a_check_of_the_node_is_none(site):
    site.live("node-web", template=DAEMON.format("node-web"))
    site.run({"node-exporter": BAD, "node-web": BAD})
    assert site.state("node-web") == "failing" and site.row("node-web")["check"] == "node-web"
    assert site.row()["state"] == "healthy" and set(site.row()["checks"]) == {"disk"}


def test_failing_check_of_the_node_holds_heals_while_monit_is_silent_too(site):
    site.live("lb1", depends_on=[{"node": "disk"}])
    site.kill("lb1")
    assert site.due({"node-disk": BAD}) == []
    site.monit.silent = True
    assert site.due() == [] and site.row()["state"] == "failing"
    site.run(after=300)
    assert site.row()["state"] == "unknown" and site.row()["last_known"]["state"] == "failing"


@cases("row", UNWATCHED, NEVER)
def test_check_of_the_node_that_proves_nothing_is_unknown_and_watched_again(site, row):
    site.text("lb1")
    site.run({"node-disk": row})
    assert site.row()["state"] == "unknown" and site.row()["reason"].startswith("disk: ")
    assert (("monitor", "node-disk") in site.monit.asked) is (row == UNWATCHED)


def test_check_of_the_node_that_is_watched_again_fails_for_its_own_reason(site):
    site.live("lb1")
    for row in ({**BAD, **FAILED}, UNWATCHED, NEVER):
        site.run({"node-disk": row})
    assert (site.row()["state"], site.row()["reason"]) == ("failing", "disk: port 1 failed")


def test_check_of_the_node_that_is_removed_while_it_fails_is_told_as_ended(site):
    os.mkdir(site.node.in_state("spool"))
    site.live("lb1")
    site.run({"node-disk": BAD})
    site.node.head = LOOK
    site.run()
    site.run()
    (spool,) = (site.tmp_path / "state/spool").glob("*.jsonl")
    told = map(json.loads, spool.read_text().splitlines())
    told = [(r["transition"], r["check"]) for r in told if r["env"] == NODE]
    assert told == [("failing", "disk"), ("healthy", "disk")] and site.row()["state"] == "healthy"


# Texts and policies that are not live as they are wanted.


@cases(
    ("template", "state", "words"),
    (check("http") + DAEMON.format("http"), "quarantined", "two of its services are the check h"),
    (DAEMON.format("%%ENV%%.env"), "quarantined", "the check env is the env itself"),
    (DAEMON.format("lb2.env"), "quarantined", "called lb2.env, which is a name of lb2's"),
    (DAEMON.format("node-x"), "quarantined", "names of the node's own checks begin like that"),
    ("# nothing yet\n", "unknown", "it has no check"),
)
def test_text_that_hides_a_check_or_has_none_is_no_health(site, template, state, words):
    site.live("lb2")
    site.text("lb1", template=template)
    for _ in range(2):
        site.run()
        assert site.state("lb1") == state and words in site.record("lb1")["reason"]


def test_text_that_a_glob_cannot_find_is_not_what_is_live(site):
    site.node.conf["include"] = "glob"
    folder = site.live("lb1")
    (folder / "monitrc").unlink()
    (folder / "monitrc").mkdir()
    site.text("lb1", template=check("http", 7))
    for _ in range(2):
        site.run()
        assert site.state("lb1") == "quarantined"
        assert "cannot be written" in site.record("lb1")["reason"]


def test_kept_text_that_asks_at_an_old_address_heals_nothing(site):
    site.live("lb1")
    site.change("lb1", ip4_addr="REALDHCP")
    assert site.due({"lb1.http": BAD}) == []
    assert site.state("lb1") == "failing" and "no address" in site.record("lb1")["quarantined"]


def test_service_whose_name_is_not_ascii_is_known(site):
    site.live("lb1", template=DAEMON.format("läden"))
    assert site.run({"läden": BAD}).errors == {}
    assert (site.state("lb1"), site.record("lb1")["check"]) == ("failing", "läden")


@pytest.fixture
def probed(site, monkeypatch):
    """An env with a probe that the agent runs, and that was good."""
    site.node.conf["probes"] = "agent"
    monkeypatch.setattr(probes, "run", lambda *_: (0, ""))
    site.text("lb1", checks={"app": app("/bin/true")})
    site.run()
    site.clock.go_on(5)
    probes.run_all(site.node, [("lb1", "app")])
    site.run()
    assert site.state("lb1") == "healthy"
    return site


def app(command):
    return {"type": "exec", "command": [command], "in": "host", "interval": 86400}


@cases(("text", "words"), ('{"schema": 1, "checks": ', ""), ('{"checks": []}', "policy.json"))
def test_probes_of_a_policy_that_cannot_be_read_are_no_health(probed, tmp_path, text, words):
    (tmp_path / "work/jails-system/lb1/monit/policy.json").write_text(text)
    seen = probed.run()
    assert probed.state("lb1") == "quarantined" and words in seen.errors["lb1"]
    assert probed.record("lb1")["reason"] == seen.errors["lb1"]


def test_result_of_a_probe_that_ran_another_command_does_not_stand(probed):
    probed.text("lb1", checks={"app": app("/bin/false")})
    seen = probed.run()
    assert probed.row("lb1")["checks"]["app"]["result"] == "never"
    due = probes.due(probed.node, seen.running(), seen.policies, probed.node.now())
    assert [row[0] for row in due] == [0.0]


# Heals.


def test_healed_is_told_of_a_check_that_was_seen_good_and_the_next_pass_judges(site):
    site.live("lb1", template=TWO, checks={"web": ALERTS})
    assert site.due({"lb1.http": BAD, "lb1.web": BAD}) == ["lb1"]
    told = site.heal("http", {"lb1.http": GOOD})
    assert told == [("healing", "http"), ("healed", "http")] and site.state("lb1") == "healing"
    site.run()
    assert site.news("lb1") == [("warning", "web")]


def test_heal_because_of_a_check_that_does_not_run_soon_is_no_proof(site):
    site.live("lb1", template=CERT)
    row = {**BAD, "more": DAILY, "collected_sec": int(site.clock.t)}
    assert site.due({"lb1.cert": row}) == ["lb1"]
    told = site.heal("cert", {"lb1.cert": {**row, "monitor": 5}})
    assert told == [("healing", "cert")] and site.state("lb1") == "healing"
    assert site.due() == [] and site.news("lb1") == [("failing", "cert")]


@cases(("attempts", "due"), (2, ["lb1"]), (3, []))
def test_dependent_is_restarted_as_often_as_its_attempts_allow(site, attempts, due):
    site.live("db1")
    site.live("lb1", depends_on=["db1"], restart_with=["db1"], restart={"attempts": 3})
    remember(site.node, "db1", restarted=site.node.stamp())
    remember(site.node, "lb1", attempts=[site.node.stamp()] * attempts)
    assert site.due() == due
