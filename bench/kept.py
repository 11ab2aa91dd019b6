"""What a test waits for the mesh of `mesh_up`: its first start of all, a start with databases there, and a reuse."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

from bench import processes
from mesh.pytest.kept import Kept, end_all
from mesh.pytest.mesh import Mesh

PARTS: dict[str, tuple[str, ...]] = {"profile": ("profile",), "food and nutrition": ("nutrition",)}
STARTS, REUSES = 3, 5
GOAL_SECONDS = 5.0


def run() -> dict[str, Any]:
    """Starts, ends and reuses each part; returns medians, and the CPU time that all processes of a start take."""
    found: dict[str, Any] = {}
    before = os.environ.get("MESH_HOME")
    for part, services in PARTS.items():
        with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder:
            os.environ["MESH_HOME"] = folder
            try:
                found[part] = _measured(services)
            finally:
                end_all()
                os.environ.pop("MESH_HOME") if before is None else os.environ.update(MESH_HOME=before)
    return {"parts": found, "cores": os.cpu_count()}


def report(results: dict[str, Any]) -> list[str]:
    """The table."""
    lines = [
        "| services | first start of all | start | CPU of a start | reuse |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {part} | {r['first']:.1f} s | {r['start']:.1f} s | {r['cpu']:.1f} s | {r['reuse'] * 1000:.0f} ms |"
        for part, r in results["parts"].items()
    ]
    goals = ", ".join(
        f"{part} {'met' if r['start'] < GOAL_SECONDS else 'NOT met'}" for part, r in results["parts"].items()
    )
    return ["## The mesh that tests keep", "", *lines, "", f"Goal: a start in under {GOAL_SECONDS:.0f} s: {goals}."]


def _measured(services: tuple[str, ...]) -> dict[str, float]:
    first, _ = _up(services)
    starts, cpu = [], []
    for _ in range(STARTS):
        end_all()
        seconds, mesh = _up(services)
        starts.append(seconds)
        cpu.append(processes.cpu_seconds(_pids(mesh)))
    reuses = [_up(services)[0] for _ in range(REUSES)]
    return {
        "first": first,
        "start": statistics.median(starts),
        "cpu": statistics.median(cpu),
        "reuse": statistics.median(reuses),
    }


def _up(services: tuple[str, ...]) -> tuple[float, Mesh]:
    """As one session of tests."""
    kept = Kept(minutes=5)
    began = time.monotonic()
    try:
        mesh = kept.up(*services)
        return time.monotonic() - began, mesh
    finally:
        kept.end()


def _pids(mesh: Mesh) -> list[int]:
    state = mesh.state()
    engines = [state[name] for name in ("postgres", "nats", "control") if state[name]]
    parts = [part for i in state["instances"] for part in (i["app"], i["proxy"])]
    return [state["pid"], *(part["pid"] for part in (*engines, *parts) if part["pid"])]
