"""The states by Salt's loader, straight from the repository, and what real monit accepts."""

import json
import pathlib
import random
import shutil
import stat
import subprocess
import tempfile

import pytest
import salt.config

REPO = pathlib.Path(__file__).resolve().parents[3]
MONIT = shutil.which("monit")
STATES = """checks_present checks_absent include_present include_absent hooks_present hooks_absent
    running""".split()
# As FreeBSD's package ships it, shortened: a statement over several lines, a comment among them.
SAMPLE = """\
set daemon  30              # check services at 30 seconds intervals
set log {root}/monit.log
set idfile {root}/id
set statefile {root}/state
set httpd port 2812 and
    use address localhost  # only accept connection from localhost
    allow localhost        # allow localhost to connect to the server and
    allow admin:monit      # require user 'admin' with password 'monit'
    #with ssl {{            # enable SSL/TLS and set path to server certificate
    #    pemfile: /usr/local/etc/ssl/monit.pem
    #}}

set limits {{
    programOutput: 512 B
}}
check system cbsd_node
    if loadavg (5min) > 3 then alert
"""


@pytest.fixture(scope="module")
def states():
    """Salt's state loader with this repository's folders, nothing synced."""
    from saltfactories.utils.functional import Loaders

    root = tempfile.mkdtemp(prefix="cs", dir="/tmp")
    opts = salt.config.minion_config(None, minion_id="hv1")
    opts.update(
        root_dir=root, cachedir=f"{root}/cache", extension_modules=f"{root}/ext",
        sock_dir=f"{root}/sock", pki_dir=f"{root}/pki", log_file=f"{root}/log", file_client="local",
        module_dirs=[str(REPO / "_modules")],
        states_dirs=[str(REPO / "_states")],
    )  # fmt: skip
    loaders = Loaders(opts)
    loaders.states.rendering = loaders.modules.cbsd_monit.render
    yield loaders.states
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def lookup(tmp_path):
    for name in ("jails/share", "jails/jails-system", "state"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "state/published").write_text(
        "check host lb1 with address 127.0.0.1\n  if failed port 80 then alert\n"
    )
    (tmp_path / "sample").write_text(SAMPLE.format(root=tmp_path))
    return {
        "workdir": f"{tmp_path}/jails", "state": f"{tmp_path}/state", "run": f"{tmp_path}/run",
        "libexec": f"{tmp_path}/libexec", "config": f"{tmp_path}/config", "monit": MONIT,
        "monitrc": f"{tmp_path}/monitrc", "monitrc_sample": f"{tmp_path}/sample",
        "monit_start": ["/bin/false"],
    }  # fmt: skip


@pytest.fixture(params=[False, True], ids=["apply", "test"])
def testmode(request):
    return request.param


@pytest.mark.parametrize("name", STATES)
def test_three_files_are_one_state_module(states, name):
    assert f"cbsd_monit.{name}" in states


def test_control_file_from_the_sample_is_one_that_monit_takes(states, lookup):
    name = lookup["monitrc"]
    ret = states.cbsd_monit.include_present(name, spec={"lookup": lookup})
    assert ret.result is True, ret.comment
    path = pathlib.Path(name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = subprocess.run([MONIT, "-t", "-c", name], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    active = [
        line
        for line in path.read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    assert not any("allow" in line or "httpd" in line for line in active)
    assert "    programOutput: 512 B" in active
    assert active[-1] == f"include {lookup['state']}/published"


def test_monits_refusal_is_quoted_and_nothing_changes(states, lookup, tmp_path, testmode):
    path = tmp_path / "monitrc"
    path.write_text(f"set log {tmp_path}/monit.log\nset idfile {tmp_path}/id\nset daemn 30\n")
    path.chmod(0o600)
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.iterdir() if p.is_file()}
    ret = states.cbsd_monit.include_present(str(path), spec={"lookup": lookup}, test=testmode)
    assert ret.result is False
    assert f"{path}:3: syntax error 'daemn'" in ret.comment
    if testmode:
        assert {p: p.lstat().st_mtime_ns for p in tmp_path.iterdir() if p.is_file()} == before
    assert "include" not in path.read_text()


def test_publication_that_would_break_monit_is_not_included(states, lookup, tmp_path):
    path = tmp_path / "monitrc"
    path.write_text(
        f"set idfile {tmp_path}/id\ncheck host LB1 with address 127.0.0.1\n"
        "  if failed port 80 then alert\n"
    )
    path.chmod(0o600)
    ret = states.cbsd_monit.include_present(str(path), spec={"lookup": lookup})
    assert ret.result is False and "Service name conflict" in ret.comment


def test_hooks_come_and_go(states, lookup, tmp_path, testmode):
    (tmp_path / "jails/share/jail-system-default").mkdir()
    spec = {"lookup": lookup}
    ret = states.cbsd_monit.hooks_present("hooks", spec=spec, test=testmode)
    assert ret.result is (None if testmode else True)
    assert len(ret.changes["links"]) == len(ret.changes["directories"]) == 7
    assert sum(p.name == "cbsd_monit" for p in (tmp_path / "jails").rglob("*")) == (
        0 if testmode else 7
    )
    ret = states.cbsd_monit.hooks_absent("hooks", spec=spec)
    assert ret.result is True
    assert list((tmp_path / "jails/share/jail-system-default").iterdir()) == []
    assert not (tmp_path / "state/undo.json").exists()


def test_missing_path_is_an_answer_and_not_a_traceback(states, lookup):
    del lookup["state"]
    ret = states.cbsd_monit.hooks_present("hooks", spec={"lookup": lookup})
    assert ret.result is False and "state" in ret.comment
    ret = states.cbsd_monit.hooks_present(
        "hooks", spec={"lookup": {**lookup, "state": "relative/path"}}
    )
    assert ret.result is False and "expected an absolute path, got 'relative/path'" in ret.comment


PILLAR = {
    "monit": {"poll": "5s", "start_delay": "10s"},
    "defaults": {
        "interval": "20s", "timeout": "3s",
        "restart": {"attempts": 4, "delay": "5s", "mode": "delay"},
    },
    "budget": {"max_concurrent": 2, "storm_min": 7, "boot_grace": "5m"},
    "profiles": {
        "web": {"checks": {
            "http": {"type": "http", "port": 80, "headers": {"X-A": "b", "Accept": "c"}},
            "ssh": {"type": "tcp", "port": 22},
        }},
        "db": {"checks": {"sql": {
            "type": "mysql", "port": 3306,
            "failure_threshold": {"failures": 2, "within": 5},
        }}},
    },
    "groups": {
        "all": {"match": "*", "checks": {"alive": {"type": "running"}}},
        "w": {"match": "w*", "profiles": ["web"], "timeout": "7s"},
        "d": {"match": "?b*", "profiles": ["db"], "checks": {"ssh": {"type": "tcp", "port": 2222}}},
    },
    "nodes": {"hv*": {"checks": {
        "load": {"type": "system", "loadavg_5m": 9},
        "disk": {"type": "filesystem", "path": "/", "space": "90%"},
    }}},
    "envs": {
        "w1": {
            "depends_on": ["db1"],
            "checks": {
                "tls": {"type": "tls", "port": 443},
                "app": {"type": "exec", "in": "jail", "command": ["/x", "-q"]},
            },
        },
        "db1": {"raw": "if failed port 99 then alert\n", "on_failure": ["alert"]},
        "w2": {"checks": {"http": False}},
    },
    "silences": [{"env": "w1", "until": "2027-01-01T06:00:00Z", "reason": "x"}],
}  # fmt: skip


def shuffled(data, dice):
    """The same mapping, its keys in another order at every depth."""
    if isinstance(data, dict):
        keys = list(data)
        dice.shuffle(keys)
        return {key: shuffled(data[key], dice) for key in keys}
    return [shuffled(item, dice) for item in data] if isinstance(data, list) else data


def test_same_pillar_in_a_hundred_key_orders_renders_the_same_bytes(states):
    template = (REPO / "cbsd_monit/files/monitrc.tpl.jinja").read_text()
    envs = [{"name": name, "emulator": "jail"} for name in ("w1", "db1", "w2", "w3", "x")]

    def rendered(pillar, envs):
        made = states.rendering(pillar, "hv1", envs, template=template)
        files = {
            n: (e["monitrc.tpl"], json.dumps(e["policy.json"], indent=1, sort_keys=True))
            for n, e in made["envs"].items()
        }
        return files, json.dumps(made["config"], sort_keys=True), made["warnings"]

    wanted = rendered(PILLAR, envs)
    assert "w1" in wanted[0]
    assert "check program" in wanted[0]["w1"][0]
    assert "port 99" in wanted[0]["db1"][0]
    for seed in range(100):
        dice = random.Random(seed)
        assert rendered(shuffled(PILLAR, dice), dice.sample(envs, len(envs))) == wanted, seed
