"""The NATS server as events use it: one connection, streams made where they are missing, pulling one by one."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NoStreamResponseError

from mesh.runtime.events import subjects

DEAD_STREAM, DEAD_SUBJECT = "dead-letters", "dead"
KEEP_SECONDS = 7 * 24 * 3600.0  # how long a stream holds what everybody has taken
DUPLICATE_SECONDS = 120.0  # the inbox knows duplicates for longer
CONNECT_SECONDS, RECONNECT_SECONDS, PUBLISH_SECONDS = 2, 0.2, 5.0
PULL_SECONDS, PULL_BATCH = 30.0, 128
EXPIRED = ("404", "408")  # the usual ends of a pull: pull again

_log = logging.getLogger("mesh.runtime.events")


class PullError(Exception):
    """A consumer cannot be pulled from: it is gone, or its stream."""


class Server:
    """A connection that comes back by itself."""

    def __init__(self) -> None:
        self._client = Client()
        self._pulls: set[Pull] = set()
        self._made: set[str] = set()
        self._closing = False
        self._problem = ""

    async def connect(self, url: str, name: str) -> None:
        """Returns when the server has answered; tries until then. What is sent without one fails at once."""
        await self._client.connect(
            url,
            name=name,
            connect_timeout=CONNECT_SECONDS,
            reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type] # any number does
            max_reconnect_attempts=-1,
            ping_interval=10,
            pending_size=0,  # what waited here would be sent after it was given up
            error_cb=self._failed,
            disconnected_cb=self._lost,
            reconnected_cb=self._back,
        )

    async def close(self) -> None:
        """Ends the connection."""
        self._closing = True
        with suppress(NatsError, asyncio.TimeoutError, OSError):
            await self._client.close()

    @property
    def connected(self) -> bool:
        """Whether the server is there."""
        return self._client.is_connected

    @property
    def streams(self) -> JetStreamContext:
        """JetStream's API."""
        return self.jetstream(PUBLISH_SECONDS)

    def jetstream(self, seconds: float) -> JetStreamContext:
        """JetStream's API, whose requests take no longer than that."""
        return self._client.jetstream(timeout=seconds)

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], message_id: str) -> None:
        """Returns when the event is stored, once however often it is sent in two minutes.

        Raises:
            Error, OSError, TimeoutError: it is not, as far as is known.
        """
        service = subject.split(".")[1] if subject.startswith(subjects.PREFIX) else ""
        await self.make_stream(service)
        try:
            await self.streams.publish(subject, payload, headers={**headers, "Nats-Msg-Id": message_id})
        except NoStreamResponseError:
            self._made.clear()  # somebody removed it
            raise

    async def make_stream(self, service: str) -> None:
        """Makes the stream of a service's events (of "", that of dead letters) unless it is there."""
        if service in self._made:
            return
        config = dead_config() if not service else events_config(service)
        try:
            await self.streams.add_stream(config)
        except BadRequestError:  # it has other settings
            await self.streams.update_stream(config)
        self._made.add(service)

    async def hear(self, subject: str, take: Callable[[Msg], Awaitable[None]]) -> None:
        """Gives `take` what is told from now on, also on a connection that comes back later."""
        await self._client.subscribe(subject, cb=take)

    async def tell(self, subject: str, payload: bytes) -> None:
        """Tells those that are connected now.

        Raises:
            Error, OSError: this process is not.
        """
        await self._client.publish(subject, payload)

    def pull(self, stream: str, consumer: str) -> Pull:
        """The messages of a consumer."""
        return Pull(self._client, stream, consumer, self._pulls)

    async def _failed(self, error: Exception) -> None:
        """Says what is wrong, once and not at each of many attempts."""
        if self._problem != repr(error):
            self._problem = repr(error)
            _log.warning("the events server cannot be used", extra={"error": self._problem})

    async def _lost(self) -> None:
        if not self._closing:
            _log.warning("the events server is lost: events wait until it is back")

    async def _back(self) -> None:
        _log.info("the events server is back")
        self._problem = ""
        self._made.clear()
        for pull in self._pulls:
            pull.again()


class Pull:
    """The messages of one consumer, as they come: `async with server.pull(...) as pull: async for message in pull`.

    The end of the block gives back what came and was not taken.
    """

    def __init__(self, client: Client, stream: str, consumer: str, open_pulls: set[Pull]) -> None:
        self._client, self._open = client, open_pulls
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = client.new_inbox()
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._stopped = False

    async def __aenter__(self) -> Pull:
        self._subscription = await self._client.subscribe(self._inbox, cb=self._arrived.put)
        self._open.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._open.discard(self)
        with suppress(NatsError, asyncio.TimeoutError, OSError):
            await self._subscription.unsubscribe()
            await self._client.flush(CONNECT_SECONDS)  # what was on its way is here now
            while not self._arrived.empty():
                message = self._arrived.get_nowait()
                if message and not _status(message):
                    await message.nak()

    def again(self) -> None:
        """Asks anew: the server may have forgotten what it was asked for."""
        self._arrived.put_nowait(None)

    def stop(self) -> None:
        """Ends the messages after the one that is being handled."""
        self._stopped = True
        self.again()

    async def __aiter__(self) -> AsyncIterator[Msg]:
        while not self._stopped:
            request = {"batch": PULL_BATCH, "expires": int(PULL_SECONDS * 1e9)}
            await self._client.publish(self._subject, json.dumps(request).encode(), reply=self._inbox)
            ends = asyncio.get_running_loop().time() + PULL_SECONDS + CONNECT_SECONDS
            for _ in range(PULL_BATCH):
                message = await self._next(ends)
                if message is None:
                    break
                yield message

    async def _next(self, ends: float) -> Msg | None:
        try:
            async with asyncio.timeout_at(ends):
                message = await self._arrived.get()
        except TimeoutError:
            return None
        if message is None or not (status := _status(message)):
            return message
        if status not in EXPIRED:
            raise PullError(f"{status} {(message.headers or {}).get('Description', '')}".strip())
        return None


def events_config(service: str) -> StreamConfig:
    """The stream of a service's events. Full, it refuses new ones, which then wait in the outbox."""
    return StreamConfig(
        name=subjects.stream(service),
        description=f"events of {service}",
        subjects=[f"{subjects.PREFIX}{service}.>"],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        storage=StorageType.FILE,
        max_age=KEEP_SECONDS,
        duplicate_window=DUPLICATE_SECONDS,
        allow_direct=True,
    )


def dead_config() -> StreamConfig:
    """The stream of dead letters: kept until somebody replays or drops them."""
    return StreamConfig(
        name=DEAD_STREAM,
        description="events that could not be handled",
        subjects=[f"{DEAD_SUBJECT}.>"],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        storage=StorageType.FILE,
        duplicate_window=DUPLICATE_SECONDS,
        allow_direct=True,
    )


def _status(message: Msg) -> str:
    """The status of a message that is none of the stream, or ""."""
    return "" if message.reply else (message.headers or {}).get("Status", "")
