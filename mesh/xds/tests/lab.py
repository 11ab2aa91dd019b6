"""Real Envoys, real gRPC applications, and a real control plane in the test's own process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import string
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from nourish.mesh.v1 import control_pb2, control_pb2_grpc, registry_pb2, registry_pb2_grpc

from mesh.contract import Contract
from mesh.xds.fleet import Fleet
from mesh.xds.plan import Materials
from mesh.xds.server import serve

ROOT = Path(__file__).resolve().parents[3]
ENVOY = Path(sys.executable).with_name("envoy")
BOOTSTRAP = ROOT / "envoy" / "sidecar.yaml"
LUA = {path.name: path.read_text() for path in (ROOT / "envoy").glob("*.lua")}

Handler = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


async def poll(check: Callable[[], Awaitable[Any]], seconds: float = 15) -> Any:
    """What `check` gives once it is truthy."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError, grpc.RpcError):
            if found := await check():
                return found
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def bootstrap(**names: object) -> str:
    return string.Template(BOOTSTRAP.read_text()).substitute({k: str(v) for k, v in names.items()})


@dataclass
class App(grpc.GenericRpcHandler):
    """An application: answers every unary method with its own name, or as `handler` says."""

    name: str
    handler: Handler | None = None
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    server: grpc.aio.Server | None = None
    health: health.aio.HealthServicer = field(default_factory=health.aio.HealthServicer)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if not details.method.startswith("/nourish."):
            return None

        async def unary(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self.calls.append((details.method, {k: str(v) for k, v in context.invocation_metadata()}))
            return await self.handler(request, context) if self.handler else self.name.encode()

        return grpc.unary_unary_rpc_method_handler(unary)

    async def serving(self) -> None:
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def start(self, socket: Path) -> None:
        await self.serving()
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self,))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.server.add_insecure_port(f"unix:{socket}")
        await self.server.start()

    async def stop(self) -> None:
        if self.server:
            await self.server.stop(0)
            self.server = None


@dataclass
class Proxy:
    """A running Envoy."""

    id: str
    folder: Path
    process: asyncio.subprocess.Process
    zone: str = ""

    @property
    def log(self) -> str:
        return (self.folder / "envoy.log").read_text()

    @property
    def access_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    async def admin(self, path: str) -> Any:
        transport = httpx.AsyncHTTPTransport(uds=str(self.folder / "admin.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            reply = await client.get(path)
            assert reply.status_code == 200, reply.text
            return reply.json() if "json" in reply.headers["content-type"] else reply.text

    async def port(self, listener: str = "inbound") -> int:
        async def find() -> int:
            found = (await self.admin("/listeners?format=json")).get("listener_statuses", [])
            return next((s["local_address"]["socket_address"]["port_value"] for s in found if s["name"] == listener), 0)

        return await poll(find)

    async def stat(self, name: str) -> int:
        text = await self.admin(f"/stats?filter=^{name}$")
        return int(text.rpartition(":")[2] or 0)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"unix:{self.folder}/egress.sock")

    async def stop(self) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            await self.process.wait()


@dataclass
class Lab:
    folder: Path
    identity: Path
    contract: Contract
    stack: AsyncExitStack
    proxies: dict[str, Proxy] = field(default_factory=dict)
    apps: dict[str, App] = field(default_factory=dict)

    @classmethod
    async def start(cls, folder: Path, identity: Path, contract: Contract, stack: AsyncExitStack) -> Lab:
        lab = cls(folder, identity, contract, stack)
        stack.push_async_callback(lab.stop_control)
        await lab.start_control()
        return lab

    async def start_control(self, values: Path | None = None, account: Path | None = None) -> None:
        """Starts a control plane that knows nothing yet but what stands in watched values, or what a cluster says."""
        fleet = Fleet(self.contract, Materials((self.identity / "jwks.json").read_text(), LUA))
        self._stop = asyncio.Event()
        address = f"unix:{self.folder}/control.sock"
        self._served = asyncio.create_task(serve(address, fleet, self._stop, values, account))
        self._channel = grpc.aio.insecure_channel(address)
        self.control = control_pb2_grpc.ControlServiceStub(self._channel)
        self.registry = registry_pb2_grpc.RegistryServiceStub(self._channel)
        await poll(lambda: self.control.GetMesh(control_pb2.GetMeshRequest(), wait_for_ready=True))

    async def stop_control(self) -> None:
        self._stop.set()
        await self._channel.close()
        await self._served

    async def connected(self, *ids: str) -> bool:
        mesh = await self.control.GetMesh(control_pb2.GetMeshRequest())
        return {proxy.node for proxy in mesh.proxies if proxy.connected} >= set(ids)

    async def known(self) -> set[str]:
        return {proxy.node for proxy in (await self.control.GetMesh(control_pb2.GetMeshRequest())).proxies}

    async def proxy(self, id: str, *, subset: str = "stable", identity: str | None = None, zone: str = "") -> Proxy:
        """Starts an Envoy for an instance; `identity` is whose certificate it holds, its own service's by default."""
        service = id.partition("-")[0]
        folder = self.folder / id
        folder.mkdir(exist_ok=True)
        config = bootstrap(
            NODE_ID=id,
            SERVICE=service,
            SUBSET=subset,
            ZONE=zone,
            ADMIN_SOCKET=folder / "admin.sock",
            CONTROL_SOCKET=self.folder / "control.sock",
            APP_SOCKET=folder / "app.sock",
            EGRESS_SOCKET=folder / "egress.sock",
            IDENTITY_DIR=self.identity / (identity or service),
            INBOUND_ADDRESS="127.0.0.1",
            INBOUND_PORT=0,
            TELEMETRY_SOCKET=folder / "telemetry.sock",
            METRICS_PORT=0,
        )
        (folder / "bootstrap.yaml").write_text(config)
        with (folder / "envoy.log").open("ab") as log:
            command = (str(ENVOY), "-c", str(folder / "bootstrap.yaml"), "--concurrency", "1", "-l", "warning")
            options = ("--disable-hot-restart", "--drain-time-s", "1", "--file-flush-interval-msec", "50")
            process = await asyncio.create_subprocess_exec(*command, *options, stdout=log, stderr=log, env=os.environ)
        started = Proxy(id, folder, process, zone)
        self.stack.push_async_callback(started.stop)
        self.proxies[id] = started
        return started

    async def app(self, id: str, handler: Handler | None = None) -> App:
        folder = self.folder / id
        folder.mkdir(exist_ok=True)
        app = App(id, handler)
        await app.start(folder / "app.sock")
        self.stack.push_async_callback(app.stop)
        self.apps[id] = app
        return app

    async def apply(self, text: str, **fields: Any) -> control_pb2.ApplyValuesResponse:
        file = control_pb2.ValuesFile(path="values.yaml", content=text)
        return await self.control.ApplyValues(control_pb2.ApplyValuesRequest(files=[file], **fields))

    async def report(self, *ids: str, wait: bool = False, seconds: float = 15) -> registry_pb2.ReportEndpointsResponse:
        endpoints = [
            registry_pb2.Endpoint(
                service=id.partition("-")[0],
                instance=id,
                subset="canary" if "canary" in id else "stable",
                address="127.0.0.1",
                port=await self.proxies[id].port(),
                zone=self.proxies[id].zone,
            )
            for id in ids
        ]
        request = registry_pb2.ReportEndpointsRequest(source="test", endpoints=endpoints, wait=wait)
        return await self.registry.ReportEndpoints(request, timeout=seconds)

    async def healthy(self, caller: str, *ids: str) -> None:
        """Waits until `caller` counts all of these instances, and no others, as healthy, in every cluster."""

        async def check() -> bool:
            found = await self.proxies[caller].admin("/clusters?format=json")
            hosts = [
                (host["hostname"], bool(host["health_status"].get("failed_active_health_check")))
                for cluster in found["cluster_statuses"]
                if cluster["name"].partition(".")[2]
                for host in cluster.get("host_statuses", [])
            ]
            return set(hosts) == {(id, False) for id in ids}

        await poll(check)


async def call(channel: grpc.aio.Channel, path: str, request: bytes = b"", **options: Any) -> bytes:
    return await channel.unary_unary(path)(request, **{"timeout": 10, **options})


async def status(channel: grpc.aio.Channel, path: str, **options: Any) -> grpc.StatusCode:
    """How a call ends."""
    try:
        await call(channel, path, **options)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def code(channel: grpc.aio.Channel, path: str, **options: Any) -> grpc.StatusCode:
    """How a call that must fail fails."""
    try:
        answer = await call(channel, path, **options)
    except grpc.aio.AioRpcError as error:
        return error.code()
    raise AssertionError(f"{path} answered {answer!r}")
