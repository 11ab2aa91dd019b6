"""The five paths of one read, side by side in one run: what the mesh costs, and what it is held against.

(a) bare grpc.aio, (b) our `serve()` with all middleware, (c) through both sidecars, (d) REST through the edge, (e) REST
through a FastAPI gateway that proxies with httpx to a FastAPI service.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import load, processes
from bench.report import goals

CALLS = int(os.environ.get("BENCH_CALLS", "3000"))
LABELS = {
    "bare": "(a) bare grpc.aio",
    "serve": "(b) `serve()` with all middleware",
    "sidecars": "(c) gRPC through both sidecars, mTLS",
    "edge": "(d) REST through the edge",
    "fastapi": "(e) REST: FastAPI gateway + httpx + FastAPI service",
}
ROUNDS = 5  # each path is measured so often, in turn, and its best round counts: other work on the machine only adds


def run() -> dict[str, Any]:
    """Measures all paths; returns figures by path, the ratios that are goals, and memory by process in MB."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder, processes.mesh(Path(folder)) as running:
        mesh = json.loads((running.home / "state.json").read_text())
        name = _read_json(mesh, "/api/v1/foods:search?query=onion&pageSize=1")["results"][0]["food"]["name"]
        food = Path(folder) / "food.json"
        food.write_text(json.dumps(_read_json(mesh, f"/api/v1/{name}")))
        rounds = [_round(Path(folder) / str(number), mesh, name, food) for number in range(ROUNDS)]
        return {"paths": _best(rounds), "memory_mb": _memory(mesh), "calls": CALLS}


def report(results: dict[str, Any]) -> list[str]:
    """The table of paths, the ratios that are goals, and memory."""
    paths = results["paths"]
    lines = [
        "## One read by five paths",
        "",
        f"GetFood, 39 nutrients: best of {ROUNDS} rounds, {load.CALLERS} callers, CPU of all servers on the path.",
        "",
        "| path | calls/s | CPU us/call | p50 ms | p99 ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for path, r in paths.items():
        figures = f"{r['calls_per_second']:,.0f} | {r['cpu_us_per_call']:,.0f} | {r['p50_ms']:.1f} | {r['p99_ms']:.1f}"
        lines.append(f"| {LABELS[path]} | {figures} |")
    rate = paths["serve"]["calls_per_second"] / paths["bare"]["calls_per_second"]
    cpu = paths["edge"]["cpu_us_per_call"] / paths["fastapi"]["cpu_us_per_call"]
    held = [("rate of (b) / (a)", rate, ">= 0.80", rate >= 0.8), ("CPU of (d) / (e)", cpu, "<= 0.25", cpu <= 0.25)]
    lines += ["", *goals(held), "", "Memory at rest after the run (proportional set size, MB):", ""]
    lines += ["| instance | app | sidecar | together |", "| --- | ---: | ---: | ---: |"]
    for name, m in results["memory_mb"].items():
        lines.append(f"| {name} | {m['app']:.0f} | {m['sidecar']:.0f} | {m['app'] + m['sidecar']:.0f} |")
    return lines


def _round(folder: Path, mesh: dict[str, Any], name: str, food: Path) -> dict[str, load.Result]:
    folder.mkdir()
    instances = {i["id"]: i for i in mesh["instances"]}
    apps = [instances[i] for i in ("food-0", "food-canary-0")]
    sidecars = [instances["nutrition-0"]["proxy"]["pid"], *(i["proxy"]["pid"] for i in apps)]
    app_pids = [i["app"]["pid"] for i in apps]
    edge = [instances["edge-0"]["proxy"]["pid"], *(i["proxy"]["pid"] for i in apps), *app_pids]
    found = {}
    for kind in ("bare", "serve"):
        with processes.server("bench.grpc_servers", kind, str(folder / kind), str(food), ready=folder / kind) as pid:
            found[kind] = asyncio.run(load.grpc_read(f"unix:{folder / kind}", name, CALLS, [pid]))
    egress = f"unix:{mesh['run']}/nutrition-0/egress.sock"
    found["sidecars"] = asyncio.run(load.grpc_read(egress, name, CALLS, [*sidecars, *app_pids]))
    address = ("127.0.0.1", int(mesh["edge"].rpartition(":")[2]))
    found["edge"] = asyncio.run(load.rest_read(address, f"/api/v1/{name}", CALLS, edge))
    service, gateway = folder / "service", folder / "gateway"
    with (
        processes.server("bench.fastapi_servers", "service", str(service), str(food), ready=service) as a,
        processes.server("bench.fastapi_servers", "gateway", str(gateway), str(service), ready=gateway) as b,
    ):
        found["fastapi"] = asyncio.run(load.rest_read(str(gateway), f"/api/v1/{name}", CALLS, [a, b]))
    return found


def _best(rounds: list[dict[str, load.Result]]) -> dict[str, dict[str, float]]:
    best = {path: min((r[path] for r in rounds), key=lambda result: result.cpu_us_per_call) for path in rounds[0]}
    fastest = {path: max(r[path].calls_per_second for r in rounds) for path in rounds[0]}
    return {path: {**asdict(result), "calls_per_second": fastest[path]} for path, result in best.items()}


def _memory(mesh: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        i["id"]: {"app": processes.resident_mb(i["app"]["pid"]), "sidecar": processes.resident_mb(i["proxy"]["pid"])}
        for i in mesh["instances"]
    }


def _read_json(mesh: dict[str, Any], path: str) -> Any:
    with urllib.request.urlopen(mesh["edge"] + path, timeout=20) as answer:
        return json.load(answer)
