"""What `make bench` counts, on logs and traces whose answer is known."""

import itertools
import json
import os
import re
import types
from xml.etree import ElementTree

import pytest

from bench import picture, scale
from bench.nodes import REPO, most_at_once, overlapping, percentile, restarts
from bench.witness import Witness


def log(*commands):
    """A node whose log holds commands (verb, env, begin, end, pid, parent)."""
    records = []
    for verb, env, begin, end, pid, parent in commands:
        who = {"argv": [verb, f"jname={env}"], "pid": pid, "parent_pid": parent}
        who["nested"] = parent is not None
        records.append({"t": begin, "event": "start", **who})
        records.append({"t": end, "event": "end", **who})
    records.sort(key=lambda r: r["t"])
    return types.SimpleNamespace(sim=types.SimpleNamespace(log=lambda: records))


def test_restarts_of_one_env_that_overlap_are_counted():
    node = log(
        ("jrestart", "a", 0, 50, 1, None),
        ("jstop", "a", 1, 20, 2, 1),
        ("jrestart", "a", 40, 90, 3, None),
        ("jstart", "a", 41, 80, 4, 3),
        ("jrestart", "b", 45, 60, 5, None),
        ("jstop", "b", 46, 50, 6, 5),
        ("jrestart", "b", 70, 71, 7, None),  # found nothing to restart
    )
    found = restarts(node)
    assert [(env, begin) for env, begin, _ in found] == [("a", 0), ("a", 40), ("b", 45)]
    assert overlapping(found) == 1 and most_at_once(found) == 3


def test_a_stop_and_the_next_start_are_one_restart():
    stop, start = ("jstop", "a", 0, 5, 1, None), ("jstart", "a", 6, 10, 2, None)
    node = log(stop, start, ("jstart", "b", 20, 25, 3, None))
    assert restarts(node) == [("a", 0, 10), ("b", 20, 25)]
    assert overlapping(restarts(node)) == 0 and most_at_once(restarts(node)) == 1


def test_a_stop_without_its_start_is_still_going_on():
    node = log(("jstop", "a", 0, 5, 1, None), ("jstop", "b", 99, 100, 2, None))
    assert most_at_once(restarts(node)) == 2


def test_percentile_is_one_of_the_values():
    assert percentile(range(1, 101), 99) == 99
    assert percentile([5], 99) == 5 and percentile([1, 2], 50) == 1


def test_processes_are_counted_and_threads_are_not():
    trace = [
        "10 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD) = 11",
        "10 clone3({flags=CLONE_VM|CLONE_THREAD}, 88) = 12",
        "10 clone3({flags=CLONE_VM|CLONE_THREAD} <unfinished ...>",
        "11 vfork( <unfinished ...>",
        "10 <... clone3 resumed>) = 13",
        "11 <... vfork resumed>) = 14",
        "10 clone3({flags=CLONE_VM}, 88) = -1 ENOSYS (Function not implemented)",
    ]
    assert scale.processes(trace) == 2


def test_picture_shows_every_side_of_what_was_measured():
    rows = itertools.product(picture.SIDES, picture.TURNS, picture.SIZES)
    found = {f"{side}_{turn}_s_{size}": size / 100 for side, turn, size in rows}
    found.update({f"{turn}_speedup_over_idiomatic_1000": 5.5 for turn in picture.TURNS})
    found["first_vs_floor_1000"] = 1.9
    words = " ".join(ElementTree.fromstring(picture.draw(found)).itertext())
    assert "5.5 × ours" in words and "1.9 × that" in words and "1,000 envs" in words


TEMPLATE = """\
check file "%%ENV%%.env" with path "%%DEAD%%"
  if exist then exec "%%WAKE%% monit %%ENV%%.env"
check host "%%ENV%%.web" with address "%%ADDRESS%%"
  every 5 cycles
  if failed port 80 with timeout 2 seconds and retry 2 for 2 cycles
    then exec "%%WAKE%% monit %%ENV%%.web"
    else if succeeded for 1 cycles then exec "%%WAKE%% monit %%ENV%%.web"
"""
FACTS = {"ENV": "=l=b1", "DEAD": "/d/LB1", "WAKE": "/w", "ADDRESS": "10.0.0.1"}
POLICY = {"checks": {"web": {"interval": 5}, "ask": {"interval": 30}}}
LIVE = re.sub("%%(.*?)%%", lambda m: FACTS[m.group(1)], TEMPLATE)
BEGAN = 10000


class Watched:
    """An env LB1, good at BEGAN, with two services of monit's and a check that a probe asks."""

    def __init__(self, path):
        self.path, self.up, self.text = path, {"LB1"}, LIVE
        row = {"monitor": "1", "status": "0", "collected_sec": str(BEGAN), "collected_usec": "0"}
        self.rows = {"=l=b1.env": dict(row), "=l=b1.web": dict(row)}
        folder = path / "jails-system/LB1/monit"
        folder.mkdir(parents=True)
        (folder / "monitrc.tpl").write_text(TEMPLATE)
        (folder / "policy.json").write_text(json.dumps(POLICY))
        (path / "asked").touch()
        os.utime(path / "asked", (BEGAN, BEGAN))
        node = types.SimpleNamespace(state_dir=path, services=self.services)
        node.sim, node.running = types.SimpleNamespace(workdir=path), lambda: self.up
        self.watcher = Witness(node, 1, peers={("LB1", "ask"): path / "asked"})

    def services(self, timeout):
        if not self.rows:
            raise OSError("monit does not answer")
        found = []
        for name, row in self.rows.items():
            found.append(ElementTree.Element("service"))
            for key, value in {"name": name, **row}.items():
                ElementTree.SubElement(found[-1], key).text = value
        return found

    def doubts(self, now, published=BEGAN - 9):
        path = self.path / "published"
        path.write_text(f"set daemon 1\n# --- cbsd_monit LB1\n{self.text}")
        os.utime(path, (published, published))
        return self.watcher.doubts("LB1", self.watcher.evidence()._replace(time=now))


def test_what_is_healthy_is_proven_for_as_long_as_the_bound_says(tmp_path):
    env = Watched(tmp_path)
    assert env.doubts(BEGAN) == set()
    assert env.watcher.limit() == 2 * (1 + 2 * 2) + 90
    env.rows = {}  # monit stands still: what it said before counts on
    assert env.doubts(BEGAN + 101) == set()
    assert env.doubts(BEGAN + 104) == {"=l=b1.env: not looked at"}
    assert env.doubts(BEGAN + 106) == {"=l=b1.env: not looked at", "=l=b1.web: not looked at"}
    assert "ask was not asked" in env.doubts(BEGAN + 131)


def test_what_is_not_live_not_watched_or_failed_is_not_proven(tmp_path):
    env = Watched(tmp_path)
    env.doubts(BEGAN)
    web = env.rows["=l=b1.web"]
    for key, value, why in (("status", "32", "failed"), ("monitor", "0", "not watched")):
        before, web[key] = web[key], value
        assert env.doubts(BEGAN) == {f"=l=b1.web: {why}"}
        web[key] = before
    web.update(monitor="6", status="0", collected_sec="0")  # begun anew, with the same text
    env.doubts(BEGAN)
    assert env.doubts(BEGAN) == {"=l=b1.web: failed"}, "what it saw before counts"
    web.update(monitor="1", collected_sec=str(BEGAN + 1), responsetime="-1.0")
    assert env.doubts(BEGAN) == {"=l=b1.web: failed"}, "monit counts anew, and nothing recovered"
    web["responsetime"] = "0.1"
    assert env.doubts(BEGAN) == set()
    env.rows.pop("=l=b1.env")
    assert "=l=b1.env: not live" in env.doubts(BEGAN)
    env.up = set()
    assert env.doubts(BEGAN) == {"does not run"}


def test_another_text_is_proven_only_by_a_run_after_it(tmp_path):
    env = Watched(tmp_path)
    env.doubts(BEGAN)
    env.text = LIVE.replace("port 80", "port 81")
    wrong = {"its text is not live"}
    assert env.doubts(BEGAN + 5, BEGAN + 5) == {*wrong, "=l=b1.web: never ran"}
    env.rows["=l=b1.web"]["collected_sec"] = str(BEGAN + 6)
    assert env.doubts(BEGAN + 6, BEGAN + 5) == wrong


def test_seconds_of_a_state_that_outlives_its_proof_are_counted(tmp_path):
    witness = Watched(tmp_path).watcher
    states = ["healthy", "healthy", "backoff", "unknown", "failing", "failing", "healthy"]
    for second, state in enumerate(states):
        check = "env" if second == 4 else "web"  # the kernel says that
        witness.told.append((second, second + 0.2, {"LB1": (state, check), "a": ("unknown", None)}))
    assert witness.lies(0.5, 6.1) == pytest.approx(2.5)  # at 1, 2 and 5


def test_every_key_of_the_proof_is_explained():
    from bench import proof

    text = (REPO / "docs/benchmarks.md").read_text()
    assert all(f"`{key}`" in text for key in proof.KEYS)


def test_every_part_is_explained():
    from bench.run import PARTS

    text = (REPO / "docs/benchmarks.md").read_text()
    assert all(f"| `{part}` |" in text for part in PARTS), list(PARTS)
