"""How a method of a service says that it takes events."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime.backoff import Backoff
from mesh.runtime.events import subjects

_BACKOFF = Backoff()
_MARK = "nourish_subscription"
_GROUP = re.compile(r"[a-z][a-z0-9-]*")

E = TypeVar("E", bound=Message)
S = TypeVar("S")
Handler = Callable[[S, E, AsyncConnection], Awaitable[None]]
Observer = Callable[[S, E], Awaitable[None]]


class Rejected(Exception):  # noqa: N818 - what a handler says of an event
    """Trying again cannot help: the event becomes a dead letter at once, with this as its reason."""


@dataclass(frozen=True)
class Subscription:
    """Which event, for whom, and what is done when a handler fails."""

    event: type[Message]
    group: str = ""
    every_instance: bool = False
    attempts: int = 10
    backoff: Backoff = _BACKOFF
    timeout: float = 30.0
    redeliver_after: float = 10.0

    @property
    def name(self) -> str:
        """The event's full name."""
        return str(self.event.DESCRIPTOR.full_name)


def subscribe(
    event: type[E],
    *,
    group: str = "",
    attempts: int = 10,
    backoff: Backoff | None = None,
    timeout: float = 30.0,
    redeliver_after: float = 10.0,
) -> Callable[[Handler[S, E]], Handler[S, E]]:
    """Marks the method that handles an event, once for all instances of the service.

    It gets the event and a connection in a transaction, which also notes that the event was handled: both happen or
    neither does. Events with one key come in the order in which they were published, each after the one before was
    handled or became a dead letter. While the database or a called service cannot be reached the event waits; that is
    no failed attempt.

    Args:
        event: its class; the contract marks it as an event.
        group: who handles it once; the service's name if not given. Lower-case letters, digits and "-".
        attempts: after so many failed ones it becomes a dead letter (`mesh events dead`).
        backoff: the waits in between.
        timeout: how long one attempt may take, seconds.
        redeliver_after: how long an event waits that was given to a process which died, seconds.

    Raises:
        TypeError, ValueError: it is no event, or the group's name is none.
    """
    if group and not _GROUP.fullmatch(group):
        raise ValueError(f"{group!r} is no name of a group: use lower-case letters, digits and '-'")
    subjects.descriptor_of(event)
    return _marking(Subscription(event, group, False, attempts, backoff or _BACKOFF, timeout, redeliver_after))


def observe(
    event: type[E], *, attempts: int = 5, backoff: Backoff | None = None, timeout: float = 30.0
) -> Callable[[Observer[S, E]], Observer[S, E]]:
    """Marks the method that gets an event in every instance: to drop what it keeps in memory.

    It gets what is published while the instance lives, and perhaps what was published just before; one that fails for
    the last time is logged and passed over.

    Raises:
        TypeError, ValueError: it is no event.
    """
    subjects.descriptor_of(event)
    return _marking(Subscription(event, "", True, attempts, backoff or _BACKOFF, timeout))


def marked(subscriber: object) -> Iterator[tuple[Subscription, Callable[..., Awaitable[None]]]]:
    """The methods of an object that take events."""
    for name, member in vars(type(subscriber)).items():
        if (subscription := getattr(member, _MARK, None)) is not None:
            yield subscription, getattr(subscriber, name)


def _marking(subscription: Subscription) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        setattr(function, _MARK, subscription)
        return function

    return mark
