"""How many calls at once an instance takes before it gets slow, found out by itself. The rest: RESOURCE_EXHAUSTED.

Not UNAVAILABLE: callers would count that towards an ejection and send what is shed here to the next one, until none is
left. An answer is never repeated (see `retries`), so what is shed stays shed.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.adaptive_concurrency.v3.adaptive_concurrency_pb2 import (
    AdaptiveConcurrency,
    GradientControllerConfig,
)
from envoy.type.v3 import http_status_pb2, percent_pb2

from mesh.xds import pb
from mesh.xds.plan import NodePlan

FILTER = "envoy.filters.http.adaptive_concurrency"
SAMPLE_SECONDS = 0.1
# The latency of an instance at rest is measured anew so often, with `least` calls at once until so many have ended.
REST_SECONDS, REST_CALLS, REST_JITTER_PERCENT = 60, 50, 15


def shed(node: NodePlan) -> Any:
    """Sleeps until a route wakes it: health checks never do, or a busy instance would count as a dead one."""
    limit = node.traffic.concurrency.least
    gradient = GradientControllerConfig(
        sample_aggregate_percentile=percent_pb2.Percent(value=90),
        concurrency_limit_params=GradientControllerConfig.ConcurrencyLimitCalculationParams(
            concurrency_update_interval=pb.seconds(SAMPLE_SECONDS),
            max_concurrency_limit=pb.uint32(max(limit, node.limits.max_requests)),
        ),
        min_rtt_calc_params=GradientControllerConfig.MinimumRTTCalculationParams(
            interval=pb.seconds(REST_SECONDS),
            request_count=pb.uint32(REST_CALLS),
            jitter=percent_pb2.Percent(value=REST_JITTER_PERCENT),
            min_concurrency=pb.uint32(limit),
        ),
    )
    config = AdaptiveConcurrency(
        gradient_controller_config=gradient,
        enabled=base_pb2.RuntimeFeatureFlag(default_value=pb.true(), runtime_key="nourish.unused"),
        concurrency_limit_exceeded_status=http_status_pb2.HttpStatus(code=http_status_pb2.TooManyRequests),
    )
    return pb.sleeping(FILTER, config)


def settings(node: NodePlan) -> dict[str, Any]:
    """Wakes it on the routes of the application's methods; by the filter's name."""
    return {FILTER: pb.awake()} if node.traffic.concurrency.adaptive else {}
