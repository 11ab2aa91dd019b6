"""Who was given which variant, published once for each user: `FlagExposed`, by the outbox of the service's database.

A call does not wait for it, nor fail with it. What this process has told it remembers, for some time; what any process
has told the database knows. Without a database or events nothing is told.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextvars import Context

import protovalidate
from cachetools import LRUCache
from google.protobuf.timestamp_pb2 import Timestamp
from nourish.mesh.v1.flags_pb2 import FlagExposed

from mesh.runtime import clock
from mesh.runtime.backoff import Backoff
from mesh.runtime.db import Database, current
from mesh.runtime.environment import environment

REMEMBERED = 50_000  # about 10 MB
WAITING = 10_000  # more are forgotten, and told when they come again
AT_ONCE = 200
AGAIN = Backoff(first=0.2, limit=30.0)
_NEW = "INSERT INTO runtime_exposure (id) VALUES ($1) ON CONFLICT DO NOTHING"

_log = logging.getLogger(__name__)
Key = tuple[str, str, str]  # flag, variant, user


class Exposures:
    """Those of this process."""

    def __init__(self) -> None:
        self._told: LRUCache[Key, None] = LRUCache(REMEMBERED)
        self._waiting: dict[Key, Timestamp] = {}
        self._telling: asyncio.Task[None] | None = None

    def note(self, flag: str, variant: str, user: str) -> None:
        """A user was given a variant; called with each time a flag is asked for."""
        key = (flag, variant, user)
        if key in self._told or len(self._waiting) >= WAITING or not (db := _database()):
            return
        self._told[key] = None
        self._waiting[key] = Timestamp()
        self._waiting[key].FromDatetime(clock.now())
        if self._telling is None or self._telling.done():
            # In a context of its own: no part of the call's transaction, which may be undone.
            self._telling = asyncio.get_running_loop().create_task(self._tell(db), context=Context())

    async def settle(self) -> None:
        """Returns when all that was noted is in the outbox."""
        while self._telling and not self._telling.done():
            await asyncio.wait([self._telling])

    async def _tell(self, db: Database) -> None:
        failures = 0
        while self._waiting:
            batch = sorted(list(self._waiting.items())[:AT_ONCE], key=lambda item: item[0][2])
            try:
                await _publish(db, batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, calls go on
                failures += 1
                _log.warning("exposures of flags wait", extra={"error": repr(error), "waiting": len(self._waiting)})
                await asyncio.sleep(AGAIN.seconds(failures))
            else:
                failures = 0
                for key, _ in batch:
                    del self._waiting[key]


async def _publish(db: Database, batch: list[tuple[Key, Timestamp]]) -> None:
    from mesh.runtime.events import publish  # noqa: PLC0415 - a service without events does not pay for it

    async with db.transaction() as connection:
        for key, time in batch:  # by user: who publishes for several keys does so in one order everywhere
            flag, variant, user = key
            event = FlagExposed(service=environment().service, flag=flag, variant=variant, user=user, time=time)
            try:
                protovalidate.validate(event)
            except protovalidate.ValidationError as error:  # it would be no other the next time
                _log.error("an exposure of %s cannot be published: %s", flag, error)
                continue
            if (await connection.exec_driver_sql(_NEW, (_id(key),))).rowcount:
                await publish(connection, event)


def _database() -> Database | None:
    """Where to publish; None without a database, or in a mesh without events for this service."""
    return current() if environment().events_url or not environment().service else None


def _id(key: Key) -> bytes:
    return hashlib.blake2b("/".join(key).encode(), digest_size=16).digest()
