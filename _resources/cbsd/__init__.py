"""
Jails and bhyve VMs as targets: ``salt -C 'T@cbsd:lb1' cbsd.status``. Salt before 3008 ignores this.

A node offers its watched envs if its pillar says so::

    resources:
      cbsd: {}

It offers the names in the agent's records, so no program is run. Ids have to be unique in the
fleet: an env that is on two nodes (a replica) belongs to the one that registered last. What can be
done with an env is in ``modules/``; Salt refuses anything else.
"""

import os
import re

ENV = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\Z")


def __virtual__():
    return True


def init(opts):
    """Nothing has to be prepared."""


def discover(opts):
    """Return the names of the envs that this node's agent watches."""
    lookup = (opts.get("pillar", {}).get("cbsd_monit") or {}).get("lookup") or {}
    try:
        names = os.listdir(os.path.join(lookup.get("state") or "/var/db/cbsd_monit", "envs"))
    except OSError:
        return []
    stems = (name[:-5] for name in names if name.endswith(".json"))
    return sorted(filter(ENV.match, stems))


def grains():
    """Return what an env can be targeted by."""
    return {"resource_id": __resource__["id"], "cbsd_env": __resource__["id"]}


def ping():
    """Return True if the env runs."""
    return call("status") == "on"


def call(verb, *args, **kwargs):
    """Do with the targeted env what the execution module ``cbsd`` of its minion does."""
    return __salt__[f"cbsd.{verb}"](__resource__["id"], *args, **kwargs)
