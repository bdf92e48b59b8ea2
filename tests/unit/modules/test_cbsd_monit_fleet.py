"""When this node adopts envs, and when an event must not decide that."""

import pytest

from tests.unit.loaded import load, modules


class Node:
    """Pillar names lb1; ``busy`` are the answers that `state.running` still gives, as functions."""

    def __init__(self, root, module):
        self.root, self.busy, self.applied = root, [], 0
        self.sysdir = root / "work/jails-system/lb1/monit"
        self.wake = root / "libexec/wake"
        for folder in (self.sysdir, self.wake.parent):
            folder.mkdir(parents=True)
        self.wake.touch()
        lookup = {"libexec": str(self.wake.parent), "run": str(root / "run")}
        self.salt = module.__salt__ = {
            **modules("cbsd_monit_schema"),
            "config.get": lambda key, default: {"lookup": lookup},
            "cbsd.list": lambda: {"lb1": {"emulator": "jail"}},
            "cbsd.paths": lambda: {"workdir": str(root / "work")},
            "cbsd_monit_policy.for_node": lambda pillar, node, envs: {
                "policies": {e["name"]: {} for e in envs}
            },
            "state.running": lambda: self.busy and self.busy.pop(0)(),
            "state.apply": self.apply,
        }
        module.__grains__ = {"id": "hv1"}

    def apply(self, sls, queue):
        assert (sls, queue) == ("cbsd_monit.checks", True)
        self.applied += 1
        (self.sysdir / "policy.json").touch()
        return {"checks": {"result": True}}

    def clean(self):
        """The state run that takes all of it back: the checks first, the agent last."""
        (self.sysdir / "policy.json").unlink(missing_ok=True)
        self.busy.append(self.cleaned)
        return ['The function "state.apply" is running']

    def cleaned(self):
        self.wake.unlink()
        return []


@pytest.fixture
def fleet(monkeypatch):
    module = load("_modules/cbsd_monit_fleet.py")
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module, "WINDOW", 0)
    return module


def test_env_without_checks_is_adopted_once(fleet, tmp_path):
    node = Node(tmp_path, fleet)
    assert fleet.adopt() == ["lb1"] and node.applied == 1
    assert fleet.adopt() == [] and node.applied == 1


def test_node_that_is_being_cleaned_is_not_set_up_again(fleet, tmp_path):
    node = Node(tmp_path, fleet)
    node.busy.append(node.clean)
    assert fleet.adopt() == [] and node.applied == 0


def test_node_that_was_cleaned_is_left_as_it_is(fleet, tmp_path):
    node = Node(tmp_path, fleet)
    node.wake.unlink()
    assert fleet.adopt() == [] and node.applied == 0 and not (tmp_path / "run").exists()


def test_env_that_a_state_run_adopts_meanwhile_is_not_applied_again(fleet, tmp_path):
    node = Node(tmp_path, fleet)
    node.busy.append(lambda: (node.sysdir / "policy.json").touch() or ["a highstate"])
    assert fleet.adopt() == [] and node.applied == 0
