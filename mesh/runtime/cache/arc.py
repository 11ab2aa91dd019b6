"""ARC, the adaptive replacement cache of Megiddo and Modha (FAST 2003), bounded in bytes where the paper has pages.

What was asked for once is in `recent` (the paper's T1), what was asked for again in `frequent` (T2). Each has a list of
keys that it gave up not long ago (B1, B2): one that is asked for again says that its list was too short, and moves the
target (p) by which the two share the room. A scan runs through `recent` and leaves `frequent` alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from mesh.runtime.cache.entry import Entry
from mesh.runtime.cache.keys import Key


class Arc:
    """Entries of `capacity` bytes at most, and the keys of as many that are gone, in `history` bytes at most.

    For entries of one size it is the published algorithm.

    Args:
        capacity: of all entries, in the sizes that they say they have.
        history: of the keys of those that are gone, in memory.
        ghost_size: what the key of one that is gone takes.
    """

    def __init__(self, capacity: int, history: int, ghost_size: Callable[[Key], int]) -> None:
        self._capacity = capacity
        self._history = history
        self._ghost_size = ghost_size
        self.recent: OrderedDict[Key, Entry] = OrderedDict()  # the next to go first
        self.frequent: OrderedDict[Key, Entry] = OrderedDict()
        self._recent_bytes = self._frequent_bytes = 0
        self._recent_ghosts, self._frequent_ghosts = _Ghosts(ghost_size), _Ghosts(ghost_size)
        self._target = 0.0  # of `recent`, bytes
        self.evictions = 0

    def __len__(self) -> int:
        return len(self.recent) + len(self.frequent)

    @property
    def bytes(self) -> int:
        """What it takes now, ghosts included."""
        return self._recent_bytes + self._frequent_bytes + self._recent_ghosts.taken + self._frequent_ghosts.taken

    @property
    def ghosts(self) -> tuple[list[Key], list[Key]]:
        """The keys that `recent` and `frequent` gave up, the next to be forgotten first."""
        return list(self._recent_ghosts.sizes), list(self._frequent_ghosts.sizes)

    def get(self, key: Key) -> Entry | None:
        """The entry, which is now frequent; None if there is none."""
        entry = self.frequent.get(key)
        if entry is not None:
            self.frequent.move_to_end(key)
            return entry
        entry = self.recent.pop(key, None)
        if entry is not None:
            self._recent_bytes -= entry.size
            self._frequent_bytes += entry.size
            self.frequent[key] = entry
        return entry

    def put(self, key: Key, entry: Entry) -> bool:
        """Keeps an entry that was asked for; False if it is larger than all the room."""
        size = entry.size
        if size > self._capacity:
            self.pop(key)
            return False
        if key in self.recent or key in self.frequent:
            self._exchange(key, entry)
        elif key in self._recent_ghosts.sizes:
            ours, others = self._recent_ghosts, self._frequent_ghosts
            self._target = min(self._capacity, self._target + size * max(1.0, others.bytes / ours.bytes))
            ours.forget(key)
            self._make_room(size)
            self._add_frequent(key, entry)
        elif key in self._frequent_ghosts.sizes:
            ours, others = self._frequent_ghosts, self._recent_ghosts
            self._target = max(0.0, self._target - size * max(1.0, others.bytes / ours.bytes))
            self._make_room(size, for_frequent_ghost=True)
            ours.forget(key)
            self._add_frequent(key, entry)
        else:
            self._make_room_for_new(size)
            self.recent[key] = entry
            self._recent_bytes += size
        self._bound_ghosts()
        return True

    def pop(self, key: Key) -> None:
        """Forgets a key, and that it was there."""
        if (entry := self.recent.pop(key, None)) is not None:
            self._recent_bytes -= entry.size
        elif (entry := self.frequent.pop(key, None)) is not None:
            self._frequent_bytes -= entry.size
        self._recent_ghosts.forget(key)
        self._frequent_ghosts.forget(key)

    def clear(self) -> None:
        """Forgets all."""
        self.recent.clear()
        self.frequent.clear()
        self._recent_bytes = self._frequent_bytes = 0
        self._recent_ghosts, self._frequent_ghosts = _Ghosts(self._ghost_size), _Ghosts(self._ghost_size)
        self._target = 0.0

    def _add_frequent(self, key: Key, entry: Entry) -> None:
        self.frequent[key] = entry
        self._frequent_bytes += entry.size

    def _exchange(self, key: Key, entry: Entry) -> None:
        """A new value for a key that is there: it stays in its list."""
        if key in self.recent:
            self._recent_bytes -= self.recent.pop(key).size
            self._make_room(entry.size)
            self.recent[key] = entry
            self._recent_bytes += entry.size
        else:
            self._frequent_bytes -= self.frequent.pop(key).size
            self._make_room(entry.size)
            self._add_frequent(key, entry)

    def _make_room_for_new(self, size: int) -> None:
        """The paper's case IV: a list with its ghosts may not grow beyond the capacity, nor both beyond twice that."""
        while self._recent_bytes + self._recent_ghosts.bytes + size > self._capacity:
            if self._recent_ghosts.sizes:
                self._recent_ghosts.forget_oldest()
            else:  # `recent` fills all: the oldest goes without a trace
                self._recent_bytes -= self.recent.popitem(last=False)[1].size
                self.evictions += 1
        while self._all_bytes() + size > 2 * self._capacity and self._frequent_ghosts.sizes:
            self._frequent_ghosts.forget_oldest()
        self._make_room(size)

    def _make_room(self, size: int, *, for_frequent_ghost: bool = False) -> None:
        """The paper's REPLACE, as often as it takes."""
        while self._recent_bytes + self._frequent_bytes + size > self._capacity:
            over = self._recent_bytes > self._target
            at_target = for_frequent_ghost and self._recent_bytes == self._target
            if self.recent and (over or at_target or not self.frequent):
                key, entry = self.recent.popitem(last=False)
                self._recent_bytes -= entry.size
                self._recent_ghosts.add(key, entry.size)
            else:
                key, entry = self.frequent.popitem(last=False)
                self._frequent_bytes -= entry.size
                self._frequent_ghosts.add(key, entry.size)
            self.evictions += 1

    def _bound_ghosts(self) -> None:
        """What entries of many sizes, and small ones, need beyond the paper."""
        recent, frequent = self._recent_ghosts, self._frequent_ghosts
        while recent.sizes and self._recent_bytes + recent.bytes > self._capacity:
            recent.forget_oldest()
        while frequent.sizes and self._all_bytes() > 2 * self._capacity:
            frequent.forget_oldest()
        while recent.taken + frequent.taken > self._history:
            (recent if recent.taken >= frequent.taken else frequent).forget_oldest()

    def _all_bytes(self) -> int:
        ghosts = self._recent_ghosts.bytes + self._frequent_ghosts.bytes
        return self._recent_bytes + self._frequent_bytes + ghosts


class _Ghosts:
    """Keys of entries that are gone: `bytes` is what the entries had, `taken` what their keys take."""

    def __init__(self, ghost_size: Callable[[Key], int]) -> None:
        self.sizes: OrderedDict[Key, int] = OrderedDict()
        self.bytes = self.taken = 0
        self._ghost_size = ghost_size

    def add(self, key: Key, size: int) -> None:
        self.sizes[key] = size
        self.bytes += size
        self.taken += self._ghost_size(key)

    def forget(self, key: Key) -> None:
        if (size := self.sizes.pop(key, None)) is not None:
            self._gone(key, size)

    def forget_oldest(self) -> None:
        self._gone(*self.sizes.popitem(last=False))

    def _gone(self, key: Key, size: int) -> None:
        self.bytes -= size
        self.taken -= self._ghost_size(key)
