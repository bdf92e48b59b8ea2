"""
What the pillar may say, what it means for an env, and the monit text that comes of it.

The four modules are loaded as files and reach each other through ``__salt__``, as under Salt. Whether real monit
accepts and means what is rendered here is the functional test's question
(``tests/functional/modules/test_render_monit.py``).
"""

import ast
import copy
import importlib.util
import json
import pathlib
import random
import re

import pytest
import yaml
from salt.exceptions import CommandExecutionError, SaltInvocationError

REPO = pathlib.Path(__file__).resolve().parents[3]
FILES = REPO / "tests" / "unit" / "files"
NAMES = (
    "cbsd_monit_schema",
    "cbsd_monit_pillar",
    "cbsd_monit_policy",
    "cbsd_monit_explain",
    "cbsd_monit",
)


def load(**more):
    """Return the module ``cbsd_monit`` with the others, the formula's files and ``more`` as its ``__salt__``."""
    salt = {
        "cp.get_file_str": lambda url: _file(url),
        "config.get": lambda key, default: default,
        **more,
    }
    for name in NAMES:
        spec = importlib.util.spec_from_file_location(
            f"loaded_{name}", REPO / "_modules" / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.__salt__ = salt
        tree = ast.parse((REPO / "_modules" / f"{name}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                salt[f"{name}.{node.name}"] = getattr(module, node.name)
    return module


def _file(url):
    path = REPO / url[len("salt://") :]
    return path.read_text() if path.is_file() else False


@pytest.fixture(scope="module")
def monit():
    return load()


def jails(*names):
    return [{"name": name, "emulator": "jail"} for name in names]


def example():
    return yaml.safe_load((REPO / "pillar.example").read_text())["cbsd_monit"]


def one(check, **env):
    """A pillar with one check ``c`` of the env ``lb1``."""
    return {"envs": {"lb1": {"checks": {"c": check}, **env}}}


def refused(monit, spec):
    with pytest.raises(SaltInvocationError) as caught:
        monit.validate(spec)
    return str(caught.value)


def rule(monit, spec, env="lb1", **more):
    return monit.render(spec, "hv1", jails(env), **more)["envs"][env]["monitrc.tpl"]


# --- What may be written


def test_pillar_example_is_valid(monit):
    assert set(monit.validate(example())["envs"]) == {"lb1", "db1"}


def test_the_reference_is_what_the_schema_says(monit):
    made = monit.__salt__["cbsd_monit_schema.reference"]()
    assert (REPO / "docs/pillar.md").read_text() == made, (
        "make it anew: python -m tests.unit.modules.test_cbsd_monit"
    )


def test_the_reference_has_every_key_and_says_what_it_means(monit):
    text = (REPO / "docs/pillar.md").read_text()
    tables = monit.schema()
    for name, rows in tables["sections"].items():
        part = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for key, row in rows.items():
            assert f"| `{key}`" in part and row["doc"], f"{name}: {key}"
    for kind, check in tables["checks"].items():
        assert check["doc"] and (f"\n### {kind}\n" in text or f"\n| `{kind}` |" in text), kind
        for key, row in check["fields"].items():
            assert f"| `{key}`" in text and row["doc"], f"{kind}: {key}"


def test_who_does_what_is_said_of_every_key_that_has_a_part_in_healing(monit):
    """A new threshold, grace or bound that does not say who keeps it is not finished."""
    table = (REPO / "docs/pillar.md").read_text().split("\n## Who does what\n")[1].split("\n## ")[0]
    sections = monit.schema()["sections"]
    keys = {
        **{key: sections["policy"][key] for key in sections["policy"]},
        "depends_on": sections["env"]["depends_on"],
    }
    for section in ("restart", "budget"):
        keys.update({f"{section}:{key}": row for key, row in sections[section].items()})
    assert len(keys) > 20
    for key, row in keys.items():
        assert row["monit"] or row["agent"], key
        assert table.count(f"\n| `{key}` |") == 1, key


def test_what_the_reference_says_of_monit_is_what_is_rendered(monit):
    """Each of monit's phrases in the table stands in the text when its key is used."""
    check = {
        "type": "tcp",
        "port": 1,
        "interval": 50,
        "timeout": 7,
        "failure_threshold": 4,
        "success_threshold": 6,
    }
    text = rule(monit, one(check)) + rule(
        monit, one({**check, "failure_threshold": {"failures": 4, "within": 8}})
    )
    rows = monit.schema()["sections"]["policy"]
    phrases = {key: re.findall("`([^`]+)`", rows[key]["monit"]) for key in rows}
    said = {"every N cycles": "every 5 cycles", "with timeout N seconds": "with timeout 7 seconds"}
    said.update(
        {
            "for N cycles": "for 4 cycles",
            "for N times within M cycles": "for 4 times within 8 cycles",
        }
    )
    said.update(
        {
            "else if succeeded for N cycles": "else if succeeded for 6 cycles",
            "exec": 'then exec "%%WAKE%%',
        }
    )
    found = {phrase for words in phrases.values() for phrase in words} - {
        "monit:poll",
        "wake",
        "ping",
    }
    assert found == set(said)
    assert all(line in text for line in said.values())


def test_pillar_example_names_every_key(monit):
    """A key that nobody can read about does not exist."""
    text = (REPO / "pillar.example").read_text()
    for section, rows in monit.schema()["sections"].items():
        for key in rows:
            assert re.search(rf"\b{key}\b", text), f"{section}: {key}"
    for kind, row in monit.schema()["checks"].items():
        if row["scope"]:
            assert re.search(rf"\b{kind}\b", text), kind


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


def test_schema_is_plain_data(monit):
    assert json.loads(json.dumps(monit.schema())) == monit.schema()


@pytest.mark.parametrize(
    "given, seconds",
    [
        ("10s", 10),
        ("5m", 300),
        ("1h", 3600),
        ("1d", 86400),
        ("90", 90),
        (90, 90),
        (1.5, 1.5),
        ("1.5m", 90),
    ],
)
def test_durations(monit, given, seconds):
    assert monit.validate({"defaults": {"interval": given}})["defaults"]["interval"] == seconds


HTTP = {"type": "http"}
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
    (
        {"defaults": {"failure_threshold": {"failures": 5, "within": 3}}},
        "cbsd_monit:defaults:failure_threshold",
        "N <= M",
    ),
    (
        {"defaults": {"failure_threshold": {"failures": 5, "within": 65}}},
        "cbsd_monit:defaults:failure_threshold:within",
        "64",
    ),
    (
        {"defaults": {"failure_threshold": {"failures": 5}}},
        "cbsd_monit:defaults:failure_threshold",
        "within",
    ),
    (
        {"defaults": {"success_threshold": 1.5}},
        "cbsd_monit:defaults:success_threshold",
        "whole number",
    ),
    ({"defaults": {"on_failure": "reboot"}}, "cbsd_monit:defaults:on_failure", "restart"),
    ({"defaults": {"on_failure": []}}, "cbsd_monit:defaults:on_failure", "restart"),
    (
        {"defaults": {"on_failure": ["alert", "reboot"]}},
        "cbsd_monit:defaults:on_failure:1",
        "restart",
    ),
    (
        {"defaults": {"on_failure": {"command": ["true"]}}},
        "cbsd_monit:defaults:on_failure:command:0",
        "absolute",
    ),
    (
        {"defaults": {"on_failure": {"command": "/bin/true"}}},
        "cbsd_monit:defaults:on_failure:command",
        "list",
    ),
    ({"defaults": {"heal": "no"}}, "cbsd_monit:defaults:heal", "true or false"),
    (
        {"defaults": {"restart": {"attempts": "3"}}},
        "cbsd_monit:defaults:restart:attempts",
        "whole number",
    ),
    ({"defaults": {"restart": {"jitter": 2}}}, "cbsd_monit:defaults:restart:jitter", "from 0 to 1"),
    (
        {"defaults": {"restart": {"mode": "wait"}}},
        "cbsd_monit:defaults:restart:mode",
        "fail, delay",
    ),
    (
        {"defaults": {"restart": {"delay_function": "linear"}}},
        "cbsd_monit:defaults:restart:delay_function",
        "exponential",
    ),
    ({"budget": {"storm_threshold": "150%"}}, "cbsd_monit:budget:storm_threshold", "50%"),
    ({"budget": {"storm_threshold": 50}}, "cbsd_monit:budget:storm_threshold", "50%"),
    ({"budget": {"max_concurrent": 0}}, "cbsd_monit:budget:max_concurrent", "from 1"),
    ({"nodes": {"hv1": {"chekcs": {}}}}, "cbsd_monit:nodes:hv1:chekcs", "did you mean 'checks'"),
    (
        {"nodes": {"hv1": {"checks": {"x": {"type": "running"}}}}},
        "cbsd_monit:nodes:hv1:checks:x:type",
        "not supported for a node",
    ),
    (
        {"nodes": {"hv1": {"checks": {"x": {"type": "system"}}}}},
        "cbsd_monit:nodes:hv1:checks:x",
        "loadavg_1m",
    ),
    (
        {"nodes": {"hv1": {"checks": {"x": {"type": "system", "memory": 90}}}}},
        "cbsd_monit:nodes:hv1:checks:x:memory",
        "50%",
    ),
    (
        {"nodes": {"hv1": {"checks": {"x": {"type": "tcp", "port": 1, "on_failure": "restart"}}}}},
        "cbsd_monit:nodes:hv1:checks:x:on_failure",
        "alert",
    ),
    (
        {"nodes": {"hv1": {"checks": {"x": {**HTTP, "path": "/%%JNAME%%"}}}}},
        "cbsd_monit:nodes:hv1:checks:x:path",
        "no facts",
    ),
    (
        {"nodes": {"hv1": {"checks": {"x": {**HTTP, "address": "ipv4"}}}}},
        "cbsd_monit:nodes:hv1:checks:x:address",
        "IP address",
    ),
    (
        {"nodes": {"hv1": {"checks": {"x": {"type": "exec", "in": "jail", "command": ["/x"]}}}}},
        "cbsd_monit:nodes:hv1:checks:x:in",
        "unknown key",
    ),
    ({"profiles": {"p": {"profiles": ["q"]}}}, "cbsd_monit:profiles:p:profiles", "unknown key"),
    ({"groups": {"web": {}}}, "cbsd_monit:groups:web", "match or emulator"),
    (
        {"groups": {"web": {"match": "w*", "emulator": "xen"}}},
        "cbsd_monit:groups:web:emulator",
        "jail, bhyve",
    ),
    (
        {"groups": {"web": {"match": "w*", "profiles": ["ngin"]}}, "profiles": {"nginx": {}}},
        "cbsd_monit:groups:web:profiles:0",
        "did you mean 'nginx'",
    ),
    (
        {"envs": {"lb1": {"profiles": ["nginx"]}}},
        "cbsd_monit:envs:lb1:profiles:0",
        "no profile 'nginx'",
    ),
    ({"envs": {"lb1": []}}, "cbsd_monit:envs:lb1", "a mapping"),
    ({"envs": {"-lb1": {}}}, "cbsd_monit:envs:-lb1", "name of an env"),
    ({"envs": {12: {}}}, "cbsd_monit:envs:12", "name of an env"),
    ({"envs": {True: {}}}, "cbsd_monit:envs:True", "quotes"),
    (
        {"envs": {"lb1": {"depends_on": ["lb1"]}}},
        "cbsd_monit:envs:lb1:depends_on",
        "wait for itself",
    ),
    (
        {"envs": {"a": {"depends_on": ["b"]}, "b": {"depends_on": "a"}}},
        "cbsd_monit:envs:a:depends_on",
        "wait for itself: a -> b -> a",
    ),
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
    (
        {"envs": {"a": {"depends_on": ["b", "b c"]}}},
        "cbsd_monit:envs:a:depends_on:1",
        "name of an env",
    ),
    (
        {"envs": {"a": {"depends_on": [{"env": "-b"}]}}},
        "cbsd_monit:envs:a:depends_on:0:env",
        "name of an env",
    ),
    (
        {"envs": {"a": {"depends_on": {"env": 5}}}},
        "cbsd_monit:envs:a:depends_on:env",
        "name of an env",
    ),
    (
        {"envs": {"a": {"depends_on": [{"restart": True}]}}},
        "cbsd_monit:envs:a:depends_on:0",
        "{env: NAME",
    ),
    (
        {"envs": {"a": {"depends_on": [{"env": "b", "x": 1}]}}},
        "cbsd_monit:envs:a:depends_on:0",
        "{env: NAME",
    ),
    (
        {"envs": {"a": {"depends_on": [{"env": "b", "restart": 1}]}}},
        "cbsd_monit:envs:a:depends_on:0:restart",
        "true or false",
    ),
    (
        {"envs": {"a": {"depends_on": ["b", {"env": "b"}]}}},
        "cbsd_monit:envs:a:depends_on:1",
        "each env once",
    ),
    ({"envs": {"a": {"depends_on": True}}}, "cbsd_monit:envs:a:depends_on", "each by name"),
    ({"envs": {"lb1": {"checks": ["http"]}}}, "cbsd_monit:envs:lb1:checks", "by name"),
    ({"envs": {"lb1": {"checks": {"env": HTTP}}}}, "cbsd_monit:envs:lb1:checks:env", "not env"),
    (
        {"envs": {"lb1": {"checks": {"_x": HTTP}}}},
        "cbsd_monit:envs:lb1:checks:_x",
        "a check's name",
    ),
    (
        {"envs": {"lb1": {"checks": {"web": HTTP, "WEB": HTTP}}}},
        "cbsd_monit:envs:lb1:checks:web",
        "only in case",
    ),
    (
        {"envs": {"lb1": {"checks": {"raw": HTTP}, "raw": "if failed port 1 then alert"}}},
        "cbsd_monit:envs:lb1:checks:raw",
        "taken",
    ),
    (one(None), "cbsd_monit:envs:lb1:checks:c", "a mapping"),
    (one({"port": 1}), "cbsd_monit:envs:lb1:checks:c:type", "missing"),
    (one({"type": "htpp"}), "cbsd_monit:envs:lb1:checks:c:type", "did you mean 'http'"),
    (one({"type": ["http"]}), "cbsd_monit:envs:lb1:checks:c:type", "a check type"),
    (
        one({"type": "system", "memory": "90%"}),
        "cbsd_monit:envs:lb1:checks:c:type",
        "not supported for an env",
    ),
    (one({"type": "process"}), "cbsd_monit:envs:lb1:checks:c", "name or pidfile"),
    (one({"type": "process", "name": "a b"}), "cbsd_monit:envs:lb1:checks:c:name", "a name"),
    (
        one({"type": "process", "pidfile": "x.pid"}),
        "cbsd_monit:envs:lb1:checks:c:pidfile",
        "absolute path",
    ),
    (
        one({"type": "process", "pidfile": "/x", "min": 2}),
        "cbsd_monit:envs:lb1:checks:c:min",
        "one process",
    ),
    (
        one({"type": "process", "name": "x", "min": 3, "max": 2}),
        "cbsd_monit:envs:lb1:checks:c:max",
        "less than min",
    ),
    (one({"type": "file"}), "cbsd_monit:envs:lb1:checks:c:path", "missing"),
    (
        one({"type": "file", "path": "/a/../b"}),
        "cbsd_monit:envs:lb1:checks:c:path",
        "absolute path",
    ),
    (
        one({"type": "file", "path": "/a", "max_age": 0}),
        "cbsd_monit:envs:lb1:checks:c:max_age",
        "from 1s",
    ),
    (
        one({"type": "file", "path": "/a", "min_size": "1kb"}),
        "cbsd_monit:envs:lb1:checks:c:min_size",
        "512m",
    ),
    (
        one({"type": "file", "path": "/a", "min_size": 2, "max_size": 1}),
        "cbsd_monit:envs:lb1:checks:c:max_size",
        "less",
    ),
    (
        one({"type": "filesystem", "path": "/"}),
        "cbsd_monit:envs:lb1:checks:c:type",
        "not supported for an env",
    ),
    (one({"type": "resource"}), "cbsd_monit:envs:lb1:checks:c", "at least one of"),
    (
        one({"type": "resource", "memoryuse": "50%"}),
        "cbsd_monit:envs:lb1:checks:c:memoryuse",
        "bytes",
    ),
    (one({"type": "resource", "memoryuse": -1}), "cbsd_monit:envs:lb1:checks:c:memoryuse", "bytes"),
    (
        one({"type": "resource", "memoryuse": 1.5}),
        "cbsd_monit:envs:lb1:checks:c:memoryuse",
        "bytes",
    ),
    (
        one({"type": "resource", "memory": "1g"}),
        "cbsd_monit:envs:lb1:checks:c:memory",
        "did you mean 'memoryuse'",
    ),
    (
        one({"type": "resource", "maxproc": "1k"}),
        "cbsd_monit:envs:lb1:checks:c:maxproc",
        "whole number",
    ),
    (
        {"nodes": {"hv1": {"checks": {"c": {"type": "process", "name": "x"}}}}},
        "cbsd_monit:nodes:hv1:checks:c:type",
        "not supported for a node",
    ),
    (
        one({**HTTP, "port": "x"}),
        "cbsd_monit:envs:lb1:checks:c:port",
        "expected a port number 1-65535, got 'x'",
    ),
    (one({**HTTP, "port": "80"}), "cbsd_monit:envs:lb1:checks:c:port", "got '80'"),
    (one({**HTTP, "port": 65536}), "cbsd_monit:envs:lb1:checks:c:port", "1-65535"),
    (one({**HTTP, "port": True}), "cbsd_monit:envs:lb1:checks:c:port", "1-65535"),
    (one({**HTTP, "prot": 80}), "cbsd_monit:envs:lb1:checks:c:prot", "did you mean 'port'"),
    (one({**HTTP, "path": "healthz"}), "cbsd_monit:envs:lb1:checks:c:path", "path of a URL"),
    (one({**HTTP, "path": "/a%20b"}), "cbsd_monit:envs:lb1:checks:c:path", "not yet encoded"),
    (one({**HTTP, "path": "/a/../b"}), "cbsd_monit:envs:lb1:checks:c:path", "path of a URL"),
    (one({**HTTP, "status": "200"}), "cbsd_monit:envs:lb1:checks:c:status", "100-599"),
    (one({**HTTP, "method": "POST"}), "cbsd_monit:envs:lb1:checks:c:method", "GET, HEAD"),
    (
        one({**HTTP, "method": "HEAD", "content": "x"}),
        "cbsd_monit:envs:lb1:checks:c:content",
        "HEAD",
    ),
    (one({**HTTP, "content": "(x"}), "cbsd_monit:envs:lb1:checks:c:content", "regular expression"),
    (one({**HTTP, "content": "\\d+"}), "cbsd_monit:envs:lb1:checks:c:content", "[0-9]"),
    (one({**HTTP, "content": "(?i)x"}), "cbsd_monit:envs:lb1:checks:c:content", "POSIX"),
    (one({**HTTP, "content": "é"}), "cbsd_monit:envs:lb1:checks:c:content", "printable ASCII"),
    (
        one({**HTTP, "headers": {"X Y": "1"}}),
        "cbsd_monit:envs:lb1:checks:c:headers:'X Y'",
        "name of a header",
    ),
    (one({**HTTP, "headers": {"X-Y": 1}}), "cbsd_monit:envs:lb1:checks:c:headers:X-Y", "blanks"),
    (one({**HTTP, "verify": True}), "cbsd_monit:envs:lb1:checks:c:verify", "needs tls"),
    (
        one({**HTTP, "certificate_valid": "30d"}),
        "cbsd_monit:envs:lb1:checks:c:certificate_valid",
        "needs tls",
    ),
    (
        one({**HTTP, "address": "lb1.example.org"}),
        "cbsd_monit:envs:lb1:checks:c:address",
        "IP address",
    ),
    (one({**HTTP, "address": "10.0.0.1/24"}), "cbsd_monit:envs:lb1:checks:c:address", "IP address"),
    (
        one({**HTTP, "address": "[2001:db8::1]"}),
        "cbsd_monit:envs:lb1:checks:c:address",
        "IP address",
    ),
    (
        one({"type": "tls", "certificate_valid": "36h"}),
        "cbsd_monit:envs:lb1:checks:c:certificate_valid",
        "30d",
    ),
    (one({"type": "tcp"}), "cbsd_monit:envs:lb1:checks:c:port", "missing"),
    (one({"type": "fail2ban"}), "cbsd_monit:envs:lb1:checks:c:port", "missing"),
    (one({"type": "exec"}), "cbsd_monit:envs:lb1:checks:c:command", "missing"),
    (
        one({"type": "exec", "command": "/bin/true"}),
        "cbsd_monit:envs:lb1:checks:c:command",
        "a list",
    ),
    (
        one({"type": "exec", "command": ["/bin/true", 1]}),
        "cbsd_monit:envs:lb1:checks:c:command:1",
        "an argument",
    ),
    (
        one({"type": "exec", "command": ["/bin/"]}),
        "cbsd_monit:envs:lb1:checks:c:command:0",
        "program",
    ),
    (
        one({"type": "exec", "command": ["/bin/true"], "in": "vm"}),
        "cbsd_monit:envs:lb1:checks:c:in",
        "jail, host",
    ),
    (one({"type": "service"}), "cbsd_monit:envs:lb1:checks:c:name", "missing"),
    (one({"type": "running", "port": 1}), "cbsd_monit:envs:lb1:checks:c:port", "unknown key"),
    (
        one({"type": "dns", "transport": "sctp"}),
        "cbsd_monit:envs:lb1:checks:c:transport",
        "udp, tcp",
    ),
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
    (
        {"envs": {"a": {"raw": "if failed port 1 then alert\n SET daemon 1"}}},
        "cbsd_monit:envs:a:raw",
        "line 2",
    ),
    (
        {"envs": {"a": {"raw": "if failed port 1 then alert set daemon 1"}}},
        "cbsd_monit:envs:a:raw",
        "whole node",
    ),
    ({"envs": {"a": {"raw": "every 5set daemon 1"}}}, "cbsd_monit:envs:a:raw", "whole node"),
    (
        {"envs": {"a": {"raw": 'send "x\n#" set daemon 1'}}},
        "cbsd_monit:envs:a:raw",
        "closing double quote",
    ),
    (
        {"envs": {"a": {"raw": "send 'x' set daemon 1 'y'"}}},
        "cbsd_monit:envs:a:raw",
        "double quotes",
    ),
    ({"envs": {"a": {"raw": "include /etc/x"}}}, "cbsd_monit:envs:a:raw", "include"),
    ({"envs": {"a": {"raw": "if failed\x00port 1"}}}, "cbsd_monit:envs:a:raw", "printable"),
    ({"envs": {"a": {"raw": "\ufeffif failed port 1"}}}, "cbsd_monit:envs:a:raw", "printable"),
    ({"envs": {"a": {"raw": 5}}}, "cbsd_monit:envs:a:raw", "monit's own language"),
]


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
    message = refused(
        monit, {"envs": {"a\x1b[2J\nb": {}}, "\x1b": 1, "defaults": {"interval": "\x1b[31m"}}
    )
    assert message.replace("\n", "").isascii() and message.replace("\n", "").isprintable()


HOSTILE = [
    "$(touch /tmp/x)",
    "`touch /tmp/x`",
    "../x",
    "/../x",
    'a"b',
    'x" then exec "/bin/sh -c id',
    "a\nb",
    "a\n  if failed port 1 then exec /bin/sh",
    "a\rb",
    "a\x00b",
    "a\x1b[2Jb",
    "a|b",
    "~root",
    "a;id",
    "a\\b",
    "{{ 7*7 }}",
    "{% set x = 1 %}",
    "é\u202e",
    "\ufeffx",
    "__slot__:salt:cmd.run(touch /tmp/x)",
    "x then alert set daemon 1\n",
]
# What a type of field takes although it looks hostile: content is a regular expression, and monit's alone.
WIDE = {
    "content": {
        "$(touch /tmp/x)", "`touch /tmp/x`", "../x", "/../x", 'a"b', 'x" then exec "/bin/sh -c id', "a|b", "~root",
        "a;id", "{{ 7*7 }}", "{% set x = 1 %}",
    },
    "headers": {"a;id"},
    "reason": {"a;id"},
    "by": {"a;id"},
    "path": {"/a;id"},
    "events": {"a;id"},
    "raw": set(HOSTILE) - {"a\x00b", "a\x1b[2Jb", "é\u202e", "\ufeffx", "a\rb", 'a"b', "x then alert set daemon 1\n"},
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


def full():
    """The example with what it only mentions."""
    spec = example()
    spec["template"] = "salt://site/a.tpl"
    spec["envs"]["db1"]["template"] = "salt://site/b.tpl"
    spec["events"] = {"tag": "cbsd_monit", "more": [{"x": "y"}]}
    spec["lookup"].update(
        package="monit", monit_start=["/usr/sbin/service", "monit", "start"], rootgroup="wheel"
    )
    spec["lookup"].update(
        skeletons=["mine-skel"], module_url="https://example.org/x.git", boot_id="/run/boot"
    )
    spec["defaults"]["on_failure"] = [
        {"service_restart": "nginx"},
        {"command": ["/bin/true", "x"]},
        "restart",
    ]
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
        assert f"cbsd_monit:{section}:" in refused(
            monit, {section: {value: {"match": "x"} if section == "groups" else {}}}
        )
    assert "cbsd_monit:envs:lb1:checks:" in refused(
        monit, {"envs": {"lb1": {"checks": {value: HTTP}}}}
    )
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


def test_inputs_are_not_changed(monit):
    spec, envs = full(), jails("lb1", "web1", "db1")
    del spec["template"], spec["envs"]["db1"]["template"]
    before = copy.deepcopy((spec, envs))
    first = monit.render(spec, "hv1.example.net", envs)
    first["config"]["budget"]["storm_min"] = first["config"]["policy"]["restart"]["attempts"] = 99
    first["envs"]["lb1"]["policy.json"]["on_failure"].append("x")
    first["envs"]["lb1"]["policy.json"]["checks"]["http"]["on_failure"].append("x")
    assert (spec, envs) == before
    assert (
        monit.render(spec, "hv1.example.net", envs)
        == monit.render(spec, "hv1.example.net", envs)
        != first
    )


# --- What it means


def test_nearer_wins(monit):
    spec = {
        "defaults": {
            "interval": 1,
            "timeout": 1,
            "failure_threshold": 1,
            "success_threshold": 1,
            "start_period": 1,
        },
        "nodes": {
            "hv*": {
                "defaults": {
                    "timeout": 2,
                    "failure_threshold": 2,
                    "success_threshold": 2,
                    "start_period": 2,
                }
            },
            "hv1": {
                "defaults": {"failure_threshold": 3, "success_threshold": 3, "start_period": 3}
            },
        },
        "groups": {
            "a": {"match": "*", "success_threshold": 4, "start_period": 4, "heal": False},
            "b": {"match": "lb*", "start_period": 5},
        },
        "envs": {
            "lb1": {
                "start_period": 6,
                "checks": {"c": {"type": "running"}, "d": {"type": "running", "interval": 9}},
            }
        },
    }
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    expected = {
        "interval": 1,
        "timeout": 2,
        "failure_threshold": 3,
        "success_threshold": 4,
        "start_period": 6,
    }
    assert {key: policy["checks"]["c"][key] for key in expected} == expected
    assert policy["checks"]["d"]["interval"] == 9
    assert (policy["start_period"], policy["heal"]) == (6, False)


def test_restart_is_merged_and_ladders_are_replaced(monit):
    spec = {
        "defaults": {"on_failure": ["alert", "restart"], "restart": {"attempts": 9}},
        "groups": {"all": {"match": "*", "restart": {"delay": 1}}},
        "envs": {
            "lb1": {
                "on_failure": "event",
                "checks": {"c": {"type": "running", "restart": {"timeout": 7}}},
            }
        },
    }
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert policy["on_failure"] == ["event"]
    assert (
        policy["restart"]["attempts"],
        policy["restart"]["delay"],
        policy["restart"]["timeout"],
    ) == (9, 1, 300)
    assert policy["checks"]["c"]["restart"] == {**policy["restart"], "timeout": 7}


def test_policy_has_the_shape_of_the_contract(monit):
    spec = {"envs": {"lb1": {"depends_on": ["db1"], "checks": {"http": HTTP}}}}
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert list(policy) == [
        "schema", "env", "node", "origin", "heal", "on_failure", "start_period", "restart", "depends_on", "restart_with",
        "checks",
    ]  # fmt: skip
    assert (policy["schema"], policy["env"], policy["node"], policy["origin"]) == (
        1,
        "lb1",
        "hv1",
        "pillar",
    )
    assert policy["restart"] == {
        "attempts": 3, "interval": 1800, "delay": 15, "delay_function": "exponential", "max_delay": 300, "jitter": 0.25,
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
    assert (check["type"], check["port"], check["interval"], "path" in check) == (
        "tcp",
        5,
        30,
        False,
    )


def test_parts_from_here_and_there_have_to_fit(monit):
    spec = {
        "groups": {"a": {"match": "*", "checks": {"up": {**HTTP, "method": "HEAD"}}}},
        "envs": {"lb1": {"checks": {"up": {"content": "x"}}}},
    }
    with pytest.raises(
        SaltInvocationError, match="cbsd_monit:envs:lb1:checks:up:content: the answer to HEAD"
    ):
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
        "nodes": {
            "hv1": {
                "envs": {
                    "lb1": {"heal": False, "checks": {"a": {"port": 2}, "b": {"type": "running"}}}
                }
            }
        },
    }
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert (policy["heal"], policy["checks"]["a"]["port"], policy["checks"]["b"]["type"]) == (
        False,
        2,
        "running",
    )
    assert monit.effective(spec, "hv2", jails("lb1"))["lb1"]["checks"]["a"]["port"] == 1


def test_checks_that_the_agent_runs_carry_their_command(monit):
    spec = {
        "envs": {
            "lb1": {
                "checks": {
                    "app": {"type": "exec", "command": ["/bin/app", "-q"]},
                    "host": {"type": "exec", "in": "host", "command": ["/bin/app"]},
                    "svc": {"type": "service", "name": "nginx"},
                    "sock": {"type": "unix", "path": "/tmp/s"},
                }
            }
        }
    }
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
            "type": "resource",
            "memoryuse": "512m",
            "swapuse": "2G",
            "pcpu": 150,
            "wallclock": "1d",
            "maxproc": 0,
        },
    }
    policy = monit.effective({"envs": {"lb1": {"checks": checks}}}, "hv1", jails("lb1"))["lb1"][
        "checks"
    ]
    common = "interval timeout failure_threshold success_threshold start_period on_failure".split()
    assert {name: {k: v for k, v in check.items() if k not in common} for name, check in policy.items()} == {
        "p": {"type": "process", "name": "nginx", "pidfile": "/var/run/nginx.pid", "min": 1},
        "f": {"type": "file", "path": "/var/run/beat", "max_age": 600, "max_size": 3072},
        "r": {
            "type": "resource", "memoryuse": 512 << 20, "swapuse": 2 << 30, "pcpu": 150, "wallclock": 86400, "maxproc": 0,
        },
    }  # fmt: skip


def test_who_depends_on_whom_reaches_the_agent(monit):
    spec = {
        "envs": {
            "lb1": {
                "depends_on": [
                    "db1",
                    {"env": "db2", "restart": True},
                    {"env": "db3", "restart": False},
                ]
            }
        }
    }
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert (policy["depends_on"], policy["restart_with"]) == (["db1", "db2", "db3"], ["db2"])
    spec["envs"]["lb1"]["depends_on"] = {"env": "db1", "restart": True}
    policy = monit.effective(spec, "hv1", jails("lb1"))["lb1"]
    assert (policy["depends_on"], policy["restart_with"]) == (["db1"], ["db1"])


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
    result = monit.render(
        {"groups": {"g": {"match": "*", "checks": checks}}},
        "hv1",
        [{"name": "vm1", "emulator": "bhyve"}],
    )
    assert list(result["envs"]["vm1"]["policy.json"]["checks"]) == ["up"]
    assert "probe" not in result["envs"]["vm1"]["monitrc.tpl"].replace("# ", "")
    assert result["warnings"] == [
        "vm1 is a VM: checks that look into a jail are left out (app, mem, pid)"
    ]


def test_silences_are_told_per_env_of_this_node(monit):
    spec = {
        "groups": {"web": {"match": "web*"}},
        "silences": [
            {"env": "lb1", "until": "2027-01-01T06:00:00Z", "reason": "kernel upgrade"},
            {"env": "away", "until": 1},
            {"group": "web", "until": 2, "by": "ops"},
            {"node": "hv*", "until": 3},
            {"node": "other", "env": "lb1", "until": 4},
        ],
    }
    silences = monit.render(spec, "hv1", jails("lb1", "web1"))["config"]["silences"]
    assert silences == [
        {"env": "lb1", "until": 1798783200, "reason": "kernel upgrade", "by": "pillar"},
        {"env": "web1", "until": 2, "reason": "", "by": "ops"},
        {"env": "lb1", "until": 3, "reason": "", "by": "pillar"},
        {"env": "web1", "until": 3, "reason": "", "by": "pillar"},
    ]


def test_the_nodes_configuration_has_the_shape_of_the_contract(monit):
    config = monit.render(
        {"nodes": {"hv1": {"monit": {"poll": "5s"}, "budget": {"storm_min": 9}}}}, "hv1", []
    )["config"]
    assert set(config) == {
        "schema", "node", "poll", "include", "head", "socket", "probes", "policy", "budget", "silences",
    }  # fmt: skip
    assert (config["schema"], config["node"], config["poll"], config["include"]) == (
        1,
        "hv1",
        5,
        "publish",
    )
    assert config["budget"] == {
        "max_concurrent": 1, "storm_threshold": 0.5, "storm_min": 9, "storm_window": 120, "boot_grace": 600,
    }  # fmt: skip
    assert "checks" not in config["policy"] and config["policy"]["on_failure"] == ["restart"]


# --- The text

GOLDEN = {
    "running": {"type": "running", "interval": "20s"},
    "tcp": {"type": "tcp", "port": 22},
    "udp": {"type": "udp", "port": 514, "address": "ipv6"},
    "http": HTTP,
    "http_all": {
        "type": "http", "tls": True, "verify": True, "certificate_valid": "14d", "path": "/status?full=1",
        "method": "GET", "status": 200, "hostheader": "%%JNAME%%.example.org", "headers": {"X-B": "b, c", "X-A": "a"},
        "content": '/"OK\\.\'', "failure_threshold": {"failures": 2, "within": 5}, "success_threshold": 2,
        "timeout": "1.5s", "address": "2001:db8::1",
    },
    "tls": {"type": "tls", "certificate_valid": "30d"},
    "ping": {"type": "ping", "count": 2, "size": 128, "interval": 10},
    "ping6": {"type": "ping", "address": "ipv6"},
    "dns": {"type": "dns"},
    "mysql": {"type": "mysql", "address": "ipv4"},
    "imaps": {"type": "imaps", "certificate_valid": "7d"},
    "exec": {"type": "exec", "command": ["/bin/app"], "timeout": "10s", "interval": "5m"},
    "service": {"type": "service", "name": "nginx"},
    "unix": {"type": "unix", "path": "/tmp/s"},
    "process": {"type": "process", "name": "nginx", "min": 2, "timeout": "10s"},
    "file": {"type": "file", "path": "/var/run/beat", "max_age": "10m"},
    "resource": {"type": "resource", "memoryuse": "2g", "interval": "1m"},
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_text_of_each_check_type(monit, name):
    text = rule(monit, one(GOLDEN[name]))
    golden = FILES / f"monit_{name}.tpl"
    assert text == golden.read_text()


@pytest.mark.parametrize(
    "kind", [k for k, row in load().schema()["checks"].items() if "env" in row["scope"]]
)
def test_every_type_is_rendered_as_one_service_that_wakes_the_agent(monit, kind):
    needed = {"port": 99, "command": ["/x"], "name": "nginx", "path": "/x"}
    fields = monit.schema()["checks"][kind]["fields"]
    check = {
        "type": kind,
        **{key: needed[key] for key, row in fields.items() if row.get("required")},
    }
    check.update({"process": {"name": "nginx"}, "resource": {"maxproc": 9}}.get(kind, {}))
    text = rule(monit, one(check))
    assert len(re.findall("^check ", text, re.M)) == 2
    assert text.count('then exec "%%WAKE%% monit %%ENV%%.c"') == 2
    assert ('depends on "%%ENV%%.env"' in text) is (kind != "running")
    port = check.get("port", fields.get("port", {}).get("default"))
    assert port is None or f"failed port {port} " in text


def test_the_text_travels(monit):
    """Neither the env's name nor a path of this node is in it."""
    text = rule(
        monit, {"envs": {"zebra7": {"checks": {n: c for n, c in GOLDEN.items()}}}}, "zebra7"
    )
    assert "zebra7" not in text and "/usr/local" not in text and "hv1" not in text


@pytest.mark.parametrize(
    "interval, poll, every, repeat",
    [(30, 10, 3, 1), (30, 7, 5, 1), (10, 10, 1, 3), (5, 10, 1, 3), (60, 1, 60, 1), (15, 10, 2, 2)],
)
def test_intervals_are_rounded_up_to_cycles(monit, interval, poll, every, repeat):
    text = rule(
        monit, {**one({"type": "tcp", "port": 1, "interval": interval}), "monit": {"poll": poll}}
    )
    assert (f"every {every} cycles\n  if" in text) is (every > 1)
    assert f'monit %%ENV%%.c" repeat every {repeat} cycles' in text


def test_key_order_does_not_matter(monit):
    def shuffled(value, rng):
        if isinstance(value, dict):
            return {key: shuffled(value[key], rng) for key in rng.sample(list(value), len(value))}
        return value

    spec, envs = example(), jails("lb1", "web1", "db1")
    expected = json.dumps(monit.render(spec, "hv1.example.net", envs), sort_keys=True)
    for seed in range(100):
        rng = random.Random(seed)
        result = monit.render(shuffled(spec, rng), "hv1.example.net", rng.sample(envs, len(envs)))
        assert json.dumps(result, sort_keys=True) == expected


def test_raw_text_is_put_under_its_own_service(monit):
    text = rule(
        monit, {"envs": {"lb1": {"raw": "# mail\nif failed port 25 protocol smtp then alert\n"}}}
    )
    assert text.endswith(
        'check host "%%ENV%%.raw" with address "%%ADDRESS%%"\n  onreboot laststate\n  depends on "%%ENV%%.env"\n'
        "  # mail\n  if failed port 25 protocol smtp then alert\n"
    )


def test_raw_text_with_a_check_of_its_own_is_taken_as_it_is(monit):
    raw = '# mine\ncheck process "%%JNAME%%-x" matching "set"\n  if cpu > 90% then alert\n'
    text = rule(monit, {"envs": {"lb1": {"raw": raw}}})
    assert text.endswith(f"\n{raw}") and "%%ENV%%.raw" not in text


def test_raw_text_is_no_template(monit):
    assert "{{ 7*7 }}" in rule(
        monit, {"envs": {"lb1": {"raw": "# {{ 7*7 }}\nif failed port 1 then alert"}}}
    )


# --- The node's own text


def test_head(monit):
    spec = {
        "monit": {"start_delay": "2m", "httpd": {"unixsocket": "/run/m.sock"}},
        "nodes": {
            "hv1": {
                "checks": {
                    "load": {
                        "type": "system",
                        "loadavg_5m": 8,
                        "cpu": "95%",
                        "memory": "90.5%",
                        "interval": 10,
                    },
                    "disk": {"type": "filesystem", "path": "/", "space": "90%", "inodes": "80%"},
                    "sshd": {"type": "ssh"},
                    "site": {**HTTP, "address": "10.1.2.3", "on_failure": ["alert", "event"]},
                    "pool": {"type": "exec", "command": ["/opt/zpool", "-q", "a b"]},
                }
            }
        },
    }
    head = monit.render(
        spec, "hv1", [], lookup={"libexec": "/opt/lx", "state": "/db/cm", "rootgroup": "root"}
    )["config"]["head"]
    assert head == (FILES / "monit_head.conf").read_text()


def test_paths_of_the_head_are_held_to_the_same_rules(monit):
    for key in ("libexec", "state", "rootgroup"):
        with pytest.raises(SaltInvocationError, match=f"cbsd_monit:lookup:{key}"):
            monit.render({}, "hv1", [], lookup={key: '/x" allow 0.0.0.0/0 "'})


def test_the_pillars_lookup_is_used_where_none_is_given(monit):
    head = monit.render({"lookup": {"libexec": "/opt/lx"}}, "hv1", [])["config"]["head"]
    assert (
        'path "/opt/lx/wake look"' in head
        and "gid wheel" in head
        and '"/var/db/cbsd_monit/monit.sock"' in head
    )


@pytest.mark.parametrize(
    "version, works",
    [
        ("5.33.0", 1),
        ("5.34.0", 1),
        ("5.34.1", 0),
        ("5.34.4", 0),
        ("5.35.1", 0),
        ("5.35.2", 1),
        ("6.0.0", 1),
        (None, 1),
        ("5.35", 0),
    ],
)
def test_probes_are_left_to_the_agent_where_monit_cannot(monit, version, works):
    spec = one({"type": "exec", "command": ["/x"]})
    spec["nodes"] = {"hv1": {"checks": {"pool": {"type": "exec", "command": ["/x"]}}}}
    result = monit.render(spec, "hv1", jails("lb1"), monit_version=version)
    text = result["envs"]["lb1"]["monitrc.tpl"] + result["config"]["head"]
    assert ("check program" in text) is bool(works)
    assert "c" in result["envs"]["lb1"]["policy.json"]["checks"]
    assert result["warnings"] == (
        []
        if works
        else [
            f"monit {version} cannot run check program: cbsd_monit-look is not rendered, "
            "and neither are the node's checks pool",
            f"monit {version} cannot run check program: the agent runs the probes of lb1 (c)",
        ]
    )
    assert result["config"]["probes"] == ("monit" if works else "agent")


# --- Templates


def test_an_upstream_template_passes_unchanged(monit):
    text = (
        'check host %%JNAME%% with address %%IPV4_FIRST%%\n  start program = "/usr/local/bin/cbsd jstart %%JNAME%%"\n'
        "  if failed port 80 then restart\n"
    )
    assert rule(monit, one(HTTP), template=text) == text


def test_the_nearer_template_wins():
    files = {"salt://a": "# site\n", "salt://b": "# env\n"}
    monit = load(**{"cp.get_file_str": lambda url: files.get(url, False)})
    spec = {"template": "salt://a", "envs": {"lb1": {"template": "salt://b"}, "lb2": {}}}
    result = monit.render(spec, "hv1", jails("lb1", "lb2"))
    assert [result["envs"][env]["monitrc.tpl"] for env in ("lb1", "lb2")] == ["# env\n", "# site\n"]
    result = monit.render(
        spec, "hv1", jails("lb1", "lb2"), template="# given", templates={"lb1": "# text"}
    )
    assert [result["envs"][env]["monitrc.tpl"] for env in ("lb1", "lb2")] == [
        "# text\n",
        "# given\n",
    ]
    with pytest.raises(SaltInvocationError, match="template salt://c: there is no such file"):
        monit.render({"template": "salt://c", "envs": {"lb1": {}}}, "hv1", jails("lb1"))


BAD_TEMPLATES = [
    ("{{ nosuch }}", "'nosuch' is undefined"),
    ("{{ policy.nosuch }}", "nosuch"),
    ("{% if nosuch %}x{% endif %}", "'nosuch' is undefined"),
    ("{% for x in checks %}", "line 1"),
    ("{{ 'a' | nosuch }}", "nosuch"),
    ("a\n{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{% include 'x' %}", "template of all envs"),
    ("{{ ''.__class__ }}", "unsafe"),
    ("{{ checks.append(1) }}", "append"),
    ("{% filter upper %}{{ checks[0].name }} x{% endfilter %}", "not available"),
    ("{% macro m() %}x{% endmacro %}{% call m() %}{% endcall %}", "not available"),
    ("{{ policy.checks.c.content }}", "needs the filter `monit`"),
    ("{{ policy.checks.c.content ~ 'x' }}", "needs the filter `monit`"),
    ("{{ policy.checks.c.content | upper }}", "needs the filter `monit`"),
    ("{{ policy.checks.c.content | safe }}", "needs the filter `monit`"),
    ("{{ (policy.checks.c.content | monit) ~ ' then alert' }}", "needs the filter `monit`"),
    ("{{ [policy.checks.c.content] | join }}", "needs the filter `monit`"),
    ("{% set x %}{{ 'a' }} {{ 'b' }}{% endset %}{{ x }}", "needs the filter `monit`"),
    ("{{ policy.checks.c.content.format('x') }}", "needs the filter `monit`"),
    ("{{ policy.restart }}", "needs the filter `monit`"),
    ("{{ policy.heal }}", "needs the filter `monit`"),
    ("{{ none }}", "needs the filter `monit`"),
    ("{{ 'a\nb' | monit }}", "printable ASCII"),
    ("  set daemon 1", "whole node"),
    ("x\nInclude /etc/y", "whole node"),
    ("é", "printable ASCII"),
    ("{{ env }}", "undefined"),
    ("{{ policy.env }}", "env"),
]


@pytest.mark.parametrize("text, word", BAD_TEMPLATES)
def test_bad_templates_are_one_clear_error(monit, text, word):
    spec = one({**HTTP, "content": 'x" then exec "/bin/sh'})
    with pytest.raises(SaltInvocationError) as caught:
        rule(monit, spec, template=text)
    assert str(caught.value).startswith("template of all envs") and word in str(caught.value)


def test_the_filter_makes_a_monit_string_of_anything(monit):
    spec = one({**HTTP, "content": "/a\"b\\.'d"})
    text = rule(
        monit,
        spec,
        template="{{ policy.checks.c.content | monit }} {{ 5 | monit }} {{ checks[0].tests[0] | monit }}",
    )
    assert text.startswith('"\\0x2fa\\0x22b\\\\.\\0x27d" 5 failed port 80 ')


def test_what_is_safe_anywhere_needs_no_filter(monit):
    spec = one({**HTTP, "path": "/a"})
    assert (
        rule(
            monit,
            spec,
            template="{{ checks[0].name }} {{ policy.checks.c.path }} {{ poll }} {{ 0.5 }}",
        )
        == "c /a 10 0.5\n"
    )


# --- The agent and monit


class Commands:
    """Stands for ``cmd.run_all``: records what is run and answers what it was told."""

    def __init__(self, stdout="", retcode=0, stderr=""):
        self.answer, self.ran = {"stdout": stdout, "retcode": retcode, "stderr": stderr}, []

    def __call__(self, argv, **more):
        assert more["python_shell"] is False and more["timeout"]
        self.ran.append(argv)
        return self.answer


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
        [wake, "status"],
        [wake, "status", "lb1"],
        [wake, "sync", "--json"],
        [wake, "history", "lb1"],
    ]


def test_the_agents_default_place():
    run = Commands("{}")
    load(**{"cmd.run_all": run}).status()
    assert run.ran == [["/usr/local/libexec/cbsd_monit/wake", "status"]]


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
    assert (
        load(
            **{"cmd.run_all": Commands("This is Monit version 5.33.0\nBuilt with ssl")}
        ).monit_version()
        == "5.33.0"
    )


# --- The house's rules


@pytest.mark.parametrize("name", NAMES)
def test_modules_keep_the_rules(name):
    source = (REPO / "_modules" / f"{name}.py").read_text()
    for word in ("__pillar__", "__utils__", "subprocess", '"pillar.', "os.system"):
        assert word not in source
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node)
            assert "CLI Example:" in text and ".. code-block:: bash" in text, node.name


if __name__ == "__main__":
    (REPO / "docs/pillar.md").write_text(load().__salt__["cbsd_monit_schema.reference"]())
