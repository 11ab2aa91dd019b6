"""What telemetry costs a call: `serve()` beside bare grpc.aio, with counters alone, and with every call recorded."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from nourish.food.v1.food_pb2 import GetFoodRequest
from nourish.food.v1.food_pb2_grpc import FoodServiceStub

from bench import load, processes
from bench.report import goals
from mesh.runtime.telemetry.tests.collector import Collector

CALLS, ROUNDS = 1500, 8
GOAL = 0.80
NAME = "foods/usda-1"
HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
# The server, and what its calls carry: nothing, a trace that is not recorded, one that is.
KINDS = {
    "bare": ("bare grpc.aio", "bare", None),
    "counted": ("`serve()`: counted, and its trace passed on", "serve", "00"),
    "recorded": ("`serve()`: the same, and each call a span that is sent", "traced", "01"),
}


def run() -> dict[str, Any]:
    """Measures all in turn; gives figures by kind, and ratios to the bare server's of the same round."""
    return asyncio.run(_run())


def report(results: dict[str, Any]) -> list[str]:
    """The table and the goal."""
    lines = [
        "## Telemetry",
        "",
        f"GetFood, a small food: medians of {ROUNDS} rounds of {CALLS:,} calls, {load.CALLERS} callers,",
        "CPU of the server.",
        "",
        "| | calls/s | CPU us/call |",
        "| --- | ---: | ---: |",
    ]
    for kind, (label, _, _) in KINDS.items():
        figures = results["figures"][kind]
        lines.append(f"| {label} | {figures['calls_per_second']:,.0f} | {figures['cpu_us_per_call']:,.0f} |")
    rates = results["rates"]
    held = [(f"rate, {kind} / bare", rate, f">= {GOAL:.2f}", rate >= GOAL) for kind, rate in rates.items()]
    return [*lines, "", *goals(held), "", f"Spans that reached the collector: {results['spans_received']:.1%}."]


async def _run() -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nourish-bench-")))
        collector = await stack.enter_async_context(Collector())
        food = folder / "food.json"
        food.write_text(f'{{"name": "{NAME}", "displayName": "Onions, raw", "category": "Vegetables"}}')
        measures = {}
        for kind, (_, server, flag) in KINDS.items():
            with _environment({"NOURISH_OTLP": collector.address} if server == "traced" else {}):
                ready, which = folder / server, "bare" if server == "bare" else "serve"
                started = processes.server("bench.grpc_servers", which, str(ready), str(food), ready=ready)
                pid = stack.enter_context(started)
            metadata = (("traceparent", HEADER + flag),) if flag else ()
            measures[kind] = partial(_measure, f"unix:{ready}", metadata, pid)
        rounds = []
        for number in range(ROUNDS):
            order = list(measures) if number % 2 else list(reversed(measures))
            rounds.append({kind: await measures[kind]() for kind in order})
        sent = ROUNDS * (CALLS + load.WARM_UP_CALLS)
        async with asyncio.timeout(10):
            while len(collector.spans) < sent and not await _quiet(collector):
                pass
    fields = ("calls_per_second", "cpu_us_per_call")
    figures = {kind: {f: median(getattr(r[kind], f) for r in rounds) for f in fields} for kind in KINDS}
    rates = {
        kind: median(r[kind].calls_per_second / r["bare"].calls_per_second for r in rounds)
        for kind in KINDS
        if kind != "bare"
    }
    return {"figures": figures, "rates": rates, "spans_received": len(collector.spans) / sent}


async def _quiet(collector: Collector) -> bool:
    before = len(collector.spans)
    await asyncio.sleep(3)
    return len(collector.spans) == before


async def _measure(address: str, metadata: tuple[tuple[str, str], ...], pid: int) -> load.Result:
    async with _stub(address) as stub:
        request = GetFoodRequest(name=NAME)
        return await load.measure(lambda: stub.GetFood(request, timeout=10, metadata=metadata), CALLS, [pid])


@asynccontextmanager
async def _stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.default_authority", "mesh")]) as channel:
        yield FoodServiceStub(channel)


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            del os.environ[name]
