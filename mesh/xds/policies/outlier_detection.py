"""An instance that answers, but badly, is left alone for a while.

Envoy counts a gRPC status as the HTTP status it corresponds to (INTERNAL, UNKNOWN and UNAVAILABLE are 5xx), so failures
that hide in HTTP 200 are seen.
"""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.cluster.v3.outlier_detection_pb2 import OutlierDetection

from mesh.xds import pb
from mesh.xds.plan import NodePlan, Target


def cluster(node: NodePlan, target: Target) -> cluster_pb2.Cluster:
    """So many failures in a row: out for a while, longer each time; one instance at least, and a share at most."""
    values = target.traffic.outliers
    errors = pb.uint32(values.consecutive_errors)
    return cluster_pb2.Cluster(
        outlier_detection=OutlierDetection(
            consecutive_5xx=errors,
            consecutive_gateway_failure=errors,
            enforcing_consecutive_gateway_failure=pb.uint32(100),
            split_external_local_origin_errors=True,
            consecutive_local_origin_failure=errors,
            interval=pb.seconds(1),
            base_ejection_time=pb.seconds(values.ejection_seconds),
            max_ejection_time=pb.seconds(values.max_ejection_seconds),
            max_ejection_percent=pb.uint32(values.max_ejection_percent),
            # The defaults never eject in a cluster of three or fewer: 50 % of them is less than one after the first.
            always_eject_one_host=pb.true(),
            # It was ejected for its answers: that it still passes its health check is no news.
            successful_active_health_check_uneject_host=pb.false(),
            # Too few instances for a standard deviation to mean anything.
            enforcing_success_rate=pb.uint32(0),
            enforcing_local_origin_success_rate=pb.uint32(0),
        )
    )
