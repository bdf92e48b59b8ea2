"""docs/contract.md says what the code does, and the code keeps the rules for Salt modules."""

import ast
import json
import pathlib
import re
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
CONTRACT = (REPO / "docs/contract.md").read_text()
AGENT = REPO / "cbsd_monit/files/agent"
SALT = sorted([*(REPO / "_modules").glob("*.py"), *(REPO / "_states").glob("*.py")])
RECORDS = """records.py hooks.py judge.py restrain.py survey.py passes.py heal.py loop.py probes.py
commands.py""".split()
sys.path.insert(0, str(AGENT))


def section(number):
    return re.search(rf"^## {number}\. .*?(?=^## |\Z)", CONTRACT, re.M | re.S).group()


def first_column(text):
    """Return the words in code type of the first column of a table."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.M)
    return {word for row in rows for word in re.findall(r"`(\w+)`", row)}


def literals_of(source, name):
    return ast.literal_eval(re.search(rf"^{name} = (\(.*?\))$", source, re.M).group(1))


def strings_of(tree):
    constants = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def literals(path, function):
    """First string arguments of all calls of ``.function(…)`` in one file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if getattr(getattr(node, "func", None), "attr", None) == function and node.args:
            found |= strings_of(node.args[0])
    return found


def test_states_are_those_of_the_contract():
    import states

    text = section(8)
    named = set(text.split("`")[1].split())
    table = first_column(text)
    assert set(states.STATES) == named == table and len(states.STATES) == len(named)
    used = set().union(*(literals(path, "go") for path in AGENT.glob("*.py")))
    assert used == named
    announced = set().union(*(literals(path, "announce") for path in AGENT.glob("*.py")))
    others = {"created", "removed", "renamed", "healed", "recovered", "storm", "calm"}
    assert set(states.TRANSITIONS) == others | named
    assert {w for w in announced if " " not in w and w} <= set(states.TRANSITIONS)
    groups = ("ILL", "FAILS", "LEFT_ALONE", "UNMONITORED", "UNPROBED", "LOUD")
    for group in groups:
        assert set(getattr(states, group)) <= set(states.TRANSITIONS), group


def test_causes_are_those_of_the_contract():
    source = (AGENT / "hooks.py").read_text()
    proof = source.split("def _proof")[1].split("\ndef ")[0]
    proofs = set(re.findall(r'return "(\w+)"(?: if .* else "(\w+)")?$', proof, re.M))
    proofs = {word for pair in proofs for word in pair if word}
    ours = set(literals_of(source, "OURS"))
    causes = first_column(section(9))
    assert causes == proofs | ours | {"operator", "remove"}


def test_commands_are_those_of_the_contract():
    commands = set(re.findall(r"^\| `wake (\w+)", section(6), re.M)) - {"as"}
    source = (AGENT / "commands.py").read_text()
    handled = set(re.findall(r'^    "(\w+)": \(', source, re.M)) - {"run"} | {"monit"}
    assert commands == handled


def test_policy_has_the_keys_of_the_contract():
    import policy

    shown = json.loads(re.search(r"```json\n(.*?)```", section(5), re.S).group(1))
    assert set(policy.BUILTIN) == set(shown) - {"schema", "env", "node", "origin"}
    assert set(policy.BUILTIN["restart"]) == set(shown["restart"])


def test_configuration_that_the_contract_shows_is_one_the_agent_takes(tmp_path):
    from node import DEFAULT_BUDGET, Node

    shown = json.loads(re.search(r"```json\n(.*?)```", section(4), re.S).group(1))
    assert set(shown["budget"]) == set(DEFAULT_BUDGET)
    for key in ("state", "run", "workdir"):
        shown[key] = str(tmp_path / key)
    path = tmp_path / "conf.json"
    path.write_text(json.dumps(shown))
    node = Node(str(path))
    assert (node.name, node.poll) == ("hv1.example.net", 10)


def test_agent_needs_the_standard_library_only():
    own = {path.stem for path in AGENT.glob("*.py")}
    for path in AGENT.glob("*.py"):
        for item in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in item.names] if isinstance(item, ast.Import) else []
            names += [item.module] if isinstance(item, ast.ImportFrom) else []
            assert {n.split(".")[0] for n in names} <= sys.stdlib_module_names | own, path.name


@pytest.mark.parametrize("path", SALT, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_salt_code_keeps_the_rules(path):
    text = path.read_text()
    tree = ast.parse(text)
    code = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not code & {"__pillar__", "__utils__"}
    assert not [s for s in strings_of(tree) if re.fullmatch(r"pillar\.\w+", s)]
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert "subprocess" not in imported


def test_record_of_an_env_has_the_keys_of_the_contract():
    documented = first_column(section(11))
    used = {"schema", "env"}
    for path in AGENT.glob("*.py"):
        for item in ast.walk(ast.parse(path.read_text())):
            if isinstance(item, ast.Subscript) and isinstance(item.slice, ast.Constant):
                name = getattr(item.value, "id", "")
                if name in ("env", "self") and path.name in RECORDS:
                    used.add(item.slice.value)
    assert used == documented
