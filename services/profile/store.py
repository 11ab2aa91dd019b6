"""Profiles in PostgreSQL. A row belongs to its owner: every query names the owner, so nobody reads another's."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type import date_pb2
from nourish.profile.v1.profile_pb2 import Profile
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import Database, masks
from services.profile.domain import to_date

# What a person may set, in the order of the contract; the rest is the service's.
FIELDS = tuple(masks.settable(Profile.DESCRIPTOR))

metadata = sa.MetaData()
# Columns from display_name on are the fields of the contract, by name.
profile_table = sa.Table(
    "profile",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("sex", sa.SmallInteger, nullable=False),
    sa.Column("birth_date", sa.Date),
    sa.Column("height_cm", sa.Double),
    sa.Column("weight_kg", sa.Double),
    sa.Column("activity_level", sa.SmallInteger, nullable=False),
    sa.Column("goals", pg.ARRAY(sa.SmallInteger), nullable=False),
    sa.Column("allergies", pg.ARRAY(sa.Text), nullable=False),
    sa.Column("conditions", pg.ARRAY(sa.Text), nullable=False),
    sa.Column("medications", pg.ARRAY(sa.Text), nullable=False),
    sa.Column("diet", sa.SmallInteger, nullable=False),
    sa.Index("profile_by_owner", "owner", "create_time", "id"),
)


class ProfileStore:
    """The profiles of all owners; `owner` is a verified user, `profile_id` the last part of a resource name."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, owner: str, profile_id: str) -> Profile | None:
        """The profile, or None if the owner has no such."""
        async with self._db.connection() as connection:
            return await _read(connection, owner, profile_id)

    async def page(self, owner: str, after: tuple[datetime, str] | None, limit: int) -> list[Profile]:
        """The owner's profiles, oldest first, from behind the (create time, id) `after` on; at most `limit`."""
        async with self._db.connection() as connection:
            return [_to_profile(row) for row in await connection.execute(page_statement(owner, after, limit))]

    async def create(self, owner: str, profile: Profile, now: datetime) -> Profile:
        """Adds a profile."""
        row = _to_row(profile) | {
            "id": str(uuid.uuid4()),
            "owner": owner,
            "revision": 1,
            "create_time": now,
            "update_time": now,
        }
        async with self._db.transaction() as connection:
            created = await connection.execute(profile_table.insert().values(row).returning(profile_table))
            return _to_profile(created.one())

    async def update(
        self, owner: str, profile_id: str, change: Callable[[Profile], Profile], now: datetime
    ) -> Profile | None:
        """Replaces the profile by what `change` makes of it, alone on the row; None if the owner has no such.

        A change that changes nothing leaves etag and update_time as they were.
        """
        columns = profile_table.c
        async with self._db.transaction() as connection:
            before = await _read(connection, owner, profile_id, lock=True)
            if before is None:
                return None
            after = change(before)
            if after == before:
                return before
            row = _to_row(after) | {"revision": columns.revision + 1, "update_time": now}
            statement = profile_table.update().where(columns.owner == owner, columns.id == profile_id).values(row)
            return _to_profile((await connection.execute(statement.returning(profile_table))).one())

    async def delete(self, owner: str, profile_id: str, check: Callable[[Profile], None]) -> bool:
        """Deletes the profile after `check` (which may raise) has seen it; whether there was one."""
        columns = profile_table.c
        async with self._db.transaction() as connection:
            before = await _read(connection, owner, profile_id, lock=True)
            if before is None:
                return False
            check(before)
            statement = profile_table.delete().where(columns.owner == owner, columns.id == profile_id)
            await connection.execute(statement)
            return True


def page_statement(owner: str, after: tuple[datetime, str] | None, limit: int) -> sa.Select[Any]:
    """The statement of `ProfileStore.page`: it reads its own stretch of the index, however far in."""
    columns = profile_table.c
    query = sa.select(profile_table).where(columns.owner == owner)
    if after:
        query = query.where(sa.tuple_(columns.create_time, columns.id) > sa.tuple_(*after))
    return query.order_by(columns.create_time, columns.id).limit(limit)


async def _read(connection: AsyncConnection, owner: str, profile_id: str, *, lock: bool = False) -> Profile | None:
    columns = profile_table.c
    query = sa.select(profile_table).where(columns.owner == owner, columns.id == profile_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return _to_profile(row) if row else None


def _to_row(profile: Profile) -> dict[str, Any]:
    return {name: _to_column(profile, name) for name in FIELDS}


def _to_column(profile: Message, name: str) -> Any:
    field = profile.DESCRIPTOR.fields_by_name[name]
    value = getattr(profile, name)
    if field.is_repeated:
        return list(value)
    if field.has_presence and not profile.HasField(name):
        return None
    return to_date(value) if field.message_type else value


def _to_profile(row: sa.Row[Any]) -> Profile:
    values = {name: _from_column(value) for name in FIELDS if (value := row._mapping[name]) is not None}
    return Profile(
        name=f"profiles/{row.id}",
        etag=str(row.revision),
        create_time=_to_timestamp(row.create_time),
        update_time=_to_timestamp(row.update_time),
        **values,
    )


def _from_column(value: Any) -> Any:
    return date_pb2.Date(year=value.year, month=value.month, day=value.day) if isinstance(value, date) else value


def _to_timestamp(value: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp
