"""CBSD's hooks: linked for every env, and all as it was afterwards."""

import os

from tests.unit.states.host import HOOKS


def _owners(host):
    names = "jail-system-default bhyve-system-default freebsd-jail-web-system-skel"
    for name in (*names.split(), "xen-system-default"):
        (host.workdir / "share" / name).mkdir()
    host.add("web1", hooks=[*HOOKS, "clone.d", "rename.d"])
    host.add("vm1", "bhyve", hooks=[*HOOKS, "master_reboot.d"])
    host.add("bare", "bhyve")


def _links(host):
    found = host.workdir.rglob("cbsd_monit")
    base = host.workdir
    return {str(p.relative_to(base).parent): os.readlink(p) for p in found if p.is_symlink()}


def test_every_env_and_skeleton_gets_its_hooks_and_loses_them_again(host):
    _owners(host)
    own = host.workdir / "jails-system/web1/remove.d/own"
    own.write_text("#!/bin/sh\n")
    before = host.content()
    host.quartet("hooks_present")
    links = _links(host)
    assert set(links.values()) == {f"{host.root}/libexec/wake"}
    for owner, extra in {
        "share/jail-system-default": "clone.d",
        "share/freebsd-jail-web-system-skel": "clone.d",
        "share/bhyve-system-default": "master_reboot.d",
        "jails-system/web1": "clone.d",
        "jails-system/vm1": "master_reboot.d",
        "jails-system/bare": None,
    }.items():
        wanted = {f"{owner}/{hook}" for hook in [*HOOKS, extra] if hook}
        assert {link for link in links if link.startswith(f"{owner}/")} == wanted
    assert not any(link.startswith("share/xen") for link in links)
    assert host.ran == []
    host.quartet("hooks_absent")
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_skeleton_that_initenv_has_not_made_yet_is_left_to_it(host):
    (host.workdir / "share/jail-system-default").mkdir()
    host.apply("hooks_present")
    assert not (host.workdir / "share/bhyve-system-default").exists()


def test_upstream_hooks_are_set_aside_and_put_back(host):
    _owners(host)
    folder = host.workdir / "jails-system/web1"
    target = "/usr/local/cbsd/modules/monit.d/share/master_poststart.d/monit.sh"
    (folder / "master_poststart.d/monit.sh").symlink_to(target)
    theirs = "/usr/local/bin/monit summary ${jname} && /usr/sbin/service monit onereload\n"
    for hook, name, text in (
        ("master_prestop.d", "monit.sh", theirs),
        ("remove.d", "monit.sh", "echo something else\n"),
        ("master_poststart.d", "mine", "cbsd monit jname=${jname}\n"),
    ):
        (folder / hook / name).write_text(text)
        (folder / hook / name).chmod(0o755)
    os.chown(folder / "master_prestop.d/monit.sh", 12, 34)
    before = host.content()
    done = host.quartet("hooks_present")
    assert len(done["changes"]["set aside"]) == 2
    left = sorted(p.name for p in (folder / "master_poststart.d").iterdir())
    assert left == ["cbsd_monit", "mine"]
    assert [p.name for p in (folder / "master_prestop.d").iterdir()] == ["cbsd_monit"]
    assert (folder / "remove.d/monit.sh").exists()
    host.quartet("hooks_absent")
    assert {k: v for k, v in host.content().items() if k != "state"} == before
    assert (folder / "master_prestop.d/monit.sh").stat().st_uid == 12


def test_env_that_comes_later_is_seen_at_the_next_run(host):
    _owners(host)
    host.apply("hooks_present")
    host.add("web2", hooks=[*HOOKS, "clone.d"])
    done = host.quartet("hooks_present")
    assert len(done["changes"]["links"]) == 7


def test_moved_agent_and_foreign_file_are_replaced(host):
    _owners(host)
    folder = host.workdir / "jails-system/web1"
    (folder / "remove.d/cbsd_monit").symlink_to("/old/libexec/wake")
    (folder / "clone.d/cbsd_monit").write_text("a copy\n")
    host.quartet("hooks_present")
    assert len(_links(host)) == 7 * 5 + 6


def test_named_skeleton_that_is_missing_is_said(host):
    _owners(host)
    (host.workdir / "share/mine").mkdir()
    done = host.apply("hooks_present", skeletons=["mine", "/nowhere/skel"])
    assert done["result"] is False and "/nowhere/skel does not exist" in done["comment"]
    assert (host.workdir / "share/mine/remove.d/cbsd_monit").is_symlink()


def test_linked_hook_directory_is_no_hook_directory(host):
    _owners(host)
    folder = host.workdir / "jails-system/bare"
    (host.root / "elsewhere").mkdir()
    (folder / "remove.d").symlink_to(host.root / "elsewhere")
    done = host.apply("hooks_present")
    assert done["result"] is False and "remove.d is a symlink" in done["comment"]
    assert list((host.root / "elsewhere").iterdir()) == []
