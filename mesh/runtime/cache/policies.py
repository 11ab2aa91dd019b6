"""Which entries stay when there is no room for all: LRU and LFU of cachetools, and ARC. Each is bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from cachetools import Cache, LFUCache, LRUCache

from mesh.runtime.cache import keys
from mesh.runtime.cache.arc import Arc
from mesh.runtime.cache.entry import Entry
from mesh.runtime.cache.keys import Key

PolicyName = Literal["arc", "lru", "lfu"]

# Without key and payload, with places in the lists, whose tables are emptiest just after they grew: tests measure it.
ENTRY_BYTES: Mapping[PolicyName, int] = {"arc": 320, "lru": 450, "lfu": 520}
GHOST_BYTES = 180
HISTORY_SHARE = 8  # of the room, one part in so many is for keys that are gone


class Policy(Protocol):
    """Entries by key, in bounded room."""

    evictions: int

    @property
    def bytes(self) -> int:
        """What it takes now."""

    def __len__(self) -> int: ...

    def get(self, key: Key) -> Entry | None:
        """The entry, noted as asked for; None if there is none."""

    def put(self, key: Key, entry: Entry) -> bool:
        """Keeps an entry, at the cost of others; False if it alone is too large."""

    def pop(self, key: Key) -> None:
        """Forgets a key, if it is there."""

    def clear(self) -> None:
        """Forgets all."""


class _Cachetools:
    """A policy of cachetools."""

    def __init__(self, entries: Cache[Key, Entry]) -> None:
        self._entries = entries
        self.evictions = 0

    @property
    def bytes(self) -> int:
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Entry | None:
        try:
            return self._entries[key]
        except KeyError:
            return None

    def put(self, key: Key, entry: Entry) -> bool:
        before = len(self._entries) + (key not in self._entries)
        try:
            self._entries[key] = entry
        except ValueError:  # too large: and what was there before is old
            self.pop(key)
            return False
        self.evictions += before - len(self._entries)
        return True

    def pop(self, key: Key) -> None:
        self._entries.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()


def of(name: PolicyName, max_bytes: int) -> Policy:
    """A policy by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _MAKERS:
        raise ValueError(f"there is no policy {name!r}: take one of {', '.join(_MAKERS)}")
    return _MAKERS[name](max_bytes)


def _size(entry: Entry) -> int:
    return entry.size


def _ghost_size(key: Key) -> int:
    return GHOST_BYTES + keys.size(key)


def _arc(max_bytes: int) -> Policy:
    history = max_bytes // HISTORY_SHARE
    return Arc(max_bytes - history, history, _ghost_size)


_MAKERS: Mapping[PolicyName, Callable[[int], Policy]] = {
    "arc": _arc,
    "lru": lambda max_bytes: _Cachetools(LRUCache(max_bytes, getsizeof=_size)),
    "lfu": lambda max_bytes: _Cachetools(LFUCache(max_bytes, getsizeof=_size)),
}
