"""How calls are shared between the stable and the canary subset: a header that forces one, else by weight."""

from __future__ import annotations

from typing import Any

from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, WeightedCluster

from mesh.xds import pb
from mesh.xds.plan import Callee, Target
from mesh.xds.policies import stickiness

HEADER = "x-nourish-canary"
FORCED = {"always": "canary", "never": "stable"}


def routes(callee: Callee, base: Route, action: RouteAction) -> list[Route]:
    """The routes of one method. `base` holds its name, match and per-route settings, `action` all but the cluster."""
    if len(callee.targets) == 1:
        return [_route(base, action, cluster=callee.targets[0].name)]
    by_subset = {target.subset: target for target in callee.targets}
    forced = [_forced(base, action, value, by_subset[subset]) for value, subset in FORCED.items()]  # type: ignore[index]
    weights = {"stable": 100 - callee.weight, "canary": callee.weight}
    split = WeightedCluster(
        clusters=[
            WeightedCluster.ClusterWeight(name=target.name, weight=pb.uint32(weights[target.subset]))
            for target in callee.targets
        ]
    )
    shared = _route(base, action, weighted_clusters=split)
    stickiness.divide(callee, shared.route)
    return [*forced, shared]


def _forced(base: Route, action: RouteAction, value: str, target: Target) -> Route:
    route = _route(base, action, cluster=target.name)
    if target.subset == "canary":
        del route.route.request_mirror_policies[:]  # it has the call itself
    route.match.headers.append(pb.header_is(HEADER, pb.exact(value)))
    return route


def _route(base: Route, action: RouteAction, **destination: Any) -> Route:
    route = Route()
    route.CopyFrom(base)
    route.route.CopyFrom(action)
    route.route.MergeFrom(RouteAction(**destination))
    return route
