"""Profiles in PostgreSQL, each for its owner alone: whose are seen is not for these statements to say."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from nourish.profile.v1.profile_pb2 import Profile
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import Database, etags
from mesh.runtime.db import Rows, mine, soft_delete

_C = sa.Text(collation="C")
metadata = sa.MetaData()
profile_table = sa.Table(
    "profile",
    metadata,
    sa.Column("id", _C, primary_key=True),
    sa.Column("owner", _C, nullable=False, server_default=sa.func.runtime_user()),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("delete_time", sa.DateTime(timezone=True)),
    sa.Column("expire_time", sa.DateTime(timezone=True)),
    sa.Column("activity_level", sa.SmallInteger, nullable=False),
    sa.Column("goals", pg.ARRAY(sa.SmallInteger), nullable=False),
    sa.Column("diet", sa.SmallInteger, nullable=False),
    sa.Column("sensitive", sa.LargeBinary, nullable=False),
    sa.Index("profile_by_owner", "owner", "create_time", "id"),
    sa.Index("profile_expired", "expire_time", postgresql_where=sa.text("expire_time IS NOT NULL")),
)
_c = profile_table.c
_OPEN = ("activity_level", "goals", "diet")
_TIMES = ("create_time", "update_time", "delete_time", "expire_time")


class ProfileStore:
    """The profiles of the user of the call; `profile_id` is the last part of a resource name."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, profile_id: str) -> Profile | None:
        """The profile, or None if there is no such."""
        async with self._db.connection() as connection:
            return await self._one(connection, sa.select(profile_table).where(_c.id == profile_id))

    async def page(self, after: tuple[datetime, str] | None, limit: int, *, deleted: bool) -> Sequence[Profile]:
        """The profiles, oldest first, from behind the (create time, id) `after` on; at most `limit`."""
        async with self._db.connection(Rows.DELETED_TOO if deleted else Rows.LIVE) as connection:
            return await self._all(connection, page_statement(after, limit))

    async def create(self, profile: Profile, now: datetime) -> Profile:
        """Adds a profile."""
        id_ = str(uuid.uuid4())
        values = {"id": id_, "revision": 1, "create_time": now, "update_time": now}
        async with self._db.transaction() as connection:
            values |= await self._columns(connection, id_, profile)
            return await self._written(connection, profile_table.insert().values(values))

    async def update(self, profile_id: str, change: Callable[[Profile], Profile], now: datetime) -> Profile | None:
        """Replaces the profile by what `change` makes of it, alone on the row; None if there is no such.

        A change that changes nothing leaves etag and update_time as they were.
        """
        async with self._db.transaction() as connection:
            before = await self._locked(connection, profile_id)
            if before is None or (after := change(before)) == before:
                return before
            values = await self._columns(connection, profile_id, after)
            return await self._written(connection, _newer(profile_id, now).values(values))

    async def delete(self, profile_id: str, check: Callable[[Profile], None], now: datetime) -> bool:
        """Deletes the profile after `check` (which may raise) has seen it; whether there was one."""
        async with self._db.transaction() as connection:
            before = await self._locked(connection, profile_id)
            if before is None:
                return False
            check(before)
            return await soft_delete(connection, profile_table, profile_id, now, revision=_c.revision + 1)

    async def undelete(self, profile_id: str, check: Callable[[Profile], None], now: datetime) -> Profile | None:
        """Brings the profile back, if it is deleted, after `check` has seen it; None if there is no such."""
        async with self._db.transaction(Rows.DELETED_TOO) as connection:
            before = await self._locked(connection, profile_id)
            if before is None or not before.HasField("delete_time"):
                return before
            if before.expire_time.ToDatetime(now.tzinfo) <= now:
                return None
            check(before)
            back = _newer(profile_id, now).values(delete_time=None, expire_time=None)
            return await self._written(connection, back)

    async def _locked(self, connection: AsyncConnection, profile_id: str) -> Profile | None:
        return await self._one(connection, sa.select(profile_table).where(_c.id == profile_id).with_for_update())

    async def _written(self, connection: AsyncConnection, change: sa.Insert | sa.Update) -> Profile:
        return (await self._all(connection, change.returning(profile_table)))[0]

    async def _one(self, connection: AsyncConnection, query: sa.Select[Any]) -> Profile | None:
        return next(iter(await self._all(connection, query)), None)

    async def _all(self, connection: AsyncConnection, statement: sa.Executable) -> list[Profile]:
        rows = (await connection.execute(statement)).all()
        if not rows:
            return []
        key = await self._db.keys.reading(connection)
        profiles = [_to_profile(row) for row in rows]
        for row, profile in zip(rows, profiles, strict=True):
            key.unseal_fields(row.sensitive, profile, _place(row.id))
        return profiles

    async def _columns(self, connection: AsyncConnection, profile_id: str, profile: Profile) -> dict[str, Any]:
        """What a person may set: some of it in the open, the rest in one."""
        values = {"activity_level": profile.activity_level, "goals": list(profile.goals), "diet": profile.diet}
        key = await self._db.keys.writing(connection)
        return {**values, "sensitive": key.seal_fields(profile, _place(profile_id))}


def page_statement(after: tuple[datetime, str] | None, limit: int) -> sa.Select[Any]:
    """The statement of `ProfileStore.page`: it reads its own stretch of the index, however far in."""
    query = sa.select(profile_table).where(mine(profile_table))
    if after:
        query = query.where(sa.tuple_(_c.create_time, _c.id) > sa.tuple_(*after))
    return query.order_by(_c.create_time, _c.id).limit(limit)


def _newer(profile_id: str, now: datetime) -> sa.Update:
    return profile_table.update().where(_c.id == profile_id).values(revision=_c.revision + 1, update_time=now)


def _place(profile_id: str) -> str:
    return f"profile.sensitive/{profile_id}"


def _to_profile(row: sa.Row[Any]) -> Profile:
    """The profile without what is sensitive."""
    fields: dict[str, Any] = {name: row._mapping[name] for name in _OPEN}
    fields |= {name: _to_timestamp(time) for name in _TIMES if (time := row._mapping[name])}
    return Profile(name=f"profiles/{row.id}", etag=etags.of(row.id, row.revision), **fields)


def _to_timestamp(value: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp
