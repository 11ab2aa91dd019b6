"""Leader election: one instance at a time holds the lock of that name, and does what the leader does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mesh.runtime.backoff import Backoff
from mesh.runtime.coordination.locks import LIFE_SECONDS, Held, Locks, Lost
from mesh.runtime.db import Database

_BACKOFF = Backoff(first=0.5, limit=15.0)
_log = logging.getLogger("mesh.runtime.coordination")


@asynccontextmanager
async def lead(
    db: Database, name: str, work: Callable[[Held], Awaitable[None]], *, life: float = LIFE_SECONDS
) -> AsyncIterator[None]:
    """Does `work` in one of all instances, while the block runs; when that one ends or hangs, in another.

    Work that ends, by itself or by an exception, gives the lead back; then there is another election. It is cancelled
    when the lead is lost, and at the end of the block.

    Args:
        db: the service's database.
        name: of what is led.
        work: what the leader does. What only it may write it writes in `held.transaction()`.
        life: after so many seconds without a word from the leader another leads.
    """
    task = asyncio.create_task(_stand(Locks(db, life=life), name, work), name=f"lead {name}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _stand(locks: Locks, name: str, work: Callable[[Held], Awaitable[None]]) -> None:
    failures = 0
    while True:
        began = asyncio.get_running_loop().time()
        try:
            async with locks.hold(name) as held:
                _log.info("leads", extra={"lead": name, "token": held.token})
                await work(held)
        except Lost:
            _log.warning("the lead is lost", extra={"lead": name})
        except Exception as error:  # noqa: BLE001 - the instance stands again
            _log.error("what the leader does has failed", extra={"lead": name}, exc_info=error)
        failures = failures + 1 if asyncio.get_running_loop().time() - began < _BACKOFF.limit else 1
        await asyncio.sleep(_BACKOFF.seconds(failures))
