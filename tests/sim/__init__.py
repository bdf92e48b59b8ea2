"""A simulated FreeBSD host that runs CBSD 14.1.3a, for tests on Linux.

`sim.node.Node` is the whole node; `python tests/sim/node.py --help` is the same from a shell.
"""

import os
import sys


def leave(code):
    """End a simulated command: without the interpreter's own cleaning up, a tenth of its time."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def __getattr__(name):
    """`sim.Node`, imported on demand: a simulated `cbsd` imports this package at every start."""
    if name == "Node":
        from sim.node import Node

        return Node
    raise AttributeError(name)
