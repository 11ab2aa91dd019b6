"""Read-only copies of a database: which of them is fresh enough, as this process has measured it, takes reads.

Freshness needs no clocks but this one. Now and then the primary says how far its log is; a replica that has replayed it
up to there is at least as fresh as that moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import sqlalchemy as sa
from sqlalchemy import QueuePool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mesh.runtime import auth
from mesh.runtime.db.lost import told_as_lost

ASKED_SECONDS = 0.5
ANSWER_SECONDS = 1.0  # a replica that takes longer is none
_KNOWN_WRITERS = 10_000
_NEVER = float("-inf")
_WRITTEN = sa.text("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")
_REPLAYED = sa.text("SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn() - '0/0'::pg_lsn")

_log = logging.getLogger("mesh.runtime.db")


def all_at_work(engine: AsyncEngine) -> bool:
    """Whether no connection of the pool is free."""
    pool: QueuePool = engine.sync_engine.pool  # type: ignore[assignment]
    return pool.checkedout() >= pool.size()


class Replica:
    """One of them. `since` is the moment, by this process's monotonic clock, that it has certainly reached."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.name = str(engine.url.query.get("host") or f"{engine.url.host}:{engine.url.port}")
        self.since = _NEVER
        self._well = True

    @property
    def busy(self) -> bool:
        """Whether all its connections are at work."""
        return all_at_work(self.engine)

    async def measure(self, marks: list[tuple[float, int]], max_lag: float) -> None:
        """Asks how far it is, and compares with when the primary was there: `marks`, the newest first."""
        if self.busy:
            return  # it counts for what it was
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self.engine.connect() as connection:
                is_replica, replayed = (await connection.execute(_REPLAYED)).one()
        except (OSError, TimeoutError, sa.exc.SQLAlchemyError) as error:
            self.lose(f"{type(error).__name__}: {error}")
            return
        if not is_replica or replayed is None:
            self.lose("it is no replica, or was made the primary")
            return
        self.since = max(self.since, next((moment for moment, at in marks if at <= replayed), _NEVER))
        lag = time.monotonic() - self.since
        self._note(lag <= max_lag, f"it lags by {lag:.1f} s" if self.since > _NEVER else "it lags")

    def lose(self, why: str) -> None:
        """It takes no reads until it is measured again."""
        self.since = _NEVER
        self._note(False, why)

    def _note(self, well: bool, why: str) -> None:
        if well != self._well:
            self._well = well
            facts = {"replica": self.name, **({} if well else {"error": why})}
            _log.warning("a replica takes reads again" if well else "a replica takes no reads", extra=facts)


class Replicas:
    """The replicas of one database, as one process uses them.

    Args:
        engines: one each.
        max_lag: how much older than the primary a replica may be, seconds.
    """

    def __init__(self, engines: list[AsyncEngine], max_lag: float = 5.0) -> None:
        self.all = [Replica(engine) for engine in engines]
        self.max_lag = max_lag
        self._next = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=int(max_lag / ASKED_SECONDS) + 2)
        self._writers: dict[str, float] = {}

    def written(self) -> None:
        """Whoever runs now has changed something, and reads it from the primary for as long as a replica may lag."""
        if not self.all or not (who := _who()):
            return
        now = time.monotonic()
        if len(self._writers) >= _KNOWN_WRITERS:
            self._writers = {who: until for who, until in self._writers.items() if until > now}
        self._writers[who] = now + self.max_lag

    async def enter(self, stack: AsyncExitStack) -> AsyncConnection | None:
        """A connection to a replica until the end of `stack`; None if the primary must answer."""
        if not self.all or self._writers.get(_who(), 0.0) > time.monotonic():
            return None
        for _ in self.all:
            self._next = (self._next + 1) % len(self.all)
            replica = self.all[self._next]
            if not replica.busy and time.monotonic() - replica.since <= self.max_lag:
                try:
                    return await stack.enter_async_context(_connected(replica))
                except (ConnectionError, OSError):
                    pass  # the next one, or the primary
        return None

    async def watch(self, primary: AsyncEngine) -> None:
        """Measures them for ever."""
        while True:
            await self.measure(primary)
            await asyncio.sleep(ASKED_SECONDS)

    async def measure(self, primary: AsyncEngine) -> None:
        """Measures them once."""
        now = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_SECONDS), primary.connect() as connection:
                self._marks.appendleft((now, (await connection.execute(_WRITTEN)).scalar_one()))
        except (OSError, TimeoutError, sa.exc.SQLAlchemyError):
            pass  # while it is down nothing is written either, but how fresh a replica is nobody knows
        await asyncio.gather(*(replica.measure(list(self._marks), self.max_lag) for replica in self.all))


@asynccontextmanager
async def _connected(replica: Replica) -> AsyncIterator[AsyncConnection]:
    """A connection; the replica takes no reads from then on if it is lost."""
    try:
        with told_as_lost():
            async with replica.engine.connect() as connection:
                taken = (await connection.get_raw_connection()).driver_connection
                if taken is None or taken.is_closed():
                    raise ConnectionError("it has ended the connection")
                yield connection
    except (ConnectionError, OSError) as error:
        replica.lose(str(error))
        raise


def _who() -> str:
    """Whose changes must be seen: the user's, or those of the request that has none. '' for what is no call."""
    info = auth.current.get()
    return info.headers.get(auth.USER_HEADER) or (f"request {info.request_id}" if info.request_id else "")
