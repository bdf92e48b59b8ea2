"""What `make bench` counts, on logs and traces whose answer is known."""

import itertools
import pathlib
import types
from xml.etree import ElementTree

from bench import picture, scale
from bench.nodes import most_at_once, overlapping, percentile, restarts


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


def test_every_part_is_explained():
    from bench.run import PARTS

    text = (pathlib.Path(__file__).resolve().parents[2] / "docs/benchmarks.md").read_text()
    assert all(f"| `{part}` |" in text for part in PARTS), list(PARTS)
