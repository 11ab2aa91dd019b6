"""Traces: whether a request's is recorded is decided at the edge, and every proxy and process behind it follows.

Without a collector the edge alone takes part: it begins a trace that nobody records, whose id then stands in all logs.
"""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.trace.v3 import http_tracer_pb2, opentelemetry_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.type.v3 import percent_pb2

from mesh.xds import clusters, pb
from mesh.xds.plan import NodePlan

HEADERS = ("traceparent", "tracestate", "baggage")  # clients outside have no say in what is recorded


def edge(node: NodePlan) -> HttpConnectionManager:
    """Begins the trace of every request, and records the share that the values say."""
    share = node.telemetry.sampled * 100 if node.telemetry.otlp else 0.0
    return HttpConnectionManager(tracing=_tracing(node, node.node.service, "%ROUTE_NAME%", share))


def inbound(node: NodePlan) -> HttpConnectionManager:
    """Follows the caller. What comes without a trace is a health check, of which nothing is recorded."""
    return _sidecar(node, 0.0)


def egress(node: NodePlan) -> HttpConnectionManager:
    """Follows the application; of what comes from it without a trace the share is recorded."""
    return _sidecar(node, node.telemetry.sampled * 100)


def outbound(node: NodePlan) -> listener_pb2.Listener:
    """Makes the spans of a listener those of a caller."""
    direction = base_pb2.OUTBOUND if node.telemetry.otlp else base_pb2.UNSPECIFIED
    return listener_pb2.Listener(traffic_direction=direction)


def _sidecar(node: NodePlan, share: float) -> HttpConnectionManager:
    """Takes part where a collector is told of it; else what comes is passed on as it is."""
    if not node.telemetry.otlp:
        return HttpConnectionManager()
    return HttpConnectionManager(tracing=_tracing(node, f"{node.node.service}.proxy", "%REQ(:PATH)%", share))


def _tracing(node: NodePlan, service: str, operation: str, share: float) -> HttpConnectionManager.Tracing:
    config = opentelemetry_pb2.OpenTelemetryConfig(service_name=service)
    # Envoy takes no tracer without a receiver. Where nothing is recorded nothing is sent, to whomever it is.
    config.grpc_service.envoy_grpc.cluster_name = clusters.COLLECTOR if node.telemetry.otlp else clusters.APP
    config.grpc_service.timeout.CopyFrom(pb.seconds(5))
    return HttpConnectionManager.Tracing(
        client_sampling=percent_pb2.Percent(value=0),
        random_sampling=percent_pb2.Percent(value=share),
        max_path_tag_length=pb.uint32(0),  # a path may say whom, and a query what, somebody searched for
        operation=operation,
        provider=http_tracer_pb2.Tracing.Http(name="envoy.tracers.opentelemetry", typed_config=pb.pack(config)),
    )
