"""What the mesh does to a call, one file a policy. Each is a pure function from plan facts to a proto fragment.

The compiler merges the fragments in the order written here; for HTTP filters that is the order in which a request
meets them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.contract import Method
from mesh.xds.plan import NodePlan, Target
from mesh.xds.policies import (
    balancing,
    call_stats,
    circuit_breakers,
    concurrency,
    faults,
    health_checks,
    hedging,
    jwt,
    outlier_detection,
    rate_limits,
    rbac,
    retries,
    sizes,
    stickiness,
    tap,
    timeouts,
    tls,
)

# Fragments of envoy.config.cluster.v3.Cluster, for every upstream cluster.
CLUSTER: tuple[Callable[[NodePlan, Target], Any], ...] = (
    balancing.cluster,
    tls.cluster,
    circuit_breakers.cluster,
    outlier_detection.cluster,
    health_checks.cluster,
)

# Fragments of envoy.config.route.v3.RouteAction, for every method that a sidecar calls.
EGRESS_ROUTE: tuple[Callable[[Method], Any], ...] = (timeouts.route, retries.route, hedging.route, balancing.route)

# HTTP filters of the inbound listener: who calls, on whose behalf, whether that user may, and then what may befall it.
INBOUND_FILTERS: tuple[Callable[[NodePlan], Any], ...] = (
    rbac.peers,
    jwt.verify,
    rbac.scopes,
    rate_limits.limit,
    concurrency.shed,
    sizes.hold,
    call_stats.filter,  # what is refused before it is no call of the application's; a fault on purpose counts as one
    tap.calls,
    faults.inject,
)

# HTTP filters of the egress listener.
EGRESS_FILTERS: tuple[Callable[[NodePlan], Any], ...] = (stickiness.users,)
