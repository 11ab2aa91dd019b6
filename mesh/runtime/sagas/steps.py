"""The steps of a saga, and what each is given when it is done or undone."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime.backoff import Backoff
from mesh.runtime.jobs import Job
from mesh.runtime.sagas import store

_NAMESPACE = uuid.UUID("6e6f7572-6973-5000-8000-736167617300")  # any constant
_BACKOFF = Backoff(first=1.0, limit=60.0)

Argument = TypeVar("Argument", bound=Message)
Response = TypeVar("Response", bound=Message)
Action = Callable[[Argument, "Call"], Awaitable[Message | None]]


@dataclass(frozen=True)
class Step(Generic[Argument]):
    """One change of one service, and how it is taken back; made by `step`."""

    name: str
    do: Action[Argument]
    undo: Action[Argument] | None
    pivot: bool
    tries: int
    undo_tries: int
    backoff: Backoff
    seconds: float


def step(
    do: Action[Argument],
    undo: Action[Argument] | None = None,
    *,
    pivot: bool = False,
    tries: int = 10,
    undo_tries: int = 20,
    backoff: Backoff = _BACKOFF,
    seconds: float = 30.0,
    name: str = "",
) -> Step[Argument]:
    """A step: `do` and `undo` are `async def method(self, argument, call: sagas.Call) -> Message | None`.

    Both are made again after a crash: a call to another service has `request_id=call.request_id`, a change in the own
    database is made in `call.transaction()`.

    Args:
        do: changes something. What the other service refuses for good (INVALID_ARGUMENT, FAILED_PRECONDITION, ...) ends
            the saga's way forward at once; what may have been done all the same is undone like what was.
        undo: takes it back; None if there is nothing to take back.
        pivot: there is no way back from here: once it is begun, the steps behind it are tried until they succeed, and
            otherwise a human decides.
        tries: how often `do` is tried at most.
        undo_tries: how often `undo` is; then the saga is parked for a human (`mesh sagas`).
        backoff: the waits in between.
        seconds: how long one try may take.
        name: in the log; that of `do` if not given. It stays the same when code is renamed while sagas run.
    """
    return Step(name or do.__name__, do, undo, pivot, tries, undo_tries, backoff, seconds)


class Call:
    """One try to do or undo one step.

    Attributes:
        saga: the id, the same for all steps.
        request_id: for the call to the other service: the same in every try to do this step, another for undoing it.
        undoes: undoing, the `request_id` with which the step was done; see `undoing`.
    """

    def __init__(
        self,
        job: Job,
        number: int,
        name: str,
        responses: Mapping[str, bytes],
        *,
        undo: bool = False,
        cancellable: bool,
    ) -> None:
        self.saga = job.id
        self.request_id = _request_id(job.id, name, "undo" if undo else "do")
        self.undoes = _request_id(job.id, name, "do") if undo else ""
        self.recorded = False
        self._job, self._number, self._responses = job, number, responses
        self._outcome = store.UNDONE if undo else store.DONE
        self._cancellable = cancellable

    def response(self, name: str, kind: type[Response]) -> Response:
        """What `do` of the step of that name returned; an empty message if it was not done, or returned none."""
        return kind.FromString(self._responses.get(name, b""))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction in the own database that also notes the step as done, or undone: it happens once.

        Raises:
            Superseded: another process goes on with the saga; let it pass.
        """
        async with self._job.transaction(cancellable=self._cancellable) as connection:
            yield connection
            await store.note(connection, self.saga, self._number, self._outcome)
        self.recorded = True


def _request_id(saga: str, name: str, what: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{saga}/{name}/{what}"))


def problem(steps: tuple[Step[Any], ...], log: Mapping[int, store.StepRow]) -> str:
    """Why a saga with this log cannot go on by these steps; "" if it can."""
    names = [s.name for s in steps]
    if len(set(names)) < len(names):
        return f"two of its steps have one name: {', '.join(names)}"
    for number, row in log.items():
        if number >= len(names) or names[number] != row.name:
            return f"its step {number + 1} was {row.name!r} when it began, and the steps are now {', '.join(names)}"
    return ""
