"""Processes without a sidecar, in the test's own: gRPC's xDS client, and the runtime's guard before an application."""

from __future__ import annotations

import asyncio
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from mesh.runtime import options
from mesh.runtime.proxyless.guard import Guard
from mesh.runtime.proxyless.inbound import BOOTSTRAP, Bootstrap, Inbound
from mesh.xds.tests.lab import ROOT, App, Lab

TEMPLATE = ROOT / "envoy" / "proxyless.json"


def bootstrap(lab: Lab, id: str, *, identity: str | None = None) -> Path:
    """Writes the bootstrap of an instance; `identity` is whose certificate it holds, its own service's by default."""
    service = id.partition("-")[0]
    names = {
        "NODE_ID": id,
        "SERVICE": service,
        "SUBSET": "canary" if "canary" in id else "stable",
        "CONTROL_SOCKET": lab.folder / "control.sock",
        "IDENTITY_DIR": lab.identity / (identity or service),
    }
    path = lab.folder / f"{id}.json"
    path.write_text(string.Template(TEMPLATE.read_text()).substitute({k: str(v) for k, v in names.items()}))
    return path


@asynccontextmanager
async def client(lab: Lab, id: str, *, identity: str | None = None) -> AsyncIterator[grpc.aio.Channel]:
    """The channel of an instance to the mesh, as the runtime opens it."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv(BOOTSTRAP, str(bootstrap(lab, id, identity=identity)))
        channel = grpc.aio.secure_channel(
            "xds:///egress", grpc.xds_channel_credentials(), options=options.CLIENT_WITHOUT_SIDECAR
        )
        async with channel:
            channel.get_state(try_to_connect=True)
            yield channel


@dataclass
class Bare:
    """A server that stands in `Lab.proxies` where a sidecar would."""

    app: App
    bound: int
    zone: str = ""

    async def port(self) -> int:
        """Where the mesh reaches it."""
        return self.bound


@asynccontextmanager
async def server(lab: Lab, id: str, *, connection_ms: int = 600_000) -> AsyncIterator[Bare]:
    """An application that takes calls from the mesh by itself, on connections that last so long."""
    path = bootstrap(lab, id)
    with pytest.MonkeyPatch.context() as env:
        env.setenv(BOOTSTRAP, str(path))
        inbound = Inbound(Bootstrap.load())
    following = asyncio.create_task(inbound.follow())
    await asyncio.wait_for(inbound.known(), 10)
    guard, app = Guard(inbound, lab.identity / id.partition("-")[0]), App(id)
    server = grpc.aio.server(options=[("grpc.max_connection_age_ms", connection_ms)])
    door = guard.door(server)
    await app.serving()
    door.add_generic_rpc_handlers((app,))
    health_pb2_grpc.add_HealthServicer_to_server(app.health, door)
    server.add_insecure_port(f"unix:{lab.folder}/{id}.sock")
    bare = Bare(app, guard.listen(server, "127.0.0.1:0"))
    await server.start()
    lab.proxies[id] = bare  # type: ignore[assignment] # reports ask it for its port alone
    try:
        yield bare
    finally:
        following.cancel()
        await server.stop(0)
