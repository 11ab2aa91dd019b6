"""The time, for all that is decided by it: `clock.now()`. A test stops it and moves it (`testing.stopped_clock`).

What PostgreSQL stamps by itself (`now()` in a statement) is the server's time, and goes on.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What gives the time."""

    def __call__(self) -> datetime:
        """The time, with a zone."""

    async def sleep(self, seconds: float) -> None:
        """Returns when so much has passed, or before."""


class _System:
    def __call__(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


_source: Clock = _System()


def now() -> datetime:
    """The time, UTC."""
    return _source()


async def until(time: datetime) -> None:
    """Returns when it is `time`."""
    while (left := (time - now()).total_seconds()) > 0:
        await _source.sleep(left)


def set_source(source: Clock) -> Clock:
    """Takes the time from elsewhere, as tests do; returns from where it came before."""
    global _source
    before, _source = _source, source
    return before
