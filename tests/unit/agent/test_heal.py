"""One heal: what it does to CBSD in which order, what is written before, and when it gives up."""

import json
import subprocess
import time
from types import SimpleNamespace

import heal
import hooks
import passes
import pytest
import records

from .conftest import cases, remember, script

# jstop and jstart as CBSD does them: hooks, the kernel, hooks.  Each call is noted with the step of
# the journal on disk; `on_jstop` and `on_jstart` happen at the end of it, `no_jstop` instead of it.
CBSD = """#!/bin/sh
cd {top}
hook() {{
  n=$(($(cat count) + 1)); echo $n > count
  {{ printf '1 %s lb1\\n\\njname=lb1\\0emulator=jail\\0jid=7\\0' $1
    [ -z "$CBSD_MONIT_CAUSE" ] || printf 'CBSD_MONIT_CAUSE=%s\\0' "$CBSD_MONIT_CAUSE"
  }} > state/inbox/$n.1:$1:lb1
}}
step=$(sed -n 's/.*"step": "\\([a-z]*\\)".*/\\1/p' state/envs/lb1.json)
[ "$1" = -c ] || echo "$1 $2 $3 ${{CBSD_MONIT_CAUSE:-operator}} $step" >> calls
[ -e "no_$1" ] && {{ echo "$1: no"; exit 0; }}
case $1 in
  -c) cat rows; exit ;;
  jstop) hook master_prestop.d; : > kernel; hook master_poststop.d ;;
  jstart) hook master_prestart.d; echo lb1 > kernel; hook master_poststart.d ;;
esac
[ ! -e "on_$1" ] || . ./on_$1
"""
STOPPED = "unset CBSD_MONIT_CAUSE\nhook master_prestop.d\nhook master_poststop.d\n"


class Seen(SimpleNamespace):
    """What the fake monit says of a service: ``good`` or not since any moment before now."""

    message, seldom = "", False

    def interval(self, poll):
        return 86400 if self.seldom else poll

    def good_since(self, moment):
        return self.good and moment < self.collected


class Site:
    """lb1 on a node whose CBSD is a script, and whose monit says what ``services`` holds."""

    def __init__(self, node, world, tmp_path):
        self.node, self.world, self.top = node, world, tmp_path
        self.services = {"lb1.env": True, "lb1.http": True}
        self.age = 0  # seconds since monit last looked
        self.seldom = set()  # services that run once a day

    def status(self):
        if self.services is None:
            return None
        now, up = time.time() - self.age, self.up()
        seen = {n: Seen(good=good and up, collected=now) for n, good in self.services.items()}
        for name in self.seldom:
            seen[name] = Seen(good=False, collected=now, seldom=True)
        return SimpleNamespace(services=seen)

    def begin(self, up=True, rules=None, **record):
        """lb1 as one pass left it, with ``record``; all checks of ``rules`` are to be good."""
        plain = {"start_period": 0, "restart": {"timeout": 9}, "checks": {"http": HTTP}}
        self.world.env("lb1", policy={**plain, **(rules or {})})
        passes.run(self.node)
        owners = {name: ["lb1", name[4:]] for name in [*self.services, *self.seldom]}
        (self.top / "state/services.json").write_text(json.dumps(owners))
        remember(self.node, "lb1", **{"state": "failing", "check": "http", **record})
        if not up:
            self.world.kill("lb1")

    def heal(self, check="http"):
        return heal.Heal(self.node, "lb1", check, "port 80").run()

    def record(self):
        return records.load(self.node, "lb1").at(self.node.now())

    def calls(self):
        path = self.top / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def happens(self, when, script):
        (self.top / when).write_text(script)

    def operator(self, verb):
        subprocess.run([self.node.conf["cbsd"], verb, "-", "-"], check=True, timeout=20)

    def up(self):
        return "lb1" in (self.top / "kernel").read_text()


HTTP = {"type": "http", "interval": 1, "timeout": 1}
STOP, START = "jstop inter=0 jname=lb1 heal stop", "jstart inter=0 jname=lb1 heal start"


@pytest.fixture
def site(node, world, tmp_path, monkeypatch, no_monit):
    found = Site(node, world, tmp_path)
    (tmp_path / "bin/cbsd").write_text(CBSD.format(top=tmp_path))
    (tmp_path / "count").write_text("1000000000")
    ahead = [0.0]  # a sleep takes no time, but a second by this clock

    def sleep(_):
        ahead[0] += 1

    clock = {"monotonic": lambda: time.monotonic() + ahead[0], "time": time.time}
    monkeypatch.setattr(heal, "time", SimpleNamespace(sleep=sleep, **clock))
    monkeypatch.setattr(heal, "Monit", lambda _: SimpleNamespace(status=found.status))
    return found


@cases(
    ("up", "check", "given", "calls"),
    (True, "http", {}, [STOP, START]),
    (False, "http", {}, [START]),
    (False, "env", {}, [START]),
    (True, "depends_on", {"rules": {"on_failure": ["start"]}}, [STOP, START]),
    (False, "env", {"rules": {"on_failure": [{"service_restart": "x"}]}}, [START]),
    (False, "http", {"rules": {"on_failure": ["start"]}}, [START]),
    (True, "http", {"rules": {"on_failure": ["start"]}}, []),
    (True, "http", {"rules": {"on_failure": ["alert", "start", "restart"]}}, []),
    (True, "http", {"rules": {"on_failure": ["start", "restart"]}, "rung": 1}, [STOP, START]),
    (True, "http", {"rules": {"on_failure": ["start", "restart"]}, "rung": 9}, [STOP, START]),
    (False, "env", {"rules": {"on_failure": ["start"]}, "rung": 9}, [START]),
    (True, "http", {"rules": {"on_failure": ["event"]}}, [STOP, START]),
)
def test_heal_looks_acts_and_verifies(site, up, check, given, calls):
    site.begin(up, **given)
    assert site.heal(check) is True
    assert site.calls() == calls and site.up()
    env = site.record()
    # The next pass says in which state that leaves the env.
    assert (env["state"], env["op"], env["rung"], env["warm"]) == ("healing", None, 0, True)
    assert (env["heals"], len(env["attempts"]), env["next"], env["phase"]) == (1, 1, None, None)
    assert (env["intent"], env["check"]) == ("running", check)
    assert bool(env["restarted"]) == bool(calls) and env.age("started") < 20
    last = records.history(site.node, "lb1")[-2:]
    assert [entry["transition"] for entry in last] == ["healing", "healed"]
    assert hooks.waiting(site.node)[0] == [], "our own hooks were taken in"
    assert (last[0]["attempt"], last[0]["check"], last[0]["reason"]) == (1, check, "port 80")


def failed(site, words, calls=None, check="http"):
    assert site.heal(check) is False
    env = site.record()
    assert (env["state"], env["op"], env["rung"]) == ("failing", None, 1)
    assert words in env["reason"], env["reason"]
    assert (len(env["attempts"]), env["heals"], bool(env["next"])) == (1, 1, True)
    assert calls is None or site.calls() == calls
    return env


@cases(
    ("up", "without", "words", "calls"),
    (True, "no_jstop", "it did not stop: jstop: no", [STOP]),
    (True, "no_jstart", "it did not start: jstart: no", [STOP, START]),
    (False, "no_jstart", "it did not start: jstart: no", [START]),
)
def test_cbsd_that_does_nothing_is_an_attempt_that_did_not_help(site, up, without, words, calls):
    site.begin(up)
    site.happens(without, "")
    failed(site, words, calls)


def test_kernel_that_does_not_answer_is_an_attempt_that_did_not_help(site):
    site.begin()
    script(site.top / "bin/jls", "echo no jails\nexit 1")
    failed(site, "jls: no jails", [])
    site.operator("jstop")
    site.heal()
    assert site.record()["next"] is None, "given up: an operator stopped it"


@cases(
    ("services", "age", "words"),
    ({"lb1.env": True, "lb1.http": False}, 0, "lb1.http: no success yet"),
    ({"lb1.env": True}, 0, "lb1.http: no success yet"),
    ({"lb1.env": True, "lb1.http": True}, 60, "lb1.env: no success yet"),  # seen before
    (None, 0, "monit does not answer"),
)
def test_env_that_is_not_well_again_in_time_waits_for_the_next_attempt(site, services, age, words):
    site.begin(rules={"on_failure": ["restart", "event"], "restart": {"delay": 40, "jitter": 0}})
    site.services, site.age = services, age
    env = failed(site, f"not healthy 23 s after it: {words}", [STOP, START])
    assert (env["next"]["seconds"], env["warm"]) == (40, False) and env.age("started") < 20
    last = records.history(site.node, "lb1")[-1]
    assert (last["transition"], last["event"], last["attempt"]) == ("failing", True, 1)
    remember(site.node, "lb1", next=None)
    site.heal()
    assert site.record()["next"]["seconds"] == 80 and site.record()["rung"] == 2


def test_checks_that_only_alert_need_not_be_good(site):
    site.begin(up=False, rules={"checks": {"http": {**HTTP, "on_failure": ["alert"]}}})
    site.services["lb1.http"] = False
    failing = {"since": site.node.stamp(), "reason": "HTTP 500"}
    rows = {"env": {**failing, "warning": False}, "http": {**failing, "warning": True}}
    remember(site.node, "lb1", failing=rows)
    assert site.heal("env") is True
    env = site.record()
    assert set(env["failing"]) == {"http"}
    site.services["lb1.env"] = False
    assert site.heal("http") is False


def test_heal_for_a_check_that_runs_seldom_has_not_healed_yet(site):
    """It is not waited for, so nobody saw it good."""
    site.seldom = {"lb1.cert"}
    site.begin(rules={"checks": {"http": HTTP, "cert": {**HTTP, "interval": 86400}}})
    assert site.heal("cert") is True
    told = [entry["transition"] for entry in records.history(site.node, "lb1")]
    assert "healing" in told and "healed" not in told and site.record()["op"] is None


@cases(
    ("rung", "words"),
    ({"command": ["{top}/act", "1"], "in": "host"}, "host 1"),
    ({"command": ["act", "2"], "in": "jail"}, "jexec lb1 act 2"),
    ({"service_restart": "nginx"}, "jexec lb1 /usr/sbin/service nginx restart"),
)
@pytest.mark.parametrize("outcome", ["healed", "failed", "not trusted"])
def test_command_of_a_ladder(site, rung, words, outcome):
    code = 3 if outcome == "failed" else 0
    for path, name in (("act", "host"), ("bin/jexec", "jexec")):
        script(site.top / path, f"echo {name} $* >> {site.top}/ran\necho bad luck\nexit {code}")
    if "command" in rung:
        rung = {**rung, "command": [w.format(top=site.top) for w in rung["command"]]}
    site.begin(rules={"on_failure": [rung]})
    if outcome == "not trusted":
        (site.top / "work/jails-system/lb1/monit").chmod(0o777)
        failed(site, "its policy's command is not run: neither pillar says so")
        assert not (site.top / "ran").exists()
        return
    if outcome == "healed":
        assert site.heal() is True and site.record()["restarted"] is None
    else:
        failed(site, "bad luck")
    assert ((site.top / "ran").read_text(), site.calls()) == (words + "\n", [])


@cases(("step", "words"), ({"command": ["/bin/sleep", "5"]}, "sleep 5"), ("restart", "not start"))
def test_what_hangs_is_killed_after_the_time_that_the_policy_gives_it(site, step, words):
    site.begin(rules={"on_failure": [step], "restart": {"timeout": 1}})
    site.happens("on_jstart", ": > kernel; sleep 5\n")
    failed(site, f"{words}: no answer within 1 s, killed")


def test_ladder_that_says_stop_stops_it_for_good(site):
    site.begin(rules={"on_failure": ["stop"]})
    assert site.heal() is False
    assert (site.calls(), site.up()) == ([STOP], False)
    env = site.record()
    assert (env["intent"], env.why()) == ("stopped", ("policy", "on_failure: stop (http)"))
    assert (env["op"], env["next"], env["rung"]) == (None, None, None)
    assert passes.run(site.node).envs["lb1"]["state"] == "stopped"


@cases(
    ("check", "given", "words"),
    ("http", {"intent": "stopped"}, "heal given up, intent stopped, phase None"),
    ("http", {"phase": "starting"}, "heal given up, intent running, phase starting"),
    ("env", {}, "heal given up, it runs again"),
)
def test_what_is_no_longer_to_be_healed_is_left_alone(site, capsys, check, given, words):
    site.begin(**given)
    with site.node.env_lock("lb1", "restart by ann"):
        assert site.heal(check) is False and site.record()["heals"] is None
    assert "restart by ann" in capsys.readouterr().err
    assert site.heal(check) is False and site.calls() == []
    assert words in capsys.readouterr().err
    assert (site.record()["op"], site.record()["rung"], site.record()["next"]) == (None, None, None)


@cases(("column", "words"), ({"status": "2"}, "became a slave copy"), (None, "is gone"))
@pytest.mark.parametrize("when", ["before", "on_jstop"])
def test_env_that_is_no_longer_ours_is_not_started(site, capsys, column, words, when):
    site.begin()
    kept = (site.top / "rows").read_text()
    site.world.rows["lb1"].update(column or {})
    site.world.forget("lb1") if column is None else site.world.write()
    (site.top / "new").write_text((site.top / "rows").read_text())
    (site.top / "kernel").write_text("lb1\n")
    if when != "before":
        (site.top / "rows").write_text(kept)
        site.happens(when, "cp new rows\n")
    assert site.heal() is False
    assert site.calls() == ([] if when == "before" else [STOP])
    assert f"heal given up, the env {words}" in capsys.readouterr().err
    assert (site.record()["op"], site.record()["rung"]) == (None, None)


@cases(
    ("moment", "calls"),
    ("_act", []),  # after the journal's `op`, before the heal looks
    ("_journal", ["jstop inter=0 jname=lb1 heal stop"]),  # after it looked: it is down already
    ("on_jstop", [STOP]),  # between its stop and its start
    ("on_jstart", [STOP, START]),
    ("_verify", [STOP, START]),
)
def test_env_that_an_operator_stops_meanwhile_stays_down(site, monkeypatch, capsys, moment, calls):
    """No pass takes the stop in: the heal finds it in the inbox."""
    site.begin()
    if moment.startswith("on_"):
        site.happens(moment, STOPPED + ": > kernel\n")
    else:
        real = getattr(heal.Heal, moment)

        def stopped_first(*args):
            monkeypatch.setattr(heal.Heal, moment, real)
            site.operator("jstop")
            return real(*args)

        monkeypatch.setattr(heal.Heal, moment, stopped_first)
    assert site.heal() is False
    assert [call for call in site.calls() if "operator" not in call] == calls and not site.up()
    assert "heal given up, stopped" in capsys.readouterr().err
    assert (site.record()["op"], site.record()["next"]) == (None, None)
    for _ in range(2):
        seen = passes.run(site.node)
        env = seen.envs["lb1"]
        assert (env["intent"], env["state"], seen.due) == ("stopped", "stopped", [])
        assert hooks.waiting(site.node)[0] == []
    assert env.why()[0] == "operator"


@pytest.mark.parametrize("at", ["jstop", "jstart"])
def test_what_a_killed_heal_leaves_says_where_it_was_and_who_holds_its_lock(site, at):
    """The journal is on disk before CBSD is called; the shell that waits for it has the lock."""
    site.begin()
    held = "echo $PPID heal | cmp - run/lock/lb1 && touch held"
    site.happens(f"on_{at}", f"cp state/envs/lb1.json killed.json\n{held}\n")
    assert site.heal() is True
    left = json.loads((site.top / "killed.json").read_text())
    op = left["op"]
    assert (op["step"], op["action"], left["state"]) == (at[1:], "restart", "healing")
    assert len(left["attempts"]) == left["heals"] == 1 and (site.top / "held").exists()


def test_bug_in_a_heal_is_told_as_ours_and_counts_as_an_attempt(site, monkeypatch, capsys):
    site.begin()
    monkeypatch.setattr("cbsd.start", lambda *_: {}["surprise"])
    env = failed(site, "a bug in cbsd_monit, not your configuration: healing lb1: KeyError")
    assert env["reason"].endswith(f"the traceback is in {site.node.in_state('agent.log')}")
    assert "Traceback" in capsys.readouterr().err and not site.up()
    with site.node.env_lock("lb1", "free again"):
        pass


def test_attempts_beyond_the_interval_do_not_lengthen_the_wait(site):
    now = site.node.stamp()
    old, recent = {**now, "m": now["m"] - 1801}, {**now, "m": now["m"] - 50}
    site.begin(rules={"restart": {"delay": 10, "jitter": 0}}, attempts=[old, old, recent])
    site.happens("no_jstop", "")
    site.heal()
    assert (len(site.record()["attempts"]), site.record()["next"]["seconds"]) == (4, 20)


@pytest.mark.parametrize(("codes", "healed"), [([0], True), ([1], False)])
def test_probes_that_the_agent_runs_itself_have_to_be_good_too(site, monkeypatch, codes, healed):
    site.node.conf["probes"] = "agent"
    site.begin(rules={"checks": {"http": HTTP, "app": {**HTTP, "type": "file", "path": "/x"}}})
    monkeypatch.setattr("probes.run", lambda *_: (codes[0], "no such file"))
    if healed:
        assert site.heal() is True and site.record()["probes"]["app"]["codes"] == [0]
    else:
        failed(site, "app: no such file")
