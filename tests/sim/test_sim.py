"""What the simulated node promises beyond the recorded cases of `tests/conformance`."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from sim import Node, procs
from sim.node import Error

REASON = "needs root: simulated jails listen on port 80 and commands are only for root"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason=REASON)
NODE_PROGRAM = pathlib.Path(__file__).with_name("node.py")


@pytest.fixture
def node(tmp_path):
    made = Node(str(tmp_path / "node")).create()
    yield made
    made.destroy()


def jail(node, name, address, *options, start=True):
    """A jail with a small service on port 8080."""
    words = [f"jname={name}", f"ip4_addr={address}", "inter=0", "quiet=1", "pkglist=tcpd"]
    done = node.cbsd("jcreate", *words, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    if start:
        node.cbsd("jstart", f"jname={name}")
        assert node.kernel.jid(name)


def machine(node, name, address, *options):
    words = [f"jname={name}", f"ip4_addr={address}", "vm_ram=1g", "vm_cpus=1", "vm_os_type=linux"]
    done = node.cbsd("bcreate", *words, "inter=0", *options)
    assert done.returncode == 0, done.stdout + done.stderr


def script(path, text, shell="/bin/sh"):
    path = pathlib.Path(path)
    path.write_text(f"#!{shell}\n{text}\n")
    path.chmod(0o755)


def hook(node, name, directory, text="true"):
    script(node.layout.system(name, directory, "hook"), text)


def hooked(node):
    """The directories of the hooks that ran."""
    return [entry["dir"] for entry in node.hooks_log()]


def run(*argv, **options):
    return subprocess.run(argv, capture_output=True, text=True, **options)


def begin(node, *argv, **options):
    options.update(env=node.environment(), stdout=subprocess.DEVNULL)
    return subprocess.Popen([f"{node.bin}/cbsd", *argv], **options)


def row(node, name):
    """(jid, status) as the inventory has them."""
    return node.inventory.rows(f"SELECT jid, status FROM jails WHERE jname='{name}'")[0]


def fetch(address, port=80):
    with urllib.request.urlopen(f"http://{address}:{port}/", timeout=5) as answer:
        return answer.read().decode()


def connects(address, port):
    """Whether a TCP connection is accepted; other errors than a refusal go on."""
    try:
        socket.create_connection((address, port), timeout=2).close()
    except ConnectionRefusedError:
        return False
    return True


def eventually(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def processes_with(text):
    """The command lines of running processes that contain a text."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if text in line and state != "Z" and int(path.name) != os.getpid():
                found.append(line)
    return found


def runs(command):
    """Whether a process with exactly this command line runs."""
    return any(line.rstrip() == command for line in processes_with(command))


def test_nginx_of_a_jail_is_real_and_service_stop_stops_it(node):
    jail(node, "lb1", "127.79.1.11/8", "pkglist=nginx", "sysrc=nginx_enable=YES")
    assert "lb1" in fetch("127.79.1.11")
    status = node.cbsd("jexec", "jname=lb1", "service", "nginx", "status")
    assert status.returncode == 0 and status.stdout.startswith("nginx is running as pid ")
    assert node.cbsd("jexec", "jname=lb1", "service", "nginx", "stop").returncode == 0
    assert not connects("127.79.1.11", 80)
    status = run(f"{node.bin}/jexec", "lb1", "service", "nginx", "status")
    assert (status.returncode, status.stdout) == (1, "nginx is not running.\n")
    node.cbsd("jrestart", "jname=lb1")
    assert "lb1" in fetch("127.79.1.11")


def test_a_service_that_is_not_enabled_does_not_run(node):
    jail(node, "lb1", "127.79.1.12", "pkglist=nginx")
    assert not connects("127.79.1.12", 80)
    refused = node.cbsd("jexec", "jname=lb1", "service", "nginx", "start")
    assert "Cannot 'start' nginx" in refused.stdout
    node.cbsd("jexec", "jname=lb1", "service", "nginx", "onestart")
    assert connects("127.79.1.12", 80)


def test_an_address_that_this_machine_does_not_have_is_never_used(node):
    jail(node, "far", "10.20.30.40/24", "pkglist=nginx tcpd", "sysrc=nginx_enable=YES")
    status = run(f"{node.bin}/jexec", str(node.kernel.jid("far")), "service", "nginx", "status")
    assert status.stdout == "nginx is not running.\n"


@pytest.mark.parametrize("end", ["crash", "jstop"])
def test_every_process_of_a_jail_ends_with_it(node, end):
    jail(node, "a", "127.79.1.13")
    code = "setsid sleep 4321 & sleep 4322 & exec sleep 4323"
    running = subprocess.Popen([f"{node.bin}/jexec", "a", "sh", "-c", code])
    sleepers = ("sleep 4321", "sleep 4322", "sleep 4323")
    eventually(lambda: all(map(runs, sleepers)))
    node.crash("a") if end == "crash" else node.cbsd("jstop", "jname=a")
    assert running.wait(timeout=5) == -signal.SIGKILL
    assert not any(map(runs, sleepers))
    assert not connects("127.79.1.13", 8080)


def test_a_crash_runs_no_hook_and_leaves_the_row_stale(node):
    jail(node, "a", "127.79.1.14")
    jid = node.kernel.jid("a")
    for directory in ("master_prestop.d", "master_poststop.d", "master_prestart.d"):
        hook(node, "a", directory)
    node.crash("a")
    assert row(node, "a") == (jid, 1) and node.hooks_log() == []
    assert "Off" in node.cbsd("jls", "a").stdout
    node.cbsd("jstart", "jname=a")
    assert hooked(node) == ["master_prestart.d"]
    assert node.kernel.jid("a") == jid + 1


def test_a_jail_whose_init_is_killed_is_gone(node):
    jail(node, "a", "127.79.1.15")
    os.kill(node.kernel.jails()["a"]["holder"][0], signal.SIGKILL)
    eventually(lambda: not node.kernel.jid("a"))
    assert node.cbsd("jstop", "jname=a").stdout == "Not Running: a\n"


def test_programs_of_a_jail_are_looked_up_in_its_root_first(node):
    jail(node, "a", "127.79.1.16")
    script(node.layout.data("a", "usr/local/bin/check"), "echo in $PWD; exit 7")
    for argv in (["/usr/local/bin/check"], ["check"], ["sh", "-c", "check"]):
        done = run(f"{node.bin}/jexec", "a", *argv)
        assert (done.returncode, done.stdout) == (7, f"in {node.layout.data('a')}\n")
    assert node.cbsd("jexec", "jname=a", "/usr/local/bin/check").returncode == 7


def test_a_clone_has_the_packages_and_serves_its_own_name(node):
    jail(node, "a", "127.79.1.17", start=False)
    node.cbsd("jclone", "old=a", "new=b", "host_hostname=b.my.domain", "ip4_addr=127.79.1.18")
    node.cbsd("jstart", "jname=b")
    assert fetch("127.79.1.18", 8080) == "OK b\n"


def test_an_image_carries_system_directory_and_data(node):
    jail(node, "a", "127.79.1.19", start=False)
    monit = pathlib.Path(node.layout.system("a", "monit"))
    monit.mkdir()
    (monit / "monitrc").write_text("check a")
    hook(node, "a", "master_poststart.d")
    assert node.cbsd("jexport", "jname=a").returncode == 0
    image = f"jname={node.layout.work('export/a.img')}"
    assert "already exist" in node.cbsd("jimport", image).stdout
    assert node.cbsd("jimport", image, "newjname=b", "newip=127.79.1.20").returncode == 0
    assert pathlib.Path(node.layout.system("b", "monit/monitrc")).read_text() == "check a"
    node.cbsd("jstart", "jname=b")
    assert fetch("127.79.1.20", 8080) == "OK b\n"
    assert [entry["env"] for entry in node.hooks_log()] == ["b"]


def test_two_starts_at_once_both_run_prestart_and_one_fails(node):
    jail(node, "a", "127.79.1.21", start=False)
    hook(node, "a", "master_prestart.d", "sleep 0.3")
    both = [begin(node, "jstart", "jname=a") for _ in range(2)]
    assert sorted(process.wait() for process in both) == [0, 1]
    assert len(node.hooks_log()) == 2


def test_an_address_that_is_off_refuses_or_swallows(node):
    jail(node, "a", "127.79.1.22", start=False)
    assert not connects("127.79.1.22", 8080)
    node.off("a", "blackhole", [8080])
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        connects("127.79.1.22", 8080)
    assert time.monotonic() - started > 1.5
    node.cbsd("jstart", "jname=a")
    assert fetch("127.79.1.22", 8080) == "OK a\n"
    node.crash("a")
    with pytest.raises(TimeoutError):
        connects("127.79.1.22", 8080)
    node.off("a", "refuse")
    assert not connects("127.79.1.22", 8080)


def test_a_start_that_fails_exits_with_0_until_it_is_allowed_again(node):
    jail(node, "a", "127.79.1.23", start=False)
    node.fail_start("a")
    assert node.cbsd("jstart", "jname=a").returncode == 0
    assert node.kernel.jid("a") == 0
    node.fail_start("a", off=True)
    node.cbsd("jstart", "jname=a")
    assert node.kernel.jid("a")


def test_sigterm_does_not_end_a_command_but_sigkill_does_and_leaves_half_a_start(node):
    jail(node, "a", "127.79.1.24", start=False)
    node.slow("a", start=30)
    process = begin(node, "jstart", "jname=a", start_new_session=True)
    eventually(lambda: node.kernel.jid("a"))
    os.kill(process.pid, signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert node.kernel.jid("a") and row(node, "a")[0] == 0
    assert not connects("127.79.1.24", 8080)


def test_a_killed_bstop_leaves_maintenance_that_bstart_refuses_and_bstop_clears(node):
    machine(node, "vm1", "127.79.1.50")
    node.cbsd("bstart", "jname=vm1")
    node.slow("vm1", stop=20)
    with pytest.raises(subprocess.TimeoutExpired):
        node.cbsd("bstop", "jname=vm1", timeout=1)
    assert "Maintenance:Stopping_VM" in node.cbsd("bls").stdout
    node.crash("vm1")
    refused = node.cbsd("bstart", "jname=vm1")
    assert refused.returncode == 1 and "Bhyve in maintenance" in refused.stdout
    node.cbsd("bstop", "jname=vm1")
    assert node.cbsd("bstart", "jname=vm1").returncode == 0
    assert node.kernel.vm_pid("vm1")


def test_a_machine_from_start_to_stop(node):
    machine(node, "vm1", "127.79.1.51")
    for word in ("prestart", "poststart", "prestop", "poststop"):
        directory = f"master_{word}.d"
        hook(node, "vm1", directory, f'echo "{directory} $jid $status" >> {node.root}/seen')
    node.guest("vm1", port=8080, boot_delay=0.2)
    done = node.cbsd("bstart", "jname=vm1")
    pid = node.kernel.vm_pid("vm1")
    assert f"PID: {pid}" in done.stdout and pid
    assert row(node, "vm1")[0] == pid
    assert os.path.exists(f"{node.root}/dev/vmm/vm1")
    eventually(lambda: connects("127.79.1.51", 8080))
    assert node.cbsd("bls", "header=0", "display=jname,status").stdout == "vm1  On\n"
    node.cbsd("bstop", "jname=vm1")
    assert not connects("127.79.1.51", 8080)
    assert not os.path.exists(f"{node.root}/dev/vmm/vm1")
    seen = pathlib.Path(f"{node.root}/seen").read_text().splitlines()
    assert seen[:2] == ["master_prestart.d 0 0", "master_poststart.d 0 0"]
    assert seen[2:] == [f"master_prestop.d {pid} 1", f"master_poststop.d {pid} 1"]
    assert [int(value) for value in row(node, "vm1")] == [0, 0]


def test_a_running_machine_refuses_a_second_start_and_jail_commands_miss_it(node):
    machine(node, "vm1", "127.79.1.52")
    node.cbsd("bstart", "jname=vm1")
    pid = node.kernel.vm_pid("vm1")
    again = node.cbsd("bstart", "jname=vm1")
    assert (again.returncode, again.stdout) == (1, f"Jail vm1 already running, jid: {pid}\n")
    by_word = node.cbsd("jstop", "vm1")
    assert by_word.stdout == "For bhyve jail use: cbsd bstop vm1 instead\n"
    assert by_word.returncode == 1
    restart = node.cbsd("jrestart", "vm1")
    missing, done = 'No such jail: jname="vm1"\n', "jrestart done in 0 seconds\n"
    assert (restart.returncode, restart.stdout) == (0, missing * 2 + done * 2)
    assert node.cbsd("jstatus", "vm1").stdout == f"{pid}\n"
    node.cbsd("brestart", "vm1")
    assert node.kernel.vm_pid("vm1") not in (0, pid)


def test_a_guest_that_powers_off_runs_both_stop_hooks(node):
    machine(node, "vm1", "127.79.1.53")
    ancestors = f"ps -o args= $(ps -o ppid= $PPID) >> {node.root}/ancestors"
    hook(node, "vm1", "master_prestop.d", ancestors)
    hook(node, "vm1", "master_poststop.d")
    node.cbsd("bstart", "jname=vm1")
    node.guest_poweroff("vm1")
    assert hooked(node) == ["master_prestop.d", "master_poststop.d"]
    assert "bhyverun.sh" in pathlib.Path(f"{node.root}/ancestors").read_text()
    assert node.log()[-1]["argv"] == ["bstop", "cbsd_queue_name=none", "jname=vm1"]
    assert not node.kernel.vm_pid("vm1")
    node.cbsd("bstart", "jname=vm1")
    node.guest_poweroff("vm1", twice=True)
    assert len(node.hooks_log()) == 6


def test_a_guest_that_reboots_gets_another_pid_and_only_its_own_hook(node):
    machine(node, "vm1", "127.79.1.54")
    for directory in ("master_reboot.d", "master_prestop.d", "master_poststart.d"):
        hook(node, "vm1", directory)
    node.cbsd("bstart", "jname=vm1")
    before, hooks = node.kernel.vm_pid("vm1"), len(node.hooks_log())
    node.guest_reboot("vm1")
    assert node.kernel.vm_pid("vm1") not in (0, before)
    assert row(node, "vm1")[0] == node.kernel.vm_pid("vm1")
    assert hooked(node)[hooks:] == ["master_reboot.d"]


def test_a_boot_loses_everything_and_starts_what_has_astart_side_by_side(node):
    for number, name in enumerate(("a", "b", "c"), 25):
        jail(node, name, f"127.79.1.{number}", f"astart={int(name != 'c')}")
        hook(node, name, "master_poststart.d", "sleep 0.5")
        hook(node, name, "master_prestop.d")
    boot_id = pathlib.Path(node.kernel.boot_id_file).read_text()
    node.boot(astart=False)
    assert pathlib.Path(node.kernel.boot_id_file).read_text() != boot_id
    assert node.status()["jails"] == {} and row(node, "a")[0] != 0
    assert node.hooks_log() == []
    node.boot()
    found = node.status()["jails"]
    assert set(found) == {"a", "b"} and sorted(found.values()) == [1, 2]
    first, second = node.hooks_log()
    assert max(first["start"], second["start"]) < min(first["end"], second["end"])


def test_a_shutdown_stops_machines_with_their_hooks_and_jails_without(node):
    jail(node, "a", "127.79.1.28")
    machine(node, "vm1", "127.79.1.55")
    node.cbsd("bstart", "jname=vm1")
    for name in ("a", "vm1"):
        hook(node, name, "master_prestop.d", f"ps -A -o args= >> {node.root}/ps")
    node.shutdown()
    assert [entry["env"] for entry in node.hooks_log()] == ["vm1"]
    assert "jails-astart stop" in pathlib.Path(f"{node.root}/ps").read_text()
    assert node.status()["jails"] == {} and node.status()["vms"] == {}
    assert row(node, "a")[0] != 0


def test_destroy_leaves_no_process_and_may_be_repeated(node):
    jail(node, "lb1", "127.79.1.29", "pkglist=nginx tcpd", "sysrc=nginx_enable=YES")
    machine(node, "vm1", "127.79.1.56")
    node.guest("vm1", boot_delay=0)
    node.cbsd("bstart", "jname=vm1")
    jail(node, "off", "127.79.1.30", start=False)
    node.off("off", "blackhole", [8080])
    node.slow("lb1", stop=60)
    subprocess.Popen([f"{node.bin}/jexec", "lb1", "sleep", "4324"])
    stopping = begin(node, "jstop", "jname=lb1")
    eventually(lambda: runs("sleep 4324") and len(node.kernel.running_commands()) == 1)
    state = node.kernel.read()
    started = [*state["jails"].values(), *state["vms"].values(), *state["off"].values()]
    idents = [ident for entry in started for ident in (entry["holder"], *entry.get("pids", ()))]
    assert len(idents) == 7 and all(map(procs.alive, idents))
    node.destroy()
    assert stopping.wait(timeout=5) == -signal.SIGKILL
    assert not os.path.exists(node.root)
    assert not any(map(procs.alive, idents)) and not runs("sleep 4324")
    assert not processes_with(node.root)
    node.destroy()
    os.mkdir(node.root)
    node.destroy()
    assert not os.path.exists(node.root)


def test_destroy_removes_nothing_that_is_no_node(tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(Error):
        Node(str(tmp_path)).destroy()
    assert (tmp_path / "precious").exists()


def test_the_program_does_what_the_class_does(tmp_path):
    root = str(tmp_path / "cli")

    def program(*argv):
        return run(sys.executable, str(NODE_PROGRAM), "--root", root, *argv)

    assert program("create", "--name", "hv9", "--jid-start", "40").returncode == 0
    node = Node(root)
    jail(node, "a", "127.79.1.31")
    assert json.loads(program("status").stdout)["jails"] == {"a": 40}
    faults = ["slow a --start 0.1", "off a blackhole --ports 8080", "fail-start a", "crash a"]
    for line in (*faults, "fail-start --off a", "boot --no-astart", "boot", "shutdown"):
        done = program(*line.split())
        assert done.returncode == 0, (line, done.stderr)
    assert program("guest-poweroff", "nosuch").returncode == 1
    assert program("destroy").returncode == 0 and not os.path.exists(root)


def test_jls_of_the_base_system(node):
    jail(node, "a", "127.79.1.32/8")
    jail(node, "b", "127.79.1.33")

    def jls(*argv):
        return run(f"{node.bin}/jls", *argv)

    table = jls().stdout.splitlines()
    assert table[0] == "   JID  IP Address      Hostname                      Path"
    path = node.layout.work("jails/a")[:74]  # as wide as FreeBSD's table is
    assert table[1].split() == ["1", "127.79.1.32", "a.my.domain", path]
    assert jls("name").stdout == "a\nb\n"
    assert jls("jid", "name").stdout == "1 a\n2 b\n"
    assert jls("-j", "b", "jid").stdout == "2\n"
    assert "name=b" in jls("-n", "-j", "2").stdout
    found = json.loads(jls("--libxo", "json").stdout)["jail-information"]["jail"]
    assert [entry["hostname"] for entry in found] == ["a.my.domain", "b.my.domain"]
    with node.kernel.changing() as state:
        state["jails"]["it's $0"] = {**state["jails"]["a"], "jid": 3}
    holder = node.kernel.jails()["b"]["holder"]
    os.kill(holder[0], signal.SIGKILL)  # a jail ends with the last of its processes
    procs.wait_gone([holder], 5)
    assert jls("name").stdout == jls("-q", "name").stdout == "a\nit's $0\n"
    missing = jls("-j", "x")
    assert (missing.returncode, missing.stderr) == (1, 'jls: jail "x" not found\n')
    absent = run(f"{node.bin}/jexec", "x", "true")
    assert (absent.returncode, absent.stderr) == (1, 'jexec: jail "x" not found\n')


def test_the_workdir_is_in_rc_conf(node):
    asked = run(f"{node.bin}/sysrc", "-f", f"{node.root}/etc/rc.conf", "-n", "cbsd_workdir")
    assert asked.stdout == node.workdir + "\n"
    assert node.cbsd("jls", env={"workdir": None}).returncode == 0


def test_what_a_command_starts_inherits_no_descriptor_of_its_caller(node):
    jail(node, "a", "127.79.1.39", start=False)
    hook(node, "a", "master_poststart.d", f"ls /proc/self/fd > {node.root}/fds")
    with open(os.path.join(node.root, "held"), "w", encoding="utf-8") as held:
        node.cbsd("jstart", "jname=a", pass_fds=[held.fileno()])
        holder, service = node.kernel.jails()["a"]["holder"], node.kernel.jails()["a"]["pids"][0]
        for pid in (holder[0], service[0]):
            links = [os.readlink(link) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
            assert held.name not in links
        fds = pathlib.Path(node.root, "fds").read_text().split()
        assert set(fds) == {"0", "1", "2", "3"}  # the last is that of `ls` itself


def test_the_inventory_can_be_asked_with_one_process(node):
    jail(node, "a", "127.79.1.34/8")
    machine(node, "vm1", "127.79.1.57")
    before = len(node.log())
    done = node.cbsd("-c", "cbsdsqlro local SELECT jname,jid,status,emulator,ip4_addr FROM jails")
    assert done.stdout == "a|1|1|jail|127.79.1.34/8\nvm1|0|0|bhyve|127.79.1.57\n"
    quoted = node.cbsd("-c", "cbsdsqlro local \"SELECT jname FROM jails WHERE status='1'\"")
    assert quoted.stdout == "a\n"
    assert [entry["event"] for entry in node.log()[before:]] == ["start", "end"] * 2
    assert node.cbsd("-c", "jls header=0 display=jname | tr a x").stdout == "x\n"


def test_a_bar_in_a_column_hides_the_rows_behind_it(node):
    for name in ("a", "b", "c"):
        jail(node, name, "0", start=False)
    node.inventory.update("b", tags="x|y")
    done = node.cbsd("jls", "header=0", "display=jname")
    assert (done.returncode, done.stdout) == (0, "a\n") and "bad variable name" in done.stderr
    assert node.cbsd("jstatus", "b").returncode == 2


def test_a_quote_loses_the_row_of_a_new_jail_and_nobody_says_so(node):
    done = node.cbsd("jcreate", "jname=a", "ip4_addr=0", "tags=it's", "inter=0")
    assert done.returncode == 0
    assert node.cbsd("jls", "header=0").stdout == ""


def test_restart_runs_its_stop_and_start_as_children(node):
    jail(node, "a", "127.79.1.35")
    before = len(node.log())
    node.cbsd("jrestart", "jname=a")
    records = node.log()[before:]
    top = [entry for entry in records if not entry["nested"]]
    assert [entry["event"] for entry in top] == ["start", "end"]
    assert {entry["argv"][0] for entry in top} == {"jrestart"}
    nested = [entry for entry in records if entry["nested"] and entry["event"] == "end"]
    assert [(entry["argv"][0], entry["rc"]) for entry in nested] == [("jstop", 0), ("jstart", 0)]
    assert {entry["parent_pid"] for entry in nested} == {top[0]["pid"]}


def test_a_cbsdfile_restricts_commands_to_what_it_defines(node, tmp_path):
    jail(node, "a", "127.79.1.36")
    (tmp_path / "CBSDfile").write_text("jail_b()\n{\n\ttrue\n}\n")
    argv = [f"{node.bin}/cbsd", "jget", "jname=a", "ip4_addr"]
    done = run(*argv, cwd=tmp_path, env=node.environment())
    assert (done.returncode, done.stdout) == (1, "jget: no such jail: a\n")
    assert "found CBSDfile" in done.stderr


@pytest.fixture
def repository(tmp_path):
    """A module in a local git repository."""
    path = tmp_path / "modules-hello"
    path.mkdir()
    metadata = 'MODULE_NAME="hello"\nMODULE_DIR="/usr/local/cbsd/modules/hello.d"\n'
    (path / "metadata.conf").write_text(metadata)
    (path / "securecmd").write_text('SECCMD="${SECCMD} hello jls"\n')
    for name in ("hello", "jls"):
        script(path / name, 'echo hello from "$0" "$@"')
    author = ["-c", "user.name=test", "-c", "user.email=test@example.net"]
    for argv in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "module"]):
        subprocess.run(["git", *argv], cwd=path, check=True)
    return path


def test_a_module_is_cloned_enabled_and_wins_over_cbsd(node, repository):
    install = ("module", "mode=install", "hello")
    modules_conf = pathlib.Path(node.layout.work("etc/modules.conf"))
    assert node.cbsd(*install).returncode == 1  # no network
    conf = pathlib.Path(node.layout.simconf)
    settings = {**json.loads(conf.read_text()), "module_url": {"hello": f"file://{repository}"}}
    conf.write_text(json.dumps(settings))
    target = pathlib.Path(node.layout.distdir, "modules/hello.d")
    target.mkdir()
    assert node.cbsd(*install).returncode == 0
    assert not target.exists()  # an empty directory is removed, and nothing else happens
    assert node.cbsd(*install).returncode == 0 and (target / "hello").exists()
    again = node.cbsd(*install)
    assert again.returncode == 1 and "already exist" in again.stderr
    assert node.cbsd("hello").returncode == 127
    modules_conf.write_text("hello.d\n")
    assert node.cbsd("initenv").returncode == 0
    assert node.cbsd("hello", "you").stdout.startswith("hello from ")
    assert node.cbsd("jls").stdout.startswith("hello from ")
    inventory = pathlib.Path(node.layout.work("nc.inventory"))
    assert 'mod_hello_enabled="YES"' in inventory.read_text()
    modules_conf.write_text("")
    initenv = f"{node.layout.distdir}/sudoexec/initenv"
    assert run(initenv, "inter=0", env=node.environment()).returncode == 0
    assert node.cbsd("hello").returncode == 127
    assert "mod_hello" not in inventory.read_text()


def test_a_script_for_cbsds_own_shell_runs_as_a_module(node):
    jail(node, "a", "127.79.1.38", start=False)
    text = 'MYARG="jname"\n. ${subr}\n. ${cbsdinit}\n. ${jrcconf}\n'
    text += '[ $? -eq 1 ] && log_err 1 "No such jail: ${jname}"\n'
    text += "echo ${jailsysdir}/${jname} $( jget jname=${jname} mode=quiet ip4_addr )"
    script(node.layout.work("modules/hello"), text, shell="/usr/local/bin/cbsd")
    assert node.cbsd("hello").stdout == "Please set hello: jname\n"
    assert node.cbsd("hello", "jname=nosuch").stdout == "No such jail: nosuch\n"
    assert node.cbsd("hello", "jname=a").stdout == f"{node.layout.system('a')} 127.79.1.38\n"


def test_initenv_never_touches_an_existing_skeleton(node):
    skeleton = pathlib.Path(node.layout.work("share/jail-system-default"))
    (skeleton / "own").write_text("")
    (skeleton / "stop.d/placeholder").unlink()
    node.cbsd("initenv")
    assert (skeleton / "own").exists() and not (skeleton / "stop.d/placeholder").exists()


def test_the_queue_backend_is_called_around_each_operation(node):
    backend, etc = f"{node.root}/backend", pathlib.Path(node.layout.work("etc"))
    script(backend, f'echo "$*" >> {node.root}/queue')
    (etc / "modules.conf").write_text("cbsd_queue.d\n")
    (etc / "cbsd_queue.conf").write_text(f'cbsd_queue_backend="{backend}"\n')
    node.cbsd("initenv")
    jail(node, "a", "127.79.1.37", start=False)
    queue = pathlib.Path(node.root, "queue")
    queue.unlink()
    node.cbsd("jstart", "jname=a")
    words = "cbsd_queue_name=/clonos/jailscontainers/ id=a cmd=jstart"
    states = ("status=1", "status=2 data_status=1")
    expected = [f"{words} {state} workdir={node.workdir}" for state in states]
    assert queue.read_text().splitlines() == expected


def test_a_worker_that_outlives_its_master_is_of_the_family():
    """As nginx forks one while it is killed: the worker's environment says nothing."""
    master = subprocess.Popen(
        ["/bin/sh", "-c", "env -i sleep 600 & echo $!; wait"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    worker = int(master.stdout.readline())
    ident = procs.identity(master.pid)
    master.kill()
    master.wait()
    assert [pid for pid, _ in procs.family([ident])] == [worker]
    procs.exterminate([ident])
    assert not procs.alive(procs.identity(worker))
