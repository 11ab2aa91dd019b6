"""Writes what was measured: results.json for programs, README.md for people."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LABELS = {
    "bare": "(a) bare grpc.aio",
    "serve": "(b) `serve()` with all middleware",
    "sidecars": "(c) gRPC through both sidecars, mTLS",
    "edge": "(d) REST through the edge",
    "fastapi": "(e) REST: FastAPI gateway + httpx + FastAPI service",
}


def goals(paths: dict[str, dict[str, float]]) -> list[tuple[str, float, str, bool]]:
    """(what, ratio, goal, met) for each ratio that is a goal."""
    rate = paths["serve"]["calls_per_second"] / paths["bare"]["calls_per_second"]
    cpu = paths["edge"]["cpu_us_per_call"] / paths["fastapi"]["cpu_us_per_call"]
    return [("rate of (b) / (a)", rate, ">= 0.80", rate >= 0.8), ("CPU of (d) / (e)", cpu, "<= 0.25", cpu <= 0.25)]


def write(results: dict[str, Any]) -> str:
    """Writes both files; returns the text for people."""
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    lines = [
        "# What it costs",
        "",
        "Written by `make bench`. One read (GetFood, 39 nutrients) by five paths in one run:",
    ]
    lines += [
        "best of five rounds, 16 callers, CPU of all server processes on the path. Compare within the table only;"
    ]
    lines += [f"machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.", ""]
    lines += ["| path | calls/s | CPU us/call | p50 ms | p99 ms |", "| --- | ---: | ---: | ---: | ---: |"]
    for path, r in results["paths"].items():
        figures = f"{r['calls_per_second']:,.0f} | {r['cpu_us_per_call']:,.0f} | {r['p50_ms']:.1f} | {r['p99_ms']:.1f}"
        lines.append(f"| {LABELS[path]} | {figures} |")
    lines += ["", "| ratio | measured | goal | |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {w} | {r:.2f} | {g} | {'met' if met else 'NOT met'} |" for w, r, g, met in goals(results["paths"])]
    lines += ["", "Memory at rest after the run (proportional set size, MB):", ""]
    lines += ["| instance | app | sidecar | together |", "| --- | ---: | ---: | ---: |"]
    for name, m in results["memory_mb"].items():
        lines.append(f"| {name} | {m['app']:.0f} | {m['sidecar']:.0f} | {m['app'] + m['sidecar']:.0f} |")
    text = "\n".join(lines) + "\n"
    (HERE / "README.md").write_text(text)
    return text
