"""Sends spans and counts to an OpenTelemetry collector: OTLP over gRPC, from the event loop, in batches.

A collector that is away costs spans, never a call: what waits is bounded, and what is too much is counted and dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from mesh.runtime.environment import environment
from mesh.runtime.telemetry import metrics, traces
from mesh.runtime.telemetry.traces import Span

MOST_SPANS = 4096  # that wait
BATCH = 256
SPANS_SECONDS, METRICS_SECONDS = 1.0, 15.0
ANSWER_SECONDS = 5.0
LAST_SECONDS = 2.0  # at the end of the process
# What may be taken later; all else would be refused for ever.
_AGAIN = frozenset(
    (
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNAVAILABLE,
    )
)
_TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
_CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE

_log = logging.getLogger("mesh.runtime")


@asynccontextmanager
async def sending(address: str, share: float) -> AsyncIterator[None]:
    """Sends to the collector at `address`, host:port, while the block runs; at its end, what is left."""
    async with grpc.aio.insecure_channel(address) as channel:
        sender = _Sender(channel)
        traces.record_with(sender.keep, share)
        metrics.counter(
            "telemetry_spans_dropped_total", "Spans that the collector did not get.", lambda: sender.dropped
        )
        tasks = [asyncio.create_task(sender.send_spans()), asyncio.create_task(sender.send_counts())]
        try:
            yield
        finally:
            traces.record_with(None)
            for task in tasks:
                task.cancel()
            with suppress(grpc.aio.AioRpcError):
                await sender.send_rest()


class _Sender:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._traces, self._metrics = (_method(channel, path) for path in (_TRACES, _METRICS))
        self._resource = _resource()
        self._waiting: list[Span] = []
        self._enough = asyncio.Event()
        self._began = time.time_ns()
        self._away = False
        self.dropped = 0

    def keep(self, span: Span) -> None:
        """Takes a span that is over."""
        if len(self._waiting) >= MOST_SPANS:
            self.dropped += 1
            return
        self._waiting.append(span)
        if len(self._waiting) >= BATCH:
            self._enough.set()

    async def send_spans(self) -> None:
        """Sends them each second, or when there are many, until cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), SPANS_SECONDS)
            self._enough.clear()
            # What has come meanwhile waits for its own second, or until it is enough: a message costs more than a span.
            while self._waiting and await self._attempt(self._send_batch(ANSWER_SECONDS)):
                if len(self._waiting) < BATCH:
                    break
            if self._away:
                await asyncio.sleep(SPANS_SECONDS)

    async def send_counts(self) -> None:
        """Sends all counts now and then, until cancelled."""
        while True:
            await asyncio.sleep(METRICS_SECONDS)
            await self._attempt(self._send_counts(ANSWER_SECONDS))

    async def send_rest(self) -> None:
        """Sends what waits and the counts as they are at the end; raises what gRPC does."""
        while self._waiting:
            await self._send_batch(LAST_SECONDS)
        await self._send_counts(LAST_SECONDS)

    async def _send_batch(self, seconds: float) -> None:
        batch = self._waiting[:BATCH]
        try:
            await self._traces(_spans(batch, self._resource), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() in _AGAIN:
                raise
            self._drop(batch, error)
        except (TypeError, ValueError) as error:  # a span that no message can hold
            self._drop(batch, error)
        else:
            del self._waiting[: len(batch)]

    async def _send_counts(self, seconds: float) -> None:
        try:
            await self._metrics(self._counts(), timeout=seconds)
        except (TypeError, ValueError):
            _log.exception("a figure is no number")

    def _drop(self, batch: Sequence[Span], error: Exception) -> None:
        del self._waiting[: len(batch)]
        self.dropped += len(batch)
        _log.warning("spans are not accepted", extra={"spans": len(batch), "error": str(error)})

    async def _attempt(self, sending: Coroutine[Any, Any, None]) -> bool:
        try:
            await sending
        except grpc.aio.AioRpcError as error:
            if not self._away:
                _log.warning("the collector does not take what is sent", extra={"error": str(error.details())})
            self._away = True
            return False
        if self._away:
            _log.info("the collector takes what is sent again")
        self._away = False
        return True

    def _counts(self) -> metrics_service_pb2.ExportMetricsServiceRequest:
        now = time.time_ns()
        found = [_metric(family, self._began, now) for family in metrics.families() if family.values]
        held = metrics_pb2.InstrumentationLibraryMetrics(metrics=found)
        about = metrics_pb2.ResourceMetrics(resource=self._resource, instrumentation_library_metrics=[held])
        return metrics_service_pb2.ExportMetricsServiceRequest(resource_metrics=[about])


def _method(channel: grpc.aio.Channel, path: str) -> Any:
    return channel.unary_unary(path, request_serializer=lambda message: message.SerializeToString())


def _resource() -> resource_pb2.Resource:
    where = environment()
    facts = (
        ("service.name", where.service),
        ("service.instance.id", where.instance),
        ("service.namespace", "nourish"),
        ("nourish.subset", where.subset),
    )
    return resource_pb2.Resource(attributes=[_attribute(*fact) for fact in facts])


@lru_cache(1024)  # the most are the same in every span
def _attribute(key: str, value: str | int) -> common_pb2.KeyValue:
    of = {"int_value": value} if isinstance(value, int) else {"string_value": value}
    return common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(**of))


def _spans(batch: Sequence[Span], resource: Any) -> trace_service_pb2.ExportTraceServiceRequest:
    held = trace_pb2.InstrumentationLibrarySpans(spans=[_span(span) for span in batch])
    about = trace_pb2.ResourceSpans(resource=resource, instrumentation_library_spans=[held])
    return trace_service_pb2.ExportTraceServiceRequest(resource_spans=[about])


def _span(span: Span) -> trace_pb2.Span:
    status = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message=span.error) if span.error else None
    return trace_pb2.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=span.kind,
        start_time_unix_nano=span.start,
        end_time_unix_nano=span.end,
        attributes=[_attribute(*attribute) for attribute in span.attributes],
        status=status,
    )


def _metric(family: metrics.Family, began: int, now: int) -> metrics_pb2.Metric:
    points = [_point(labels, value, began, now) for labels, value in family.values.items()]
    metric = metrics_pb2.Metric(name=family.name, description=family.help)
    match family.kind:
        case "histogram":
            metric.unit = "s"
            metric.histogram.data_points.extend(points)
            metric.histogram.aggregation_temporality = _CUMULATIVE
        case "counter":
            metric.sum.data_points.extend(points)
            metric.sum.aggregation_temporality = _CUMULATIVE
            metric.sum.is_monotonic = True
        case _:
            metric.gauge.data_points.extend(points)
    return metric


def _point(labels: metrics.Labels, value: float | metrics.Histogram, began: int, now: int) -> Any:
    common = {
        "attributes": [_attribute(*label) for label in labels],
        "start_time_unix_nano": began,
        "time_unix_nano": now,
    }
    if not isinstance(value, metrics.Histogram):
        return metrics_pb2.NumberDataPoint(as_double=value, **common)
    return metrics_pb2.HistogramDataPoint(
        count=value.count, sum=value.sum, bucket_counts=value.buckets, explicit_bounds=metrics.BOUNDS, **common
    )
