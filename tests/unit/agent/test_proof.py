"""What is known of each check, from monit's status and what was known before; on pure values."""

import json
from types import SimpleNamespace

import descriptions
import monit
import proof
import pytest
from clock import Moment
from proof import Proof, Seen
from reload import Publication
from states import NODE

from .conftest import cases

NOW = Moment(1.8e9, 5e4, "boot-1")
NONE = Proof(None, None, None, {}, {})
SERVICES = {"lb1.http": ("lb1", "http")}


def later(seconds, jump=0):
    return Moment(NOW.t + seconds + jump, NOW.m + seconds, NOW.b)


def element(name="lb1.http", status=0, monitor=1, age=5, now=NOW, more=""):
    numbers = {"status": status, "monitor": monitor, "collected_sec": int(now.t - age)}
    tags = "".join(f"<{tag}>{number}</{tag}>" for tag, number in numbers.items())
    return f"<service><name>{name}</name>{tags}{more}</service>"


def status(*elements, server="<server/>"):
    return monit.Status(f"<monit>{server}{''.join(elements)}</monit>")


def take(node, *elements, before=NONE, now=NOW, services=SERVICES, silent=False, **more):
    found = None if silent else status(*elements)
    outcomes = more.pop("outcomes", {})
    publication = Publication(services, {}, status=found, worst=15, **more)
    return proof.take(node, now, before, publication, outcomes)


EVERY = "<every><type>2</type><counter>1</counter><number>17280</number></every>"
HOURS = "<every><type>3</type><cron>* 8-19 * * 1-5</cron></every>"
LOST = "<program><status>75</status><output>rctl says no</output></program>"


@cases(
    ("given", "expected"),
    ({}, ("good", "", 5, 5, 125)),
    ({"monitor": 5, "more": EVERY}, ("good", "", 5, 86400, 86520)),
    ({"monitor": 5, "more": HOURS}, ("good", "", 5, None, None)),
    ({"status": 32}, ("bad", "connection failed", 5, 5, 125)),
    ({"status": 8}, ("bad", "a time is beyond its limit", 5, 5, 125)),
    ({"status": 1 << 30}, ("bad", "failed", 5, 5, 125)),
    ({"status": 16, "more": LOST}, ("unasked", "rctl says no", 5, 5, 125)),
    ({"monitor": 0}, ("unwatched", "monit does not watch it", None, 5, 125)),
    ({"monitor": 2}, ("never", "it has not run yet", None, 5, 125)),
    ({"monitor": 6, "more": EVERY}, ("never", "it has not run yet", None, 86400, 86520)),
    ({"name": "other"}, ("absent", "monit does not know it", None, None, None)),
)
def test_check_is_what_monit_says_of_it(node, given, expected):
    seen = take(node, element(**given)).checks["lb1"]["http"]
    age = seen.at and seen.age(NOW)
    assert (seen.result, seen.words, age, seen.interval, seen.bound) == expected and seen.live


def test_cycle_is_as_long_as_monit_says(node):
    """An operator may have changed `set daemon` since the formula ran."""
    found = status(element(), server="<server><poll>60</poll></server>")
    publication = Publication(SERVICES, {}, status=found, worst=15)
    seen = proof.take(node, NOW, NONE, publication, {})
    assert (seen.worst, seen.limit) == (70, 230)
    assert seen.checks["lb1"]["http"][3:5] == (60, 290)


def test_last_result_stands_until_monit_has_run_the_check_anew(node):
    """A reload, a stop and a start, a monit that is silent: none of them is a result."""
    first = take(node, element(status=32, more="<port><responsetime>-1</responsetime></port>"))
    for now, how in (
        (later(10), {"monitor": 2}),
        (later(10), {"silent": True}),
        (later(10, jump=3600), {"monitor": 2}),
        (later(10, jump=-3600), {"monitor": 2}),
    ):
        silent = how.pop("silent", False)
        seen = take(node, element(now=now, **how), before=first, now=now, silent=silent)
        seen = seen.checks["lb1"]["http"]
        assert (seen.result, seen.live, seen.age(now)) == ("bad", False, 15)
    gone = take(node, element(monitor=0), before=first, now=later(10))
    assert gone.checks["lb1"]["http"].result == "unwatched"
    back = take(node, element(monitor=6), before=gone, now=later(20)).checks["lb1"]["http"]
    assert (back.result, back.live, back.age(later(20))) == ("bad", False, 25)
    new = take(node, element(monitor=2), before=first, renewed=("lb1.http",))
    assert new.checks["lb1"]["http"].result == "never", "it is another check now"


def test_age_of_a_run_does_not_jump_with_the_clock(node):
    first = take(node, element(age=5))
    now = later(10, jump=3600)
    collected = element(age=5)  # monit has not run it since
    seen = take(node, collected, before=first, now=now)
    assert seen.checks["lb1"]["http"].age(now) == 15 and not seen.stalled(now)


def test_round_is_the_last_moment_at_which_monit_did_anything(node):
    both = {**SERVICES, "lb1.cert": ("lb1", "cert")}
    rows = (element(age=9), element("lb1.cert", age=7000, monitor=5, more=EVERY))
    found = take(node, *rows, services=both)
    assert (NOW.age(found.round), found.limit, found.stalled(NOW)) == (9, 120, "")
    assert found.stalled(later(112)) == "monit has not gone round for 121 s"
    assert found.stalled(later(900)) == "monit has not gone round for 15 min"
    silent = take(node, before=found, now=later(50), silent=True)
    assert silent.round == found.round and silent.stalled(later(50)) == ""
    assert NONE.stalled(NOW) == "monit does not answer"
    begun = take(node, element(monitor=2, age=3))
    assert NOW.age(begun.round) == 3, "it has just read its control file"


def test_pass_is_doubted_after_the_limit(node):
    found = take(node, element())
    assert (found.doubt(later(119)), NONE.limit) == ("", 2 * proof.WORST + 90)
    assert found.doubt(later(121)) == "no pass over this node for 121 s"
    assert NONE.doubt(NOW) == "no pass over this node since it booted"


def test_checks_of_the_node_and_the_agents_own_probes_are_seen_too(node):
    outcome = monit.Outcome(
        {"failure_threshold": 1}, {"codes": [1], "words": "old file", "at": later(-7).stamp()}
    )
    found = take(
        node,
        element("node-disk", status=2),
        element("node-a.http"),
        services={},
        own=["node-disk"],
        outcomes={"lb1": {"app": (outcome, 60), "new": (None, 60)}},
    )
    assert set(found.checks) == {NODE, "lb1"} and set(found.checks[NODE]) == {"disk"}
    assert found.checks[NODE]["disk"].reason == "a resource is beyond its limit"
    app, new = found.checks["lb1"]["app"], found.checks["lb1"]["new"]
    assert (app.result, app.reason, app.age(NOW), app.bound) == ("bad", "old file", 7, 180)
    assert new.result == "never"


def test_proof_is_kept_over_a_pass_and_seldom_results_over_a_boot(node, tmp_path):
    seldom = SimpleNamespace(at=node.now()[:2], kept=tmp_path / "state/seldom.json")
    rows = {"http": Seen("good", "", seldom.at, 5, 125, True, "good")}
    rows["cert"] = Seen("unwatched", "x", seldom.at, 86400, 86520, True, "bad")
    first = Proof(node.stamp(), node.stamp(), 15, {"lb1": rows}, {"held": None})
    proof.save(node, first, NONE)
    assert proof.load(node) == first
    before = seldom.kept.stat().st_mtime_ns
    proof.save(node, first._replace(stamp=node.stamp()), first)
    assert seldom.kept.stat().st_mtime_ns == before, "none of them ran"
    node.boot = "boot-2"
    booted = proof.load(node)
    assert (booted.stamp, booted.round, set(booted.checks["lb1"])) == (None, None, {"cert"})
    cert = booted.checks["lb1"]["cert"]
    assert (cert.last, cert.at) == ("bad", (seldom.at[0], None)) and 0 <= cert.age(node.now()) < 9
    (tmp_path / "run/proof.json").write_text("[]")
    seldom.kept.write_text("nonsense")
    assert proof.load(node) == NONE, "files that are not ours are no proof"


def test_monits_own_words_tell_why_a_check_fails(node, tmp_path):
    folder = tmp_path / "run/words"
    folder.mkdir()
    kept = folder / str(descriptions.cksum(b"lb1.http"))
    words = "failed protocol test [HTTP] at [127.0.0.1]:80/ [TCP/IP] -- Connection refused"
    kept.write_text(f"lb1.http\nConnection failed\n{words}\n")
    seen = take(node, element(status=32)).checks["lb1"]["http"]
    assert seen.reason == "connection refused"
    kept.write_text(f"lb1.smtp\nConnection failed\n{words}\n")
    assert take(node, element(status=32)).checks["lb1"]["http"].reason == "connection failed"
    program = "<program><status>1</status><output>no such row</output></program>"
    assert take(node, element(status=1, more=program)).checks["lb1"]["http"].reason == "no such row"


@pytest.mark.parametrize("text", ["", "{}", '{"stamp": 1}', '{"stamp": {"b": "boot-1"}}', "[1]"])
def test_torn_proof_is_none(node, tmp_path, text):
    (tmp_path / "run/proof.json").write_text(text)
    assert proof.load(node) == NONE


def test_proof_is_json(node):
    found = take(node, element())
    assert json.loads(json.dumps(found._asdict())) == {
        "stamp": NOW.stamp(),
        "round": {**NOW.stamp(), "t": NOW.t - 5, "m": NOW.m - 5},
        "worst": 15,
        "checks": {"lb1": {"http": ["good", "", [NOW.t - 5, NOW.m - 5], 5, 125, True, "good"]}},
        "more": {"look": None, "seldom": None},
    }


def test_good_outcome_says_no_reason(node):
    outcome = monit.Outcome({}, {"codes": [0], "words": "", "at": NOW.stamp()})
    found = take(node, services={}, outcomes={"lb1": {"app": (outcome, 60)}})
    assert found.checks["lb1"]["app"][:2] == ("good", "")
