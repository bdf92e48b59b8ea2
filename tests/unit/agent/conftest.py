"""The agent's modules, imported the way `wake` runs them: from their own directory, standard library only."""

import json
import pathlib
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
AGENT = REPO / "cbsd_monit" / "files" / "agent"
sys.path.insert(0, str(AGENT))


@pytest.fixture
def conf(tmp_path):
    """A node's configuration below tmp_path; its cbsd and jls are scripts that a test may replace."""
    for name in ("bin", "vmm", "work/jails-system", "work/var/db", "lib"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("work/nc.inventory", "work/var/db/local.sqlite", "kernel", "rows"):
        (tmp_path / name).touch()
    for name, body in (("cbsd", f"cat {tmp_path}/rows"), ("jls", f"cat {tmp_path}/kernel")):
        script = tmp_path / "bin" / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    (tmp_path / "monitrc").write_text("set daemon 5\n")
    (tmp_path / "monitrc").chmod(0o600)
    return {
        "schema": 1,
        "node": "hv1",
        "workdir": str(tmp_path / "work"),
        "cbsd": str(tmp_path / "bin/cbsd"),
        "jls": str(tmp_path / "bin/jls"),
        "jexec": str(tmp_path / "bin/jexec"),
        "vmm": str(tmp_path / "vmm"),
        "boot_id": str(tmp_path / "boot_id"),
        "libexec": str(tmp_path / "lib"),
        "state": str(tmp_path / "state"),
        "run": str(tmp_path / "run"),
        "monit": "/usr/bin/monit",
        "monitrc": str(tmp_path / "monitrc"),
        "monit_start": [],
        "include": "publish",
        "poll": 5,
        "head": "set daemon 5\n",
    }


@pytest.fixture
def node(tmp_path, conf):
    from node import Node

    (tmp_path / "boot_id").write_text("boot-1\n")
    path = tmp_path / "conf.json"
    path.write_text(json.dumps(conf))
    return Node(str(path))


class World:
    """What the fake CBSD and kernel say: rows of the inventory and running names."""

    def __init__(self, tmp_path, node):
        self.tmp_path, self.node = tmp_path, node
        self.rows, self.up = {}, set()

    def env(self, name, up=True, template=None, policy=None, **row):
        import cbsd

        full = dict.fromkeys(cbsd.COLUMNS, "")
        full.update(
            jname=name, jid="0", status="0", emulator="jail", ip4_addr="127.0.0.1/8", astart="1"
        )
        full.update(row)
        self.rows[name] = full
        (self.up.add if up else self.up.discard)(name)
        monit = self.tmp_path / "work/jails-system" / name / "monit"
        monit.mkdir(parents=True, exist_ok=True)
        hook = monit.parent / "master_prestop.d/cbsd_monit"
        if not hook.is_symlink():
            hook.parent.mkdir()
            hook.symlink_to(self.node.wake)
        text = (
            'check host "%%ENV%%.tcp" with address "%%ADDRESS%%"\n  if failed port 1 then alert\n'
        )
        (monit / "monitrc.tpl").write_text(text if template is None else template)
        if policy is not None:
            (monit / "policy.json").write_text(json.dumps({"schema": 1, "env": name, **policy}))
        self.write()
        return monit

    def write(self):
        import cbsd

        lines = ["|".join(row[c] for c in cbsd.COLUMNS) for row in self.rows.values()]
        (self.tmp_path / "rows").write_text("".join(line + "\n" for line in lines))
        (self.tmp_path / "kernel").write_text("".join(n + "\n" for n in sorted(self.up)))

    def kill(self, name):
        self.up.discard(name)
        self.write()

    def forget(self, name):
        self.rows.pop(name)
        self.kill(name)


@pytest.fixture
def world(tmp_path, node):
    return World(tmp_path, node)


@pytest.fixture
def wake(tmp_path, conf):
    """The rendered `wake` whose Python is a stub that writes down how it was called."""
    called = tmp_path / "called"
    python = tmp_path / "bin/python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {called}\nenv > {tmp_path}/agent-env\n')
    python.chmod(0o755)
    text = (AGENT.parent / "wake.jinja").read_text()
    for name, value in (
        ("python", python),
        ("libexec", conf["libexec"]),
        ("config", tmp_path / "conf.json"),
        ("state", conf["state"]),
        ("run", conf["run"]),
    ):
        text = text.replace("{{ " + name + " }}", str(value))
    path = tmp_path / "lib/wake"
    path.write_text(text)
    path.chmod(0o755)
    return path
