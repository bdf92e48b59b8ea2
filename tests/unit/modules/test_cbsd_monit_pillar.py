"""What the pillar may say: its normal form, and every error with its path."""

import copy

import pytest
from salt.exceptions import SaltInvocationError

from tests.unit.modules.pillars import HTTP, example, full, one


def refused(monit, spec):
    with pytest.raises(SaltInvocationError) as caught:
        monit.validate(spec)
    return str(caught.value)


def test_pillar_example_is_valid(monit):
    assert set(monit.validate(example())["envs"]) == {"lb1", "db1"}


def test_empty_pillar_is_valid(monit):
    assert monit.validate(None) == monit.validate({})
    assert monit.validate({})["defaults"]["interval"] == 30


def test_normal_form_is_seconds_lists_and_fractions(monit):
    spec = monit.validate(example())
    assert spec["defaults"]["restart"]["interval"] == 1800
    assert spec["defaults"]["on_failure"] == ["restart"]
    assert spec["budget"]["storm_threshold"] == 0.5
    assert spec["envs"]["lb1"]["checks"]["tls"]["certificate_valid"] == 30
    assert spec["silences"][0]["until"] == 1798783200
    assert spec["silences"][1]["until"] == 1798131600


def test_normal_form_is_valid_and_stays_what_it_is(monit):
    once = monit.validate(example())
    assert monit.validate(once) == once


DURATIONS = {"10s": 10, "5m": 300, "1h": 3600, "1d": 86400, "90": 90, 90: 90, 1.5: 1.5, "1.5m": 90}


@pytest.mark.parametrize("given, seconds", DURATIONS.items())
def test_durations(monit, given, seconds):
    assert monit.validate({"defaults": {"interval": given}})["defaults"]["interval"] == seconds


REFUSED = [
    # spec, path, a word of the message
    ([], "cbsd_monit", "expected a mapping"),
    ({"defualts": {}}, "cbsd_monit:defualts", "did you mean 'defaults'"),
    ({True: {}}, "cbsd_monit:True", "unknown key"),
    ({"lookup": {"monitcr": "/x"}}, "cbsd_monit:lookup:monitcr", "did you mean 'monitrc'"),
    ({"lookup": {"workdir": "usr/jails"}}, "cbsd_monit:lookup:workdir", "absolute path"),
    ({"lookup": {"package": True}}, "cbsd_monit:lookup:package", "a name, or false"),
    ({"monit": {"poll": 0}}, "cbsd_monit:monit:poll", "from 1s"),
    ({"monit": {"poll": "1.5s"}}, "cbsd_monit:monit:poll", "whole seconds"),
    ({"monit": {"include": "all"}}, "cbsd_monit:monit:include", "publish, glob"),
    ({"monit": {"httpd": {"port": 2812}}}, "cbsd_monit:monit:httpd:port", "unknown key"),
    ({"defaults": {"interval": "soon"}}, "cbsd_monit:defaults:interval", "duration"),
    ({"defaults": {"interval": -1}}, "cbsd_monit:defaults:interval", "from 1s"),
    ({"defaults": {"interval": float("nan")}}, "cbsd_monit:defaults:interval", "duration"),
    ({"defaults": {"interval": True}}, "cbsd_monit:defaults:interval", "quotes"),
    ({"defaults": {"timeout": "500ms"}}, "cbsd_monit:defaults:timeout", "duration"),
    ({"defaults": {"failure_threshold": 65}}, "cbsd_monit:defaults:failure_threshold", "1-64"),
    ({"defaults": {"failure_threshold": 0}}, "cbsd_monit:defaults:failure_threshold", "1-64"),
    ({"defaults": {"failure_threshold": {"failures": 5, "within": 3}}},
     "cbsd_monit:defaults:failure_threshold", "N <= M"),
    ({"defaults": {"failure_threshold": {"failures": 5, "within": 65}}},
     "cbsd_monit:defaults:failure_threshold:within", "64"),
    ({"defaults": {"failure_threshold": {"failures": 5}}},
     "cbsd_monit:defaults:failure_threshold", "within"),
    ({"defaults": {"success_threshold": 1.5}},
     "cbsd_monit:defaults:success_threshold", "whole number"),
    ({"defaults": {"on_failure": "reboot"}}, "cbsd_monit:defaults:on_failure", "restart"),
    ({"defaults": {"on_failure": []}}, "cbsd_monit:defaults:on_failure", "restart"),
    ({"defaults": {"on_failure": ["alert", "reboot"]}},
     "cbsd_monit:defaults:on_failure:1", "restart"),
    ({"defaults": {"on_failure": {"command": ["true"]}}},
     "cbsd_monit:defaults:on_failure:command:0", "absolute"),
    ({"defaults": {"on_failure": {"command": "/bin/true"}}},
     "cbsd_monit:defaults:on_failure:command", "list"),
    ({"defaults": {"heal": "no"}}, "cbsd_monit:defaults:heal", "true or false"),
    ({"defaults": {"restart": {"attempts": "3"}}},
     "cbsd_monit:defaults:restart:attempts", "whole number"),
    ({"defaults": {"restart": {"jitter": 2}}}, "cbsd_monit:defaults:restart:jitter", "from 0 to 1"),
    ({"defaults": {"restart": {"mode": "wait"}}},
     "cbsd_monit:defaults:restart:mode", "fail, delay"),
    ({"defaults": {"restart": {"delay_function": "linear"}}},
     "cbsd_monit:defaults:restart:delay_function", "exponential"),
    ({"budget": {"storm_threshold": "150%"}}, "cbsd_monit:budget:storm_threshold", "50%"),
    ({"budget": {"storm_threshold": 50}}, "cbsd_monit:budget:storm_threshold", "50%"),
    ({"budget": {"max_concurrent": 0}}, "cbsd_monit:budget:max_concurrent", "from 1"),
    ({"nodes": {"hv1": {"chekcs": {}}}}, "cbsd_monit:nodes:hv1:chekcs", "did you mean 'checks'"),
    ({"nodes": {"hv1": {"checks": {"x": {"type": "running"}}}}},
     "cbsd_monit:nodes:hv1:checks:x:type", "not supported for a node"),
    ({"nodes": {"hv1": {"checks": {"x": {"type": "system"}}}}},
     "cbsd_monit:nodes:hv1:checks:x", "loadavg_1m"),
    ({"nodes": {"hv1": {"checks": {"x": {"type": "system", "memory": 90}}}}},
     "cbsd_monit:nodes:hv1:checks:x:memory", "50%"),
    ({"nodes": {"hv1": {"checks": {"x": {"type": "tcp", "port": 1, "on_failure": "restart"}}}}},
     "cbsd_monit:nodes:hv1:checks:x:on_failure", "alert"),
    ({"nodes": {"hv1": {"checks": {"x": {** HTTP, "path": "/%%JNAME%%"}}}}},
     "cbsd_monit:nodes:hv1:checks:x:path", "no facts"),
    ({"nodes": {"hv1": {"checks": {"x": {** HTTP, "address": "ipv4"}}}}},
     "cbsd_monit:nodes:hv1:checks:x:address", "IP address"),
    ({"nodes": {"hv1": {"checks": {"x": {"type": "exec", "in": "jail", "command": ["/x"]}}}}},
     "cbsd_monit:nodes:hv1:checks:x:in", "unknown key"),
    ({"profiles": {"p": {"profiles": ["q"]}}}, "cbsd_monit:profiles:p:profiles", "unknown key"),
    ({"groups": {"web": {}}}, "cbsd_monit:groups:web", "match or emulator"),
    ({"groups": {"web": {"match": "w*", "emulator": "xen"}}},
     "cbsd_monit:groups:web:emulator", "jail, bhyve"),
    ({"groups": {"web": {"match": "w*", "profiles": ["ngin"]}}, "profiles": {"nginx": {}}},
     "cbsd_monit:groups:web:profiles:0", "did you mean 'nginx'"),
    ({"envs": {"lb1": {"profiles": ["nginx"]}}},
     "cbsd_monit:envs:lb1:profiles:0", "no profile 'nginx'"),
    ({"envs": {"lb1": []}}, "cbsd_monit:envs:lb1", "a mapping"),
    ({"envs": {"-lb1": {}}}, "cbsd_monit:envs:-lb1", "name of an env"),
    ({"envs": {12: {}}}, "cbsd_monit:envs:12", "name of an env"),
    ({"envs": {True: {}}}, "cbsd_monit:envs:True", "quotes"),
    ({"envs": {"lb1": {"depends_on": ["lb1"]}}},
     "cbsd_monit:envs:lb1:depends_on", "wait for itself"),
    ({"envs": {"a": {"depends_on": ["b"]}, "b": {"depends_on": "a"}}},
     "cbsd_monit:envs:a:depends_on", "wait for itself: a -> b -> a"),
    (
        {
            "envs": {
                "x": {"depends_on": "c"},
                "c": {"depends_on": {"env": "b"}},
                "b": {"depends_on": ["a", "c"]},
            }
        },
        "cbsd_monit:envs:b:depends_on",
        "wait for itself: b -> c -> b",
    ),
    (
        {
            "envs": {"a": {"depends_on": "b"}, "b": {}},
            "nodes": {"hv*": {"envs": {"b": {"depends_on": "a"}}}},
        },
        "cbsd_monit:envs:a:depends_on",
        "a -> b -> a",
    ),
    (
        {
            "envs": {"a": {}, "b": {"depends_on": "a"}},
            "nodes": {"hv*": {"envs": {"a": {"depends_on": "b"}}}},
        },
        "cbsd_monit:nodes:hv*:envs:a:depends_on",
        "a -> b -> a",
    ),
    ({"envs": {"a": {"depends_on": ["b", "b c"]}}},
     "cbsd_monit:envs:a:depends_on:1", "name of an env"),
    ({"envs": {"a": {"depends_on": [{"env": "-b"}]}}},
     "cbsd_monit:envs:a:depends_on:0:env", "name of an env"),
    ({"envs": {"a": {"depends_on": {"env": 5}}}},
     "cbsd_monit:envs:a:depends_on:env", "name of an env"),
    ({"envs": {"a": {"depends_on": [{"restart": True}]}}},
     "cbsd_monit:envs:a:depends_on:0", "{env: NAME"),
    ({"envs": {"a": {"depends_on": [{"env": "b", "x": 1}]}}},
     "cbsd_monit:envs:a:depends_on:0", "{env: NAME"),
    ({"envs": {"a": {"depends_on": [{"env": "b", "restart": 1}]}}},
     "cbsd_monit:envs:a:depends_on:0:restart", "true or false"),
    ({"envs": {"a": {"depends_on": ["b", {"env": "b"}]}}},
     "cbsd_monit:envs:a:depends_on:1", "each env once"),
    ({"envs": {"lb1": {"depends_on": ["db1", {"node": "-x"}]}}},
     "cbsd_monit:envs:lb1:depends_on:1:node", "a check's name (a letter or digit"),
    ({"envs": {"lb1": {"depends_on": {"node": "env"}}}},
     "cbsd_monit:envs:lb1:depends_on:node", "not env"),
    ({"envs": {"lb1": {"depends_on": ["db1", {"node": "uplink", "restart": True}]}}},
     "cbsd_monit:envs:lb1:depends_on:1", "{node: CHECK}"),
    ({"envs": {"lb1": {"depends_on": [{"node": "uplink"}, "uplink", {"node": "uplink"}]}}},
     "cbsd_monit:envs:lb1:depends_on:2", "each check once"),
    ({"envs": {"a": {"depends_on": [{"node": "a"}, "b"]}, "b": {"depends_on": "a"}}},
     "cbsd_monit:envs:a:depends_on", "wait for itself: a -> b -> a"),
    ({"envs": {"a": {"depends_on": True}}}, "cbsd_monit:envs:a:depends_on", "each by name"),
    ({"envs": {"lb1": {"checks": ["http"]}}}, "cbsd_monit:envs:lb1:checks", "by name"),
    ({"envs": {"lb1": {"checks": {"env": HTTP}}}}, "cbsd_monit:envs:lb1:checks:env", "not env"),
    ({"envs": {"lb1": {"checks": {"_x": HTTP}}}},
     "cbsd_monit:envs:lb1:checks:_x", "a check's name"),
    ({"envs": {"lb1": {"checks": {"web": HTTP, "WEB": HTTP}}}},
     "cbsd_monit:envs:lb1:checks:web", "only in case"),
    ({"envs": {"lb1": {"checks": {"raw": HTTP}, "raw": "if failed port 1 then alert"}}},
     "cbsd_monit:envs:lb1:checks:raw", "taken"),
    (one(None), "cbsd_monit:envs:lb1:checks:c", "a mapping"),
    (one({"port": 1}), "cbsd_monit:envs:lb1:checks:c:type", "missing"),
    (one({"type": "htpp"}), "cbsd_monit:envs:lb1:checks:c:type", "did you mean 'http'"),
    (one({"type": ["http"]}), "cbsd_monit:envs:lb1:checks:c:type", "a check type"),
    (one({"type": "system", "memory": "90%"}),
     "cbsd_monit:envs:lb1:checks:c:type", "not supported for an env"),
    (one({"type": "process"}), "cbsd_monit:envs:lb1:checks:c", "name or pidfile"),
    (one({"type": "process", "name": "a b"}), "cbsd_monit:envs:lb1:checks:c:name", "a name"),
    (one({"type": "process", "pidfile": "x.pid"}),
     "cbsd_monit:envs:lb1:checks:c:pidfile", "absolute path"),
    (one({"type": "process", "pidfile": "/x", "min": 2}),
     "cbsd_monit:envs:lb1:checks:c:min", "one process"),
    (one({"type": "process", "name": "x", "min": 3, "max": 2}),
     "cbsd_monit:envs:lb1:checks:c:max", "less than min"),
    (one({"type": "file"}), "cbsd_monit:envs:lb1:checks:c:path", "missing"),
    (one({"type": "file", "path": "/a/../b"}),
     "cbsd_monit:envs:lb1:checks:c:path", "absolute path"),
    (one({"type": "file", "path": "/a", "max_age": 0}),
     "cbsd_monit:envs:lb1:checks:c:max_age", "from 1s"),
    (one({"type": "file", "path": "/a", "min_size": "1kb"}),
     "cbsd_monit:envs:lb1:checks:c:min_size", "512m"),
    (one({"type": "file", "path": "/a", "min_size": 2, "max_size": 1}),
     "cbsd_monit:envs:lb1:checks:c:max_size", "less"),
    (one({"type": "filesystem", "path": "/"}),
     "cbsd_monit:envs:lb1:checks:c:type", "not supported for an env"),
    (one({"type": "resource"}), "cbsd_monit:envs:lb1:checks:c", "at least one of"),
    (one({"type": "resource", "memoryuse": "50%"}),
     "cbsd_monit:envs:lb1:checks:c:memoryuse", "bytes"),
    (one({"type": "resource", "memoryuse": -1}),
     "cbsd_monit:envs:lb1:checks:c:memoryuse", "bytes"),
    (one({"type": "resource", "memoryuse": 1.5}),
     "cbsd_monit:envs:lb1:checks:c:memoryuse", "bytes"),
    (one({"type": "resource", "memory": "1g"}),
     "cbsd_monit:envs:lb1:checks:c:memory", "did you mean 'memoryuse'"),
    (one({"type": "resource", "maxproc": "1k"}),
     "cbsd_monit:envs:lb1:checks:c:maxproc", "whole number"),
    ({"nodes": {"hv1": {"checks": {"c": {"type": "process", "name": "x"}}}}},
     "cbsd_monit:nodes:hv1:checks:c:type", "not supported for a node"),
    (one({** HTTP, "port": "x"}),
     "cbsd_monit:envs:lb1:checks:c:port", "expected a port number 1-65535, got 'x'"),
    (one({** HTTP, "port": "80"}), "cbsd_monit:envs:lb1:checks:c:port", "got '80'"),
    (one({** HTTP, "port": 65536}), "cbsd_monit:envs:lb1:checks:c:port", "1-65535"),
    (one({** HTTP, "port": True}), "cbsd_monit:envs:lb1:checks:c:port", "1-65535"),
    (one({** HTTP, "prot": 80}), "cbsd_monit:envs:lb1:checks:c:prot", "did you mean 'port'"),
    (one({** HTTP, "path": "healthz"}), "cbsd_monit:envs:lb1:checks:c:path", "path of a URL"),
    (one({** HTTP, "path": "/a%20b"}), "cbsd_monit:envs:lb1:checks:c:path", "not yet encoded"),
    (one({** HTTP, "path": "/a/../b"}), "cbsd_monit:envs:lb1:checks:c:path", "path of a URL"),
    (one({** HTTP, "status": "200"}), "cbsd_monit:envs:lb1:checks:c:status", "100-599"),
    (one({** HTTP, "method": "POST"}), "cbsd_monit:envs:lb1:checks:c:method", "GET, HEAD"),
    (one({** HTTP, "method": "HEAD", "content": "x"}),
     "cbsd_monit:envs:lb1:checks:c:content", "HEAD"),
    (one({** HTTP, "content": "(x"}), "cbsd_monit:envs:lb1:checks:c:content", "regular expression"),
    (one({** HTTP, "content": "\\d+"}), "cbsd_monit:envs:lb1:checks:c:content", "[0-9]"),
    (one({** HTTP, "content": "(?i)x"}), "cbsd_monit:envs:lb1:checks:c:content", "POSIX"),
    (one({** HTTP, "content": "é"}), "cbsd_monit:envs:lb1:checks:c:content", "printable ASCII"),
    (one({** HTTP, "headers": {"X Y": "1"}}),
     "cbsd_monit:envs:lb1:checks:c:headers:'X Y'", "name of a header"),
    (one({** HTTP, "headers": {"X-Y": 1}}), "cbsd_monit:envs:lb1:checks:c:headers:X-Y", "blanks"),
    (one({** HTTP, "verify": True}), "cbsd_monit:envs:lb1:checks:c:verify", "needs tls"),
    (one({** HTTP, "certificate_valid": "30d"}),
     "cbsd_monit:envs:lb1:checks:c:certificate_valid", "needs tls"),
    (one({** HTTP, "address": "lb1.example.org"}),
     "cbsd_monit:envs:lb1:checks:c:address", "IP address"),
    (one({** HTTP, "address": "10.0.0.1/24"}),
     "cbsd_monit:envs:lb1:checks:c:address", "IP address"),
    (one({** HTTP, "address": "[2001:db8::1]"}),
     "cbsd_monit:envs:lb1:checks:c:address", "IP address"),
    (one({"type": "tls", "certificate_valid": "36h"}),
     "cbsd_monit:envs:lb1:checks:c:certificate_valid", "30d"),
    (one({"type": "tcp"}), "cbsd_monit:envs:lb1:checks:c:port", "missing"),
    (one({"type": "fail2ban"}), "cbsd_monit:envs:lb1:checks:c:port", "missing"),
    (one({"type": "exec"}), "cbsd_monit:envs:lb1:checks:c:command", "missing"),
    (one({"type": "exec", "command": "/bin/true"}),
     "cbsd_monit:envs:lb1:checks:c:command", "a list"),
    (one({"type": "exec", "command": ["/bin/true", 1]}),
     "cbsd_monit:envs:lb1:checks:c:command:1", "an argument"),
    (one({"type": "exec", "command": ["/bin/"]}),
     "cbsd_monit:envs:lb1:checks:c:command:0", "program"),
    (one({"type": "exec", "command": ["/bin/true"], "in": "vm"}),
     "cbsd_monit:envs:lb1:checks:c:in", "jail, host"),
    (one({"type": "service"}), "cbsd_monit:envs:lb1:checks:c:name", "missing"),
    (one({"type": "running", "port": 1}), "cbsd_monit:envs:lb1:checks:c:port", "unknown key"),
    (one({"type": "dns", "transport": "sctp"}),
     "cbsd_monit:envs:lb1:checks:c:transport", "udp, tcp"),
    (one({"type": "ping", "count": 0}), "cbsd_monit:envs:lb1:checks:c:count", "from 1"),
    ({"silences": {"env": "lb1"}}, "cbsd_monit:silences", "a list"),
    ({"silences": [{"env": "lb1"}]}, "cbsd_monit:silences:0:until", "missing"),
    ({"silences": [{"until": 1}]}, "cbsd_monit:silences:0", "env, group or node"),
    ({"silences": [{"env": "lb1", "until": "tomorrow"}]}, "cbsd_monit:silences:0:until", "2027"),
    ({"silences": [{"env": "lb1", "until": "2027-13-01"}]}, "cbsd_monit:silences:0:until", "2027"),
    ({"silences": [{"group": "web", "until": 1}]}, "cbsd_monit:silences:0:group", "no group 'web'"),
    ({"template": "/etc/passwd"}, "cbsd_monit:template", "salt://"),
    ({"template": "salt://../x"}, "cbsd_monit:template", "salt://"),
    ({"events": {"a": ["__slot__:salt:cmd.run(x)"]}}, "cbsd_monit:events:a:0", "__slot__"),
    ({"__slot__:x": 1}, "cbsd_monit:'__slot__:x'", "__slot__"),
    ({"envs": {"a": {"raw": "set daemon 1"}}}, "cbsd_monit:envs:a:raw", "line 1"),
    ({"envs": {"a": {"raw": "if failed port 1 then alert\n SET daemon 1"}}},
     "cbsd_monit:envs:a:raw", "line 2"),
    ({"envs": {"a": {"raw": "if failed port 1 then alert set daemon 1"}}},
     "cbsd_monit:envs:a:raw", "whole node"),
    ({"envs": {"a": {"raw": "every 5set daemon 1"}}}, "cbsd_monit:envs:a:raw", "whole node"),
    ({"envs": {"a": {"raw": 'send "x\n#" set daemon 1'}}},
     "cbsd_monit:envs:a:raw", "closing double quote"),
    ({"envs": {"a": {"raw": "send 'x' set daemon 1 'y'"}}},
     "cbsd_monit:envs:a:raw", "double quotes"),
    ({"envs": {"a": {"raw": "include /etc/x"}}}, "cbsd_monit:envs:a:raw", "include"),
    ({"envs": {"a": {"raw": "if failed\x00port 1"}}}, "cbsd_monit:envs:a:raw", "printable"),
    ({"envs": {"a": {"raw": "\ufeffif failed port 1"}}}, "cbsd_monit:envs:a:raw", "printable"),
    ({"envs": {"a": {"raw": 5}}}, "cbsd_monit:envs:a:raw", "monit's own language"),
]  # fmt: skip


@pytest.mark.parametrize("spec, path, word", REFUSED, ids=[path for _, path, _ in REFUSED])
def test_what_is_wrong_is_refused_with_its_path(monit, spec, path, word):
    lines = [line.strip() for line in refused(monit, spec).split("\n")[1:]]
    assert any(line.startswith(f"{path}: ") and word in line for line in lines), lines


def test_all_errors_are_told_at_once(monit):
    spec = {
        key: value
        for spec, *_ in REFUSED[1:20]
        if isinstance(spec, dict)
        for key, value in spec.items()
    }
    spec["envs"] = {"lb1": {"checks": {"a": {"type": "tcp"}, "b": {"type": "http", "port": "x"}}}}
    message = refused(monit, spec)
    assert message.startswith("cbsd_monit: ")
    for path in ("defualts", "lookup:package", "envs:lb1:checks:a:port", "envs:lb1:checks:b:port"):
        assert f"cbsd_monit:{path}: " in message


def test_secrets_are_not_shown(monit):
    message = refused(monit, one({**HTTP, "headers": {"Authorization": 'Bearer "s3cret"'}}))
    assert "headers:Authorization" in message and "s3cret" not in message


def test_messages_are_safe_to_print(monit):
    spec = {"envs": {"a\x1b[2J\nb": {}}, "\x1b": 1, "defaults": {"interval": "\x1b[31m"}}
    message = refused(monit, spec)
    assert message.replace("\n", "").isascii() and message.replace("\n", "").isprintable()


HOSTILE = [
    "$(touch /tmp/x)", "`touch /tmp/x`", "../x", "/../x", 'a"b',
    'x" then exec "/bin/sh -c id',
    "a\nb",
    "a\n  if failed port 1 then exec /bin/sh",
    "a\rb", "a\x00b", "a\x1b[2Jb", "a|b", "~root", "a;id", "a\\b",
    "{{ 7*7 }}",
    "{% set x = 1 %}",
    "é\u202e", "\ufeffx", "__slot__:salt:cmd.run(touch /tmp/x)",
    "x then alert set daemon 1\n",
]  # fmt: skip
# What a type of field takes although it looks hostile: content is a regular expression, and monit's
# alone.
WIDE = {
    "content": {
        "$(touch /tmp/x)", "`touch /tmp/x`", "../x", "/../x", 'a"b', 'x" then exec "/bin/sh -c id',
        "a|b", "~root", "a;id", "{{ 7*7 }}", "{% set x = 1 %}",
    },
    "headers": {"a;id"},
    "reason": {"a;id"},
    "by": {"a;id"},
    "path": {"/a;id"},
    "events": {"a;id"},
    "raw": set(HOSTILE) - {
        "a\x00b", "a\x1b[2Jb", "é\u202e", "\ufeffx", "a\rb", 'a"b', "x then alert set daemon 1\n",
    },
}  # fmt: skip
WIDE["raw"] -= {"{% set x = 1 %}", "__slot__:salt:cmd.run(touch /tmp/x)"}


def leaves(value, path=()):
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    else:
        yield path


def put(spec, path, value):
    spec = copy.deepcopy(spec)
    owner = spec
    for part in path[:-1]:
        owner = owner[part]
    owner[path[-1]] = value
    return spec


@pytest.mark.parametrize("path", list(leaves(full())), ids=lambda path: ":".join(map(str, path)))
def test_hostile_values_are_refused_wherever_they_stand(monit, path):
    spec = full()
    wide = (
        WIDE["events"]
        if path[0] == "events"
        else WIDE.get("headers" if "headers" in path else path[-1], set())
    )
    where = ":".join(["cbsd_monit", *map(str, path)])
    for value in HOSTILE:
        if value in wide:
            continue
        message = refused(monit, put(spec, path, value))
        # A name that is wrong makes its mapping wrong: `type` decides what the others mean.
        assert (
            where in message or path[-1] == "type" and ":".join(where.split(":")[:-1]) in message
        ), value


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_names_are_refused(monit, value):
    for section in ("nodes", "profiles", "groups", "envs"):
        entry = {"match": "x"} if section == "groups" else {}
        assert f"cbsd_monit:{section}:" in refused(monit, {section: {value: entry}})
    spec = {"envs": {"lb1": {"checks": {value: HTTP}}}}
    assert "cbsd_monit:envs:lb1:checks:" in refused(monit, spec)
    assert "headers" in refused(monit, one({**HTTP, "headers": {value: "x"}}))
    for envs in ([{"name": value, "emulator": "jail"}], [{"name": "lb1", "emulator": value}]):
        with pytest.raises(SaltInvocationError):
            monit.effective({}, "hv1", envs)


@pytest.mark.parametrize(
    "reason", ["kernel upgrade", "Überprüfung, 日本", "Bob's test (see #12)", ""]
)
def test_reasons_are_sentences_of_any_language(monit, reason):
    spec = {"silences": [{"env": "lb1", "until": 1, "reason": reason}]}
    assert monit.validate(spec)["silences"][0]["reason"] == reason
