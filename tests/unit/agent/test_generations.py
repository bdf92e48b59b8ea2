"""The store of what is live: swapped whole, compared by env, the last five kept."""

import os

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


def test_older_generation_says_something_else(node):
    for count in (1, 2, 2):
        generations.swap(node, generations.compose(node, content(node, count)))
    assert generations.older(node) == 1
    os.remove(node.in_state("generations", "1"))
    assert generations.older(node) is None
    assert generations.read(node, None) == (node.head, {})


def test_without_generations_nothing_is_published(node):
    assert (generations.published(node), generations.number(node)) == ("", 0)
    assert generations.older(node) is None


def test_difference_names_the_envs_and_the_head(node):
    old = generations.compose(node, content(node, 3))
    new = generations.compose(node, content(node, 2)._replace(head="set daemon 7\n"))
    assert generations.difference(new, old) == ["", "e2"]
    assert generations.difference(old, old) == []
    other = generations.compose(node, content(node, 3, "if exist then alert # new"))
    assert generations.difference(other, old) == ["e0", "e1", "e2"]
