"""Takes the events of one consumer, one at a time: handled once, tried again, or buried as a dead letter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
from google.protobuf.message import DecodeError, Message
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nourish.error.v1.reason_pb2 import Reason
from sqlalchemy import QueuePool
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth
from mesh.runtime.backoff import Backoff
from mesh.runtime.db import Database
from mesh.runtime.errors import ServiceError
from mesh.runtime.events import dead, subjects
from mesh.runtime.events.server import Pull, Server
from mesh.runtime.events.subscriptions import Rejected, Subscription
from mesh.runtime.telemetry import Tally, traces

OUTAGE = Backoff("exponential", first=0.1, limit=5.0)
EARLIER = timedelta(seconds=10)  # clocks differ: an observer gets what was published so long before its start, too
IDLE_SECONDS = 120.0  # the server forgets an observer that is gone
_HANDLED = "INSERT INTO runtime_inbox (consumer, event) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_HANDLED_TOTAL = Tally("events_handled_total", "Events that a group's handler was given, by what came of it.")

_log = logging.getLogger("mesh.runtime.events")
Handle = Callable[..., Awaitable[None]]


class Consumer:
    """What both kinds have in common."""

    def __init__(self, server: Server, subscription: Subscription, handle: Handle) -> None:
        self._server, self._subscription, self._handle = server, subscription, handle
        self._pull: Pull | None = None
        self._stopping = False

    def stop(self) -> None:
        """Ends `run` after the event that is being handled."""
        self._stopping = True
        if self._pull:
            self._pull.stop()

    async def run(self) -> None:
        """Takes events until stopped.

        Raises:
            Exception: an engine is not there; nothing is lost, run it again.
        """
        if self._stopping:
            return
        stream = subjects.stream(subjects.owner(self._subscription.name))
        await self._server.make_stream(subjects.owner(self._subscription.name))
        name = (await self._server.streams.add_consumer(stream, self._config())).name
        async with self._server.pull(stream, name) as self._pull:
            async for message in self._pull:
                await self.take(message)

    async def take(self, message: Msg) -> None:
        """Handles one event, whatever comes of it."""
        raise NotImplementedError

    def _config(self) -> ConsumerConfig:
        raise NotImplementedError

    def _event(self, message: Msg) -> Message:
        try:
            return self._subscription.event.FromString(message.data)
        except DecodeError as error:
            raise Rejected(f"is no {self._subscription.name}: {error}") from None

    @asynccontextmanager
    async def _call(self, message: Msg) -> AsyncIterator[None]:
        """Bounds the handler's time, and lets its logs and calls carry the request id of who published."""
        carried = {name: value for name, value in (message.headers or {}).items() if name in auth.OF_REQUEST}
        deadline = asyncio.get_running_loop().time() + self._subscription.timeout
        method = f"event {self._subscription.name}"
        token = auth.current.set(auth.CallInfo(deadline, carried, bounded=True, method=method))
        try:
            with traces.span(method, traces.CONSUMER):
                async with asyncio.timeout_at(deadline):
                    yield
        finally:
            auth.current.reset(token)


@dataclass(frozen=True)
class Work:
    """Where handlers work: so many at once that half of the database's pool is left to calls."""

    db: Database
    turns: asyncio.Semaphore

    @classmethod
    def on(cls, db: Database) -> Work:
        """The work of one process on its database."""
        pool: QueuePool = db.engine.sync_engine.pool  # type: ignore[assignment]
        return cls(db, asyncio.Semaphore(max(1, pool.size() // 2)))


class GroupConsumer(Consumer):
    """One partition of an event for one group: the server gives one event at a time to one of all instances."""

    def __init__(
        self, server: Server, subscription: Subscription, handle: Handle, work: Work, *, group: str, partition: int
    ) -> None:
        super().__init__(server, subscription, handle)
        self._work, self._group, self._partition = work, group, partition
        self.name = subjects.taker(group, subscription.name)

    def _config(self) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=subjects.consumer(self._group, self._subscription.name, self._partition),
            filter_subject=subjects.subject(self._subscription.name, self._partition),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._subscription.redeliver_after,
            max_ack_pending=1,  # this keeps the order, over all instances and while one waits for its next attempt
            max_deliver=-1,  # `take` counts: the server's own end of it would leave the event nowhere
        )

    async def take(self, message: Msg) -> None:
        """Handles, then acknowledges; a failure waits for the next attempt, the last makes a dead letter."""
        if (message.headers or {}).get(subjects.ONLY_HEADER, self._group) != self._group:
            await message.ack()
            return
        attempt = message.metadata.num_delivered
        try:
            if attempt > self._subscription.attempts:
                raise Rejected(f"was given to a process {attempt - 1} times and none came to an end with it")
            async with _kept(message, self._subscription.redeliver_after / 3):
                await self._while_engines_fail(message)
        except asyncio.CancelledError:
            raise  # given again to whoever is there
        except Exception as error:  # noqa: BLE001 - whatever the handler raises
            await self._failed(message, attempt, error)
        else:
            await message.ack()
            _HANDLED_TOTAL.add(consumer=self.name, outcome="handled")

    async def _while_engines_fail(self, message: Msg) -> None:
        failures = 0
        while True:
            try:
                async with self._work.turns:
                    await self._once(message)
            except Exception as error:
                if not is_outage(error):
                    raise
                failures += 1
                _log.warning("an event waits for an engine", extra={"consumer": self.name, "error": repr(error)})
                await asyncio.sleep(OUTAGE.seconds(failures))
            else:
                return

    async def _once(self, message: Msg) -> None:
        """The handler's changes and the note that the event was handled, both or neither."""
        event, id_ = self._event(message), dead.id_of(message)
        async with self._call(message), AsyncExitStack() as stack:
            connection = await _begin(stack, self._work.db)
            handled = await connection.exec_driver_sql(_HANDLED, (self.name, id_))
            if handled.rowcount:
                await self._handle(event, connection)

    async def _failed(self, message: Msg, attempt: int, error: Exception) -> None:
        final = isinstance(error, Rejected) or attempt >= self._subscription.attempts
        extra = {"consumer": self.name, "event": dead.id_of(message), "attempt": attempt, "dead": final}
        _log.error("an event could not be handled", extra=extra, exc_info=error)
        _HANDLED_TOTAL.add(consumer=self.name, outcome="buried" if final else "again")
        if not final:
            await message.nak(self._subscription.backoff.seconds(attempt))
            return
        await dead.bury(self._server, message, self._group, error)
        await message.term()


class InstanceConsumer(Consumer):
    """An event for this instance alone, in the order of the stream."""

    def __init__(self, server: Server, subscription: Subscription, handle: Handle) -> None:
        super().__init__(server, subscription, handle)
        self._since = datetime.now(UTC) - EARLIER
        self._last = 0

    def _config(self) -> ConsumerConfig:
        start = (
            {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": self._last + 1}
            if self._last
            else {"deliver_policy": DeliverPolicy.BY_START_TIME, "opt_start_time": self._since}
        )
        return ConsumerConfig(
            filter_subject=subjects.subject(self._subscription.name, "*"),
            ack_policy=AckPolicy.NONE,
            inactive_threshold=IDLE_SECONDS,
            mem_storage=True,
            **start,  # type: ignore[arg-type]
        )

    async def take(self, message: Msg) -> None:
        """Handles; gives up after the last attempt."""
        for attempt in range(1, self._subscription.attempts + 1):
            try:
                async with self._call(message):
                    await self._handle(self._event(message))
                break
            except Exception as error:  # noqa: BLE001 - whatever the handler raises
                extra = {"event": dead.id_of(message), "attempt": attempt}
                _log.error("an event could not be observed", extra=extra, exc_info=error)
                if attempt < self._subscription.attempts and not isinstance(error, Rejected):
                    await asyncio.sleep(self._subscription.backoff.seconds(attempt))
        self._last = message.metadata.sequence.stream


def is_outage(error: Exception) -> bool:
    """Whether something that the handler needs cannot be reached: no fault of the event's."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() is grpc.StatusCode.UNAVAILABLE
    if isinstance(error, ServiceError):
        return error.reason == Reason.REASON_UNAVAILABLE
    return isinstance(error, ConnectionError)


async def _begin(stack: AsyncExitStack, db: Database) -> AsyncConnection:
    try:
        return await stack.enter_async_context(db.transaction())
    except OSError as error:  # not even its socket is there
        raise ConnectionError("the database cannot be reached") from error


@asynccontextmanager
async def _kept(message: Msg, every: float) -> AsyncIterator[None]:
    """Tells the server again and again that the event is being handled."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(every)
            with suppress(NatsError):  # it is away, and gives the event again when it is back
                await message.in_progress()

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
