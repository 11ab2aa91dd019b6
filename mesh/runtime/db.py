"""A service's own PostgreSQL database: migrated before it serves, pooled, one transaction where one is asked for."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import QueuePool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh.runtime import health, pages, telemetry, unit
from mesh.runtime.environment import environment, required

if TYPE_CHECKING:
    import asyncpg

# A statement that outlives every deadline of the contract (5 minutes at most) is a defect; imports lift it.
STATEMENT_TIMEOUT_MS = 300_000
PUBLISHED = "nourish_published"  # on a pooled connection: its transaction holds events
_OWN_MIGRATIONS = Path(__file__).parent / "migrations"  # of the tables that the runtime keeps in every database
_NOT_SERVING = ("57P01", "57P02", "57P03")  # the server ends, has crashed, or starts
_LOST = "the database cannot be reached"
_MIGRATION_LOCK = 0x6E6F7572  # any constant: the lock is per database, and a service has its own


class Database:
    """An open database.

    Attributes:
        engine: the pooled SQLAlchemy engine, for what the methods here do not give.
        published: set when a transaction that published events has ended.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.published = asyncio.Event()
        sa.event.listen(engine.sync_engine, "checkin", self._returned)

    def _returned(self, _: object, record: sa.pool.ConnectionPoolEntry) -> None:
        """A connection is back in the pool: what was published on it is committed, or undone."""
        if record.info.pop(PUBLISHED, False):
            self.published.set()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction: committed at the end, rolled back on any exception.

        Raises:
            ConnectionError: the server cannot be reached, or was lost in between.
        """
        with _told_as_lost():
            joined = unit.of(self.engine)
            async with joined.block() if joined else self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection that commits each statement by itself, or with the unit of work it is part of: for reads.

        Raises:
            ConnectionError: as `transaction`.
        """
        with _told_as_lost():
            if joined := unit.of(self.engine):
                async with joined.block() as connection:
                    yield connection
                return
            async with self.engine.connect() as connection:
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        """The asyncpg connection below: for COPY, for session locks, and for the few reads that must cost little.

        One that broke, or whose use was cut short, does not go back to the pool.

        Raises:
            ConnectionError: as `transaction`.
        """
        with _told_as_lost():
            if joined := unit.of(self.engine):
                async with joined.block() as taken:
                    yield (await taken.get_raw_connection()).driver_connection  # type: ignore[misc]
                return
            proxy = await self.engine.raw_connection()
            connection: asyncpg.Connection[Any] = proxy.driver_connection  # type: ignore[assignment]
            try:
                yield connection
            except BaseException as error:
                lost = connection.is_closed()
                proxy.invalidate()
                if lost and isinstance(error, Exception):
                    raise ConnectionError(_LOST) from error
                raise
            finally:
                proxy.close()

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[unit.Unit]:
        """One transaction of all that is done here until the end of the block, by whatever means of this class.

        Raises:
            ConnectionError: as `transaction`.
        """
        with _told_as_lost():
            async with unit.of_work(self.engine) as opened:
                yield opened

    def connections(self) -> dict[telemetry.Labels, float]:
        """How many connections of the pool are at work, and how many there may be."""
        pool: QueuePool = self.engine.sync_engine.pool  # type: ignore[assignment]
        return {(("state", "busy"),): pool.checkedout(), (("state", "most"),): pool.size()}

    async def ping(self) -> None:
        """Returns if the server answers. A pool that is all at work is not asked: it is busy, not down.

        Raises:
            ConnectionError: as `transaction`.
        """
        pool: QueuePool = self.engine.sync_engine.pool  # type: ignore[assignment]
        if pool.checkedout() < pool.size():
            async with self.connection() as connection:
                await connection.execute(sa.text("SELECT 1"))


@contextmanager
def _told_as_lost() -> Iterator[None]:
    """Says by one built-in exception that the server is gone, which `errors` makes UNAVAILABLE."""
    try:
        yield
    except sa.exc.TimeoutError as error:  # every pooled connection is busy for as long as the pool waits
        raise ConnectionError("no database connection is free") from error
    except sa.exc.DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", ""))
        gone = error.connection_invalidated or state.startswith("08") or state in _NOT_SERVING
        if gone or isinstance(error, sa.exc.InterfaceError | sa.exc.OperationalError):
            raise ConnectionError(_LOST) from error
        raise


@asynccontextmanager
async def database(
    migrations: Path | None = None, *, url: str | None = None, pool: int | None = None
) -> AsyncIterator[Database]:
    """Opens the service's database, after bringing its schema up to date.

    Args:
        migrations: the service's alembic folder (with `versions/`). Safe to run twice and side by side.
        url: `postgresql://...`; the runner's NOURISH_DATABASE_URL if not given.
        pool: connections of this process; the runner's NOURISH_DATABASE_POOL if not given.

    Raises:
        RuntimeError: no URL.
    """
    address = sa.make_url(url or required(environment().database_url, "NOURISH_DATABASE_URL"))
    engine = create_async_engine(
        address.set(drivername="postgresql+asyncpg"),
        pool_size=pool or environment().database_pool,
        max_overflow=0,
        hide_parameters=True,  # an exception is logged, and what people entered is not
        connect_args={"server_settings": {"statement_timeout": str(STATEMENT_TIMEOUT_MS)}},
    )
    try:
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
            await connection.commit()
            try:
                await connection.run_sync(_migrate, _OWN_MIGRATIONS, "runtime_version", "heads")
                if migrations:
                    await connection.run_sync(_migrate, migrations, "alembic_version", "head")
                pages.configure(await _page_key(connection))
            finally:
                await connection.rollback()
                await connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
                await connection.commit()
        opened = Database(engine)
        _opened.append(opened)
        telemetry.gauge("database_connections", "Connections of the pool.", opened.connections)
        try:
            with health.needing("database", opened.ping):
                yield opened
        finally:
            _opened.remove(opened)
    finally:
        await engine.dispose()


_opened: list[Database] = []


def current() -> Database | None:
    """The open database of this process, the last if a test has several."""
    return _opened[-1] if _opened else None


def _migrate(connection: sa.Connection, migrations: Path, table: str, target: str) -> None:
    from alembic import command  # noqa: PLC0415 - 0.2 s that a process without a database does not pay
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection, "table": table})
    config.set_main_option("script_location", str(_OWN_MIGRATIONS))
    config.set_main_option("version_locations", str(migrations / "versions"))
    config.set_main_option("path_separator", "newline")
    command.upgrade(config, target)
    connection.commit()


async def _page_key(connection: AsyncConnection) -> bytes:
    """The key that signs this service's page tokens, the same for all its instances."""
    await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS runtime_page_key (key bytea NOT NULL)"))
    key = (await connection.execute(sa.text("SELECT key FROM runtime_page_key"))).scalar_one_or_none()
    if key is None:
        key = secrets.token_bytes(32)
        await connection.execute(sa.text("INSERT INTO runtime_page_key VALUES (:key)"), {"key": key})
    await connection.commit()
    return bytes(key)
