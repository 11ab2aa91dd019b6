"""Which events clear a cache, and what of them it has heard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from mesh.runtime.cache.keys import Key

E = TypeVar("E", bound=Message)

SLOTS = 1024  # an event for one key makes others of its slot be loaded once more
# An event reaches those that a load asks at another moment: what they answer until then may be old.
SETTLE_SECONDS = 2.0


@dataclass(frozen=True)
class Clearing(Generic[E]):
    """An event, and the key that it is about; without one it is about all."""

    event: type[E]
    key: Callable[[E], Key] | None = None


def on(event: type[E], key: Callable[[E], Key] | None = None) -> Clearing[E]:
    """What clears a cache: `on(FoodsImported)` all of it, `on(FoodChanged, lambda event: event.name)` one key.

    In a cache of users' own data the key is (user, key).

    Raises:
        TypeError, ValueError: it is no event.
    """
    from mesh.runtime.events import subjects  # noqa: PLC0415 - brings NATS, which no cache without events needs

    subjects.descriptor_of(event)
    return Clearing(event, key)


class Heard:
    """Of each event that clears a cache, the number in its stream that was heard last, by slots of keys.

    What a process loads, it marks with the numbers that it had heard when the load began. Whoever has heard a later
    one does not take it: a value that was loaded before the event is never read by whom the event has reached.
    """

    def __init__(self, clearings: Sequence[Clearing[Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self._numbers = [[0] * SLOTS for _ in clearings]
        self._settled = [0.0] * SLOTS
        self._clock = clock

    def note(self, place: int, number: int, digest: bytes | None) -> None:
        """The event at `place` was heard, for the key with that digest or for all."""
        numbers, settled = self._numbers[place], self._clock() + SETTLE_SECONDS
        for slot in range(SLOTS) if digest is None else (_slot(digest),):
            numbers[slot] = max(number, numbers[slot])
            self._settled[slot] = settled

    def now(self, digest: bytes) -> tuple[int, ...]:
        """What was heard so far that concerns a key."""
        slot = _slot(digest)
        return tuple(numbers[slot] for numbers in self._numbers)

    def longest(self, digest: bytes, seconds: float) -> float:
        """How long what is loaded now may be kept: not for `seconds` just after an event."""
        unsettled = bool(self._numbers) and self._clock() < self._settled[_slot(digest)]
        return min(seconds, SETTLE_SECONDS) if unsettled else seconds

    def allows(self, digest: bytes, then: tuple[int, ...]) -> bool:
        """Whether nothing that concerns the key was heard since `then`."""
        now = self.now(digest)
        return len(then) == len(now) and all(t >= n for t, n in zip(then, now, strict=True))


def _slot(digest: bytes) -> int:
    return int.from_bytes(digest[:4], "big") % SLOTS
