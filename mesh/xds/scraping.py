"""Where Prometheus reads: one plain port of each proxy, if the values want it, with two paths and no others.

/metrics is what the application counts, /stats/prometheus what its proxy does. Neither says what anybody asked for.
"""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from mesh.xds import endpoints, pb
from mesh.xds.plan import NodePlan

METRICS = "metrics"  # the listener
ADMIN, TELEMETRY = "admin", "telemetry"  # clusters
PATHS = {"/metrics": TELEMETRY, "/stats/prometheus": ADMIN}


def wanted(node: NodePlan) -> bool:
    """Whether the values ask for it, and the proxy's bootstrap says what is needed."""
    return bool(node.telemetry.port and node.node.admin_socket)


def listeners(node: NodePlan) -> list[listener_pb2.Listener]:
    """The port, or none."""
    if not wanted(node):
        return []
    router = pb.http_filter("envoy.filters.http.router", router_pb2.Router(suppress_envoy_headers=True))
    host = VirtualHost(name=METRICS, domains=["*"], routes=[_route(path, to) for path, to in PATHS.items()])
    http = HttpConnectionManager(
        stat_prefix=METRICS,
        route_config=RouteConfiguration(name=METRICS, virtual_hosts=[host]),
        http_filters=[router],
        request_headers_timeout=pb.seconds(5),
        stream_idle_timeout=pb.seconds(30),
    )
    network = listener_components_pb2.Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=pb.pack(http)
    )
    return [
        listener_pb2.Listener(
            name=METRICS,
            address=pb.tcp(node.node.inbound_address, node.node.metrics_port),
            enable_reuse_port=pb.false(),
            filter_chains=[listener_components_pb2.FilterChain(filters=[network])],
        )
    ]


def clusters(node: NodePlan) -> list[cluster_pb2.Cluster]:
    """The two sockets behind it, or none."""
    if not wanted(node):
        return []
    sockets = {ADMIN: node.node.admin_socket, TELEMETRY: node.node.telemetry_socket}
    return [
        cluster_pb2.Cluster(
            name=name,
            type=cluster_pb2.Cluster.DiscoveryType.STATIC,
            connect_timeout=pb.seconds(1),
            load_assignment=endpoints.local(name, socket),
        )
        for name, socket in sockets.items()
    ]


def _route(path: str, cluster: str) -> Route:
    match = RouteMatch(path=path, headers=[pb.header_is(":method", pb.exact("GET"))])
    return Route(match=match, route=RouteAction(cluster=cluster, timeout=pb.seconds(10)))
