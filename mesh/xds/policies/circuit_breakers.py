"""How much may be under way towards one subset at a time, and how many of those calls may be retries."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.cluster.v3.circuit_breaker_pb2 import CircuitBreakers
from envoy.type.v3 import percent_pb2

from mesh.topology import Limits
from mesh.xds import pb
from mesh.xds.plan import NodePlan, Target

# Retries under way: a share of the calls under way, but at least this share of the calls that the values allow at once.
# The floor is for the loss of an instance: all of its calls break in one moment, and then nothing else is under way of
# which to take a percentage. Measured with 20 callers: a floor of 1 failed 17 calls, one of 50 (5 % of 1,000) none.
# A callee that lives and answers UNAVAILABLE costs nothing of it: answers are not repeated, see `retries`.
RETRY_PERCENT, RETRY_FLOOR_PERCENT_OF_LIMIT = 20, 5


def cluster(node: NodePlan, target: Target) -> cluster_pb2.Cluster:
    """The limits of the values, and the retry budget."""
    budget = CircuitBreakers.Thresholds.RetryBudget(
        budget_percent=percent_pb2.Percent(value=RETRY_PERCENT),
        min_retry_concurrency=pb.uint32(max(1, target.limits.max_requests * RETRY_FLOOR_PERCENT_OF_LIMIT // 100)),
    )
    thresholds = limits(target.limits)
    thresholds.retry_budget.CopyFrom(budget)
    return cluster_pb2.Cluster(circuit_breakers=CircuitBreakers(thresholds=[thresholds]))


def limits(values: Limits) -> CircuitBreakers.Thresholds:
    """Connections, waiting calls and calls under way."""
    return CircuitBreakers.Thresholds(
        max_connections=pb.uint32(values.max_connections),
        max_pending_requests=pb.uint32(values.max_pending_requests),
        max_requests=pb.uint32(values.max_requests),
        track_remaining=True,
    )
