"""
The SLS tree on a simulated CBSD node: real Salt, the real monit, the agent as deployed.

What must hold: each SLS applies alone; `init` a second time changes nothing, not even a
modification time, and reloads nothing; test mode foretells the run; `clean` leaves the node as it
was.
"""

import json
import os
import pathlib
import stat
import subprocess
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
ALONE = (
    "package",
    "agent",
    "config",
    "hooks",
    "checks",
    "service",
    "events",
    "clean",
    "cbsd_module",
)
UPSTREAM = "/usr/local/bin/cbsd monit jname=${jname}\n"
PILLAR = {
    "monit": {"poll": "1s"},
    "envs": {
        "web1": {"checks": {"http": {"type": "http", "port": 80}}},
        "web2": {"checks": {"up": {"type": "running"}}},
    },
}


def jail(node, name, last):
    done = node.sim.cbsd("jcreate", f"jname={name}", f"ip4_addr=127.78.1.{last}", "inter=0")
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def node(salt_node):
    """A node that had upstream's module and include line before; each test leaves it clean."""
    node = salt_node("sls1")
    for number, name in enumerate(("web1", "web2", "own"), 1):
        jail(node, name, number)
    monitrc = (node.root / "etc/monitrc.sample").read_text().split("set httpd")[0]
    node.monitrc.write_text(
        f"{monitrc}include {node.sim.workdir}/jails-system/*/monit/monitrc\n"
        f"set log {node.root}/log/monit.log\n"
    )
    node.monitrc.chmod(0o600)
    own = pathlib.Path(node.sim.workdir) / "jails-system/own"
    (own / "monit").mkdir(0o755)
    (own / "monit/monitrc.tpl").write_text(
        "check host %%JNAME%%-own with address %%IPV4_FIRST%%\n  if failed port 80 then alert\n"
    )
    (own / "master_poststart.d/monit.sh").write_text(UPSTREAM)
    (own / "master_poststart.d/monit.sh").chmod(0o755)
    (own / "remove.d/monit").symlink_to("/usr/local/cbsd/modules/monit.d/share/remove.d/monit.sh")
    node.pillar(PILLAR)
    return node


def tree(node, times=False):
    """Every file of the node that the formula could touch, with mode, owner and content."""
    found = {}
    for top in ("etc", "usr", "var"):
        for path in sorted((node.root / top).rglob("*")):
            name = str(path.relative_to(node.root))
            if name.startswith(("etc/salt", "usr/jails/var/", "usr/jails/ftmp", "usr/jails/tmp")):
                continue
            try:
                info = path.lstat()
            except FileNotFoundError:  # the agent's, meanwhile
                continue
            if stat.S_ISSOCK(info.st_mode) or "__pycache__" in name:
                continue
            what = (
                os.readlink(path)
                if path.is_symlink()
                else path.read_bytes()
                if path.is_file()
                else None
            )
            found[name] = (
                oct(info.st_mode),
                info.st_uid,
                info.st_gid,
                what,
                info.st_mtime_ns if times and what else 0,
            )
    return found


# What monit writes by itself, and the agent's pass: that it looked, and its log.
ALIVE = (
    "var/db/monit.",
    "var/run/monit.",
    "var/run/cbsd_monit",
    "var/db/cbsd_monit/agent.log",
    "var/db/cbsd_monit/envs/",
)


def still(found):
    return {name: what for name, what in found.items() if not name.startswith(ALIVE)}


def apply(node, sls="cbsd_monit", test=False):
    return node.apply_here(sls, test)


def changed(results):
    return {r["__id__"]: r["changes"] for r in results if r["changes"]}


def failed(results):
    return [f"{r['__id__']}: {r['comment']}" for r in results if r["result"] is False]


def reloads(node):
    log = node.root / "log/monit.log"
    return log.read_text().count("Monit reloaded") if log.exists() else 0


def test_second_run_changes_nothing_and_clean_leaves_the_node_as_it_was(node):
    before = tree(node)
    said = apply(node, test=True)
    assert not failed(said) and tree(node) == before
    done = apply(node)
    assert not failed(done)
    assert {r["__id__"] for r in said if r["result"] is None} - {
        "monit knows what is published"
    } == set(changed(done))
    published = (node.state_dir / "published").read_text()
    assert "web1.http" in published and "own-own" in published
    assert node.monitrc.read_text().count("include") == 1

    after, count = still(tree(node, times=True)), reloads(node)
    for test in (False, True):
        again = apply(node, test=test)
        assert not failed(again) and changed(again) == {}
        assert still(tree(node, times=True)) == after
    assert reloads(node) == count

    said = apply(node, "cbsd_monit.clean", test=True)
    assert not failed(said) and still(tree(node, times=True)) == after
    done = apply(node, "cbsd_monit.clean")
    assert not failed(done)
    assert {r["__id__"] for r in said if r["result"] is None} == set(changed(done))
    left = {name: what for name, what in tree(node).items() if not name.startswith(ALIVE[:2])}
    assert left == before
    again = apply(node, "cbsd_monit.clean")
    assert not failed(again) and changed(again) == {}
    node.kill_monit()


def test_what_pillar_changes_is_foretold_and_reloaded_once(node):
    apply(node)
    try:
        settings = json.loads(json.dumps(PILLAR))
        settings["envs"]["web1"]["checks"]["http"]["path"] = "/health"
        del settings["envs"]["web2"]
        settings["monit"]["poll"] = "2s"
        node.pillar(settings)
        count = reloads(node)
        said = changed(apply(node, test=True))
        done = apply(node)
        assert not failed(done) and changed(done) == said
        assert "/health" in str([r["changes"] for r in done if r["comment"].startswith("web1: ")])
        assert reloads(node) == count + 1
        assert "web2" not in (node.state_dir / "published").read_text()
    finally:
        node.pillar(PILLAR)
        apply(node, "cbsd_monit.clean")
        node.kill_monit()


def test_lost_include_line_comes_back_with_one_reload(node):
    apply(node)
    try:
        text = node.monitrc.read_text()
        node.monitrc.write_text(text.replace(f"include {node.state_dir}/published\n", ""))
        node.monitrc.chmod(0o600)
        # The socket is in what is published: a monit that lost the line cannot be asked either.
        assert changed(apply(node)).keys() == {"monit includes what cbsd_monit publishes"}
        assert node.monitrc.read_text().endswith(f"include {node.state_dir}/published\n")
    finally:
        apply(node, "cbsd_monit.clean")
        node.kill_monit()


def test_bad_pillar_is_named_and_everything_stays_as_it_was(node):
    apply(node)
    try:
        before = still(tree(node, times=True))
        node.pillar({"envs": {"web1": {"chekcs": {}}}})
        done = apply(node)
        (words,) = failed(done)
        assert "chekcs" in words and "checks" in words
        assert still(tree(node, times=True)) == before
    finally:
        node.pillar(PILLAR)
        apply(node, "cbsd_monit.clean")
        node.kill_monit()


def test_chapters_line_to_the_letter_for_who_asks(node):
    try:
        node.pillar({**PILLAR, "monit": {"poll": "1s", "include": "glob"}})
        before = node.monitrc.read_text()
        done = apply(node)
        assert not failed(done)
        assert (
            f"include {node.sim.workdir}/jails-system/*/monit/monitrc\n" in node.monitrc.read_text()
        )
        assert "web1.http" in node.monit("summary")
        assert "web1.http" not in (node.state_dir / "head").read_text()
        again = apply(node)
        assert not failed(again) and changed(again) == {}
        for mode in ("publish", "glob"):  # and back, on a node that is installed
            node.pillar({**PILLAR, "monit": {"poll": "1s", "include": mode}})
            assert not failed(apply(node))
            assert ("jails-system/*/" in node.monitrc.read_text()) is (mode == "glob")
            assert node.monit("summary").count("web1.http") == 1
            again = apply(node)
            assert not failed(again) and changed(again) == {}
    finally:
        node.pillar(PILLAR)
        apply(node, "cbsd_monit.clean")
        node.kill_monit()
    assert node.monitrc.read_text() == before


def test_slot_in_pillar_is_not_executed(node):
    mark = node.root / "executed"
    slot = f'__slot__:salt:cmd.run("touch {mark}")'
    try:
        for pillar in (
            {"envs": {"web1": {"raw": slot}}},
            {"envs": {"web1": {"checks": {"http": {"type": "http", "path": slot}}}}},
            {"monit": slot},
            {"template": slot},
        ):
            node.pillar(pillar)
            assert failed(apply(node, test=True))
            assert not mark.exists()
    finally:
        node.pillar(PILLAR)


def test_monit_that_ran_before_without_our_socket_is_taken_over(salt_node):
    node = salt_node("sls5")
    node.pillar(PILLAR)
    text = (node.root / "etc/monitrc.sample").read_text()
    node.monitrc.write_text(text.split("set httpd")[0])
    node.monitrc.chmod(0o600)
    subprocess.run(node.lookup()["monit_start"], check=True, capture_output=True)
    try:
        assert not failed(apply(node))
        assert "cbsd_monit-look" in node.monit("summary")
    finally:
        apply(node, "cbsd_monit.clean")
        node.kill_monit()


@pytest.mark.parametrize("sls", ALONE)
def test_each_sls_applies_alone(node, sls):
    done = apply(node, f"cbsd_monit.{sls}", test=True)
    assert done and not [words for words in failed(done) if "git" not in words]


def test_file_that_nobody_had_is_made_without_a_password_and_goes(salt_node):
    node = salt_node("sls2")
    node.pillar(PILLAR)
    before = tree(node)
    done = apply(node)
    assert not failed(done)
    text = node.monitrc.read_text()
    assert "#     allow admin:monit" in text and stat.S_IMODE(node.monitrc.stat().st_mode) == 0o600
    done = apply(node, "cbsd_monit.clean")
    assert not failed(done)
    left = {name: what for name, what in tree(node).items() if not name.startswith(ALIVE[:2])}
    assert left == before
    for _ in range(100):
        if not (node.root / "var/run/monit.pid").exists():
            break
        time.sleep(0.1)
    assert not (node.root / "var/run/monit.pid").exists()


def test_module_of_cbsd_is_installed_once(salt_node, tmp_path):
    node = salt_node("sls3")
    origin = tmp_path / "modules-monit"
    origin.mkdir()
    (origin / "monit").write_text("#!/bin/sh\n")
    (origin / "monit").chmod(0o755)
    (origin / "securecmd").write_text('SECCMD="${SECCMD} monit"\n')
    git = ["git", "-C", str(origin), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "module"]):
        subprocess.run([*git, *words], check=True)
    node.pillar({"lookup": {"module_url": f"file://{origin}"}})
    assert not failed(apply(node, "cbsd_monit.cbsd_module", test=True))
    done = apply(node, "cbsd_monit.cbsd_module")
    assert not failed(done) and len(changed(done)) == 3, done
    assert "monit.d" in (pathlib.Path(node.sim.workdir) / "etc/modules.conf").read_text().split()
    assert (pathlib.Path(node.sim.workdir) / "modules/monit").exists()
    for test in (False, True):
        again = apply(node, "cbsd_monit.cbsd_module", test=test)
        assert not failed(again) and changed(again) == {}


def test_freebsd_without_a_service_module_is_told_in_one_sentence(salt_node):
    node = salt_node("sls4")
    path = node.root / "etc/salt/minion"
    minion = json.loads(path.read_text())
    minion["grains"] = {
        "os": "FreeBSD",
        "kernel": "FreeBSD",
        "os_family": "FreeBSD",
        "osrelease": "14.3",
        "osmajorrelease": 14,
    }
    path.write_text(json.dumps(minion))
    node.pillar({**PILLAR, "lookup": {"service": "monit"}})
    try:
        done = apply(node)
        (words,) = failed(done)
        assert (
            "install saltext-freebsd into Salt's Python" in words
            and "cbsd_monit:lookup:service to false" in words
        )
        assert "monit includes what cbsd_monit publishes" in changed(done)
        assert (node.state_dir / "published").exists()
    finally:
        apply(node, "cbsd_monit.clean")
