"""How long a call may take in all, retries included: the contract's deadline, or the caller's when that is nearer."""

from __future__ import annotations

from envoy.config.route.v3 import route_components_pb2

from mesh.contract import Method
from mesh.xds import pb


def route(method: Method) -> route_components_pb2.RouteAction:
    """The fragment for one method."""
    # The stream's duration, not the route timeout: it answers DEADLINE_EXCEEDED where the other answers UNAVAILABLE,
    # and it holds for streams too. The router writes what it allows into the grpc-timeout that the callee sees.
    deadline = pb.seconds(method.deadline_seconds)
    return route_components_pb2.RouteAction(
        timeout=pb.seconds(0),
        max_stream_duration=route_components_pb2.RouteAction.MaxStreamDuration(
            max_stream_duration=deadline, grpc_timeout_header_max=deadline
        ),
    )
