"""Which jobs have changed, told by the database to whoever in this process waits for one."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Without a word from the database (this process does no jobs, or its connection is being made anew) it is asked.
ASKED_SECONDS = 1.0


class Changes:
    """The jobs of one process that somebody waits for."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def tell(self, id_: str | bytes | bytearray) -> None:
        """A job has changed."""
        for event in self._waiting.get(str(id_), ()):
            event.set()

    @contextmanager
    def of(self, id_: str) -> Iterator[Change]:
        """The changes of one job from now on."""
        event = asyncio.Event()
        self._waiting[id_].add(event)
        try:
            yield Change(event)
        finally:
            self._waiting[id_].discard(event)
            if not self._waiting[id_]:
                del self._waiting[id_]


class Change:
    """The next change of one job."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    async def next(self, seconds: float) -> None:
        """Returns at the next change since the last call, or when it is time to look by oneself."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, ASKED_SECONDS)):
                await self._event.wait()
        self._event.clear()


changes = Changes()
