"""What all tests share: simulated nodes with Salt that end."""

import contextlib
import os
import pathlib
import sys
import tempfile

import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))
sys.path.insert(0, str(REPO))

with contextlib.suppress(ImportError):
    import salt._logging

    # Else its handler complains of closed files after pytest's last line.
    salt._logging.shutdown_temp_handler()


@pytest.fixture(scope="module")
def salt_node():
    """A function that makes simulated nodes with Salt; they are destroyed after the module."""
    if os.geteuid() != 0:
        pytest.skip("needs root: simulated jails listen on their own loopback addresses")
    from node_on_salt import SaltNode

    made = []

    def make(minion="hv1"):
        root = tempfile.mkdtemp(prefix="cm", dir="/tmp")
        node = SaltNode(root, minion)
        made.append(node)
        node.create()
        return node

    yield make
    for node in made:
        node.destroy()
