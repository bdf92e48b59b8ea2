"""The agent's modules, imported from their directory as `wake` does; a node made of scripts."""

import json
import pathlib
import sys
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
AGENT = REPO / "cbsd_monit" / "files" / "agent"
sys.path.insert(0, str(AGENT))


GOOD = "if exist then alert"


def facts(node, env="lb1", **row):
    import text

    return text.facts_of(node, env, {"jname": env, "ip4_addr": "10.0.0.1/24", **row}, {})


def one(node, env, lines, rank=()):
    """An EnvText with one service ``ENV.a`` that says ``lines``."""
    import text

    template = f'check file "%%ENV%%.a" with path "%%DEAD%%"\n  {lines}\n'
    return text.make(node, env, template, facts(node, env), True, rank=rank)


def hook_record(kind, env="lb1", ancestors=(), **environ):
    """The bytes that `wake` writes for a hook."""
    head = "\n".join([f"1 {kind} {env}", *ancestors])
    variables = {"jname": env, "emulator": "jail", **environ}
    return f"{head}\n\n{''.join(f'{k}={v}' + chr(0) for k, v in variables.items())}".encode()


def deliver(node, number, kind, env="lb1", **environ):
    """Put a hook record into the inbox; returns its path."""
    path = node.in_state("inbox", f"{1000000000 + number}.1:{kind}:{env}")
    with open(path, "wb") as handle:
        handle.write(hook_record(kind, env, **environ))
    return path


def tree(*tops, files_only=False):
    """{path: (modified, content)} of all that is below ``tops``."""
    found = {}
    for path in (path for top in tops for path in pathlib.Path(top).rglob("*")):
        data = path.read_bytes() if path.is_file() else None
        if data is not None or not files_only:
            found[str(path)] = path.lstat().st_mtime_ns, data
    return found


@pytest.fixture
def conf(tmp_path):
    """A node's configuration below tmp_path; its cbsd and jls are scripts to be replaced."""
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


class Daemon:
    """A monit that reads what is published, refuses a text with `bad`, and ends by `fatal`."""

    extra_timeout, socket = 0.0, "m.sock"

    def __init__(self, node):
        self.node, self.services, self.asked = node, None, []
        self.silent = self.idle = self.deaf = False
        self.after_test = lambda: None

    def read(self):
        import generations
        import language

        text = generations.published(self.node)
        self.services = None if "fatal" in text else language.service_names(text)
        self.began = time.time()

    def test(self, path):
        stage = [line.split()[1] for line in open(path) if line.startswith("include")][-1]
        self.after_test()
        return f"{stage}:9: syntax error" if "bad" in open(stage).read() else ""

    def reload(self, tested=False):
        self.asked.append(("reload", tested))
        self.deaf or self.read()

    def start(self):
        self.asked.append("start")
        if self.deaf:
            from node import AgentError

            raise AgentError("monit does not start")
        self.silent = False
        self.read()

    def act(self, services, action):
        self.asked += [(action, service) for service in services]

    def hurry(self, version):
        self.asked.append("hurry")

    def pid(self):
        return None if self.services is None else 77

    def status(self, timeout=5):
        if self.services is None or self.silent:
            return None
        import monit

        numbers = f"<monitor>{0 if self.idle else 1}</monitor><collected_sec>{self.began + 1:.0f}"
        ends = f"{numbers}</collected_sec></service>"
        rows = "".join(f"<service><name>{name}</name>{ends}" for name in self.services)
        return monit.Status(f"<monit><server/>{rows}</monit>")

    def wait(self, services, seconds):
        return self.status()


@pytest.fixture
def daemon(node, monkeypatch):
    import reload

    monkeypatch.setattr(reload, "VERIFY", 0.3)
    found = Daemon(node)
    found.read()
    return found


def rule(word="alert"):
    host = 'check host "%%ENV%%.tcp" with address "%%ADDRESS%%"'
    return f"{host}\n  if failed port 1 then alert # {word}\n"


def published(daemon, **how):
    import publish
    import survey

    seen = survey.take(daemon.node)
    daemon.asked.clear()
    return publish.publish(daemon.node, daemon, seen, seen.envs, **how)
