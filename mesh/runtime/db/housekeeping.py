"""What a database needs done now and then. Each instance does it; what one is at, the others leave alone."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable

import sqlalchemy as sa

from mesh.runtime.backoff import Backoff
from mesh.runtime.db.database import Database
from mesh.runtime.db.rows import POLICY, Rows

ROUND_SECONDS = 5.0  # so soon a new key is in use
ROUNDS_OF_ALL = 12  # so often the database is asked whether there is anything to do
PURGED_AT_ONCE = 500
_BACKOFF = Backoff(first=1.0, limit=60.0)
# Those that `protect` has given a soft delete.
_TABLES = sa.text(
    """
    SELECT c.oid::regclass::text FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'expire_time' AND NOT a.attisdropped
    WHERE p.polname = :policy ORDER BY 1
    """
)
_log = logging.getLogger("mesh.runtime.db")


async def keep(db: Database) -> None:
    """Keeps house for ever."""
    failures = 0
    for number in itertools.count():
        pause = ROUND_SECONDS * (0.5 + random.random())  # noqa: S311 - spreads the instances
        await asyncio.sleep(_BACKOFF.seconds(failures) if failures else pause)
        try:
            if db.keys.has_new() or failures or number % ROUNDS_OF_ALL == 0:
                await once(db)
        except Exception as error:  # noqa: BLE001 - whatever it is: calls go on, and it is tried again
            failures += 1
            _log.error("housekeeping waits", extra={"error": f"{type(error).__name__}: {error}"})
        else:
            failures = 0


async def once(db: Database) -> None:
    """Encrypts data keys by the current key that still are by another, and purges what was deleted long ago.

    Raises:
        KeyringError: a data key cannot be decrypted.
        ConnectionError: the database is away.
    """
    await _until_done(lambda: _rewrap(db))
    if db.guarded:
        await _until_done(lambda: _purge(db))


async def _until_done(some: Callable[[], Awaitable[int]]) -> None:
    """In transactions of their own, so that none is long."""
    while await some():
        pass


async def _rewrap(db: Database) -> int:
    async with db.transaction() as connection:
        return await db.keys.rewrap(connection)


async def _purge(db: Database) -> int:
    async with db.transaction(Rows.EVERYONES) as connection:
        purged = 0
        for table in (await connection.execute(_TABLES, {"policy": POLICY})).scalars().all():
            some = f"SELECT ctid FROM {table} WHERE expire_time < now() LIMIT {PURGED_AT_ONCE} FOR UPDATE SKIP LOCKED"  # noqa: S608
            found = await connection.exec_driver_sql(f"DELETE FROM {table} WHERE ctid = ANY (ARRAY({some}))")  # noqa: S608
            purged += found.rowcount
        return purged
