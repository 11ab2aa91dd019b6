"""What ties the caches of a process to other processes: the events that clear them, and the bucket that they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from mesh.runtime.cache.clearing import Clearing
from mesh.runtime.cache.shared import ANSWER_SECONDS, Bucket
from mesh.runtime.cache.tier import Tier, space
from mesh.runtime.environment import environment
from mesh.runtime.events import subjects
from mesh.runtime.events.bus import Part, keep
from mesh.runtime.events.consumer import InstanceConsumer
from mesh.runtime.events.server import Server
from mesh.runtime.events.subscriptions import Rejected, Subscription

if TYPE_CHECKING:
    from mesh.runtime.cache.cache import Cache

_log = logging.getLogger("mesh.runtime.cache")


@asynccontextmanager
async def linked(
    caches: Sequence[Cache[Any]], url: str, *, service: str = "", subset: str = "", seconds: float = ANSWER_SECONDS
) -> AsyncIterator[None]:
    """Clears the caches when their events come, and gives those that want one the shared tier, while the block runs.

    It begins whether or not NATS is there; until it is, each process has what it loads itself.

    Args:
        caches: of this process.
        url: `nats://...`.
        service: whose process it is; the runner's NOURISH_SERVICE if not given, as
        subset: is NOURISH_SUBSET.
        seconds: how long the shared tier may take for an answer.
    """
    server = Server()
    bucket = Bucket(server, service or environment().service, seconds)
    parts = list(_parts(server, bucket, subset or environment().subset, caches))
    running = asyncio.create_task(_run(server, url, parts), name="caches")
    try:
        yield
    finally:
        for cache in caches:
            cache.share(None)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.close()


def _parts(server: Server, bucket: Bucket, subset: str, caches: Sequence[Cache[Any]]) -> Iterator[Part]:
    if any(cache.shared for cache in caches):
        yield bucket
    for cache in caches:
        hearing = [_Hearing(server, cache, place) for place in range(len(cache.cleared_by))]
        yield from hearing
        if cache.shared:
            yield _Sharing(bucket, subset, cache, hearing)


async def _run(server: Server, url: str, parts: Sequence[Part]) -> None:
    await server.connect(url, environment().instance)
    await asyncio.gather(*(keep(part) for part in parts))


class _Sharing:
    """Gives a cache the shared tier when it knows what was published so far of the events that clear it."""

    def __init__(self, bucket: Bucket, subset: str, cache: Cache[Any], hearing: Sequence[_Hearing]) -> None:
        self._bucket, self._subset, self._cache, self._hearing = bucket, subset, cache, hearing

    async def run(self) -> None:
        for each in self._hearing:
            await each.ready.wait()
        cache = self._cache
        events = (clearing.event.DESCRIPTOR.full_name.encode() for clearing in cache.cleared_by)
        apart = space(cache.name, self._subset.encode(), cache.fingerprint, *events)
        self._bucket.listeners[apart] = cache.drop
        cache.share(Tier(self._bucket, apart, cache.heard, cache.count))

    def stop(self) -> None:
        """It ends by itself."""


class _Hearing(InstanceConsumer):
    """One event that clears one cache."""

    def __init__(self, server: Server, cache: Cache[Any], place: int) -> None:
        clearing: Clearing[Any] = cache.cleared_by[place]
        super().__init__(server, Subscription(clearing.event, every_instance=True), _nothing)
        self._cache, self._place, self._clearing = cache, place, clearing
        self.ready = asyncio.Event()

    async def run(self) -> None:
        name = self._subscription.name
        owner = subjects.owner(name)
        await self._server.make_stream(owner)
        try:
            last = await self._server.streams.get_last_msg(subjects.stream(owner), subjects.subject(name, "*"))
            self._cache.heard.note(self._place, last.seq or 0, None)
        except NotFoundError:
            pass  # there was none yet
        self.ready.set()
        await super().run()

    async def take(self, message: Msg) -> None:
        """Clears what the event says; what cannot be read clears all."""
        number = message.metadata.sequence.stream
        try:
            event = self._event(message)
            key = self._clearing.key(event) if self._clearing.key else None
            self._cache.clear_for(self._place, number, key)
        except Exception as error:  # noqa: BLE001 - an old value would be worse than none
            what = "is no such event" if isinstance(error, Rejected) else "names no key"
            _log.error("%s %s: %s is cleared", self._subscription.name, what, self._cache.name, exc_info=error)
            self._cache.clear_for(self._place, number, None)
        self._last = number


async def _nothing(_: object) -> None:
    """`take` does it all."""
