"""The socket side of ADS: one stream a proxy. What is sent is decided in `fleet.py` and `stream.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from mesh.xds.fleet import Fleet, Proxy
from mesh.xds.incremental import Incremental
from mesh.xds.plan import Node, PlanError
from mesh.xds.server import peer
from mesh.xds.server.progress import Progress
from mesh.xds.stream import StateOfTheWorld, Stream

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class DiscoveryService:
    """ADS in both variants. One stream per proxy."""

    def __init__(self, fleet: Fleet, progress: Progress) -> None:
        self._fleet = fleet
        self._progress = progress

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: Context) -> None:
        """State of the world, for gRPC's own xDS client."""
        await self._connect(StateOfTheWorld, requests, context)

    async def DeltaAggregatedResources(self, requests: AsyncIterator[Any], context: Context) -> None:
        """Incremental, for the sidecars."""
        await self._connect(Incremental, requests, context)

    async def _connect(self, variant: type[Stream], requests: AsyncIterator[Any], context: Context) -> None:
        """Serves one proxy until it goes away."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        try:
            node = Node.parse(first.node)
        except PlanError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if refusal := peer.refusal(node, context.invocation_metadata(), self._fleet.topology):
            log.error("%s", refusal)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal)
        wake = asyncio.Event()
        stream = variant(wake.set, self._fleet.recovery.keeps)
        proxy = self._fleet.connect(node, stream)
        stream.request(first)
        log.info("%s: connected", node.id)
        try:
            await self._serve(proxy, stream, wake, requests, context)
        finally:
            self._fleet.disconnect(proxy, stream)
            log.info("%s: disconnected", node.id)
            await self._progress.tell()

    async def _serve(
        self, proxy: Proxy, stream: Stream, wake: asyncio.Event, requests: AsyncIterator[Any], context: Context
    ) -> None:
        async def write() -> None:
            while True:
                for response in stream.responses():
                    await context.write(response)
                await wake.wait()
                wake.clear()

        writer = asyncio.create_task(write())
        try:
            async for request in requests:
                if request.HasField("error_detail"):
                    log.error("%s refuses %s: %s", proxy.node.id, request.type_url, request.error_detail.message)
                stream.request(request)
                await self._progress.tell()
                wake.set()
        finally:
            writer.cancel()
