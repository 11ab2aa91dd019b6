"""Whose rows a statement sees: PostgreSQL's row-level security, by the verified user of the call.

`Database` tells each connection for whom it works, in one setting; the policies that `protect` gives a table compare it
with the row's owner. Without a user no row is seen and none can be written, whatever the statement says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth

SHOWN = "nourish_rows"  # on a pooled connection: what its session was told last
POLICY = "runtime_rows"
_USER, _USER_DELETED_TOO, _EVERYONE = "user:", "both:", "*"
_LOCAL = "SELECT set_config('nourish.rows', $1, true)"
SESSION = "SELECT set_config('nourish.rows', $1, false)"
_GUARDED = "SELECT EXISTS (SELECT FROM pg_policy WHERE polname = 'runtime_rows')"
_ROLE = "SELECT rolname, rolsuper OR rolbypassrls AS exempt FROM pg_roles WHERE rolname = current_user"


class Rows(Enum):
    """Which rows of the protected tables are there."""

    LIVE = "live"  # the user's, without deleted ones
    DELETED_TOO = "deleted too"  # the user's, with deleted ones
    EVERYONES = "everyone's"  # all of them: for what the service does by itself, such as a purge


def protect(table: str, *, soft_delete: bool = False) -> tuple[str, ...]:
    """The statements for a migration that make each row of a table its owner's alone.

    The table has a column `owner`, the user; with `soft_delete` also `delete_time` and `expire_time`, null until it is
    deleted. Then a row that has a `delete_time` is as good as gone, and goes for good after its `expire_time`.

    Args:
        table: its name.
        soft_delete: whether its rows are deleted softly.
    """
    owned = "owner = runtime_user() OR runtime_everyone()"
    live = f"({owned}) AND (delete_time IS NULL OR runtime_deleted_too())" if soft_delete else owned
    return (
        f"ALTER TABLE {table} ALTER COLUMN owner SET NOT NULL, ALTER COLUMN owner SET DEFAULT runtime_user()",
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY {POLICY} ON {table} USING ({live}) WITH CHECK ({owned})",
        *([f"CREATE INDEX {table}_expired ON {table} (expire_time) WHERE expire_time IS NOT NULL"] * soft_delete),
    )


def mine(table: sa.Table) -> sa.ColumnElement[bool]:
    """That the row is the user's, in words that an index on `owner` serves. What is seen does not depend on it."""
    found: sa.ColumnElement[bool] = table.c.owner == sa.func.runtime_user(type_=sa.Text)
    return found


def wanted(rows: Rows) -> str:
    """The setting for what runs now."""
    if rows is Rows.EVERYONES:
        return _EVERYONE
    user = auth.current.get().headers.get(auth.USER_HEADER)
    return f"{_USER if rows is Rows.LIVE else _USER_DELETED_TOO}{user}" if user else ""


async def show_in_session(connection: AsyncConnection, setting: str) -> None:
    """Tells a connection that commits each statement by itself."""
    known = (await connection.get_raw_connection()).info
    if known.get(SHOWN) != setting:
        await connection.exec_driver_sql(SESSION, (setting,))
        known[SHOWN] = setting


async def show(connection: AsyncConnection, setting: str) -> None:
    """Tells the transaction of a connection, until it ends."""
    await connection.exec_driver_sql(_LOCAL, (setting,))


@asynccontextmanager
async def showing(connection: AsyncConnection, rows: Rows) -> AsyncIterator[None]:
    """Shows an open transaction other rows until the end of the block."""
    before = (await connection.exec_driver_sql("SELECT current_setting('nourish.rows', true)")).scalar_one()
    await show(connection, wanted(rows))
    try:
        yield
    finally:
        with suppress(sa.exc.DBAPIError):  # the transaction has failed: it shows nothing more
            await show(connection, before or "")


@asynccontextmanager
async def acting_for(user: str, connection: AsyncConnection | None = None) -> AsyncIterator[None]:
    """Works for `user` until the end of the block, as if the user had called: for handlers of events, and for jobs.

    Args:
        user: whom the event, or the row that the job found, is about. Never what a caller says of itself.
        connection: an open transaction, which sees the user's rows from here on and what it saw before at the end.
    """
    with auth.acting_for(user):
        if connection is None:
            yield
            return
        async with showing(connection, Rows.LIVE):
            yield


async def is_guarded(connection: AsyncConnection) -> bool:
    """Whether the database has protected tables.

    Raises:
        RuntimeError: it has, and policies do not hold for the role of the connection.
    """
    if not (await connection.exec_driver_sql(_GUARDED)).scalar_one():
        return False
    role = (await connection.exec_driver_sql(_ROLE)).one()
    if role.exempt:
        raise RuntimeError(
            f"the database role {role.rolname} sees every user's rows: a service does not serve as one. "
            f'Say `ALTER ROLE "{role.rolname}" NOSUPERUSER NOBYPASSRLS`, or give it another role in its URL'
        )
    return True
