"""What a cache counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Of one cache, since it was made; the last four as they are now.

    Attributes:
        hits: given from memory, fresh.
        stale: given from memory, old, while a new value was loaded.
        negative: answered from memory that there is none.
        misses: not in memory; of them
        joined: waited for a load that was under way,
        shared_hits: were in the tier that instances share.
        shared_misses: were not there either.
        shared_errors: that tier failed, was too slow, or held what cannot be read.
        loads: made, in the background too.
        load_errors: of them, failed; that something does not exist is no failure.
        load_seconds: they took.
        evictions: given up for want of room.
        refused: values larger than all the room.
        cleared: keys, or all keys, forgotten because an event or the service said so.
        around: calls that ask for a canary or a fault, which no cache answers.
    """

    hits: int = 0
    stale: int = 0
    negative: int = 0
    misses: int = 0
    joined: int = 0
    shared_hits: int = 0
    shared_misses: int = 0
    shared_errors: int = 0
    loads: int = 0
    load_errors: int = 0
    load_seconds: float = 0.0
    refused: int = 0
    cleared: int = 0
    around: int = 0
    evictions: int = 0
    entries: int = 0
    bytes: int = 0
    max_bytes: int = 0
