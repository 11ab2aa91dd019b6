"""Where a holder's token arrives at another database than the lock's: those of earlier holders are refused."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import errors

_ADMIT = sa.text(
    """
    INSERT INTO runtime_fence AS fence (name, token) VALUES (:name, :token)
    ON CONFLICT (name) DO UPDATE SET token = excluded.token WHERE fence.token <= excluded.token
    RETURNING true
    """
)


async def admit(connection: AsyncConnection, name: str, token: int) -> None:
    """Lets the rest of the transaction be what the holder of `token` writes, if no later holder has written here.

    Raises:
        ServiceError: FAILED_PRECONDITION, a later one has.
    """
    if not (await connection.execute(_ADMIT, {"name": name, "token": token})).first():
        raise errors.failed_precondition(f"{name} has passed to another holder")
