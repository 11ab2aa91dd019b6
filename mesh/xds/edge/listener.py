"""LDS of the edge: one listener for REST, gRPC and gRPC-Web, hardened as Envoy's own page on edge proxies says.

https://www.envoyproxy.io/docs/envoy/latest/configuration/best_practices/edge; heap and connection limits are in the
bootstrap.
"""

from __future__ import annotations

from envoy.config.core.v3 import address_pb2, protocol_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    Rds,
)

from mesh.xds import pb, tracing
from mesh.xds.edge import errors, filters, reach
from mesh.xds.edge.routes import EDGE
from mesh.xds.plan import NodePlan
from mesh.xds.policies import access_log, headers

BUFFER_BYTES = 32 << 10  # per connection
HEADER_KB, HEADERS = 32, 100
STREAMS, STREAM_WINDOW, CONNECTION_WINDOW = 100, 64 << 10, 1 << 20  # per connection; bytes
HEADERS_SECONDS, REQUEST_SECONDS, STREAM_IDLE_SECONDS, IDLE_SECONDS = 10, 30, 60, 300
REQUESTS_PER_CONNECTION = 10_000
# Headers that an application may take for the platform's word, besides x-nourish-* and x-envoy-*.
SPOOFABLE = ("x-forwarded-", "x-jwt-", "x-user-", "x-auth-", "x-b3-")
SPOOFABLE_NAMES = (
    *("forwarded", "via", "b3", "x-original-url", "x-rewrite-url", "x-ot-span-context"),
    *("grpc-tags-bin", "grpc-trace-bin", "grpc-previous-rpc-attempts"),
)
LOGGED = {
    **access_log.CALLEE,
    "http_status": "%RESPONSE_CODE%",
    "received_bytes": "%BYTES_RECEIVED%",
    "sent_bytes": "%BYTES_SENT%",
    # Without the query, which may say what somebody searched for.
    "request": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)% %PATH(NQ:ORIG_OR_PATH)%",
    "method": "%ROUTE_NAME%",
    "trace_id": "%TRACE_ID%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
}


def edge_listener(node: NodePlan) -> listener_pb2.Listener:
    """The one listener of an edge proxy."""
    network = listener_components_pb2.Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=pb.pack(_http(node))
    )
    return listener_pb2.Listener(
        name=EDGE,
        address=pb.tcp(node.node.inbound_address, node.node.inbound_port),
        # Two proxies that share a port by accident would each get half of the calls: let the second one fail.
        enable_reuse_port=pb.false(),
        per_connection_buffer_limit_bytes=pb.uint32(BUFFER_BYTES),
        filter_chains=[listener_components_pb2.FilterChain(filters=[network])],
    )


def _http(node: NodePlan) -> HttpConnectionManager:
    slashes = HttpConnectionManager.PathWithEscapedSlashesAction.REJECT_REQUEST
    manager = HttpConnectionManager(
        stat_prefix=EDGE,
        codec_type=HttpConnectionManager.CodecType.AUTO,
        rds=Rds(config_source=pb.ads(), route_config_name=EDGE),
        http_filters=filters.chain(node),
        local_reply_config=errors.replies(reach.methods(node)),
        access_log=[access_log.log(EDGE, **LOGGED)],
        early_header_mutation_extensions=[headers.strip(*SPOOFABLE, names=(*SPOOFABLE_NAMES, *tracing.HEADERS))],
        normalize_path=pb.true(),
        merge_slashes=True,
        path_with_escaped_slashes_action=slashes,
        strip_any_host_port=True,
        strip_trailing_host_dot=True,
        server_name="nourish",
        max_request_headers_kb=pb.uint32(HEADER_KB),
        request_headers_timeout=pb.seconds(HEADERS_SECONDS),
        request_timeout=pb.seconds(REQUEST_SECONDS),
        stream_idle_timeout=pb.seconds(STREAM_IDLE_SECONDS),
    )
    manager.MergeFrom(tracing.edge(node))
    _trust_nobody(manager)
    _protocols(manager)
    return manager


def _trust_nobody(manager: HttpConnectionManager) -> None:
    """The peer's address is the client, whatever its headers say; the request id is made here and told."""
    manager.use_remote_address.CopyFrom(pb.true())
    # With an empty list Envoy takes loopback and private addresses for its own side and believes their headers: name a
    # range that no client has.
    nobody = address_pb2.CidrRange(address_prefix="255.255.255.255", prefix_len=pb.uint32(32))
    manager.internal_address_config.cidr_ranges.append(nobody)
    manager.always_set_request_id_in_response = True


def _protocols(manager: HttpConnectionManager) -> None:
    common = protocol_pb2.HttpProtocolOptions(
        idle_timeout=pb.seconds(IDLE_SECONDS),
        # `x_nourish_user` and `x-nourish-user` are one to many frameworks.
        headers_with_underscores_action=protocol_pb2.HttpProtocolOptions.HeadersWithUnderscoresAction.REJECT_REQUEST,
        max_headers_count=pb.uint32(HEADERS),
        max_requests_per_connection=pb.uint32(REQUESTS_PER_CONNECTION),
    )
    http2 = protocol_pb2.Http2ProtocolOptions(
        max_concurrent_streams=pb.uint32(STREAMS),
        initial_stream_window_size=pb.uint32(STREAM_WINDOW),
        initial_connection_window_size=pb.uint32(CONNECTION_WINDOW),
    )
    manager.common_http_protocol_options.CopyFrom(common)
    manager.http2_protocol_options.CopyFrom(http2)
