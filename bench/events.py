"""Events: what outbox, relay and inbox cost beside bare NATS, and how late an event is."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import nats
import sqlalchemy as sa
from nats.js.api import AckPolicy, ConsumerConfig
from nourish.food.v1.food_pb2 import FoodsImported
from sqlalchemy.ext.asyncio import AsyncConnection

from bench.report import goals
from mesh.local.nats import Nats
from mesh.local.postgres import Postgres
from mesh.runtime import database, events
from mesh.runtime.db import Database
from mesh.runtime.events import subjects
from mesh.runtime.events.server import Server

EVENTS = int(os.environ.get("BENCH_EVENTS", "1500"))
ROUNDS, LATENCIES, POLL_SECONDS = 3, 150, 0.005
NAME = FoodsImported.DESCRIPTOR.full_name
# What, dividend, divisor, the goal.
RATIOS = (
    ("relay from the outbox / bare publish, events/s", "relay", "bare_publish", 0.80),
    ("handled with inbox and effect / bare pull with a transaction each, events/s", "handle", "bare_handle", 0.60),
)


@dataclass(frozen=True)
class Engines:
    """Both servers, and where they keep their files."""

    postgres: Postgres
    nats: Nats


class Effects:
    """The least that a handler does: one row."""

    @events.subscribe(FoodsImported, group="bench")
    async def take(self, event: FoodsImported, connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("INSERT INTO effect VALUES ($1, $2)", (event.foods, time.time()))


def run() -> dict[str, Any]:
    """Measures rates and lag, engine and ours in turn."""
    folder = Path(tempfile.mkdtemp(prefix="nourish-bench-"))
    try:
        return asyncio.run(_run(folder))
    finally:
        shutil.rmtree(folder)


def report(results: dict[str, Any]) -> list[str]:
    """Rates, ratios and lag."""
    rates, lag = results["rates"], results["lag_ms"]
    rows = [
        (what, results["ratios"][what], f">= {goal:.2f}", results["ratios"][what] >= goal) for what, *_, goal in RATIOS
    ]
    labels = {
        "bare_publish": "bare nats-py: publish and wait for the acknowledgement, one at a time in each of 8 partitions",
        "relay": "relay: from the outbox to the stream, until the outbox is empty",
        "publish": "publish: one transaction each, 8 at a time",
        "bare_handle": "bare nats-py: pull, one transaction with one row, acknowledge, in each of 8 partitions",
        "handle": "handled: pull, transaction with inbox and one row, acknowledge",
    }
    lines = [
        "## Events",
        "",
        f"{results['events']:,} events, medians of {ROUNDS} rounds; NATS syncs each event before it acknowledges it.",
        "",
        "| | events/s |",
        "| --- | ---: |",
        *(f"| {label} | {rates[key]:,.0f} |" for key, label in labels.items()),
        "",
        *goals(rows),
        "",
        f"Lag from commit to handled, one event at a time: p50 {lag['p50']:.1f} ms, p99 {lag['p99']:.1f} ms; "
        f"bare NATS, from publish to pulled: p50 {lag['bare_p50']:.1f} ms, p99 {lag['bare_p99']:.1f} ms.",
    ]
    return lines


async def _run(folder: Path) -> dict[str, Any]:
    (folder / "run").mkdir()
    engines = Engines(Postgres(folder / "postgres", folder / "run"), Nats(folder, {}))
    await asyncio.gather(engines.postgres.start(), engines.nats.start())
    try:
        rounds = [await _round(engines, number) for number in range(ROUNDS)]
        rates = {key: median(found[key] for found in rounds) for key in rounds[0]}
        ratios = {what: median(r[a] / r[b] for r in rounds) for what, a, b, _ in RATIOS}
        lag = {**await _lag(engines), **await _bare_lag(engines)}
        return {"events": EVENTS, "rates": rates, "ratios": ratios, "lag_ms": lag}
    finally:
        await engines.nats.stop()
        await engines.postgres.stop()


async def _round(engines: Engines, number: int) -> dict[str, float]:
    url = await engines.postgres.create_database(f"bench_{number}")
    async with database(url=url, pool=12) as db:
        async with db.transaction() as connection:
            await connection.exec_driver_sql("CREATE TABLE effect (number bigint, time float8)")
        bare_publish = await _bare_publish(engines)
        bare_handle = await _bare_handle(engines, db)
        await _clear(engines, db)
        publish = await _rate(_publish(db))
        relay = await _rate(_relay(engines, db))
        handle = await _rate(_handle(engines, db))
        await _clear(engines, db)
    return {
        "bare_publish": bare_publish,
        "relay": relay,
        "publish": publish,
        "bare_handle": bare_handle,
        "handle": handle,
    }


async def _rate(work: Awaitable[None]) -> float:
    began = time.perf_counter()
    await work
    return EVENTS / (time.perf_counter() - began)


def _event(number: int) -> FoodsImported:
    return FoodsImported(data=f"key-{number % 200}", foods=number)


async def _publish(db: Database) -> None:
    async def some(first: int) -> None:
        for number in range(first, EVENTS, subjects.PARTITIONS):
            async with db.transaction() as connection:
                await events.publish(connection, _event(number))

    await asyncio.gather(*(some(first) for first in range(subjects.PARTITIONS)))


async def _relay(engines: Engines, db: Database) -> None:
    async with events.carry(db, url=engines.nats.url):
        await _until(db, "SELECT NOT EXISTS (SELECT FROM runtime_outbox)")


async def _handle(engines: Engines, db: Database) -> None:
    async with events.carry(db, Effects(), url=engines.nats.url):
        await _until(db, f"SELECT count(*) >= {EVENTS} FROM effect")


async def _until(db: Database, question: str) -> None:
    while True:
        async with db.connection() as connection:
            if (await connection.execute(sa.text(question))).scalar_one():
                return
        await asyncio.sleep(POLL_SECONDS)


async def _bare_publish(engines: Engines) -> float:
    server = Server()
    await server.connect(engines.nats.url, "bench")
    await server.make_stream("food")
    await server.close()
    async with await nats.connect(engines.nats.url) as connection:
        stream = connection.jetstream()

        async def some(first: int) -> None:
            for number in range(first, EVENTS, subjects.PARTITIONS):
                headers = {"Nats-Msg-Id": f"bare-{number}-{time.monotonic_ns()}"}
                await stream.publish(f"{NAME}.{first}", _event(number).SerializeToString(), headers=headers)

        async def publish() -> None:
            await asyncio.gather(*(some(first) for first in range(subjects.PARTITIONS)))

        return await _rate(publish())


async def _bare_handle(engines: Engines, db: Database) -> float:
    async with await nats.connect(engines.nats.url) as connection:
        stream = connection.jetstream()

        async def some(partition: int) -> None:
            config = ConsumerConfig(
                durable_name=f"bare-{partition}",
                filter_subject=f"{NAME}.{partition}",
                ack_policy=AckPolicy.EXPLICIT,
                max_ack_pending=1,
            )
            await stream.add_consumer("events-food", config)
            pulled = await stream.pull_subscribe_bind(config.durable_name, "events-food")
            for _ in range(partition, EVENTS, subjects.PARTITIONS):
                (message,) = await pulled.fetch(1, timeout=20)
                async with db.transaction() as inner:
                    event = FoodsImported.FromString(message.data)
                    await inner.exec_driver_sql("INSERT INTO effect VALUES ($1, $2)", (event.foods, time.time()))
                await message.ack()

        async def handle() -> None:
            await asyncio.gather(*(some(partition) for partition in range(subjects.PARTITIONS)))

        return await _rate(handle())


async def _lag(engines: Engines) -> dict[str, float]:
    """One event after the other: from its commit to the row that its handler wrote."""
    url = await engines.postgres.create_database("bench_lag")
    found: list[float] = []
    async with database(url=url, pool=12) as db:
        async with db.transaction() as connection:
            await connection.exec_driver_sql("CREATE TABLE effect (number bigint, time float8)")
        async with events.carry(db, Effects(), url=engines.nats.url):
            for number in range(LATENCIES):
                async with db.transaction() as connection:
                    await events.publish(connection, _event(number))
                committed = time.time()
                await _until(db, f"SELECT count(*) > {number} FROM effect")
                async with db.connection() as connection:
                    found.append(await connection.scalar(sa.text("SELECT max(time) FROM effect")) - committed)
        await _clear(engines, db)
    return _percentiles(found, "")


async def _bare_lag(engines: Engines) -> dict[str, float]:
    found: list[float] = []
    async with await nats.connect(engines.nats.url) as connection:
        stream = connection.jetstream()
        await stream.add_stream(name="lag", subjects=["lag"])
        pulled = await stream.pull_subscribe("lag", durable="lag")
        for _ in range(LATENCIES):
            began = time.time()
            fetched = asyncio.create_task(pulled.fetch(1, timeout=20))
            await stream.publish("lag", b"x" * 20)
            (message,) = await fetched
            found.append(time.time() - began)
            await message.ack()
    return _percentiles(found, "bare_")


def _percentiles(seconds: list[float], prefix: str) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"{prefix}p{p}": 1000 * ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in (50, 99)}


async def _clear(engines: Engines, db: Database) -> None:
    async with db.transaction() as connection:
        await connection.exec_driver_sql("TRUNCATE effect, runtime_inbox, runtime_outbox")
    async with await nats.connect(engines.nats.url) as connection:
        stream = connection.jetstream()
        for found in await stream.streams_info():
            await stream.delete_stream(str(found.config.name))
