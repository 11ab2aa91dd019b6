"""20 rolling restarts of food, two instances, while the mesh answers through its edge."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench import load, processes

RESTARTS = int(os.environ.get("BENCH_RESTARTS", "20"))
RESTART_SECONDS = 300


def run() -> dict[str, Any]:
    """Restarts; returns how many requests were answered, how many failed and how, and how long a restart took."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder, processes.mesh(Path(folder), "food") as mesh:
        environment = {**os.environ, "MESH_HOME": str(mesh.home), "MESH_PORT": str(mesh.port)}
        _mesh(environment, "apply", "--set", "services.food.canary.weight=50")
        try:
            return asyncio.run(_restart(mesh, environment))
        finally:
            _mesh(environment, "apply")


def report(results: dict[str, Any]) -> list[str]:
    """The counts."""
    r = results
    goal = "met" if r["failed"] == 0 else "NOT met"
    return [
        "## Rolling restarts under load",
        "",
        f"{r['restarts']} rolling restarts of food (2 instances), through the edge: {r['kept']:,} requests on kept "
        f"connections and {r['new']:,} on new ones answered, {r['failed']} failed (goal: 0, {goal}).",
        f"A restart of both took {r['median_seconds']:.1f} s (median), at most {r['longest_seconds']:.1f} s.",
        *(f"- {reason}: {count}" for reason, count in r["failures"].items()),
    ]


def _mesh(environment: dict[str, str], *arguments: str) -> bytes:
    command = [sys.executable, "-m", "mesh.cli", *arguments]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=RESTART_SECONDS).stdout


async def _restart(mesh: processes.Mesh, environment: dict[str, str]) -> dict[str, Any]:
    counts, failures, done = Counter(kept=0, new=0), Counter[str](), asyncio.Event()
    seconds = []
    async with asyncio.TaskGroup() as group:
        for reader in load.readers(mesh.port, counts, failures, done):
            group.create_task(reader)
        try:
            for _ in range(RESTARTS):
                told = json.loads(await asyncio.to_thread(_mesh, environment, "restart", "food", "--json"))
                if len(told["restarted"]) != 2:
                    raise RuntimeError(f"not both were restarted: {told}")
                seconds.append(told["seconds"])
        finally:
            done.set()
    return {
        "restarts": len(seconds),
        **counts,
        "failed": failures.total(),
        "failures": dict(failures),
        "median_seconds": statistics.median(seconds),
        "longest_seconds": max(seconds),
    }
