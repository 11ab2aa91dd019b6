"""Which instance of a subset takes a call."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, extension_pb2
from envoy.config.route.v3.route_components_pb2 import RouteAction
from envoy.extensions.load_balancing_policies.common.v3 import common_pb2
from envoy.extensions.load_balancing_policies.ring_hash.v3 import ring_hash_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import wrappers_pb2

from mesh.contract import Method
from mesh.xds import pb
from mesh.xds.plan import Host, NodePlan, Target

# Panic: with no healthy instance at all Envoy still tries one rather than refuse, since the check, not the service, may
# be at fault; above that it never sends to an instance known to be bad (its own 50 % would, in a cluster of three).
PANIC_BELOW_PERCENT = 1
# A digest of the request's `hash_key`, from the caller's application; no sidecar passes it on.
KEY = "x-nourish-key"
_KEY_HASH = RouteAction.HashPolicy(header=RouteAction.HashPolicy.Header(header_name=KEY))
# At least 150 points for each of the 100 instances that the values allow a subset. It does not follow the number of
# instances, for then each new instance would change the cluster itself.
RING_SIZE = 16_384
POLICIES = {
    "leastRequest": cluster_pb2.Cluster.LbPolicy.LEAST_REQUEST,
    "roundRobin": cluster_pb2.Cluster.LbPolicy.ROUND_ROBIN,
    "random": cluster_pb2.Cluster.LbPolicy.RANDOM,
    "ringHash": cluster_pb2.Cluster.LbPolicy.RING_HASH,
}


def cluster(node: NodePlan, target: Target) -> cluster_pb2.Cluster:
    """As the values say, by default the least requests under way, among the instances that are well."""
    found = cluster_pb2.Cluster(
        lb_policy=POLICIES[target.traffic.balancing],
        common_lb_config=cluster_pb2.Cluster.CommonLbConfig(
            healthy_panic_threshold=percent_pb2.Percent(value=PANIC_BELOW_PERCENT),
            # Envoy holds back changes of health for up to a second, to merge them. With instances by the ten that saves
            # nothing, and a second of calls would still go to one that is known to be ejected.
            update_merge_window=pb.seconds(0),
        ),
        # A withdrawn instance gets no new call, even if it still passes its health check: it is about to stop.
        ignore_health_on_host_removal=True,
    )
    if target.traffic.balancing == "ringHash":
        found.load_balancing_policy.CopyFrom(_ring())
    return found


def _ring() -> cluster_pb2.LoadBalancingPolicy:
    """It hashes the key whatever else a route hashes."""
    hashing = common_pb2.ConsistentHashingLbConfig(hash_policy=[_KEY_HASH])
    ring = ring_hash_pb2.RingHash(
        minimum_ring_size=wrappers_pb2.UInt64Value(value=RING_SIZE), consistent_hashing_lb_config=hashing
    )
    config = extension_pb2.TypedExtensionConfig(
        name="envoy.load_balancing_policies.ring_hash", typed_config=pb.pack(ring)
    )
    policy = cluster_pb2.LoadBalancingPolicy.Policy(typed_extension_config=config)
    return cluster_pb2.LoadBalancingPolicy(policies=[policy])


def endpoint(target: Target, host: Host) -> base_pb2.Metadata | None:
    """Where on the ring an instance stands: by its name, for its port may be another after a restart."""
    if target.traffic.balancing != "ringHash":
        return None
    metadata = base_pb2.Metadata()
    metadata.filter_metadata["envoy.lb"].update({"hash_key": host.instance})
    return metadata


def route(method: Method) -> RouteAction:
    """What is hashed, where the contract names it: for gRPC's own xDS, which looks for it here alone."""
    return RouteAction(hash_policy=[_KEY_HASH]) if method.hash_key else RouteAction()
