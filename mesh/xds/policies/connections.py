"""How long a connection from another sidecar lives, and how many calls it carries at once."""

from __future__ import annotations

from envoy.config.core.v3 import protocol_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from mesh.xds import pb
from mesh.xds.plan import NodePlan


def inbound(node: NodePlan) -> HttpConnectionManager:
    """HTTP/2 connections never rebalance by themselves: their life is bounded. At its end no call is cut off."""
    return HttpConnectionManager(
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(
            max_connection_duration=pb.seconds(node.limits.connection_seconds)
        ),
        http2_protocol_options=protocol_pb2.Http2ProtocolOptions(
            max_concurrent_streams=pb.uint32(node.limits.streams_per_connection)
        ),
    )
