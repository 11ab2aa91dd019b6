"""All SQL of two-phase commits: PostgreSQL's prepared transactions, and the coordinator's log of decisions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

STAND_STILL_SECONDS = 60  # a transaction that is to be prepared and has no statement for so long is ended
KEPT = timedelta(days=1)  # longer than any transaction lives that could still decide
_UNKNOWN = "42704"  # no such prepared transaction: another has ended it
_DECIDE = sa.text(
    """
    INSERT INTO runtime_decision (id, committed, participants) VALUES (:id, :committed, :participants)
    ON CONFLICT DO NOTHING
    """
).bindparams(sa.bindparam("participants", type_=sa.ARRAY(sa.Text)))
_VERDICT = sa.text("SELECT committed FROM runtime_decision WHERE id = :id")
_DECISIONS = sa.text(
    "SELECT id, committed, participants, create_time < now() - :kept AS old FROM runtime_decision"
).bindparams(sa.bindparam("kept", KEPT, sa.Interval))
_FORGET = sa.text("DELETE FROM runtime_decision WHERE id = ANY(:ids)").bindparams(
    sa.bindparam("ids", type_=sa.ARRAY(sa.Text))
)
_PREPARED = sa.text(
    """
    SELECT gid, prepared, extract(epoch FROM now() - prepared)::float AS seconds FROM pg_prepared_xacts
    WHERE database = current_database() ORDER BY prepared
    """
)


class Prepared(NamedTuple):
    """A prepared transaction of a database; it holds its locks until it is ended."""

    gid: str
    prepared: datetime
    seconds: float


class Decision(NamedTuple):
    """What was decided of a commit."""

    id: str
    committed: bool
    participants: list[str]
    old: bool


async def begin(connection: AsyncConnection) -> None:
    """Begins a transaction by a statement: SQLAlchemy would commit its own."""
    await connection.exec_driver_sql("BEGIN")
    await bound(connection)


async def bound(connection: AsyncConnection) -> None:
    """Ends the transaction if its process stands still, so that nothing is decided long after it was given up."""
    limit = f"SET LOCAL idle_in_transaction_session_timeout = '{STAND_STILL_SECONDS}s'"
    await connection.exec_driver_sql(limit)


async def prepare(connection: AsyncConnection, gid: str) -> None:
    """Ends the first phase: the transaction is on the disk, of no session, and waits for the decision."""
    await connection.exec_driver_sql(f"PREPARE TRANSACTION {_quoted(gid)}")


async def end(connection: AsyncConnection, gid: str, *, commit: bool) -> None:
    """Ends a prepared transaction; harmless if it is ended."""
    try:
        await connection.exec_driver_sql(f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED {_quoted(gid)}")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") != _UNKNOWN:
            raise


async def allowed(connection: AsyncConnection) -> bool:
    """Whether the server allows any."""
    return str((await connection.exec_driver_sql("SHOW max_prepared_transactions")).scalar_one()) != "0"


async def all_of(connection: AsyncConnection) -> list[Prepared]:
    """The prepared transactions of a database, the oldest first."""
    return [Prepared(*row) for row in await connection.execute(_PREPARED)]


async def decide(connection: AsyncConnection, id_: str, participants: list[str], *, commit: bool) -> bool:
    """Decides, if nobody has; what is decided. Whoever comes second waits for the first to commit, or not."""
    values = {"id": id_, "committed": commit, "participants": participants}
    await connection.execute(_DECIDE, values)
    return bool((await connection.execute(_VERDICT, {"id": id_})).scalar_one())


async def decisions(connection: AsyncConnection) -> list[Decision]:
    """All that the log holds."""
    return [Decision(*row) for row in await connection.execute(_DECISIONS)]


async def forget(connection: AsyncConnection, ids: list[str]) -> None:
    """Takes decisions out of the log that nobody will ask for."""
    await connection.execute(_FORGET, {"ids": ids})


def _quoted(gid: str) -> str:
    return "'" + gid.replace("'", "''") + "'"
