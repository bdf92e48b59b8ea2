"""What is live: generations of one file that monit includes, swapped whole, the last five kept."""

import os
import re
from collections import namedtuple

import files
from text import MARK, digest

KEEP = 5

# What monit includes: ``head`` (daemon, socket, the node's own checks) and the EnvTexts.
Content = namedtuple("Content", "head texts")


def compose(node, content):
    """The one text of a Content."""
    own = [text.text for text in content.texts]
    return "".join([f"# cbsd_monit: node {node.name}\n", content.head.rstrip() + "\n", *own])


def parts_of(text):
    """{env: its part} of a published text; the head is the part named ''."""
    head, *rest = re.split(f"(?m)^{re.escape(MARK)}(.*)\n", text)
    parts = {"": head}
    for name, part in zip(rest[::2], rest[1::2]):
        parts[name] = f"{MARK}{name}\n{part}"
    return parts


def between(node, one, other):
    """The names of the envs whose part differs between two generations, by their numbers."""
    return difference(*(files.read_text(_path(node, which)) or "" for which in (one, other)))


def with_digest(node, wanted):
    """The text of the generation whose digest is ``wanted``; '' if it is not kept."""
    texts = (files.read_text(_path(node, which)) or "" for which in reversed(numbers(node)))
    return next((text for text in texts if digest(text) == wanted), "")


def latest_parts(node):
    """{env: its part} as monit took it last, by the generations there are."""
    found = {}
    for which in numbers(node):
        found.update(parts_of(files.read_text(_path(node, which)) or ""))
    return {**found, **parts_of(published(node))}


def difference(new, old):
    """The names of the envs whose part differs between two published texts; '' is the head."""
    return sorted({name for name, _ in parts_of(new).items() ^ parts_of(old).items()})


def published(node):
    """The text that monit includes now; '' if there is none."""
    return files.read_text(_link(node)) or ""


def number(node):
    """The number of the published generation, 0 for none."""
    try:
        return int(os.path.basename(os.readlink(_link(node))))
    except (OSError, ValueError):
        return 0


def numbers(node):
    """The generations there are, oldest first."""
    return sorted(int(n) for n in os.listdir(node.in_state("generations")) if n.isdigit())


def read(node, which):
    """(head, {env: its part}) of a generation; without one, the present head and no env."""
    text = files.read_text(_path(node, which))
    if text is None:
        return node.head, {}
    parts = parts_of(text)
    return parts.pop("").partition("\n")[2], parts


def older(node):
    """The newest generation that says something else than the published one, None if none does."""
    now, current = published(node), number(node)
    for which in reversed([n for n in numbers(node) if n < current]):
        if files.read_text(_path(node, which)) != now:
            return which
    return None


def swap(node, text):
    """Write a new generation, durably, and point `published` at it."""
    there = numbers(node)
    new = (there or [0])[-1] + 1
    files.write(_path(node, new), text)
    files.flush(late=False)  # earlier writes too: records never lag behind what is live
    files.swap_link(_link(node), os.path.join("generations", str(new)))
    for which in there[: 1 - KEEP]:
        files.remove(_path(node, which))


def _link(node):
    return node.in_state("published")


def _path(node, which):
    return node.in_state("generations", str(which))
