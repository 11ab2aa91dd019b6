"""100 rotations of both leaves and one of the root, under load: each request is a new mTLS connection."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh.identity.rotation import rotate_root, settle
from mesh.identity.tests.lab import FOOD, NUTRITION, Mesh, running

ROTATIONS, CALLERS = 100, 4


def run() -> dict[str, Any]:
    """Rotates; returns how many requests were answered, and how many failed."""
    return asyncio.run(_run())


def report(results: dict[str, Any]) -> list[str]:
    """The counts."""
    failed, answered = results["failed"], results["answered"]
    goal = "met" if failed == 0 else "NOT met"
    return [
        "## Certificates rotated under load",
        "",
        f"{results['rotations']} rotations of both leaves, then one of the root, each request on a new mTLS "
        f"connection: {answered:,} requests answered, {failed} failed (goal: 0, {goal}).",
    ]


async def _run() -> dict[str, Any]:
    counts, done = {"answered": 0, "failed": 0}, asyncio.Event()

    async def load(mesh: Mesh) -> None:
        while not done.is_set():
            counts["answered" if await mesh.answers() else "failed"] += 1

    async with running() as mesh:
        callers = [asyncio.create_task(load(mesh)) for _ in range(CALLERS)]
        for _ in range(ROTATIONS):
            mesh.authority.issue("food", FOOD)
            mesh.authority.issue("nutrition", NUTRITION)
            await settle(mesh.lagging)
        await rotate_root(mesh.authority, mesh.lagging, lambda _: None)
        done.set()
        await asyncio.gather(*callers)
    return {"rotations": ROTATIONS, **counts}
