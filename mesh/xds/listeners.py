"""LDS: where a proxy takes calls. `inbound` from the mesh, `egress` from its own application; on the edge, `edge`."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import protocol_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    Rds,
)

from mesh.xds import edge, pb, policies, scraping, tracing
from mesh.xds.clusters import CONNECTION_WINDOW, STREAM_WINDOW
from mesh.xds.plan import NodePlan
from mesh.xds.policies import access_log, balancing, connections, headers, local_replies, tls
from mesh.xds.routes import EGRESS, INBOUND

HCM = "envoy.filters.network.http_connection_manager"
APP_STREAMS = 1000  # per connection of the application beside it, which has few


def listeners(node: NodePlan) -> list[listener_pb2.Listener]:
    """The listeners of a node."""
    own = [edge.edge_listener(node)] if node.is_edge else [inbound(node), egress(node)]
    return [*own, *scraping.listeners(node)]


def inbound(node: NodePlan) -> listener_pb2.Listener:
    """mTLS from the mesh: the peer is known by its certificate before a byte of HTTP is read."""
    http = _http(INBOUND, [policy(node) for policy in policies.INBOUND_FILTERS])
    http.forward_client_cert_details = HttpConnectionManager.ForwardClientCertDetails.SANITIZE_SET
    http.set_current_client_cert_details.uri = True
    http.local_reply_config.CopyFrom(local_replies.inbound())
    http.access_log.append(access_log.log(INBOUND, **access_log.CALLER))
    http.MergeFrom(connections.inbound(node))
    http.MergeFrom(tracing.inbound(node))
    chain = _chain(http)
    chain.transport_socket.CopyFrom(tls.downstream(node))
    chain.transport_socket_connect_timeout.CopyFrom(pb.seconds(5))
    return listener_pb2.Listener(
        name=INBOUND, address=pb.tcp(node.node.inbound_address, node.node.inbound_port), filter_chains=[chain]
    )


def egress(node: NodePlan) -> listener_pb2.Listener:
    """From the application beside this proxy, on a Unix socket that only its user may open."""
    http = _http(EGRESS, [policy(node) for policy in policies.EGRESS_FILTERS], kept=(balancing.KEY,))
    http.local_reply_config.CopyFrom(local_replies.egress())
    http.access_log.append(access_log.log(EGRESS, **access_log.CALLEE))
    http.MergeFrom(tracing.egress(node))
    listener = tracing.outbound(node)
    listener.MergeFrom(
        listener_pb2.Listener(name=EGRESS, address=pb.pipe(node.node.egress_socket), filter_chains=[_chain(http)])
    )
    return listener


def _http(name: str, filters: list[Any | None], kept: tuple[str, ...] = ()) -> HttpConnectionManager:
    router = pb.http_filter("envoy.filters.http.router", router_pb2.Router(suppress_envoy_headers=True))
    return HttpConnectionManager(
        stat_prefix=name,
        codec_type=HttpConnectionManager.CodecType.HTTP2,
        rds=Rds(config_source=pb.ads(), route_config_name=name),
        http_filters=[*(f for f in filters if f is not None), router],
        early_header_mutation_extensions=[headers.strip(kept=kept)],
        http2_protocol_options=protocol_pb2.Http2ProtocolOptions(
            max_concurrent_streams=pb.uint32(APP_STREAMS),
            initial_stream_window_size=pb.uint32(STREAM_WINDOW),
            initial_connection_window_size=pb.uint32(CONNECTION_WINDOW),
        ),
    )


def _chain(http: HttpConnectionManager) -> listener_components_pb2.FilterChain:
    network = listener_components_pb2.Filter(name=HCM, typed_config=pb.pack(http))
    return listener_components_pb2.FilterChain(filters=[network])
