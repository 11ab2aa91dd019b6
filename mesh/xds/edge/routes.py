"""RDS of the edge: an allow-list of exact gRPC paths.

A REST request is on the catch-all until the transcoder has turned it into gRPC; then its route is found again.
"""

from __future__ import annotations

import re
from typing import Any

from envoy.config.route.v3.route_components_pb2 import (
    DirectResponseAction,
    HeaderMatcher,
    Route,
    RouteAction,
    RouteMatch,
    VirtualHost,
)
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import PerRouteConfig
from envoy.extensions.filters.http.lua.v3 import lua_pb2

from mesh.contract import Method
from mesh.topology import LOCAL_HOSTS
from mesh.xds import pb, policies
from mesh.xds.clusters import APP
from mesh.xds.edge import filters
from mesh.xds.plan import Callee, NodePlan
from mesh.xds.policies import canary, faults, jwt, mirroring, rbac, retries, timeouts

EDGE = "edge"
ANY_HOST = "*"
_REQUEST_HEADERS = "authorization, content-type, x-grpc-web, x-user-agent, grpc-timeout, x-nourish-canary"
_RESPONSE_HEADERS = "grpc-status, grpc-message, grpc-status-details-bin, x-request-id"
_PREFLIGHT_SECONDS = 600


def edge_routes(node: NodePlan) -> RouteConfiguration:
    """One route for each exposed method, and a catch-all that leads nowhere."""
    own = [_to_app(method) for method in node.methods if method.exposed]
    calls = [r for callee in node.callees for method in callee.methods if method.exposed for r in _call(callee, method)]
    known = VirtualHost(
        name=EDGE,
        domains=node.edge.hosts,
        routes=[*own, *calls, _bodiless(), _nowhere()],
        typed_per_filter_config={filters.CORS: _cors(node.edge.hosts)},
    )
    # A page of another site, also one that has this address under its own name (DNS rebinding), finds nothing here.
    strangers = VirtualHost(name="other hosts", domains=[ANY_HOST], routes=[_misdirected()])
    hosts = [known] if ANY_HOST in node.edge.hosts else [known, strangers]
    return RouteConfiguration(
        name=EDGE,
        virtual_hosts=hosts,
        validate_clusters=pb.false(),
        request_headers_to_remove=faults.from_outside(node),
        response_headers_to_remove=retries.SIGNS,
    )


def _call(callee: Callee, method: Method) -> list[Route]:
    action = RouteAction()
    for policy in policies.EGRESS_ROUTE:
        action.MergeFrom(policy(method))
    action.MergeFrom(mirroring.route(callee, method))
    return canary.routes(callee, _route(method), action)


def _to_app(method: Method) -> Route:
    route = _route(method)
    route.route.MergeFrom(timeouts.route(method))
    route.route.cluster = APP
    return route


def _route(method: Method) -> Route:
    """All but where it leads."""
    settings: dict[str, Any] = {
        jwt.FILTER: PerRouteConfig(requirement_name=method.access),
        # On this route from the start means gRPC: there is no JSON.
        filters.JSON_CHECK: lua_pb2.LuaPerRoute(disabled=True),
    }
    if method.client_streaming:
        settings[filters.BUFFER] = buffer_pb2.BufferPerRoute(disabled=True)
    return Route(
        name=method.path[1:],
        # No `grpc` condition: a gRPC-Web request has another content type when it is first matched.
        match=RouteMatch(path=method.path),
        typed_per_filter_config={
            **rbac.settings(method),
            **{name: pb.pack(config) for name, config in settings.items()},
        },
    )


def _nowhere() -> Route:
    """404, and no question of tokens before it: what does not exist needs no sign-in."""
    return Route(
        name="nowhere",
        match=RouteMatch(prefix="/"),
        # Not a direct response: the CORS filter passes those by, and then no preflight is answered.
        route=RouteAction(
            cluster="nowhere",
            cluster_not_found_response_code=RouteAction.ClusterNotFoundResponseCode.NOT_FOUND,
        ),
        typed_per_filter_config={jwt.FILTER: pb.pack(PerRouteConfig(disabled=True))},
    )


def _misdirected() -> Route:
    """421: it may be right to ask, but not here."""
    return Route(
        name="misdirected",
        match=RouteMatch(prefix="/"),
        direct_response=DirectResponseAction(status=421),
        typed_per_filter_config={jwt.FILTER: pb.pack(PerRouteConfig(disabled=True))},
    )


def _bodiless() -> Route:
    """A GET as nearly all are: the JSON check would find nothing, and costs a twentieth of the call."""
    route = _nowhere()
    route.name = "bodiless"
    absent = [
        HeaderMatcher(name=n, present_match=True, invert_match=True) for n in ("content-length", "transfer-encoding")
    ]
    route.match.headers.extend([pb.header_is(":method", pb.exact("GET")), *absent])
    # HTTP/2 needs no such header for a body: let none pass that could be JSON.
    one_byte = buffer_pb2.BufferPerRoute(buffer=buffer_pb2.Buffer(max_request_bytes=pb.uint32(1)))
    route.typed_per_filter_config[filters.BUFFER].CopyFrom(pb.pack(one_byte))
    route.typed_per_filter_config[filters.JSON_CHECK].CopyFrom(pb.pack(lua_pb2.LuaPerRoute(disabled=True)))
    return route


def _cors(names: tuple[str, ...]) -> Any:
    """Pages of these hosts, on any port, and for "any" of this machine. Tokens are sent by hand: no cookies."""
    named = LOCAL_HOSTS if ANY_HOST in names else names
    hosts = [re.escape(name).replace(r"\*", r"[a-z0-9.-]+") for name in named]
    return pb.pack(
        cors_pb2.CorsPolicy(
            allow_origin_string_match=[pb.regex(f"https?://{host}(?::[0-9]+)?") for host in hosts],
            allow_methods="GET, POST, PUT, PATCH, DELETE",
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
            max_age=str(_PREFLIGHT_SECONDS),
        )
    )
