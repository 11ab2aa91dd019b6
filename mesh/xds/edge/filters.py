"""The HTTP filters of the edge, in the order in which a request meets them. A response goes the other way.

A filter's per-route settings come from the route as it is when the filter runs: in front of the transcoder that is the
catch-all for REST, behind it the method's own. A reply that Envoy makes by itself passes all of them on its way out.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3.route_components_pb2 import RouteMatch
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.grpc_json_transcoder.v3.transcoder_pb2 import GrpcJsonTranscoder
from envoy.extensions.filters.http.grpc_web.v3 import grpc_web_pb2
from envoy.extensions.filters.http.header_to_metadata.v3.header_to_metadata_pb2 import Config as HeaderToMetadata
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import JwtAuthentication, JwtRequirement, RequirementRule
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2

from mesh.xds import pb
from mesh.xds.edge import errors, json_schema, reach
from mesh.xds.plan import NodePlan
from mesh.xds.policies import jwt, rbac

CORS = "envoy.filters.http.cors"
BUFFER = "envoy.filters.http.buffer"
JSON_CHECK, GRPC_STATUS = "json_check", "grpc_status"
MAX_RESPONSE_BYTES = 8 << 20  # of the message; without a limit the transcoder stops at the connection's buffer
METADATA = "nourish.edge"  # where grpc_status.lua finds the request id


def chain(node: NodePlan) -> list[Any]:
    """Every filter, each with why it stands where it does."""
    return [
        # A preflight is answered before anything asks for a token.
        pb.http_filter(CORS, cors_pb2.Cors()),
        pb.http_filter("envoy.filters.http.header_to_metadata", _request_id()),
        pb.http_filter("envoy.filters.http.grpc_web", grpc_web_pb2.GrpcWeb()),
        # In front of all that buffers: the one bound on a request body that holds.
        pb.http_filter(BUFFER, buffer_pb2.Buffer(max_request_bytes=pb.uint32(node.edge.max_request_bytes))),
        # The transcoder drops unknown fields and takes loose JSON; it has no setting for either.
        _lua(JSON_CHECK, node, json_schema.tables(reach.methods(node), node.descriptors)),
        pb.http_filter("envoy.filters.http.grpc_json_transcoder", _transcoder(node)),
        # Behind the transcoder, so that it sees an error before that becomes JSON.
        _lua(GRPC_STATUS, node, errors.tables()),
        pb.http_filter(jwt.FILTER, _tokens(node)),
        rbac.scopes(node),
        pb.http_filter("envoy.filters.http.router", router_pb2.Router(suppress_envoy_headers=True)),
    ]


def _request_id() -> HeaderToMetadata:
    """Lua cannot see request headers when it handles a response; metadata it can."""
    found = HeaderToMetadata.KeyValuePair(metadata_namespace=METADATA, key="id")
    return HeaderToMetadata(request_rules=[HeaderToMetadata.Rule(header="x-request-id", on_header_present=found)])


def _lua(name: str, node: NodePlan, tables: str) -> Any:
    source = base_pb2.DataSource(inline_string=tables + node.materials.lua[f"{name}.lua"])
    return pb.http_filter(name, lua_pb2.Lua(stat_prefix=name, default_source_code=source, clear_route_cache=pb.false()))


def _transcoder(node: NodePlan) -> GrpcJsonTranscoder:
    checks = GrpcJsonTranscoder.RequestValidationOptions(
        reject_unknown_method=True,
        reject_unknown_query_parameters=True,
        # Else a body may name another resource than the path that was authorized.
        reject_binding_body_field_collisions=True,
    )
    printing = GrpcJsonTranscoder.PrintOptions(always_print_primitive_fields=True, stream_newline_delimited=True)
    return GrpcJsonTranscoder(
        proto_descriptor_bin=reach.descriptors(node).SerializeToString(deterministic=True),
        services=reach.services(node),
        convert_grpc_status=True,
        print_options=printing,
        url_unescape_spec=GrpcJsonTranscoder.UrlUnescapeSpec.ALL_CHARACTERS_EXCEPT_RESERVED,
        query_param_unescape_plus=True,
        request_validation_options=checks,
        max_request_body_size=pb.uint32(node.edge.max_request_bytes),
        max_response_body_size=pb.uint32(MAX_RESPONSE_BYTES),
    )


def _tokens(node: NodePlan) -> JwtAuthentication:
    """Each route names what it requires; one that forgot to gets the rule, which wants a token."""
    return JwtAuthentication(
        providers={jwt.PROVIDER: jwt.provider(node.materials.jwks, routed_by=True)},
        requirement_map={method.access: jwt.requirement(method) for method in reach.methods(node)},
        rules=[RequirementRule(match=RouteMatch(prefix="/"), requires=JwtRequirement(provider_name=jwt.PROVIDER))],
        strip_failure_response=True,
        bypass_cors_preflight=True,
    )
