"""What the pillar means for an env: which setting wins, and what reaches the agent."""

import json

import pytest
from salt.exceptions import SaltInvocationError

from tests.unit.modules.pillars import HTTP, jails


def test_nearer_wins(monit):
    spec = {
        "defaults": {
            "interval": 1, "timeout": 1, "failure_threshold": 1, "success_threshold": 1,
            "start_period": 1,
        },
        "nodes": {
            "hv*": {"defaults": {
                "timeout": 2, "failure_threshold": 2, "success_threshold": 2, "start_period": 2,
            }},
            "hv1": {"defaults": {
                "failure_threshold": 3, "success_threshold": 3, "start_period": 3,
            }},
        },
        "groups": {
            "a": {"match": "*", "success_threshold": 4, "start_period": 4, "heal": False},
            "b": {"match": "lb*", "start_period": 5},
        },
        "envs": {"lb1": {
            "start_period": 6,
            "checks": {"c": {"type": "running"}, "d": {"type": "running", "interval": 9}},
        }},
    }  # fmt: skip
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    expected = {
        "interval": 1, "timeout": 2, "failure_threshold": 3, "success_threshold": 4,
        "start_period": 6,
    }  # fmt: skip
    assert {key: policy["checks"]["c"][key] for key in expected} == expected
    assert policy["checks"]["d"]["interval"] == 9
    assert (policy["start_period"], policy["heal"]) == (6, False)


def test_restart_is_merged_and_ladders_are_replaced(monit):
    spec = {
        "defaults": {"on_failure": ["alert", "restart"], "restart": {"attempts": 9}},
        "groups": {"all": {"match": "*", "restart": {"delay": 1}}},
        "envs": {"lb1": {
            "on_failure": "event",
            "checks": {"c": {"type": "running", "restart": {"timeout": 7}}},
        }},
    }  # fmt: skip
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert policy["on_failure"] == ["event"]
    restart = policy["restart"]
    assert (restart["attempts"], restart["delay"], restart["timeout"]) == (9, 1, 300)
    assert policy["checks"]["c"]["restart"] == {**policy["restart"], "timeout": 7}


def test_policy_has_the_shape_of_the_contract(monit):
    spec = {"envs": {"lb1": {"depends_on": ["db1"], "checks": {"http": HTTP}}}}
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert list(policy) == [
        "schema", "env", "node", "origin", "heal", "on_failure", "start_period", "restart",
        "depends_on", "restart_with",
        "checks",
    ]  # fmt: skip
    found = [policy[key] for key in ("schema", "env", "node", "origin")]
    assert found == [1, "lb1", "hv1", "pillar"]
    assert policy["restart"] == {
        "attempts": 3, "interval": 1800, "delay": 15, "delay_function": "exponential",
        "max_delay": 300, "jitter": 0.25,
        "reset_after": 600, "mode": "fail", "timeout": 300,
    }  # fmt: skip
    assert {
        "type",
        "interval",
        "timeout",
        "failure_threshold",
        "success_threshold",
        "start_period",
        "on_failure",
    } <= set(policy["checks"]["http"])
    assert json.loads(json.dumps(policy)) == policy


def test_profiles_groups_and_env_contribute_checks(monit):
    spec = {
        "profiles": {"p": {"checks": {"http": {**HTTP, "port": 81, "path": "/p"}, "gone": HTTP}}},
        "groups": {
            "b": {"match": ["web*", "lb?"], "checks": {"http": {"port": 83}}},
            "a": {"match": "*", "profiles": ["p"], "checks": {"http": {"port": 82}}},
            "vm": {"emulator": "bhyve", "checks": {"ping": {"type": "ping"}}},
        },
        "envs": {
            "lb1": {
                "checks": {"http": {"path": "/e"}, "gone": False, "own": {"type": "tcp", "port": 1}}
            }
        },
    }
    checks = monit.effective(spec, "hv1", jails("lb1"))["lb1"]["checks"]
    assert list(checks) == ["http", "own"]
    assert (checks["http"]["port"], checks["http"]["path"]) == (83, "/e")
    machine = monit.effective(spec, "hv1", [{"name": "x", "emulator": "bhyve"}])["x"]["checks"]
    assert list(machine) == ["gone", "http", "ping"]


def test_another_type_replaces_an_inherited_check(monit):
    spec = {
        "groups": {"a": {"match": "*", "checks": {"up": {**HTTP, "path": "/x", "interval": 9}}}},
        "envs": {"lb1": {"checks": {"up": {"type": "tcp", "port": 5}}}},
    }
    check = monit.effective(spec, "hv1", jails("lb1"))["lb1"]["checks"]["up"]
    assert (check["type"], check["port"], check["interval"]) == ("tcp", 5, 30)
    assert "path" not in check


def test_parts_from_here_and_there_have_to_fit(monit):
    spec = {
        "groups": {"a": {"match": "*", "checks": {"up": {**HTTP, "method": "HEAD"}}}},
        "envs": {"lb1": {"checks": {"up": {"content": "x"}}}},
    }
    why = "cbsd_monit:envs:lb1:checks:up:content: the answer to HEAD"
    with pytest.raises(SaltInvocationError, match=why):
        monit.effective(spec, "hv1", jails("lb1"))


def test_only_envs_that_are_meant_and_present_get_a_policy(monit):
    spec = {
        "groups": {"web": {"match": "web*"}},
        "envs": {"lb1": {}, "away": {}},
        "nodes": {"hv1": {"envs": {"here": {"heal": False}}}, "hv2": {"envs": {"there": {}}}},
    }
    policies = monit.effective(spec, "hv1", jails("here", "lb1", "other", "there", "web1"))
    assert sorted(policies) == ["here", "lb1", "web1"]
    assert policies["here"]["heal"] is False


def test_a_nodes_word_on_an_env_is_nearer_than_the_fleets(monit):
    spec = {
        "envs": {"lb1": {"heal": True, "checks": {"a": {**HTTP, "port": 1}, "b": HTTP}}},
        "nodes": {"hv1": {"envs": {"lb1": {
            "heal": False,
            "checks": {"a": {"port": 2}, "b": {"type": "running"}},
        }}}},
    }  # fmt: skip
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    checks = policy["checks"]
    assert (policy["heal"], checks["a"]["port"], checks["b"]["type"]) == (False, 2, "running")
    assert monit.effective(spec, "hv2", jails("lb1"))["lb1"]["checks"]["a"]["port"] == 1


def test_checks_that_the_agent_runs_carry_their_command(monit):
    spec = {"envs": {"lb1": {"checks": {
        "app": {"type": "exec", "command": ["/bin/app", "-q"]},
        "host": {"type": "exec", "in": "host", "command": ["/bin/app"]},
        "svc": {"type": "service", "name": "nginx"},
        "sock": {"type": "unix", "path": "/tmp/s"},
    }}}}  # fmt: skip
    checks = monit.effective(spec, "hv1", jails("lb1"))["lb1"]["checks"]
    assert {
        name: (check["type"], check["in"], check["command"]) for name, check in checks.items()
    } == {
        "app": ("exec", "jail", ["/bin/app", "-q"]),
        "host": ("exec", "host", ["/bin/app"]),
        "svc": ("service", "jail", ["/usr/sbin/service", "nginx", "onestatus"]),
        "sock": ("exec", "jail", ["/usr/bin/nc", "-z", "-U", "/tmp/s"]),
    }


def test_what_the_agent_looks_at_itself_reaches_it_in_seconds_and_bytes(monit):
    checks = {
        "p": {"type": "process", "name": "nginx", "pidfile": "/var/run/nginx.pid"},
        "f": {"type": "file", "path": "/var/run/beat", "max_age": "10m", "max_size": "3k"},
        "r": {
            "type": "resource", "memoryuse": "512m", "swapuse": "2G", "pcpu": 150,
            "wallclock": "1d", "maxproc": 0,
        },
    }  # fmt: skip
    policy = monit.effective({"envs": {"lb1": {"checks": checks}}}, "hv1", jails("lb1"))
    policy = policy["lb1"]["checks"]
    common = "interval timeout failure_threshold success_threshold start_period on_failure".split()
    own = {n: {k: v for k, v in check.items() if k not in common} for n, check in policy.items()}
    assert own == {
        "p": {"type": "process", "name": "nginx", "pidfile": "/var/run/nginx.pid", "min": 1},
        "f": {"type": "file", "path": "/var/run/beat", "max_age": 600, "max_size": 3072},
        "r": {
            "type": "resource", "memoryuse": 512 << 20, "swapuse": 2 << 30, "pcpu": 150,
            "wallclock": 86400, "maxproc": 0,
        },
    }  # fmt: skip


def test_who_depends_on_whom_reaches_the_agent(monit):
    spec = {"envs": {"lb1": {"depends_on": [
        "db1", {"env": "db2", "restart": True}, {"env": "db3", "restart": False},
    ]}}}  # fmt: skip
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert (policy["depends_on"], policy["restart_with"]) == (["db1", "db2", "db3"], ["db2"])
    spec["envs"]["lb1"]["depends_on"] = {"env": "db1", "restart": True}
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert (policy["depends_on"], policy["restart_with"]) == (["db1"], ["db1"])


def test_a_check_of_the_nodes_own_that_is_depended_on_reaches_the_agent(monit):
    spec = {
        "envs": {
            "lb1": {"depends_on": [
                "db1", {"node": "lb1"}, {"env": "db2", "restart": True}, {"node": "gone"},
            ]},
            "web1": {"depends_on": {"node": "web1"}},
        },
        "nodes": {"hv1": {"checks": {"lb1": {"type": "ping", "address": "192.0.2.1"}}}},
    }  # fmt: skip
    policies = monit.effective(spec, "hv1", jails("lb1", "web1"))
    needs = ["db1", {"node": "lb1"}, "db2", {"node": "gone"}]
    assert policies["lb1"]["depends_on"] == needs, "the check lb1 is not the env lb1"
    assert policies["lb1"]["restart_with"] == ["db2"]
    assert policies["web1"]["depends_on"] == [{"node": "web1"}]
    assert monit.validate(monit.validate(spec)) == monit.validate(spec)


def test_nodes_may_depend_in_opposite_ways_but_not_one_of_them_in_both(monit):
    spec = {
        "envs": {"a": {}, "b": {}},
        "nodes": {
            "hv1": {"envs": {"a": {"depends_on": "b"}}},
            "hv2": {"envs": {"b": {"depends_on": "a"}}},
        },
    }
    assert monit.effective(spec, "hv1", jails("a", "b"))["a"]["depends_on"] == ["b"]
    spec["nodes"]["hv*"] = spec["nodes"].pop("hv2")
    monit.validate(spec)  # there may be no node that both are meant for
    with pytest.raises(SaltInvocationError, match="cbsd_monit:envs:a:depends_on: .* a -> b -> a"):
        monit.effective(spec, "hv1", jails("a", "b"))


def test_checks_that_look_into_a_jail_are_left_out_for_a_vm(monit):
    checks = {
        "app": {"type": "exec", "command": ["/x"]},
        "up": {"type": "running"},
        "mem": {"type": "resource", "memoryuse": "1g"},
        "pid": {"type": "process", "name": "x"},
    }
    result = monit.render({"groups": {"g": {
        "match": "*", "checks": checks,
    }}}, "hv1", [{"name": "vm1", "emulator": "bhyve"}])  # fmt: skip
    assert list(result["envs"]["vm1"]["policy.json"]["checks"]) == ["up"]
    assert "probe" not in result["envs"]["vm1"]["monitrc.tpl"].replace("# ", "")
    warning = "vm1 is a VM: checks that look into a jail are left out (app, mem, pid)"
    assert result["warnings"] == [warning]
