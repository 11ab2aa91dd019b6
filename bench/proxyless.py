"""What the mesh costs a call without a sidecar: gRPC's own xDS and mTLS, against a direct plaintext call.

One caller, one call at a time, one handler behind `serve()` and its middleware. The paths take turns, forwards and
backwards; a ratio is taken within a round.
"""

from __future__ import annotations

import asyncio
import os
import socket
import string
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import grpc.experimental
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.service.discovery.v3 import ads_pb2_grpc
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from nourish.food.v1 import food_pb2
from nourish.food.v1.food_pb2_grpc import FoodServiceStub
from nourish.mesh.v1.control_pb2 import ApplyValuesRequest, GetMeshRequest, ValuesFile
from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub
from nourish.mesh.v1.registry_pb2 import ReportEndpointsRequest
from nourish.mesh.v1.registry_pb2_grpc import RegistryServiceStub

from bench import processes
from bench.report import goals
from mesh.contract import Contract
from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.runtime import notify, options
from mesh.topology import Topology
from mesh.values import CHART_VALUES, load
from mesh.values import ValuesFile as Text
from mesh.xds import pb
from mesh.xds.plan import Host, Materials, Node, Plan
from mesh.xds.snapshot import CDS, EDS, LDS, RDS, Resources, Snapshot, compile_node
from mesh.xds.stream import StateOfTheWorld

ROUNDS, CALLS, WARM_UP = int(os.environ.get("BENCH_ROUNDS", "30")), 200, 300
GOAL = 1.10
SECONDS = 30
TARGET, PLAIN = "xds:///egress", "xds:///plain.egress"
TYPES: dict[str, Any] = {CDS: Cluster, EDS: ClusterLoadAssignment, LDS: Listener, RDS: RouteConfiguration}
REQUEST_ID = (("x-request-id", "b0a1d3cc-6f0e-4d3e-9f2a-0a4c7e0c8b11"),)  # every call within the mesh has one
TEMPLATE = CHART_VALUES.parents[1] / "envoy" / "proxyless.json"
OVERLAY = """
services:
  food: {dataPlane: proxyless, canary: {replicas: 0, weight: 0}}
  nutrition: {dataPlane: proxyless}
"""
LABELS = {
    "direct": "direct, plaintext",
    "tls": "direct, mutual TLS",
    "xds": "routed by gRPC's xDS, plaintext: no mode of the mesh, it shows what routing costs",
    "proxyless": "proxyless: routed by gRPC's xDS, mutual TLS, rules at the callee",
}
Call = Callable[[], Awaitable[object]]


def run() -> dict[str, Any]:
    """Measures the paths by turns; returns p50 in microseconds, and ratios to the direct call."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder:
        return asyncio.run(_run(Path(folder)))


def report(results: dict[str, Any]) -> list[str]:
    """The table of paths, and the goal."""
    lines = [
        "## A call without a sidecar",
        "",
        f"GetFood, 39 nutrients, one call at a time over loopback TCP: p50 of {results['calls']} calls in each of "
        f"{results['rounds']} rounds, the paths by turns; ratios within a round.",
        "",
        "| path | p50 us | ratio to direct: median, lowest to highest |",
        "| --- | ---: | ---: |",
    ]
    for path, label in LABELS.items():
        r = results["paths"][path]
        lines.append(f"| {label} | {r['p50_us']:.0f} | {r['ratio']:.2f}, {r['lowest']:.2f} to {r['highest']:.2f} |")
    held = []
    for path, what in (("proxyless", "p50 of proxyless / direct"), ("xds", "the same in plaintext")):
        ratio = results["paths"][path]["ratio"]
        held.append((what, ratio, f"<= {GOAL:.2f}", ratio <= GOAL))
    return [*lines, "", *goals(held)]


async def _run(folder: Path) -> dict[str, Any]:
    async with _paths(folder) as paths:
        for call in paths.values():
            await _p50(call, WARM_UP)
        rounds = []
        for number in range(ROUNDS):
            order = list(paths) if number % 2 == 0 else list(reversed(paths))
            rounds.append({path: await _p50(paths[path], CALLS) for path in order})
    return {"rounds": ROUNDS, "calls": CALLS, "paths": {path: _figures(rounds, path) for path in paths}}


async def _p50(call: Call, calls: int) -> float:
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
    return median(taken)


def _figures(rounds: list[dict[str, float]], path: str) -> dict[str, float]:
    ratios = [r[path] / r["direct"] for r in rounds]
    p50 = median(r[path] for r in rounds) * 1e6
    return {"p50_us": p50, "ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


@asynccontextmanager
async def _paths(folder: Path) -> AsyncIterator[dict[str, Call]]:
    """All servers and channels at once; gives what calls each way."""
    identity, food = _identities(folder / "identity"), _food()
    with ExitStack() as servers:
        plain, tls, proxyless = await _start(servers, folder, identity, food)
        async with AsyncExitStack() as channels:
            await channels.enter_async_context(_xds(folder / "xds.sock", proxyless, plain))

            async def call(channel: grpc.aio.Channel) -> Call:
                stub = FoodServiceStub(await channels.enter_async_context(channel))
                request = food_pb2.GetFoodRequest(name=food.name)
                await stub.GetFood(request, timeout=SECONDS, wait_for_ready=True)
                return lambda: stub.GetFood(request, timeout=10, metadata=REQUEST_ID)

            with _environment(_bootstrap(folder, "nutrition", "xds.sock"), identity / "nutrition", ""):
                yield {
                    "direct": await call(grpc.aio.insecure_channel(f"127.0.0.1:{plain}")),
                    "tls": await call(_tls_channel(f"127.0.0.1:{tls}", identity / "nutrition")),
                    "xds": await call(_xds_channel(PLAIN)),
                    "proxyless": await call(_xds_channel(TARGET)),
                }


async def _start(servers: ExitStack, folder: Path, identity: Path, food: food_pb2.Food) -> tuple[int, int, int]:
    """Starts a control plane, and food in each way; gives the ports of plain, tls and proxyless food."""
    content, control = folder / "food.json", folder / "control.sock"
    content.write_text(json_format.MessageToJson(food))

    def start(module: str, kind: str, *arguments: str, ready: Path) -> Path:
        servers.enter_context(processes.server(module, kind, *arguments, ready=ready))
        return ready

    start("mesh.xds", "--socket", f"unix:{control}", "--jwks", str(identity / "jwks.json"), ready=control)
    async with grpc.aio.insecure_channel(f"unix:{control}") as channel:
        await _tell(channel)
    ports = []
    for kind in ("plain", "tls"):
        ready, more = folder / kind, (str(identity / "food"),) if kind == "tls" else ()
        start("bench.grpc_servers", kind, str(ready), str(content), *more, ready=ready)
        ports.append(int(ready.read_text()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(folder / "notify.sock"))
        with _environment(_bootstrap(folder, "food"), identity / "food", "127.0.0.1:0", told.getsockname()):
            ready = folder / "serve"
            start("bench.grpc_servers", "serve", str(ready), str(content), ready=ready)
        said = told.recv(1000).decode()
    return ports[0], ports[1], int(said.removeprefix(f"{notify.PORT}="))


@asynccontextmanager
async def _xds(socket: Path, tls_port: int, plain_port: int) -> AsyncIterator[None]:
    """Serves nutrition what the control plane would, and the same once more without TLS: gRPC reads one bootstrap."""
    server = grpc.aio.server()
    snapshot, plain = _snapshot(tls_port), _snapshot(plain_port)
    both = {kind: {**own, **_without_tls(kind, plain.resources[kind])} for kind, own in snapshot.resources.items()}
    servicer = _Static(replace(snapshot, resources=both))
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


def _snapshot(port: int) -> Snapshot:
    files = [Text("values.yaml", CHART_VALUES.read_text()), Text("bench.yaml", OVERLAY)]
    hosts = (Host("food", "food-0", "stable", "127.0.0.1", port),)
    plan = Plan(load(files), Contract.read(), Materials('{"keys": []}'), hosts)
    return compile_node(plan.node(Node.without_proxy("nutrition-0", "nutrition", "stable")))


def _without_tls(kind: str, resources: Resources) -> Resources:
    """Copies under other names, "plain.food.stable"."""
    copies = {}
    for name, resource in resources.items():
        copy = TYPES[kind].FromString(resource.value)
        if kind == CDS:
            copy.ClearField("transport_socket")
        if kind == LDS and name == "egress":
            http = HttpConnectionManager.FromString(copy.api_listener.api_listener.value)
            http.rds.route_config_name = f"plain.{name}"
            copy.api_listener.api_listener.Pack(http)
        for route in copy.virtual_hosts[0].routes if kind == RDS else ():
            route.route.cluster = f"plain.{route.route.cluster}"
        setattr(copy, "cluster_name" if kind == EDS else "name", f"plain.{name}")
        copies[f"plain.{name}"] = pb.pack(copy)
    return copies


class _Static(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        stream = StateOfTheWorld()
        stream.publish(self._snapshot)
        async for request in requests:
            stream.request(request)
            for response in stream.responses():
                yield response


async def _tell(channel: grpc.aio.Channel) -> None:
    """The runner's part: values, and that there are no endpoints yet."""
    stub = ControlServiceStub(channel)
    await stub.GetMesh(GetMeshRequest(), timeout=SECONDS, wait_for_ready=True)
    texts = {"values.yaml": CHART_VALUES.read_text(), "bench.yaml": OVERLAY}
    files = [ValuesFile(path=path, content=text) for path, text in texts.items()]
    answer = await stub.ApplyValues(ApplyValuesRequest(files=files, timeout=Duration(seconds=SECONDS)))
    if not answer.applied:
        raise RuntimeError("; ".join(answer.errors))
    await RegistryServiceStub(channel).ReportEndpoints(ReportEndpointsRequest(source="bench"))


def _identities(folder: Path) -> Path:
    authority = CertificateAuthority(folder)
    for service in ("food", "nutrition"):
        authority.issue(service, Topology({}).spiffe_id(service))
    (folder / "jwks.json").write_text(tokens.public_jwks(folder))
    return folder


def _food() -> food_pb2.Food:
    food = food_pb2.Food(name="foods/onion", display_name="Onions, raw", category="Vegetables", etag="1")
    for number, field in enumerate(food.nutrients.DESCRIPTOR.fields):
        setattr(food.nutrients, field.name, number + 0.25)
    return food


def _bootstrap(folder: Path, service: str, control: str = "control.sock") -> Path:
    names = {"NODE_ID": f"{service}-0", "SERVICE": service, "SUBSET": "stable"}
    places = {"CONTROL_SOCKET": folder / control, "IDENTITY_DIR": folder / "identity" / service}
    path = folder / f"{service}.{control}.json"
    path.write_text(string.Template(TEMPLATE.read_text()).substitute({**names, **places}))
    return path


@contextmanager
def _environment(bootstrap: Path, identity: Path, inbound: str, told: str = "") -> Iterator[None]:
    """What the runner gives a proxyless process, for those that are started within."""
    names = {
        "GRPC_XDS_BOOTSTRAP": str(bootstrap),
        "NOURISH_IDENTITY_DIR": str(identity),
        "NOURISH_INBOUND": inbound,
        "NOURISH_EGRESS": TARGET,
        "NOTIFY_SOCKET": told,
    }
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def _xds_channel(target: str) -> grpc.aio.Channel:
    # Without TLS in a cluster gRPC takes the fallback, by default TLS with the system's roots.
    plaintext = grpc.experimental.insecure_channel_credentials() if target == PLAIN else None
    return grpc.aio.secure_channel(
        target, grpc.xds_channel_credentials(plaintext), options=options.CLIENT_WITHOUT_SIDECAR
    )


def _tls_channel(address: str, identity: Path) -> grpc.aio.Channel:
    trust, key, certificate = ((identity / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    credentials = grpc.ssl_channel_credentials(trust, key, certificate)
    # A SPIFFE certificate has no host name; this path is here for what TLS costs.
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.ssl_target_name_override", "food")])
