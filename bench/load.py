"""Closed-loop load: so many callers, each with one call open at a time, for a bounded number of calls."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import grpc
from nourish.food.v1.food_pb2 import GetFoodRequest
from nourish.food.v1.food_pb2_grpc import FoodServiceStub

from bench.processes import cpu_seconds

CALLERS = 16
READERS = 4  # of each kind
READERS_PATH, READ_SECONDS = "/api/v1/foods?pageSize=1", 10.0
WARM_UP_CALLS = 200  # a round; the servers stay up between rounds


@dataclass(frozen=True)
class Result:
    """One measured path: calls a second in this run, CPU of the server side per call, and latency."""

    calls_per_second: float
    cpu_us_per_call: float
    p50_ms: float
    p99_ms: float


async def measure(call: Callable[[], Awaitable[object]], calls: int, pids: list[int]) -> Result:
    """Makes `calls` calls with CALLERS callers; `pids` are the processes whose CPU counts."""
    await _burst(call, WARM_UP_CALLS)
    cpu, wall = cpu_seconds(pids), time.perf_counter()
    latencies = sorted(await _burst(call, calls))
    wall, cpu = time.perf_counter() - wall, cpu_seconds(pids) - cpu
    return Result(
        calls_per_second=calls / wall,
        cpu_us_per_call=cpu / calls * 1e6,
        p50_ms=latencies[len(latencies) // 2] * 1e3,
        p99_ms=latencies[len(latencies) * 99 // 100] * 1e3,
    )


async def _burst(call: Callable[[], Awaitable[object]], calls: int) -> list[float]:
    left = iter(range(calls))
    latencies: list[float] = []

    async def caller() -> None:
        for _ in left:
            start = time.perf_counter()
            await call()
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return latencies


async def grpc_read(address: str, name: str, calls: int, pids: list[int]) -> Result:
    """GetFood over gRPC."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.default_authority", "mesh")]) as channel:
        stub, request = FoodServiceStub(channel), GetFoodRequest(name=name)
        return await measure(lambda: stub.GetFood(request, timeout=10), calls, pids)


async def rest_read(target: str | tuple[str, int], path: str, calls: int, pids: list[int]) -> Result:
    """The same read over HTTP/1.1 and JSON, connections kept; `target` is a socket's path, or host and port."""
    connections: list[Connection] = []
    for _ in range(CALLERS):
        if isinstance(target, str):
            streams = await asyncio.open_unix_connection(target)
        else:
            streams = await asyncio.open_connection(*target)
        connections.append(Connection(*streams, path))
    free = list(connections)

    async def get() -> None:
        connection = free.pop()
        await connection.get()
        free.append(connection)

    try:
        return await measure(get, calls, pids)
    finally:
        for connection in connections:
            connection.writer.close()


class Connection:
    """One HTTP/1.1 connection that asks the same thing again and again: cheap, so that the servers have the machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        self.reader, self.writer = reader, writer
        self._request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n\r\n".encode()

    async def get(self) -> bool:
        """Asks once; returns whether the server keeps the connection.

        Raises:
            RuntimeError: the answer is not 200 with a content-length.
        """
        self.writer.write(self._request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if b" 200 " not in head[:15] or not length:
            raise RuntimeError(head.decode())
        await self.reader.readexactly(int(length[1]))
        return b"\r\nconnection: close" not in head.lower()


def readers(
    port: int, counts: Counter[str], failures: Counter[str], done: asyncio.Event
) -> list[Coroutine[Any, Any, None]]:
    """Callers that read through the edge at `port` until `done`, on connections that are `kept` and on `new` ones.

    They count answers by these two words in `counts`, and what went wrong by its text in `failures`.
    """
    return [_read(port, counts, failures, done, kind) for kind in ("kept", "new") for _ in range(READERS)]


async def _read(port: int, counts: Counter[str], failures: Counter[str], done: asyncio.Event, kind: str) -> None:
    """Repeats one read; a connection that fails is given up."""
    connection: Connection | None = None
    while not done.is_set():
        try:
            async with asyncio.timeout(READ_SECONDS):
                if connection is None:
                    connection = Connection(*await asyncio.open_connection("127.0.0.1", port), READERS_PATH)
                keep = await connection.get() and kind == "kept"
            counts[kind] += 1
        except (OSError, EOFError, RuntimeError) as error:
            failures[(str(error) or repr(error)).splitlines()[0]] += 1
            keep = False
        if connection and not keep:
            connection.writer.close()
            connection = None
