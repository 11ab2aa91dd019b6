"""A real Envoy with the compiled edge as static configuration, and clients of every kind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from mesh.xds import clusters, endpoints, pb
from mesh.xds.edge import edge_listener, edge_routes
from mesh.xds.plan import NodePlan

ENVOY = Path(sys.executable).with_name("envoy")


def manager(listener: listener_pb2.Listener) -> HttpConnectionManager:
    """What the listener does with HTTP."""
    found = HttpConnectionManager()
    listener.filter_chains[0].filters[0].typed_config.Unpack(found)
    return found


def bootstrap(node: NodePlan, admin: Path, sockets: dict[str, Path], **changes: Any) -> bytes:
    """The edge of `node` as a static bootstrap; each cluster leads to a socket, `changes` are fields of the manager."""
    listener = edge_listener(node)
    http = manager(listener)
    http.ClearField("rds")
    http.route_config.CopyFrom(edge_routes(node))
    for field, value in changes.items():
        getattr(http, field).CopyFrom(value)
    listener.filter_chains[0].filters[0].typed_config.CopyFrom(pb.pack(http))
    config = bootstrap_pb2.Bootstrap(admin=bootstrap_pb2.Admin(address=pb.pipe(str(admin))))
    config.static_resources.listeners.append(listener)
    for name, socket in sockets.items():
        cluster = clusters.app(node)
        cluster.name = name
        cluster.load_assignment.CopyFrom(endpoints.local(name, str(socket)))
        config.static_resources.clusters.append(cluster)
    return bytes(config.SerializeToString())


def validate(config: bytes, folder: Path) -> str:
    """What `envoy --mode validate` has against it."""
    path = folder / "validate.pb"
    path.write_bytes(config)
    done = subprocess.run([ENVOY, "--mode", "validate", "-c", path], capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@dataclass
class Edge:
    """A running edge."""

    port: int
    pid: int
    log: Path
    http: httpx.AsyncClient

    async def __call__(self, method: str, path: str, token: str = "", **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        headers |= options.pop("headers", {})
        return await self.http.request(method, path, headers=headers, **options)

    async def raw(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of what comes back for these very bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        answer = b""
        with contextlib.suppress(ConnectionError):  # what came before counts
            async with asyncio.timeout(5):
                while some := await reader.read(65536):
                    answer += some
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines if ": " in line), body

    async def web(
        self, method: str, message: bytes, token: str = "", *, text: bool = False
    ) -> tuple[list[bytes], dict[str, str]]:
        """A gRPC-Web call: messages, and headers with trailers."""
        frame = b"\0" + struct.pack(">I", len(message)) + message
        kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
        headers = {"content-type": kind, "x-grpc-web": "1", "accept": kind}
        answer = await self("POST", method, token, content=base64.b64encode(frame) if text else frame, headers=headers)
        assert answer.status_code == 200, answer.text
        data, messages, found = answer.content, [], dict(answer.headers)
        if text:
            data = b"".join(base64.b64decode(data[i : i + 4]) for i in range(0, len(data), 4))
        while data:
            flags, size = struct.unpack(">BI", data[:5])
            part, data = data[5 : 5 + size], data[5 + size :]
            if flags & 0x80:
                found |= dict(line.split(":", 1) for line in part.decode().strip().split("\r\n"))
            else:
                messages.append(part)
        return messages, {key: value.strip() for key, value in found.items()}

    def cpu_seconds(self) -> float:
        """What the process has used so far."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextlib.asynccontextmanager
async def running(config: bytes, folder: Path) -> AsyncIterator[Edge]:
    """Starts Envoy on a binary bootstrap whose admin socket is folder/admin.sock."""
    (folder / "edge.pb").write_bytes(config)
    with (folder / "envoy.log").open("wb") as log:
        options = ("--concurrency", "1", "-l", "warning", "--disable-hot-restart", "--file-flush-interval-msec", "100")
        process = await asyncio.create_subprocess_exec(
            ENVOY, "-c", folder / "edge.pb", *options, stdout=log, stderr=log
        )
    try:
        port = await _port(process, folder)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            yield Edge(port, process.pid, folder / "envoy.log", http)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _port(process: asyncio.subprocess.Process, folder: Path) -> int:
    end = time.monotonic() + 20
    transport = httpx.AsyncHTTPTransport(uds=str(folder / "admin.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:
        while process.returncode is None and time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                if (await admin.get("/ready")).status_code == 200:
                    listeners = (await admin.get("/listeners?format=json")).json()["listener_statuses"]
                    return int(listeners[0]["local_address"]["socket_address"]["port_value"])
            await asyncio.sleep(0.02)
    raise AssertionError((folder / "envoy.log").read_text()[-3000:])


def details(body: bytes | str) -> dict[str, Any]:
    """The one error shape, checked: code, message, reason, request id and further details by type."""
    status = json.loads(body)
    assert set(status) == {"code", "message", "details"}, status
    assert status["message"]
    by_type = {detail["@type"].rpartition(".")[2]: detail for detail in status["details"]}
    info = by_type["ErrorInfo"]
    assert info["domain"] == "nourish.local"
    assert "metadata" in info
    for engine in ("upstream", "Jwt", "rbac", "secret", "reset", "envoy"):
        assert engine not in status["message"]
    return {**status, "reason": info["reason"], "id": by_type["RequestInfo"]["requestId"], "by_type": by_type}
