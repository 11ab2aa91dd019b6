"""What one cache has of the tier that instances share. Whatever is wrong there, it is as if nothing were stored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mesh.runtime.cache import keys
from mesh.runtime.cache.clearing import Heard
from mesh.runtime.cache.envelope import Envelope, EnvelopeError, scope_digest
from mesh.runtime.cache.keys import Key
from mesh.runtime.cache.statistics import Statistics


class SharedError(Exception):
    """The shared tier gives no answer, or not in time."""


class Store(Protocol):
    """Bytes by key, in another process."""

    @property
    def usable(self) -> bool:
        """Whether it is worth asking."""

    async def get(self, key: str) -> tuple[bytes | None, int]:
        """What is stored, None if nothing, and as which revision of the key: 0 if there never was one.

        Raises:
            SharedError: no answer in time.
        """

    async def put(self, key: str, data: bytes, revision: int) -> None:
        """Stores bytes, unless there is another revision by now.

        Raises:
            SharedError: as far as is known, it did not.
        """

    async def delete(self, key: str) -> None:
        """Stores that there is nothing.

        Raises:
            SharedError: as far as is known, it did not.
        """

    async def tell(self, space: str, key: Key) -> None:
        """Tells the other processes that a key of theirs is forgotten.

        Raises:
            SharedError: it cannot.
        """


@dataclass(frozen=True, slots=True)
class Found:
    """What the tier has for a key: perhaps a value, fresh for so many seconds; and which revision that is."""

    revision: int
    payload: bytes | None = None
    seconds: float = 0.0


class Tier:
    """The values of one cache, of one definition of their type.

    Args:
        store: where they are.
        space: the cache's name, and what else tells its values from others': see `space`.
        heard: what the cache has heard of the events that clear it.
        count: the cache's.
        clock: seconds since 1970.
    """

    def __init__(
        self, store: Store, space: str, heard: Heard, count: Statistics, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._space, self._heard, self._count, self._clock = store, space, heard, count, clock

    async def get(self, digest: bytes, scope: str) -> Found | None:
        """What there is that may be given; None if the tier cannot be asked."""
        if not self._store.usable:
            return None
        try:
            stored, revision = await self._store.get(self._key(digest))
        except SharedError:
            self._count.shared_errors += 1
            return None
        found = Found(revision)
        if stored is not None:
            try:
                found = self._opened(Envelope.unpack(stored), digest, scope, revision)
            except EnvelopeError:
                self._count.shared_errors += 1
        self._count.shared_misses += found.payload is None
        return found

    def _opened(self, envelope: Envelope, digest: bytes, scope: str, revision: int) -> Found:
        left = envelope.fresh - self._clock()
        if left > 0 and envelope.scope == scope_digest(scope) and self._heard.allows(digest, envelope.heard):
            return Found(revision, envelope.payload, left)
        return Found(revision)

    async def put(
        self, digest: bytes, scope: str, payload: bytes, *, seconds: float, heard: tuple[int, ...], revision: int
    ) -> None:
        """Stores a value that is fresh for so long, with what was heard before it was loaded.

        Not if somebody has forgotten the key, or stored a value for it, since it was looked for.
        """
        packed = Envelope(payload, self._clock() + seconds, scope_digest(scope), heard).pack()
        if packed is None or not self._store.usable:
            return
        try:
            await self._store.put(self._key(digest), packed, revision)
        except SharedError:
            self._count.shared_errors += 1

    async def forget(self, key: Key) -> None:
        """Forgets a value, here and in the memory of the other processes."""
        if not self._store.usable:
            return
        try:
            await self._store.delete(self._key(keys.digest(key)))
            await self._store.tell(self._space, key)
        except SharedError:
            self._count.shared_errors += 1

    def _key(self, digest: bytes) -> str:
        return f"{self._space}.{digest.hex()}"


def space(name: str, *parts: bytes) -> str:
    """Where the values of a cache are. Of another definition, another subset of the service, they are elsewhere."""
    apart = b"".join(b"%d:%s" % (len(part), part) for part in parts)
    return f"{name}.{hashlib.blake2b(apart, digest_size=8).hexdigest()}"
