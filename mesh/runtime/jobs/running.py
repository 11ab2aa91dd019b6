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
from mesh.runtime.crypto.datakeys import is_dumped
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


class Again(Exception):  # noqa: N818 - no error: the work says so itself
    """The attempt ends here and is no failure; the next comes in so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


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
        self._user = row.user
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
        if self._connection:
            stop = await self._report(self._connection, progress)
        else:
            async with self._db.connection() as connection:
                stop = await self._report(connection, progress)
        _go_on(stop)
        self._progress = _packed(progress).SerializeToString() if progress is not None else self._progress

    @asynccontextmanager
    async def transaction(self, *, cancellable: bool = True) -> AsyncIterator[AsyncConnection]:
        """A transaction of this attempt alone: if the job goes on elsewhere meanwhile, nothing of it is kept.

        Args:
            cancellable: False for what is to be done although the job shall stop.

        Raises:
            Cancelled: it shall stop.
            Superseded: it goes on elsewhere.
        """
        async with self._db.transaction() as connection:
            stop = await store.lock(connection, self.id, self.attempt)
            _go_on(stop if cancellable or stop is None else False)
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
        await self._end(self._connection, store.SUCCEEDED, response)

    async def _report(self, connection: AsyncConnection, progress: Message | None) -> bool | None:
        return await store.report(
            connection, self.id, self.attempt, await self._stored(connection, "progress", progress)
        )

    async def _stored(self, connection: AsyncConnection, column: str, message: Message | None) -> bytes | None:
        if message is None:
            return None
        return await self._db.keys.dump(connection, _packed(message), store.place_of(self.id, column), self._user)

    async def fail(self, status: status_pb2.Status, detail: str) -> None:
        """Ends the job as failed, or as cancelled if the status says so, as a part of the open `transaction`.

        Raises:
            RuntimeError, Superseded: as `succeed`.
        """
        if not self._connection:
            raise RuntimeError("a job fails inside `async with job.transaction()`; else raise")
        state = store.CANCELLED if status.code == code_pb2.CANCELLED else store.FAILED
        await self._end(self._connection, state, error=status.SerializeToString(), detail=detail)

    async def _end(
        self, connection: AsyncConnection, state: str, response: Message | None = None, **outcome: bytes | str | None
    ) -> None:
        outcome["response"] = await self._stored(connection, "response", response)
        if not await store.end(connection, self.id, self.attempt, state, **outcome):  # type: ignore[arg-type]
            raise Superseded
        self.ended = True


def _go_on(stop: bool | None) -> None:
    if stop is None:
        raise Superseded
    if stop:
        raise Cancelled


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


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
        if row.cancel_requested and not handler.kind.undoes:
            await self._end(job, store.CANCELLED, error=CANCELLED.SerializeToString())
            return None
        if row.failures >= handler.kind.tries:
            died = f"its process died in each of {row.failures} attempts"
            await self._fail(job, row, errors.to_status(errors.internal(), ""), died)
            return None
        try:
            with traces.span(f"job {row.kind}", traces.CONSUMER, job=job.id, attempt=job.attempt):
                async with asyncio.timeout(handler.kind.seconds):
                    response = await handler.run(handler.kind.message.FromString(await self._argument(job, row)), job)
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
        await self._end(job, store.SUCCEEDED, response)
        _ATTEMPTS.add(kind=row.kind, outcome="succeeded")
        return None

    async def _argument(self, job: Job, row: Row) -> bytes:
        if is_dumped(row.argument) or is_dumped(row.progress or b""):
            async with self._db.connection() as connection:
                row = await store.decrypted(connection, row)
            job._progress = row.progress
        return row.argument

    async def _failed(self, handler: Handler, job: Job, row: Row, error: Exception) -> timedelta | None:
        if isinstance(error, Again):
            return await self._release(job, timedelta(seconds=error.seconds), None)
        status, detail = told(error)
        failures = row.failures + 1
        if not may_help(status) or failures >= handler.kind.tries:
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

    async def _end(self, job: Job, state: str, response: Message | None = None, **outcome: bytes | str | None) -> None:
        if not job.ended:
            async with self._db.connection() as connection:
                await job._end(connection, state, response, **outcome)

    async def _release(self, job: Job, delay: timedelta, failure: tuple[bytes, str] | None) -> timedelta:
        async with self._db.connection() as connection:
            await store.release(connection, job.id, job.attempt, delay, failure)
        return delay


def told(error: Exception) -> tuple[status_pb2.Status, str]:
    """A failure as a user may see it, and as whoever operates the service does."""
    known = errors.from_exception(error) or errors.internal()
    request_id = auth.current.get().request_id
    status = errors.to_status(known, request_id) if isinstance(known, errors.ServiceError) else known
    return status, f"{type(error).__name__}: {error}"[:_DETAIL_CHARACTERS].replace("\0", "")


def may_help(status: status_pb2.Status) -> bool:
    """Whether trying again may help."""
    return status.code in _AGAIN


def _call(row: Row, seconds: float) -> auth.CallInfo:
    """The job as if it were a call of the user who asked for it: logs and outgoing calls carry on its ids."""
    headers: dict[str, str] = json.loads(row.headers)
    return auth.CallInfo(time.monotonic() + seconds, headers, True, f"job {row.kind} {row.id}")
