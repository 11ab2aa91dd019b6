"""Follows the listener that the control plane has for this process, over a stream of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from envoy.config.core.v3.base_pb2 import Node
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf import json_format

from mesh.runtime.backoff import Backoff
from mesh.runtime.environment import required
from mesh.runtime.proxyless import rules

NAME = "inbound"
TYPE = f"type.googleapis.com/{Listener.DESCRIPTOR.full_name}"
BOOTSTRAP = "GRPC_XDS_BOOTSTRAP"  # gRPC's own client reads it too
RECONNECT = Backoff(first=0.2, limit=5.0)
KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 5_000)]

_log = logging.getLogger("mesh.runtime")


@dataclass(frozen=True)
class Bootstrap:
    """Where the control plane is, and who this process is to it."""

    path: Path
    server: str
    node: Node

    @classmethod
    def load(cls) -> Bootstrap:
        """Reads gRPC's own bootstrap.

        Raises:
            RuntimeError: the environment names none.
            OSError: it cannot be read.
        """
        path = Path(required(os.environ.get(BOOTSTRAP, ""), BOOTSTRAP))
        content = json.loads(path.read_text())
        return cls(path, content["xds_servers"][0]["server_uri"], json_format.ParseDict(content["node"], Node()))


class Inbound:
    """The rules in force. What was last good stays while the control plane is away."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self._bootstrap = bootstrap
        self._known = asyncio.Event()
        self._rules: rules.Rules | None = None

    @property
    def rules(self) -> rules.Rules | None:
        """None before the first."""
        return self._rules

    async def known(self) -> None:
        """Returns when there are rules."""
        await self._known.wait()

    async def follow(self) -> None:
        """Takes each change, and says to the control plane that it did; reconnects with jitter, until cancelled."""
        failures = 0
        while True:
            try:
                async with grpc.aio.insecure_channel(self._bootstrap.server, options=KEEPALIVE) as channel:
                    async for _ in self._answers(channel):
                        failures = 0
            except grpc.aio.AioRpcError as error:
                _log.warning("the control plane is away: what it said last holds", extra={"error": error.details()})
            failures += 1
            await asyncio.sleep(RECONNECT.seconds(failures))

    async def _answers(self, channel: grpc.aio.Channel) -> AsyncIterator[None]:
        stub: Any = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        stream = stub.StreamAggregatedResources()
        await stream.write(DiscoveryRequest(node=self._bootstrap.node, type_url=TYPE, resource_names=[NAME]))
        version = ""
        async for response in stream:
            answer = DiscoveryRequest(type_url=TYPE, resource_names=[NAME], response_nonce=response.nonce)
            try:
                self._take(response)
                version = response.version_info
            except ValueError as error:
                answer.error_detail.message = str(error)
            answer.version_info = version
            await stream.write(answer)
            yield

    def _take(self, response: DiscoveryResponse) -> None:
        for resource in response.resources:
            listener = Listener()
            if not resource.Unpack(listener) or listener.name != NAME:
                raise ValueError(f"{resource.type_url} was not asked for")
            self._rules = rules.read(listener)
            self._known.set()
