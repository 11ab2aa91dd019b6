"""Waiting for proxies: whoever hears from one tells, whoever waits looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from mesh.xds.fleet import Proxy

# Answers that come within this time are looked at together: a thousand proxies must not be asked a thousand times.
TOGETHER_SECONDS = 0.01


class Progress:
    """Wakes those who wait for proxies, whenever a proxy has said something."""

    def __init__(self) -> None:
        self._condition = asyncio.Condition()

    async def tell(self) -> None:
        """Something changed."""
        async with self._condition:
            self._condition.notify_all()

    async def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Waits until `done` holds; False if it does not within so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wait(done)
        return done()

    async def _wait(self, done: Callable[[], bool]) -> None:
        while not done():
            async with self._condition:
                await self._condition.wait()
            await asyncio.sleep(TOGETHER_SECONDS)


def all_settled(proxies: Collection[Proxy]) -> bool:
    """Whether each has answered to all of its last snapshot."""
    return all(proxy.settled for proxy in proxies)
