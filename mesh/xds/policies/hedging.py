"""A second attempt beside a slow first one, where the contract asks for it; the first answer wins."""

from __future__ import annotations

from envoy.config.route.v3.route_components_pb2 import HedgePolicy, RetryPolicy, RouteAction

from mesh.contract import Method
from mesh.xds import pb


def route(method: Method) -> RouteAction:
    """The one retry that `retries` grants, within its budget and on another instance, before the first has failed."""
    if not method.hedge_seconds:
        return RouteAction()
    return RouteAction(
        hedge_policy=HedgePolicy(hedge_on_per_try_timeout=True),
        retry_policy=RetryPolicy(per_try_timeout=pb.seconds(method.hedge_seconds)),
    )
