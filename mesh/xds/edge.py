"""The edge: what the outside world may reach, and how."""

from __future__ import annotations

from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    Rds,
)

from mesh.xds import pb
from mesh.xds.plan import NodePlan

EDGE = "edge"


def edge_listener(node: NodePlan) -> listener_pb2.Listener:
    """The one listener of an edge proxy."""
    http = HttpConnectionManager(
        stat_prefix=EDGE,
        rds=Rds(config_source=pb.ads(), route_config_name=EDGE),
        http_filters=[pb.http_filter("envoy.filters.http.router", router_pb2.Router())],
    )
    network = listener_components_pb2.Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=pb.pack(http)
    )
    return listener_pb2.Listener(
        name=EDGE,
        address=pb.tcp(node.node.inbound_address, node.node.inbound_port),
        filter_chains=[listener_components_pb2.FilterChain(filters=[network])],
    )


def edge_routes(node: NodePlan) -> RouteConfiguration:
    """One route for each method that is exposed."""
    routes = [
        Route(match=RouteMatch(path=m.path), route=RouteAction(cluster=c.targets[0].name))
        for c in node.callees
        for m in c.methods
        if m.exposed
    ]
    return RouteConfiguration(name=EDGE, virtual_hosts=[VirtualHost(name=EDGE, domains=["*"], routes=routes)])
