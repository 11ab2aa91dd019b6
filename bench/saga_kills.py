"""Orders that change two services by outbox and saga, while both are killed (SIGKILL) before, within and after writes.

First the two services alone, then with PostgreSQL and NATS killed and started again under them. `BENCH_SAGA_RUNS` sets
how many processes are killed; a thousand take some five minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mesh.local.nats import Nats
from mesh.local.postgres import Postgres
from mesh.runtime.tests import sagas_crashing as crashing
from mesh.runtime.tests.forking import forks

RUNS = int(os.environ.get("BENCH_SAGA_RUNS", "1000"))
WITH_ENGINES = RUNS // 4
ENGINE_EVERY = 6  # deaths
PATIENCE = 3.0
SHARE = {"orders": 0.6, "stock": 0.4}
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # processes die here, not disks
Engines = tuple[Postgres, Nats]


def run() -> dict[str, Any]:
    """Kills; returns what came of it in both modes."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-", dir=MEMORY) as folder:
        return asyncio.run(_run(Path(folder)))


def report(results: dict[str, Any]) -> list[str]:
    """The counts of both modes."""
    lines = [
        "## Kill -9 on the way of a saga",
        "",
        "Orders placed at one service, which publishes them and changes another by a saga of five steps, forward or, "
        f"for two of three, back; both killed at random ones of {results['points']} points before, within and after "
        "writes (goal: 0 faults).",
        "",
        "| | orders | processes killed | engines killed | lost | doubled | half compensated | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, r in results["modes"].items():
        goal = "met" if not any(r["faults"].values()) else "NOT met"
        counts = (r["orders"], r["killed"], r["engines"], *r["faults"].values())
        lines.append(f"| {name} | {' | '.join(f'{n:,}' for n in counts)} | {goal} |")
    return lines


async def _run(folder: Path) -> dict[str, Any]:
    (folder / "run").mkdir()
    engines = Postgres(folder / "postgres", folder / "run"), Nats(folder, {})
    await asyncio.gather(*(engine.start() for engine in engines))
    try:
        modes = {
            "services killed": await _kills(engines, folder, "alone", RUNS, with_engines=False),
            "engines killed too": await _kills(engines, folder, "engines", WITH_ENGINES, with_engines=True),
        }
    finally:
        for engine in engines:
            await engine.stop()
    return {"points": sum(map(len, crashing.POINTS.values())), "modes": modes}


async def _kills(engines: Engines, folder: Path, name: str, runs: int, *, with_engines: bool) -> dict[str, Any]:
    place = {"events": engines[1].url, "deaths": str(folder / f"{name}.deaths")}
    for who in crashing.POINTS:
        place[who] = await engines[0].create_database(f"{who}_{name}")
        place[f"{who}_socket"] = f"unix:{folder}/{who}.{name}"
    chance, began = random.Random(4), time.monotonic()
    with forks() as started:
        driver = crashing.Driver(started, place, PATIENCE)
        restarts = _Restarts(engines, driver)
        bombs = {who: _bombs(chance, who, round(runs * SHARE[who])) for who in crashing.POINTS}
        restarting = asyncio.create_task(restarts.run()) if with_engines else None
        await driver.run(bombs)
        if restarting:
            await restarts.stop(restarting)
        faults = await driver.faults()
    for fault in faults:
        print(fault)
    kinds = Counter(fault.partition(":")[0] for fault in faults)
    print(f"{name}: {driver.killed} killed, {len(driver.placed)} orders, {len(faults)} faults", flush=True)
    return {
        "orders": len(driver.placed),
        "killed": driver.killed,
        "at_their_point": driver.deaths().total(),
        "engines": restarts.number,
        "seconds": round(time.monotonic() - began),
        "faults": {kind: kinds.pop(kind, 0) for kind in ("lost", "doubled", "half compensated")} | dict(kinds),
    }


def _bombs(chance: random.Random, who: str, number: int) -> Iterator[tuple[str, int]]:
    return ((chance.choice(crashing.POINTS[who]), chance.choice((1, 1, 2))) for _ in range(number))


class _Restarts:
    """Kills one engine after the other, each time when so many processes have died since, and starts it again."""

    def __init__(self, engines: Engines, driver: crashing.Driver) -> None:
        self._engines, self._driver = engines, driver
        self._stop = asyncio.Event()
        self.number = 0

    async def run(self) -> None:
        while not self._stop.is_set():
            if self._driver.killed < (self.number + 1) * ENGINE_EVERY:
                await asyncio.sleep(0.1)
                continue
            engine = self._engines[self.number % 2]
            assert engine.pid
            os.kill(engine.pid, 9)
            await engine.wait()
            await engine.start()
            self.number += 1

    async def stop(self, running: asyncio.Task[None]) -> None:
        self._stop.set()
        await running
