"""Bugs: the traceback is logged once, and the user reads that it is ours and where to look."""

import bugs
import pytest


def fail(depth=0):
    if depth:
        fail(depth - 1)
    raise KeyError("lb1\nx")


@pytest.mark.parametrize("depth", [0, 500])
def test_bug_is_logged_once_and_reported_as_ours(node, tmp_path, capsys, depth):
    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            fail(depth)
        sentence = bugs.report(node, "judging lb1", caught.value)
    ours = "a bug in cbsd_monit, not your configuration: judging lb1: KeyError: "
    where = f"; the traceback is in {node.in_state('agent.log')}"
    assert sentence.startswith(ours) and sentence.endswith(where) and "\n" not in sentence
    logged = capsys.readouterr().err
    assert logged.count("bug: judging lb1") == logged.count("Traceback") == 1
    assert 'raise KeyError("lb1' in logged and len(logged.encode()) < 20000
    assert (tmp_path / "state/agent.log").read_text() == logged


def test_bug_is_reported_on_a_disk_that_takes_no_log(node, capsys):
    node.state = "/no/such"
    assert "agent.log" in bugs.report(node, "the spool", ValueError("odd"))
    assert "ValueError: odd" in capsys.readouterr().err
