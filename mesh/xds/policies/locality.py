"""Calls stay in the caller's zone while the callee is well there, where the values say so."""

from __future__ import annotations

from mesh.xds.plan import Host, NodePlan, Target

# Calls leave a priority only when nothing in it is healthy. Envoy's 140 % would send part of the stable subset's calls
# to the canary as soon as fewer than 72 % of the stable instances are well.
NO_SPILL_PERCENT = 10_000
# Between two zones of one subset that is what is wanted: the few that are left must not take the calls of all. A live
# canary stands behind both, and gets some when the two together are less than 72 % well.
SPILL_PERCENT = 140


def priorities(node: NodePlan, target: Target) -> tuple[tuple[tuple[Host, ...], ...], int]:
    """The instances by priority, and how well (in percent of what is needed) each counts as provisioned.

    A subset that has no instance in the caller's zone, or no other, is not divided.
    """
    own, *spare = target.hosts
    near = tuple(host for host in own if host.zone == node.node.zone)
    far = tuple(host for host in own if host.zone != node.node.zone)
    if target.traffic.zone == "any" or not node.node.zone or not near or not far:
        return target.hosts, NO_SPILL_PERCENT
    return (near, far, *spare), SPILL_PERCENT
