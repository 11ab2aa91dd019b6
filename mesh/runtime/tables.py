"""The runtime's own tables in the database of each service."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

_TABLES = (
    # Events that are published and not sent yet, in the order of their transactions for each key.
    """
    CREATE TABLE IF NOT EXISTS runtime_outbox (
      id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      subject text NOT NULL,
      headers text NOT NULL,
      payload bytea NOT NULL
    )
    """,
    # Events that were handled, by whom.
    """
    CREATE TABLE IF NOT EXISTS runtime_inbox (
      consumer text NOT NULL,
      event text NOT NULL,
      time timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (consumer, event)
    )
    """,
    "CREATE INDEX IF NOT EXISTS runtime_inbox_by_time ON runtime_inbox (time)",
)


async def make(connection: AsyncConnection) -> None:
    """Makes them unless they are there; the caller sees to it that nobody else does at the same time."""
    for statement in _TABLES:
        await connection.exec_driver_sql(statement)
    await connection.commit()
