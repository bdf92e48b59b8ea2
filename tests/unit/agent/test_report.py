"""What `wake status` tells, and for how long what was known is known."""

import proof
import pytest
import records
import report
from clock import Moment
from proof import Proof, Seen
from states import NODE, STATES

from .conftest import cases

pytestmark = pytest.mark.usefixtures("no_monit")
WORST = 15  # the limit is 120 s


def after(node, seconds):
    now = node.now()
    return Moment(now.t + seconds, now.m + seconds, now.b)


def known(node, state, passed=0, rounded=0, **more):
    """lb1 in ``state``, the last pass and monit's last round so many seconds ago."""
    data = {"intent": "running", "boot": node.boot, "state": state, "reason": "why"}
    data.update(since=after(node, -500).stamp(), **more)
    with records.changing(node, "lb1") as record:
        record.data.update(data)
        record.new = False
    stamps = [after(node, -seconds).stamp() for seconds in (passed, rounded)]
    at = stamps[1]["t"], stamps[1]["m"]
    checks = {"lb1": {"http": Seen("good", "", at, 5, 125, True, "good")}}
    checks[NODE] = more.pop("own", {})
    seen = Proof(*stamps, WORST, checks, {"unwatched": {"other": {"emulator": "bhyve"}}})
    proof.save(node, seen, seen)
    return report.rows(node, node.now())


BY_CHECKS = ("healthy", "warning", "failing", "backoff", "starting")


@pytest.mark.parametrize("state", STATES)
def test_what_no_pass_has_confirmed_within_the_limit_is_unknown(node, state):
    assert known(node, state, passed=119)["lb1"]["state"] == state
    row = known(node, state, passed=121)["lb1"]
    assert row["state"] == "unknown" and row["age"] >= 121
    if state != "unknown":
        assert row["reason"] == "no pass over this node for 121 s"
        assert (row["last_known"]["state"], row["last_known"]["reason"]) == (state, "why")


@pytest.mark.parametrize("state", STATES)
def test_what_monit_proves_is_unknown_when_it_has_not_gone_round(node, state):
    row = known(node, state, rounded=121)["lb1"]
    assert row["state"] == ("unknown" if state in BY_CHECKS else state)
    if state in BY_CHECKS:
        assert row["reason"] == "monit has not gone round for 121 s" and row["age"] >= 121
    assert known(node, state, rounded=119)["lb1"]["state"] == state


@cases(
    "more",
    {"check": "env"},  # the kernel says so
    {"phase": "stopping"},
    {"intent": "stopped"},
)
def test_what_monit_does_not_prove_stands_without_it(node, more):
    assert known(node, "failing", rounded=999, **more)["lb1"]["state"] == "failing"


def test_every_env_of_the_node_has_a_row_and_so_has_the_node(node, world):
    rows = known(node, "healthy", rounded=3)
    assert set(rows) == {"lb1", "other", NODE}
    assert {frozenset(row) for row in rows.values()} == {frozenset(report._KEYS)}
    other = rows["other"]
    assert (other["state"], other["emulator"], other["failing"]) == ("unwatched", "bhyve", {})
    http = rows["lb1"]["checks"]["http"]
    assert (http["result"], http["bound"]) == ("good", 125) and 3 <= http["age"] < 5
    assert (rows[NODE]["limit"], rows[NODE]["worst_cycle"]) == (120, 15)
    assert set(report.rows(node, node.now(), "lb1")) == {"lb1", NODE}


def test_all_failing_checks_are_shown_and_none_of_an_env_that_is_stopped(node):
    since = node.stamp()
    failing = {c: {"since": since, "reason": c, "warning": c == "tls"} for c in ("http", "tls")}
    row = known(node, "failing", failing=failing)["lb1"]
    assert row["failing"]["tls"] == {"since": since["t"], "reason": "tls", "warning": True}
    assert set(row["failing"]) == {"http", "tls"}
    for state in ("stopped", "maintenance", "silenced"):
        assert known(node, state, failing=failing)["lb1"]["failing"] == {}


def test_row_of_the_node_tells_its_own_checks_and_what_is_held(node):
    own = {"disk": Seen("bad", "full", node.now()[:2], 5, 125, True, "bad")}
    row = known(node, "healthy", own=own)[NODE]
    assert (row["state"], row["reason"], set(row["failing"])) == ("failing", "disk: full", {"disk"})
    row = known(node, "healthy", own=own, rounded=121)[NODE]
    assert (row["state"], row["last_known"]["state"]) == ("unknown", "failing")
    seen = proof.load(node)
    proof.save(node, seen._replace(more={"held": {"generation": 3, "why": "x"}}), seen)
    assert report.rows(node, node.now())[NODE]["held"] == {"generation": 3, "why": "x"}


def test_after_a_boot_nothing_is_known_before_the_first_pass(node):
    known(node, "healthy")
    node.boot = "boot-2"
    rows = report.rows(node, node.now())
    assert [rows[name]["state"] for name in ("lb1", NODE)] == ["unknown", "unknown"]
    assert rows["lb1"]["reason"] == "no pass over this node since it booted"
    assert rows[NODE]["last_known"] is None and rows["lb1"]["age"] is None
