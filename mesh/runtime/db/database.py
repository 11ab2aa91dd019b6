"""The blocks in which a service uses its database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import QueuePool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mesh.runtime import telemetry, unit
from mesh.runtime.crypto import DataKeys
from mesh.runtime.db import rows as visible
from mesh.runtime.db.lost import LOST, told_as_lost
from mesh.runtime.db.replicas import Replicas, all_at_work
from mesh.runtime.db.rows import SHOWN, Rows

if TYPE_CHECKING:
    import asyncpg

PUBLISHED = "nourish_published"  # on a pooled connection: its transaction holds events


class Database:
    """An open database.

    Attributes:
        engine: the pooled SQLAlchemy engine. A connection that is taken from it, and not by a method here, may show the
            rows of whoever had it before.
        published: set when a transaction that published events has ended.
        keys: the data keys, by which sensitive fields are encrypted.
        guarded: whether it has tables whose rows are their owner's alone.
        replicas: the read-only copies of it.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        keys: DataKeys | None = None,
        replicas: Replicas | None = None,
        guarded: bool = False,
    ) -> None:
        self.engine = engine
        self.published = asyncio.Event()
        self.keys = keys or DataKeys(None)
        self.replicas = replicas or Replicas([])
        self.guarded = guarded
        sa.event.listen(engine.sync_engine, "checkin", self._returned)

    def _returned(self, _: object, record: sa.pool.ConnectionPoolEntry) -> None:
        """A connection is back in the pool: what was published on it is committed, or undone."""
        if record.info.pop(PUBLISHED, False):
            self.published.set()

    @asynccontextmanager
    async def transaction(self, rows: Rows = Rows.LIVE) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction: committed at the end, rolled back on any exception.

        Args:
            rows: which rows of protected tables are there.

        Raises:
            ConnectionError: the server cannot be reached, or was lost in between.
        """
        with told_as_lost():
            if joined := unit.of(self.engine):
                async with self._joined(joined, rows) as connection:
                    yield connection
                return
            async with self.engine.begin() as connection:
                if self.guarded:
                    await visible.show(connection, visible.wanted(rows))
                yield connection
            self.replicas.written()

    @asynccontextmanager
    async def connection(self, rows: Rows = Rows.LIVE) -> AsyncIterator[AsyncConnection]:
        """A connection that commits each statement by itself, or with the unit of work it is part of: for reads.

        Args:
            rows: as `transaction` takes it.

        Raises:
            ConnectionError: as `transaction`.
        """
        with told_as_lost():
            if joined := unit.of(self.engine):
                async with self._joined(joined, rows) as connection:
                    yield connection
                return
            async with self.engine.connect() as connection:
                yield await self._told(connection, rows)

    @asynccontextmanager
    async def read(self, rows: Rows = Rows.LIVE) -> AsyncIterator[AsyncConnection]:
        """As `connection`, for reads that may be answered by a replica, and so by how it was a moment ago.

        The database itself answers if no replica is fresh, in a call that has a `request_id`, and to a user who changed
        something a moment ago through this process.

        Args:
            rows: as `transaction` takes it.

        Raises:
            ConnectionError: as `transaction`.
        """
        async with AsyncExitStack() as stack:
            connection = None
            if not unit.of(self.engine):
                connection = await self.replicas.enter(stack)
            if connection is None:
                yield await stack.enter_async_context(self.connection(rows))
            else:
                yield await self._told(connection, rows)

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        """The asyncpg connection below: for COPY, for session locks, and for the few reads that must cost little.

        One that broke, or whose use was cut short, does not go back to the pool.

        Raises:
            ConnectionError: as `transaction`.
        """
        with told_as_lost():
            if joined := unit.of(self.engine):
                async with self._joined(joined, Rows.LIVE) as taken:
                    yield (await taken.get_raw_connection()).driver_connection  # type: ignore[misc]
                return
            proxy = await self.engine.raw_connection()
            connection: asyncpg.Connection[Any] = proxy.driver_connection  # type: ignore[assignment]
            try:
                if self.guarded:
                    proxy.info.pop(SHOWN, None)  # whoever has it may tell it something else
                    await connection.execute(visible.SESSION, visible.wanted(Rows.LIVE))
                yield connection
            except BaseException as error:
                lost = connection.is_closed()
                proxy.invalidate()
                if lost and isinstance(error, Exception):
                    raise ConnectionError(LOST) from error
                raise
            finally:
                proxy.close()

    def connections(self) -> dict[telemetry.Labels, float]:
        """How many connections of the pool are at work, and how many there may be."""
        pool: QueuePool = self.engine.sync_engine.pool  # type: ignore[assignment]
        return {(("state", "busy"),): pool.checkedout(), (("state", "most"),): pool.size()}

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[unit.Unit]:
        """One transaction of all that is done here until the end of the block, by whatever means of this class.

        Raises:
            ConnectionError: as `transaction`.
        """
        with told_as_lost():
            async with unit.of_work(self.engine) as opened:
                if self.guarded:
                    opened.shown = visible.wanted(Rows.LIVE)
                    await visible.show(opened.connection, opened.shown)
                yield opened
            self.replicas.written()

    async def ping(self) -> None:
        """Returns if the server answers. A pool that is all at work is not asked: it is busy, not down.

        Raises:
            ConnectionError: as `transaction`.
        """
        if not all_at_work(self.engine):
            async with self.connection() as connection:
                await connection.execute(sa.text("SELECT 1"))

    @asynccontextmanager
    async def _joined(self, joined: unit.Unit, rows: Rows) -> AsyncIterator[AsyncConnection]:
        """A part of a unit of work, which sees other rows than the rest of it if it asks for others."""
        async with joined.block() as connection:
            before, setting = joined.shown, visible.wanted(rows)
            if not self.guarded or setting == before:
                yield connection
                return
            await visible.show(connection, setting)
            joined.shown = setting
            try:
                yield connection
            finally:
                joined.shown = before
            await visible.show(connection, before)  # a block that fails is undone, and this with it

    async def _told(self, connection: AsyncConnection, rows: Rows) -> AsyncConnection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        if self.guarded:
            await visible.show_in_session(connection, visible.wanted(rows))
        return connection
