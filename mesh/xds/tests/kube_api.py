"""A Kubernetes API server for EndpointSlices in the test's own process: real HTTPS, answers of the published schema."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mesh.xds.tests.lab import poll

VERSION = "1.37"
PATH = "/apis/discovery.k8s.io/v1/namespaces/kitchen/endpointslices"


def endpoint(pod: str, address: str, **more: Any) -> dict[str, Any]:
    """As the EndpointSlice controller writes it of a pod that is ready, unless `more` says otherwise."""
    conditions = {"ready": True, "serving": True, "terminating": False}
    target = {"kind": "Pod", "name": pod, "namespace": "kitchen", "uid": f"uid-of-{pod}"}
    return {"addresses": [address], "conditions": conditions, "nodeName": "node-1", "targetRef": target, **more}


def endpoint_slice(name: str, version: int, *endpoints: dict[str, Any], **more: Any) -> dict[str, Any]:
    """As the EndpointSlice controller writes it for the chart's Service of a subset, here store's stable one."""
    labels = {
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/name": more.pop("service", "store"),
        "app.kubernetes.io/part-of": "nourish",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": name.rpartition("-")[0],
        "nourish.local/subset": more.pop("subset", "stable"),
        "service.kubernetes.io/headless": "",
    }
    made = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "kitchen",
            "labels": labels,
            "resourceVersion": str(version),
            "uid": f"uid-of-{name}",
            "creationTimestamp": "2026-11-25T10:00:00Z",
            "generation": 1,
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "grpc", "protocol": "TCP", "port": 8080}],
        **more,
    }
    kubernetes_validate.validate(made, VERSION, strict=True)
    return made


def event(kind: str, item: dict[str, Any]) -> dict[str, Any]:
    """A watch event."""
    return {"type": kind, "object": item}


def bookmark(version: int) -> dict[str, Any]:
    """A watch event that moves the version alone."""
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    item = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "endpoints": None}
    return event("BOOKMARK", {**item, "addressType": "", "ports": None})


def status(code: int, reason: str) -> dict[str, Any]:
    """How the API says that it does not do something."""
    made = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code}
    return {**made, "reason": reason, "message": f"{reason} ({code})"}


@dataclass
class KubeApi:
    """The server. `slices` and `version` are what a list gives; `events` is put into the watch that is open."""

    account: Path
    token: str = "first"
    slices: list[dict[str, Any]] = field(default_factory=list)
    version: int = 10
    page: int = 500
    asked: list[dict[str, str]] = field(default_factory=list)  # queries
    refusals: list[int] = field(default_factory=list)  # statuses of the next answers
    port: int = 0
    _watches: list[asyncio.Queue[dict[str, Any] | None]] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def lists(self) -> int:
        """How often all was listed."""
        return sum("watch" not in query and "continue" not in query for query in self.asked)

    @property
    def watches(self) -> list[str]:
        """The versions that watches began at."""
        return [query["resourceVersion"] for query in self.asked if "watch" in query]

    @property
    def opened(self) -> int:
        """How many watches have begun to answer."""
        return len(self._watches)

    def write_account(self) -> None:
        """What the kubelet writes into the pod."""
        (self.account / "token").write_text(self.token)

    def tell(self, *events: dict[str, Any]) -> None:
        """Sends events to the watch that is open."""
        for each in events:
            self._watches[-1].put_nowait(each)

    def end_watch(self) -> None:
        """As after its timeoutSeconds."""
        self._watches[-1].put_nowait(None)

    def cut(self) -> None:
        """Ends every connection in the middle of what it says."""
        for writer in self._writers:
            writer.transport.abort()
        for watch in self._watches:
            watch.put_nowait(None)

    async def idle(self) -> bool:
        """Whether no connection is open."""
        return not self._writers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._writers.add(writer)
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(request.decode(), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, request: str, writer: asyncio.StreamWriter) -> None:
        line, *headers = request.split("\r\n")
        url = urlsplit(line.split()[1])
        query = {key: value for key, (value,) in parse_qs(url.query).items()}
        assert url.path == PATH
        assert query["labelSelector"] == "app.kubernetes.io/part-of=nourish,nourish.local/subset"
        self.asked.append(query)
        if f"authorization: Bearer {self.token}" not in [h.replace("Authorization", "authorization") for h in headers]:
            self._whole(writer, 401, status(401, "Unauthorized"))
        elif self.refusals:
            code = self.refusals.pop(0)
            self._whole(writer, code, status(code, "Gone" if code == 410 else "Refused"))
        elif "watch" in query:
            await self._stream(writer)
        else:
            self._whole(writer, 200, self._list(int(query.get("continue", "0"))))
        await writer.drain()

    def _list(self, start: int) -> dict[str, Any]:
        end = start + self.page
        metadata = {"resourceVersion": str(self.version), "continue": str(end) if end < len(self.slices) else ""}
        found = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": metadata}
        found["items"] = self.slices[start:end]
        kubernetes_validate.validate(found, VERSION, strict=True)
        return found

    def _whole(self, writer: asyncio.StreamWriter, code: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._watches.append(events)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        while (each := await events.get()) is not None:
            line = json.dumps(each).encode() + b"\n"
            for part in (line[:7], line[7:]):  # a line need not come as one
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
        writer.write(b"0\r\n\r\n")


@asynccontextmanager
async def kube_api(folder: Path) -> AsyncIterator[KubeApi]:
    """Serves until the end of the block; `folder` is that of the service account."""
    api = KubeApi(folder)
    api.write_account()
    (folder / "namespace").write_text("kitchen\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(folder))
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0, ssl=context)
    api.port = server.sockets[0].getsockname()[1]
    try:
        yield api
    finally:
        server.close()
        api.cut()
        await poll(api.idle)


def _certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1, which is its own authority."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(minutes=1)).not_valid_after(now + timedelta(hours=1))
    builder = builder.add_extension(address, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (folder / "ca.crt").write_bytes(certificate)
    pair = folder / "server.pem"
    secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pair.write_bytes(certificate + key.private_bytes(serialization.Encoding.PEM, *secret))
    return pair
