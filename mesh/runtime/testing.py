"""For tests of services: a real server on a real channel in this process. Fakes, not mocks.

The plug-in `mesh.pytest` gives what needs engines: the fixtures `postgres_url`, `keys`, `events_url`, `mesh_up`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from mesh.runtime import auth, clock, errors, settings
from mesh.runtime.answers import digest, key_of
from mesh.runtime.client import passing_on
from mesh.runtime.db import Database
from mesh.runtime.db import current as current_database
from mesh.runtime.handlers import MethodInfo
from mesh.runtime.server import build_server


@asynccontextmanager
async def serve_in_memory(*servicers: object) -> AsyncIterator[grpc.aio.Channel]:
    """Serves with all of the middleware on a private socket; gives the channel to make stubs on.

    Answers to request_ids are kept in the open database, or in memory if a test has none.
    """
    answers = None if current_database() else MemoryAnswers()
    with tempfile.TemporaryDirectory(prefix="nourish-") as folder:
        built = build_server(*servicers, answers=answers)
        built.grpc.add_insecure_port(f"unix:{folder}/app.sock")
        await built.grpc.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/app.sock") as channel:
            try:
                yield passing_on(channel)
            finally:
                await built.grpc.stop(None)


class MemoryAnswers:
    """Keeps what each request_id was answered, for tests of services whose store is a fake."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], tuple[bytes, Message]] = {}
        self._turns: defaultdict[tuple[str, ...], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def once(self, method: MethodInfo, request: Any, make: Callable[[], Awaitable[Message]]) -> Message:
        """As `answers.Answers` says."""
        key, body = tuple(key_of(method, request).values()), digest(request)
        async with self._turns[key]:
            if key not in self._kept:
                self._kept[key] = body, await make()
        earlier, answer = self._kept[key]
        if earlier != body:
            raise errors.request_id_reused()
        return answer


def as_user(user: str, *scopes: str, caller: str = "edge") -> tuple[tuple[str, str], ...]:
    """The metadata that a sidecar would set after verifying the token of `user`."""
    certificate = f"URI=spiffe://nourish.local/ns/nourish/sa/{caller}"
    return (
        (auth.USER_HEADER, user),
        (auth.SCOPES_HEADER, " ".join(scopes)),
        (auth.CERTIFICATE_HEADER, certificate),
    )


class StoppedClock:
    """A clock that stands until it is moved: `clock.now += timedelta(hours=1)`."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._moved: set[asyncio.Future[None]] = set()

    @property
    def now(self) -> datetime:
        """What it shows."""
        return self._now

    @now.setter
    def now(self, to: datetime) -> None:
        self._now = to
        for waiter in self._moved:
            if not waiter.done():
                waiter.set_result(None)

    def __call__(self) -> datetime:
        """What it shows, as `mesh.runtime.clock` asks."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Returns when it is moved."""
        waiter = asyncio.get_running_loop().create_future()
        self._moved.add(waiter)
        try:
            await waiter
        finally:
            self._moved.discard(waiter)


@contextmanager
def stopped_clock(at: datetime | None = None) -> Iterator[StoppedClock]:
    """`mesh.runtime.clock` stands in the block: at `at`, or when it is."""
    stopped = StoppedClock(at or clock.now())
    before = clock.set_source(stopped)
    try:
        yield stopped
    finally:
        clock.set_source(before)


class Outbox:
    """What a fake store gives `events.publish` in place of a connection; `events` are what was published on it."""

    def __init__(self) -> None:
        self.events: list[Message] = []
        self.info: dict[str, Any] = {}

    async def exec_driver_sql(self, _: str, values: tuple[Any, ...]) -> None:
        """Takes what `events.publish` writes."""
        self.events.append(_event(values[2], values[4]))


async def published(db: Database) -> list[Message]:
    """The events in the outbox of a database that no relay sends on: those of transactions that committed, in order."""
    async with db.connection() as connection:
        rows = await connection.exec_driver_sql("SELECT subject, payload FROM runtime_outbox ORDER BY id")
        return [_event(row.subject, row.payload) for row in rows]


def _event(subject: str, payload: bytes) -> Message:
    kind = descriptor_pool.Default().FindMessageTypeByName(subject.rpartition(".")[0])
    return message_factory.GetMessageClass(kind).FromString(payload)


@contextmanager
def with_flags(given: Mapping[str, Any]) -> Iterator[None]:
    """As if the values said so: `{"search.newOrder": True}` for all, or a flag as it stands there; and nothing else."""
    from mesh.runtime import flags  # noqa: PLC0415 - only for tests of flags

    def flag(said: Any) -> Any:
        whole = isinstance(said, Mapping) and said.keys() & {"variants", "shares", "rules"}
        return said if whole else {"variants": {"given": said}, "default": "given"}

    before = flags.provider.take({name: flag(said) for name, said in given.items()})
    try:
        yield
    finally:
        flags.provider.take(before)


@contextmanager
def with_settings(given: Mapping[str, settings.Scalar]) -> Iterator[None]:
    """As if the values said so, `{"search.minScore": 0.5}`, and nothing else."""
    before = settings.process.given
    settings.process.take(given)
    try:
        yield
    finally:
        settings.process.take(before)
