"""The workers of a process: they run inside the service, take what is due, and hand back what they cannot finish."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial

from croniter import croniter
from pgqueuer import AsyncpgDriver, Job, Queries, QueueManager, RetryRequested
from sqlalchemy import QueuePool

from mesh.runtime import clock
from mesh.runtime.backoff import Backoff
from mesh.runtime.db import Database
from mesh.runtime.environment import environment
from mesh.runtime.jobs import store
from mesh.runtime.jobs.changes import changes
from mesh.runtime.jobs.kinds import Handler, handlers_of
from mesh.runtime.jobs.queue import enqueue, place
from mesh.runtime.jobs.running import Attempts

SMALLEST_POOL = 3
LEASE_SECONDS = 30.0  # a process that does not say for so long that it lives loses its jobs to others
DRAIN_SECONDS = 5.0  # for what runs when the process is told to stop; then it is handed back
POLL_SECONDS = 1.0  # what is enqueued wakes a worker at once; a time that has come, for a retry say, is noticed so late
TIDY_SECONDS = 60.0
CLEANED_EACH = 60  # rounds of that
_OLD_LOG = "DELETE FROM pgqueuer_log WHERE created < now() - interval '1 day'"
_BACKOFF = Backoff(first=0.5, limit=15.0)
_log = logging.getLogger("mesh.runtime.jobs")


@asynccontextmanager
async def work(
    db: Database, *objects: object, workers: int | None = None, lease: float = LEASE_SECONDS
) -> AsyncIterator[None]:
    """Does the jobs that methods of the objects are marked for, while the block runs.

    At its end what runs has a few seconds to finish; then it is interrupted, and waits for another process.

    Args:
        db: the service's database.
        objects: with methods marked by `@job`.
        workers: how many jobs at once in this process; NOURISH_JOBS if not given. With 0 it does none.
        lease: how long a process may be silent, seconds.

    Raises:
        RuntimeError: the pool is too small.
        TypeError: nothing is marked, or two methods for one message.
    """
    handlers = handlers_of(objects)
    process = _Process(db, handlers, environment().jobs if workers is None else workers, lease)
    await process.prepare()
    tasks = [asyncio.create_task(process.run())]
    tasks += [asyncio.create_task(_schedule(db, h)) for h in handlers.values() if h.kind.cron]
    tasks.append(asyncio.create_task(_tidy(db)))
    try:
        yield
    finally:
        await process.stop(tasks[0])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Process:
    """Takes jobs from the queue, on one connection of the pool for as long as that lives, then on another."""

    def __init__(self, db: Database, handlers: dict[str, Handler], workers: int, lease: float) -> None:
        self._db = db
        self._handlers = handlers
        self._workers = workers
        self._lease = timedelta(seconds=lease)
        self._attempts = Attempts(db)
        self._free = asyncio.Semaphore(workers)
        self._manager: QueueManager | None = None
        self._stopping = False

    async def prepare(self) -> None:
        """Makes or upgrades the library's tables; instances that start at once take turns.

        Raises:
            RuntimeError: the pool is too small.
        """
        pool: QueuePool = self._db.engine.sync_engine.pool  # type: ignore[assignment]
        if pool.size() < SMALLEST_POOL:
            raise RuntimeError(
                f"jobs need a pool of {SMALLEST_POOL} connections at least, of which one waits for them; this one has "
                f"{pool.size()}: raise `database.poolSize` of the service in the values"
            )
        async with self._connected() as driver:
            queries = Queries(driver)
            async with queries.schema_lock():
                if await queries.schema_is_installed():
                    await queries.upgrade()
                else:
                    await queries.install()

    async def run(self) -> None:
        """Works until stopped."""
        failures = 0
        while self._workers and not self._stopping:
            began = asyncio.get_running_loop().time()
            try:
                async with self._connected() as driver:
                    await driver.add_listener(store.CHANGED, changes.tell)
                    await self._take(driver)
            except Exception as error:  # noqa: BLE001 - without its database a process goes on to wait for it
                lasted = asyncio.get_running_loop().time() - began
                failures = 1 if lasted > _BACKOFF.limit else failures + 1
                _log.warning("the queue is not reachable", extra={"error": f"{type(error).__name__}: {error}"})
                await asyncio.sleep(_BACKOFF.seconds(failures))

    async def stop(self, running: asyncio.Task[None]) -> None:
        """Takes no more, and waits for what runs; then interrupts it."""
        self._stopping = True
        if self._manager:
            self._manager.shutdown.set()
        await asyncio.wait([running], timeout=DRAIN_SECONDS)
        self._attempts.stop()
        await asyncio.wait([running], timeout=DRAIN_SECONDS)

    async def _take(self, driver: AsyncpgDriver) -> None:
        manager = self._manager = QueueManager(Queries(driver))
        for handler in self._handlers.values():
            manager.entrypoint(handler.kind.name, concurrency_limit=handler.kind.limit, accepts_context=False)(
                self._entrypoint(handler)
            )
        if self._stopping:
            return
        # The library takes at most half of what may run in one go.
        most = max(self._workers, 2)
        await manager.run(
            dequeue_timeout=timedelta(seconds=POLL_SECONDS),
            batch_size=most // 2,
            max_concurrent_tasks=most,
            heartbeat_timeout=self._lease,
            log_aggregation_interval=timedelta(0),  # statistics that nobody reads
        )

    def _entrypoint(self, handler: Handler) -> Callable[[Job], Awaitable[None]]:
        async def run(taken: Job) -> None:
            try:
                async with self._free:
                    again = await self._attempts.make(handler, (taken.payload or b"").decode())
            except ConnectionError as error:  # nothing is known of what became of it: as if this process had died
                raise RetryRequested(timedelta(seconds=_BACKOFF.seconds(taken.attempts + 1)), str(error)) from error
            if again is not None:
                raise RetryRequested(again)

        return run

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncpgDriver]:
        async with self._db.raw() as connection:
            yield AsyncpgDriver(connection)
            await connection.reset()  # it listens no more


async def _schedule(db: Database, handler: Handler) -> None:
    """Enqueues a job at each of its times. Its id is the time: whoever comes second adds none."""
    kind = handler.kind
    prefix = f"{kind.name}@"
    due: datetime = croniter(kind.cron, clock.now()).get_prev(datetime)  # type: ignore[no-untyped-call]
    missed = await _persistently(partial(_has_run, db, prefix))  # at the first start of all nothing was missed
    while True:
        if missed:
            await _persistently(partial(_enqueue_once, db, handler, prefix + due.isoformat()))
        missed = True
        now = max(due, clock.now())
        due = croniter(kind.cron, now).get_next(datetime)  # type: ignore[no-untyped-call]
        await clock.until(due)


async def _has_run(db: Database, prefix: str) -> bool:
    async with db.connection() as connection:
        return await store.has_run(connection, prefix)


async def _enqueue_once(db: Database, handler: Handler, id_: str) -> bool:
    async with db.transaction() as connection:
        await enqueue(connection, handler.kind.message(), id=id_)
    return True


async def _persistently(attempt: Callable[[], Awaitable[bool]]) -> bool:
    failures = 0
    while True:
        try:
            return await attempt()
        except Exception as error:  # noqa: BLE001 - the next try may find the database again
            failures += 1
            _log.warning(
                "what is done for jobs now and then waits", extra={"error": f"{type(error).__name__}: {error}"}
            )
            await asyncio.sleep(_BACKOFF.seconds(failures))


async def _tidy(db: Database) -> None:
    """Puts back now and then what has lost its place in the queue, and deletes what ended long ago."""
    for number in itertools.count():
        await _persistently(partial(_find_lost, db))
        if number % CLEANED_EACH == 0:
            await _persistently(partial(_clean, db))
        await asyncio.sleep(TIDY_SECONDS * (0.5 + random.random()))  # noqa: S311 - spreads the instances


async def _find_lost(db: Database) -> bool:
    async with db.transaction() as connection:
        for lost in await store.lost(connection):
            await place(connection, *lost)
    return True


async def _clean(db: Database) -> bool:
    async with db.transaction() as connection:
        await store.clean(connection)
        await connection.exec_driver_sql(_OLD_LOG)
    return True
