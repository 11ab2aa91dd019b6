"""Soft delete (AIP-164): a row is gone for everybody at once, and for good after a time. See `rows.protect`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime.db.rows import Rows, showing

KEPT = timedelta(days=30)


async def soft_delete(connection: AsyncConnection, table: sa.Table, id_: str, now: datetime, **values: Any) -> bool:
    """Deletes the row `id_` of the user of this call; whether there was one.

    Args:
        connection: in a transaction.
        table: a protected one, with `id`.
        id_: of the row.
        now: from then on.
        values: what else changes with it.
    """
    change = table.update().where(table.c.id == id_, table.c.delete_time.is_(None))
    async with showing(connection, Rows.DELETED_TOO):  # PostgreSQL lets nobody write a row out of their own sight
        found = await connection.execute(change.values(delete_time=now, expire_time=now + KEPT, **values))
    return bool(found.rowcount)
