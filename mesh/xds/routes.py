"""RDS: one route a method, by its exact gRPC path; everything else is refused."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3.route_components_pb2 import DirectResponseAction, Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from mesh.contract import Method
from mesh.xds import edge, pb, policies
from mesh.xds.clusters import APP, CONTROL, SUPPORT
from mesh.xds.plan import Callee, NodePlan
from mesh.xds.policies import (
    canary,
    concurrency,
    faults,
    mirroring,
    rate_limits,
    rbac,
    retries,
    sizes,
    stickiness,
    timeouts,
)

INBOUND, EGRESS = "inbound", "egress"
SETTINGS = "/nourish.mesh.v1.SettingsService/WatchSettings"
SERVICE_HEADER = "x-nourish-service"


def routes(node: NodePlan) -> list[RouteConfiguration]:
    """The route configurations of a node."""
    return [edge.edge_routes(node)] if node.is_edge else [inbound(node), egress(node)]


def inbound(node: NodePlan) -> RouteConfiguration:
    """To the application: its own methods, health and reflection. Who may use which is RBAC's matter."""
    methods = [_to_app(node, method) for method in node.methods]
    support = [
        Route(name=prefix.strip("/"), match=RouteMatch(prefix=prefix), route=RouteAction(cluster=SUPPORT))
        for prefix in (rbac.HEALTH, rbac.REFLECTION)
    ]
    config = _config(INBOUND, [*methods, *support, refuse(404)])
    for name, setting in rate_limits.settings(node).items():
        config.virtual_hosts[0].typed_per_filter_config[name].CopyFrom(setting)
    return config


def egress(node: NodePlan) -> RouteConfiguration:
    """To each method of each service that the values let this one call, and to its own settings."""
    calls = [route for callee in node.callees for method in callee.methods for route in call(callee, method)]
    config = _config(EGRESS, [*calls, settings(node), refuse(403)])
    config.response_headers_to_remove.extend(retries.SIGNS)
    return config


def call(callee: Callee, method: Method) -> list[Route]:
    """The routes of one method of one callee."""
    action = RouteAction()
    for policy in policies.EGRESS_ROUTE:
        action.MergeFrom(policy(method))
    action.MergeFrom(mirroring.route(callee, method))
    base = Route(
        name=method.path[1:],
        match=RouteMatch(path=method.path),
        typed_per_filter_config=stickiness.settings(callee),
    )
    return canary.routes(callee, base, action)


def settings(node: NodePlan) -> Route:
    """To the control plane, for as long as both live. Whose settings they are is said here, not by the application."""
    action = RouteAction(cluster=CONTROL, timeout=pb.seconds(0), idle_timeout=pb.seconds(0))
    whose = pb.header(SERVICE_HEADER, node.node.service)
    return Route(name="settings", match=RouteMatch(path=SETTINGS), route=action, request_headers_to_add=[whose])


def refuse(status: int) -> Route:
    """Whatever no other route takes. Envoy maps 403 to PERMISSION_DENIED and 404 to UNIMPLEMENTED."""
    body = base_pb2.DataSource(inline_string="refused")  # local_replies words it
    return Route(
        name="refused",
        match=RouteMatch(prefix="/"),
        direct_response=DirectResponseAction(status=status, body=body),
    )


def _to_app(node: NodePlan, method: Method) -> Route:
    action = RouteAction(cluster=APP)
    action.MergeFrom(timeouts.route(method))
    action.rate_limits.extend(rate_limits.classes(node, method))
    return Route(
        name=method.path[1:],
        match=RouteMatch(path=method.path),
        route=action,
        typed_per_filter_config={
            **rbac.settings(method),
            **faults.settings(node),
            **concurrency.settings(node),
            **sizes.settings(node, method),
        },
    )


def _config(name: str, routes: list[Route]) -> RouteConfiguration:
    host = VirtualHost(name=name, domains=["*"], routes=routes)
    return RouteConfiguration(name=name, virtual_hosts=[host], validate_clusters=pb.false())
