"""What has copies, because Salt's loader forbids to share it, is the same in all of them."""

import ast
import inspect
import re

import pytest
import yaml
from salt.exceptions import SaltInvocationError

from tests.unit.loaded import REPO, load, modules

SCHEMA = load("_modules/cbsd_monit_schema.py")
AGENT = "cbsd_monit/files/agent"
REACTORS = ("cbsd_monit/reactor/notify.sls", "cbsd_monit/reactor/recheck.sls")
# Files with a copy of the rule for an env's name, and what it is called there.
NAMES = {
    "_modules/cbsd.py": "_NAME", "_engines/cbsd_monit.py": "ENV",
    "_resources/cbsd/__init__.py": "ENV", f"{AGENT}/node.py": "NAME",
    **dict.fromkeys(REACTORS, "ENV"),
}  # fmt: skip


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
        "cbsd_monit_schema", "cbsd_monit_pillar", "cbsd_monit_policy", "cbsd_monit_node",
        "cbsd_monit",
        **{"config.get": lambda key, default: default, "cmd.run_all": lambda *_, **__: run},
    )  # fmt: skip
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


# --- Paths

TREE = yaml.safe_load((REPO / "cbsd_monit/defaults.yaml").read_text())


def test_the_defaults_of_the_tree_are_those_of_the_schema():
    """What the schema says of a key is FreeBSD's default; None where it has to be found out."""
    shared = {key: value or None for key, value in TREE["base"].items()}
    ours = {key: value or None for key, value in SCHEMA.lookup().items()}
    assert {**shared, **TREE["FreeBSD"]} == ours
    assert set(TREE["Debian"]) <= set(ours)


def test_the_paths_of_files_that_cannot_ask_the_schema_are_its_own():
    lookup = SCHEMA.lookup()
    paths = load("_modules/cbsd.py")._PATHS
    assert paths == {key: lookup[key] for key in paths}
    spool = inspect.signature(load("_engines/cbsd_monit.py").start).parameters["spool"].default
    assert spool == f"{lookup['state']}/spool"
    assert f'"{lookup["state"]}"' in (REPO / "_resources/cbsd/__init__.py").read_text()


# --- States, in the order and with the groups of docs/contract.md

CONTRACT = (REPO / "docs/contract.md").read_text().split("\n## 8. ")[1].split("\n## 9. ")[0]
STATES = CONTRACT.split("`")[1].split()
TRANSITIONS = {*STATES, *re.findall(r"`([a-z]+)`", CONTRACT.split("A transition is named")[1])}
RUNNER = load("_runners/cbsd_monit.py")


def constant(path, name):
    """Return the literal that a file assigns to a name; the file is not run."""
    source = (REPO / path).read_text()
    return ast.literal_eval(re.search(rf"^{name} = (\(.*?\))", source, re.M | re.S)[1])


def test_states_and_their_groups_are_the_same_words():
    trouble = RUNNER.TROUBLE
    over = {"starting", "healthy", *RUNNER.NOT_RESTARTED}
    assert set(trouble) == set(STATES) - over, "what is neither well nor meant needs attention"
    assert set(RUNNER.GIVEN_UP) - {"not there"} <= set(trouble)
    assert ", ".join(trouble) in RUNNER.failing.__doc__
    agent = REPO / AGENT / "states.py"
    if agent.exists():
        words = load(f"{AGENT}/states.py")
        assert list(words.STATES) == STATES
        assert set(getattr(words, "TROUBLE", trouble)) == set(trouble)


def test_transitions_that_are_sent_alone_are_those_that_people_are_told():
    engine = load("_engines/cbsd_monit.py")
    alone, of_node = engine.ALONE, engine.OF_NODE
    assert constant(REACTORS[0], "ALONE") == alone and set(alone) <= TRANSITIONS
    assert constant(REACTORS[0], "OF_NODE") == of_node and set(of_node) <= TRANSITIONS
    holders = ("_modules/cbsd_monit_fleet.py", "_runners/cbsd_monit_answers.py", REACTORS[0])
    for path in (*holders, "_runners/cbsd_monit.py"):
        assert f'\nNODE = "{engine.NODE}"' in (REPO / path).read_text(), path
    example = (REPO / "cbsd_monit/reactor/master.conf.example").read_text()
    assert tuple(re.findall(r"'cbsd_monit/\*/\*/(\w+)'", example)) == alone
    its_own = re.findall(r"'cbsd_monit/\*/\(node\)/(\w+)'", example)
    assert {*its_own, *alone} >= set(of_node) and not set(its_own) & set(alone)
    assert set(constant(REACTORS[1], "APPEARED")) <= TRANSITIONS | {"started"}


# --- Code that the runner cannot share


def code(function):
    """Return the code of a function without its name and docstring."""
    body = ast.parse(inspect.getsource(function)).body[0].body
    return [ast.dump(node) for node in body[1:]]


def test_tables_and_printable_text_are_made_in_one_way():
    notify = load("_runners/cbsd_monit_notify.py")
    assert code(RUNNER._table) == code(load("_modules/cbsd_monit_explain.py").table)
    answers = load("_runners/cbsd_monit_answers.py")
    assert code(RUNNER._clean) == code(notify._clean) == code(answers._clean)


# --- Files


def test_one_module_stages_files_on_a_node():
    """Others name no temporary file; the engine's position and the reactor's marks may get lost."""
    stagers = {
        path.name
        for folder in ("_modules", "_states")
        for path in (REPO / folder).glob("*.py")
        if re.search(r"\bO_EXCL \| os\.O_NOFOLLOW|\.(new|tmp|staged|salt)\b[\"']", path.read_text())
    }
    assert stagers == {"cbsd_monit_file.py"}


def test_users_in_monits_control_file_are_read_the_same_way():
    told = []
    for path in (f"{AGENT}/monit.py", "_modules/cbsd_monit_node.py"):
        source = (REPO / path).read_text()
        comments = re.search(r're\.sub\((r"\(\?m\).*?"), "", ', source)[1]
        word = re.search(r'word = (r""".*?""")', source)[1]
        told.append((comments, word, r"\ballow\s+{word}:{word}" in source))
    assert told[0] == told[1] and told[0][2]
