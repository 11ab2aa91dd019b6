"""Opens a database: brings its schema up to date, checks that it can be used, and keeps house while it is open."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh.runtime import health, pages, telemetry
from mesh.runtime.crypto import DataKeys, Keyring
from mesh.runtime.db import housekeeping, rows
from mesh.runtime.db.database import Database
from mesh.runtime.db.replicas import ANSWER_SECONDS, Replicas
from mesh.runtime.environment import environment, required

# A statement that outlives every deadline of the contract (5 minutes at most) is a defect; imports lift it.
STATEMENT_TIMEOUT_MS = 300_000
# Of the tables that the runtime keeps in every database.
_OWN_MIGRATIONS = Path(__file__).parents[1] / "migrations"
_OWN_TABLE = "runtime_version"
_STATED = re.compile(r"""^(revision|down_revision|depends_on)\b[^=\n]*=\s*["']([^"'\n]+)["']""", re.MULTILINE)
_MIGRATION_LOCK = 0x6E6F7572  # any constant: the lock is per database, and a service has its own


@asynccontextmanager
async def database(
    migrations: Path | None = None,
    *,
    url: str | None = None,
    pool: int | None = None,
    keys: Path | None = None,
    replicas: Sequence[str] | None = None,
    max_lag: float | None = None,
) -> AsyncIterator[Database]:
    """Opens the service's database, after bringing its schema up to date.

    Args:
        migrations: the service's alembic folder (with `versions/`). Safe to run twice and side by side.
        url: `postgresql://...`; the runner's NOURISH_DATABASE_URL if not given.
        pool: connections of this process; the runner's NOURISH_DATABASE_POOL if not given.
        keys: the folder of the keys that encrypt data keys; the runner's NOURISH_KEYS_DIR if not given.
        replicas: addresses of read-only copies, host:port or URLs; the runner's NOURISH_DATABASE_REPLICAS if not given.
        max_lag: how much older a copy may be that is read, seconds; NOURISH_DATABASE_MAX_LAG if not given.

    Raises:
        RuntimeError: no URL, a key that is missing, or a role that row ownership does not hold for.
    """
    env = environment()
    address = sa.make_url(url or required(env.database_url, "NOURISH_DATABASE_URL"))
    size = pool or env.database_pool
    folder = keys or env.keys_dir
    data_keys = DataKeys(Keyring(folder) if folder else None)
    async with AsyncExitStack() as stack:
        engine = _engine(address, size)
        stack.push_async_callback(engine.dispose)
        guarded = await _prepare(engine, migrations, data_keys)
        copies = [_engine(_at(address, a), size, replica=True) for a in (replicas or env.database_replicas)]
        for copy in copies:
            stack.push_async_callback(copy.dispose)
        lag = env.database_max_lag if max_lag is None else max_lag
        opened = Database(engine, keys=data_keys, replicas=Replicas(copies, lag), guarded=guarded)
        _opened.append(opened)
        telemetry.gauge("database_connections", "Connections of the pool.", opened.connections)
        stack.callback(_opened.remove, opened)
        stack.enter_context(health.needing("database", opened.ping))
        await stack.enter_async_context(_running(opened))
        yield opened


_opened: list[Database] = []


def current() -> Database | None:
    """The open database of this process, the last if a test has several."""
    return _opened[-1] if _opened else None


def keys_of(connection: AsyncConnection) -> DataKeys:
    """The data keys of the open database that a connection belongs to."""
    engine = connection.engine.sync_engine
    return next((db.keys for db in _opened if db.engine.sync_engine is engine), DataKeys(None))


def _engine(address: sa.URL, size: int, *, replica: bool = False) -> AsyncEngine:
    return create_async_engine(
        address.set(drivername="postgresql+asyncpg"),
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,  # an exception is logged, and what people entered is not
        connect_args={
            "server_settings": {"statement_timeout": str(STATEMENT_TIMEOUT_MS)},
            **({"timeout": ANSWER_SECONDS} if replica else {}),
        },
    )


def _at(address: sa.URL, place: str) -> sa.URL:
    """The same database on another server."""
    if "://" in place:
        return sa.make_url(place)
    host, _, port = place.rpartition(":")
    return address.set(host=host.strip("[]"), port=int(port))


@asynccontextmanager
async def _running(opened: Database) -> AsyncIterator[None]:
    """What goes on beside the calls."""
    tasks = [asyncio.create_task(housekeeping.keep(opened))]
    if opened.replicas.all:
        tasks.append(asyncio.create_task(opened.replicas.watch(opened.engine)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _prepare(engine: AsyncEngine, migrations: Path | None, keys: DataKeys) -> bool:
    """Migrates and checks, one process at a time; whether rows are protected."""
    async with engine.connect() as connection:
        await connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        await rows.show_in_session(connection, rows.wanted(rows.Rows.EVERYONES))  # a migration changes all of them
        await connection.commit()
        try:
            await connection.run_sync(_migrate, _OWN_MIGRATIONS, _OWN_TABLE, "heads", keys)
            if migrations:
                await connection.run_sync(_migrate, migrations, "alembic_version", "head", keys)
            pages.configure(await _page_key(connection))
            await keys.check(connection)
            return await rows.is_guarded(connection)
        finally:
            await connection.rollback()
            await connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
            await rows.show_in_session(connection, "")
            await connection.commit()


def _migrate(connection: sa.Connection, migrations: Path, table: str, target: str, keys: DataKeys) -> None:
    if _is_done(connection, migrations, table):
        return
    from alembic import command  # noqa: PLC0415 - 0.2 s and 11 MB that a process with nothing to migrate does not pay
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection, "table": table, "keys": keys})
    config.set_main_option("script_location", str(_OWN_MIGRATIONS))
    config.set_main_option("version_locations", str(migrations / "versions"))
    config.set_main_option("path_separator", "newline")
    command.upgrade(config, target)
    connection.commit()


def _is_done(connection: sa.Connection, migrations: Path, table: str) -> bool:
    """Whether the database is where the migrations end. If these end in no one place, alembic says so."""
    if not connection.execute(sa.text("SELECT to_regclass(:table)"), {"table": table}).scalar_one():
        return False
    stated = [_stated(path.read_text()) for path in (migrations / "versions").glob("*.py")]
    # Alembic keeps neither what another revision follows nor what one depends on.
    passed = {before for _, *befores in stated for before in befores}
    ends = {revision for revision, *_ in stated} - passed
    several = table == _OWN_TABLE  # lines of their own
    reached = set(connection.execute(sa.text(f"SELECT version_num FROM {table}")).scalars())  # noqa: S608 - a constant
    return reached - passed == ends and (several or len(ends) == 1)


def _stated(text: str) -> tuple[str | None, ...]:
    """A revision, the one before and the one it needs, as a migration says them: `revision = "0002"`."""
    found = dict(_STATED.findall(text))
    return found.get("revision"), found.get("down_revision"), found.get("depends_on")


async def _page_key(connection: AsyncConnection) -> bytes:
    """The key that signs this service's page tokens, the same for all its instances."""
    await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS runtime_page_key (key bytea NOT NULL)"))
    key = (await connection.execute(sa.text("SELECT key FROM runtime_page_key"))).scalar_one_or_none()
    if key is None:
        key = secrets.token_bytes(32)
        await connection.execute(sa.text("INSERT INTO runtime_page_key VALUES (:key)"), {"key": key})
    await connection.commit()
    return bytes(key)
