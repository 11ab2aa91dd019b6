"""How long a bad canary has calls: from `mesh rollout` to weight 0 in every proxy, with guards as an SRE types them."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from mesh.rollout.files import Files
from mesh.rollout.tests.walked import Walked, walked

STEPS = ("--to", "canary", "--steps", "1,10,50,100", "--interval", "20s")
GUARDS = ("--guard", "error_rate<1%", "--guard", "p50<1.3x", "--guard", "p99<1.3x")
CANARIES = {"fails 20 % of its calls": (5, 1), "answers in twice the time": (0, 2)}
RATES = (200,)  # calls a second, of which the first step gives the canary 1 %: 20 calls take 10 s
GOAL = 30


def run() -> dict[str, Any]:
    """Rolls each bad canary out at each rate."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder:
        return {"rollouts": asyncio.run(_run(Path(folder))), "guards": " ".join(STEPS + GUARDS)}


def report(results: dict[str, Any]) -> list[str]:
    """The table of times."""
    lines = [
        "## A bad canary is taken back",
        "",
        f"`mesh rollout food {results['guards']}`; seconds from the command to weight 0 in every proxy, goal {GOAL} s.",
        "",
        "| the canary | calls/s to the service | seconds | calls that it had | what decided |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for r in results["rollouts"]:
        late = "" if r["seconds"] <= GOAL else " (NOT met)"
        lines.append(f"| {r['canary']} | {r['rate']} | {r['seconds']:.0f}{late} | {r['calls']} | {r['why']} |")
    return lines


async def _run(folder: Path) -> list[dict[str, Any]]:
    async with walked(folder) as mesh:
        return [await _one(mesh, canary, rate) for rate in RATES for canary in CANARIES]


async def _one(mesh: Walked, canary: str, rate: int) -> dict[str, Any]:
    await mesh.anew()
    mesh.canary.fail_every, mesh.canary.slow = CANARIES[canary]
    load = asyncio.create_task(_load(mesh, rate))
    await asyncio.sleep(6)  # Envoy's histograms know stable's calls after its first flush
    began, before = time.monotonic(), mesh.canary.count
    code, out = await mesh.rollout(*STEPS, *GUARDS)
    seconds = time.monotonic() - began
    load.cancel()
    if code != 1:
        raise RuntimeError(f"a canary that {canary} was not taken back:\n{out}")
    last = json.loads(Files(mesh.paths.rollouts, "food").log.read_text().splitlines()[-1])
    calls = mesh.canary.count - before
    return {"canary": canary, "rate": rate, "seconds": seconds, "calls": calls, "why": last["why"]}


async def _load(mesh: Walked, rate: int) -> None:
    """`rate` calls a second, whether or not the earlier ones have ended."""
    began, sent = time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while True:
            while sent < (time.monotonic() - began) * rate:
                group.create_task(mesh.call())
                sent += 1
            await asyncio.sleep(0.005)
