"""A node on directories of a test, with stand-ins for CBSD, monit and the agent, for the states."""

import contextlib
import json
import os
import pathlib
import socket
import stat
import threading

from tests.unit.loaded import load, modules, public

NODE = "hv1"
HOOKS = """master_prestart.d master_poststart.d master_prestop.d master_poststop.d master_create.d
    remove.d""".split()


class Host:
    """One node's directories, and the states as Salt would load them."""

    def __init__(self, root):
        self.root = root
        self.workdir, self.state, self.run = root / "jails", root / "state", root / "run"
        self.monitrc = root / "etc/monitrc"
        for folder in ("jails-system", "share"):
            (self.workdir / folder).mkdir(parents=True)
        for folder in (root / "etc", root / "libexec", self.run):
            folder.mkdir(parents=True)
        self.lookup = {
            "workdir": str(self.workdir), "state": str(self.state), "run": str(self.run),
            "libexec": str(root / "libexec"),
            "config": str(root / "etc/cbsd_monit.json"),
            "monitrc": str(self.monitrc), "monit": str(root / "monit"),
            "monit_start": [str(root / "monit-start")],
        }  # fmt: skip
        self.envs = {}
        self.rendered = {}
        self.head = "set daemon 10\n"
        self.warnings = []
        self.answer = {
            "changed": [], "published": 1, "reloaded": False, "quarantined": {}, "errors": {},
            "services": 0,
        }  # fmt: skip
        self.ran = []
        self.overlay = None
        self.monit_says = ""
        self.services = []
        self.looked_at = None  # when monit looked at the last of them, seconds since 1970
        self.monit_answers = "200 OK"
        self.opts = {"test": False, "id": NODE}
        self.program("libexec/wake")
        # an agent that ran before; without it nothing can be foretold
        (root / "etc/cbsd_monit.json").write_text("{}")
        self.program("monit")
        names = ("cbsd_monit_schema", "cbsd_monit_file", "cbsd_monit_node")
        self.salt = modules(*names, opts=self.opts)
        self.salt.update({
            "cbsd.list": lambda: self.envs, "cbsd_monit.render": self._render,
            "cmd.run_all": self._run,
            "cp.get_file_str": lambda url: "the template",
        })  # fmt: skip
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
            code = 1 if self.monit_says else 0
            answer.update(retcode=code, stderr=self.monit_says.format(argv[3]))
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
                    look = f"<collected_sec>{self.looked_at}</collected_sec>"
                    look = look if self.looked_at is not None else ""
                    known = (f"<service><name>{n}</name>{look}</service>" for n in self.services)
                    body = f"<monit>{''.join(known)}</monit>"
                    with contextlib.suppress(OSError):
                        line.sendall(f"HTTP/1.0 {self.monit_answers}\r\n\r\n{body}".encode())

        threading.Thread(target=answer, daemon=True).start()

    def add(self, env, emulator="jail", hooks=()):
        self.envs[env] = {"emulator": emulator, "status": "on"}
        folder = self.workdir / "jails-system" / env
        folder.mkdir()
        for hook in hooks:
            (folder / hook).mkdir()
        return folder / "monit"

    def tree(self):
        """Return all below the root: mode, owner, target or content, and mtime of each file."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            info = path.lstat()
            what = os.readlink(path) if path.is_symlink() else None
            if path.is_file() and not path.is_symlink():
                what = path.read_bytes()
            key = str(path.relative_to(self.root))
            when = info.st_mtime_ns if path.is_file() else 0
            found[key] = (info.st_mode, info.st_uid, what, when)
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
        real, foretold = ([s["changes"] for s in r.get("sub_state_run", ())] for r in (done, said))
        assert real == foretold
        after = self.tree()
        for test in (False, True):
            again = self.apply(state, test=test, **kwargs)
            assert (again["result"], again["changes"]) == (True, {}), again
            assert "sub_state_run" not in again
            assert self.tree() == after, "a run without changes wrote something"
        return done
