"""The control plane's sockets: ADS for the proxies, ControlService for the runner and the command.

The only file here that waits for anything; what it waits for is decided in `fleet.py` and `stream.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import protovalidate
from envoy.service.discovery.v3 import ads_pb2_grpc
from google.protobuf.message import Message
from nourish.mesh.v1 import control_pb2, control_pb2_grpc

from mesh import values
from mesh.contract import Contract
from mesh.topology import Topology
from mesh.xds import changes, pb
from mesh.xds.fleet import Fleet, Proxy
from mesh.xds.plan import Host, Materials, Node, PlanError
from mesh.xds.snapshot import SnapshotError, as_json
from mesh.xds.stream import Stream

log = logging.getLogger(__name__)

APPLY_SECONDS = 10.0  # unless the request says otherwise
RESTORE_SECONDS = 5.0
MARGIN_SECONDS = 0.5  # an answer must leave before its caller gives up
KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.http2.min_ping_interval_without_data_ms", 5_000)]

Context = grpc.aio.ServicerContext[Any, Any]


class Progress:
    """Wakes those who wait for proxies, whenever a proxy has said something."""

    def __init__(self) -> None:
        self._condition = asyncio.Condition()

    async def tell(self) -> None:
        """Something changed."""
        async with self._condition:
            self._condition.notify_all()

    async def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Waits until `done` holds; False if it does not within so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._condition:
                await self._condition.wait_for(done)
        return done()


class DiscoveryService:
    """ADS, state of the world. One stream per proxy."""

    def __init__(self, fleet: Fleet, progress: Progress) -> None:
        self._fleet = fleet
        self._progress = progress

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: Context) -> None:
        """Serves one proxy until it goes away."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        try:
            node = Node.parse(first.node)
        except PlanError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        wake = asyncio.Event()
        stream = Stream(wake.set)
        proxy = self._fleet.connect(node, stream)
        stream.request(first)
        log.info("%s: connected", node.id)
        try:
            await self._serve(proxy, stream, wake, requests, context)
        finally:
            self._fleet.disconnect(proxy, stream)
            log.info("%s: disconnected", node.id)
            await self._progress.tell()

    async def DeltaAggregatedResources(self, requests: AsyncIterator[Any], context: Context) -> None:
        """Incremental ADS: not spoken yet."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "use the state-of-the-world variant: api_type: GRPC")

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


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """Edits, endpoints and state."""

    def __init__(self, fleet: Fleet, progress: Progress) -> None:
        self._fleet = fleet
        self._progress = progress
        self._edits = asyncio.Lock()
        self._running: set[asyncio.Task[control_pb2.ApplyValuesResponse]] = set()
        self._epoch = secrets.token_hex(8)

    async def ApplyValues(
        self, request: control_pb2.ApplyValuesRequest, context: Context
    ) -> control_pb2.ApplyValuesResponse:
        """One edit at a time: all of it, or none, even if the caller does not wait for the answer."""
        await _validate(request, context)
        seconds = _at_most(request.timeout.ToTimedelta().total_seconds() or APPLY_SECONDS, context)
        edit = asyncio.create_task(self._apply(request, seconds))
        self._running.add(edit)
        edit.add_done_callback(self._running.discard)
        return await asyncio.shield(edit)

    async def ReportEndpoints(
        self, request: control_pb2.ReportEndpointsRequest, context: Context
    ) -> control_pb2.ReportEndpointsResponse:
        """Publishes at once: a withdrawn instance must not wait for an edit that is under way."""
        await _validate(request, context)
        hosts = [Host(e.service, e.instance, e.subset, e.address, e.port) for e in request.endpoints]
        changed = self._fleet.report(request.source, hosts)
        if request.wait:
            await self._progress.until(lambda: _all_settled(changed), _at_most(60, context))
        waiting = [proxy.node.id for proxy in changed if request.wait and not proxy.settled]
        return control_pb2.ReportEndpointsResponse(epoch=self._epoch, waiting=waiting)

    async def GetMesh(self, request: control_pb2.GetMeshRequest, context: Context) -> control_pb2.GetMeshResponse:
        """What is published, and who has it."""
        topology = self._fleet.topology
        services = topology.services.values() if topology else ()
        return control_pb2.GetMeshResponse(
            revision=changes.revision(topology) if topology else "",
            epoch=self._epoch,
            proxies=[_proxy(p) for _, p in sorted(self._fleet.proxies.items())],
            endpoints=[_endpoint(h) for hosts in self._fleet.hosts.values() for h in hosts],
            canary_weights={s.name: s.canary.weight for s in services},
        )

    async def GetNodeConfig(
        self, request: control_pb2.GetNodeConfigRequest, context: Context
    ) -> control_pb2.GetNodeConfigResponse:
        """What one proxy is to have."""
        proxy = self._fleet.proxies.get(request.node)
        if proxy is None or proxy.snapshot is None:
            known = ", ".join(sorted(self._fleet.proxies)) or "none yet"
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no proxy {request.node!r} has connected; known: {known}")
        return control_pb2.GetNodeConfigResponse(json=json.dumps(as_json(proxy.snapshot), indent=2))

    async def _apply(self, request: control_pb2.ApplyValuesRequest, seconds: float) -> control_pb2.ApplyValuesResponse:
        async with self._edits:
            try:
                topology = self._check(request)
                described = changes.describe(self._fleet.topology, topology)
                if request.dry_run:
                    return self._answer(self._fleet.topology, applied=False, changes=described)
                return await self._push(topology, described, seconds)
            except (values.ValuesError, SnapshotError) as error:
                return self._answer(self._fleet.topology, applied=False, errors=error.problems)

    def _check(self, request: control_pb2.ApplyValuesRequest) -> Topology:
        topology = values.load([values.ValuesFile(file.path, file.content) for file in request.files])
        problems = values.check(topology, self._fleet.contract)
        if problems:
            raise values.ValuesError(problems)
        self._fleet.check(topology)
        return topology

    async def _push(self, topology: Topology, described: list[str], seconds: float) -> control_pb2.ApplyValuesResponse:
        good, started = self._fleet.topology, time.monotonic()
        before = {p.node.id: p.refusals for p in self._fleet.proxies.values()}
        changed = self._fleet.adopt(topology)

        def refused() -> list[str]:
            new = {p.node.id: p.refusals - before.get(p.node.id, frozenset()) for p in self._fleet.proxies.values()}
            return [f"{node} refused it: {text}" for node, refusals in new.items() for _, text in sorted(refusals)]

        await self._progress.until(lambda: bool(refused()) or _all_settled(changed), seconds)
        took = time.monotonic() - started
        silent = [p for p in changed if not p.settled]
        if errors := refused() or [f"{p.node.id} did not answer within {seconds:g} s" for p in silent]:
            return await self._restore(good, errors, silent)
        answer = self._answer(topology, applied=True, changes=described, proxies=[p.node.id for p in changed])
        answer.converged_in.CopyFrom(pb.seconds(took))
        return answer

    async def _restore(
        self, good: Topology | None, errors: list[str], silent: list[Proxy]
    ) -> control_pb2.ApplyValuesResponse:
        changed = [proxy for proxy in self._fleet.adopt(good) if proxy not in silent]
        await self._progress.until(lambda: _all_settled(changed), RESTORE_SECONDS)
        log.error("edit undone: %s", "; ".join(errors))
        return self._answer(good, applied=False, errors=errors)

    def _answer(self, topology: Topology | None, **fields: Any) -> control_pb2.ApplyValuesResponse:
        revision = changes.revision(topology) if topology else ""
        return control_pb2.ApplyValuesResponse(revision=revision, **fields)


async def serve(address: str, fleet: Fleet, stop: asyncio.Event) -> None:
    """Serves on a gRPC address, normally `unix:/path` (which only its owner may open), until `stop` is set.

    Raises:
        OSError: the address cannot be bound.
    """
    progress = Progress()
    server = grpc.aio.server(options=KEEPALIVE)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(DiscoveryService(fleet, progress), server)
    control_pb2_grpc.add_ControlServiceServicer_to_server(ControlService(fleet, progress), server)
    umask = os.umask(0o077)
    try:
        server.add_insecure_port(address)
        await server.start()
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    finally:
        os.umask(umask)
    log.info("control plane on %s", address)
    await stop.wait()
    await server.stop(grace=0.2)


async def run(address: str, fleet: Fleet) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(address, fleet, stop)


def load(contract: Path, jwks: Path, lua: Path) -> Fleet:
    """Reads what the control plane needs from disk.

    Raises:
        OSError: a file cannot be read.
        mesh.contract.ContractError: the contracts contradict themselves.
    """
    sources = {path.name: path.read_text() for path in sorted(lua.glob("*.lua"))}
    return Fleet(Contract.load(contract.read_bytes()), Materials(jwks.read_text(), sources))


def _all_settled(proxies: Collection[Proxy]) -> bool:
    return all(proxy.settled for proxy in proxies)


def _at_most(seconds: float, context: Context) -> float:
    left = context.time_remaining()
    return seconds if left is None else max(0.0, min(seconds, left - MARGIN_SECONDS))


async def _validate(request: Message, context: Context) -> None:
    try:
        protovalidate.validate(request)
    except protovalidate.ValidationError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


def _proxy(proxy: Proxy) -> control_pb2.Proxy:
    stream = proxy.streams[-1] if proxy.streams else None
    errors = sorted(text for _, text in proxy.refusals)
    return control_pb2.Proxy(
        node=proxy.node.id,
        service=proxy.node.service,
        connected=stream is not None,
        synced=stream is not None and proxy.settled and not errors,
        error="; ".join(errors),
        versions=stream.versions if stream else {},
    )


def _endpoint(host: Host) -> control_pb2.Endpoint:
    return control_pb2.Endpoint(
        service=host.service, instance=host.instance, subset=host.subset, address=host.address, port=host.port
    )
