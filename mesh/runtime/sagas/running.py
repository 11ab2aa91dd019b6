"""Runs a saga as the work of a job: forward step by step, or back. Each step is noted before it is begun, and after."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from google.rpc import status_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth, errors
from mesh.runtime.backoff import Backoff
from mesh.runtime.db import keys_of
from mesh.runtime.jobs import Cancelled, Job, Superseded
from mesh.runtime.jobs.kinds import Kind, marking
from mesh.runtime.jobs.running import CANCELLED, Again, may_help, told
from mesh.runtime.sagas import store
from mesh.runtime.sagas.steps import Action, Argument, Call, Step, problem

_ALWAYS = 2**31 - 1  # the steps count their tries themselves
_BACKOFF = Backoff(first=1.0, limit=60.0)  # while its own database fails
_log = logging.getLogger("mesh.runtime.sagas")

Owner = TypeVar("Owner")


def saga(
    message: type[Argument], *, seconds: float = 600.0, limit: int = 0
) -> Callable[
    [Callable[[Owner], Sequence[Step[Argument]]]], Callable[[Owner, Argument, Job], Awaitable[Message | None]]
]:
    """Marks the method that lists the steps of the saga that such a message starts; `jobs.work` takes its object.

    The steps are done in their order. When one fails for good, those before it are undone in the reverse order, and the
    saga ends as a failed job with that failure. When all are done it succeeds with what the last one returned.

    Args:
        message: the argument, the same for every step.
        seconds: how long one attempt may take before it is made anew from the last note.
        limit: how many such sagas run at once over all instances; 0 for as many as there are workers.
    """
    kind = Kind(message, _ALWAYS, _BACKOFF, limit, seconds, "", undoes=True)

    def mark(steps: Callable[[Owner], Sequence[Step[Argument]]]) -> Any:
        @wraps(steps)
        async def run(self: Owner, argument: Argument, job: Job) -> None:
            try:
                await Running(tuple(steps(self)), argument, job, kind.name).run()
            except (Again, Superseded):
                raise
            except Exception as error:
                if may_help(told(error)[0]):
                    raise
                raise RuntimeError("a saga is not left half done: it is tried again") from error

        return marking(kind)(run)

    return mark


class Running(Generic[Argument]):
    """One attempt at a saga."""

    def __init__(self, steps: tuple[Step[Argument], ...], argument: Argument, job: Job, kind: str) -> None:
        self._steps, self._argument, self._job, self._kind = steps, argument, job, kind
        self._state = store.RUNNING
        self._error, self._detail = status_pb2.Status(), ""
        self._states: dict[int, str] = {}  # of the steps that were begun
        self._responses: dict[str, bytes] = {}

    async def run(self) -> None:
        """Goes on from where the log says that it is, to an end of the job.

        Raises:
            Again: a step is to be tried once more, later.
            Superseded: it goes on elsewhere.
        """
        async with self._job.transaction(cancellable=False) as connection:
            row, log = await store.open_(connection, self._job.id, self._kind)
            self._responses = {step.name: await self._read(connection, step) for step in log.values() if step.response}
        self._state, self._detail = row.state, row.detail or ""
        self._error = status_pb2.Status.FromString(row.error or b"")
        self._states = {number: step.state for number, step in log.items()}
        if found := problem(self._steps, log):
            await self._park(errors.to_status(errors.internal(), ""), found)
            return
        if self._state == store.RUNNING:
            try:
                await self._forward()
            except Cancelled:
                await self._turn(CANCELLED, "somebody asked it to stop")
        if self._state != store.RUNNING and not self._job.ended:
            await self._back()

    # --- forward ------------------------------------------------------------------------------------------------------

    async def _forward(self) -> None:
        for number, step in enumerate(self._steps):
            if self._states.get(number) != store.DONE:
                await self._do(number, step)
            if self._states[number] != store.DONE:
                return
        if not self._job.ended:  # the last step was a change of the own database
            async with self._job.transaction(cancellable=False) as connection:
                await self._succeed(connection, None)

    async def _do(self, number: int, step: Step[Argument]) -> None:
        tries = await self._begin(number, step, store.DOING, cancellable=not self._past_pivot())
        cancellable = not self._past_pivot()
        call = Call(self._job, number, step.name, self._responses, cancellable=cancellable)
        response: Message | None = None
        try:
            if tries > step.tries:
                raise RuntimeError(f"its process died in each of {step.tries} tries")
            response = await self._make(step, step.do, call)
        except (Cancelled, Superseded):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the step has failed
            if not call.recorded:
                await self._not_done(number, step, tries, error)
                return
            self._late(step, error)
        if not call.recorded:
            async with self._job.transaction(cancellable=cancellable) as connection:
                await self._done(connection, number, step, response)
        self._states[number] = store.DONE

    async def _done(
        self, connection: AsyncConnection, number: int, step: Step[Argument], answer: Message | None
    ) -> None:
        place, stored = store.place_of(self._job.id, number), b""
        if answer is not None:
            stored = await keys_of(connection).dump(connection, answer, place)
        await store.note(connection, self._job.id, number, store.DONE, response=stored)
        self._responses[step.name] = answer.SerializeToString() if answer is not None else b""
        if number == len(self._steps) - 1:
            await self._succeed(connection, answer)

    async def _read(self, connection: AsyncConnection, step: store.StepRow) -> bytes:
        return await keys_of(connection).load(
            connection, step.response or b"", store.place_of(self._job.id, step.number)
        )

    async def _succeed(self, connection: AsyncConnection, response: Message | None) -> None:
        await store.turn(connection, self._job.id, store.SUCCEEDED)
        await self._job.succeed(response)

    async def _not_done(self, number: int, step: Step[Argument], tries: int, error: Exception) -> None:
        status, detail = told(error)
        facts = {"saga": self._job.id, "step": step.name, "tries": tries, "error": detail}
        if may_help(status) and tries < step.tries:
            _log.warning("a step failed: trying again", extra=facts)
            async with self._job.transaction(cancellable=not self._past_pivot()) as connection:
                await store.note(connection, self._job.id, number, store.DOING, detail=detail)
            raise Again(step.backoff.seconds(tries))
        _log.warning("a step has failed", extra=facts, exc_info=error if may_help(status) else None)
        if tries == 1 and not may_help(status):  # else an earlier try, or this one, may have changed something
            self._states[number] = store.REFUSED
        if self._past_pivot():
            await self._park(status, detail, number)
            return
        await self._turn(status, f"{step.name}: {detail}", number)

    def _past_pivot(self) -> bool:
        begun = (number for number, state in self._states.items() if state != store.REFUSED)
        return any(self._steps[number].pivot for number in begun)

    async def _turn(self, status: status_pb2.Status, detail: str, number: int | None = None) -> None:
        async with self._job.transaction(cancellable=False) as connection:
            if number is not None:
                await store.note(connection, self._job.id, number, self._states[number], detail=detail)
            await store.turn(connection, self._job.id, store.COMPENSATING, status.SerializeToString(), detail)
        self._state, self._error, self._detail = store.COMPENSATING, status, detail

    # --- back ---------------------------------------------------------------------------------------------------------

    async def _back(self) -> None:
        for number in sorted(self._states, reverse=True):
            if self._states[number] not in (store.REFUSED, store.UNDONE) and not await self._undo(number):
                return
        async with self._job.transaction(cancellable=False) as connection:
            await store.turn(connection, self._job.id, store.COMPENSATED)
            await self._job.fail(self._error, self._detail)

    async def _undo(self, number: int) -> bool:
        """Undoes a step; False if that was left to a human."""
        step = self._steps[number]
        if step.undo is None:
            return True
        tries = await self._begin(number, step, store.UNDOING, cancellable=False)
        call = Call(self._job, number, step.name, self._responses, undo=True, cancellable=False)
        try:
            if tries > step.undo_tries:
                raise RuntimeError(f"its process died in each of {step.undo_tries} tries")
            await self._make(step, step.undo, call)
        except Superseded:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the step is not undone
            if not call.recorded:
                return await self._not_undone(number, step, tries, error)
            self._late(step, error)
        if not call.recorded:
            async with self._job.transaction(cancellable=False) as connection:
                await store.note(connection, self._job.id, number, store.UNDONE)
        return True

    async def _not_undone(self, number: int, step: Step[Argument], tries: int, error: Exception) -> bool:
        status, detail = told(error)
        facts = {"saga": self._job.id, "step": step.name, "tries": tries, "error": detail}
        _log.error("a step could not be undone", extra=facts, exc_info=error)
        if tries >= step.undo_tries:
            await self._park(status, f"undoing {step.name}: {detail}", number)
            return False
        async with self._job.transaction(cancellable=False) as connection:
            await store.note(connection, self._job.id, number, store.UNDOING, detail=detail)
        raise Again(step.backoff.seconds(tries))

    # --- both ---------------------------------------------------------------------------------------------------------

    async def _begin(self, number: int, step: Step[Argument], state: str, *, cancellable: bool) -> int:
        async with self._job.transaction(cancellable=cancellable) as connection:
            tries = await store.begin(connection, self._job.id, number, step.name, state)
        self._states[number] = state
        return tries

    async def _make(self, step: Step[Argument], action: Action[Argument], call: Call) -> Message | None:
        """Bounds the time of what the step calls."""
        outer = auth.current.get()
        deadline = min(time.monotonic() + step.seconds, outer.deadline)
        token = auth.current.set(replace(outer, deadline=deadline, method=f"{outer.method} {step.name}"))
        try:
            async with asyncio.timeout(step.seconds):
                return await action(self._argument, call)
        finally:
            auth.current.reset(token)

    def _late(self, step: Step[Argument], error: Exception) -> None:
        """Failed behind its transaction, which stands."""
        _log.error(
            "a step failed after its change was kept", extra={"saga": self._job.id, "step": step.name}, exc_info=error
        )

    async def _park(self, status: status_pb2.Status, detail: str, number: int | None = None) -> None:
        _log.error("a saga waits for a human: see `mesh sagas`", extra={"saga": self._job.id, "detail": detail})
        async with self._job.transaction(cancellable=False) as connection:
            if number is not None:
                await store.note(connection, self._job.id, number, self._states[number], detail=detail)
            await store.park(connection, self._job.id)
            await self._job.fail(status, detail)
