"""
The monit text that comes of a pillar. Whether real monit accepts and means it is the functional
test's question (``tests/functional/modules/test_render_monit.py``).
"""

import copy
import json
import random
import re

import pytest
from salt.exceptions import SaltInvocationError

from tests.unit.loaded import REPO
from tests.unit.modules.pillars import HTTP, example, full, jails, load, one, rule

FILES = REPO / "tests/unit/files"


def test_what_the_reference_says_of_monit_is_what_is_rendered(monit):
    """Each of monit's phrases in the table stands in the text when its key is used."""
    check = {
        "type": "tcp", "port": 1, "interval": 50, "timeout": 7, "failure_threshold": 4,
        "success_threshold": 6,
    }  # fmt: skip
    share = {**check, "failure_threshold": {"failures": 4, "within": 8}}
    text = rule(monit, one(check)) + rule(monit, one(share))
    rows = monit.schema()["sections"]["policy"]
    phrases = {key: re.findall("`([^`]+)`", rows[key]["monit"]) for key in rows}
    said = {"every N cycles": "every 5 cycles", "with timeout N seconds": "with timeout 7 seconds"}
    said.update({
        "for N cycles": "for 4 cycles",
        "for N times within M cycles": "for 4 times within 8 cycles",
    })  # fmt: skip
    said.update({
        "else if succeeded for N cycles": "else if succeeded for 6 cycles",
        "exec": 'then exec "%%WAKE%%',
    })  # fmt: skip
    found = {phrase for words in phrases.values() for phrase in words}
    found -= {"monit:poll", "wake", "ping"}
    assert found == set(said)
    assert all(line in text for line in said.values())


def test_inputs_are_not_changed(monit):
    spec, envs = full(), jails("lb1", "web1", "db1")
    del spec["template"], spec["envs"]["db1"]["template"]
    before = copy.deepcopy((spec, envs))
    first = monit.render(spec, "hv1.example.net", envs)
    first["config"]["budget"]["storm_min"] = first["config"]["policy"]["restart"]["attempts"] = 99
    first["envs"]["lb1"]["policy.json"]["on_failure"].append("x")
    first["envs"]["lb1"]["policy.json"]["checks"]["http"]["on_failure"].append("x")
    assert (spec, envs) == before
    again = [monit.render(spec, "hv1.example.net", envs) for _ in range(2)]
    assert again[0] == again[1] != first


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
    node = {"monit": {"poll": "5s"}, "budget": {"storm_min": 9}}
    config = monit.render({"nodes": {"hv1": node}}, "hv1", [])["config"]
    assert set(config) == {
        "schema", "node", "poll", "include", "head", "socket", "probes", "policy", "budget",
        "silences",
    }  # fmt: skip
    found = [config[key] for key in ("schema", "node", "poll", "include")]
    assert found == [1, "hv1", 5, "publish"]
    assert config["budget"] == {
        "max_concurrent": 1, "storm_threshold": 0.5, "storm_min": 9, "storm_window": 120,
        "boot_grace": 600,
    }  # fmt: skip
    assert "checks" not in config["policy"] and config["policy"]["on_failure"] == ["restart"]


GOLDEN = {
    "running": {"type": "running", "interval": "20s"},
    "tcp": {"type": "tcp", "port": 22},
    "udp": {"type": "udp", "port": 514, "address": "ipv6"},
    "http": HTTP,
    "http_all": {
        "type": "http", "tls": True, "verify": True, "certificate_valid": "14d",
        "path": "/status?full=1", "method": "GET", "status": 200,
        "hostheader": "%%JNAME%%.example.org", "headers": {"X-B": "b, c", "X-A": "a"},
        "content": '/"OK\\.\'', "failure_threshold": {"failures": 2, "within": 5},
        "success_threshold": 2, "timeout": "1.5s", "address": "2001:db8::1",
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
    given = {key: needed[key] for key, row in fields.items() if row.get("required")}
    check = {"type": kind, **given}
    check.update({"process": {"name": "nginx"}, "resource": {"maxproc": 9}}.get(kind, {}))
    text = rule(monit, one(check))
    assert len(re.findall("^check ", text, re.M)) == 2
    assert text.count('then exec "%%WAKE%% monit %%ENV%%.c"') == 2
    assert ('depends on "%%ENV%%.env"' in text) is (kind != "running")
    port = check.get("port", fields.get("port", {}).get("default"))
    assert port is None or f"failed port {port} " in text


def test_the_text_travels(monit):
    """Neither the env's name nor a path of this node is in it."""
    spec = {"envs": {"zebra7": {"checks": dict(GOLDEN)}}}
    text = rule(monit, spec, "zebra7")
    assert "zebra7" not in text and "/usr/local" not in text and "hv1" not in text


@pytest.mark.parametrize(
    "interval, poll, every, repeat",
    [(30, 10, 3, 1), (30, 7, 5, 1), (10, 10, 1, 3), (5, 10, 1, 3), (60, 1, 60, 1), (15, 10, 2, 2)],
)
def test_intervals_are_rounded_up_to_cycles(monit, interval, poll, every, repeat):
    check = {"type": "tcp", "port": 1, "interval": interval}
    text = rule(monit, {**one(check), "monit": {"poll": poll}})
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
    raw = "# mail\nif failed port 25 protocol smtp then alert\n"
    text = rule(monit, {"envs": {"lb1": {"raw": raw}}})
    assert text.endswith(
        'check host "%%ENV%%.raw" with address "%%ADDRESS%%"\n  onreboot laststate\n'
        '  depends on "%%ENV%%.env"\n'
        "  # mail\n  if failed port 25 protocol smtp then alert\n"
    )


def test_raw_text_with_a_check_of_its_own_is_taken_as_it_is(monit):
    raw = '# mine\ncheck process "%%JNAME%%-x" matching "set"\n  if cpu > 90% then alert\n'
    text = rule(monit, {"envs": {"lb1": {"raw": raw}}})
    assert text.endswith(f"\n{raw}") and "%%ENV%%.raw" not in text


def test_raw_text_is_no_template(monit):
    raw = "# {{ 7*7 }}\nif failed port 1 then alert"
    assert "{{ 7*7 }}" in rule(monit, {"envs": {"lb1": {"raw": raw}}})


def test_head(monit):
    spec = {
        "monit": {"start_delay": "2m", "httpd": {"unixsocket": "/run/m.sock"}},
        "nodes": {"hv1": {"checks": {
            "load": {
                "type": "system", "loadavg_5m": 8, "cpu": "95%", "memory": "90.5%", "interval": 10,
            },
            "disk": {"type": "filesystem", "path": "/", "space": "90%", "inodes": "80%"},
            "sshd": {"type": "ssh"},
            "site": {**HTTP, "address": "10.1.2.3", "on_failure": ["alert", "event"]},
            "pool": {"type": "exec", "command": ["/opt/zpool", "-q", "a b"]},
        }}},
    }  # fmt: skip
    lookup = {"libexec": "/opt/lx", "state": "/db/cm", "rootgroup": "root"}
    head = monit.render(spec, "hv1", [], lookup=lookup)["config"]["head"]
    assert head == (FILES / "monit_head.conf").read_text()


def test_paths_of_the_head_are_held_to_the_same_rules(monit):
    for key in ("libexec", "state", "rootgroup"):
        with pytest.raises(SaltInvocationError, match=f"cbsd_monit:lookup:{key}"):
            monit.render({}, "hv1", [], lookup={key: '/x" allow 0.0.0.0/0 "'})


def test_the_pillars_lookup_is_used_where_none_is_given(monit):
    head = monit.render({"lookup": {"libexec": "/opt/lx"}}, "hv1", [])["config"]["head"]
    assert 'path "/opt/lx/wake look"' in head
    assert "gid wheel" in head
    assert '"/var/db/cbsd_monit/monit.sock"' in head


BROKEN = ("5.34.1", "5.34.4", "5.35.1", "5.35")


@pytest.mark.parametrize("version", ["5.33.0", "5.34.0", "5.35.2", "6.0.0", None, *BROKEN])
def test_probes_are_left_to_the_agent_where_monit_cannot(monit, version):
    works = version not in BROKEN
    spec = one({"type": "exec", "command": ["/x"]})
    spec["nodes"] = {"hv1": {"checks": {"pool": {"type": "exec", "command": ["/x"]}}}}
    result = monit.render(spec, "hv1", jails("lb1"), monit_version=version)
    text = result["envs"]["lb1"]["monitrc.tpl"] + result["config"]["head"]
    assert ("check program" in text) is works
    assert "c" in result["envs"]["lb1"]["policy.json"]["checks"]
    warnings = [
        f"monit {version} cannot run check program: cbsd_monit-look is not rendered, "
        "and neither are the node's checks pool",
        f"monit {version} cannot run check program: the agent runs the probes of lb1 (c)",
    ]
    assert result["warnings"] == ([] if works else warnings)
    assert result["config"]["probes"] == ("monit" if works else "agent")


def test_an_upstream_template_passes_unchanged(monit):
    text = (
        "check host %%JNAME%% with address %%IPV4_FIRST%%\n"
        '  start program = "/usr/local/bin/cbsd jstart %%JNAME%%"\n'
        "  if failed port 80 then restart\n"
    )
    assert rule(monit, one(HTTP), template=text) == text


def test_the_nearer_template_wins():
    files = {"salt://a": "# site\n", "salt://b": "# env\n"}
    monit = load(**{"cp.get_file_str": lambda url: files.get(url, False)})
    spec = {"template": "salt://a", "envs": {"lb1": {"template": "salt://b"}, "lb2": {}}}
    result = monit.render(spec, "hv1", jails("lb1", "lb2"))
    assert [result["envs"][env]["monitrc.tpl"] for env in ("lb1", "lb2")] == ["# env\n", "# site\n"]
    own = {"lb1": "# text"}
    result = monit.render(spec, "hv1", jails("lb1", "lb2"), template="# given", templates=own)
    texts = [result["envs"][env]["monitrc.tpl"] for env in ("lb1", "lb2")]
    assert texts == ["# text\n", "# given\n"]
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
        template="{{ policy.checks.c.content | monit }} {{ 5 | monit }}"
        " {{ checks[0].tests[0] | monit }}",
    )
    assert text.startswith('"\\0x2fa\\0x22b\\\\.\\0x27d" 5 failed port 80 ')


def test_what_is_safe_anywhere_needs_no_filter(monit):
    spec = one({**HTTP, "path": "/a"})
    text = "{{ checks[0].name }} {{ policy.checks.c.path }} {{ poll }} {{ 0.5 }}"
    assert rule(monit, spec, template=text) == "c /a 10 0.5\n"
