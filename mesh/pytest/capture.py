"""Events as they are published in a running mesh, typed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import nats
from google.protobuf.message import Message
from nats.aio.msg import Msg

from mesh.runtime.events import subjects

E = TypeVar("E", bound=Message)
NEXT_SECONDS = 10.0


class Captured(Generic[E]):
    """The events of one kind, in the order of their arrival: in `all`, and one by one by `next`."""

    def __init__(self, kind: type[E]) -> None:
        self.all: list[E] = []
        self._kind = kind
        self._new: asyncio.Queue[E] = asyncio.Queue()

    async def next(self, seconds: float = NEXT_SECONDS) -> E:
        """The first that `next` has not given yet; waits for it.

        Raises:
            AssertionError: none came in time.
        """
        try:
            return await asyncio.wait_for(self._new.get(), seconds)
        except TimeoutError:
            name = self._kind.DESCRIPTOR.full_name
            raise AssertionError(f"no {name} in {seconds:g} s; so far there were {len(self.all)}") from None

    async def take(self, message: Msg) -> None:
        """What comes from the server."""
        event = self._kind.FromString(message.data)
        self.all.append(event)
        self._new.put_nowait(event)


@asynccontextmanager
async def captured(url: str, kind: type[E]) -> AsyncIterator[Captured[E]]:
    """Captures while the block runs."""
    seen = Captured(kind)
    async with await nats.connect(url) as connection:
        await connection.subscribe(subjects.subject(kind.DESCRIPTOR.full_name, "*"), cb=seen.take)
        await connection.flush()
        yield seen
