"""A thousand processes that publish and handle events, each killed (SIGKILL) before or after a random write.

Each goes on where the one before was killed. `BENCH_EVENT_RUNS` sets how many; a thousand take some ten minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from mesh.local.nats import Nats
from mesh.local.postgres import Postgres
from mesh.runtime.tests import crashing

RUNS = int(os.environ.get("BENCH_EVENT_RUNS", "1000"))
ENGINE_EVERY = 50  # runs, after which one engine is killed too, in the middle of the next


def run() -> dict[str, Any]:
    """Kills; returns how many, and how many of the events were lost, doubled or out of order."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder:
        return asyncio.run(_run(Path(folder)))


def report(results: dict[str, Any]) -> list[str]:
    """The counts."""
    r = results
    goal = "met" if r["faults"] == 0 else "NOT met"
    return [
        "## Kill -9 on the way of an event",
        "",
        f"{r['runs']:,} processes, {r['killed']:,} of them killed at a random one of the {r['points']} points before "
        f"and after a write, and the engines killed and started again {r['engines']} times under them: {r['events']:,} "
        f"events, {r['faults']} lost, doubled or out of order (goal: 0, {goal}).",
    ]


async def _run(folder: Path) -> dict[str, Any]:
    (folder / "run").mkdir()
    engines = Postgres(folder / "postgres", folder / "run"), Nats(folder, {})
    await asyncio.gather(*(engine.start() for engine in engines))
    try:
        places = [await engines[0].create_database(f"kills_{which}") for which in "ab"]
        return await _kills(engines, places)
    finally:
        for engine in engines:
            await engine.stop()


async def _kills(engines: tuple[Postgres, Nats], places: list[str]) -> dict[str, Any]:
    chance, killed, restarts = random.Random(4), 0, 0
    published_in, handled_in = places
    with crashing.forks() as forks:
        for number in range(1, RUNS + 1):
            how = {"die": chance.choice(crashing.POINTS), "nth": chance.randint(1, 3), "each": number}
            forks.start(published_in, handled_in, engines[1].url, **how)
            if number % ENGINE_EVERY == 0:
                engine = engines[number // ENGINE_EVERY % 2]
                assert engine.pid
                os.kill(engine.pid, 9)
                await engine.wait()
                await engine.start()
                restarts += 1
            killed += await asyncio.to_thread(forks.code) < 0
        if await asyncio.to_thread(forks.run, published_in, handled_in, engines[1].url, each=RUNS):
            raise RuntimeError("the last process did not come to an end: events are lost")
    return {
        "runs": RUNS,
        "killed": killed,
        "engines": restarts,
        "points": len(crashing.POINTS),
        "events": RUNS * len(crashing.KEYS),
        "faults": len(await crashing.faults(published_in, handled_in, each=RUNS)),
    }
