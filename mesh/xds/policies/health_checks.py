"""Each caller asks each instance's gRPC health service, over the same mTLS that its calls take."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3.health_check_pb2 import HealthCheck

from mesh.xds import pb
from mesh.xds.plan import NodePlan, Target


def cluster(node: NodePlan, target: Target) -> cluster_pb2.Cluster:
    """Every 5 s while it is well, every second while it is not."""
    check = HealthCheck(
        timeout=pb.seconds(1),
        interval=pb.seconds(5),
        interval_jitter_percent=20,
        # Without traffic Envoy would ask once a minute: an instance that died quietly would take the first calls.
        no_traffic_interval=pb.seconds(5),
        unhealthy_interval=pb.seconds(1),
        unhealthy_threshold=pb.uint32(2),
        healthy_threshold=pb.uint32(1),
        # service_name "" is the server as a whole.
        grpc_health_check=HealthCheck.GrpcHealthCheck(authority=target.name),
    )
    return cluster_pb2.Cluster(health_checks=[check])
