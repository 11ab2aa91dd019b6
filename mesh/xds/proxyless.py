"""What a process with gRPC's own xDS client is told, in place of an Envoy's resources.

It names the two listeners that it wants: `egress`, which its channel follows by routes and clusters to endpoints, and
`inbound`, which says whom it serves. gRPC refuses what it does not know in some messages and passes it over in others,
so nothing is in these that it does not honour; what it cannot do at all `mesh.values.proxyless` lists.
"""

from __future__ import annotations

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_components_pb2, listener_pb2
from envoy.config.route.v3.route_components_pb2 import NonForwardingAction, Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    Rds,
)
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from google.protobuf import wrappers_pb2

from mesh.contract import Method
from mesh.xds import endpoints, pb
from mesh.xds.listeners import HCM
from mesh.xds.plan import Callee, NodePlan, Target
from mesh.xds.policies import balancing, canary, jwt, rbac, tls
from mesh.xds.routes import EGRESS, INBOUND

# The certificate provider of the process's bootstrap: the files of its identity, read again each second.
PROVIDER = "identity"
ROUTER = pb.http_filter("envoy.filters.http.router", router_pb2.Router())


def clusters(node: NodePlan) -> list[cluster_pb2.Cluster]:
    """Each subset of each service that the process calls."""
    return [_cluster(target) for callee in node.callees if callee.methods for target in callee.targets]


def assignments(node: NodePlan) -> list[endpoint_pb2.ClusterLoadAssignment]:
    """The instances of each cluster."""
    return [_assignment(target) for callee in node.callees if callee.methods for target in callee.targets]


def listeners(node: NodePlan) -> list[listener_pb2.Listener]:
    """For its channel, and for its server."""
    return [_egress(), _inbound(node)]


def routes(node: NodePlan) -> list[RouteConfiguration]:
    """To each method of each service that the values let this one call; for any other gRPC answers UNAVAILABLE."""
    found = [route for callee in node.callees for method in callee.methods for route in _call(callee, method)]
    return [RouteConfiguration(name=EGRESS, virtual_hosts=[VirtualHost(name=EGRESS, domains=["*"], routes=found)])]


def _egress() -> listener_pb2.Listener:
    http = HttpConnectionManager(rds=Rds(config_source=pb.ads(), route_config_name=EGRESS), http_filters=[ROUTER])
    return listener_pb2.Listener(name=EGRESS, api_listener=api_listener_pb2.ApiListener(api_listener=pb.pack(http)))


def _inbound(node: NodePlan) -> listener_pb2.Listener:
    """Who may call what, and whose tokens are good: the sidecars' own filters, which the runtime carries out."""
    serves = [Route(match=RouteMatch(path=m.path), non_forwarding_action=NonForwardingAction()) for m in node.methods]
    http = HttpConnectionManager(
        route_config=RouteConfiguration(
            name=INBOUND, virtual_hosts=[VirtualHost(name=INBOUND, domains=["*"], routes=serves)]
        ),
        http_filters=[rbac.peers(node), jwt.verify(node), ROUTER],
    )
    network = listener_components_pb2.Filter(name=HCM, typed_config=pb.pack(http))
    return listener_pb2.Listener(name=INBOUND, filter_chains=[listener_components_pb2.FilterChain(filters=[network])])


def _call(callee: Callee, method: Method) -> list[Route]:
    """No deadline: the runtime sets it, for gRPC's client lets that of a route pass too early (0043).

    No retry policy: gRPC repeats by itself what certainly did not start, and its xDS tells no answer from a loss.
    """
    action = RouteAction()
    action.MergeFrom(balancing.route(method))
    return canary.routes(callee, Route(name=method.path[1:], match=RouteMatch(path=method.path)), action)


def _cluster(target: Target) -> cluster_pb2.Cluster:
    ring = target.traffic.balancing == "ringHash"
    most = circuit_breaker_pb2.CircuitBreakers.Thresholds(max_requests=pb.uint32(target.limits.max_requests))
    cluster = cluster_pb2.Cluster(
        name=target.name,
        type=cluster_pb2.Cluster.DiscoveryType.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=pb.ads()),
        lb_policy=cluster_pb2.Cluster.LbPolicy.RING_HASH if ring else cluster_pb2.Cluster.LbPolicy.ROUND_ROBIN,
        circuit_breakers=circuit_breaker_pb2.CircuitBreakers(thresholds=[most]),
        transport_socket=_tls(target),
    )
    if ring:
        size = cluster_pb2.Cluster.RingHashLbConfig(
            minimum_ring_size=wrappers_pb2.UInt64Value(value=balancing.RING_SIZE)
        )
        cluster.ring_hash_lb_config.CopyFrom(size)
    return cluster


def _tls(target: Target) -> base_pb2.TransportSocket:
    """Only the callee's own certificate will do. gRPC speaks TLS 1.3 with whoever can, and refuses to be told."""
    provider = common_pb2.CertificateProviderPluginInstance(instance_name=PROVIDER)
    peer = common_pb2.CertificateValidationContext(
        ca_certificate_provider_instance=provider, match_subject_alt_names=[pb.exact(target.spiffe_id)]
    )
    context = tls_pb2.UpstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(tls_certificate_provider_instance=provider, validation_context=peer)
    )
    return base_pb2.TransportSocket(name=tls.TRANSPORT_SOCKET, typed_config=pb.pack(context))


def _assignment(target: Target) -> endpoint_pb2.ClusterLoadAssignment:
    """gRPC leaves out a locality without a weight, and refuses two of one name."""
    found = endpoint_pb2.ClusterLoadAssignment(cluster_name=target.name)
    for priority, hosts in enumerate(target.hosts):
        locality = found.endpoints.add(priority=priority, load_balancing_weight=pb.uint32(1))
        locality.locality.region = f"priority-{priority}"
        locality.lb_endpoints.extend(endpoints.endpoint(target, host) for host in hosts)
    return found
