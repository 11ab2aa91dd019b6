"""All SQL of leases: rows that one holder has until a time by the database's clock. Each is one statement.

Nothing here belongs to a session: a pooler may put every statement on another connection, and a connection that hangs
holds nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_PURGED_AT_ONCE = 20
# A free place, if there is one; clears away a few that nobody has wanted for a day.
_TAKE = sa.text(
    """
    WITH old AS (
      DELETE FROM runtime_lease WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM runtime_lease
        WHERE expire_time < clock_timestamp() - interval '1 day' AND name <> :name
        ORDER BY expire_time LIMIT :purged FOR UPDATE SKIP LOCKED
      ))
    )
    INSERT INTO runtime_lease AS lease (name, place, holder, token, expire_time)
    SELECT :name, free, :holder, nextval('runtime_lease_token'), clock_timestamp() + :life
    FROM generate_series(0, :places - 1) AS free
    WHERE NOT EXISTS (
      SELECT FROM runtime_lease AS other
      WHERE other.name = :name AND other.place = free AND other.expire_time > clock_timestamp()
    )
    ORDER BY random() LIMIT 1
    ON CONFLICT (name, place) DO UPDATE
      SET holder = excluded.holder, token = nextval('runtime_lease_token'), expire_time = clock_timestamp() + :life
      WHERE lease.expire_time <= clock_timestamp()
    RETURNING place, token
    """
).bindparams(
    sa.bindparam("life", type_=sa.Interval),
    sa.bindparam("places", type_=sa.Integer),
    sa.bindparam("name", type_=sa.Text),
    sa.bindparam("holder", type_=sa.Text),
    sa.bindparam("purged", _PURGED_AT_ONCE),
)
_MINE = "name = :name AND place = :place AND token = :token"
_RENEW = sa.text(
    f"UPDATE runtime_lease SET expire_time = clock_timestamp() + :life WHERE {_MINE}"  # noqa: S608 - constants
).bindparams(sa.bindparam("life", type_=sa.Interval))
# Its transaction holds off whoever waits for the lease: one that stands still for longer than that is ended.
_CHECK = sa.text(
    f"""
    SELECT set_config('idle_in_transaction_session_timeout', CAST(:idle AS text), true) FROM runtime_lease
    WHERE {_MINE} AND expire_time > clock_timestamp() FOR KEY SHARE
    """  # noqa: S608 - constants
)
_RELEASE = sa.text(
    """
    UPDATE runtime_lease SET expire_time = clock_timestamp()
    WHERE name = :name AND holder = :holder AND expire_time > clock_timestamp()
    """
)


class Lease(NamedTuple):
    """A place that was taken."""

    name: str
    place: int
    token: int


async def take(connection: AsyncConnection, name: str, places: int, holder: str, life: timedelta) -> Lease | None:
    """Takes one of the places for so long; None if all are taken."""
    values = {"name": name, "places": places, "holder": holder, "life": life}
    row = (await connection.execute(_TAKE, values)).one_or_none()
    return Lease(name, row.place, row.token) if row else None


async def renew(connection: AsyncConnection, lease: Lease, life: timedelta) -> bool:
    """Keeps it for so long from now; False if another has taken it."""
    return bool((await connection.execute(_RENEW, {**lease._asdict(), "life": life})).rowcount)


async def check(connection: AsyncConnection, lease: Lease, life: timedelta) -> bool:
    """Whether it is held still; if so, nobody takes it before the transaction ends, and that does not stand still."""
    values = {**lease._asdict(), "idle": str(round(life.total_seconds() * 1000))}
    return (await connection.execute(_CHECK, values)).one_or_none() is not None


async def release(connection: AsyncConnection, name: str, holder: str) -> None:
    """Gives back what the holder has of that name, if it has any."""
    await connection.execute(_RELEASE, {"name": name, "holder": holder})
