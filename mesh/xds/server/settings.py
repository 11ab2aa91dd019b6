"""SettingsService: to each service its own settings and flags, as they are and after each edit that is in force."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import json_format
from nourish.mesh.v1 import settings_pb2, settings_pb2_grpc

from mesh.topology import Topology
from mesh.xds import changes
from mesh.xds.routes import SERVICE_HEADER
from mesh.xds.server import peer

Context = grpc.aio.ServicerContext[Any, Any]


class InForce:
    """The values that every proxy has acknowledged. An edit that is undone never was in force."""

    def __init__(self) -> None:
        self.topology: Topology | None = None
        self.revision = ""
        self._changed = asyncio.Event()

    def put(self, topology: Topology) -> None:
        """These are in force now."""
        self.topology, self.revision = topology, changes.revision(topology)
        self._changed.set()
        self._changed = asyncio.Event()

    async def each(self) -> AsyncIterator[Topology]:
        """Those in force, and then each that comes after; of several in quick succession, the last."""
        while True:
            changed = self._changed
            if self.topology is not None:
                yield self.topology
            await changed.wait()


class SettingsService(settings_pb2_grpc.SettingsServiceServicer):
    """Settings, each service's own."""

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force

    async def WatchSettings(
        self, request: settings_pb2.WatchSettingsRequest, context: Context
    ) -> AsyncIterator[settings_pb2.WatchSettingsResponse]:
        """All of the caller's, whenever they differ from what it was told last."""
        told: tuple[dict[str, str], dict[str, str]] | None = None
        async for topology in self._in_force.each():
            service = topology.services.get(await _caller(topology, context))
            now = (service.settings, service.flags) if service else ({}, {})
            if now != told:
                told = now
                yield _answer(self._in_force.revision, *now)


async def _caller(topology: Topology, context: Context) -> str:
    """The service that the caller's certificate names; on the private socket, the one that its sidecar names."""
    metadata = context.invocation_metadata() or ()
    try:
        if service := peer.service(metadata, topology):
            return service
    except ValueError as error:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
    named = [str(value) for key, value in metadata if key == SERVICE_HEADER]
    if len(named) != 1:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "a service asks for its settings through its sidecar")
    return named[0]


def _answer(revision: str, settings: dict[str, str], flags: dict[str, str]) -> settings_pb2.WatchSettingsResponse:
    answer = settings_pb2.WatchSettingsResponse(revision=revision)
    for name, text in settings.items():
        json_format.ParseDict(json.loads(text), answer.settings[name])
    for name, text in flags.items():
        json_format.ParseDict(json.loads(text), answer.flags[name])
    return answer
