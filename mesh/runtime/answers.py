"""What each request_id was answered (AIP-155), kept in the service's own database.

The answer is written in the transaction of the change that it tells of: there is never one without the other, whatever
is killed when. A repeat that comes while the first still runs waits on the key. A call that fails leaves its id free.
What an answer holds of sensitive fields is encrypted by the user's data key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth, errors
from mesh.runtime.crypto.parts import has_sensitive
from mesh.runtime.db import Database, keys_of
from mesh.runtime.handlers import MethodInfo

# How long an answer is kept: far longer than any client retries (AIP-155 asks for an hour).
LIFE = timedelta(days=1)
_PURGED_AT_ONCE = 20

# Takes the key if it is free or expired, else gives no row; clears away a few that expired.
_CLAIM = sa.text(
    """
    WITH expired AS (
      DELETE FROM runtime_answer WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM runtime_answer
        WHERE create_time < now() - :life AND (owner, method, request_id) <> (:owner, :method, :request_id)
        ORDER BY create_time LIMIT :purged FOR UPDATE SKIP LOCKED
      ))
    )
    INSERT INTO runtime_answer AS kept (owner, method, request_id, body) VALUES (:owner, :method, :request_id, :body)
    ON CONFLICT (owner, method, request_id) DO UPDATE SET body = excluded.body, answer = NULL, create_time = now()
      WHERE kept.create_time < now() - :life
    RETURNING true
    """
).bindparams(sa.bindparam("life", LIFE, sa.Interval), sa.bindparam("purged", _PURGED_AT_ONCE))
_KEY = "owner = :owner AND method = :method AND request_id = :request_id"
_READ = sa.text(f"SELECT body, answer FROM runtime_answer WHERE {_KEY}")  # noqa: S608 - a constant
_CLOSE = sa.text(
    """
    INSERT INTO runtime_answer (owner, method, request_id, body) VALUES (:owner, :method, :request_id, :body)
    ON CONFLICT DO NOTHING
    """
)
_NEVER = b""  # no request has this digest: whoever comes with the id is refused
_KEEP = sa.text(f"UPDATE runtime_answer SET answer = :answer WHERE {_KEY}")  # noqa: S608 - a constant


class Answers(Protocol):
    """What each request_id was answered. The key is whom a call runs for, its method and the id."""

    async def once(self, method: MethodInfo, request: Any, make: Callable[[], Awaitable[Message]]) -> Message:
        """What `make` answers, or what the same request was answered before.

        Raises:
            ServiceError: REQUEST_ID_REUSED, the id came with another body.
        """


class StoredAnswers:
    """The answers in one database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def check(self, method: MethodInfo) -> None:
        """Finds out whether the answers of a method can be kept.

        Raises:
            KeyringError: they have sensitive fields, and there is no key to encrypt them by.
        """
        if has_sensitive(method.response.DESCRIPTOR):
            self._db.keys.keyring.read()

    async def once(self, method: MethodInfo, request: Any, make: Callable[[], Awaitable[Message]]) -> Message:
        """As `Answers` says."""
        key, plain = key_of(method, request), digest(request)
        async with self._db.unit_of_work() as unit:
            body = await self._body(unit.connection, request, plain)
            if (await unit.connection.execute(_CLAIM, {**key, "body": body})).first():
                made = await make()
                async with unit.turn:  # a task of the handler may be at work still
                    stored = await self._db.keys.dump(unit.connection, made, place_of(key))
                    await unit.connection.execute(_KEEP, {**key, "answer": stored})
                return made
            kept = (await unit.connection.execute(_READ, key)).one_or_none()
            if kept is None:  # it expired this moment
                raise errors.conflict()
            if kept.body not in (body, plain):  # the second of a version that did not encrypt
                raise errors.request_id_reused()
            answer = await self._db.keys.load(unit.connection, kept.answer, place_of(key))
            return method.response.FromString(answer)

    async def _body(self, connection: AsyncConnection, request: Message, plain: bytes) -> bytes:
        """The hash to keep: of what is sensitive no plain one, for few guesses find a weight."""
        if not has_sensitive(request.DESCRIPTOR):
            return plain
        return (await self._db.keys.writing(connection)).mac(plain)


async def closed(connection: AsyncConnection, method: str, request_id: str) -> bytes | None:
    """What a call of the current caller was answered, as a message's bytes; None if none was, and then none ever is.

    One that is under way is waited for.
    """
    key = {"owner": owner(), "method": method, "request_id": request_id.lower()}
    await connection.execute(_CLOSE, {**key, "body": _NEVER})
    answer = (await connection.execute(_READ, key)).one().answer
    return None if answer is None else await keys_of(connection).load(connection, answer, place_of(key))


def place_of(key: Mapping[str, str]) -> str:
    """Where the answer to a key is stored, as its encryption takes it."""
    return "runtime_answer.answer/" + "/".join(key.values())


def key_of(method: MethodInfo, request: Any) -> dict[str, str]:
    """The columns of the key. Two users who send one request_id have two."""
    return {"owner": owner(), "method": method.path, "request_id": request.request_id.lower()}


def owner() -> str:
    """For whom the current call runs."""
    principal = auth.principal()
    return f"user:{principal.user}" if principal.user else f"service:{principal.caller}"


def digest(request: Message) -> bytes:
    """Of what is asked for; the id itself may be spelled otherwise."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.ClearField("request_id")
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()
