"""The spool: in order, whole lines, bounded, and what is lost is counted and reported."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import records as records_
import spool

from .conftest import AGENT


@pytest.fixture
def node(node, monkeypatch):
    os.mkdir(node.in_state("spool"))
    monkeypatch.setattr(spool, "WAITING", type(spool.WAITING)())
    monkeypatch.setattr(spool, "_counted", 0)
    return node


def segments(node):
    return sorted(n for n in os.listdir(node.in_state("spool")) if n.endswith(".jsonl"))


def records(node):
    paths = [pathlib.Path(node.in_state("spool", name)) for name in segments(node)]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def ids(node):
    return [r["id"] for r in records(node) if r["transition"] != "dropped"]


def dropped(node):
    return [r["count"] for r in records(node) if r["transition"] == "dropped"]


def put(node, numbers):
    for number in numbers:
        spool.append(node, {"id": f"i{number}", "env": "lb1", "transition": "failing"})


def write(node, name, text):
    pathlib.Path(node.in_state("spool", name)).write_text(text)


def run(node, code, **kwargs):
    """A process of its own that does ``code`` with ``put`` and ``node``."""
    text = f"""
import json, os, resource, sys
sys.path.insert(0, {str(AGENT)!r})
import spool
from node import Node
node = Node({os.path.join(os.path.dirname(node.state), "conf.json")!r})
def full(): resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
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
    found = [(r["env"], r["transition"], r["node"]) for r in records(node)]
    assert found == [("lb1", word, "hv1") for word in ("failing", "healing")]
    shutil.rmtree(node.in_state("spool"))
    env.announce("healed")
    records_.announce(node, env)
    assert not os.path.exists(node.in_state("spool"))


def test_a_write_that_a_kill_tore_is_mended_and_counted(node):
    put(node, range(3))
    with open(node.in_state("spool", segments(node)[0]), "ab") as handle:
        handle.write(b'{"id": "torn", "tran')
    put(node, [3])
    assert ids(node) == ["i0", "i1", "i2", "i3"] and dropped(node) == [1]
    assert records(node)[3]["transition"] == "dropped"


def test_writers_killed_at_any_moment_leave_whole_lines_and_no_lock(node):
    for beat in range(8):
        code = "for n in range(10**9): put(n); print(n, flush=True)"
        child = run(node, code, stdout=subprocess.PIPE)
        written = int(child.stdout.readline())
        time.sleep(0.01 * beat)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        written = int(rest[-1]) if rest and rest[-1].isdigit() else written
        began = time.monotonic()
        put(node, ["after"])
        assert time.monotonic() - began < 1
        last = ids(node)[: ids(node).index("iafter")]
        assert last == [f"i{n}" for n in range(len(last))] and len(last) > written
        for name in segments(node):
            os.unlink(node.in_state("spool", name))


def test_two_processes_write_whole_lines(node):
    both = range(200), range(1000, 1200)
    children = [run(node, f"for n in {numbers}: put(n)") for numbers in both]
    assert [c.wait() for c in children] == [0, 0]
    found = [int(name[1:]) for name in ids(node)]
    assert [[n for n in found if n in numbers] for numbers in both] == [*map(list, both)]


def test_a_full_disk_loses_nothing_while_the_process_lives(node):
    # The kernel refuses what goes over the limit in the middle of a line, as a full disk does.
    code = """full()
for n in range(30): put(n)
print(len(spool.WAITING), open(node.in_state("spool", "lost")).read())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert spool.flush(node) and not spool.WAITING
"""
    child = run(node, code, stdout=subprocess.PIPE, text=True)
    waiting, lost = child.communicate()[0].split()
    assert child.returncode == 0 and int(waiting) == int(lost) > 10
    assert ids(node) == [f"i{n}" for n in range(30)]


def test_what_a_full_disk_refused_is_reported_when_its_process_is_gone(node):
    assert run(node, "full()\nfor n in range(30): put(n)\nos._exit(0)").wait() == 0
    kept = len(records(node))
    assert 0 < kept < 30
    put(node, ["later", "again"])
    assert records(node)[kept]["transition"] == "dropped" and dropped(node) == [30 - kept]
    assert ids(node)[kept:] == ["ilater", "iagain"]


def test_size_is_bounded_and_what_was_dropped_is_counted(node):
    write(node, "limits.json", '{"max_size": 20000}')
    put(node, range(500))
    assert sum(os.path.getsize(node.in_state("spool", n)) for n in segments(node)) < 22000
    kept = ids(node)
    assert kept == [f"i{n}" for n in range(500 - len(kept), 500)], "the newest are kept, in order"
    assert sum(dropped(node)) + len(kept) == 500


def test_what_the_master_took_is_not_counted_as_dropped(node):
    write(node, "limits.json", '{"max_size": 20000}')
    put(node, range(100))
    last = segments(node)[-1]
    end = os.path.getsize(node.in_state("spool", last))
    position = {"segment": last, "offset": end, "time": time.time()}
    write(node, "position-x", json.dumps(position))
    put(node, range(100, 300))
    kept = ids(node)
    assert sum(dropped(node)) + len(kept) <= 200 + len([i for i in kept if int(i[1:]) < 100])


@pytest.mark.parametrize(("slowest", "count"), [("0", 5), ("1", 3), ("2", 0)])
def test_undelivered_is_what_the_slowest_master_has_not_read(node, slowest, count):
    lines = ['{"count": 2}\n', "{}\n", '{"count": 1}\n', "torn\n"]
    write(node, "1", "".join(lines))
    folder = spool._Folder(node, node.in_state("spool"))
    assert folder._undelivered("1", [("2", 0), (slowest, len(lines[0]))]) == count


def test_age_is_bounded(node):
    put(node, range(5))
    aged = [f"{number:010d}-{int(time.time()) - 30 * 86400}.jsonl" for number in (1, 2)]
    os.rename(node.in_state("spool", segments(node)[0]), node.in_state("spool", aged[0]))
    write(node, aged[1], '{"transition": "failing", "id": "aged"}\n')
    put(node, ["new"])
    assert ids(node) == ["aged", "inew"] and dropped(node) == [5]


def test_limits_that_make_no_sense_are_ignored(node):
    odd_ones = ('{"max_size": "16m", "max_age": null}', "[1]", "{", '{"max_size": -1}')
    for number, odd in enumerate(odd_ones):
        write(node, "limits.json", odd)
        put(node, [number])
    assert ids(node) == ["i0", "i1", "i2", "i3"]


def test_foreign_file_in_the_spool_only_delays_the_events(node, capsys):
    put(node, [0])
    write(node, "x.jsonl", "?")
    env = records_.load(node, "lb1").at(node.now())
    env.announce("failing")
    records_.announce(node, env)
    assert spool.WAITING and "file that cbsd_monit did not write" in capsys.readouterr().err
    os.unlink(node.in_state("spool", "x.jsonl"))
    assert spool.flush(node) and [r["transition"] for r in records(node)] == ["failing", "failing"]


def test_bug_in_the_spool_is_logged_and_raises_nothing(node, capsys, monkeypatch):
    with monkeypatch.context() as bug:
        bug.setattr(spool._Folder, "take", lambda self: {}["missing"])
        put(node, [0])
    assert spool.WAITING and "Traceback" in capsys.readouterr().err
    assert spool.flush(node) and ids(node) == ["i0"]
