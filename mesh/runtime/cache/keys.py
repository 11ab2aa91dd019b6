"""Keys of a cache, and what they and values take in memory. Keys that are equal in Python are one key in every tier."""

from __future__ import annotations

import hashlib
import sys
from typing import TypeAlias

Key: TypeAlias = "str | int | bytes | tuple[Key, ...]"

DIGEST_BYTES = 20  # nobody finds two keys with one digest, even who chooses them


def digest(key: Key) -> bytes:
    """Of a key, the same in every process.

    Raises:
        TypeError: it is no key.
    """
    return hashlib.blake2b(_encoded(key), digest_size=DIGEST_BYTES).digest()


def size(key: Key) -> int:
    """What a key takes in memory, bytes."""
    own = sys.getsizeof(key)
    return own + sum(map(size, key)) if isinstance(key, tuple) else own


def _encoded(key: Key) -> bytes:
    """Each part with its kind and length: no two keys have one encoding."""
    match key:
        case str():
            kind, content = b"s", key.encode("utf-8", "surrogatepass")
        case bytes():
            kind, content = b"b", key
        case int():
            kind, content = b"i", b"%d" % key
        case tuple():
            kind, content = b"t", b"".join(map(_encoded, key))
        case _:
            raise TypeError(f"{key!r} is no key of a cache: take a text, a number, bytes, or a tuple of them")
    return b"%s%d:%s" % (kind, len(content), content)
