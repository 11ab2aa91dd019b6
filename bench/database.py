"""What the database layer costs: late pages beside first ones, protected and encrypted rows beside plain ones."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from nourish.profile.v1.profile_pb2 import ListProfilesRequest, Profile

from bench.report import goals
from mesh.local import keys
from mesh.local.postgres import Postgres
from mesh.runtime import database, pages
from mesh.runtime.db import Database, Rows, acting_for
from services.profile import store

PAGE, LATE = 20, 10_000
ROUNDS = 5
CALLS = 100
GOAL = 1.25  # what a late page may cost of a first one
_START = datetime(2026, 1, 1, tzinfo=UTC)
_PROFILE = Profile(display_name="Me", sex=1, height_cm=165, weight_kg=60.5, medications=["warfarin", "aspirin"])
_COLUMNS = ["id", "owner", "revision", "create_time", "update_time", "activity_level", "goals", "diet", "sensitive"]
# The same rows without protection: what a statement costs is then compared with what it costs there.
_PLAIN = "CREATE TABLE plain AS SELECT * FROM profile LIMIT 1000; ALTER TABLE plain ADD PRIMARY KEY (id)"


def run() -> dict[str, Any]:
    """Measures; figures are medians of the rounds, in which what is compared takes turns."""
    return asyncio.run(_run())


def report(results: dict[str, Any]) -> list[str]:
    """The tables."""
    r = results
    return [
        "## Database",
        "",
        f"{r['rows']} profiles of one user, {r['page']} a page; from the token of a page to its messages, decrypted.",
        "",
        *goals([(f"page {LATE} / page 1", r["late"] / r["first"], f"<= {GOAL}", r["late"] / r["first"] <= GOAL)]),
        "",
        "| one user's row by its id, in one process | us | of the first |",
        "| --- | ---: | ---: |",
        *(f"| {what} | {r[key]:.0f} | {r[key] / r['plain']:.2f} |" for what, key in _ROWS),
    ]


_ROWS = (
    ("a plain table", "plain"),
    ("a protected one, the same user as before on the connection", "same_user"),
    ("a protected one, another user each time", "another_user"),
    ("a plain one, in a transaction", "plain_transaction"),
    ("a protected one, in a transaction", "transaction"),
    ("the store's own: protected, its sensitive fields decrypted", "store"),
)


async def _run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder:
        root = Path(folder)
        (root / "run").mkdir()
        keys.ensure_key(root / "keys")
        server = Postgres(root / "postgres", root / "run")
        await server.start()
        try:
            migrations, url = Path(store.__file__).parent / "migrations", await server.create_database("bench")
            async with database(migrations, url=url, pool=2, keys=root / "keys") as db:
                await _fill(db)
                return {"rows": PAGE * LATE + PAGE, "page": PAGE, **await _pages(db), **await _single(db)}
        finally:
            await server.stop()


async def _fill(db: Database) -> None:
    """Enough profiles of one user, and a table without protection."""
    async with db.transaction() as connection:
        key = await db.keys.writing(connection, "alice")
    rows = []
    for n in range(PAGE * LATE + PAGE):
        profile, at = Profile(), _START + timedelta(seconds=n)
        profile.CopyFrom(_PROFILE)
        sealed = key.seal_fields(profile, f"profile.sensitive/{n:08}")
        rows.append((f"{n:08}", "alice", 1, at, at, 0, [4], 0, sealed))
    async with db.raw() as raw:
        await raw.execute("SET nourish.rows = '*'")
        await raw.execute("CREATE TEMP TABLE filled (LIKE profile)")
        await raw.copy_records_to_table("filled", records=rows, columns=_COLUMNS)  # COPY knows no policies
        await raw.execute(f"INSERT INTO profile SELECT * FROM filled; DROP TABLE filled; ANALYZE profile; {_PLAIN}")


async def _pages(db: Database) -> dict[str, float]:
    profiles = store.ProfileStore(db)
    request = ListProfilesRequest(page_size=PAGE)
    last = _START + timedelta(seconds=PAGE * (LATE - 1) - 1)
    late = {"time": last.isoformat(), "id": f"{PAGE * (LATE - 1) - 1:08}"}

    async def page(cursor: dict[str, str] | None) -> None:
        after = None
        if cursor:
            found = pages.verify(pages.sign(cursor, scope=request), scope=request)
            after = datetime.fromisoformat(found["time"]), str(found["id"])
        rows = await profiles.page(after, PAGE + 1, deleted=False)
        shown, _ = pages.cut(rows, PAGE, lambda last: {"id": last.name}, scope=request)
        assert len(shown) == PAGE, len(shown)

    async with acting_for("alice"):
        return await _in_turn(
            {"first": lambda: page({"time": _START.isoformat(), "id": ""}), "late": lambda: page(late)}
        )


async def _single(db: Database) -> dict[str, float]:
    profiles = store.ProfileStore(db)
    table, plain = store.profile_table, sa.table("plain", *(sa.column(c.name) for c in store.profile_table.columns))
    users = ("alice", "bob")
    turn = 0

    async def read(source: Any, rows: Rows = Rows.LIVE) -> None:
        async with db.connection(rows) as connection:
            await connection.execute(sa.select(source).where(source.c.id == "00000500"))

    async def write(source: Any) -> None:
        async with db.transaction() as connection:
            await connection.execute(sa.select(source).where(source.c.id == "00000500"))

    async def in_turns() -> None:
        nonlocal turn
        turn += 1
        async with acting_for(users[turn % 2]):
            await read(table)

    def unguarded(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            db.guarded = False
            try:
                await work()
            finally:
                db.guarded = True

        return run

    async with acting_for("alice"):
        return await _in_turn(
            {
                "plain": unguarded(lambda: read(plain)),
                "same_user": lambda: read(table),
                "another_user": in_turns,
                "plain_transaction": unguarded(lambda: write(plain)),
                "transaction": lambda: write(table),
                "store": lambda: profiles.get("00000500"),
            }
        )


async def _in_turn(works: dict[str, Callable[[], Awaitable[Any]]]) -> dict[str, float]:
    """Microseconds of each."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            await work()
            began = time.perf_counter()
            for _ in range(CALLS):
                await work()
            found[name].append((time.perf_counter() - began) / CALLS * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}
