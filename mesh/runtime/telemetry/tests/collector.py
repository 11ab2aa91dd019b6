"""A receiver of OTLP over gRPC that keeps what it gets."""

from __future__ import annotations

from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


class Collector:
    """Listens on a free port of loopback while its block runs."""

    def __init__(self) -> None:
        self.address = ""
        self.refusals: list[grpc.StatusCode] = []  # answers to come before it takes anything
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}  # the last of each name
        self.resources: list[Any] = []
        self.by_service: list[tuple[str, Any]] = []  # each span with the service that it says it is of

    async def __aenter__(self) -> Collector:
        self._server = grpc.aio.server()
        kinds = {
            "trace.v1.TraceService": (self._take_spans, trace_service_pb2.ExportTraceServiceRequest),
            "metrics.v1.MetricsService": (self._take_metrics, metrics_service_pb2.ExportMetricsServiceRequest),
        }
        for name, (take, kind) in kinds.items():
            handler = grpc.unary_unary_rpc_method_handler(take, kind.FromString, lambda _: b"")
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(f"opentelemetry.proto.collector.{name}", {"Export": handler}),)
            )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def _take_spans(self, request: Any, context: Any) -> bytes:
        if self.refusals:
            await context.abort(self.refusals.pop(0), "not now")
        for about in request.resource_spans:
            self.resources.append(about.resource)
            names = {a.key: a.value.string_value for a in about.resource.attributes}
            for held in about.instrumentation_library_spans:
                self.spans += held.spans
                self.by_service += [(names.get("service.name", ""), span) for span in held.spans]
        return b""

    async def _take_metrics(self, request: Any, _context: Any) -> bytes:
        for about in request.resource_metrics:
            self.resources.append(about.resource)
            for held in about.instrumentation_library_metrics:
                self.metrics.update({metric.name: metric for metric in held.metrics})
        return b""
