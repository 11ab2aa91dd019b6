"""What runs in this process now: how much of it, and how long it may go on once the process is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.runtime import errors

DRAIN_SECONDS = 15.0
# Of these, for streams: then each is told to call again, which reaches another instance, before what is left is cut.
STREAM_DRAIN_SECONDS = 10.0
RETRY_SECONDS = 1.0


class Running:
    """The calls that one server is at work on.

    Args:
        max_calls: how many unary calls at once; one more is refused before any work is done for it.
        max_streams: the same for streams, which may last, and so do not take the place of calls.
    """

    def __init__(self, *, max_calls: int, max_streams: int) -> None:
        self._free = {False: max_calls, True: max_streams}
        self._streams: set[asyncio.Timeout] = set()
        self._cut_at: float | None = None  # event-loop time, once it drains

    def enter(self, *, stream: bool) -> None:
        """Counts a call as running, until `leave`.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED, as many run as may.
        """
        if not self._free[stream]:
            raise errors.overloaded(RETRY_SECONDS)
        self._free[stream] -= 1

    def leave(self, *, stream: bool) -> None:
        """A call has ended."""
        self._free[stream] += 1

    @asynccontextmanager
    async def until_drained(self) -> AsyncIterator[None]:
        """Lets a stream run; a while after the drain began it ends.

        Raises:
            ServiceError: UNAVAILABLE, this process is stopping.
        """
        bound = asyncio.timeout_at(self._cut_at)
        self._streams.add(bound)
        try:
            async with bound:
                yield
        except TimeoutError:
            if bound.expired():
                raise errors.unavailable() from None
            raise
        finally:
            self._streams.discard(bound)

    def drain(self, seconds: float = STREAM_DRAIN_SECONDS) -> None:
        """Gives the streams that run, and those yet to come, so long to finish."""
        self._cut_at = asyncio.get_running_loop().time() + seconds
        for bound in self._streams:
            bound.reschedule(self._cut_at)
