"""Which instance of a subset takes a call."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.type.v3 import percent_pb2

from mesh.xds import pb
from mesh.xds.plan import NodePlan, Target

# Panic: with no healthy instance at all Envoy still tries one rather than refuse, since the check, not the service, may
# be at fault; above that it never sends to an instance known to be bad (its own 50 % would, in a cluster of three).
PANIC_BELOW_PERCENT = 1


def cluster(node: NodePlan, target: Target) -> cluster_pb2.Cluster:
    """Least requests under way, among the instances that are well."""
    return cluster_pb2.Cluster(
        lb_policy=cluster_pb2.Cluster.LbPolicy.LEAST_REQUEST,
        common_lb_config=cluster_pb2.Cluster.CommonLbConfig(
            healthy_panic_threshold=percent_pb2.Percent(value=PANIC_BELOW_PERCENT),
            # Envoy holds back changes of health for up to a second, to merge them. With instances by the ten that saves
            # nothing, and a second of calls would still go to one that is known to be ejected.
            update_merge_window=pb.seconds(0),
        ),
        # A withdrawn instance gets no new call, even if it still passes its health check: it is about to stop.
        ignore_health_on_host_removal=True,
    )
