"""How much may be under way towards one subset at a time, and how many of those calls may be retries."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.cluster.v3.circuit_breaker_pb2 import CircuitBreakers
from envoy.type.v3 import percent_pb2

from mesh.topology import Limits
from mesh.xds import pb
from mesh.xds.plan import NodePlan, Target

# At 20 % a full outage costs a callee at most 1.2 x its load; the floor lets a quiet service retry at all.
RETRY_PERCENT, RETRY_FLOOR = 20, 1


def cluster(node: NodePlan, target: Target) -> cluster_pb2.Cluster:
    """The limits of the values, and the retry budget."""
    budget = CircuitBreakers.Thresholds.RetryBudget(
        budget_percent=percent_pb2.Percent(value=RETRY_PERCENT), min_retry_concurrency=pb.uint32(RETRY_FLOOR)
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
