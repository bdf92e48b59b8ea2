"""
What ``cbsd_monit.explain`` says: where values come from is checked against the pillar, when things
happen against the agent's own code, and that monit agrees in
``tests/functional/modules/test_render_monit.py``.
"""

import contextlib
import copy
import json
import pathlib
import random
import sys

import pytest
from salt.exceptions import SaltInvocationError

from tests.unit.modules.pillars import example, jails, load, one

REPO = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "cbsd_monit/files/agent"))


@pytest.fixture(scope="module")
def salt():
    return load().__salt__


def explain(salt, spec, env="lb1", node="hv1", envs=None, **more):
    envs = envs or jails("lb1", "db1", "web1")
    return salt["cbsd_monit_explain.explain"](spec, node, envs, env, **more)


def check(salt, spec, name="c", **more):
    return explain(salt, spec, **more)["checks"][name]


def words(told):
    return [row["what"] for row in told["timeline"]]


def at(spec, path):
    """What a pillar in normal form holds at a path such as ``cbsd_monit:envs:lb1:heal``."""
    for key in path.split(":")[1:]:
        spec = spec[key]
    return spec


# --- Where values come from

LAYERS = {
    "defaults": {"interval": 11, "timeout": 2, "restart": {"attempts": 11, "delay": 11}},
    "monit": {"poll": 1},
    "nodes": {
        "hv*": {"defaults": {"timeout": 3, "restart": {"delay": 12}}, "monit": {"poll": 2}},
        "hv1": {
            "defaults": {"start_period": 13},
            "envs": {"lb1": {"heal": True, "checks": {"http": {"timeout": 4}, "gone": False}}},
        },
    },
    "profiles": {
        "a": {"checks": {
            "http": {"type": "http", "path": "/a", "headers": {"X-A": "a"}},
            "gone": {"type": "running"},
        }},
        "b": {"checks": {
            "http": {"type": "http", "path": "/b", "status": 200, "headers": {"X-B": "b"}},
            "up": {"type": "http"},
        }},
    },
    "groups": {
        "g": {
            "match": "lb*", "profiles": ["a"], "restart": {"max_delay": 14},
            "checks": {"http": {"port": 81}},
        },
        "h": {"match": "*", "success_threshold": 4, "on_failure": "alert"},
        "other": {"match": "db*", "interval": 99},
    },
    "envs": {"lb1": {
        "profiles": ["b"], "heal": False,
        "on_failure": ["alert", "restart"],
        "depends_on": ["db1"],
        "checks": {
            "http": {"failure_threshold": {"failures": 2, "within": 3}, "restart": {"attempts": 2}},
            "up": {"type": "tcp", "port": 5},
        },
    }},
}  # fmt: skip


def test_every_value_says_where_it_stands(salt):
    told = explain(salt, LAYERS)
    found = told["checks"]["http"]["settings"]
    settings = {key: row["from"].replace("cbsd_monit:", "") for key, row in found.items()}
    assert settings == {
        "type": "profiles:b:checks:http:type", "path": "profiles:b:checks:http:path",
        "status": "profiles:b:checks:http:status", "headers": "profiles:b:checks:http:headers",
        "port": "groups:g:checks:http:port", "method": "built-in default",
        "tls": "built-in default", "verify": "built-in default", "interval": "defaults:interval",
        "timeout": "nodes:hv1:envs:lb1:checks:http:timeout",
        "failure_threshold": "envs:lb1:checks:http:failure_threshold",
        "success_threshold": "groups:h:success_threshold",
        "start_period": "nodes:hv1:defaults:start_period",
        "on_failure": "envs:lb1:on_failure",
        "restart:attempts": "envs:lb1:checks:http:restart:attempts",
        "restart:interval": "built-in default",
        "restart:delay": "nodes:hv*:defaults:restart:delay",
        "restart:delay_function": "built-in default",
        "restart:max_delay": "groups:g:restart:max_delay",
        "restart:jitter": "built-in default", "restart:reset_after": "built-in default",
        "restart:mode": "built-in default", "restart:timeout": "built-in default",
    }  # fmt: skip
    assert set(told["checks"]) == {"env", "http", "up"}
    assert set(told["checks"]["up"]["settings"]) >= {"port"}
    assert "path" not in told["checks"]["up"]["settings"]
    assert told["policy"]["heal"] == {"value": True, "from": "cbsd_monit:nodes:hv1:envs:lb1:heal"}
    given = "cbsd_monit:defaults:restart:attempts"
    assert told["policy"]["restart:attempts"] == {"value": 11, "from": given}
    assert told["policy"]["depends_on"]["from"] == "cbsd_monit:envs:lb1:depends_on"
    assert told["layers"] == [
        "built-in defaults", "cbsd_monit:defaults", "cbsd_monit:nodes:hv*:defaults",
        "cbsd_monit:nodes:hv1:defaults",
        "cbsd_monit:profiles:a (named by cbsd_monit:groups:g:profiles)", "cbsd_monit:groups:g",
        "cbsd_monit:groups:h",
        "cbsd_monit:profiles:b (named by cbsd_monit:envs:lb1:profiles)", "cbsd_monit:envs:lb1",
        "cbsd_monit:nodes:hv1:envs:lb1",
    ]  # fmt: skip


VALUES = {
    "interval": [10, 20, 60], "timeout": [1, 5],
    "failure_threshold": [1, 3, {"failures": 2, "within": 4}], "success_threshold": [1, 2],
    "start_period": [0, 30], "on_failure": [["restart"], ["alert"], ["event", "start"]],
}  # fmt: skip
RESTART = {"attempts": [1, 5], "delay": [0, 9], "mode": ["fail", "delay"], "jitter": [0, 0.5]}


def some(rng, options):
    return {key: rng.choice(values) for key, values in options.items() if rng.random() < 0.4}


def anything(rng):
    """A random pillar in which everything may be said anywhere."""

    def settings(heal=True):
        said = some(rng, {**VALUES, "heal": [True, False]} if heal else VALUES)
        return {**said, **({"restart": some(rng, RESTART)} if rng.random() < 0.5 else {})}

    def checks(whole):
        exec_ = {"type": "exec", "command": ["/bin/x"]}
        kinds = [{"type": "tcp", "port": 22}, {"type": "http", "path": "/x"}, exec_]
        made = {
            name: {**(rng.choice(kinds) if whole else {}), **settings(heal=False)}
            for name in ("a", "b")
        }
        return {name: check for name, check in made.items() if rng.random() < 0.7}

    return {
        "defaults": settings(),
        "profiles": {"p": {"checks": checks(True)}, "q": {"checks": checks(True)}},
        "groups": {
            n: {"match": "*", "profiles": [rng.choice("pq")], **settings(), "checks": checks(True)}
            for n in "gh"
        },
        "envs": {"lb1": {**settings(), "checks": checks(True)}},
        "nodes": {
            n: {"defaults": settings(), "envs": {"lb1": settings()}}
            for n in ("hv1", "hv*")
            if rng.random() < 0.5
        },
    }


@pytest.mark.parametrize("seed", range(60))
def test_what_it_says_is_what_the_policy_has_and_what_the_pillar_says_there(salt, seed):
    spec = anything(random.Random(seed))
    told = explain(salt, spec)
    policy = salt["cbsd_monit.effective"](spec, "hv1", jails("lb1"))["lb1"]
    read = salt["cbsd_monit.validate"](spec)
    defaults = salt["cbsd_monit.validate"]({})["defaults"]
    assert set(told["checks"]) - {"env"} == set(policy["checks"])
    places = [
        (told["policy"], policy),
        *((told["checks"][n]["settings"], c) for n, c in policy["checks"].items()),
    ]
    seen = 0
    for settings, effective in places:
        for key, row in settings.items():
            assert row["value"] == at(effective, f":{key}"), key
            if row["from"] != "built-in default":
                assert row["value"] == at(read, row["from"]), key
                seen += 1
            elif key.split(":")[0] in defaults:
                assert row["value"] == at(defaults, f":{key}"), key
                assert spec["defaults"].get(key) is None
    assert seen > 5


def test_origins_do_not_change_what_is_meant(salt):
    for spec in (LAYERS, example()):
        plain = salt["cbsd_monit_policy.for_node"](
            spec, "hv1.example.net", jails("lb1", "db1", "web1")
        )
        told = salt["cbsd_monit_policy.for_node"](
            spec, "hv1.example.net", jails("lb1", "db1", "web1"), origins=True
        )
        assert "origins" not in plain and told.pop("origins")
        assert told == plain
        assert type(plain["policies"]["lb1"]["restart"]) is dict


def test_it_is_plain_data_and_does_not_change_what_it_got(salt):
    spec = example()
    before = copy.deepcopy(spec)
    told = explain(salt, spec, node="hv1.example.net")
    assert json.loads(json.dumps(told)) == told
    assert spec == before


def test_secrets_are_not_repeated(salt):
    spec = one(
        {"type": "http", "headers": {"Authorization": "Bearer s3cret"}},
        raw='if failed port 1 send "s3cret" then alert',
    )
    told = explain(salt, spec)
    assert "s3cret" not in json.dumps(told) + salt["cbsd_monit_explain.text"](told)
    assert told["checks"]["c"]["settings"]["headers"]["value"] == {"Authorization": "(not shown)"}
    assert told["checks"]["raw"]["settings"]["raw"]["from"] == "cbsd_monit:envs:lb1:raw"


# --- What monit is told


def test_the_monit_lines_are_those_that_are_rendered(salt):
    spec = {"envs": {"Lb1": {"checks": {
        "c": {"type": "tcp", "port": 22},
        "d": {"type": "exec", "command": ["/x"]},
    }}}}  # fmt: skip
    lookup = {"libexec": "/opt/lx", "state": "/s", "rootgroup": "root", "run": "/r"}
    told = explain(salt, spec, "Lb1", envs=jails("Lb1"), lookup=lookup)["checks"]
    assert told["c"]["monit"] == [
        'check host "=lb1.c" with address "%%ADDRESS%%"',
        "  onreboot laststate",
        '  depends on "=lb1.env"',
        "  every 3 cycles",
        "  if failed port 22 with timeout 5 seconds for 3 cycles",
        '    then exec "/opt/lx/wake monit =lb1.c" repeat every 1 cycles',
        '    else if succeeded for 1 cycles then exec "/opt/lx/wake monit =lb1.c"',
    ]
    host = 'check program "=lb1.d" with path "/opt/lx/wake probe Lb1 d" with timeout 10 seconds'
    assert told["d"]["monit"][0] == host
    assert told["env"]["monit"][0] == 'check file "=lb1.env" with path "/r/dead/Lb1"'


def test_a_template_without_the_check_is_said():
    text = '# nothing\ncheck host "%%ENV%%.x" with address 1.2.3.4\n'
    salt = load(**{"cp.get_file_str": lambda url: text}).__salt__
    told = explain(salt, {**one({"type": "tcp", "port": 1}), "template": "salt://x"})["checks"]["c"]
    assert told["monit"] == [] and "renders no service" in told["notes"][0]


def test_probes_are_the_agents_where_monit_cannot(salt):
    spec = one({"type": "process", "name": "nginx", "interval": "1m"})
    told = check(salt, spec, monit_version="5.35.0")
    assert (told["run_by"], told["monit"]) == ("the agent", [])
    assert told["detected"] == {"best": 120, "worst": 195, "worst_sweep": 195}
    assert check(salt, spec)["run_by"] == "wake probe, as monit's check program"
    assert check(salt, spec, "env", monit_version="5.35.0")["detected"]["worst"] == 60


# --- When


@pytest.mark.parametrize(
    "settings, detected",
    [
        # every 3 cycles of 10 s, 3 runs of up to 5 s, no other check: best, worst, all that is
        # serial times out
        ({}, (60, 105, 135)),
        ({"failure_threshold": 1}, (0, 35, 45)),
        ({"interval": "10s", "failure_threshold": 2}, (10, 30, 30)),
        ({"interval": "25s", "failure_threshold": {"failures": 2, "within": 5}}, (30, 70, 90)),
        ({"timeout": "1.5s"}, (60, 96, 108)),
    ],
)
def test_detection_by_monit(salt, settings, detected):
    told = check(salt, one({"type": "tcp", "port": 1, **settings}))
    assert tuple(told["detected"].values()) == detected


def test_detection_by_probe_waits_for_the_cycle_that_looks_at_the_result(salt):
    exec_ = {"type": "exec", "command": ["/x"]}
    assert tuple(check(salt, one(exec_))["detected"].values()) == (70, 100, 100)
    detected = check(salt, one({**exec_, "timeout": "25s"}))["detected"]
    assert tuple(detected.values()) == (70, 160, 160)
    detected = check(salt, one({**exec_, "failure_threshold": 1}))["detected"]
    assert tuple(detected.values()) == (10, 40, 40)


def test_the_sweep_is_the_sum_of_all_serial_checks_of_the_node(salt):
    spec = {
        "envs": {
            "lb1": {"checks": {
                "c": {"type": "tcp", "port": 1, "timeout": "2.5s"},
                "x": {"type": "exec", "command": ["/x"]},
            }},
            "db1": {"checks": {
                "p": {"type": "ping", "count": 4},
                "r": {"type": "running"}, "u": {"type": "udp", "port": 1},
            }},
            "away": {"checks": {"c": {"type": "tcp", "port": 1}}},
        },
        "nodes": {"hv1": {"checks": {
            "s": {"type": "ssh"},
            "l": {"type": "system", "memory": "90%"},
        }}},
    }  # fmt: skip
    told = explain(salt, spec)
    assert told["sweep"] == {"poll": 10, "serial_checks": 4, "seconds": 29.2, "cycle": 39.2}
    assert told["checks"]["c"]["detected"] == {"best": 60, "worst": 99, "worst_sweep": 352.8}


def test_how_long_a_good_run_proves_is_the_agents_number_or_not_known_yet(salt):
    spec = one({"type": "tcp", "port": 1}, raw="if failed port 25 then alert")
    rows = {"lb1": {"checks": {"c": {"bound": 1320}}}, "(node)": {"worst_cycle": 812.04}}
    told = explain(salt, spec, status=rows)
    assert (told["checks"]["c"]["bound"], told["checks"]["env"]["bound"]) == (1320, None)
    text = salt["cbsd_monit_explain.text"](told)
    words = "only by a good run of the last 1320 s: interval in whole cycles + 2 x the worst cycle"
    assert f"  healthy {words} (812 s, at most 600 s) + 90 s\n" in text
    unknown = "is known after the agent's first run"
    assert text.count(unknown) == 1, "of the env; the raw text has no bound of its own"
    for silent in (None, {}, {"lb1": {}}, {"lb1": {"checks": {}}, "(node)": {}}):
        told = explain(salt, spec, status=silent)
        assert told["checks"]["c"]["bound"] is told["worst_cycle"] is None
        assert salt["cbsd_monit_explain.text"](told).count(unknown) == 2
    told = explain(salt, spec, status={"lb1": {"checks": {"c": {"bound": 130}}}})
    assert "2 x the worst cycle (at most 600 s) + 90 s" in salt["cbsd_monit_explain.text"](told)


def test_the_end_of_the_env_is_seen_in_the_next_cycle(salt):
    told = explain(salt, one({"type": "running", "failure_threshold": 9, "on_failure": "alert"}))
    assert tuple(told["checks"]["env"]["detected"].values()) == (0, 10, 10)
    assert told["checks"]["c"]["detected"] == told["checks"]["env"]["detected"]
    assert "only tells" in words(told["checks"]["c"])[1]
    assert "only tells" in words(told["checks"]["env"])[1], "as its check of type running says"
    told = explain(salt, one({"type": "running", "on_failure": "restart"}, on_failure="alert"))
    assert any("cbsd jstart" in line for line in words(told["checks"]["env"]))


def test_a_timeline_to_the_end(salt):
    restart = {"attempts": 3, "delay": 10, "jitter": 0.2, "max_delay": 15, "interval": 1800}
    ladder = [{"service_restart": "nginx"}, "alert", "restart"]
    spec = {"type": "tcp", "port": 1, "failure_threshold": 1, "on_failure": ladder}
    told = check(salt, one(spec, restart=restart))
    rows = told["timeline"]
    assert [row["what"].split(":")[0].split(";")[0].split(",")[0] for row in rows] == [
        "within 60 s of a start", "failing", "attempt 1", "attempt 2", "attempt 3",
        "3 attempts within 1800 s did not help", "should attempts take their longest",
        "healthy for 600 s",
    ]  # fmt: skip
    # Noticed after 0 - 35 s; each attempt is verified for 60 + 2 * 30 + 5 + 3 * 10 + 5 = 160 s;
    # then 8 - 12 s, 12 - 18 s.
    usual = [row["usual"] for row in rows[1:6]]
    assert usual == [[0, 35], [0, 35], [168, 207], [340, 385], [500, 545]]
    # At best each fails at once; at worst service restart takes 300 s, jstop 210 s and jstart 300
    # s.
    assert [row["at"] for row in rows[1:6]] == [[0, 45], [0, 45], [8, 517], [20, 1205], [20, 1875]]
    assert "service nginx restart, in the jail" in rows[2]["what"]
    assert "restart: cbsd jstop" in rows[3]["what"] and "restart: cbsd jstop" in rows[4]["what"]
    assert "gave_up" in rows[5]["what"] and "cbsd_monit.retry lb1" in rows[5]["what"]


def test_attempts_that_cannot_fall_into_one_interval_are_said(salt):
    told = check(salt, one({"type": "tcp", "port": 1}, restart={"interval": "2m"}))
    assert any("it would never give up" in line for line in words(told))
    assert not any("gave_up" in line for line in words(told))


@pytest.mark.parametrize("env, said", [
    ({"heal": False}, "heal is false"),
    ({"on_failure": "alert"}, "on_failure only tells"),
    ({"on_failure": ["event"]}, "if the fleet asks for it"),
    ({"restart": {"attempts": 0}}, "restart:attempts is 0"),
])  # fmt: skip
def test_what_is_never_healed_says_why(salt, env, said):
    for name in ("c", "env"):
        told = words(check(salt, one({"type": "tcp", "port": 1}, **env), name))
        assert said in told[-1] and not any("attempt 1" in line for line in told)


@pytest.mark.parametrize("ladder, state", [
    ("alert", "warning"), (["alert", "alert"], "warning"), ("event", "failing"),
    (["alert", "event"], "failing"), (["alert", "restart"], "failing"),
])  # fmt: skip
def test_what_only_alerts_is_a_warning_but_an_env_that_does_not_run_is_failing(salt, ladder, state):
    spec = one({"type": "tcp", "port": 1}, on_failure=ladder, raw="if failed port 25 then alert")
    spec["envs"]["lb1"]["checks"]["up"] = {"type": "running"}
    found = explain(salt, spec)["checks"]
    states = {name: words(told)[told["timeline"][0]["at"] is None] for name, told in found.items()}
    states = {name: line.partition(":")[0] for name, line in states.items()}
    assert states == {"c": state, "raw": state, "env": "failing", "up": "failing"}


def test_mode_delay_goes_on(salt):
    restart = {"mode": "delay", "interval": "1h"}
    told = words(check(salt, one({"type": "tcp", "port": 1}, restart=restart)))
    assert "there is another one, for ever" in told[-2]
    assert not any("gave_up" in line for line in told)


def test_many_attempts_are_not_listed_one_by_one(salt):
    restart = {"attempts": 500, "interval": "10d"}
    told = words(check(salt, one({"type": "tcp", "port": 1}, restart=restart)))
    assert len(told) < 15 and "500 attempts in all" in told[-3]


def test_stop_is_the_end(salt):
    ladder = ["start", "stop", "restart"]
    told = words(check(salt, one({"type": "tcp", "port": 1}, on_failure=ladder)))
    assert (
        "start, if it does not run" in told[2] and "stays `stopped`" in told[-1] and len(told) == 4
    )
    told = words(check(salt, one({"type": "tcp", "port": 1}, on_failure="stop"), "env"))
    assert "on_failure would stop it" in told[-1]


def test_a_vm(salt):
    spec = {
        "groups": {"g": {
            "match": "*",
            "on_failure": {"service_restart": "x"},
            "checks": {"p": {"type": "process", "name": "x"}},
        }},
        "envs": {"vm1": {"checks": {"t": {"type": "tcp", "port": 1}}}},
    }  # fmt: skip
    told = explain(salt, spec, "vm1", envs=[{"name": "vm1", "emulator": "bhyve"}])
    assert set(told["checks"]) == {"env", "t"}
    assert "left out, they look into a jail: p" in told["limits"]
    assert any("cbsd bstart" in line for line in words(told["checks"]["env"]))
    assert any("no command can be run in a VM" in line for line in words(told["checks"]["t"]))


def test_what_silences_and_restrains_is_said(salt):
    spec = {
        "envs": {
            "lb1": {
                "heal": False, "checks": {},
                "depends_on": [
                    "db1", {"env": "away", "restart": True}, {"node": "uplink"}, {"node": "gone"},
                ],
            },
            "db1": {}, "web1": {"depends_on": {"env": "lb1", "restart": True}},
        },
        "silences": [
            {"env": "lb1", "until": "2027-01-01T06:00:00Z", "reason": "kernel upgrade"},
            {"env": "db1", "until": 1},
        ],
        "nodes": {"hv*": {"checks": {"uplink": {"type": "ping", "address": "192.0.2.1"}}}},
        "budget": {"max_concurrent": 2, "storm_min": 2, "storm_threshold": "40%"},
    }  # fmt: skip
    told = explain(salt, spec)
    assert "the node's check uplink, the node's check gone" in salt["cbsd_monit_explain.text"](told)
    limits = "\n".join(told["limits"])
    own = "the node's own check"
    for line in (
        f"depends on {own} uplink: not healed while {own} uplink fails\n",
        f"while {own} gone fails (this node has no such check: it holds nothing)\n",
        "heal is false",
        "silenced until 2027-01-01 06:00 UTC by pillar: kernel upgrade",
        "depends on db1: not healed while db1 is not well\n",
        "depends on away: not healed while away is not well"
        " (it is none of this node's: so it is not waited for); after",
        "waited for by web1; web1 restarted after it",
        "at most 2 heals at a time",
        "more than 40% and at least 2 of those that should run (here 2 of 3) failing within 120 s",
    ):
        assert line in limits
    assert "cannot reach" in "\n".join(explain(salt, one({"type": "running"}))["limits"])


def test_times_are_the_agents(salt, monkeypatch):
    """The agent cannot be asked from Salt's side, so it is here."""
    import cbsd
    import heal
    import judge
    import loop
    import monit
    import policy
    import proof
    import restrain

    module = salt["cbsd_monit_explain.explain"].__globals__
    assert (module["SETTLE"], module["RECHECK"]) == (restrain.SETTLE, judge.RECHECK)
    assert module["PASSIVE"] == policy.PASSIVE
    # "unix" is an exec when it reaches the agent
    assert set(module["PROBES"]) == {*monit.PROBES, "unix"}
    assert module["STOP"] == {e: cbsd.stop_timeout({"emulator": e}) for e in cbsd.EMULATORS}
    assert module["LINGER"] == loop.LINGER
    assert (module["WORST"], module["MARGIN"]) == (proof.WORST, proof.MARGIN)
    bounded = {"delay": 7, "max_delay": 100, "jitter": 0.1}
    for restart in ({"delay_function": "constant"}, bounded, {"max_delay": 1}):
        restart = {**policy.BUILTIN["restart"], **restart}
        for number in range(1, 40):
            wait = [policy.delay(restart, number, lambda end=end: end) for end in (0, 1)]
            assert module["_wait"](restart, number) == pytest.approx(wait)

    spec = one({"type": "tcp", "port": 1, "interval": 40, "timeout": 7}, start_period=33)
    meant = salt["cbsd_monit.effective"](spec, "hv1", jails("lb1"))["lb1"]

    class Node:
        poll = 10

        def stamp(self):
            return {}

    class Record(dict):
        now = Node()

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

        time = monotonic

    monkeypatch.setattr(heal, "time", Clock())
    monkeypatch.setattr(heal, "Monit", lambda node: None)
    monkeypatch.setattr(proof, "load", lambda _: proof.Proof(None, None, 17, {}, {}))
    job = heal.Heal(Node(), "lb1", "c", "why")
    monkeypatch.setattr(heal.hooks, "take_in_of", lambda *_: None)
    job._record = lambda: contextlib.nullcontext(Record())
    job._results = lambda *_: None
    job._still_ours = lambda: None
    with pytest.raises(heal.AgentError) as caught:
        job._verify(meant)
    verified = f"at most {int(str(caught.value).split(' s after')[0].split()[-1])} s"
    assert verified == "at most 155 s"
    end = f"verified by all checks, {verified}"
    assert any(line.endswith(end) for line in words(check(salt, spec)))


# --- Whom it is asked for


def test_an_env_that_is_not_here_or_not_meant_is_one_clear_error(salt):
    with pytest.raises(SaltInvocationError, match="^env lb9 is not on hv1$"):
        explain(salt, {}, "lb9")
    why = "^env lb1 is on hv1, but the pillar gives it no policy: "
    with pytest.raises(SaltInvocationError, match=why):
        explain(salt, {"envs": {"db1": {}}, "groups": {"w": {"match": "web*"}}})
    with pytest.raises(SaltInvocationError, match="cbsd_monit:defualts: unknown key"):
        explain(salt, {"defualts": {}})


def test_the_text_says_all_that_the_data_says(salt):
    for env in ("lb1", "db1", "web1"):
        told = explain(salt, example(), env, node="hv1.example.net")
        text = salt["cbsd_monit_explain.text"](told)
        for name, row in told["checks"].items():
            assert f"\n{name} (run by {row['run_by']})\n" in text
            assert all(line in text for line in [*row["monit"], *row["notes"], *words(row)])
            for key, setting in row["settings"].items():
                assert any(
                    line.split()[:1] == [key] and line.endswith(setting["from"])
                    for line in text.split("\n")
                ), key
        assert all(limit in text for limit in told["limits"])
        assert all(layer in text for layer in told["layers"])
    assert "  interval           15 s" in text
