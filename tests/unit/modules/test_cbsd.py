"""The execution module `cbsd` and a stand-in for what it runs: parsing, refusals, locks."""

import fcntl
import os
import pathlib
import shlex
import sys
import time
import types

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from tests.unit.loaded import fails, load, refuses

cbsd = load("_modules/cbsd.py")
COLUMNS = "jname,jid,status,emulator,ip4_addr,host_hostname,path,astart,protected"


class FakeNode:
    """What the module runs: answers questions, records everything, and does as it was set up."""

    def __init__(self, root):
        self.root = root
        self.workdir = root / "jails"
        self.calls, self.full_calls, self.raw_inventory = [], [], None
        self.envs, self.jids, self.settings = {}, {}, {}
        self.answers, self.effects = {}, {}
        (self.workdir / "var/db").mkdir(parents=True)
        (self.workdir / "nc.inventory").touch()
        (self.workdir / "var/db/local.sqlite").touch()
        self.vmm = root / "vmm"
        self.vmm.mkdir()
        self.run = root / "run"
        for name in ("cbsd", "jls", "jexec"):
            (root / name).touch(mode=0o755)
        self.lookup = {key: str(root / key) for key in ("cbsd", "jls", "jexec", "vmm", "run")}
        self.lookup["workdir"] = str(self.workdir)

    def add(self, name, emulator="jail", jid=0, status=None, **columns):
        row = dict.fromkeys(COLUMNS.split(","), "0")
        row.update(jname=name, emulator=emulator, ip4_addr="10.0.0.1/24")
        row["host_hostname"] = f"{name}.my.domain"
        row["path"] = f"/jails/{name}"
        row["status"] = str(status if status is not None else int(bool(jid)))
        row["jid"] = str(jid)
        row.update(columns)
        self.envs[name] = row
        self.settings[name] = {"astart": row["astart"], "ip4_addr": row["ip4_addr"]}
        self.settings[name]["interface"] = "auto"
        if jid:
            self.up(name, jid)

    def up(self, name, jid=7):
        if self.envs[name]["emulator"] == "bhyve":
            (self.vmm / name).touch()
            self.envs[name]["jid"] = str(jid)
        else:
            self.jids[name] = jid

    def down(self, name):
        self.jids.pop(name, None)
        (self.vmm / name).unlink(missing_ok=True)

    def config_get(self, key, default=None):
        assert key == "cbsd_monit:lookup"
        return self.lookup

    def run_all(self, cmd, **kwargs):
        self.full_calls.append((cmd, kwargs))
        at = cmd.index("-ISc")
        argv = cmd[at + 3 :]
        argv[0] = os.path.basename(argv[0])
        line = " ".join(argv)
        if argv[:2] == ["cbsd", "-c"]:
            assert argv[2:] == [f"cbsdsqlro local SELECT {COLUMNS},jname FROM jails"]
            rows = "\n".join("|".join([*row.values(), row["jname"]]) for row in self.envs.values())
            return self.answer(rows if self.raw_inventory is None else self.raw_inventory)
        if argv[0] == "jls":
            assert argv == ["jls", "jid", "name"]
            return self.answer("\n".join(f"{jid} {name}" for name, jid in self.jids.items()))
        self.calls.append(line)
        if argv[1] in ("jget", "bget"):
            return self.get(argv[2].partition("=")[2], argv[3:])
        self.effects.get(line, lambda: None)()
        return self.answers.get(line, self.answer(f"{argv[1]} done in 1 seconds"))

    def get(self, name, keys):
        known = {key: self.settings[name][key] for key in keys if key in self.settings[name]}
        shown = (known or self.settings[name]).items()
        return self.answer("\n".join(f"{key}: {value}" for key, value in shown))

    @staticmethod
    def answer(stdout="", retcode=0, stderr=""):
        return {"pid": 1, "retcode": retcode, "stdout": stdout, "stderr": stderr}


@pytest.fixture
def node(tmp_path):
    return FakeNode(tmp_path)


@pytest.fixture(autouse=True)
def salt(node, monkeypatch):
    functions = {"cmd.run_all": node.run_all, "config.get": node.config_get}
    monkeypatch.setattr(cbsd, "__salt__", functions)


# -- the seam


def test_cbsd_is_run_with_nothing_of_the_callers_environment(node):
    node.add("web1")
    node.effects["cbsd jstart inter=0 jname=web1"] = lambda: node.up("web1")
    cbsd.start("web1", timeout=17)
    (cmd, kwargs), *_ = [call for call in node.full_calls if "jstart" in call[0]]
    assert cmd == [
        "/usr/bin/env", "-i",
        "PATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin",
        "HOME=/root", "TERM=xterm", f"workdir={node.workdir}", "NOCOLOR=1", "NOINTER=1",
        "NO_CBSD_HISTORY=yes", sys.executable, "-ISc", cbsd._RUNNER, "17", str(node.root / "cbsd"),
        "jstart", "inter=0", "jname=web1",
    ]  # fmt: skip
    assert kwargs == {
        "cwd": "/", "stdin": "", "python_shell": False, "ignore_retcode": True, "timeout": 47,
    }  # fmt: skip


@pytest.fixture
def real_run(node):
    """`_run` with Salt's own `cmd.run_all`."""
    import salt.modules.cmdmod

    cbsd.__salt__["cmd.run_all"] = salt.modules.cmdmod.run_all
    salt.modules.cmdmod.__grains__ = {}
    yield lambda argv, timeout=20, **kwargs: cbsd._run({"workdir": "/x"}, argv, timeout, **kwargs)


def test_output_exit_code_and_environment_come_through(real_run):
    script = 'echo "$0 $1"; echo err >&2; pwd; env | sort; cat; exit 3'
    ran = real_run(["/bin/sh", "-c", script, "$(id)", "a b"], cause="restart")
    assert ran["retcode"] == 3 and ran["stderr"] == "err" and not ran["killed"]
    out = ran["stdout"].splitlines()
    assert out[:2] == ["$(id) a b", "/"]
    names = {line.partition("=")[0] for line in out[2:]} - {"LC_CTYPE", "PWD", "_"}
    given = "CBSD_MONIT_CAUSE HOME NOCOLOR NOINTER NO_CBSD_HISTORY PATH TERM workdir"
    assert names == set(given.split())
    assert "CBSD_MONIT_CAUSE=restart" in out


def test_a_program_killed_by_a_signal_exits_like_in_a_shell(real_run):
    assert real_run(["/bin/sh", "-c", "kill -9 $$"])["retcode"] == 137
    assert not real_run(["/bin/sh", "-c", "kill -9 $$"])["killed"]


def test_a_closed_pipe_ends_a_writer_as_in_any_shell(real_run):
    """Python ignores SIGPIPE, and a child would inherit that."""
    ran = real_run(["/bin/sh", "-c", "(while :; do echo y; done) | head -1"], timeout=10)
    assert (ran["stdout"], ran["stderr"], ran["killed"]) == ("y", "", False)


def eventually(condition, seconds=20):
    """Whether it becomes true before long; machines that run tests are slow at times."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def runs(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_the_time_out_kills_children_too_even_if_they_ignore_sigterm(real_run, tmp_path):
    script = f"""trap "" TERM INT HUP
        (trap "" TERM INT HUP; sh -c 'echo $PPID' > {tmp_path}/child; sleep 60; sleep 60) &
        echo begun; sleep 60; sleep 60"""
    began = time.monotonic()
    ran = real_run(["/bin/sh", "-c", script], timeout=2)
    assert ran["killed"] and ran["stdout"] == "begun"
    assert time.monotonic() - began < 30
    child = (tmp_path / "child").read_text().strip()
    assert eventually(lambda: not runs(child))


def test_a_daemon_that_keeps_the_output_open_is_neither_waited_for_nor_killed(real_run, tmp_path):
    """FreeBSD's timeout(1) would do both, and so end the VM that was just started."""
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    script = f"({wait}; echo still here; echo > {tmp_path}/alive) & echo started"
    ran = real_run(["/bin/sh", "-c", script], timeout=60)
    assert ran["stdout"] == "started" and not ran["killed"]
    (tmp_path / "go").touch()
    assert eventually((tmp_path / "alive").exists)


def test_a_missing_program_is_one_clear_sentence(node, real_run):
    with fails("/nonexistent/cbsd is missing or not executable"):
        real_run(["/nonexistent/cbsd", "version"])
    with fails("jls is missing"):
        os.remove(node.root / "jls")
        node.add("web1")
        cbsd.__salt__["cmd.run_all"] = node.run_all
        cbsd.list_()


# -- paths


@pytest.mark.parametrize("text, workdir", [
    ('cbsd_workdir="/usr/jails"\n', "/usr/jails"),
    ("cbsd_workdir='/usr/jails' # here\n", "/usr/jails"),
    ('a=1; export cbsd_workdir=/tank/cbsd; b="x"\n', "/tank/cbsd"),
    ('cbsd_workdir="/old"\n# cbsd_workdir="/commented"\ncbsd_workdir="/new"\n', "/new"),
    ("motd='it\n spans lines'\ncbsd_workdir=/usr/jails\n", "/usr/jails"),
])  # fmt: skip
def test_workdir_comes_from_rc_conf(node, text, workdir):
    (node.root / "rc.conf").write_text(text)
    node.lookup.update(rc_conf=str(node.root / "rc.conf"))
    del node.lookup["workdir"]
    assert cbsd.paths()["workdir"] == workdir


def test_rc_conf_is_not_executed(node):
    line = f'cbsd_workdir="$(touch {node.root}/ran; echo /usr/jails)"\n'
    (node.root / "rc.conf").write_text(line)
    node.lookup.update(rc_conf=str(node.root / "rc.conf"), workdir=None)
    with fails(r"sets no usable cbsd_workdir \('\$\(touch"):
        cbsd.paths()
    assert not (node.root / "ran").exists()


@pytest.mark.parametrize("text", [None, "", "cbsd_workdir=\n", "xcbsd_workdir=/usr/jails\n"])
def test_an_unknown_workdir_is_an_error(node, text):
    if text is not None:
        (node.root / "rc.conf").write_text(text)
    node.lookup.update(rc_conf=str(node.root / "rc.conf"), workdir=None)
    with fails("rc.conf"):
        cbsd.list_()
    assert not node.full_calls


@pytest.mark.parametrize("path", ["relative", "/a b", "/a\n", 7, ["/a"], "/$(x)"])
def test_a_path_of_the_lookup_is_checked(node, path):
    node.lookup["vmm"] = path
    with refuses("paths: vmm"):
        cbsd.list_()


def test_a_lookup_that_is_no_mapping_is_not_shown(node):
    node.lookup = "secret"
    with pytest.raises(SaltInvocationError) as caught:
        cbsd.paths()
    assert "cbsd_monit:lookup: expected a mapping" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("file", ["nc.inventory", "var/db/local.sqlite"])
def test_without_its_inventory_cbsd_is_not_asked(node, file):
    (node.workdir / file).unlink()
    with fails(f"{file} is missing or not readable"):
        cbsd.list_()
    assert not node.full_calls


# -- questions


def test_list_shows_jails_and_vms_with_the_kernels_word(node):
    node.add("web1", jid=7, astart="1")
    node.add("web2", jid=9)
    node.down("web2")  # died: the inventory still says that it runs
    node.add("vm1", "bhyve", jid=4711)
    node.add("vm2", "bhyve", protected="1")
    node.jids["foreign"] = 3
    envs = cbsd.list_()
    assert list(envs) == ["vm1", "vm2", "web1", "web2"]
    assert envs["web1"] == {
        "emulator": "jail", "status": "on", "running": True, "jid": 7, "ip4_addr": "10.0.0.1/24",
        "host_hostname": "web1.my.domain", "path": "/jails/web1", "astart": True,
        "protected": False, "broken": None,
    }  # fmt: skip
    assert (envs["web2"]["status"], envs["web2"]["jid"]) == ("off", None)
    assert (envs["vm1"]["status"], envs["vm1"]["jid"]) == ("on", 4711)
    assert (envs["vm2"]["status"], envs["vm2"]["protected"]) == ("off", True)


def test_list_filters_by_name_and_emulator(node):
    for name, emulator in (("web1", "jail"), ("web2", "bhyve"), ("db1", "jail")):
        node.add(name, emulator)
    assert list(cbsd.list_("web*")) == ["web1", "web2"]
    assert list(cbsd.list_(emulator="jail")) == ["db1", "web1"]
    assert list(cbsd.list_("WEB*")) == []
    assert list(cbsd.list_("web[!1]", emulator="bhyve")) == ["web2"]


def test_a_question_costs_two_processes_however_many_envs_there_are(node):
    for number in range(300):
        node.add(f"e{number}", "bhyve" if number % 3 else "jail", jid=number)
    assert len(cbsd.list_()) == 300
    assert len(node.full_calls) == 2


def test_an_empty_node_has_no_envs(node):
    assert cbsd.list_() == {} and len(node.full_calls) == 1
    node.vmm.rmdir()  # vmm.ko not loaded
    assert cbsd.list_() == {}


@pytest.mark.parametrize("emulator, recorded, jid, status", [
    ("jail", 0, 0, "off"),
    ("jail", 0, 7, "on"),
    ("jail", 2, 0, "slave"),
    ("jail", 3, 0, "maintenance"),
    ("jail", 3, 7, "maintenance"),
    ("bhyve", 1, 0, "off"),
    ("bhyve", 2, 0, "slave"),
    ("bhyve", 2, 99, "on"),
    ("bhyve", 3, 99, "maintenance"),
    ("xen", 1, 0, "on"),
    ("qemu", 0, 0, "off"),
])  # fmt: skip
def test_status_words(node, emulator, recorded, jid, status):
    node.add("e1", emulator, jid=jid, status=recorded)
    assert cbsd.status("e1") == status
    assert cbsd.list_()["e1"]["status"] == status


def test_absence_is_none_for_questions(node):
    assert cbsd.status("nosuch") is None
    assert cbsd.get("nosuch") is None
    assert cbsd.get("nosuch", "ip4_addr") is None


def test_a_broken_row_does_not_hide_the_others(node):
    node.add("web1", jid=7)
    node.add("web2", host_hostname="a|b")
    node.add("web3", host_hostname="a\n\nweb1|b\nweb5")
    node.add("web4.x")
    node.add("web5")
    node.add("web6")
    node.add("web7", host_hostname="a\nb")
    node.envs["again"] = node.envs["web6"]
    envs = cbsd.list_()
    assert "twice" in envs["web6"]["broken"]
    assert envs["web1"]["status"] == "on" and envs["web5"]["status"] == "off"
    assert all("line break" in envs[name]["broken"] for name in ("web2", "web3", "web7"))
    assert set(envs) == {"web1", "web2", "web3", "web4.x", "web5", "web6", "web7"}
    assert "name" in envs["web4.x"]["broken"]
    assert envs["web2"]["status"] is None and set(envs["web2"]) == set(envs["web1"])
    for function in (cbsd.status, cbsd.start, cbsd.stop, cbsd.remove, cbsd.get):
        with fails("web2 is broken in CBSD's inventory"):
            function("web2")
    assert not node.calls


def test_output_that_ends_in_the_middle_does_not_hide_what_came_before(node):
    node.add("web1")
    whole = "|".join([*node.envs["web1"].values(), "web1"])
    node.raw_inventory = f"{whole}\nweb2|0|0\n{whole.replace('web1', 'web3')}\nweb4|0"
    envs = cbsd.list_()
    assert [name for name, row in envs.items() if row["broken"]] == ["web2", "web4"]
    assert {"web1", "web3"} < set(envs) and len(envs) == 4


@pytest.mark.parametrize(
    "text", ["cbsdsql: Can't open database file: /x", "cbsdsql: no such column: astart"]
)
def test_errors_of_cbsds_sql_are_not_taken_for_envs(node, text):
    node.raw_inventory = text
    with fails("cbsdsql"):
        cbsd.status("web1")


def test_get(node):
    node.add("web1", jid=7)
    assert cbsd.get("web1", "astart", "ip4_addr") == {"astart": "0", "ip4_addr": "10.0.0.1/24"}
    assert node.calls == ["cbsd jget jname=web1 astart ip4_addr"]
    assert cbsd.get("web1", "jid", "status") == {"jid": "7", "status": "on"}
    assert len(node.calls) == 1, "CBSD's get knows neither, and would answer with everything"
    assert {"interface", "ip4_addr", "jid", "jname"} <= set(cbsd.get("web1"))
    node.add("vm1", "bhyve")
    cbsd.get("vm1", "ip4_addr")
    assert node.calls[-1] == "cbsd bget jname=vm1 ip4_addr"


@pytest.mark.parametrize("keys", [("ip4_adr",), ("astart", "ip4_adr")])
def test_get_of_an_unknown_setting_names_the_nearest(node, keys):
    node.add("web1")
    with refuses(r"did you mean ip4_addr\?\), got 'ip4_adr'"):
        cbsd.get("web1", *keys)


# -- verbs


def test_start_and_stop(node):
    node.add("web1")
    node.effects["cbsd jstart inter=0 jname=web1"] = lambda: node.up("web1", 12)
    node.effects["cbsd jstop inter=0 jname=web1"] = lambda: node.down("web1")
    assert cbsd.start("web1") == {
        "name": "web1", "emulator": "jail", "status": "on", "jid": 12, "changed": True,
        "old": {"status": "off", "jid": None},
        "new": {"status": "on", "jid": 12},
    }  # fmt: skip
    again = cbsd.start("web1")
    assert (again["changed"], again["old"], again["new"]) == (False, {}, {})
    assert cbsd.stop("web1")["changed"] and not cbsd.stop("web1")["changed"]
    assert node.calls == ["cbsd jstart inter=0 jname=web1", "cbsd jstop inter=0 jname=web1"]


def test_a_vm_gets_the_commands_for_vms(node):
    node.add("vm1", "bhyve")
    node.effects["cbsd bstart inter=0 jname=vm1"] = lambda: node.up("vm1", 99)
    node.effects["cbsd bstop inter=0 jname=vm1"] = lambda: node.down("vm1")
    assert cbsd.start("vm1")["jid"] == 99
    assert cbsd.stop("vm1")["status"] == "off"
    assert not cbsd.stop("vm1")["changed"]  # CBSD would run the stop hooks once more
    assert len(node.calls) == 2


def test_a_start_that_exits_0_without_effect_fails_with_cbsds_words(node):
    node.add("web1")
    node.answers["cbsd jstart inter=0 jname=web1"] = node.answer(
        "Execute master script: h\n\x1b[1;31mDefault NIC not found\x1b[0m\njstart done in 2 seconds"
    )
    with pytest.raises(CommandExecutionError) as caught:
        cbsd.start("web1")
    assert "web1 did not start, it is off now" in str(caught.value)
    assert str(caught.value).endswith("jname=web1` exited 0: Default NIC not found")


def test_values_do_not_get_into_the_error_of_a_command(node):
    with pytest.raises(CommandExecutionError) as caught:
        cbsd.create("web1", user_pw_root="hunter2", ip4_addr="10.0.0.1")
    assert "jcreate inter=0 jname=web1 user_pw_root=… ip4_addr=…` exited 0" in str(caught.value)
    node.add("web2", jid=7)
    node.answers["jexec 7 prog --password hunter2"] = node.answer("", 137, "\0killed")
    with pytest.raises(CommandExecutionError) as caught:
        cbsd.exec_("web2", "prog --password hunter2")
    assert "jexec 7 prog` took too long" in str(caught.value)


def test_an_exit_code_does_not_matter_when_the_env_runs(node):
    node.add("web1")
    node.effects["cbsd jstart inter=0 jname=web1"] = lambda: node.up("web1")
    already = node.answer("Jail web1 already running, jid: 7", 1)
    node.answers["cbsd jstart inter=0 jname=web1"] = already
    assert cbsd.start("web1")["changed"]


def test_a_killed_start_is_an_error_even_if_the_env_runs(node):
    node.add("web1")
    node.effects["cbsd jstart inter=0 jname=web1"] = lambda: node.up("web1")
    node.answers["cbsd jstart inter=0 jname=web1"] = node.answer("working", 137, "\0killed")
    with fails("it is on now.*took too long and was killed: working"):
        cbsd.start("web1")


def test_a_stop_without_effect_fails(node):
    node.add("vm1", "bhyve", jid=9)
    with fails("vm1 did not stop, it is on now"):
        cbsd.stop("vm1")


@pytest.mark.parametrize("status, word", [(2, "slave"), (3, "maintenance")])
@pytest.mark.parametrize("verb", [cbsd.start, cbsd.restart])
def test_maintenance_and_slave_are_left_alone(node, status, word, verb):
    node.add("web1", status=status)
    with fails(f"status {word}"):
        verb("web1")
    assert not node.calls


def test_restart_is_stop_look_start_and_says_why_it_stops(node):
    node.add("web1", jid=7)
    node.effects["cbsd jstop inter=0 jname=web1"] = lambda: node.down("web1")
    node.effects["cbsd jstart inter=0 jname=web1"] = lambda: node.up("web1", 8)
    ret = cbsd.restart("web1")
    assert node.calls == ["cbsd jstop inter=0 jname=web1", "cbsd jstart inter=0 jname=web1"]
    assert (ret["changed"], ret["old"], ret["new"]) == (True, {"jid": 7}, {"jid": 8})
    causes = ["CBSD_MONIT_CAUSE=restart" in cmd for cmd, _ in node.full_calls]
    stops = ["jstop" in cmd for cmd, _ in node.full_calls]
    assert causes == stops, "the stop has a cause, and nothing else has"


@pytest.mark.parametrize("name", ["web1", "x" * 65, "x" * 100])
def test_restart_of_a_stopped_env_starts_it(node, name):
    node.add(name, status=1)
    node.effects[f"cbsd jstart inter=0 jname={name}"] = lambda: node.up(name)
    assert cbsd.restart(name)["changed"]
    assert node.calls == [f"cbsd jstart inter=0 jname={name}"]


def test_restart_does_not_start_what_did_not_stop(node):
    node.add("web1", jid=7)
    with fails("did not stop"):
        cbsd.restart("web1")
    assert node.calls == ["cbsd jstop inter=0 jname=web1"]


def test_a_stop_has_no_cause_of_ours(node):
    node.add("web1", jid=7)
    node.effects["cbsd jstop inter=0 jname=web1"] = lambda: node.down("web1")
    cbsd.stop("web1")
    assert not any(word.startswith("CBSD_MONIT") for cmd, _ in node.full_calls for word in cmd)


def test_set_changes_only_what_differs_and_reads_it_again(node):
    node.add("web1")
    line = "cbsd jset jname=web1 astart=1 ip4_addr=em0#10.0.0.3/24,fde4::1/64"
    address = "em0#10.0.0.3/24,fde4::1/64"
    node.effects[line] = lambda: node.settings["web1"].update(astart="1", ip4_addr=address)
    ret = cbsd.set_("web1", astart=True, ip4_addr=address, __pub_fun="cbsd.set")
    assert ret["changed"]
    assert ret["new"] == {"astart": "1", "ip4_addr": "em0#10.0.0.3/24,fde4::1/64"}
    assert ret["old"] == {"astart": "0", "ip4_addr": "10.0.0.1/24"}
    ret = cbsd.set_("web1", astart=1)
    assert (ret["changed"], ret["old"], ret["new"]) == (False, {}, {})
    assert [call for call in node.calls if "jset" in call] == [line]


def test_set_that_cbsd_refused_fails(node):
    node.add("web1")
    refusal = node.answer("interface not exist: em9", 1)
    node.answers["cbsd jset jname=web1 ip4_addr=em9#10.0.0.9"] = refusal
    with fails("it is '10.0.0.1/24'.*interface not exist: em9"):
        cbsd.set_("web1", ip4_addr="em9#10.0.0.9")


def test_set_of_an_unknown_setting_is_the_callers_error(node):
    node.add("web1")
    with refuses("got 'astrat'"):
        cbsd.set_("web1", astrat=1)
    assert not [call for call in node.calls if "jset" in call]


@pytest.mark.parametrize("key, wanted, found, same", [
    ("vm_ram", "1g", "1073741824", True),
    ("vm_ram", "1024", "1073741824", True),
    ("vm_ram", "512m", "536870912", True),
    ("vm_ram", "512M", "536870913", False),
    ("vm_cpus", "2", "2097152", False),
    ("astart", "1", "1", True),
    ("host_hostname", "a", "b", False),
])  # fmt: skip
def test_sizes_are_compared_as_cbsd_stores_them(key, wanted, found, same):
    assert cbsd._same(key, wanted, found) is same


def test_create(node):
    settings = "ip4_addr=10.0.0.7/24 astart=0 exec_start=/bin/sh /etc/rc"
    line = f"cbsd jcreate inter=0 jname=web1 {settings}"
    node.effects[line] = lambda: node.add("web1")
    ret = cbsd.create("web1", ip4_addr="10.0.0.7/24", astart=False, exec_start="/bin/sh /etc/rc")
    assert (ret["changed"], ret["old"], ret["status"]) == (True, None, "off")
    assert ret["new"]["name"] == "web1"
    for emulator in ("jail", "bhyve"):
        with fails(r"web1 exists already \(emulator jail\)"):
            cbsd.create("web1", emulator=emulator)
    assert node.calls == [line]


def test_create_of_a_vm(node):
    node.effects["cbsd bcreate inter=0 jname=vm1 vm_ram=1g"] = lambda: node.add("vm1", "bhyve")
    assert cbsd.create("vm1", emulator="bhyve", vm_ram="1g")["emulator"] == "bhyve"


def test_create_that_lost_its_row_or_its_start_fails(node):
    with fails("web1: it is not in the inventory"):
        cbsd.create("web1")
    node.effects["cbsd jcreate inter=0 jname=web1 runasap=1"] = lambda: node.add("web1")
    with fails("web1: it is off now"):
        cbsd.create("web1", runasap=1)


def test_remove(node):
    node.add("web1")
    system = node.workdir / "jails-system/web1"
    system.mkdir(parents=True)

    def gone():
        node.envs.clear()
        system.rmdir()

    node.effects["cbsd jremove jname=web1"] = gone
    ret = cbsd.remove("web1")
    assert (ret["changed"], ret["status"], ret["new"]) == (True, None, None)
    assert ret["old"]["name"] == "web1"


def test_remove_that_left_something_fails_although_cbsd_exits_0(node):
    node.add("web1", protected="1")
    line = "cbsd jremove jname=web1"
    words = "Protected/locked jail. Skip for remove: web1\njdestroy done in 0 seconds"
    node.answers[line] = node.answer(words)
    with fails("left: its row.*exited 0: Protected/locked jail"):
        cbsd.remove("web1")
    node.effects[line] = lambda: node.envs.clear()
    (node.workdir / "jails-system/web1").mkdir(parents=True)
    with fails("left: .*jails-system/web1;"):
        cbsd.remove("web1")


def test_rename(node):
    node.add("web1")

    def renamed():
        node.envs["www1"] = {**node.envs.pop("web1"), "jname": "www1"}

    node.effects["cbsd jrename old=web1 new=www1"] = renamed
    ret = cbsd.rename("web1", "www1")
    assert (ret["name"], ret["changed"]) == ("www1", True)
    assert (ret["old"], ret["new"]) == ({"name": "web1"}, {"name": "www1"})


def test_rename_of_a_running_env_needs_restart_and_stops_it_for_a_reason(node):
    node.add("web1", jid=7)
    with fails("web1 is running"):
        cbsd.rename("web1", "www1")
    assert not node.calls

    def renamed():
        node.envs["www1"] = {**node.envs.pop("web1"), "jname": "www1"}

    node.effects["cbsd jstop inter=0 jname=web1"] = lambda: node.down("web1")
    node.effects["cbsd jrename old=web1 new=www1"] = renamed
    node.effects["cbsd jstart inter=0 jname=www1"] = lambda: node.up("www1", 8)
    assert cbsd.rename("web1", "www1", restart=True)["jid"] == 8
    assert [call.split()[1] for call in node.calls] == ["jstop", "jrename", "jstart"]
    stop = next(cmd for cmd, _ in node.full_calls if "CBSD_MONIT_CAUSE=rename" in cmd)
    assert stop[-3:] == ["jstop", "inter=0", "jname=web1"]


def test_a_failed_rename_starts_again_what_ran(node):
    node.add("web1", jid=7)
    node.effects["cbsd jstop inter=0 jname=web1"] = lambda: node.down("web1")
    node.effects["cbsd jstart inter=0 jname=web1"] = lambda: node.up("web1", 8)
    node.answers["cbsd jrename old=web1 new=www1"] = node.answer("no space", 1)
    with fails("web1 is not www1 now; .*no space"):
        cbsd.rename("web1", "www1", restart=True)
    assert cbsd.status("web1") == "on"
    del node.effects["cbsd jstart inter=0 jname=web1"]
    with fails("no space"):
        cbsd.rename("web1", "www1", restart=True)


def test_a_running_env_in_maintenance_is_not_renamed(node):
    node.add("web1", jid=7, status=3)
    with fails(r"web1 is running \(status maintenance\)"):
        cbsd.rename("web1", "www1", restart=True)
    assert not node.calls


def test_rename_and_clone_to_a_name_in_use_fail(node):
    node.add("web1")
    node.add("vm1", "bhyve")
    for verb in (cbsd.rename, cbsd.clone):
        with fails(r"vm1 exists already \(emulator bhyve\)"):
            verb("web1", "vm1")
    assert not node.calls


def test_clone(node):
    node.add("web1")
    line = "cbsd jclone old=web1 new=web2 host_hostname=web2.my.domain"
    node.effects[line] = lambda: node.add("web2")
    ret = cbsd.clone("web1", "web2")
    assert (ret["name"], ret["changed"], ret["old"]) == ("web2", True, None)
    assert ret["new"]["name"] == "web2"
    line = "cbsd jclone old=web1 new=web3 host_hostname=x.y ip4_addr=DHCP"
    node.answers[line] = node.answer("jail is online, please stop them: web1", 1)
    with fails("web3: it is not in the inventory; .*please stop them"):
        cbsd.clone("web1", "web3", host_hostname="x.y", ip4_addr="DHCP")


@pytest.mark.parametrize("command, argv", [
    ("service nginx status", ["service", "nginx", "status"]),
    ("echo 'a b' $HOME", ["echo", "a b", "$HOME"]),
    (["/bin/sh", "-c", "echo $0 | cat\n", 12], ["/bin/sh", "-c", "echo $0 | cat\n", "12"]),
])  # fmt: skip
def test_exec_goes_around_cbsd_and_any_shell(node, command, argv):
    node.add("web1", jid=7)
    line = " ".join(["jexec", "7", *argv])
    node.answers[line] = node.answer("out", 5, "err")
    assert cbsd.exec_("web1", command) == {"retcode": 5, "stdout": "out", "stderr": "err"}
    assert node.full_calls[-1][0][-len(argv) - 2 :] == ["jexec", "7", *argv] or node.calls == [line]


def test_exec_needs_a_running_jail(node):
    node.add("web1")
    node.add("vm1", "bhyve", jid=9)
    with fails("web1 is not running"):
        cbsd.exec_("web1", "id")
    with fails("vm1 is a VM"):
        cbsd.exec_("vm1", "id")
    assert not node.calls


def test_exec_that_takes_too_long_fails(node):
    node.add("web1", jid=7)
    node.answers["jexec 7 sleep 9"] = node.answer("", 137, "\0killed")
    with fails("took too long and was killed"):
        cbsd.exec_("web1", "sleep 9", timeout=1)


@pytest.mark.parametrize(
    "command", ["", [], [""], {}, {"a": 1}, None, 7, [None], [["id"]], "echo 'a", "a\0b", [True]]
)
def test_exec_wants_a_program(node, command):
    node.add("web1", jid=7)
    with refuses("exec: command"):
        cbsd.exec_("web1", command)
    assert not node.full_calls


VERBS = {
    "start": cbsd.start, "stop": cbsd.stop, "restart": cbsd.restart, "remove": cbsd.remove,
    "get": cbsd.get,
    "set": lambda name: cbsd.set_(name, astart=1),
    "rename": lambda name: cbsd.rename(name, "new1"),
    "clone": lambda name: cbsd.clone(name, "new1"),
    "exec": lambda name: cbsd.exec_(name, "id"),
}  # fmt: skip


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"get"}))
def test_an_absent_env_is_an_error_for_a_verb(node, verb):
    with fails(rf"cbsd.{verb}: no env nosuch on this node"):
        VERBS[verb]("nosuch")
    assert not node.calls


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("emulator", ["qemu", "xen", "virtualbox"])
def test_other_emulators_are_listed_and_left_alone(node, verb, emulator):
    node.add("e1", emulator, status=1)
    with fails(f"e1 is of emulator {emulator}"):
        VERBS[verb]("e1")
    assert not node.calls


# -- hostile input

HOSTILE_NAMES = [
    "", "$(touch x)", "`touch x`", "../x", "a/b", "a.b", "a;id", "a&b", "a|b", "a~b", "a'b", 'a"b',
    "a b", " a", "a\n", "a\nb", "a\0", "*", "web?", "[a-z]", "-a", "--help", "jname=web1", "%s",
    "a\\b", "ünï", "web１", "__slot__:salt:cmd.run(touch x)", "x" * 101, None, True, 12, ["web1"],
    {"web1": 1},
]  # fmt: skip
HOSTILE_VALUES = [
    "$(touch x)", "${x}", "`touch x`", "a'b", 'a"b', "a|b", "a~b", "a\\b", "*", "/etc/pass?d", "[a",
    "50%", "a\n", "\na", "a\tb", "a\0b", "a\x1b[31m", " a", "a ",
    "a  b",
    "ünï", "a\u2028b", "__slot__:salt:cmd.run(id)", None, ["a"], {"a": 1}, b"a",
]  # fmt: skip
HOSTILE_KEYS = [
    "$(x)", "A", "a-b", "a b", "a\n", "1a", "", "ünï", "jname", "old", "inter", "node", "emulator",
]  # fmt: skip

NAME_USES = {
    **VERBS, "status": cbsd.status, "create": cbsd.create,
    "rename to": lambda name: cbsd.rename("web1", name),
    "clone to": lambda name: cbsd.clone("web1", name),
}  # fmt: skip


@pytest.mark.parametrize("use", sorted(NAME_USES))
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_no_hostile_name_reaches_a_command(node, use, name):
    node.add("web1", jid=7)
    with pytest.raises(SaltInvocationError) as caught:
        NAME_USES[use](name)
    assert repr(name) in str(caught.value) and use.split()[0] in str(caught.value)
    assert not node.full_calls and not node.run.exists()


@pytest.mark.parametrize(
    "name",
    [bad for bad in HOSTILE_NAMES if bad not in ("*", "web?", "[a-z]", "-a", "--help", "x" * 101)],
    ids=ascii,
)
def test_no_hostile_glob_reaches_list(node, name):
    with pytest.raises(SaltInvocationError):
        cbsd.list_(name)
    assert not node.full_calls


@pytest.mark.parametrize("emulator", ["$(id)", "", "a\n", 7, ["jail"], {"a": 1}, "Jail"], ids=ascii)
def test_no_hostile_emulator_is_accepted(node, emulator):
    with pytest.raises(SaltInvocationError):
        cbsd.list_(emulator=emulator)
    with pytest.raises(SaltInvocationError):
        cbsd.create("web9", emulator=emulator)
    assert not node.full_calls


VALUE_USES = {
    "set": lambda value: cbsd.set_("web1", host_hostname=value),
    "create": lambda value: cbsd.create("web9", host_hostname=value),
    "clone": lambda value: cbsd.clone("web1", "web9", host_hostname=value),
    "clone address": lambda value: cbsd.clone("web1", "web9", ip4_addr=value),
}


@pytest.mark.parametrize(
    ("use", "value"),
    # For a clone None means: not given.
    [
        (use, value)
        for use in sorted(VALUE_USES)
        for value in HOSTILE_VALUES
        if value is not None or use[:5] != "clone"
    ],
    ids=ascii,
)
def test_no_hostile_value_reaches_a_command(node, use, value):
    node.add("web1")
    with pytest.raises(SaltInvocationError) as caught:
        VALUE_USES[use](value)
    assert repr(value) in str(caught.value)
    assert not node.full_calls


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=ascii)
def test_no_hostile_key_reaches_a_command(node, key):
    node.add("web1")
    with pytest.raises(SaltInvocationError):
        cbsd.set_("web1", **{key: "1"})
    with pytest.raises((SaltInvocationError, TypeError)):
        cbsd.create("web9", **{key: "1"})
    if key not in ("jname", "old", "inter", "node", "emulator"):
        with pytest.raises(SaltInvocationError):
            cbsd.get("web1", key)
    assert not node.full_calls


def test_every_other_printable_character_is_allowed_in_a_value():
    """Exactly what CBSD cannot carry is refused, and nothing else."""
    refused = {chr(code) for code in range(128) if not cbsd._VALUE.match(f"a{chr(code)}b")}
    assert refused == {chr(code) for code in range(32)} | set("\x7f$`\\\"'~|*?[%")


def test_all_that_is_wrong_is_reported_at_once(node):
    with pytest.raises(SaltInvocationError) as caught:
        cbsd.create("web1", ip4_addr="$(id)", Tags="x", astart={"a": 1})
    for text in ("ip4_addr: expected", "'$(id)'", "'Tags'", "astart: expected", "{'a': 1}"):
        assert text in str(caught.value)


def test_a_source_with_a_hostile_hostname_cannot_be_cloned_by_default(node):
    node.add("web1", host_hostname="web1.$(id)")
    with refuses("host_hostname"):
        cbsd.clone("web1", "web2")
    assert not node.calls


@pytest.mark.parametrize(
    "seconds", [0, -1, "30", None, True, float("inf"), float("nan"), [1]], ids=repr
)
def test_time_outs_are_positive_numbers(node, seconds):
    for verb in (cbsd.start, cbsd.stop, cbsd.restart, cbsd.remove, cbsd.create):
        for key in ("timeout", "lock_timeout"):
            with refuses(key):
                verb("web1", **{key: seconds})
    with refuses("timeout"):
        cbsd.exec_("web1", "id", timeout=seconds)
    assert not node.full_calls


# -- locks


def lock(node, name, holder):
    (node.run / "lock").mkdir(parents=True, exist_ok=True)
    file = open(node.run / "lock" / name, "w", encoding="ascii")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(holder)
    file.flush()
    return file


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "remove", "rename", "clone"])
def test_a_verb_waits_for_the_lock_and_then_names_who_holds_it(node, verb):
    node.add("web1")
    uses = {
        "rename": lambda: cbsd.rename("web1", "web2", lock_timeout=0.3),
        "clone": lambda: cbsd.clone("web1", "web2", lock_timeout=0.3),
    }
    with lock(node, "web1", "4711 heal\n"):
        began = time.monotonic()
        with fails(f"cbsd.{verb}: web1 is locked by process 4711 heal; gave up after 0.3 s"):
            uses.get(verb, lambda: getattr(cbsd, verb)("web1", lock_timeout=0.3))()
        assert 0.3 <= time.monotonic() - began < 2
    assert not node.full_calls


def test_rename_needs_the_lock_of_the_new_name_too(node):
    node.add("web1")
    with lock(node, "www1", ""), fails("www1 is locked by an unknown"):
        cbsd.rename("web1", "www1", lock_timeout=0.1)


def test_a_lock_file_that_is_deleted_meanwhile_is_no_lock(node, monkeypatch):
    node.add("web1")
    path = node.run / "lock" / "web1"
    locked = []

    def flock(descriptor, operation):
        fcntl.flock(descriptor, operation)
        locked.append(operation)
        if len(locked) == 1:
            path.unlink()

    monkeypatch.setattr(cbsd, "fcntl", types.SimpleNamespace(**{**vars(fcntl), "flock": flock}))
    node.effects["cbsd jstart inter=0 jname=web1"] = lambda: node.up(
        "web1", len(path.read_text().split())
    )
    assert cbsd.start("web1")["jid"] == 2
    assert len(locked) == 2


def test_another_env_is_not_locked(node):
    node.add("web1")
    with lock(node, "web2", "1 x"):
        assert not cbsd.stop("web1")["changed"]


def test_the_lock_is_held_while_cbsd_runs_and_released_whatever_happens(node):
    node.add("web1")
    held = []

    def look():
        path = node.run / "lock" / "web1"
        held.append(path.read_text())
        with open(path) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    node.effects["cbsd jstart inter=0 jname=web1"] = look
    for _ in range(2):
        with fails("did not start"):
            cbsd.start("web1")
    assert held == [f"{os.getpid()} cbsd.start\n"] * 2
    path = node.run / "lock" / "web1"
    assert path.read_text() == "" and path.stat().st_mode & 0o777 == 0o600
    assert node.run.stat().st_mode & 0o777 == 0o700 and path.parent.stat().st_mode & 0o777 == 0o700


def test_locks_that_cannot_be_made_are_a_clear_error(node):
    node.add("web1")
    node.run.write_text("in the way")
    with fails("cannot lock in .*run/lock"):
        cbsd.start("web1")
    assert not node.calls


def test_a_lock_that_is_a_link_is_not_followed(node):
    node.add("web1")
    (node.run / "lock").mkdir(parents=True)
    target = node.root / "target"
    target.write_text("precious")
    (node.run / "lock" / "web1").symlink_to(target)
    with fails("cannot lock"):
        cbsd.start("web1")
    assert target.read_text() == "precious"


# -- the file itself


def test_the_module_loads_without_cbsd():
    assert cbsd.__virtual__() == "cbsd"


def test_aliases():
    assert cbsd.__func_alias__ == {"list_": "list", "set_": "set", "exec_": "exec"}


def test_every_public_function_says_what_it_returns_and_shows_an_example():
    own = [f for f in vars(cbsd).values() if getattr(f, "__module__", "") == cbsd.__name__]
    public = [f for f in own if callable(f) and not f.__name__.startswith("_")]
    names = {f.__name__.rstrip("_") for f in public}
    verbs = set("list get set status start stop restart create remove rename clone exec".split())
    assert names == verbs | {"paths"}
    for function in public:
        name = function.__name__.rstrip("_")
        assert "CLI Example:" in function.__doc__ and f"salt '*' cbsd.{name}" in function.__doc__
        for line in function.__doc__.splitlines():
            if line.strip().startswith("salt "):
                assert shlex.split(line)[2] == f"cbsd.{name}"
