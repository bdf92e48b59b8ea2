"""The store of what is live: swapped whole, compared by env, the last five kept."""

import os

import files
import generations

from .conftest import GOOD, one


def content(node, count, line=GOOD):
    return generations.Content(node.head, [one(node, f"e{i}", line) for i in range(count)])


def test_generations_swap_and_only_five_are_kept(node):
    for count in range(1, 9):
        generations.swap(node, generations.compose(node, content(node, count)))
    assert generations.number(node) == 8
    assert sorted(os.listdir(node.in_state("generations")), key=int) == ["4", "5", "6", "7", "8"]
    assert generations.published(node).count("check file") == 8
    assert generations.older(node) == 7
    head, parts = generations.read(node, 4)
    assert (head, sorted(parts)) == (node.head, ["e0", "e1", "e2", "e3"])
    assert "".join(parts.values()) == "".join(text.text for text in content(node, 4).texts)


def test_generation_is_live_only_when_it_and_all_before_it_is_on_disk(node, monkeypatch):
    text, real, found = generations.compose(node, content(node, 2)), files.swap_link, []

    def swap_link(link, target):
        found.extend(files.read_text(node.in_state(name)) for name in ("record", target))
        real(link, target)

    monkeypatch.setattr(files, "swap_link", swap_link)
    with files.batch():
        files.write(node.in_state("record"), "x")
        generations.swap(node, text)
    assert found == ["x", text]


def test_older_generation_says_something_else(node):
    assert (generations.published(node), generations.number(node)) == ("", 0)
    assert generations.older(node) is None
    for count in (1, 2, 2):
        generations.swap(node, generations.compose(node, content(node, count)))
    assert generations.older(node) == 1
    os.remove(node.in_state("generations", "1"))
    assert generations.older(node) is None
    assert generations.read(node, None) == (node.head, {})


def test_difference_names_the_envs_and_the_head(node):
    old = generations.compose(node, content(node, 3))
    new = generations.compose(node, content(node, 2)._replace(head="set daemon 7\n"))
    assert generations.difference(new, old) == ["", "e2"]
    assert generations.difference(old, old) == []
    other = generations.compose(node, content(node, 3, "if exist then alert # new"))
    assert generations.difference(other, old) == ["e0", "e1", "e2"]
