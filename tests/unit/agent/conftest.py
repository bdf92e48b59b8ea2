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


def cases(names, *rows):
    """Run a test once for each row of ``names``."""
    return pytest.mark.parametrize(names, rows)


def script(path, body):
    """Make ``path`` a program of the shell that does ``body``."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def rule(word="alert"):
    """A template of one check; the fake monit refuses the word `bad` and ends by `fatal`."""
    host = 'check host "%%ENV%%.tcp" with address "%%ADDRESS%%"'
    return f"{host}\n  if failed port 1 then alert # {word}\n"


def claim(name, then="alert"):
    """A template whose one service is called ``name``."""
    return f'check host "{name}" with address "1.1.1.1"\n  if failed port 1 then {then}\n'


def remember(node, env, **values):
    """Change the record of an env."""
    import records

    with records.changing(node, env) as record:
        record.data.update(values)


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
    pathlib.Path(path).write_bytes(hook_record(kind, env, **environ))
    return path


def tree(*tops, files_only=False):
    """{path: (modified, content)} of all that is below ``tops``."""
    found = {}
    for path in (path for top in tops for path in pathlib.Path(top).rglob("*")):
        data = path.read_bytes() if path.is_file() else None
        if data is not None or not files_only:
            found[str(path)] = path.lstat().st_mtime_ns, data
    return found


def configuration(tmp_path):
    """A node's configuration below tmp_path; its cbsd and jls are scripts to be replaced."""
    for name in ("bin", "vmm", "work/jails-system", "work/var/db", "lib"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("work/nc.inventory", "work/var/db/local.sqlite", "kernel", "rows"):
        (tmp_path / name).touch()
    for name, source in (("cbsd", "rows"), ("jls", "kernel")):
        script(tmp_path / "bin" / name, f"cat {tmp_path}/{source}")
    (tmp_path / "monitrc").write_text("set daemon 5\n")
    (tmp_path / "monitrc").chmod(0o600)
    found = {"schema": 1, "node": "hv1", "monit": "/usr/bin/monit", "monit_start": [], "poll": 5}
    found.update(include="publish", head="set daemon 5\n", workdir=str(tmp_path / "work"))
    found.update((name, str(tmp_path / "bin" / name)) for name in ("cbsd", "jls", "jexec"))
    names = ("vmm", "boot_id", "state", "run", "monitrc")
    found.update((name, str(tmp_path / name)) for name in names)
    return {**found, "libexec": str(tmp_path / "lib")}


@pytest.fixture
def conf(tmp_path):
    return configuration(tmp_path)


@pytest.fixture
def node(tmp_path, conf):
    return node_of(tmp_path, conf)


def node_of(tmp_path, conf):
    """The Node whose configuration is ``conf``."""
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
        full.update(jname=name, jid="0", status="0", emulator="jail", ip4_addr="127.0.0.1/8")
        full.update({"astart": "1", **row})
        self.rows[name] = full
        (self.up.add if up else self.up.discard)(name)
        monit = self.tmp_path / "work/jails-system" / name / "monit"
        monit.mkdir(parents=True, exist_ok=True)
        hook = monit.parent / "master_prestop.d/cbsd_monit"
        if not hook.is_symlink():
            hook.parent.mkdir()
            hook.symlink_to(self.node.wake)
        (monit / "monitrc.tpl").write_text(rule() if template is None else template)
        if policy is not None:
            (monit / "policy.json").write_text(json.dumps({"schema": 1, "env": name, **policy}))
        self.write()
        return monit

    def settle(self, *names, **how):
        """Envs that run, as one pass has seen them; returns the `monit` folder of the last."""
        import passes

        folders = [self.env(name, **how) for name in names]
        passes.run(self.node)
        return folders[-1]

    def write(self):
        import cbsd

        lines = ["|".join(row[c] for c in cbsd.COLUMNS) for row in self.rows.values()]
        (self.tmp_path / "rows").write_text("".join(line + "\n" for line in lines))
        (self.tmp_path / "kernel").write_text("".join(n + "\n" for n in sorted(self.up)))

    def kill(self, *names):
        self.up.difference_update(names)
        self.write()

    def start(self, name):
        self.up.add(name)
        self.write()

    def change(self, name, **row):
        self.rows[name].update(row)
        self.write()

    def rename(self, old, new):
        """As CBSD does first; the directory keeps its name."""
        self.rows[new] = {**self.rows.pop(old), "jname": new}
        self.up.remove(old)
        self.start(new)

    def forget(self, name):
        self.rows.pop(name)
        self.kill(name)


@pytest.fixture
def no_monit(monkeypatch):
    monkeypatch.setattr("monit.Monit.status", lambda *_, **__: None)


@pytest.fixture
def world(tmp_path, node):
    return World(tmp_path, node)


@pytest.fixture
def wake(tmp_path, conf):
    """The rendered `wake` whose Python is a stub that writes down how it was called."""
    called = tmp_path / "called"
    python = tmp_path / "bin/python"
    script(python, f'echo "$@" >> {called}\nenv > {tmp_path}/agent-env')
    text = (AGENT.parent / "wake.jinja").read_text()
    values = {"python": python, "config": tmp_path / "conf.json", **conf}
    for name in ("python", "libexec", "config", "state", "run"):
        text = text.replace("{{ " + name + " }}", str(values[name]))
    path = tmp_path / "lib/wake"
    path.write_text(text)
    path.chmod(0o755)
    return path


class Daemon:
    """A monit that reads what is published, refuses a text with `bad`, and ends by `fatal`."""

    extra_timeout, socket, bad, trials = 0.0, "m.sock", "bad", 0

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
        self.trials += 1
        self.after_test()
        bad = [number for number, line in enumerate(open(stage), 1) if self.bad in line]
        return f"{stage}:{bad[0]}: syntax error 'x'" if bad else ""

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


def published(daemon, **how):
    import publish
    import survey

    seen = survey.take(daemon.node)
    daemon.asked.clear()
    return publish.publish(daemon.node, daemon, seen, seen.envs, **how)
