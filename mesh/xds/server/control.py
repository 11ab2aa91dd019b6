"""ControlService: edits and state, for the runner, the command and the console."""

from __future__ import annotations

import json
from typing import Any

import grpc
from nourish.mesh.v1 import control_pb2, control_pb2_grpc

from mesh import values
from mesh.xds import changes
from mesh.xds.fleet import Fleet, Proxy
from mesh.xds.server.calls import at_most, validate
from mesh.xds.server.edits import Edit, Edits
from mesh.xds.server.registry import endpoints
from mesh.xds.server.watch import Watched
from mesh.xds.snapshot import as_json

APPLY_SECONDS = 10.0  # unless the request says otherwise

Context = grpc.aio.ServicerContext[Any, Any]


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """Edits and state."""

    def __init__(self, fleet: Fleet, edits: Edits, epoch: str, watched: Watched | None = None) -> None:
        self._fleet = fleet
        self._edits = edits
        self._epoch = epoch
        self._watched = watched

    async def ApplyValues(
        self, request: control_pb2.ApplyValuesRequest, context: Context
    ) -> control_pb2.ApplyValuesResponse:
        """One edit at a time: all of it, or none, even if the caller does not wait for the answer."""
        await validate(request, context)
        seconds = at_most(request.timeout.ToTimedelta().total_seconds() or APPLY_SECONDS, context)
        files = [values.ValuesFile(file.path, file.content) for file in request.files]
        edit = Edit(files, seconds, dry_run=request.dry_run, base=request.base_revision)
        return await self._edits.apply(edit)

    async def GetMesh(self, request: control_pb2.GetMeshRequest, context: Context) -> control_pb2.GetMeshResponse:
        """What is published, and who has it."""
        topology = self._fleet.topology
        services = topology.services.values() if topology else ()
        return control_pb2.GetMeshResponse(
            revision=changes.revision(topology) if topology else "",
            epoch=self._epoch,
            proxies=[_proxy(p) for _, p in sorted(self._fleet.proxies.items())],
            endpoints=endpoints(self._fleet),
            canary_weights={s.name: s.canary.weight for s in services},
            values_error=self._watched.error if self._watched else "",
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
