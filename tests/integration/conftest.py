"""A real master and a real minion whose host is a simulated CBSD node."""

import json

import pytest
from node_on_salt import file_root


@pytest.fixture(scope="package")
def hosts(salt_factories, tmp_path_factory):
    """(master, minion, node): started, synced, and with the node's paths in the pillar."""
    import os
    import tempfile

    from node_on_salt import SaltNode

    if os.geteuid() != 0:
        pytest.skip("needs root: simulated jails listen on their own loopback addresses")
    node = SaltNode(tempfile.mkdtemp(prefix="cm", dir="/tmp"), "hv1")
    node.create()
    pillar = tmp_path_factory.mktemp("pillar")
    states = file_root(tmp_path_factory.mktemp("files") / "root")
    (pillar / "top.sls").write_text("base: {'hv*': [cbsd_monit]}\n")
    (states / "top.sls").write_text("base: {'hv*': [cbsd_monit]}\n")
    node.pillar_file = pillar / "cbsd_monit.sls"

    def set_pillar(settings):
        full = {**settings, "lookup": node.lookup()}
        node.pillar_file.write_text("#!json\n" + json.dumps({"cbsd_monit": full}))

    node.pillar = set_pillar
    node.pillar({})
    master = salt_factories.salt_master_daemon(
        "master",
        overrides={
            "open_mode": True,
            "file_roots": {"base": [str(states)]},
            "pillar_roots": {"base": [str(pillar)]},
            "worker_threads": 3,
            "interface": "127.0.0.1",
        },
    )
    with master.started():
        minion = master.salt_minion_daemon("hv1")
        with minion.started():
            yield master, minion, node
    node.destroy()
