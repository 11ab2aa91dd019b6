"""One request through the edge is one trace: of the edge, of every sidecar that it passes and of the services."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from mesh.runtime.telemetry import traces
from mesh.runtime.telemetry.tests.collector import Collector
from tests.e2e.harness import wait_until

# That nobody has asked for: nutrition keeps what it looks up.
FOODS = ("guava", "okra", "jicama", "kohlrabi", "rutabaga", "tamarind", "persimmon", "quail", "cassava", "kumquat")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Receives on a thread of its own; the story waits for commands meanwhile."""
    found, started, loop = Collector(), threading.Event(), asyncio.new_event_loop()
    ended = asyncio.Event()

    async def receive() -> None:
        async with found:
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(receive()))
    thread.start()
    assert started.wait(10)
    yield found
    loop.call_soon_threadsafe(ended.set)
    thread.join()


@pytest.fixture(scope="module")
def traced(mesh, collector):
    """The mesh with a collector; of the processes nutrition alone is started anew, and has it."""
    mesh.apply({"telemetry": {"otlp": collector.address}})
    mesh.run("restart", "nutrition", "--force")
    yield mesh
    mesh.run("apply")


@pytest.fixture(scope="module")
def trace(traced, collector):
    """The spans of one request, each with the service that it is of; and the answer."""
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    for food in FOODS:  # a proxy sends its spans five at a time, or after five seconds
        body = {"lines": [f"100 g {food}"]}
        answer = httpx.post(f"{traced.url}/api/v1/nutrition:analyze", json=body, headers=headers, timeout=20)
        assert answer.status_code == 200, answer.text
    id_ = answer.headers["x-request-id"]

    def spans():
        of = {span.trace_id for _, span in collector.by_service if id_ in str(span.attributes)}
        found = [(service, span) for service, span in collector.by_service if span.trace_id in of]
        return found if {"edge", "nutrition", "nutrition.proxy", "food.proxy"} <= {s for s, _ in found} else None

    return wait_until(spans, what="the spans of all"), answer


def chain(spans) -> list[tuple[str, int]]:
    """Services and kinds from the edge down to the first sidecar of the other service."""
    below = {span.parent_span_id: (service, span) for service, span in spans}
    found, at = [], b""
    while at in below:
        service, span = below[at]
        found.append((service, span.kind))
        at = span.span_id
    return found


def test_edge_sidecars_and_service_are_parents_and_children(trace):
    spans, _ = trace
    assert chain(spans)[:6] == [
        ("edge", traces.SERVER),
        ("nutrition.proxy", traces.SERVER),
        ("nutrition", traces.SERVER),
        ("nutrition", traces.CLIENT),
        ("nutrition.proxy", traces.CLIENT),
        ("food.proxy", traces.SERVER),
    ]


def test_a_client_outside_neither_begins_nor_silences_a_trace(trace):
    spans, _ = trace
    assert "0af7651916cd43dd8448eb211c80319c" not in {span.trace_id.hex() for _, span in spans}


def test_no_span_says_what_was_asked_for(trace):
    spans, _ = trace
    assert FOODS[-1] not in str(spans)


def test_the_edges_log_joins_request_and_trace(trace, traced):
    spans, answer = trace
    lines = wait_until(
        lambda: [
            line
            for line in traced.run("logs", "edge", "-n", "100", "--json").stdout.splitlines()
            if answer.headers["x-request-id"] in line
        ],
        what="the edge's line",
    )
    assert json.loads(lines[0])["line"]["trace_id"] == spans[0][1].trace_id.hex()
