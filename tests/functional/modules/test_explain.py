"""``cbsd_monit.explain`` by ``salt-call``, on a node with CBSD and a pillar that Salt masks."""

import os
import shutil
import tempfile

import pytest

PILLAR = {
    "defaults": {"restart": {"attempts": 5}},
    "groups": {"web": {"match": "lb*", "interval": "20s"}},
    "envs": {"lb1": {"checks": {
        "http": {"type": "http", "path": "/healthz"},
        "mem": {"type": "resource", "maxproc": 9},
    }}},
}  # fmt: skip


@pytest.fixture(scope="module")
def node():
    if os.geteuid() != 0:
        pytest.skip("needs root: the commands of CBSD are only for root")
    from node_on_salt import SaltNode

    made = SaltNode(tempfile.mkdtemp(prefix="cx", dir="/tmp"), "hv1")
    made.create()
    for name in ("lb1", "other"):
        made.sim.cbsd("jcreate", f"jname={name}", "ip4_addr=0", "inter=0")
    made.pillar(PILLAR)
    made.salt("saltutil.sync_modules")
    yield made
    made.destroy()
    shutil.rmtree(made.root, ignore_errors=True)


def test_it_reads_the_pillar_as_the_states_do(node):
    told = node.salt("cbsd_monit.explain", "lb1")
    assert "**" not in str(told).replace("%%", "")
    settings = told["checks"]["http"]["settings"]
    assert settings["path"] == {"value": "/healthz", "from": "cbsd_monit:envs:lb1:checks:http:path"}
    assert settings["interval"] == {"value": 20, "from": "cbsd_monit:groups:web:interval"}
    assert settings["timeout"] == {"value": 5, "from": "built-in default"}
    assert told["policy"]["restart:attempts"] == {
        "value": 5,
        "from": "cbsd_monit:defaults:restart:attempts",
    }
    assert f'path "{node.wake} probe lb1 mem"' in told["checks"]["mem"]["monit"][0]
    assert told["checks"]["env"]["monit"][0].endswith(f'path "{node.run_dir}/dead/lb1"')


def test_text_is_for_a_person(node):
    text = node.salt("cbsd_monit.explain", "lb1", "text=True")
    assert "  interval           20 s      cbsd_monit:groups:web:interval\n" in text
    assert '\n  | check host "lb1.http" with address "%%ADDRESS%%"\n' in text
    assert "attempt 5: restart" in text


@pytest.mark.parametrize(
    "env, why",
    [("nosuch", "is not on hv1"), ("other", "the pillar gives it no policy"), ("a b", "name")],
)
def test_others_are_one_clear_error(node, env, why):
    said = node.salt("cbsd_monit.explain", env, check=False)
    assert why in said and "Traceback" not in said
    assert env == "a b" or len(said.strip().split("\n")) == 1
