"""The five paths of one read, side by side in one run: what the mesh costs, and what it is held against.

(a) bare grpc.aio, (b) our `serve()` with all middleware, (c) through both sidecars, (d) REST through the edge, (e) REST
through a FastAPI gateway that proxies with httpx to a FastAPI service.

All servers are up at once and are measured in turn, forwards and backwards: what else the machine does meets them all.
A ratio is taken within a round, between neighbours, and the median of the rounds counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

from bench import load, processes
from bench.report import goals

CALLS = int(os.environ.get("BENCH_CALLS", "1500"))
LABELS = {
    "bare": "(a) bare grpc.aio",
    "serve": "(b) `serve()` with all middleware",
    "sidecars": "(c) gRPC through both sidecars, mTLS",
    "edge": "(d) REST through the edge",
    "fastapi": "(e) REST: FastAPI gateway + httpx + FastAPI service",
}
ROUNDS = 8
# What, the field of a result, dividend, divisor, the goal, and whether it is a least or a most.
RATIOS = (
    ("rate of (b) / (a)", "calls_per_second", "serve", "bare", 0.80, ">="),
    ("CPU of (a) / (b)", "cpu_us_per_call", "bare", "serve", 0.80, ">="),
    ("CPU of (d) / (e)", "cpu_us_per_call", "edge", "fastapi", 0.25, "<="),
)
Measure = Callable[[], load.Result]


def run() -> dict[str, Any]:
    """Measures all paths; returns figures by path, the ratios that are goals, and memory by process in MB."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder, processes.mesh(Path(folder)) as running:
        mesh = json.loads((running.home / "state.json").read_text())
        name = _read_json(mesh, "/api/v1/foods:search?query=onion&pageSize=1")["results"][0]["food"]["name"]
        food = Path(folder) / "food.json"
        food.write_text(json.dumps(_read_json(mesh, f"/api/v1/{name}")))
        with _servers(Path(folder), mesh, name, food) as paths:
            started = os.getloadavg()[0]
            rounds = [_round(paths, backwards=number % 2 == 1) for number in range(ROUNDS)]
        ratios = {what: _ratios(rounds, *which) for what, *which, _, _ in RATIOS}
        return {
            "paths": _medians(rounds),
            "ratios": ratios,
            "memory_mb": _memory(mesh),
            "calls": CALLS,
            "load_before": started,
        }


def report(results: dict[str, Any]) -> list[str]:
    """The table of paths, the ratios that are goals, and memory."""
    paths = results["paths"]
    lines = [
        "## One read by five paths",
        "",
        f"GetFood, 39 nutrients: medians of {ROUNDS} rounds of {results['calls']:,} calls, {load.CALLERS} callers,",
        f"CPU of all servers on the path. Load of the machine before the run: {results['load_before']:.1f}.",
        "",
        "| path | calls/s | CPU us/call | p50 ms | p99 ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for path, r in paths.items():
        figures = f"{r['calls_per_second']:,.0f} | {r['cpu_us_per_call']:,.0f} | {r['p50_ms']:.1f} | {r['p99_ms']:.1f}"
        lines.append(f"| {LABELS[path]} | {figures} |")
    held = []
    for what, _, _, _, goal, sense in RATIOS:
        ratio = results["ratios"][what]
        met = ratio["median"] >= goal if sense == ">=" else ratio["median"] <= goal
        text = f"{what}, {ratio['lowest']:.2f} to {ratio['highest']:.2f}"
        held.append((text, ratio["median"], f"{sense} {goal:.2f}", met))
    lines += ["", *goals(held), "", "Memory at rest after the run (proportional set size, MB):", ""]
    lines += ["| instance | app | sidecar | together |", "| --- | ---: | ---: | ---: |"]
    for name, m in results["memory_mb"].items():
        lines.append(f"| {name} | {m['app']:.0f} | {m['sidecar']:.0f} | {m['app'] + m['sidecar']:.0f} |")
    return lines


@contextmanager
def _servers(folder: Path, mesh: dict[str, Any], name: str, food: Path) -> Iterator[dict[str, Measure]]:
    """Starts what the mesh is held against; gives what measures each path, neighbours in a ratio side by side."""
    instances = {i["id"]: i for i in mesh["instances"]}
    apps = [instances[i] for i in ("food-0", "food-canary-0")]
    behind = [pid for i in apps for pid in (i["app"]["pid"], i["proxy"]["pid"])]
    sidecars = [instances["nutrition-0"]["proxy"]["pid"], *behind]
    edge = [instances["edge-0"]["proxy"]["pid"], *behind]
    address = ("127.0.0.1", int(mesh["edge"].rpartition(":")[2]))
    gateway = str(folder / "gateway")
    with ExitStack() as stack:

        def start(module: str, kind: str, argument: Path) -> int:
            ready = folder / kind
            return stack.enter_context(processes.server(module, kind, str(ready), str(argument), ready=ready))

        bare, full = (start("bench.grpc_servers", kind, food) for kind in ("bare", "serve"))
        fastapi = [start("bench.fastapi_servers", "service", food)]
        fastapi.append(start("bench.fastapi_servers", "gateway", folder / "service"))

        def grpc(at: str | Path, *pids: int) -> Measure:
            return lambda: asyncio.run(load.grpc_read(f"unix:{at}", name, CALLS, [*pids]))

        def rest(at: str | tuple[str, int], *pids: int) -> Measure:
            return lambda: asyncio.run(load.rest_read(at, f"/api/v1/{name}", CALLS, [*pids]))

        yield {
            "bare": grpc(folder / "bare", bare),
            "serve": grpc(folder / "serve", full),
            "sidecars": grpc(f"{mesh['run']}/nutrition-0/egress.sock", *sidecars),
            "edge": rest(address, *edge),
            "fastapi": rest(gateway, *fastapi),
        }


def _round(paths: dict[str, Measure], *, backwards: bool) -> dict[str, load.Result]:
    order = reversed(paths) if backwards else iter(paths)
    return {path: paths[path]() for path in order}


def _medians(rounds: list[dict[str, load.Result]]) -> dict[str, dict[str, float]]:
    names = [field.name for field in fields(load.Result)]
    return {path: {n: median(asdict(r[path])[n] for r in rounds) for n in names} for path in LABELS}


def _ratios(rounds: list[dict[str, load.Result]], field: str, dividend: str, divisor: str) -> dict[str, float]:
    found = [getattr(r[dividend], field) / getattr(r[divisor], field) for r in rounds]
    return {"median": median(found), "lowest": min(found), "highest": max(found)}


def _memory(mesh: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        i["id"]: {"app": processes.resident_mb(i["app"]["pid"]), "sidecar": processes.resident_mb(i["proxy"]["pid"])}
        for i in mesh["instances"]
    }


def _read_json(mesh: dict[str, Any], path: str) -> Any:
    with urllib.request.urlopen(mesh["edge"] + path, timeout=20) as answer:
        return json.load(answer)
