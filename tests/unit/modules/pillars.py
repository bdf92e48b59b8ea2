"""Pillars and the execution modules that read them, for the tests of each module."""

import types

import yaml

from tests.unit.loaded import REPO, modules

HTTP = {"type": "http"}
NAMES = "schema pillar policy explain render".split()


def load(**more):
    """Return the functions of ``cbsd_monit``; ``more`` stands for what other modules of Salt do."""
    functions = {"cp.get_file_str": _file, "config.get": lambda key, default: default, **more}
    salt = modules(*(f"cbsd_monit_{name}" for name in NAMES), "cbsd_monit", **functions)
    own = {key.partition(".")[2]: f for key, f in salt.items() if key.startswith("cbsd_monit.")}
    return types.SimpleNamespace(__salt__=salt, **own)


def _file(url):
    path = REPO / url[len("salt://") :]
    return path.read_text() if path.is_file() else False


class Commands:
    """Stands for ``cmd.run_all``: records what is run and answers what it was told."""

    def __init__(self, stdout="", retcode=0, stderr=""):
        self.answer, self.ran = {"stdout": stdout, "retcode": retcode, "stderr": stderr}, []

    def __call__(self, argv, **more):
        assert more["python_shell"] is False and more["timeout"]
        self.ran.append(argv)
        return self.answer


def jails(*names):
    return [{"name": name, "emulator": "jail"} for name in names]


def example():
    return yaml.safe_load((REPO / "pillar.example").read_text())["cbsd_monit"]


def full():
    """The example with what it only mentions."""
    spec = example()
    spec["template"] = "salt://site/a.tpl"
    spec["envs"]["db1"]["template"] = "salt://site/b.tpl"
    spec["events"] = {"tag": "cbsd_monit", "more": [{"x": "y"}]}
    spec["lookup"].update(
        package="monit", monit_start=["/usr/sbin/service", "monit", "start"], rootgroup="wheel"
    )
    spec["lookup"].update(
        skeletons=["mine-skel"], module_url="https://example.org/x.git", boot_id="/run/boot"
    )
    spec["defaults"]["on_failure"] = [
        {"service_restart": "nginx"}, {"command": ["/bin/true", "x"]}, "restart",
    ]  # fmt: skip
    return spec


def one(check, **env):
    """Return a pillar with one check ``c`` of the env ``lb1``."""
    return {"envs": {"lb1": {"checks": {"c": check}, **env}}}


def rule(monit, spec, env="lb1", **more):
    """Return the text that one env gets."""
    return monit.render(spec, "hv1", jails(env), **more)["envs"][env]["monitrc.tpl"]
