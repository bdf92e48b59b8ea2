"""A simulated CBSD node, and execution modules that look at it, loaded by Salt's own loader."""

import os
import pathlib
import shutil
import tempfile

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def cbsd_node():
    if os.geteuid() != 0:
        pytest.skip("needs root: the commands of CBSD are only for root")
    from sim import Node

    made = Node(tempfile.mkdtemp(prefix="cn", dir="/tmp") + "/n").create()
    yield made
    made.destroy()
    os.rmdir(os.path.dirname(made.root))


@pytest.fixture(scope="session")
def minion_opts(tmp_path_factory):
    import salt.config
    import salt.loader

    root = tmp_path_factory.mktemp("minion")
    opts = salt.config.minion_config(None, minion_id="hv1")
    for key in ("cachedir", "extension_modules", "sock_dir", "pki_dir", "conf_file"):
        opts[key] = str(root / key)
    opts.update(root_dir=str(root), file_client="local", module_dirs=[str(REPO / "_modules")])
    opts["grains"] = salt.loader.grains(opts)
    yield opts
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def load_modules(minion_opts):
    """A function that loads execution modules with the given configuration on top."""
    import salt.loader

    def load(**configuration):
        return salt.loader.minion_mods({**minion_opts, **configuration}, context={})

    return load


@pytest.fixture
def cbsd_lookup(cbsd_node):
    lookup = {name: f"{cbsd_node.bin}/{name}" for name in ("cbsd", "jls", "jexec")}
    return {
        **lookup, "rc_conf": f"{cbsd_node.root}/etc/rc.conf", "vmm": f"{cbsd_node.root}/dev/vmm",
        "run": f"{cbsd_node.root}/run",
    }  # fmt: skip


@pytest.fixture
def modules(load_modules, cbsd_lookup):
    return load_modules(cbsd_monit={"lookup": cbsd_lookup})
