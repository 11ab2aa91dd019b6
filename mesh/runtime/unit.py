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

    Attributes:
        engine: of the database.
        connection: for whoever has the turn.
        turn: held by the task that is inside a block.
        open: until the call has ended; a task that it left behind has transactions of its own from then on.
        shown: whose rows the transaction sees.
    """

    def __init__(self, engine: AsyncEngine, connection: AsyncConnection) -> None:
        self.engine = engine
        self.turn = asyncio.Lock()
        self.open = True
        self.shown = ""
        self.connection = connection
        self._holder: asyncio.Task[object] | None = None

    @asynccontextmanager
    async def block(self) -> AsyncIterator[AsyncConnection]:
        """The connection, until the end of the block; undone if the block fails.

        Raises:
            ConnectionError: the call ended while this task waited for its turn.
        """
        task = asyncio.current_task()
        if self._holder is task:  # a block inside a block
            async with self.connection.begin_nested():
                yield self.connection
            return
        async with self.turn:
            if not self.open:
                raise ConnectionError("the call that this task belonged to has ended")
            self._holder = task
            try:
                async with self.connection.begin_nested():
                    yield self.connection
            finally:
                self._holder = None


_current: ContextVar[Unit | None] = ContextVar("nourish_unit", default=None)


def of(engine: AsyncEngine) -> Unit | None:
    """The unit of work of the current call on that database, if it runs in one."""
    unit = _current.get()
    return unit if unit and unit.open and unit.engine is engine else None


def leave() -> None:
    """What this task does from now on is no part of the unit in which it was made."""
    _current.set(None)


@asynccontextmanager
async def of_work(engine: AsyncEngine) -> AsyncIterator[Unit]:
    """Makes one transaction of all that happens on the database inside: committed at the end, or rolled back."""
    async with engine.begin() as connection:
        unit = Unit(engine, connection)
        token = _current.set(unit)
        try:
            yield unit
            async with unit.turn:  # what a task is at is a part of it; nobody comes after
                unit.open = False
        finally:
            unit.open = False
            _current.reset(token)
