"""
Jails and bhyve VMs as targets: ``salt -C 'T@cbsd:lb1' cbsd.status``. Needs Salt 3008; older ones do not look at this.

A node offers its watched envs once its pillar says so::

    resources:
      cbsd: {}

Offered are the names in the agent's records, so nothing has to be asked; ids have to be unique in the fleet, so an env that is on
two nodes (a replica) belongs to whichever registered last. What can be done with one is in ``modules/``; anything else is
refused by Salt.
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
    """Do what the managing minion's execution module ``cbsd`` does, with the env that is targeted."""
    return __salt__[f"cbsd.{verb}"](__resource__["id"], *args, **kwargs)
