"""What one cache has of the tier that instances share. Whatever is wrong there, it is as if nothing were stored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Protocol

from mesh.runtime.cache.clearing import Heard
from mesh.runtime.cache.envelope import Envelope, EnvelopeError, scope_digest
from mesh.runtime.cache.statistics import Statistics


class SharedError(Exception):
    """The shared tier gives no answer, or not in time."""


class Store(Protocol):
    """Bytes by key, in another process."""

    @property
    def usable(self) -> bool:
        """Whether it is worth asking."""

    async def get(self, key: str) -> bytes | None:
        """What is stored, None if nothing.

        Raises:
            SharedError: no answer in time.
        """

    async def put(self, key: str, data: bytes) -> None:
        """Stores bytes.

        Raises:
            SharedError: as far as is known, it did not.
        """

    async def delete(self, key: str) -> None:
        """Stores that there is nothing.

        Raises:
            SharedError: as far as is known, it did not.
        """


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

    async def get(self, digest: bytes, scope: str) -> tuple[bytes, float] | None:
        """A value and for how many seconds it is fresh; None if there is none that may be given."""
        if not self._store.usable:
            return None
        try:
            stored = await self._store.get(self._key(digest))
            envelope = Envelope.unpack(stored) if stored is not None else None
        except (SharedError, EnvelopeError):
            self._count.shared_errors += 1
            return None
        if envelope and envelope.scope == scope_digest(scope) and self._heard.allows(digest, envelope.heard):
            left = envelope.fresh - self._clock()
            if left > 0:
                return envelope.payload, left
        self._count.shared_misses += 1
        return None

    async def put(self, digest: bytes, scope: str, payload: bytes, seconds: float, heard: tuple[int, ...]) -> None:
        """Stores a value that is fresh for so long, with what was heard before it was loaded."""
        packed = Envelope(payload, self._clock() + seconds, scope_digest(scope), heard).pack()
        if packed is None or not self._store.usable:
            return
        try:
            await self._store.put(self._key(digest), packed)
        except SharedError:
            self._count.shared_errors += 1

    async def delete(self, digest: bytes) -> None:
        """Forgets a value."""
        if not self._store.usable:
            return
        try:
            await self._store.delete(self._key(digest))
        except SharedError:
            self._count.shared_errors += 1

    def _key(self, digest: bytes) -> str:
        return f"{self._space}.{digest.hex()}"


def space(name: str, *parts: bytes) -> str:
    """Where the values of a cache are. Of another definition, another subset of the service, they are elsewhere."""
    apart = b"".join(b"%d:%s" % (len(part), part) for part in parts)
    return f"{name}.{hashlib.blake2b(apart, digest_size=8).hexdigest()}"
