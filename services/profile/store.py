"""Profiles in PostgreSQL. A row belongs to its owner: every query names the owner, so nobody reads another's."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type import date_pb2
from nourish.profile.v1.profile_pb2 import Profile
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import Database, errors
from services.profile.domain import to_date
from services.profile.masks import FIELDS

# How long a request_id is remembered: far longer than any client retries (AIP-155 asks for an hour).
REQUEST_ID_LIFE = timedelta(days=1)

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
request_table = sa.Table(
    "create_request",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Uuid, primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("profile_id", sa.Text, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
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
        columns = profile_table.c
        query = sa.select(profile_table).where(columns.owner == owner)
        if after:
            query = query.where(sa.tuple_(columns.create_time, columns.id) > sa.tuple_(*after))
        query = query.order_by(columns.create_time, columns.id).limit(limit)
        async with self._db.connection() as connection:
            return [_to_profile(row) for row in await connection.execute(query)]

    async def create(self, owner: str, profile: Profile, request_id: str, now: datetime) -> Profile:
        """Adds a profile; a repeat with the same request_id (if not empty) returns the one made before, as it is now.

        Raises:
            ServiceError: INVALID_ARGUMENT if the request_id came with another body, NOT_FOUND if what it made is gone.
        """
        profile_id = str(uuid.uuid4())
        async with self._db.transaction() as connection:
            if request_id:
                claim = {
                    "owner": owner,
                    "request_id": uuid.UUID(request_id),
                    "fingerprint": hashlib.sha256(profile.SerializeToString(deterministic=True)).digest(),
                    "profile_id": profile_id,
                    "create_time": now,
                }
                made = await _claim(connection, claim)
                if made != profile_id:
                    if repeated := await _read(connection, owner, made):
                        return repeated
                    raise errors.not_found(f"profiles/{made}")
            row = _to_row(profile) | {
                "id": profile_id,
                "owner": owner,
                "revision": 1,
                "create_time": now,
                "update_time": now,
            }
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


async def _read(connection: AsyncConnection, owner: str, profile_id: str, *, lock: bool = False) -> Profile | None:
    columns = profile_table.c
    query = sa.select(profile_table).where(columns.owner == owner, columns.id == profile_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return _to_profile(row) if row else None


async def _claim(connection: AsyncConnection, claim: Mapping[str, Any]) -> str:
    """Notes that this request makes `profile_id`; returns the id that it, or the same request before, makes.

    A repeat that comes while the first still runs waits here for its commit.
    """
    columns = request_table.c
    expired = sa.and_(columns.owner == claim["owner"], columns.create_time < claim["create_time"] - REQUEST_ID_LIFE)
    await connection.execute(request_table.delete().where(expired))
    insert = pg.insert(request_table).values(claim).on_conflict_do_nothing().returning(columns.profile_id)
    if claimed := (await connection.execute(insert)).scalar_one_or_none():
        return str(claimed)
    same = sa.and_(columns.owner == claim["owner"], columns.request_id == claim["request_id"])
    earlier = (await connection.execute(sa.select(columns.fingerprint, columns.profile_id).where(same))).one()
    if earlier.fingerprint != claim["fingerprint"]:
        raise errors.invalid("request_id", "was used before for another profile: make a new one for each new profile")
    return str(earlier.profile_id)


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
