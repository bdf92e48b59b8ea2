"""Many envs on one node: a second run changes nothing, and no process is started per env."""

import contextlib
import json
import pathlib
import sqlite3
import sys

import pytest
from node_on_salt import FULL

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests"))

from bench.nodes import idle  # noqa: E402
from bench.scale import no_agent  # noqa: E402
from sim import inventory, jails  # noqa: E402

SETTINGS = {
    "monit": {"poll": "2s"},
    "defaults": {"interval": "2s", "timeout": "1s", "start_period": "10s"},
    "groups": {
        "all": {
            "match": "e*",
            "checks": {"app": {"type": "tcp", "port": 8080}, "alive": {"type": "running"}},
        }
    },
}


@pytest.fixture(scope="module")
def node(salt_node):
    return salt_node("hv50")


def reloads(node):
    return (node.root / "log/monit.log").read_text().count("Reinitializing")


def add(node, first, last):
    for i in range(first, last):
        done = node.sim.cbsd(
            "jcreate",
            f"jname=e{i}",
            f"ip4_addr=127.78.0.{i + 1}",
            "pkglist=tcpd",
            "sysrc=tcpd_port=8080",
            "inter=0",
        )
        assert done.returncode == 0, done.stdout


def commands_of(node, action):
    with no_agent(node):
        before = len(node.commands(nested=False))
        found = action()
        return node.commands(nested=False)[before:], found


def test_processes_do_not_grow_and_the_second_run_changes_nothing(node):
    counts, told = {}, {}
    node.pillar(SETTINGS)
    for total, new in ((5, (0, 5)), (50, (5, 50))):
        add(node, *new)
        first, results = commands_of(node, node.apply)
        assert all(r["result"] for r in results), node.summary(results)
        log = reloads(node)
        second, results = commands_of(node, node.apply)
        assert [r["__id__"] for r in results if r["changes"]] == []
        assert reloads(node) == log
        listing, found = commands_of(node, lambda: node.salt("cbsd.list"))
        assert len(found) == total
        counts[total] = (len(first), len(second), len(listing))
        told[total] = [" ".join(argv)[:50] for argv in first]
    assert counts[5] == counts[50], told
    answer = json.loads(node.agent("sync", "--json"))
    assert answer["services"] == 150 and answer["changed"] == [] and not answer["reloaded"]


# Made straight in the simulator's records: they are down, and nothing heals them.

FEW, MANY = (100, 1000) if FULL else (30, 300)


@pytest.fixture(scope="module")
def large(salt_node):
    return salt_node("hv1000")


def names_of(first, last):
    return [f"e{i:05d}" for i in range(first, last)]


def add_many(node, first, last):
    """Make envs ``first`` to before ``last`` as jcreate does, at once; returns their names."""
    names, rows = names_of(first, last), []
    for name in names:
        row = {"jname": name, "host_hostname": f"{name}.my.domain", **jails.DEFAULTS}
        row.update(
            jails.paths_of(node.sim.layout, name),
            **jails.NATIVE,
            ip4_addr="127.77.26.1/8",
            astart="0",
        )
        rows.append({key: value for key, value in row.items() if key in inventory.COLUMNS})
        for hook in jails.HOOK_DIRS:
            pathlib.Path(node.sim.layout.system(name), hook).mkdir(parents=True)
    columns = list(rows[0])
    with contextlib.closing(sqlite3.connect(node.sim.inventory.file)) as base, base:
        marks = ",".join("?" * len(columns))
        base.executemany(
            f"INSERT INTO jails ({','.join(columns)}) VALUES ({marks})",
            [[r[c] for c in columns] for r in rows],
        )
    return names


def written(node):
    """{path: (inode, change time)} of all that a run could write, but for monit's and /var/run."""
    found = {}
    work = pathlib.Path(node.sim.workdir)  # what lies beside is CBSD's own, written by its commands
    tops = (
        work / "jails-system",
        work / "share",
        node.state_dir,
        node.root / "etc",
        node.wake.parent,
    )
    for top in (*tops, node.root / "usr/local/etc"):
        for path in pathlib.Path(top).rglob("*"):
            info = path.lstat()
            if path.suffix not in (".pyc", ".sock") and path.name not in (
                "__pycache__",
                "agent.log",
            ):
                found[str(path)] = (info.st_ino, info.st_ctime_ns)
    return found


CHECKS = {
    "http": {"type": "http", "port": 80},
    "ssh": {"type": "tcp", "port": 22},
    "alive": {"type": "running"},
}
LARGE = {
    "monit": {"poll": "30s"},
    "defaults": {"interval": "1h", "timeout": "1s"},
    "groups": {"all": {"match": "e*", "checks": CHECKS}},
}


def test_hundreds_of_envs_in_one_pass_and_one_bad_among_them(large):
    node, counts, told = large, {}, {}
    node.pillar(LARGE)
    for total, new in ((FEW, (0, FEW)), (MANY, (FEW, MANY))):
        names = add_many(node, *new)
        first, results = commands_of(node, node.apply)
        assert all(r["result"] for r in results), node.summary(results)[:3000]
        idle(node)
        log, before = reloads(node), written(node)
        second, results = commands_of(node, node.apply)
        assert [r["__id__"] for r in results if r["changes"]] == []
        assert written(node) == before and reloads(node) == log
        counts[total] = (len(first), len(second))
        told[total] = [" ".join(argv)[:50] for argv in first]
    assert counts[FEW] == counts[MANY], told

    bad = names[len(names) // 2]
    node.pillar({**LARGE, "envs": {bad: {"raw": "if faild port 1 then alert\n"}}})
    results = node.apply()
    wrong = [r for r in results if r["result"] is False]
    assert all(bad in r["comment"] for r in wrong) and "syntax error 'faild'" in wrong[0]["comment"]
    published = (node.state_dir / "published").read_text()
    assert published.count("# --- cbsd_monit e") == MANY and "faild" not in published
    assert f'"{bad}.env"' in published, "it keeps what monit took last"
    answer = json.loads(node.agent("sync", "--json"))
    assert (
        answer["services"] == MANY * 4
        and list(answer["quarantined"]) == [bad]
        and not answer["reloaded"]
    )

    # Drift, in all ways at once: each is found by what was recorded, and nothing else is touched.
    system = pathlib.Path(node.sim.workdir) / "jails-system"
    edited, unhooked, alien = (
        system / names[1] / "monit/monitrc.tpl",
        system / names[2] / "remove.d/cbsd_monit",
        system / names[3],
    )
    edited.write_text("check file x with path /x\n")
    unhooked.unlink()
    (alien / "remove.d/mine").write_text("#!/bin/sh\n")
    (node.state_dir / "published").resolve().write_text("# by hand\n")
    node.pillar(
        {**LARGE, "groups": {"all": {"match": ["e000*", "e0010*", "e0011*"], "checks": CHECKS}}}
    )
    named = [n for n in names_of(0, MANY) if n.startswith(("e000", "e0010", "e0011"))]
    results = node.apply()
    assert all(r["result"] for r in results), node.summary(results)[:3000]
    published = (node.state_dir / "published").read_text()
    assert published.count("# --- cbsd_monit e") == len(named) and "by hand" not in published
    assert "%%ENV%%.http" in edited.read_text() or names[1] not in named
    assert unhooked.is_symlink() and (alien / "remove.d/mine").read_text() == "#!/bin/sh\n"
    left = [n for n in names_of(0, MANY) if (system / n / "monit/monitrc.tpl").exists()]
    assert left == named
