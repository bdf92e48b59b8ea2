"""What this node reports, whom it silences; when it adopts envs, and when no event decides that."""

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


VERBS = ("silence", "unsilence", "retry")


class Status:
    """What the agent says of a jail, a VM, an env without checks and the node, and is asked."""

    def __init__(self, module):
        empty = {"reason": "", "silence": None, "failing": {}, "attempts": 0, "age": 0.0}
        healthy = {**empty, "state": "healthy", "last": [{"transition": "healthy"}], "checks": {}}
        self.rows = {
            "(node)": {**empty, "state": "failing", "emulator": None, "limit": 120},
            "lb1": {**healthy, "emulator": "jail", "checks": {"http": {}}},
            "lb2": {**healthy, "emulator": "bhyve"},
            "lb3": {**empty, "state": "unwatched", "emulator": "jail", "age": None},
        }
        groups = {"web": {"match": ["lb*"], "emulator": "jail"}, "all": {}, "no": {"match": "x"}}
        self.asked = []
        module.__salt__ = {
            "config.get": lambda key, default: {"groups": {**groups, "wrong": None}},
            "cbsd_monit.status": lambda: self.rows,
            **{f"cbsd_monit.{verb}": self.verb(verb) for verb in VERBS},
        }

    def verb(self, name):
        def verb(env, *args):
            self.asked.append(env)
            return {env: {"silence": {"until": 9}}}

        return verb


def test_report_says_which_groups_hold_an_env_and_nothing_empty(fleet):
    Status(fleet)
    assert fleet.report() == {
        "(node)": {"state": "failing", "limit": 120, "attempts": 0, "age": 0.0, "groups": []},
        "lb1": {
            "state": "healthy", "emulator": "jail", "attempts": 0, "age": 0.0,
            "groups": ["all", "web"],
        },
        "lb2": {
            "state": "healthy", "emulator": "bhyve", "attempts": 0, "age": 0.0, "groups": ["all"],
        },
        "lb3": {"state": "unwatched", "emulator": "jail", "attempts": 0, "groups": ["all", "web"]},
    }  # fmt: skip


@pytest.mark.parametrize(
    "asked, meant",
    [
        ({}, ["lb1", "lb2"]),
        ({"env": "*"}, ["lb1", "lb2"]),
        ({"env": "*2"}, ["lb2"]),
        ({"group": "web"}, ["lb1"]),
        ({"group": "all"}, ["lb1", "lb2"]),
        ({"env": "(node)"}, []),
        ({"env": "lb3"}, []),
        ({"group": "none"}, []),
        ({"group": "wrong"}, []),
    ],
)
def test_neither_the_node_nor_who_is_not_watched_is_silenced(fleet, asked, meant):
    status = Status(fleet)
    assert list(fleet.silence("2h", "x", "ann", **asked)) == meant
    assert fleet.unsilence(**asked) == meant and status.asked == meant * 2


def test_only_what_was_given_up_is_tried_again(fleet):
    status = Status(fleet)
    assert fleet.retry() == status.asked == []
    for name in ("(node)", "lb1", "lb2"):
        status.rows[name]["state"] = "gave_up"
    assert fleet.retry(group="web") == status.asked == ["lb1"]
    assert fleet.retry("lb*") == ["lb1", "lb2"]
