"""RegistryService: who may be sent traffic, by who says so, for as long as their lease runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc
from nourish.mesh.v1 import registry_pb2, registry_pb2_grpc

from mesh.xds import pb
from mesh.xds.fleet import Fleet
from mesh.xds.plan import Host
from mesh.xds.server import peer
from mesh.xds.server.calls import at_most, validate
from mesh.xds.server.progress import Progress, all_settled

log = logging.getLogger(__name__)

WAIT_SECONDS = 60.0

Context = grpc.aio.ServicerContext[Any, Any]


class RegistryService(registry_pb2_grpc.RegistryServiceServicer):
    """The endpoints of each source, until they are replaced or their lease ends."""

    def __init__(self, fleet: Fleet, progress: Progress, epoch: str) -> None:
        self._fleet = fleet
        self._progress = progress
        self._epoch = epoch
        self._ends: dict[str, asyncio.TimerHandle] = {}

    async def ReportEndpoints(
        self, request: registry_pb2.ReportEndpointsRequest, context: Context
    ) -> registry_pb2.ReportEndpointsResponse:
        """Publishes at once: a withdrawn instance must not wait for an edit that is under way.

        Whom it waits for are all that have not answered yet: an earlier report may have brought them the same.
        """
        await validate(request, context)
        source = await self._source(request, context)
        self._take(source, [_host(e) for e in request.endpoints], _lease(request))
        late = self._fleet.late() if request.wait else []
        await self._progress.until(lambda: all_settled(late), at_most(WAIT_SECONDS, context))
        waiting = [proxy.node.id for proxy in late if not proxy.settled]
        answer = registry_pb2.ReportEndpointsResponse(epoch=self._epoch, waiting=waiting)
        if request.HasField("lease"):
            answer.lease.CopyFrom(request.lease)
        return answer

    async def ListEndpoints(
        self, request: registry_pb2.ListEndpointsRequest, context: Context
    ) -> registry_pb2.ListEndpointsResponse:
        """What each source has reported."""
        now = asyncio.get_running_loop().time()
        answer = registry_pb2.ListEndpointsResponse()
        for source, hosts in sorted(self._fleet.hosts.items()):
            entry = answer.sources.add(name=source, endpoints=map(endpoint, hosts))
            if source in self._ends:
                entry.lease_left.CopyFrom(pb.seconds(max(0.0, self._ends[source].when() - now)))
        return answer

    def close(self) -> None:
        """No lease ends any more."""
        for timer in self._ends.values():
            timer.cancel()

    async def _source(self, request: registry_pb2.ReportEndpointsRequest, context: Context) -> str:
        """The source's name; a certificate gives names of its own, and endpoints of its service alone."""
        metadata, topology = context.invocation_metadata(), self._fleet.topology
        if peer.identities(metadata) is None:
            return request.source
        if topology is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "there are no values yet: report again")
        try:
            service = peer.service(metadata, topology)
        except ValueError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        if not request.HasField("lease"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "lease: is needed from a source outside")
        if others := sorted({e.service for e in request.endpoints} - {service}):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"a certificate of {service} reports no endpoints of {', '.join(others)}",
            )
        return f"{service}/{request.source}"

    def _take(self, source: str, hosts: list[Host], lease: float | None) -> None:
        if timer := self._ends.pop(source, None):
            timer.cancel()
        if lease is not None and hosts:
            self._ends[source] = asyncio.get_running_loop().call_later(lease, self._expire, source)
        self._fleet.report(source, hosts)

    def _expire(self, source: str) -> None:
        del self._ends[source]
        gone = self._fleet.hosts.get(source, ())
        log.warning("%s: its lease ended, withdrawn: %s", source, ", ".join(h.instance for h in gone) or "nothing")
        if gone:
            self._fleet.report(source, ())


def endpoint(host: Host) -> registry_pb2.Endpoint:
    """A host as the API says it."""
    return registry_pb2.Endpoint(
        service=host.service,
        instance=host.instance,
        subset=host.subset,
        address=host.address,
        port=host.port,
        health=registry_pb2.EndpointHealth.Value(f"ENDPOINT_HEALTH_{host.health.upper()}"),
        zone=host.zone,
    )


def endpoints(fleet: Fleet) -> Sequence[registry_pb2.Endpoint]:
    """All that are published."""
    return [endpoint(host) for hosts in fleet.hosts.values() for host in hosts]


def _host(e: registry_pb2.Endpoint) -> Host:
    name = registry_pb2.EndpointHealth.Name(e.health).removeprefix("ENDPOINT_HEALTH_").lower()
    health = "healthy" if name == "unspecified" else name
    return Host(e.service, e.instance, e.subset, e.address, e.port, zone=e.zone, health=health)


def _lease(request: registry_pb2.ReportEndpointsRequest) -> float | None:
    return request.lease.ToTimedelta().total_seconds() if request.HasField("lease") else None
