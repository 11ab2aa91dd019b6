"""Jobs: how many a second, beside a plain loop of SELECT ... FOR UPDATE SKIP LOCKED, in one run."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg
from nourish.food.v1.food_pb2 import GetFoodRequest, ListFoodsRequest

from mesh.local.postgres import Postgres
from mesh.runtime import database, jobs

JOBS = 500
ROUNDS = 3
WORKERS = 8
LATENCIES = 50
_TAKE = """
WITH due AS (
  SELECT id FROM plain WHERE NOT done ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE plain SET done = true FROM due WHERE plain.id = due.id RETURNING plain.id
"""


def run() -> dict[str, Any]:
    """Measures; rates are the median of the rounds, which take turns."""
    return asyncio.run(_run())


def report(results: dict[str, Any]) -> list[str]:
    """The table."""
    r = results
    return [
        "## Jobs",
        "",
        f"{r['workers']} workers in one process, jobs that do nothing, PostgreSQL on the same cores.",
        "",
        "| | a second | of the bare engine's |",
        "| --- | --- | --- |",
        f"| bare: one SKIP LOCKED statement a job | {r['bare']:.0f} | 1 |",
        f"| jobs: lease, attempt, outcome and log of each kept | {r['jobs']:.0f} | {r['jobs'] / r['bare']:.2f} |",
        f"| bare: one INSERT a transaction | {r['inserts']:.0f} | 1 |",
        f"| enqueue, one a transaction | {r['enqueued']:.0f} | {r['enqueued'] / r['inserts']:.2f} |",
        "",
        f"From the commit to the method on an idle process: {r['latency_ms']:.0f} ms (median).",
    ]


class _Doing:
    def __init__(self) -> None:
        self.done = 0
        self.all, self.began = asyncio.Event(), asyncio.Event()

    @jobs.job(GetFoodRequest)
    async def nothing(self, argument: GetFoodRequest, job: jobs.Job) -> None:
        self.done += 1
        if self.done == JOBS:
            self.all.set()

    @jobs.job(ListFoodsRequest)
    async def notice(self, argument: ListFoodsRequest, job: jobs.Job) -> None:
        self.began.set()


async def _run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder:
        (Path(folder) / "run").mkdir()
        server = Postgres(Path(folder) / "postgres", Path(folder) / "run")
        await server.start()
        try:
            return await _measure(await server.create_database("bench"))
        finally:
            await server.stop()


async def _measure(url: str) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"bare": [], "jobs": [], "inserts": [], "enqueued": []}
    bare = asyncpg.create_pool(url, min_size=1, max_size=WORKERS)
    async with database(url=url, pool=WORKERS + 2) as db, bare as pool:
        await pool.execute("CREATE TABLE plain (id bigserial PRIMARY KEY, argument bytea, done boolean DEFAULT false)")
        for _ in range(ROUNDS):
            rates["inserts"].append(await _rate(_insert(pool)))
            rates["bare"].append(await _rate(_take(pool)))
            async with jobs.work(db, _Doing(), workers=0):
                rates["enqueued"].append(await _rate(_enqueue(db)))
            doing = _Doing()
            async with jobs.work(db, doing, workers=WORKERS):
                rates["jobs"].append(await _rate(doing.all.wait()))
        latency = await _latency(db)
    return {"workers": WORKERS, "latency_ms": latency, **{name: statistics.median(r) for name, r in rates.items()}}


async def _rate(work: Any) -> float:
    began = time.perf_counter()
    await work
    return JOBS / (time.perf_counter() - began)


async def _insert(pool: asyncpg.Pool) -> None:
    argument = GetFoodRequest(name="foods/x").SerializeToString()
    for _ in range(JOBS):
        await pool.execute("INSERT INTO plain (argument) VALUES ($1)", argument)


async def _take(pool: asyncpg.Pool) -> None:
    async def worker() -> None:
        while await pool.fetchval(_TAKE):
            pass

    await asyncio.gather(*(worker() for _ in range(WORKERS)))


async def _enqueue(db: Any) -> None:
    argument = GetFoodRequest(name="foods/x")
    for _ in range(JOBS):
        async with db.transaction() as connection:
            await jobs.enqueue(connection, argument)


async def _latency(db: Any) -> float:
    doing, found = _Doing(), []
    async with jobs.work(db, doing):
        for _ in range(LATENCIES):
            doing.began.clear()
            async with db.transaction() as connection:
                await jobs.enqueue(connection, ListFoodsRequest())
            committed = time.perf_counter()
            await doing.began.wait()
            found.append(time.perf_counter() - committed)
            await asyncio.sleep(0.05)
    return statistics.median(found) * 1000
