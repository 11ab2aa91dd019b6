"""Waiting for proxies: whoever hears from one tells, whoever waits looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from mesh.xds.fleet import Proxy


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
            async with asyncio.timeout(seconds), self._condition:
                await self._condition.wait_for(done)
        return done()


def all_settled(proxies: Collection[Proxy]) -> bool:
    """Whether each has answered to all of its last snapshot."""
    return all(proxy.settled for proxy in proxies)
