"""What all tests share: loopback-only salt-factories, and simulated nodes with Salt that end."""

import contextlib
import os
import pathlib
import shutil
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


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """Bind the log server of salt-factories to loopback; by default it listens everywhere."""
    plugin = session.config.pluginmanager.get_plugin("saltfactories-log-server")
    if plugin is not None:
        plugin.log_host = "127.0.0.1"


@pytest.fixture(scope="session")
def salt_factories_config():
    root = pathlib.Path(
        tempfile.mkdtemp(prefix="sf", dir="/tmp")
    )  # short: paths of unix sockets have a limit
    try:
        yield {"root_dir": root, "slow_stop": False}
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def event_listener():
    from saltfactories.plugins.event_listener import EventListener

    listener = EventListener()
    listener.host = "127.0.0.1"
    listener.address = f"tcp://{listener.host}:{listener.port}"
    with listener:
        yield listener


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
