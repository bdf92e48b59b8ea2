"""What stands in several places because Salt's loader forbids sharing is the same in all of them."""

import re

import pytest
from salt.exceptions import SaltInvocationError

from tests.unit.loaded import REPO, load, modules

SCHEMA = load("_modules/cbsd_monit_schema.py")
AGENT = "cbsd_monit/files/agent"
REACTORS = ("cbsd_monit/reactor/notify.sls", "cbsd_monit/reactor/recheck.sls")
# Files with a copy of the rule for an env's name, and what it is called there.
NAMES = {
    "_modules/cbsd.py": "_NAME",
    "_engines/cbsd_monit.py": "ENV",
    "_resources/cbsd/__init__.py": "ENV",
    f"{AGENT}/node.py": "NAME",
    **dict.fromkeys(REACTORS, "ENV"),
}


def patterns(path):
    """Return the patterns of the compiled regular expressions of a file by name; it is not run."""
    found = re.findall(r'^(\w+) = re\.compile\(\s*r"(.*?)"', (REPO / path).read_text(), re.M)
    return dict(found)


# --- The name of an env


@pytest.mark.parametrize("path", NAMES)
def test_the_rule_for_the_name_of_an_env_is_the_schemas(path):
    assert patterns(path)[NAMES[path]] == SCHEMA.ENV + r"\Z"


def test_there_is_no_other_copy_of_it():
    start = SCHEMA.ENV.partition("{")[0]
    holders = {
        str(path.relative_to(REPO))
        for folder in ("_modules", "_states", "_engines", "_runners", "_resources", "cbsd_monit")
        for path in (REPO / folder).rglob("*")
        if path.suffix in (".py", ".sls", ".jinja") and start in path.read_text()
    }
    assert holders == {"_modules/cbsd_monit_schema.py", *NAMES}


def reaction(tmp_path, path, env, transition, **more):
    """What the reactor does when ``env`` says ``transition``."""
    record = {"env": env, "transition": transition, **more}
    space = {
        "tag": "t",
        "data": {"id": "hv1", "data": {"records": [record], **record}},
        "__opts__": {"cachedir": str(tmp_path), "pki_dir": str(tmp_path)},
    }
    exec(compile((REPO / path).read_text(), path, "exec"), space)
    return space["run"]()


@pytest.mark.parametrize("length, valid", [(1, True), (65, True), (100, True), (101, False)])
def test_a_name_of_up_to_100_characters_is_one_everywhere(tmp_path, length, valid):
    """In pillar, to the agent, to the reactor; `test_cbsd.py` restarts such an env."""
    env = "x" * length
    run = {"retcode": 0, "stdout": "{}", "stderr": ""}
    salt = modules(
        "cbsd_monit_schema",
        "cbsd_monit_pillar",
        "cbsd_monit_policy",
        "cbsd_monit_node",
        "cbsd_monit",
        **{"config.get": lambda key, default: default, "cmd.run_all": lambda *_, **__: run},
    )
    asked = [
        lambda: salt["cbsd_monit.validate"]({"envs": {env: {}}}),
        lambda: salt["cbsd_monit.effective"]({}, "hv1", [{"name": env, "emulator": "jail"}]),
        lambda: salt["cbsd_monit.status"](env),
    ]
    for ask in asked:
        if valid:
            ask()
        else:
            with pytest.raises(SaltInvocationError, match="the name of an env"):
                ask()
    for folder, name in (("jails-system", env), ("envs", env + ".json")):
        (tmp_path / folder / name).mkdir(parents=True)
    assert list(salt["cbsd_monit_node.env_dirs"](str(tmp_path))) == [env] * valid
    resource = load("_resources/cbsd/__init__.py")
    opts = {"pillar": {"cbsd_monit": {"lookup": {"state": str(tmp_path)}}}}
    assert resource.discover(opts) == [env] * valid
    notify, recheck = REACTORS
    assert bool(reaction(tmp_path, recheck, env, "failing", event=True)) is valid
    assert bool(reaction(tmp_path, notify, env, "gave_up")) is valid
