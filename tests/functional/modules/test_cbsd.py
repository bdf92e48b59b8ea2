"""The execution module `cbsd`, loaded by Salt, on a simulated node with CBSD's own oddities."""

import json
import multiprocessing
import os
import pathlib
import time

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from tests.unit.loaded import fails, refuses


@pytest.fixture
def call(modules):
    """Call a function by its name without the module's."""
    return lambda function, *args, **kwargs: modules[f"cbsd.{function}"](*args, **kwargs)


@pytest.fixture
def jail(cbsd_node):
    """A function that makes a jail by CBSD itself."""

    def make(name, start=False, **values):
        values = {"ip4_addr": "0", **values}
        words = [f"{key}={value}" for key, value in values.items()]
        done = cbsd_node.cbsd("jcreate", f"jname={name}", *words, "inter=0", "quiet=1")
        assert done.returncode == 0, done.stdout
        if start:
            cbsd_node.cbsd("jstart", f"jname={name}")

    return make


@pytest.fixture
def vm(cbsd_node):
    """A function that makes a VM by CBSD itself."""

    def make(name, start=False):
        words = ["ip4_addr=0", "vm_ram=1g", "vm_cpus=1", "vm_os_type=linux"]
        done = cbsd_node.cbsd("bcreate", f"jname={name}", *words, "inter=0")
        assert done.returncode == 0, done.stdout
        if start:
            cbsd_node.cbsd("bstart", f"jname={name}")

    return make


@pytest.fixture
def commands(cbsd_node):
    """A function that runs something, and returns its result with the commands that it started."""

    def run(function, *args, **kwargs):
        before = len(cbsd_node.log())
        result = function(*args, **kwargs)
        records = [
            entry
            for entry in cbsd_node.log()[before:]
            if entry["event"] == "start" and not entry["nested"]
        ]
        return result, [entry["argv"] for entry in records]

    return run


def hook(node, name, directory, text):
    path = pathlib.Path(node.layout.system(name, directory, "test-hook"))
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_salt_offers_the_whole_vocabulary_without_cbsd(load_modules):
    modules = load_modules(
        cbsd_monit={"lookup": {"cbsd": "/nonexistent/cbsd", "workdir": "/nonexistent"}}
    )
    names = "list get set status start stop restart create remove rename clone exec paths".split()
    assert {name for name in modules if name.startswith("cbsd.")} == {
        f"cbsd.{name}" for name in names
    }
    with fails("/nonexistent/nc.inventory is missing"):
        modules["cbsd.list"]()


@pytest.mark.parametrize("source", ["opts", "grains", "pillar"])
def test_the_lookup_may_come_from_anywhere(load_modules, minion_opts, cbsd_lookup, source):
    given = {"cbsd_monit": {"lookup": cbsd_lookup}}
    configuration = (
        given if source == "opts" else {source: {**minion_opts.get(source, {}), **given}}
    )
    assert load_modules(**configuration)["cbsd.list"]() == {}


def test_a_life(call, cbsd_node):
    made = call("create", "web1", ip4_addr="127.79.9.1/8", astart=False)
    assert (made["changed"], made["old"], made["status"]) == (True, None, "off")
    assert made["new"]["ip4_addr"] == "127.79.9.1/8" and made["new"]["astart"] is False
    started = call("start", "web1")
    assert started["changed"] and started["jid"] == cbsd_node.kernel.jid("web1")
    assert call("start", "web1")["changed"] is False
    assert call("status", "web1") == "on"
    again = call("restart", "web1")
    assert again["old"] == {"jid": started["jid"]} and again["new"] == {"jid": again["jid"]}
    assert call("stop", "web1")["new"] == {"status": "off", "jid": None}
    assert call("stop", "web1")["changed"] is False
    assert call("restart", "web1")["status"] == "on"
    assert call("stop", "web1")["changed"]
    assert call("rename", "web1", "www1")["name"] == "www1"
    twin = call("clone", "www1", "www2", ip4_addr="127.79.9.2/8")
    assert twin["new"]["ip4_addr"] == "127.79.9.2/8"
    assert twin["new"]["host_hostname"] == "www2.my.domain"
    assert sorted(call("list")) == ["www1", "www2"]
    call("start", "www1")
    gone = call("remove", "www1")
    assert (gone["changed"], gone["status"], gone["new"]) == (True, None, None)
    assert not os.path.exists(cbsd_node.layout.system("www1")) and not cbsd_node.kernel.jid("www1")
    assert call("status", "www1") is None


def test_the_life_of_a_vm(call, cbsd_node):
    made = call(
        "create", "vm1", emulator="bhyve", vm_ram="1g", vm_cpus=1, vm_os_type="linux", ip4_addr="0"
    )
    assert (made["emulator"], made["status"]) == ("bhyve", "off")
    started = call("start", "vm1")
    assert started["status"] == "on" and started["jid"] == cbsd_node.kernel.vm_pid("vm1")
    assert call("get", "vm1", "vm_ram", "vm_cpus") == {"vm_ram": "1073741824", "vm_cpus": "1"}
    assert call("set", "vm1", vm_ram="1g")["changed"] is False
    again = call("restart", "vm1")
    assert again["changed"] and again["jid"] != started["jid"]
    with fails("vm1 is a VM"):
        call("exec", "vm1", "id")
    assert call("rename", "vm1", "vm2", restart=True)["status"] == "on"
    assert call("stop", "vm2")["status"] == "off"
    hooks = len(cbsd_node.hooks_log())
    assert call("stop", "vm2")["changed"] is False
    assert len(cbsd_node.hooks_log()) == hooks, (
        "CBSD would have run the stop hooks of a VM that does not run"
    )
    assert call("clone", "vm2", "vm3")["emulator"] == "bhyve"
    assert call("remove", "vm2")["changed"]
    assert list(call("list", emulator="bhyve")) == ["vm3"]


def test_a_jail_that_died_is_off_and_a_restart_starts_it(call, cbsd_node, jail):
    jail("web1", start=True)
    cbsd_node.crash("web1")
    assert call("status", "web1") == "off", "CBSD's inventory still says that it runs"
    ret = call("restart", "web1")
    assert ret["status"] == "on" and cbsd_node.kernel.jid("web1") == ret["jid"]


def test_a_vm_that_died_is_off(call, cbsd_node, vm):
    vm("vm1", start=True)
    cbsd_node.crash("vm1")
    assert call("status", "vm1") == "off"
    assert call("start", "vm1")["status"] == "on"


def test_a_start_that_cbsd_calls_a_success_is_not(call, cbsd_node, jail):
    jail("web1")
    cbsd_node.fail_start("web1")
    with fails("web1 did not start, it is off now; .* exited 0: "):
        call("start", "web1")
    jail("web2", start=True)
    cbsd_node.fail_start("web2")
    with fails("cbsd.restart: web2 did not start"):
        call("restart", "web2")


def test_protected_is_not_removed_although_cbsd_exits_0(call, jail):
    jail("web1", protected=1)
    with fails("Protected/locked"):
        call("remove", "web1")
    assert call("status", "web1") == "off"


def test_create_of_what_exists_and_clone_of_what_runs_fail(call, jail, vm):
    jail("web1", start=True)
    vm("vm1")
    for name in ("web1", "vm1"):
        with fails("exists already"):
            call("create", name)
    with fails("(?i)online"):
        call("clone", "web1", "web2")
    with fails("web1 is running"):
        call("rename", "web1", "web2")
    assert sorted(call("list")) == ["vm1", "web1"]


def test_get_and_set(call, jail, commands):
    jail("web1", start=True)
    jail("web2", ip4_addr="127.79.9.3")
    everything = call("get", "web2")
    assert everything["ip4_addr"] == "127.79.9.3"
    assert everything["status"] == "off"
    assert len(everything) > 50
    assert call("get", "web2", "astart", "host_hostname") == {
        "astart": "1",
        "host_hostname": "web2.my.domain",
    }
    with refuses("did you mean ip4_addr"):
        call("get", "web2", "ip4_adr")
    ret, ran = commands(
        call,
        "set",
        "web2",
        astart=False,
        host_hostname="a.b",
        exec_timeout="0",
        exec_start="/bin/x y",
    )
    assert ret["old"]["astart"] == "1"
    assert ret["new"]["host_hostname"] == "a.b"
    assert ret["new"]["exec_start"] == "/bin/x y"
    ret, ran = commands(call, "set", "web2", astart=0, host_hostname="a.b")
    assert ret["changed"] is False and not any("jset" in argv for argv in ran)
    with refuses("nosuchkey"):
        call("set", "web2", nosuchkey=1)
    with fails("it is '127.79.9.3'"):
        call("set", "web2", ip4_addr="10.0.0.1,em0#10.0.0.2")


def test_listing_costs_the_same_for_5_and_50_envs(call, cbsd_node, jail, commands):
    def add(*numbers):
        row = cbsd_node.inventory.load("base")
        for number in numbers:
            cbsd_node.inventory.register({**row, "jname": f"e{number}"})

    jail("base", start=True)
    add(*range(4))
    few, ran_few = commands(call, "list")
    add(*range(4, 49))
    many, ran_many = commands(call, "list")
    assert (len(few), len(many)) == (5, 50)
    assert ran_few == ran_many
    assert [argv[0] for argv in ran_many][:1] == ["-c"] and len(ran_many) <= 2
    assert many["base"]["status"] == "on"


def test_weird_rows_are_reported_and_hide_nothing(call, cbsd_node, jail):
    for name in ("a", "b", "c", "d"):
        jail(name)
    cbsd_node.inventory.update("b", host_hostname="x|y")
    cbsd_node.inventory.update("c", host_hostname="x\ny")
    envs = call("list")
    assert set(envs) == {"a", "b", "c", "d"}
    assert envs["a"]["broken"] is None and envs["d"]["status"] == "off"
    assert envs["b"]["broken"] and envs["c"]["broken"]
    with fails("b is broken"):
        call("start", "b")
    assert call("start", "d")["status"] == "on"


def test_maintenance_and_slave(call, cbsd_node, jail):
    jail("web1")
    for status, word in ((2, "slave"), (3, "maintenance")):
        cbsd_node.inventory.update("web1", status=status)
        assert call("status", "web1") == word
        with fails(f"status {word}"):
            call("start", "web1")
    assert not cbsd_node.kernel.jid("web1")


def test_a_lost_inventory_is_an_error_and_not_an_empty_node(call, cbsd_node, jail):
    jail("web1")
    os.rename(
        cbsd_node.layout.work("var/db/local.sqlite"), cbsd_node.layout.work("var/db/elsewhere")
    )
    for function, *args in (["list"], ["status", "web1"], ["start", "web1"]):
        with fails("local.sqlite is missing or not readable"):
            call(function, *args)


def test_exec(call, jail):
    jail("web1", start=True)
    ran = call("exec", "web1", ["/bin/sh", "-c", 'echo "$0"; echo oops >&2; exit 3', "$(id) a  b"])
    assert ran == {"retcode": 3, "stdout": "$(id) a  b", "stderr": "oops"}
    assert call("exec", "web1", "echo 'a  b' $HOME ;")["stdout"] == "a  b $HOME ;"
    assert "jexec" in call("exec", "web1", "/nonexistent/program")["stderr"]


def runs(pid):
    """Whether a process lives, or goes on living after having been killed."""
    for _ in range(200):
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.05)
    return True


def test_exec_is_killed_with_its_children_when_the_time_is_up(call, jail, tmp_path):
    jail("web1", start=True)
    script = f"trap '' TERM; (sh -c 'echo $PPID' > {tmp_path}/pid; sleep 90; sleep 90) & sleep 90"
    with fails("took too long and was killed"):
        call("exec", "web1", ["/bin/sh", "-c", script], timeout=2)
    assert not runs((tmp_path / "pid").read_text().strip())
    assert call("status", "web1") == "on"


def test_a_start_that_hangs_is_killed_although_cbsd_ignores_sigterm(
    call, cbsd_node, jail, tmp_path
):
    jail("web1")
    hook(cbsd_node, "web1", "master_prestart.d", f"echo $$ > {tmp_path}/pid; sleep 90")
    with fails("web1 did not start, it is off now; .*took too long and was killed"):
        call("start", "web1", timeout=4)
    assert not runs((tmp_path / "pid").read_text().strip())


def test_the_cause_of_a_stop_reaches_our_hooks(call, cbsd_node, jail, tmp_path):
    jail("web1", start=True)
    for directory in ("master_prestop.d", "master_poststop.d", "master_prestart.d"):
        hook(
            cbsd_node, "web1", directory,
            f'echo "{directory[7:-2]} ${{CBSD_MONIT_CAUSE-none}}" >> {tmp_path}/causes',
        )  # fmt: skip
    call("restart", "web1")
    call("stop", "web1")
    call("start", "web1")
    call("rename", "web1", "www1", restart=True)
    assert (tmp_path / "causes").read_text().split("\n")[:-1] == [
        "prestop restart", "poststop restart", "prestart none", "prestop none", "poststop none",
        "prestart none", "prestop rename", "poststop rename", "prestart none",
    ]  # fmt: skip


def test_neither_restart_command_of_cbsd_is_used(call, jail, vm, commands):
    jail("web1", start=True)
    vm("vm1", start=True)
    for name, prefix in (("web1", "j"), ("vm1", "b")):
        _, ran = commands(call, "restart", name)
        assert [argv[0] for argv in ran if argv[0][:1] == prefix and argv[0] != "jid"] == [
            f"{prefix}stop",
            f"{prefix}start",
        ]


def test_the_callers_environment_does_not_leak_into_cbsd(
    call, cbsd_node, jail, monkeypatch, tmp_path
):
    jail("web1")
    jail("web2", start=True)
    hook(cbsd_node, "web1", "master_prestart.d", f"env > {tmp_path}/env")
    for key, value in (
        ("jname", "web2"),
        ("H_CBSD_jname", "web2"),
        ("SECRET", "x"),
        ("CBSD_MONIT_CAUSE", "heal"),
    ):
        monkeypatch.setenv(key, value)
    (tmp_path / "CBSDfile").write_text("jail_other()\n{\n}\n")
    monkeypatch.chdir(tmp_path)
    assert call("start", "web1")["status"] == "on"
    seen = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert seen["jname"] == "web1"
    assert not {"SECRET", "CBSD_MONIT_CAUSE", "H_CBSD_jname"} & set(seen)


def _restart(opts, queue):
    import salt.loader

    try:
        queue.put(
            salt.loader.minion_mods(opts, context={})["cbsd.restart"]("web1", lock_timeout=60)[
                "jid"
            ]
        )
    except CommandExecutionError as err:
        queue.put(str(err))


def test_two_restarts_at_once_follow_each_other(cbsd_node, cbsd_lookup, minion_opts, jail):
    jail("web1", start=True)
    cbsd_node.slow("web1", start=0.5)
    before = len(cbsd_node.log())
    queue = multiprocessing.Queue()
    opts = {**minion_opts, "cbsd_monit": {"lookup": cbsd_lookup}}
    workers = [multiprocessing.Process(target=_restart, args=(opts, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    jids = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len(set(jids)) == 2 and all(isinstance(jid, int) for jid in jids), jids
    order = [
        (entry["argv"][0], entry["event"])
        for entry in cbsd_node.log()[before:]
        if entry["argv"][0] in ("jstop", "jstart") and not entry["nested"]
    ]
    once = [("jstop", "start"), ("jstop", "end"), ("jstart", "start"), ("jstart", "end")]
    assert order == once * 2


def test_hostile_input_runs_nothing(call, jail, commands, tmp_path):
    jail("web1", start=True)
    hostile = [
        "$(touch {})", "`touch {}`", "web1;touch {}", "web1\ntouch {}", "*", "../x", "a~b",
        "__slot__:salt:x.y(z)",
    ]  # fmt: skip
    hostile = [text.format(tmp_path / "mark") for text in hostile]

    def everything(name):
        for function in ("start", "stop", "restart", "remove", "status", "get", "create"):
            with pytest.raises(SaltInvocationError):
                call(function, name)
        for function, args in (
            ("rename", ("web1", name)),
            ("clone", (name, "web2")),
            ("exec", (name, "id")),
        ):
            with pytest.raises(SaltInvocationError):
                call(function, *args)
        for key in ("host_hostname", "ip4_addr"):
            with pytest.raises(SaltInvocationError):
                call("set", "web1", **{key: name + "'"})
            with pytest.raises(SaltInvocationError):
                call("create", "web9", **{key: name + "'"})

    _, ran = commands(lambda: [everything(name) for name in hostile])
    assert ran == [] and not (tmp_path / "mark").exists()
    assert call("status", "web1") == "on"


def test_every_result_can_be_sent_over_the_bus(call, jail):
    jail("web1")
    results = [
        call("start", "web1"),
        call("set", "web1", astart=0),
        call("list"),
        call("get", "web1"),
        call("paths"),
    ]
    results += [call("rename", "web1", "www1", restart=True), call("remove", "www1")]
    shape = {"name", "emulator", "status", "jid", "changed", "old", "new"}
    assert all(set(results[at]) == shape for at in (0, 1, 5, 6))
    assert json.loads(json.dumps(results)) == results
