"""The spool: in order, whole lines, bounded, and what is lost is counted and reported."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import records as records_
import spool
from node import Node

from .conftest import AGENT


@pytest.fixture
def node(conf, tmp_path):
    (tmp_path / "boot_id").write_text("b1")
    path = tmp_path / "conf.json"
    path.write_text(json.dumps(conf))
    made = Node(str(path))
    os.mkdir(made.in_state("spool"))
    spool.WAITING.clear()
    spool._counted = 0
    yield made
    spool.WAITING.clear()
    spool._counted = 0


def segments(node):
    return sorted(n for n in os.listdir(node.in_state("spool")) if n.endswith(".jsonl"))


def records(node):
    found = []
    for name in segments(node):
        with open(node.in_state("spool", name), encoding="ascii") as handle:
            found += [json.loads(line) for line in handle]
    return found


def put(node, numbers, **more):
    for number in numbers:
        spool.append(node, {"id": f"i{number}", "env": "lb1", "transition": "failing", **more})


def run(node, code, **kwargs):
    """A process of its own that does ``code`` with ``put`` and ``node``."""
    text = f"""
import json, os, resource, sys
sys.path.insert(0, {str(AGENT)!r})
import spool
from node import Node
node = Node({os.path.join(os.path.dirname(node.state), "conf.json")!r})
def put(number):
    record = {{"id": f"i{{number}}", "env": "lb1", "transition": "failing", "pad": "x" * 100}}
    spool.append(node, record)
{code}
"""
    return subprocess.Popen([sys.executable, "-c", text], **kwargs)


def test_a_transition_is_kept_in_order_and_only_where_the_formula_made_the_spool(node):
    env = records_.load(node, "lb1").at(node.now())
    env.announce("failing", "port 80", "http")
    env.announce("healing", "port 80", "http", attempt=1)
    records_.announce(node, env)
    assert [(r["env"], r["transition"], r["node"]) for r in records(node)] == [
        ("lb1", "failing", "hv1"),
        ("lb1", "healing", "hv1"),
    ]
    for name in os.listdir(node.in_state("spool")):
        os.unlink(node.in_state("spool", name))
    os.rmdir(node.in_state("spool"))
    env.announce("healed")
    records_.announce(node, env)
    assert not os.path.exists(node.in_state("spool"))


def test_a_write_that_a_kill_tore_is_mended_and_counted(node):
    put(node, range(3))
    with open(node.in_state("spool", segments(node)[0]), "ab") as handle:
        handle.write(b'{"id": "torn", "tran')
    put(node, [3])
    found = records(node)
    assert [r["id"] for r in found if r["transition"] == "failing"] == ["i0", "i1", "i2", "i3"]
    assert [(r["transition"], r["count"]) for r in found[3:4]] == [("dropped", 1)]


def test_writers_killed_at_any_moment_leave_whole_lines_and_no_lock(node):
    for beat in range(8):
        child = run(
            node, "for n in range(10**9): put(n); print(n, flush=True)", stdout=subprocess.PIPE
        )
        written = int(child.stdout.readline())
        time.sleep(0.01 * beat)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        written = int(rest[-1]) if rest and rest[-1].isdigit() else written
        began = time.monotonic()
        put(node, ["after"])
        assert time.monotonic() - began < 1
        mine = [r["id"] for r in records(node) if r["transition"] == "failing"]
        last = mine[: mine.index("iafter")]
        assert last == [f"i{n}" for n in range(len(last))] and len(last) > written
        for name in segments(node):
            os.unlink(node.in_state("spool", name))


def test_two_processes_write_whole_lines(node):
    children = [
        run(node, f"for n in range({k * 1000}, {k * 1000 + 200}): put(n)") for k in range(2)
    ]
    assert [c.wait() for c in children] == [0, 0]
    found = [int(r["id"][1:]) for r in records(node)]
    assert sorted(found) == [*range(200), *range(1000, 1200)]
    for low, high in ((0, 200), (1000, 1200)):
        assert [n for n in found if low <= n < high] == list(range(low, high))


def test_a_full_disk_loses_nothing_while_the_process_lives(node):
    # The kernel refuses what goes over the limit in the middle of a line, as a full disk does.
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for n in range(30): put(n)
print(len(spool.WAITING), open(node.in_state("spool", "lost")).read())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert spool.flush(node) and not spool.WAITING
"""
    child = run(node, code, stdout=subprocess.PIPE, text=True)
    out, _ = child.communicate()
    waiting, lost = out.split()
    assert child.returncode == 0 and int(waiting) == int(lost) > 10
    assert [r["id"] for r in records(node)] == [f"i{n}" for n in range(30)]


def test_what_a_full_disk_refused_is_reported_when_its_process_is_gone(node):
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for n in range(30): put(n)
os._exit(0)
"""
    assert run(node, code).wait() == 0
    kept = len(records(node))
    assert 0 < kept < 30
    put(node, ["later"])
    found = records(node)
    assert [(r["transition"], r.get("count")) for r in found[kept:]] == [
        ("dropped", 30 - kept),
        ("failing", None),
    ]
    put(node, ["again"])
    assert [r["transition"] for r in records(node)].count("dropped") == 1


def test_size_is_bounded_and_what_was_dropped_is_counted(node):
    with open(node.in_state("spool", "limits.json"), "w") as handle:
        handle.write('{"max_size": 20000}')
    put(node, range(500))
    assert sum(os.path.getsize(node.in_state("spool", n)) for n in segments(node)) < 22000
    found = records(node)
    kept = [r["id"] for r in found if r["transition"] == "failing"]
    assert kept == [f"i{n}" for n in range(500 - len(kept), 500)], "the newest are kept, in order"
    assert sum(r["count"] for r in found if r["transition"] == "dropped") + len(kept) == 500


def test_what_the_master_took_is_not_counted_as_dropped(node):
    with open(node.in_state("spool", "limits.json"), "w") as handle:
        handle.write('{"max_size": 20000}')
    put(node, range(100))
    last = segments(node)[-1]
    with open(node.in_state("spool", "position-x"), "w") as handle:
        end = os.path.getsize(node.in_state("spool", last))
        json.dump({"segment": last, "offset": end, "time": time.time()}, handle)
    put(node, range(100, 300))
    found = records(node)
    kept = [r["id"] for r in found if r["transition"] == "failing"]
    dropped = sum(r["count"] for r in found if r["transition"] == "dropped")
    assert dropped + len(kept) <= 300 - 100 + len([i for i in kept if int(i[1:]) < 100])


@pytest.mark.parametrize(("slowest", "count"), [("0", 5), ("1", 3), ("2", 0)])
def test_undelivered_is_what_the_slowest_master_has_not_read(node, slowest, count):
    lines = ['{"count": 2}\n', "{}\n", '{"count": 1}\n', "torn\n"]
    with open(node.in_state("spool", "1"), "w", encoding="ascii") as handle:
        handle.write("".join(lines))
    folder = spool._Folder(node, node.in_state("spool"))
    assert folder._undelivered("1", [("2", 0), (slowest, len(lines[0]))]) == count


def test_age_is_bounded(node):
    put(node, range(5))
    old = segments(node)[0]
    for number, name in ((1, old), (2, "x")):
        aged = f"{number:010d}-{int(time.time()) - 30 * 86400}.jsonl"
        if name == old:
            os.rename(node.in_state("spool", old), node.in_state("spool", aged))
        else:
            with open(node.in_state("spool", aged), "w") as handle:
                handle.write('{"transition": "failing", "id": "aged"}\n')
    put(node, ["new"])
    found = records(node)
    assert [r["id"] for r in found if r["transition"] == "failing"] == ["aged", "inew"]
    assert [r["count"] for r in found if r["transition"] == "dropped"] == [5]


@pytest.mark.parametrize(
    "limits", ['{"max_size": "16m", "max_age": null}', "[1]", "{", '{"max_size": -1}']
)
def test_limits_that_make_no_sense_are_ignored(node, limits):
    with open(node.in_state("spool", "limits.json"), "w") as handle:
        handle.write(limits)
    put(node, range(3))
    assert [r["id"] for r in records(node)] == ["i0", "i1", "i2"]


def test_foreign_file_in_the_spool_only_delays_the_events(node, capsys):
    put(node, [0])
    with open(node.in_state("spool", "x.jsonl"), "w") as handle:
        handle.write("?")
    env = records_.load(node, "lb1").at(node.now())
    env.announce("failing")
    records_.announce(node, env)
    assert spool.WAITING and "file that cbsd_monit did not write" in capsys.readouterr().err
    os.unlink(node.in_state("spool", "x.jsonl"))
    assert spool.flush(node) and [r["transition"] for r in records(node)] == ["failing", "failing"]


def test_bug_in_the_spool_is_logged_with_its_traceback_and_raises_nothing(
    node, capsys, monkeypatch
):
    monkeypatch.setattr(spool._Folder, "take", lambda self: {}["missing"])
    put(node, [0])
    assert spool.WAITING and "Traceback" in capsys.readouterr().err
    monkeypatch.undo()
    assert spool.flush(node) and [r["id"] for r in records(node)] == ["i0"]
