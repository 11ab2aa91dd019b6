"""Two-phase commit: one change of a service's own database and of others, by PostgreSQL's prepared transactions.

The others are prepared; then the own transaction commits, and with it the decision; then the others are told. Whoever
finds a prepared transaction later asks the own database: without a decision there it is rolled back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import errors, unit
from mesh.runtime.coordination import prepared
from mesh.runtime.db import Database
from mesh.runtime.environment import environment

RECOVERED_EACH = 30.0
GRACE_SECONDS = 10.0  # for who prepared to decide; later it finds that it was given up
ORPHAN_SECONDS = 300.0  # what nobody can end by then is shown again and again
_log = logging.getLogger("mesh.runtime.coordination")


class TwoPhase:
    """The coordinator; made by `two_phase`."""

    def __init__(self, db: Database, others: Mapping[str, Database]) -> None:
        self._db, self._others = db, dict(sorted(others.items()))
        self._prefix = f"nourish/{environment().service or db.engine.url.database}/"

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Mapping[str, AsyncConnection]]:
        """Connections in transactions, "" of the own database and the others by their names: all commit, or none.

        The work of the others may not LISTEN, NOTIFY, enqueue jobs or make temporary tables: such a transaction cannot
        be prepared.

        Raises:
            ConnectionError: a database cannot be reached. If that was while it was decided, recovery finds out.
            RuntimeError: in a call with a request_id, whose transaction is not this one's to commit: do it in a job.
            ServiceError: ABORTED, it took so long that it was given up.
        """
        if any(unit.of(db.engine) for db in (self._db, *self._others.values())):
            raise RuntimeError("a call with a request_id commits at its end: do the two-phase commit in a job")
        id_, told, deciding = uuid.uuid4().hex, False, False
        async with AsyncExitStack() as stack:
            connections = {name: await stack.enter_async_context(_begun(db)) for name, db in self._others.items()}
            try:
                async with self._db.transaction() as own:
                    await prepared.bound(own)
                    yield {"": own, **connections}
                    for name, connection in connections.items():
                        await prepared.prepare(connection, self._gid(id_, name))
                    if not await prepared.decide(own, id_, list(connections), commit=True):
                        raise errors.conflict()
                    deciding = True
                told = True
            finally:
                if told or not deciding:  # else nobody knows what the database made of the commit: recovery will
                    ended = await self._tell(id_, connections, commit=told)
            if ended:
                async with self._db.transaction() as own:
                    await prepared.forget(own, [id_])

    def _gid(self, id_: str, name: str) -> str:
        return f"{self._prefix}{id_}/{name}"

    async def _tell(self, id_: str, connections: Mapping[str, AsyncConnection], *, commit: bool) -> bool:
        """The second phase; False if something is left to recovery."""
        ended = True
        for name, connection in connections.items():
            try:
                if not commit:
                    await connection.exec_driver_sql("ROLLBACK")  # if it was not prepared
                await prepared.end(connection, self._gid(id_, name), commit=commit)
            except (OSError, SQLAlchemyError) as error:
                _log.warning("a prepared transaction waits for recovery", extra={"id": id_, "error": repr(error)})
                await connection.invalidate()
                ended = False
        return ended

    async def recover(self) -> None:
        """Ends what others began and did not end: by the decision if there is one, and else by giving it up.

        Raises:
            ConnectionError: a database cannot be reached; what it holds waits.
        """
        async with self._db.connection() as own:
            decided = await prepared.decisions(own)  # first: all of theirs is prepared by now, or ended
        left: set[str] = set()
        for name, db in self._others.items():
            async with db.connection() as connection:
                for found in await prepared.all_of(connection):
                    id_ = self._id_of(found.gid, name)
                    if id_ is None or found.seconds < GRACE_SECONDS:
                        left.add(id_ or "")
                        self._show(found, name)
                        continue
                    commit = await self._verdict(id_)
                    await prepared.end(connection, found.gid, commit=commit)
                    _log.warning("a prepared transaction was ended", extra={"gid": found.gid, "commit": commit})
        await self._forget(decided, left)

    async def _verdict(self, id_: str) -> bool:
        async with self._db.transaction() as own:
            return await prepared.decide(own, id_, list(self._others), commit=False)

    async def _forget(self, decided: list[prepared.Decision], left: set[str]) -> None:
        over = [d.id for d in decided if (d.committed or d.old) and d.id not in left and self._knows(d)]
        if over:
            async with self._db.transaction() as own:
                await prepared.forget(own, over)

    def _knows(self, decision: prepared.Decision) -> bool:
        """Whether all of its databases were asked; one that the service has no more may still hold something."""
        unknown = set(decision.participants) - self._others.keys()
        if unknown and decision.committed:
            _log.error("a decision is kept for databases that are not here", extra={"unknown": sorted(unknown)})
        return not unknown

    def _id_of(self, gid: str, name: str) -> str | None:
        """The id, if it is one of this service's for that database."""
        id_, _, of = gid.removeprefix(self._prefix).partition("/")
        return id_ if gid.startswith(self._prefix) and of == name else None

    def _show(self, found: prepared.Prepared, name: str) -> None:
        if found.seconds > ORPHAN_SECONDS:
            facts = {"gid": found.gid, "database": name, "seconds": round(found.seconds)}
            _log.error("a prepared transaction that nobody here ends: it holds its locks", extra=facts)


@asynccontextmanager
async def two_phase(db: Database, **others: Database) -> AsyncIterator[TwoPhase]:
    """Gives the coordinator of changes to `db` and the others; ends what was left in doubt, now and again and again.

    Raises:
        RuntimeError: one of the others does not allow it.
    """
    for name, other in others.items():
        async with other.connection() as connection:
            if not await prepared.allowed(connection):
                raise RuntimeError(f"{name} allows no prepared transactions: set max_prepared_transactions there")
    coordinator = TwoPhase(db, others)
    task = asyncio.create_task(_recover(coordinator), name="two-phase recovery")
    try:
        yield coordinator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _recover(coordinator: TwoPhase) -> None:
    while True:
        try:
            await coordinator.recover()
        except Exception as error:  # noqa: BLE001 - the next round may find the database again
            _log.warning("what is in doubt waits", extra={"error": repr(error)})
        await asyncio.sleep(RECOVERED_EACH * (0.5 + random.random()))  # noqa: S311 - spreads the instances


@asynccontextmanager
async def _begun(db: Database) -> AsyncIterator[AsyncConnection]:
    async with db.connection() as connection:
        try:
            await prepared.begin(connection)
        except BaseException:
            await connection.invalidate()
            raise
        yield connection
