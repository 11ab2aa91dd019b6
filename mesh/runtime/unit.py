"""A unit of work: what one call does to the database, whoever opens which block, is one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


class Unit:
    """One transaction that several blocks take part in, each as a savepoint: what fails in one can be caught outside.

    Tasks take turns. One that waits inside its own block for another task's block waits until the deadline.
    """

    def __init__(self, engine: AsyncEngine, connection: AsyncConnection) -> None:
        self.engine = engine
        self._connection = connection
        self._turn = asyncio.Lock()
        self._holder: asyncio.Task[object] | None = None

    @asynccontextmanager
    async def block(self) -> AsyncIterator[AsyncConnection]:
        """The connection, until the end of the block; undone if the block fails."""
        task = asyncio.current_task()
        if self._holder is task:  # a block inside a block
            async with self._connection.begin_nested():
                yield self._connection
            return
        async with self._turn:
            self._holder = task
            try:
                async with self._connection.begin_nested():
                    yield self._connection
            finally:
                self._holder = None


_current: ContextVar[Unit | None] = ContextVar("nourish_unit", default=None)


def of(engine: AsyncEngine) -> Unit | None:
    """The unit of work of the current call on that database, if it runs in one."""
    unit = _current.get()
    return unit if unit and unit.engine is engine else None


@asynccontextmanager
async def of_work(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Makes one transaction of all that happens on the database inside: committed at the end, or rolled back."""
    async with engine.begin() as connection:
        token = _current.set(Unit(engine, connection))
        try:
            yield connection
        finally:
            _current.reset(token)
