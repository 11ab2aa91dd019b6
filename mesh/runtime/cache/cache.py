"""`Cache`: what was loaded before, from memory, from other instances, or loaded once for all who ask."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from weakref import WeakSet

from mesh.runtime import auth, unit
from mesh.runtime.auth import CallInfo
from mesh.runtime.cache import codecs, failures, keys, policies
from mesh.runtime.cache.clearing import Clearing, Heard
from mesh.runtime.cache.entry import Entry
from mesh.runtime.cache.keys import Key
from mesh.runtime.cache.statistics import Statistics

if TYPE_CHECKING:
    from mesh.runtime.cache.tier import Tier

T = TypeVar("T")
Load = Callable[[], Awaitable[T]]
Whose = Literal["everybody", "user"]

JITTER = 0.1  # of the ttl: what was loaded together is not old together
RETRY_SECONDS = 1.0  # after an old value could not be loaded anew
_NAME = re.compile(r"[a-z][a-z0-9-]*")
# A load for everybody knows the request that it is logged under, and nothing of who asks; a user's knows the user.
_OF_USER = (auth.USER_HEADER, auth.SCOPES_HEADER, auth.AUTHORIZATION_HEADER)
_CANARY, _FAULT = auth.CANARY_HEADER, auth.FAULT_HEADER
_AROUND = (_CANARY, _FAULT)  # what is asked of all that the request reaches

_log = logging.getLogger("mesh.runtime.cache")
_made: WeakSet[Cache[Any]] = WeakSet()


def caches() -> list[Cache[Any]]:
    """All caches of this process, by name."""
    return sorted(_made, key=lambda cache: cache.name)


class Cache(Generic[T]):
    """Values of one type by key: `await cache.get(key, load)`.

    Args:
        name: of the cache, in the service; lower-case letters, digits and "-".
        kind: a message class, or for plain data a dataclass, a NamedTuple, or a container such as `list[Term]`.
        whose: "everybody": a load knows no user, so that no user's rows come into it. "user": each user has values of
            their own, and only who is signed in may ask.
        ttl: how long a value is given, seconds; less up to a tenth, by chance.
        stale: how long after that it is given still, while a new one is loaded.
        missing: how long it is remembered that a load failed with NOT_FOUND, seconds.
        max_bytes: what all of it takes in this process.
        policy: which values stay: "arc" learns from what is asked, "lru" keeps the latest, "lfu" the most wanted.
        shared: whether instances share what they load: for loads that cost more than a call. Needs `events` in the
            values. While that tier is away or slow, each has its own.
        seconds: what one load may take.
        cleared_by: events that make values old, by `on`.

    Raises:
        ValueError: a name or a number makes no sense.
        TypeError: `kind` cannot be kept.
    """

    def __init__(
        self,
        name: str,
        kind: type[T],
        *,
        whose: Whose,
        ttl: float,
        stale: float = 0.0,
        missing: float = 0.0,
        max_bytes: int = 8 << 20,
        policy: policies.PolicyName = "arc",
        shared: bool = False,
        seconds: float = 5.0,
        cleared_by: Iterable[Clearing[Any]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a cache: use lower-case letters, digits and '-'")
        if ttl <= 0 or stale < 0 or missing < 0 or max_bytes < 0 or seconds <= 0:
            raise ValueError(f"cache {name}: ttl and seconds must be above 0; stale, missing and max_bytes at least 0")
        self.name, self.kind, self.shared = name, kind, shared
        self.cleared_by = tuple(cleared_by)
        self.heard = Heard(self.cleared_by, clock)
        self._of_user = whose == "user"
        self._ttl, self._stale, self._missing, self._seconds = ttl, stale, missing, seconds
        self._codec = codecs.of(kind)
        self._entries = policies.of(policy, max_bytes)
        self._entry_bytes, self._max_bytes = policies.ENTRY_BYTES[policy], max_bytes
        self._flights: dict[tuple[Key, str], Flight] = {}
        self._storing: set[asyncio.Task[None]] = set()
        self._tier: Tier | None = None
        self._clock = clock
        self.count = Statistics()
        _made.add(self)

    async def get(self, key: Key, load: Load[T]) -> T:
        """The value of `key`, a copy of the caller's own; what `load` returns if it is not known or too old.

        However many ask at once, one load is made for all of them; who gives up leaves it to the others. It sees no
        transaction of the caller.

        Raises:
            ServiceError: UNAUTHENTICATED, values are users' own and there is none.
            Exception: what `load` raised. It is not remembered, unless it says NOT_FOUND.
        """
        call = auth.current.get()
        scope = ""
        if self._of_user:
            key, scope = (auth.user(), key), call.headers.get(auth.SCOPES_HEADER, "")
        if _CANARY in call.headers or _FAULT in call.headers:
            return await self._around(call, load)
        entry = self._entries.get(key)
        if entry is not None and entry.scope == scope:
            now = self._clock()
            if now < entry.fresh:
                if entry.missing is None:
                    self.count.hits += 1
                else:
                    self.count.negative += 1
                return self._value(entry)
            if now < entry.until:
                self.count.stale += 1
                if (key, scope) not in self._flights:
                    self._begin(Flight(key, scope, background=True), call, load)
                return self._value(entry)
        self.count.misses += 1
        return self._value(await self._joined(key, scope, call, load))

    async def forget(self, key: Key) -> None:
        """Forgets a value (of the current user, if values are users' own), also in the other instances if they share.

        One that is not connected at that moment has it until its time is over; an event of `cleared_by` reaches all.

        Raises:
            ServiceError: as `get`.
        """
        if self._of_user:
            key = (auth.user(), key)
        self.drop(key)
        if self._tier:
            await self._tier.forget(key)

    def statistics(self) -> Statistics:
        """What was counted until now."""
        entries = self._entries
        return replace(
            self.count,
            evictions=entries.evictions,
            entries=len(entries),
            bytes=entries.bytes,
            max_bytes=self._max_bytes,
        )

    # --- For `link` -------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> bytes:
        """Of the type and whose values they are."""
        return self._codec.fingerprint + (b"user" if self._of_user else b"everybody")

    def share(self, tier: Tier | None) -> None:
        """From now on what is not in memory is looked for there."""
        self._tier = tier

    def clear_for(self, place: int, number: int, key: Key | None) -> None:
        """The event at `place` of `cleared_by` was heard, as the `number`th of its stream; about one key or all.

        Raises:
            TypeError: it is no key of this cache.
        """
        if key is None:
            self.heard.note(place, number, None)
            self._drop_all()
            return
        if self._of_user and not (isinstance(key, tuple) and len(key) == 2):
            raise TypeError(f"cache {self.name} holds users' own values: its keys are (user, key), not {key!r}")
        self.heard.note(place, number, keys.digest(key))
        self.drop(key)

    def drop(self, key: Key) -> None:
        """Forgets a key, and what is being loaded for it, in this process."""
        self.count.cleared += 1
        self._entries.pop(key)
        for flight in [flight for flight in self._flights.values() if flight.key == key]:
            flight.void = True
            self._landed(flight)

    # --- Loading ----------------------------------------------------------------------------------------------------

    async def _joined(self, key: Key, scope: str, call: CallInfo, load: Load[T]) -> Entry:
        """What the load under way for the key brings, or a new one; cancelled with the last who waits for it."""
        flight = self._flights.get((key, scope))
        if flight is None:
            flight = self._begin(Flight(key, scope), call, load)
        else:
            self.count.joined += 1
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.background and not flight.task.done():
                self._landed(flight)
                flight.task.cancel()

    def _begin(self, flight: Flight, call: CallInfo, load: Load[T]) -> Flight:
        self._flights[flight.key, flight.scope] = flight
        flight.task = asyncio.create_task(self._fill(flight, call, load), name=f"cache {self.name}")
        flight.task.add_done_callback(_heed)
        return flight

    def _landed(self, flight: Flight) -> None:
        if self._flights.get((flight.key, flight.scope)) is flight:
            del self._flights[flight.key, flight.scope]

    async def _fill(self, flight: Flight, call: CallInfo, load: Load[T]) -> Entry:
        """Finds or loads a value, and keeps it unless it was forgotten meanwhile."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        auth.current.set(self._call(call, deadline))
        unit.leave()
        try:
            async with asyncio.timeout_at(deadline):
                entry = await self._from_others(flight) or await self._loaded(flight, load)
            if not flight.void:
                self._keep(flight.key, entry)
            return entry
        except Exception as error:
            if not flight.void:
                self._not_loaded(flight, error)
            raise
        finally:
            self._landed(flight)

    async def _from_others(self, flight: Flight) -> Entry | None:
        if self._tier is None:
            return None
        found = await self._tier.get(keys.digest(flight.key), flight.scope)
        flight.revision = found.revision if found else None
        if found is None or found.payload is None:
            return None
        try:
            self._codec.decode(found.payload)
        except Exception:  # noqa: BLE001 - whatever it is, it is no value of ours
            self.count.shared_errors += 1
            return None
        self.count.shared_hits += 1
        return self._entry(found.payload, min(found.seconds, self._ttl), flight.scope)

    async def _loaded(self, flight: Flight, load: Load[T]) -> Entry:
        digest = keys.digest(flight.key)
        heard = self.heard.now(digest)
        seconds = self.heard.longest(digest, self._ttl * (1 - JITTER * random.random()))  # noqa: S311 - no secret
        self.count.loads += 1
        began = time.perf_counter()
        try:
            payload = self._codec.encode(await load())
        except Exception as error:
            missing = failures.not_found(error)
            if missing is None or not self._missing:
                self.count.load_errors += missing is None
                raise
            return self._entry(b"", min(seconds, self._missing), flight.scope, missing)
        finally:
            self.count.load_seconds += time.perf_counter() - began
        if self._tier and flight.revision is not None and not flight.void:
            put = self._tier.put(digest, flight.scope, payload, seconds=seconds, heard=heard, revision=flight.revision)
            storing = asyncio.create_task(put)
            self._storing.add(storing)  # a task that nobody holds may vanish
            storing.add_done_callback(self._storing.discard)
        return self._entry(payload, seconds, flight.scope)

    async def _around(self, call: CallInfo, load: Load[T]) -> T:
        """For a call that asks for a canary or a fault: what it gets is for it alone, and from where it asks."""
        self.count.around += 1
        token = auth.current.set(self._call(call, call.deadline, *_AROUND))
        try:
            return await load()
        finally:
            auth.current.reset(token)

    def _call(self, call: CallInfo, deadline: float, *more: str) -> CallInfo:
        """What a load knows of the call for which it is made."""
        names = (*auth.OF_REQUEST, *more, *(_OF_USER if self._of_user else ()))
        headers = {name: call.headers[name] for name in names if name in call.headers}
        return CallInfo(deadline, headers, bounded=True, method=call.method)

    # --- Entries ----------------------------------------------------------------------------------------------------

    def _entry(self, payload: bytes, seconds: float, scope: str, missing: failures.NotFound | None = None) -> Entry:
        fresh = self._clock() + seconds
        return Entry(payload, fresh, fresh if missing else fresh + self._stale, scope, missing)

    def _keep(self, key: Key, entry: Entry) -> None:
        entry.size = self._entry_bytes + keys.size(key) + entry.own_size()
        if not self._entries.put(key, entry):
            self.count.refused += 1

    def _not_loaded(self, flight: Flight, error: Exception) -> None:
        """An old value stays while it may, and is not loaded again at once; of what does not exist nothing stays."""
        if failures.not_found(error):
            self._entries.pop(flight.key)
        elif flight.background:
            _log.warning("cache %s: an old value stays", self.name, extra={"error": repr(error)})
            if (entry := self._entries.get(flight.key)) is not None:
                entry.fresh = min(self._clock() + RETRY_SECONDS, entry.until)

    def _drop_all(self) -> None:
        self.count.cleared += 1
        self._entries.clear()
        for flight in self._flights.values():
            flight.void = True
        self._flights.clear()

    def _value(self, entry: Entry) -> T:
        if entry.missing is not None:
            raise failures.again(entry.missing)
        return self._codec.decode(entry.payload)


class Flight:
    """One load, and how many wait for it. Void, it is for those alone: what it brings may be old already.

    `revision` is what the shared tier had for the key before, None if it did not say.
    """

    __slots__ = ("background", "key", "revision", "scope", "task", "void", "waiting")

    def __init__(self, key: Key, scope: str, *, background: bool = False) -> None:
        self.key, self.scope, self.background = key, scope, background
        self.task: asyncio.Task[Entry]
        self.revision: int | None = None
        self.waiting = 0
        self.void = False


def _heed(task: asyncio.Task[Entry]) -> None:
    """Who waits is told of a failure; one that nobody waits for is logged where it happens."""
    if not task.cancelled():
        task.exception()
