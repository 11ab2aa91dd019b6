"""EDS: which instances stand behind each cluster, by priority."""

from __future__ import annotations

from envoy.config.core.v3 import address_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from mesh.xds import pb
from mesh.xds.plan import Host, NodePlan, Target
from mesh.xds.policies import balancing, locality

# Envoy's own checks decide on all others.
HEALTH = {"draining": health_check_pb2.DRAINING, "unhealthy": health_check_pb2.UNHEALTHY}


def assignments(node: NodePlan) -> list[endpoint_pb2.ClusterLoadAssignment]:
    """The load assignment of every upstream cluster of a node."""
    return [assignment(node, target) for target in node.targets]


def assignment(node: NodePlan, target: Target) -> endpoint_pb2.ClusterLoadAssignment:
    """The instances of a subset first, and those that it fails over to behind them."""
    by_priority, provisioned = locality.priorities(node, target)
    localities = [
        endpoint_components_pb2.LocalityLbEndpoints(
            priority=priority, lb_endpoints=[endpoint(target, h) for h in hosts]
        )
        for priority, hosts in enumerate(by_priority)
    ]
    return endpoint_pb2.ClusterLoadAssignment(
        cluster_name=target.name,
        endpoints=localities,
        policy=endpoint_pb2.ClusterLoadAssignment.Policy(overprovisioning_factor=pb.uint32(provisioned)),
    )


def local(name: str, socket: str) -> endpoint_pb2.ClusterLoadAssignment:
    """One Unix socket on the proxy's own machine."""
    address = pb.pipe(socket)
    address.pipe.mode = 0  # a mode is for sockets that we bind
    return single(name, address)


def single(name: str, address: address_pb2.Address) -> endpoint_pb2.ClusterLoadAssignment:
    """One place that is always the same."""
    one = endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=address))
    return endpoint_pb2.ClusterLoadAssignment(
        cluster_name=name, endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[one])]
    )


def endpoint(target: Target, host: Host) -> endpoint_components_pb2.LbEndpoint:
    """One instance."""
    address = pb.tcp(host.address, host.port)
    return endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(address=address, hostname=host.instance),
        health_status=HEALTH.get(host.health, health_check_pb2.UNKNOWN),
        metadata=balancing.endpoint(target, host),
    )
