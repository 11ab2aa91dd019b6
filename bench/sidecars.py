"""CPU of a sidecar pair with every policy on, beside a bare pair of Envoys with the same TLS, in one run.

Both stand between one client and one application and are measured turn and turn about, a few hundred calls at a time,
so that what else the machine does meets both. Ours is what the compiler gives, the bare one routes and does nothing
else. The others are ours without one part: what that part costs. `BENCH_PARTS=all` leaves out each, else the tap alone.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import grpc
import yaml
from google.protobuf import json_format
from nourish.food.v1 import food_pb2
from nourish.food.v1.food_pb2_grpc import FoodServiceStub

from bench import processes
from bench.report import goals
from mesh import engine, values
from mesh.admin import Admin, AdminError
from mesh.contract import Contract
from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.xds.plan import Host, Materials, Node, Plan
from mesh.xds.snapshot import as_json, compile_node

CALLS = int(os.environ.get("BENCH_CALLS", "300"))  # a turn
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "40"))
CALLERS = 16
GOAL = 1.25
START_SECONDS = 20
BOOTSTRAP = Path(__file__).parents[1] / "envoy" / "sidecar.yaml"
# Every policy that adds work to a call, none that refuses calls, spoils or doubles them.
VALUES = """
services:
  nutrition: {calls: [food]}
  food:
    canary: {replicas: 1, sticky: user}
    limits: {maxRequestBytes: 1000000, maxResponseBytes: 1000000}
    traffic:
      balancing: ringHash
      zone: own
      concurrency: {adaptive: true, least: 100}
      faults: {delay: {milliseconds: 1, percent: 0}, abort: {percent: 0}, header: {exact: "yes"}}
      rates: {read: {perSecond: 1000000}, search: {perSecond: 1000000}, write: {perSecond: 1000000}}
"""
FOOD = food_pb2.Food(name="foods/bench", display_name="Onions, raw")
CALLEE, CALLER = "food", "nutrition"
Config = dict[str, Any]
Both = dict[str, Config]  # by service: the bootstrap of its sidecar


def run() -> dict[str, Any]:
    """Measures all pairs; returns CPU per call of each, our ratio to the bare one, and the share of each part."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        app, food = folder / "app.sock", folder / "food.json"
        food.write_text(json_format.MessageToJson(FOOD))
        stack.enter_context(processes.server("bench.grpc_servers", "bare", str(app), str(food), ready=app))
        ours = _compiled(folder, app)
        pairs = {"bare": _bare(ours), "ours": ours, **{f"without {what}": _without(ours, what) for what in LEFT_OUT}}
        running = {what: stack.enter_context(_running(folder, what, both)) for what, both in pairs.items()}
        metadata = (("authorization", f"Bearer {tokens.mint(folder, 'alice')}"), ("x-nourish-key", "1"))
        rounds = asyncio.run(_measure(running, metadata))
    costs = {what: [(r["ours"] - r[f"without {what}"]) / r["bare"] for r in rounds] for what in LEFT_OUT}
    return {
        "cpu_us_per_call": {what: median(r[what] for r in rounds) for what in pairs},
        "ratio": _spread([r["ours"] / r["bare"] for r in rounds]),
        "costs": {what: _spread(found) for what, found in costs.items()},
        "calls": CALLS,
        "rounds": ROUNDS,
    }


def report(results: dict[str, Any]) -> list[str]:
    """The ratio that is a goal, and what each part costs."""
    ratio, cpu = results["ratio"], results["cpu_us_per_call"]
    text = f"CPU of our pair / of the bare pair, quartiles {ratio['lower']:.2f} and {ratio['upper']:.2f}"
    lines = [
        "## A sidecar pair with every policy on",
        "",
        f"GetFood with a user's token through two Envoys, mutual TLS 1.3: medians of {results['rounds']} rounds of "
        f"{results['calls']:,} calls. A bare pair takes {cpu['bare']:.0f} us of CPU a call, ours {cpu['ours']:.0f}.",
        "",
        *goals([(text, ratio["median"], f"<= {GOAL:.2f}", ratio["median"] <= GOAL)]),
        "",
        "What each part costs, by leaving it out, in shares of the bare pair's CPU:",
        "",
        "| part | median | lower quartile | upper quartile |",
        "| --- | ---: | ---: | ---: |",
    ]
    for what, cost in results["costs"].items():
        lines.append(f"| {what} | {cost['median']:.1%} | {cost['lower']:.1%} | {cost['upper']:.1%} |")
    return lines


def _spread(found: list[float]) -> dict[str, float]:
    lower, _, upper = quantiles(found, n=4)
    return {"median": median(found), "lower": lower, "upper": upper}


def _compiled(folder: Path, app: Path) -> Both:
    """Our sidecars: their bootstrap, with what the control plane would send as static resources."""
    topology = values.load([values.ValuesFile("values.yaml", VALUES)])
    hosts = tuple(Host(CALLEE, f"{CALLEE}-{zone}", "stable", "127.0.0.1", 1, zone) for zone in ("a", "b"))
    plan = Plan(topology, _patient(Contract.read()), Materials(tokens.public_jwks(folder)), hosts)
    authority, found = CertificateAuthority(folder), {}
    for service in (CALLEE, CALLER):
        authority.issue(service, topology.spiffe_id(service))
        node = Node(service, service, "stable", str(app), "/egress", str(folder / service), "127.0.0.1", 0, zone="a")
        found[service] = _bootstrap(as_json(compile_node(plan.node(node))))
    return found


def _patient(contract: Contract) -> Contract:
    """With deadlines that a busy machine keeps too."""
    methods = {s: tuple(replace(m, deadline_seconds=60.0) for m in found) for s, found in contract.methods.items()}
    return Contract(methods, contract.descriptors)


def _bootstrap(resources: dict[str, list[Any]]) -> Config:
    config: Config = yaml.safe_load(re.sub(r"\$\{[A-Z]+_PORT\}", "0", BOOTSTRAP.read_text()))
    routes = {r["name"]: r for r in resources["rds"]}
    assigned = {a["cluster_name"]: a for a in resources["eds"]}
    for cluster in resources["cds"]:
        cluster.pop("health_checks", None)  # nothing that a call pays for, and a busy machine fails them
        if cluster.pop("eds_cluster_config", None):
            cluster.update(type="STATIC", load_assignment=assigned[cluster["name"]])
    for listener in resources["lds"]:
        http = _http(listener)
        http["route_config"] = routes[http.pop("rds")["route_config_name"]]
    del config["dynamic_resources"]
    return {**config, "static_resources": {"listeners": resources["lds"], "clusters": resources["cds"]}}


def _bare(ours: Both) -> Both:
    """The same sockets, TLS and HTTP/2; one route, one filter, nothing else, and Envoy's own bootstrap."""
    found = {}
    for service, cluster in ((CALLEE, "app"), (CALLER, f"{CALLEE}.stable")):
        static = copy.deepcopy(ours[service]["static_resources"])
        for listener in static["listeners"]:
            http = _http(listener)
            route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}
            kept = {k: http[k] for k in ("@type", "stat_prefix", "codec_type", "http2_protocol_options")}
            kept["route_config"] = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}
            listener["filter_chains"][0]["filters"][0]["typed_config"] = {
                **kept,
                "http_filters": http["http_filters"][-1:],
            }
        keys = ("name", "type", "load_assignment", "transport_socket", "typed_extension_protocol_options")
        clusters = [{k: c[k] for k in keys if k in c} for c in static["clusters"] if c["name"] == cluster]
        found[service] = {
            "node": ours[service]["node"],
            "static_resources": {"listeners": static["listeners"], "clusters": clusters},
        }
    return found


def _http(listener: Config) -> Config:
    found: Config = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def _filter(*names: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for listener in config["static_resources"]["listeners"]:
            http = _http(listener)
            http["http_filters"] = [f for f in http["http_filters"] if f["name"] not in names]

    return change


def _setting(*keys: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for holder in (config, *map(_http, config["static_resources"]["listeners"])):
            for key in keys:
                holder.pop(key, None)

    return change


ENVOY = "envoy.filters.http."
PARTS: dict[str, Callable[[Config], None]] = {
    "idle tap": _filter(ENVOY + "tap"),
    "access log": _setting("access_log"),
    "header strip": _setting("early_header_mutation_extensions"),
    "rbac": _filter("rbac.peers", "rbac.scopes"),
    "tokens": _filter(ENVOY + "jwt_authn"),
    "rates": _filter(ENVOY + "local_ratelimit"),
    "concurrency": _filter(ENVOY + "adaptive_concurrency"),
    "sizes": _filter(ENVOY + "file_system_buffer"),
    "call stats": _filter(ENVOY + "grpc_stats"),
    "faults": _filter(ENVOY + "fault"),
    "bootstrap": _setting("stats_config", "overload_manager", "watchdogs"),
}
LEFT_OUT = PARTS if os.environ.get("BENCH_PARTS") == "all" else ("idle tap",)


def _without(ours: Both, what: str) -> Both:
    found = copy.deepcopy(ours)
    for config in found.values():
        PARTS[what](config)
    return found


@dataclass(frozen=True)
class _Pair:
    """Two Envoys that run: where calls go in, and their process ids."""

    socket: Path
    pids: list[int]


@contextmanager
def _running(folder: Path, what: str, both: Both) -> Iterator[_Pair]:
    place = folder / what.replace(" ", "-")
    place.mkdir()
    with ExitStack() as stack:
        callee = stack.enter_context(_envoy(place, CALLEE, both[CALLEE]))
        port = asyncio.run(_bound(place / f"{CALLEE}.admin", "inbound"))
        caller = stack.enter_context(_envoy(place, CALLER, both[CALLER], port))
        asyncio.run(_bound(place / f"{CALLER}.admin", "inbound"))
        yield _Pair(place / f"{CALLER}.egress", [callee, caller])


@contextmanager
def _envoy(place: Path, service: str, config: Config, port: int = 0) -> Iterator[int]:
    config = copy.deepcopy(config)
    config["admin"] = {"address": {"pipe": {"path": str(place / f"{service}.admin")}}}
    for listener in config["static_resources"]["listeners"]:
        if "pipe" in listener["address"]:
            listener["address"]["pipe"]["path"] = str(place / f"{service}.egress")
    text = json.dumps(config).replace(
        '"address": "127.0.0.1", "port_value": 1}', f'"address": "127.0.0.1", "port_value": {port}}}'
    )
    bootstrap, log = place / f"{service}.json", (place / f"{service}.log").open("wb")
    bootstrap.write_text(text)
    options = ("--disable-hot-restart", "--concurrency", "1", "-l", "warning", "--file-flush-interval-msec", "1000")
    process = subprocess.Popen([str(engine.envoy()), "-c", str(bootstrap), *options], stdout=log, stderr=log)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        log.close()


async def _bound(admin: Path, listener: str) -> int:
    """Waits until this listener is bound; returns its port."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return (await Admin(admin).listeners())[listener]
        except (AdminError, KeyError):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{admin}: Envoy did not start; see its log") from None
            await asyncio.sleep(0.05)


async def _measure(running: dict[str, _Pair], metadata: Any) -> list[dict[str, float]]:
    """By round: CPU per call of each pair, in microseconds."""
    async with AsyncExitStack() as stack:
        calls = {}
        for what, pair in running.items():
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{pair.socket}"))
            calls[what] = FoodServiceStub(channel).GetFood
        rounds = []
        for number in range(ROUNDS + 1):
            order = list(running) if number % 2 else list(reversed(running))
            rounds.append({what: await _turn(calls[what], running[what].pids, metadata) for what in order})
        return rounds[1:]  # the first warms up


async def _turn(call: Any, pids: list[int], metadata: Any) -> float:
    left, request = iter(range(CALLS)), food_pb2.GetFoodRequest(name=FOOD.name)

    async def caller() -> None:
        for _ in left:
            await call(request, timeout=60, metadata=metadata, wait_for_ready=True)

    before = processes.scheduled_seconds(pids)
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return (processes.scheduled_seconds(pids) - before) / CALLS * 1e6
