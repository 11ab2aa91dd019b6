"""Kinds of jobs: a message, the method that does what it asks, and how that may fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from mesh.runtime.backoff import Backoff

if TYPE_CHECKING:
    from mesh.runtime.jobs.running import Job

_MARK = "_nourish_job"
Argument = TypeVar("Argument", bound=Message)
Method = TypeVar("Method", bound=Callable[..., Awaitable[Message | None]])


@dataclass(frozen=True)
class Kind:
    """What `@job` says of a method."""

    message: type[Message]
    tries: int
    backoff: Backoff
    limit: int
    seconds: float
    cron: str
    undoes: bool = False  # its method sees to it itself that it was told to stop

    @property
    def name(self) -> str:
        """The full name of the message."""
        return self.message.DESCRIPTOR.full_name


@dataclass(frozen=True)
class Handler:
    """A kind, and the method of this process that does it."""

    kind: Kind
    run: Callable[[Any, Job], Awaitable[Message | None]]


def job(
    message: type[Message],
    *,
    tries: int = 5,
    backoff: Backoff = Backoff(first=1.0, limit=300.0),  # noqa: B008 - frozen
    limit: int = 0,
    seconds: float = 600.0,
    cron: str = "",
) -> Callable[[Method], Method]:
    """Marks `async def method(self, argument: message, job: Job) -> Message | None` as what is done for such a message.

    Args:
        message: of the argument. One method a message.
        tries: how often at most; then the job is failed, and kept with its reason. What the caller did wrong is not
            tried again: INVALID_ARGUMENT, NOT_FOUND and their like end the job at once.
        backoff: how long to wait in between.
        limit: how many of the kind run at once over all instances; 0 for as many as there are workers.
        seconds: how long one try may take.
        cron: enqueues an empty message at these times (UTC), once over all instances: "0 3 * * *".
    """
    return marking(Kind(message, tries, backoff, limit, seconds, cron))


def marking(kind: Kind) -> Callable[[Method], Method]:
    """Marks a method as what does the jobs of a kind."""

    def mark(method: Method) -> Method:
        setattr(method, _MARK, kind)
        return method

    return mark


def handlers_of(objects: tuple[object, ...]) -> dict[str, Handler]:
    """The marked methods of the objects, by the name of their kind.

    Raises:
        TypeError: two methods for one message, or none at all.
    """
    found: dict[str, Handler] = {}
    for owner in objects:
        for name in dir(type(owner)):
            kind = getattr(getattr(type(owner), name), _MARK, None)
            if kind is None:
                continue
            if kind.name in found:
                raise TypeError(f"{type(owner).__name__}.{name}: another method does {kind.name} already")
            found[kind.name] = Handler(kind, getattr(owner, name))
    if not found:
        raise TypeError("none of these objects has a method marked with @job")
    return found
