"""Locks and semaphores over all processes of a service, held by leases that are renewed while the block runs."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context
from datetime import timedelta
from typing import Any, TypeVar

from nourish.error.v1.reason_pb2 import Reason
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime.backoff import Backoff
from mesh.runtime.coordination import leases
from mesh.runtime.coordination.leases import Lease
from mesh.runtime.db import Database
from mesh.runtime.environment import environment
from mesh.runtime.errors import ServiceError

LIFE_SECONDS = 15.0  # a holder that is gone keeps others waiting so long
# The holder's own clock ends its work at this share of the lease, before another can have it by the database's.
OWN_SHARE = 0.8
RENEWED_EACH = 0.25
_log = logging.getLogger("mesh.runtime.coordination")

T = TypeVar("T")


class Taken(ServiceError):  # noqa: N818 - no error: somebody else is at work
    """All places are taken; ABORTED for a caller, who may repeat the call."""

    def __init__(self, name: str) -> None:
        super().__init__(Reason.REASON_CONFLICT, f"{name} is being worked on: repeat the call later")


class Lost(ServiceError):  # noqa: N818 - no error: somebody else goes on
    """The lease was over before the work was; what was to be written since then was not. ABORTED for a caller."""

    def __init__(self, name: str) -> None:
        super().__init__(Reason.REASON_CONFLICT, f"{name} has passed to another: repeat the call")


class Held:
    """What is held while the block runs.

    Attributes:
        name: of the lock.
        place: of a semaphore, from 0; 0 of a lock.
        token: higher than that of any holder before. It goes with what is asked of others, who `admit` it.
    """

    def __init__(self, db: Database, lease: Lease, life: timedelta) -> None:
        self.name, self.place, self.token = lease
        self._db, self._lease, self._life = db, lease, life

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction of the holder alone: nobody takes the lock before it ends.

        One without a statement for as long as a lease lasts is ended by the database.

        Raises:
            Lost: the lease is over; nothing was written.
        """
        async with self._db.transaction() as connection:
            if not await leases.check(connection, self._lease, self._life):
                raise Lost(self.name)
            yield connection


class Locks:
    """The locks in a service's database.

    Args:
        db: the service's database.
        life: how long a holder that says nothing keeps what it has, seconds.
    """

    def __init__(self, db: Database, *, life: float = LIFE_SECONDS) -> None:
        self._db, self._life = db, timedelta(seconds=life)
        self._own = life * OWN_SHARE  # of a lease, by the clock of this process
        self._each = life * RENEWED_EACH
        self._again = Backoff(first=min(0.05, life / 10), limit=min(1.0, life / 4))

    def hold(self, name: str, *, wait: float | None = None) -> AbstractAsyncContextManager[Held]:
        """Holds the lock of that name while the block runs; whoever comes second waits.

        If the lease is over before the block, because the database cannot be reached or the process hung, the block is
        cancelled before another can have the lock, and ends in `Lost`. A process that hung so long that another has
        had it still runs on for a moment: what must not be written then is written in `held.transaction()`.

        Args:
            name: of what is locked.
            wait: seconds; None for as long as it takes, 0 for not at all.

        Raises:
            Taken: it was not free in that time.
            Lost: it was, but not for as long as the block took.
        """
        return self._held(name, 1, wait)

    def semaphore(self, name: str, places: int, *, wait: float | None = None) -> AbstractAsyncContextManager[Held]:
        """Holds one of so many places, as `hold` does the only one."""
        return self._held(name, places, wait)

    @asynccontextmanager
    async def _held(self, name: str, places: int, wait: float | None) -> AsyncIterator[Held]:
        holder = f"{environment().instance} {uuid.uuid4().hex}"
        try:
            lease, until = await self._take(name, places, holder, wait)
            try:
                async with asyncio.timeout_at(until) as bound:
                    keeping = asyncio.create_task(self._keep(lease, bound), context=Context())
                    try:
                        yield Held(self._db, lease, self._life)
                    finally:
                        keeping.cancel()
            except TimeoutError:
                if bound.expired():
                    raise Lost(name) from None
                raise
        finally:
            await self._release(name, holder)

    async def _take(self, name: str, places: int, holder: str, wait: float | None) -> tuple[Lease, float]:
        """Waits for a place; what it has, and until when at least by the clock of this process."""
        end = None if wait is None else time.monotonic() + wait
        attempt = 0
        while True:
            began = time.monotonic()
            if lease := await _apart(self._ask_for(name, places, holder)):
                return lease, began + self._own
            attempt += 1
            pause = self._again.seconds(attempt)
            if end is not None and time.monotonic() + pause > end:
                raise Taken(name)
            await asyncio.sleep(pause)

    async def _keep(self, lease: Lease, bound: asyncio.Timeout) -> None:
        """Renews it again and again; what cannot be renewed ends by the clock."""
        while not bound.expired():
            await asyncio.sleep(self._each)
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._each), self._db.connection() as connection:
                    renewed = await leases.renew(connection, lease, self._life)
            except Exception as error:  # noqa: BLE001 - the next try may find the database again
                _log.warning("a lease could not be renewed", extra={"lease": lease.name, "error": repr(error)})
                continue
            if not bound.expired():
                bound.reschedule(began + self._own if renewed else began)
            if not renewed:
                return

    async def _ask_for(self, name: str, places: int, holder: str) -> Lease | None:
        async with self._db.connection() as connection:
            return await leases.take(connection, name, places, holder, self._life)

    async def _release(self, name: str, holder: str) -> None:
        with suppress(OSError, TimeoutError, SQLAlchemyError):  # it ends by itself
            async with asyncio.timeout(self._own):
                await _apart(self._give_back(name, holder))

    async def _give_back(self, name: str, holder: str) -> None:
        async with self._db.connection() as connection:
            await leases.release(connection, name, holder)


def _apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Not in the transaction of the call: others shall see at once who holds what."""
    return asyncio.create_task(work, context=Context())
