"""What an operator types on a node: how the agent and monit are asked, and what they answer."""

import json
import time

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from tests.unit.modules.pillars import Commands, load, one


def test_the_agent_is_asked_by_argument_list():
    run = Commands('{"lb1": {"state": "healthy"}}')
    monit = load(**{"cmd.run_all": run, "config.get": lambda key, default: {"libexec": "/opt/lx"}})
    assert monit.status()["lb1"]["state"] == "healthy"
    monit.status("lb1")
    monit.sync()
    run.answer["stdout"] = '{"id": "1"}\n{"id": "2"}\n'
    assert [line["id"] for line in monit.history("lb1")] == ["1", "2"]
    wake = "/opt/lx/wake"
    assert run.ran == [
        [wake, "status"], [wake, "status", "lb1"], [wake, "sync", "--json"],
        [wake, "history", "lb1"],
    ]  # fmt: skip


def test_the_agents_default_place():
    run = Commands("{}")
    load(**{"cmd.run_all": run}).status()
    assert run.ran == [["/usr/local/libexec/cbsd_monit/wake", "status"]]


def test_what_was_given_up_is_tried_again_by_a_word_of_its_own():
    run = Commands('{"lb1": {"state": "starting"}}')
    monit = load(**{"cmd.run_all": run})
    assert monit.retry("lb1") == {"lb1": {"state": "starting"}}
    assert run.ran == [["/usr/local/libexec/cbsd_monit/wake", "retry", "lb1"]]
    with pytest.raises(SaltInvocationError, match="the name of an env"):
        monit.retry("(node)")
    with pytest.raises(CommandExecutionError, match="no env lb2 is watched"):
        load(**{"cmd.run_all": Commands(retcode=1, stderr="no env lb2 is watched")}).retry("lb2")


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "$(x)", 5, None])
def test_only_names_of_envs_reach_the_agent(name):
    run = Commands()
    with pytest.raises(SaltInvocationError):
        load(**{"cmd.run_all": run}).history(name)
    assert not run.ran


@pytest.mark.parametrize("call", ["sync", "status", "monit_version"])
def test_an_agent_that_fails_is_an_error_with_its_words(call):
    with pytest.raises(CommandExecutionError, match="exited 1: no such thing"):
        getattr(load(**{"cmd.run_all": Commands(retcode=1, stderr="no such thing")}), call)()


def test_a_pass_with_errors_of_single_envs_is_an_answer():
    monit = load(**{"cmd.run_all": Commands('{"errors": {"lb1": "no address yet"}}', retcode=1)})
    assert monit.sync() == {"errors": {"lb1": "no address yet"}}


def test_monit_version():
    version = Commands("This is Monit version 5.33.0\nBuilt with ssl")
    assert load(**{"cmd.run_all": version}).monit_version() == "5.33.0"


# --- What the pillar means for one env


def asked(spec, listed, version="This is Monit version 5.33.0"):
    answers = {
        "cmd.run_all": Commands(version) if version else Commands(retcode=1),
        "slsutil.renderer": lambda string, default_renderer: {
            "pillar": spec,
            "lookup": {"libexec": "/opt/lx"},
        },
        "cbsd.list": lambda: listed,
    }
    return load(**answers)


def test_it_asks_for_the_pillar_and_the_envs_itself():
    spec = one({"type": "exec", "command": ["/x"]})
    listed = {"lb1": {"emulator": "jail"}, "odd": {"emulator": "xen"}, "vm1": {"emulator": "bhyve"}}
    told = asked(spec, listed).explain("lb1")
    assert (told["node"], told["emulator"]) == ("hv1", "jail")
    assert '"/opt/lx/wake probe lb1 c"' in told["checks"]["c"]["monit"][0]
    found = asked(spec, listed, "This is Monit version 5.35.0").explain("lb1")
    assert found["checks"]["c"]["run_by"] == "the agent"
    assert asked(spec, listed, None).explain("lb1")["checks"]["c"]["monit"]
    with pytest.raises(CommandExecutionError, match="^env vm1 is on hv1, but"):
        asked(spec, listed).explain("vm1")
    with pytest.raises(CommandExecutionError, match="^env odd is not on hv1$"):
        asked(spec, listed).explain("odd")
    with pytest.raises(SaltInvocationError, match="the name of an env"):
        asked(spec, listed).explain("../x")


def test_the_bound_of_each_check_is_what_the_agent_says():
    module = asked(one({"type": "tcp", "port": 1}), {"lb1": {"emulator": "jail"}})
    told = module.explain("lb1")
    assert told["checks"]["c"]["bound"] is told["worst_cycle"] is None, "monit -V is no status"
    checks = {"c": {"result": "good", "age": 1.0, "bound": 145.5}, "env": {"bound": 105.5}}
    rows = {"lb1": {"state": "healthy", "checks": checks}, "(node)": {"worst_cycle": 12.75}}
    answers = {"status": Commands(json.dumps(rows)), "-V": Commands("version 5.33.0")}
    module.__salt__["cmd.run_all"] = lambda argv, **more: answers[argv[1]](argv, **more)
    told = module.explain("lb1")
    assert answers["status"].ran == [["/usr/local/libexec/cbsd_monit/wake", "status", "lb1"]]
    assert [told["checks"][name]["bound"] for name in ("c", "env")] == [145.5, 105.5]
    assert told["worst_cycle"] == 12.75


def test_text_is_what_explain_returns_when_asked():
    module = asked(one({"type": "running"}), {"lb1": {"emulator": "jail"}})
    text = module.__salt__["cbsd_monit_explain.text"](module.explain("lb1"))
    assert module.explain("lb1", text=True) == text


# --- The present state, to read

STATUS = {
    "lb1": {
        "emulator": "jail", "state": "backoff", "since": 1795372240.1, "check": "http",
        "reason": "port 80\nfailed",
        "next": 1795372300.0, "restarts": 2, "quarantined": None, "silence": None,
        "last": [
            {
                "time": 1795372200.0, "transition": "failing", "check": "http",
                "reason": "port 80 failed",
            },
            {"time": 1795372240.0, "transition": "backoff"},
        ],
    },
    "database1": {"state": "healthy", "since": None, "next": 5.0},
}  # fmt: skip


@pytest.fixture
def shown(monkeypatch):
    """The table that is made of what the agent answers."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: 1795372258.0)

    def show(answer, *env):
        table = load(**{"cmd.run_all": Commands(json.dumps(answer))}).status(*env, text=True)
        return table.split("\n")

    return show


def test_status_as_a_table_of_an_agent_that_says_less(shown):
    assert shown(STATUS) == [
        "env        state    since                age  restarts  next attempt",
        "database1  healthy  -                    -    -         now",
        "lb1        backoff  2026-11-22 18:30:40  -    2         in 42 s",
        "  http: port 80 failed",
    ]
    assert shown({"lb1": STATUS["lb1"]}, "lb1")[3:] == [
        "2026-11-22 18:30:00  failing  http  port 80 failed",
        "2026-11-22 18:30:40  backoff",
    ]
    assert load(**{"cmd.run_all": Commands(json.dumps(STATUS))}).status() == STATUS


NOTHING = {
    **dict.fromkeys(
        "emulator since age last_known check intent intent_why next silence quarantined".split()
    ),
    "reason": "", "failing": {}, "checks": {}, "attempts": 0, "restarts": 0, "last": [],
}  # fmt: skip
EXPIRES = {"since": 1795370000.0, "reason": "certificate expires in 19 days", "warning": True}
HTTP_500 = {"since": 1795372200.0, "reason": "HTTP 500", "warning": False}


def test_status_shows_the_node_the_unwatched_and_all_that_fails_and_fits_a_terminal(shown):
    held = {"generation": 7, "why": "rolled back by root"}
    answer = {
        "(node)": {
            **NOTHING, "state": "failing", "age": 3.2, "check": "uplink", "reason": "no answer",
            "failing": {"uplink": {**EXPIRES, "reason": "no answer"}}, "held": held,
        },
        "bare1": {**NOTHING, "emulator": "jail", "state": "unwatched", "age": 3.2},
        "lb1": {
            **NOTHING, "state": "backoff", "since": 1795372240.1, "age": 3.2, "check": "http",
            "reason": "next attempt in 60 s: HTTP 500", "next": 1795372300.0, "restarts": 12,
            "failing": {"http": HTTP_500, "tls": EXPIRES, "app": {"reason": "exit\x1b[2J code 3"}},
            "quarantined": "monit says: monitrc.tpl:7: syntax error 'x'",
        },
        "web1": {
            **NOTHING, "state": "gave_up", "since": 1795372240.1, "age": 130, "next": 1795372300.0,
            "check": "http", "reason": "3 attempts did not help: HTTP 500; cbsd_monit.retry web1",
            "failing": {"http": HTTP_500},
        },
        "web2": {
            **NOTHING, "state": "warning", "since": 1795372240.1, "age": 7201, "check": "tls",
            "reason": EXPIRES["reason"], "failing": {"tls": EXPIRES},
        },
        "web3": {
            **NOTHING, "state": "quarantined", "reason": "refused: unbalanced quotes",
            "quarantined": "refused: unbalanced quotes",
        },
    }  # fmt: skip
    lines = shown(answer)
    assert lines == [
        "env     state        since                age    restarts  next attempt",
        "(node)  failing      -                    3 s    0         -",
        "  generation 7 is published and kept: rolled back by root",
        "  uplink (warning): no answer",
        "bare1   unwatched    -                    3 s    0         -",
        "lb1     backoff      2026-11-22 18:30:40  3 s    12        in 42 s",
        "  quarantined: monit says: monitrc.tpl:7: syntax error 'x'",
        "  http: next attempt in 60 s: HTTP 500",
        "  app: exit?[2J code 3",
        "  tls (warning): certificate expires in 19 days",
        "web1    gave_up      2026-11-22 18:30:40  2 min  0         -",
        "  http: 3 attempts did not help: HTTP 500; cbsd_monit.retry web1",
        "web2    warning      2026-11-22 18:30:40  2 h    0         -",
        "  tls (warning): certificate expires in 19 days",
        "web3    quarantined  -                    -      0         -",
        "  quarantined: refused: unbalanced quotes",
    ]
    assert max(map(len, lines)) <= 80


def test_status_shows_what_was_known_and_when_beside_unknown(shown):
    why = "monit's last round ended 900 s ago"
    row = {**NOTHING, "state": "unknown", "since": 1795372258.0, "age": 310.4, "reason": why}
    known = {"state": "healthy", "reason": "", "since": 1795300000.0}
    found = shown({"lb1": {**row, "last_known": known}})[2:]
    assert found == ["  was healthy 5 min ago", f"  {why}"]
    known = {"state": "failing", "reason": "HTTP 500", "since": 1795372158.0}
    found = shown({"lb1": {**row, "age": None, "last_known": known}})[2:]
    assert found == ["  was failing 100 s ago: HTTP 500", f"  {why}"]


def test_status_tells_what_is_done_and_why_but_nothing_twice(shown):
    row = {**NOTHING, "state": "healing", "check": "http", "failing": {"http": HTTP_500}}
    assert shown({"lb1": {**row, "reason": "restart"}})[2:] == [
        "  http: restart",
        "  http: HTTP 500",
    ]
    assert shown({"lb1": {**row, "reason": "restart: HTTP 500"}})[2:] == [
        "  http: restart: HTTP 500"
    ]


def test_status_of_one_env_shows_how_fresh_each_check_is(shown):
    checks = {
        "http": {"result": "good", "age": 12.3, "bound": 145.5},
        "tls": {"result": "never", "age": None, "bound": 86635},
    }
    row = {**STATUS["lb1"], "state": "starting", "checks": checks}
    lines = shown({"lb1": row, "(node)": {**NOTHING, "state": "healthy"}}, "lb1")
    assert lines[4:] == [
        "",
        "check  result  age   bound",
        "http   good    12 s  145.5 s",
        "tls    never   -     86635 s",
        "",
        "2026-11-22 18:30:00  failing  http  port 80 failed",
        "2026-11-22 18:30:40  backoff",
    ]


def test_status_of_an_agent_that_fails_is_an_error():
    with pytest.raises(CommandExecutionError):
        load(**{"cmd.run_all": Commands(retcode=1, stderr="no")}).status(text=True)
