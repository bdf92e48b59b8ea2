"""The states of `cbsd_monit` on directories of a test, with stand-ins for CBSD, monit and the agent: what they write, what they
keep of others', what they put back, and that test mode says exactly that."""

import hashlib
import json
import os
import pathlib
import socket
import stat
import subprocess
import threading
import time

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from tests.unit.loaded import load, modules, public

NODE = "hv1"
HOOKS = "master_prestart.d master_poststart.d master_prestop.d master_poststop.d master_create.d remove.d".split()


class Host:
    """One node's directories, and the states as Salt would load them."""

    def __init__(self, root):
        self.root = root
        self.workdir, self.state, self.run = root / "jails", root / "state", root / "run"
        self.monitrc = root / "etc/monitrc"
        for folder in (
            self.workdir / "jails-system",
            self.workdir / "share",
            root / "etc",
            root / "libexec",
            self.run,
        ):
            folder.mkdir(parents=True)
        self.lookup = {
            "workdir": str(self.workdir),
            "state": str(self.state),
            "run": str(self.run),
            "libexec": str(root / "libexec"),
            "config": str(root / "etc/cbsd_monit.json"),
            "monitrc": str(self.monitrc),
            "monit": str(root / "monit"),
            "monit_start": [str(root / "monit-start")],
        }
        self.envs = {}
        self.rendered = {}
        self.head = "set daemon 10\n"
        self.warnings = []
        self.answer = {
            "changed": [],
            "published": 1,
            "reloaded": False,
            "quarantined": {},
            "errors": {},
            "services": 0,
        }
        self.ran = []
        self.overlay = None
        self.monit_says = ""
        self.services = []
        self.opts = {"test": False, "id": NODE}
        self.program("libexec/wake")
        (root / "etc/cbsd_monit.json").write_text(
            "{}"
        )  # an agent that ran before; without it nothing can be foretold
        self.program("monit")
        names = ("cbsd_monit_schema", "cbsd_monit_file", "cbsd_monit_node")
        self.salt = modules(*names, opts=self.opts)
        self.salt.update(
            {
                "cbsd.list": lambda: self.envs,
                "cbsd_monit.render": self._render,
                "cmd.run_all": self._run,
                "cp.get_file_str": lambda url: "the template",
            }
        )
        self.states = {}
        for name in ("cbsd_monit", "cbsd_monit_monitrc", "cbsd_monit_hooks"):
            module = load(f"_states/{name}.py", salt=self.salt, opts=self.opts)
            assert module.__virtual__() == "cbsd_monit"
            self.states.update(public(module))

    def program(self, name):
        (self.root / name).touch(mode=0o755)

    def _render(self, pillar, node, envs, monit_version, lookup):
        assert node == NODE and monit_version == "5.33.0"
        names = {e["name"] for e in envs}
        files = {
            env: {
                "monitrc.tpl": f"check host {env}\n{text}\n",
                "policy.json": {"schema": 1, "env": env, "node": node, "origin": "pillar"},
            }
            for env, text in pillar["envs"].items()
            if env in names
        }
        config = {"schema": 1, "node": node, "head": self.head}
        return {"config": config, "envs": files, "warnings": self.warnings}

    def _run(self, argv, **kwargs):
        assert kwargs["python_shell"] is False
        self.ran.append([os.path.basename(argv[0]), *argv[1:]])
        answer = {"retcode": 0, "stdout": "", "stderr": ""}
        if argv[1:] == ["-V"]:
            answer["stdout"] = "This is Monit version 5.33.0\n"
        elif argv[1:2] == ["-t"]:
            assert stat.S_IMODE(os.stat(argv[3]).st_mode) == 0o600
            answer.update(
                retcode=1 if self.monit_says else 0, stderr=self.monit_says.format(argv[3])
            )
        elif argv[0].endswith("/wake"):
            if "--overlay" in argv:
                assert stat.S_IMODE(os.stat(argv[-1]).st_mode) == 0o600
                self.overlay = json.loads(pathlib.Path(argv[-1]).read_text())
            answer["stdout"] = json.dumps(self.answer)
        elif argv[0].endswith("/monit-start"):
            self.listen()
        elif argv[-1] == "reload":
            self.services.append("lb1.http")
        return answer

    def listen(self):
        """A monit that answers on its socket."""
        server = socket.socket(socket.AF_UNIX)
        self.state.mkdir(exist_ok=True)
        server.bind(str(self.state / "monit.sock"))
        server.listen()

        def answer():
            while True:
                line, _ = server.accept()
                with line:
                    line.recv(100)
                    names = "".join(
                        f"<service><name>{name}</name></service>" for name in self.services
                    )
                    line.sendall(f"HTTP/1.0 200 OK\r\n\r\n<monit>{names}</monit>".encode())

        threading.Thread(target=answer, daemon=True).start()

    def add(self, env, emulator="jail", hooks=()):
        self.envs[env] = {"emulator": emulator, "status": "on"}
        folder = self.workdir / "jails-system" / env
        folder.mkdir()
        for hook in hooks:
            (folder / hook).mkdir()
        return folder / "monit"

    def tree(self):
        """Everything below the root with mode, owner, target or content; mtimes as well, to see a needless write."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            info = path.lstat()
            what = (
                os.readlink(path)
                if path.is_symlink()
                else path.read_bytes()
                if path.is_file()
                else None
            )
            key = str(path.relative_to(self.root))
            found[key] = (
                info.st_mode,
                info.st_uid,
                what,
                info.st_mtime_ns if path.is_file() else 0,
            )
        return found

    def content(self):
        return {k: v[:3] for k, v in self.tree().items() if not k.endswith("monit.sock")}

    def apply(self, state, test=False, **kwargs):
        self.opts["test"] = test
        kwargs.setdefault("name", "the node")
        if state in ("checks_present", "include_present"):
            kwargs.setdefault("spec", {"pillar": {"envs": self.rendered}, "lookup": self.lookup})
        else:
            kwargs.setdefault("spec", {"lookup": self.lookup})
        ret = self.states[state](**kwargs)
        assert set(ret) >= {"name", "result", "changes", "comment"}, ret
        assert ret["comment"].rstrip("\n").endswith((".", "]", ")")) or ret["result"] is False, ret
        return ret

    def quartet(self, state, **kwargs):
        """test=True, apply, apply, test=True; returns what the first apply said."""
        before = self.tree()
        said = self.apply(state, test=True, **kwargs)
        assert said["result"] is None and said["changes"], said
        assert self.tree() == before, "test mode wrote something"
        done = self.apply(state, **kwargs)
        assert done["result"] is True, done
        assert done["changes"] == said["changes"]
        assert [s["changes"] for s in done.get("sub_state_run", ())] == [
            s["changes"] for s in said.get("sub_state_run", ())
        ]
        after = self.tree()
        for test in (False, True):
            again = self.apply(state, test=test, **kwargs)
            assert (again["result"], again["changes"]) == (True, {}), again
            assert "sub_state_run" not in again
            assert self.tree() == after, "a run without changes wrote something"
        return done


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


# The checks


def test_checks_of_all_envs_are_written_in_one_pass(host):
    folders = [host.add(f"web{n}") for n in range(5)]
    host.rendered = {f"web{n}": f"  rule {n}" for n in range(4)}
    done = host.quartet("checks_present")
    assert (folders[0] / "monitrc.tpl").read_text() == "check host web0\n  rule 0\n"
    assert json.loads((folders[0] / "policy.json").read_text())["env"] == "web0"
    assert not folders[4].exists()
    assert stat.S_IMODE(folders[0].stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders[0].iterdir()} == {0o600}
    assert list(done["changes"]["envs"]) == ["web0", "web1", "web2", "web3"]
    assert done["sub_state_run"][0]["changes"]["monitrc.tpl"] == {"diff": "New file"}
    assert set(done["sub_state_run"][0]) == {
        "name",
        "changes",
        "result",
        "comment",
        "duration",
        "start_time",
        "low",
    }
    assert [argv[:3] for argv in host.ran if argv[0] == "wake"].count(
        ["wake", "sync", "--json"]
    ) == 4  # one a run
    assert len(host.ran) == 6  # and monit -V, until a run has written down which monit that was


def test_only_what_changed_is_written_and_reported(host):
    folders = {env: host.add(env) for env in ("web1", "web2")}
    host.rendered = {"web1": "  a", "web2": "  b"}
    host.apply("checks_present")
    before = folders["web1"].joinpath("monitrc.tpl").stat().st_mtime_ns
    host.rendered["web2"] = "  c"
    done = host.quartet("checks_present")
    assert list(done["changes"]["envs"]) == ["web2"]
    assert folders["web1"].joinpath("monitrc.tpl").stat().st_mtime_ns == before


def test_agents_configuration_has_the_paths_of_the_node(host):
    host.apply("checks_present")
    config = host.root / "etc/cbsd_monit.json"
    said = json.loads(config.read_text())
    assert said["schema"] == 1 and said["head"] == host.head
    assert (
        said["workdir"] == str(host.workdir) and said["monit_start"] == host.lookup["monit_start"]
    )
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_the_dry_run_knows_what_would_be_there(host):
    for env in ("new", "gone", "same"):
        host.add(env)
    host.rendered = {"gone": "  x", "same": "  y"}
    host.apply("checks_present")
    host.rendered = {"new": "  z", "same": "  y"}
    host.head = "set daemon 20\n"
    host.apply("checks_present", test=True)
    assert set(host.overlay) == {"new", "gone", ""}
    assert host.overlay["gone"] is None
    assert host.overlay["new"]["monitrc.tpl"] == "check host new\n  z\n"
    assert host.overlay["new"]["policy.json"]["origin"] == "pillar"
    assert host.overlay[""]["config"]["head"] == host.head


def test_without_an_agent_test_mode_says_that_it_would_publish(host):
    host.add("web1")
    host.rendered = {"web1": "  a"}
    (host.root / "libexec/wake").unlink()
    (host.root / "etc/cbsd_monit.json").unlink()
    said = host.apply("checks_present", test=True)
    assert said["result"] is None and said["changes"]["monit"] == "would be published and reloaded"
    done = host.apply("checks_present")
    assert done["result"] is False and "apply cbsd_monit.agent first" in done["comment"]


def test_what_pillar_no_longer_names_goes_and_history_stays(host):
    folder = host.add("web1")
    host.rendered = {"web1": "  a"}
    host.apply("checks_present")
    (folder / "history.jsonl").write_text("{}\n")
    host.rendered = {}
    host.quartet("checks_present")
    assert [p.name for p in folder.iterdir()] == ["history.jsonl"]


def test_template_of_the_operator_is_kept_and_comes_back(host):
    folder = host.add("web1")
    folder.mkdir(0o755)
    (folder / "monitrc.tpl").write_text("by hand\n")
    (folder / "policy.json").write_text('{"origin": "local"}')
    (folder / "monitrc.tpl").chmod(0o644)
    before = host.content()
    adopted = host.apply("checks_present")
    assert (
        "as their operator wrote them: web1" in adopted["comment"]
        and "envs" not in adopted["changes"]
    )
    host.rendered = {"web1": "  a"}
    done = host.quartet("checks_present")
    assert "kept as monitrc.tpl.local" in done["changes"]["envs"]["web1"]
    assert (folder / "monitrc.tpl.local").read_text() == "by hand\n"
    host.rendered = {}
    done = host.quartet("checks_present")
    assert "put back" in done["changes"]["envs"]["web1"]
    after = host.content()
    assert {k: v for k, v in after.items() if "jails" in k} == {
        k: v for k, v in before.items() if "jails" in k
    }


@pytest.mark.parametrize("steps", range(1, 8))
@pytest.mark.parametrize("way", ["place", "take back"])
def test_template_of_the_operator_survives_a_crash_at_any_step(host, monkeypatch, steps, way):
    folder = host.add("web1")
    folder.mkdir(0o700)
    (folder / "monitrc.tpl").write_text("by hand\n")
    (folder / "policy.json").write_text('{"origin": "local"}')
    if way == "take back":
        host.rendered = {"web1": "  a"}
        host.apply("checks_present")
    host.rendered = {"web1": "  a"} if way == "place" else {}
    left = [steps]

    class Crash(BaseException):
        pass

    def guarded(function):
        def call(*args, **kwargs):
            if kwargs.get("dir_fd", kwargs.get("src_dir_fd")) is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Crash
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "replace"):
            patch.setattr(os, name, guarded(getattr(os, name)))
        try:
            host.apply("checks_present")
        except Crash:
            pass
    assert host.apply("checks_present")["result"] is True
    host.rendered = {}
    host.apply("checks_present")
    assert (folder / "monitrc.tpl").read_text() == "by hand\n"
    assert (folder / "policy.json").read_text() == '{"origin": "local"}'
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == [
        "monitrc.tpl",
        "policy.json",
    ]


def test_copied_directory_is_neither_removed_nor_taken_for_the_operators(host):
    host.add("web1")
    host.rendered = {"web1": "  a"}
    host.apply("checks_present")
    copy = host.add("web2")
    subprocess.run(
        ["cp", "-a", str(host.workdir / "jails-system/web1/monit"), str(copy)], check=True
    )
    done = host.apply("checks_present")
    assert done["changes"] == {} and "web2" in done["comment"]
    host.rendered["web2"] = "  b"
    host.quartet("checks_present")
    assert not (copy / "monitrc.tpl.local").exists()


def test_planted_symlinks_are_not_followed(host, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("mine\n")
    web1, web2, web3 = host.add("web1"), host.add("web2"), host.add("web3")
    web1.symlink_to(outside)
    web2.mkdir()
    (web2 / "monitrc.tpl").symlink_to(outside / "victim")
    os.mkfifo(web2 / "policy.json")
    host.rendered = {"web1": "  a", "web2": "  b", "web3": "  c"}
    done = host.apply("checks_present")
    assert (
        done["result"] is False
        and "web1: " in done["comment"]
        and "symlink is not followed" in done["comment"]
    )
    assert sorted(p.name for p in outside.iterdir()) == ["victim"]
    assert (outside / "victim").read_text() == "mine\n"
    for folder in (web2, web3):
        assert (folder / "monitrc.tpl").is_file() and not (folder / "monitrc.tpl").is_symlink()
    assert {s["name"]: s["result"] for s in done["sub_state_run"]} == {
        "web1": False,
        "web2": True,
        "web3": True,
    }


def test_directory_of_a_vm_may_be_a_symlink(host):
    real = host.workdir / "vm/vm1"
    real.mkdir(parents=True)
    (host.workdir / "jails-system/vm1").symlink_to(real)
    host.envs["vm1"] = {"emulator": "bhyve", "status": "off"}
    host.rendered = {"vm1": "  a"}
    host.quartet("checks_present")
    assert (real / "monit/monitrc.tpl").exists()


def test_quarantine_and_errors_fail_the_state_with_their_reasons(host):
    host.add("web1"), host.add("web2")
    host.rendered = {"web1": "  a", "web2": "  b"}
    host.answer.update(
        changed=["web2"], reloaded=True, quarantined={"web1": "syntax error 'faild'"}
    )
    done = host.apply("checks_present")
    assert done["result"] is False
    assert "web1: quarantined, monit says: syntax error 'faild'" in done["comment"]
    assert done["changes"]["monit"] == {"published": ["web2"]}
    assert {s["name"]: s["result"] for s in done["sub_state_run"]} == {"web1": False, "web2": True}


def test_an_env_that_the_agent_does_not_see_is_not_live(host):
    for env in ("web1", "web2"):
        host.add(env)
        host.rendered[env] = "  a"
    host.answer["envs"] = {"web2": "healthy"}
    done = host.apply("checks_present")
    assert (
        done["result"] is False
        and "web1: the agent does not see it in CBSD's inventory" in done["comment"]
    )
    assert {s["name"]: s["result"] for s in done["sub_state_run"]} == {"web1": False, "web2": True}


def test_commands_of_the_operators_own_are_reported(host):
    host.answer["foreign"] = {"web1": ["/usr/local/bin/page-me"]}
    done = host.apply("checks_present")
    assert "Commands of their own that monit runs: web1: /usr/local/bin/page-me" in done["comment"]


@pytest.mark.parametrize(
    "error, bug",
    [
        (SaltInvocationError("envs.lb1: unknown key 'chekcs'"), False),
        (CommandExecutionError("no CBSD"), False),
        (OSError("no"), False),
        (KeyError("x"), True),
        (ValueError("x"), True),
    ],
)
def test_a_state_reports_and_never_raises_and_calls_a_bug_a_bug(host, error, bug, caplog):
    def fail(*_args, **_kwargs):
        raise error

    host.opts["log_file"] = "/var/log/salt/minion"

    def check(state):
        caplog.clear()
        done = host.apply(state)
        assert done["result"] is False and str(error) in done["comment"], done
        traced = [r for r in caplog.records if r.levelname == "ERROR" and r.exc_info]
        assert ("A bug in cbsd_monit, not in your pillar" in done["comment"]) is bug
        assert ("its traceback, which is in /var/log/salt/minion" in done["comment"]) is bug
        assert bool(traced) is bug and all(r.exc_info[1] is error for r in traced)

    for function in ("cbsd_monit.render", "cbsd.list", "cbsd_monit_node.paths"):
        host.salt[function] = fail
        before = host.tree()
        check("checks_present")
        assert host.tree() == before
    for state in (
        "checks_absent",
        "include_present",
        "include_absent",
        "hooks_present",
        "hooks_absent",
        "running",
    ):
        check(state)


def test_agent_that_answers_rubbish_is_quoted(host):
    (host.root / "monit").unlink()
    host.salt["cbsd_monit.render"] = lambda *_, monit_version, **__: {
        "config": {},
        "envs": {},
        "warnings": [],
    }
    host.salt["cmd.run_all"] = lambda argv, **_: {
        "retcode": 1,
        "stdout": "",
        "stderr": "cbsd_monit: no Python",
    }
    done = host.apply("checks_present")
    assert done["result"] is False and "no Python" in done["comment"]


def test_clean_takes_everything_and_no_more(host):
    host.state.mkdir(0o700)
    pillars, own, bare = host.add("web1"), host.add("web2"), host.add("web3")
    own.mkdir(0o755)
    (own / "monitrc.tpl").write_text("by hand\n")
    before = host.content()
    host.rendered = {"web1": "  a", "web2": "  b"}
    host.apply("checks_present")
    (host.state / "envs").mkdir()
    for env, folder in (("web1", pillars), ("web2", own)):
        (folder / "monitrc").write_text("rendered\n")
        (folder / "history.jsonl").write_text("{}\n")
        (host.state / "envs" / f"{env}.json").write_text("{}")
    host.quartet("checks_absent")
    assert not bare.exists()
    after = host.content()
    made = {"state/envs", "state/envs/web1.json", "state/envs/web2.json"}
    assert set(after) - set(before) == made
    for tree in (before, after):
        del tree["etc/cbsd_monit.json"]  # file.absent's business
    assert {k: v for k, v in after.items() if k not in made} == before


def test_thousand_envs_cost_as_many_processes_as_one(host):
    for n in range(1000):
        host.add(f"e{n}")
    host.rendered = {f"e{n}": "  a" for n in range(1000)}
    host.apply("checks_present")
    host.ran.clear()
    assert host.apply("checks_present")["changes"] == {}
    assert [argv[0] for argv in host.ran] == ["wake"]


def rendered_again(host, action=lambda: None):
    """Whether the state renders anew after ``action``, and what it changes then."""
    calls, render = [], host.salt["cbsd_monit.render"]

    def counted(*args, **kwargs):
        calls.append(args)
        return render(*args, **kwargs)

    counted.__code__ = counted.__code__.replace(co_filename=render.__code__.co_filename)
    host.salt["cbsd_monit.render"] = counted
    try:
        action()
        changes = host.apply("checks_present")["changes"]
    finally:
        host.salt["cbsd_monit.render"] = render
    return bool(calls), changes


def test_what_the_same_inputs_rendered_is_believed_only_if_it_lies_where_it_was_written(host):
    folder = host.add("web1")
    host.rendered = {"web1": "  a"}
    host.apply("checks_present")
    assert rendered_again(host) == (False, {})

    for path, mode, text in (
        (folder / "monitrc.tpl", 0o600, "by hand\n"),
        (folder / "policy.json", 0o600, "{}\n"),
        (host.root / "etc/cbsd_monit.json", 0o600, "{}\n"),
        (host.root / "etc/cbsd_monit.json", 0o644, None),
        (host.state / "trust.json", 0o600, "{}\n"),
        (host.state / "rendered.json", 0o600, "{"),
    ):
        good = path.read_text()
        again, changes = rendered_again(
            host, lambda: (path.write_text(text or good), path.chmod(mode))
        )  # noqa: B023
        assert again and path.read_text() == good and stat.S_IMODE(path.stat().st_mode) == 0o600, (
            path
        )
        assert bool(changes) == (path.name != "rendered.json"), path
        assert rendered_again(host) == (False, {})

    assert (
        rendered_again(host, lambda: folder.chmod(0o755))[0]
        and stat.S_IMODE(folder.stat().st_mode) == 0o700
    )
    assert rendered_again(host, lambda: host.rendered.update(web1="  b"))[1]["envs"] == {
        "web1": "checks are written"
    }
    assert rendered_again(host, lambda: host.add("web2"))[0]  # an env more
    assert rendered_again(
        host, lambda: host.salt.update({"cp.get_file_str": lambda url: "another"})
    )[0]
    assert (
        rendered_again(host, lambda: (host.root / "monit").write_text("a newer one"))[0] is False
    )  # of the same version
    assert rendered_again(host) == (False, {})


def test_agents_last_answer_stands_for_moments_and_only_for_what_it_saw(host):
    host.add("web1")
    host.rendered = {"web1": "  a"}
    host.apply("checks_present")
    (host.state / "inbox").mkdir()
    (host.state / "published").write_text("all of it\n")
    digest = lambda text: hashlib.sha256(text.encode()).hexdigest()  # noqa: E731
    same = lambda path: digest(json.dumps(json.loads(path.read_text()), sort_keys=True))  # noqa: E731
    good = {
        "m": time.monotonic(),
        "config": same(host.root / "etc/cbsd_monit.json"),
        "trust": same(host.state / "trust.json"),
        "published": digest("all of it\n"),
        "answer": {"quarantined": {"web1": "syntax error"}, "warnings": ["a warning"]},
    }

    def asked(**changes):
        (host.run / "passed.json").write_text(json.dumps({**good, **changes}))
        host.ran.clear()
        ret = host.apply("checks_present")
        return bool(host.ran), ret

    ran, ret = asked()
    assert (
        not ran
        and ret["result"] is False
        and "web1: quarantined, monit says: syntax error" in ret["comment"]
    )
    assert "a warning" in ret["comment"]
    assert asked(m=time.monotonic() - 200)[0] and asked(m=time.monotonic() + 50)[0]
    for key in ("config", "trust", "published"):
        assert asked(**{key: digest("other")})[0], key
    (host.state / "published").write_text("by hand\n")
    assert asked()[0]
    (host.state / "published").write_text("all of it\n")
    (host.state / "inbox/7.1:remove.d:web1").touch()
    assert asked()[0]
    (host.state / "inbox/7.1:remove.d:web1").unlink()
    assert not asked()[0]
    host.rendered = {"web1": "  b"}
    assert asked()[0]


# The line in monitrc


OURS = "include {}/published"
SAMPLE = """# sample
set daemon  30              # check each 30 s
set httpd port 2812 and
    use address localhost  # only this host
    allow localhost
    allow admin:monit      # password

    #with ssl {
check system $HOST
    if loadavg (1min) > 4 then alert
"""


@pytest.mark.parametrize("newline", ["\n", ""])
def test_line_is_appended_and_taken_back_exactly(host, newline):
    host.monitrc.write_text("set daemon 30" + newline)
    host.monitrc.chmod(0o600)
    before = host.content()
    host.quartet("include_present", name=str(host.monitrc))
    assert host.monitrc.read_text() == f"set daemon 30\ninclude {host.state}/published\n"
    host.quartet("include_absent", name=str(host.monitrc))
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_upstream_line_is_replaced_and_put_back(host):
    text = (
        "set daemon 30\n  include /usr/jails/jails-system/*/monit/monitrc   # chapter\nset log syslog\n"
        + ('include "/other/jails-system/*/monit/monitrc"\n')
    )
    host.monitrc.write_text(text)
    host.monitrc.chmod(0o640)
    before = host.content()
    host.quartet("include_present", name=str(host.monitrc))
    assert "jails-system" not in host.monitrc.read_text()
    assert host.monitrc.read_text().splitlines()[1] == f"include {host.state}/published"
    assert stat.S_IMODE(host.monitrc.stat().st_mode) == 0o600
    host.quartet("include_absent", name=str(host.monitrc))
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_edits_of_the_operator_survive(host):
    host.monitrc.write_text("include /usr/jails/jails-system/*/monit/monitrc\nset daemon 30\n")
    host.apply("include_present", name=str(host.monitrc))
    host.monitrc.write_text("# mine\n" + host.monitrc.read_text() + "set log syslog\n")
    assert host.apply("include_present", name=str(host.monitrc))["changes"] == {}
    host.apply("include_absent", name=str(host.monitrc))
    assert host.monitrc.read_text() == (
        "# mine\ninclude /usr/jails/jails-system/*/monit/monitrc\nset daemon 30\nset log syslog\n"
    )


def test_missing_file_is_made_without_the_samples_password_and_goes_again(host):
    (host.root / "sample").write_text(SAMPLE)
    host.lookup["monitrc_sample"] = str(host.root / "sample")
    before = host.content()
    host.quartet("include_present", name=str(host.monitrc))
    lines = host.monitrc.read_text().splitlines()
    assert (
        "#     allow admin:monit      # password" in lines and "# set httpd port 2812 and" in lines
    )
    assert "check system $HOST" in lines and "    if loadavg (1min) > 4 then alert" in lines
    assert stat.S_IMODE(host.monitrc.stat().st_mode) == 0o600
    host.quartet("include_absent", name=str(host.monitrc))
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_file_that_was_made_and_then_edited_stays(host):
    host.apply("include_present", name=str(host.monitrc))
    host.monitrc.write_text(host.monitrc.read_text() + "set log syslog\n")
    host.apply("include_absent", name=str(host.monitrc))
    assert (
        "set log syslog" in host.monitrc.read_text() and "include" not in host.monitrc.read_text()
    )


def test_glob_mode_has_the_chapters_line_to_the_letter_and_changes_back(host):
    host.monitrc.write_text("set daemon 30\n")
    host.monitrc.chmod(0o600)
    before = host.content()
    host.quartet("include_present", name=str(host.monitrc), mode="glob")
    assert f"include {host.workdir}/jails-system/*/monit/monitrc\n" in host.monitrc.read_text()
    host.quartet("include_present", name=str(host.monitrc), mode="publish")
    assert host.monitrc.read_text() == f"set daemon 30\ninclude {host.state}/published\n"
    host.quartet("include_present", name=str(host.monitrc), mode="glob")
    host.quartet("include_absent", name=str(host.monitrc))
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_text_that_monit_refuses_replaces_nothing(host):
    host.monitrc.write_text("set daemon 30\n")
    host.monit_says = "{}:1: syntax error 'x'"
    before = host.tree()
    for test in (True, False):
        done = host.apply("include_present", name=str(host.monitrc), test=test)
        assert done["result"] is False and f"{host.monitrc}:1: syntax error 'x'" in done["comment"]
        assert host.tree() == before


# The hooks


def _owners(host):
    for name in (
        "jail-system-default",
        "bhyve-system-default",
        "freebsd-jail-web-system-skel",
        "xen-system-default",
    ):
        (host.workdir / "share" / name).mkdir()
    host.add("web1", hooks=[*HOOKS, "clone.d", "rename.d"])
    host.add("vm1", "bhyve", hooks=[*HOOKS, "master_reboot.d"])
    host.add("bare", "bhyve")


def _links(host):
    found = host.workdir.rglob("cbsd_monit")
    return {
        str(p.relative_to(host.workdir).parent): os.readlink(p) for p in found if p.is_symlink()
    }


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
    (folder / "master_poststart.d/monit.sh").symlink_to(
        "/usr/local/cbsd/modules/monit.d/share/master_poststart.d/monit.sh"
    )
    for hook, name, text in (
        (
            "master_prestop.d",
            "monit.sh",
            "/usr/local/bin/monit summary ${jname} && /usr/sbin/service monit onereload\n",
        ),
        ("remove.d", "monit.sh", "echo something else\n"),
        ("master_poststart.d", "mine", "cbsd monit jname=${jname}\n"),
    ):
        (folder / hook / name).write_text(text)
        (folder / hook / name).chmod(0o755)
    os.chown(folder / "master_prestop.d/monit.sh", 12, 34)
    before = host.content()
    done = host.quartet("hooks_present")
    assert len(done["changes"]["set aside"]) == 2
    assert sorted(p.name for p in (folder / "master_poststart.d").iterdir()) == [
        "cbsd_monit",
        "mine",
    ]
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


# monit runs


def test_running_asks_the_socket_and_starts_what_does_not_answer(host):
    said = host.apply("running", test=True)
    assert said["result"] is None and host.ran == []
    done = host.apply("running")
    assert done["result"] is True and done["changes"] == said["changes"]
    assert host.ran == [["monit-start"]]
    for test in (False, True):
        assert host.apply("running", test=test)["changes"] == {}


def test_monit_that_has_not_read_what_is_published_is_told_once(host):
    host.state.mkdir()
    (host.state / "published").write_text('check host "LB1.http" with address 10.0.0.1\n')
    host.listen()
    done = host.quartet("running")
    assert done["changes"]["monit"] == {"old": "does not know LB1.http", "new": "reloaded"}
    assert host.ran == [["monit", "-c", str(host.monitrc), "reload"]]


def test_monit_that_does_not_come_up_is_quoted(host):
    host.salt["cmd.run_all"] = lambda argv, **_: {
        "retcode": 3,
        "stdout": "",
        "stderr": "no such service",
    }
    done = host.apply("running", timeout=0.2)
    assert done["result"] is False and "no such service" in done["comment"]


# What clean has to put back


def test_undo_of_a_newer_formula_stops_every_state(host):
    host.state.mkdir()
    (host.state / "undo.json").write_text('{"schema": 2, "hooks": {}}')
    (host.workdir / "share/jail-system-default").mkdir()
    before = host.tree()
    for state in ("hooks_present", "hooks_absent", "include_present"):
        done = host.apply(state, name=str(host.monitrc))
        assert done["result"] is False and "another version" in done["comment"]
    assert host.tree() == before
