"""How many calls a second an instance takes, by what the contract says they cost. The rest: RESOURCE_EXHAUSTED.

Each inbound sidecar counts for itself. The limits come with the routes, so that an edit breaks no connection; any edit
of a node's routes fills its buckets anew.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3.route_components_pb2 import RateLimit
from envoy.extensions.common.ratelimit.v3.ratelimit_pb2 import LocalRateLimitDescriptor, RateLimitDescriptor
from envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2 import LocalRateLimit
from envoy.type.v3 import percent_pb2
from envoy.type.v3.token_bucket_pb2 import TokenBucket

from mesh.contract import Method
from mesh.traffic import Rate
from mesh.xds import pb
from mesh.xds.plan import NodePlan

FILTER = "envoy.filters.http.local_ratelimit"
CLASS = "rate_class"
NO_LIMIT = 2**32 - 1


def limit(node: NodePlan) -> Any:
    """Nothing by itself: the routes say what to do."""
    return pb.http_filter(FILTER, LocalRateLimit(stat_prefix="rates"))


def settings(node: NodePlan) -> dict[str, Any]:
    """The buckets, one a class, for all routes of the node; by the filter's name, empty if there is no limit."""
    limited = node.traffic.rates.limited
    if not limited:
        return {}
    always = base_pb2.RuntimeFractionalPercent(default_value=percent_pb2.FractionalPercent(numerator=100))
    config = LocalRateLimit(
        stat_prefix="rates",
        # For calls without a class. Envoy wants one, and this one is never empty.
        token_bucket=_tokens(NO_LIMIT, NO_LIMIT),
        always_consume_default_token_bucket=pb.false(),
        descriptors=[_bucket(name, rate) for name, rate in limited.items()],
        filter_enabled=always,
        filter_enforced=always,
        rate_limited_as_resource_exhausted=True,
    )
    return {FILTER: pb.pack(config)}


def classes(node: NodePlan, method: Method) -> list[RateLimit]:
    """What a route tells the filter: the class of its method, if that has a limit."""
    if method.rate_class not in node.traffic.rates.limited:
        return []
    key = RateLimit.Action.GenericKey(descriptor_key=CLASS, descriptor_value=method.rate_class)
    return [RateLimit(actions=[RateLimit.Action(generic_key=key)])]


def _bucket(name: str, rate: Rate) -> LocalRateLimitDescriptor:
    return LocalRateLimitDescriptor(
        entries=[RateLimitDescriptor.Entry(key=CLASS, value=name)],
        token_bucket=_tokens(max(rate.burst, rate.per_second), rate.per_second),
    )


def _tokens(most: int, each_second: int) -> TokenBucket:
    return TokenBucket(max_tokens=most, tokens_per_fill=pb.uint32(each_second), fill_interval=pb.seconds(1))
