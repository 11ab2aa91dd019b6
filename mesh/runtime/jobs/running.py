"""One attempt at a job: what the method that does it is given, and what becomes of its outcome."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth, errors
from mesh.runtime.db import Database
from mesh.runtime.jobs import store
from mesh.runtime.jobs.kinds import Handler
from mesh.runtime.jobs.store import Row
from mesh.runtime.telemetry import Tally, gauge, traces

CANCELLED = status_pb2.Status(code=code_pb2.CANCELLED, message="the operation was cancelled")
BUSY = timedelta(seconds=0.5)  # until it is looked at again whether another job with the same key still runs
_AT_ONCE = timedelta(0)
# Trying again may help where the caller did nothing wrong.
_AGAIN = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    )
)
_DETAIL_CHARACTERS = 2000
_ATTEMPTS = Tally("jobs_attempts_total", "Attempts at jobs, by what came of them.")
_log = logging.getLogger("mesh.runtime.jobs")

Progress = TypeVar("Progress", bound=Message)


class Cancelled(Exception):  # noqa: N818 - no error: somebody asked for it
    """Somebody asked the job to stop. Let it pass: what the open transaction did is undone, and the job ends."""


class Superseded(Exception):  # noqa: N818 - no error: the job goes on elsewhere
    """This process was taken for dead, and another goes on with the job. Let it pass."""


class Job:
    """The attempt that runs.

    Attributes:
        id: of the job, the same in every attempt: what the work makes may be named by it.
        attempt: 1 for the first.
    """

    def __init__(self, db: Database, row: Row) -> None:
        self.id = row.id
        self.attempt = row.attempt
        self.ended = False
        self._db = db
        self._progress = row.progress
        self._connection: AsyncConnection | None = None

    def progress(self, kind: type[Progress]) -> Progress:
        """What an attempt reported last, to go on from there; an empty message at the beginning."""
        last = kind()
        if self._progress:
            Any.FromString(self._progress).Unpack(last)
        return last

    async def report(self, progress: Message | None = None) -> None:
        """Says how far it is, which whoever follows the operation sees, and gives it the occasion to stop.

        Inside `transaction` it is a part of it: progress and what was done are kept both or neither.

        Raises:
            Cancelled: it shall stop.
            Superseded: it goes on elsewhere.
        """
        packed = _packed(progress)
        if self._connection:
            stop = await store.report(self._connection, self.id, self.attempt, packed)
        else:
            async with self._db.connection() as connection:
                stop = await store.report(connection, self.id, self.attempt, packed)
        _go_on(stop)
        self._progress = packed or self._progress

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction of this attempt alone: if the job goes on elsewhere meanwhile, nothing of it is kept.

        Raises:
            Cancelled: it shall stop.
            Superseded: it goes on elsewhere.
        """
        async with self._db.transaction() as connection:
            _go_on(await store.lock(connection, self.id, self.attempt))
            self._connection = connection
            try:
                yield connection
            finally:
                self._connection = None

    async def succeed(self, response: Message | None = None) -> None:
        """Ends the job as a part of the open `transaction`: what was done there happens once, whatever dies when.

        Without it a job ends after its method, and what the method did may be done again by another attempt.

        Raises:
            RuntimeError: no `transaction` is open.
            Superseded: it goes on elsewhere.
        """
        if not self._connection:
            raise RuntimeError("a job succeeds inside `async with job.transaction()`; else return the response")
        await self._end(self._connection, store.SUCCEEDED, response=_packed(response))

    async def _end(self, connection: AsyncConnection, state: str, **outcome: bytes | str | None) -> None:
        if not await store.end(connection, self.id, self.attempt, state, **outcome):  # type: ignore[arg-type]
            raise Superseded
        self.ended = True


def _go_on(stop: bool | None) -> None:
    if stop is None:
        raise Superseded
    if stop:
        raise Cancelled


def _packed(message: Message | None) -> bytes | None:
    if message is None:
        return None
    packed = Any()
    packed.Pack(message)
    return packed.SerializeToString()


class Attempts:
    """Makes attempts at the jobs of a process. What they answer is when to try again, None for not."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._tasks: set[asyncio.Task[timedelta | None]] = set()
        self._stopping = False
        gauge("jobs_running", "Jobs that run now.", lambda: len(self._tasks))

    async def make(self, handler: Handler, id_: str) -> timedelta | None:
        """Makes one attempt in a task of its own, which `stop` can end."""
        if self._stopping:
            return _AT_ONCE
        task = asyncio.create_task(self._make(handler, id_))
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._stopping and task.cancelled():  # before it had anything to hand back
                return _AT_ONCE
            raise
        finally:
            self._tasks.discard(task)

    def stop(self) -> None:
        """Interrupts the attempts that run; their jobs wait for another process."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()

    async def _make(self, handler: Handler, id_: str) -> timedelta | None:
        try:
            async with self._db.connection() as connection:  # each of these is one statement
                row = await store.start(connection, id_)
        except IntegrityError as error:
            if store.ALONE in str(error.orig):
                return BUSY
            raise
        if row is None:
            return None  # ended meanwhile, by a caller or by an attempt whose process then died
        token = auth.current.set(_call(row, handler.kind.seconds))
        job = Job(self._db, row)
        try:
            return await self._outcome(handler, job, row)
        except Superseded:
            _log.warning("the job goes on elsewhere", extra={"job": id_, "attempt": row.attempt})
            return None
        finally:
            auth.current.reset(token)

    async def _outcome(self, handler: Handler, job: Job, row: Row) -> timedelta | None:
        if row.cancel_requested:
            await self._end(job, store.CANCELLED, error=CANCELLED.SerializeToString())
            return None
        if row.failures >= handler.kind.tries:
            died = f"its process died in each of {row.failures} attempts"
            await self._fail(job, row, errors.to_status(errors.internal(), ""), died)
            return None
        try:
            with traces.span(f"job {row.kind}", traces.CONSUMER, job=job.id, attempt=job.attempt):
                async with asyncio.timeout(handler.kind.seconds):
                    response = await handler.run(handler.kind.message.FromString(row.argument), job)
        except Cancelled:
            await self._end(job, store.CANCELLED, error=CANCELLED.SerializeToString())
            return None
        except Superseded:
            raise
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return await self._release(job, _AT_ONCE, None)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job has failed
            return await self._failed(handler, job, row, error)
        await self._end(job, store.SUCCEEDED, response=_packed(response))
        _ATTEMPTS.add(kind=row.kind, outcome="succeeded")
        return None

    async def _failed(self, handler: Handler, job: Job, row: Row, error: Exception) -> timedelta | None:
        known = errors.from_exception(error) or errors.internal()
        request_id = auth.current.get().request_id
        status = errors.to_status(known, request_id) if isinstance(known, errors.ServiceError) else known
        detail = f"{type(error).__name__}: {error}"[:_DETAIL_CHARACTERS].replace("\0", "")
        failures = row.failures + 1
        if status.code not in _AGAIN or failures >= handler.kind.tries:
            await self._fail(job, row, status, detail, error)
            return None
        delay = timedelta(seconds=handler.kind.backoff.seconds(failures))
        facts = {"job": job.id, "attempt": job.attempt, "seconds": delay.total_seconds(), "error": detail}
        _log.warning("the attempt failed: trying again", extra=facts)
        _ATTEMPTS.add(kind=row.kind, outcome="again")
        return await self._release(job, delay, (status.SerializeToString(), detail))

    async def _fail(
        self, job: Job, row: Row, status: status_pb2.Status, detail: str, error: Exception | None = None
    ) -> None:
        facts = {"job": job.id, "kind": row.kind, "attempt": job.attempt, "detail": detail}
        _log.error("the job has failed", extra=facts, exc_info=error)
        _ATTEMPTS.add(kind=row.kind, outcome="failed")
        await self._end(job, store.FAILED, error=status.SerializeToString(), detail=detail)

    async def _end(self, job: Job, state: str, **outcome: bytes | str | None) -> None:
        if not job.ended:
            async with self._db.connection() as connection:
                await job._end(connection, state, **outcome)

    async def _release(self, job: Job, delay: timedelta, failure: tuple[bytes, str] | None) -> timedelta:
        async with self._db.connection() as connection:
            await store.release(connection, job.id, job.attempt, delay, failure)
        return delay


def _call(row: Row, seconds: float) -> auth.CallInfo:
    """The job as if it were a call of the user who asked for it: logs and outgoing calls carry on its ids."""
    headers: dict[str, str] = json.loads(row.headers)
    return auth.CallInfo(time.monotonic() + seconds, headers, True, f"job {row.kind} {row.id}")
