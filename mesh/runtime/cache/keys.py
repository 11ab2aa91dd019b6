"""Keys of a cache, and what they and values take in memory. Keys that are equal in Python are one key in every tier."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import TypeAlias

Key: TypeAlias = "str | int | bytes | tuple[Key, ...]"

DIGEST_BYTES = 20  # nobody finds two keys with one digest, even who chooses them


def digest(key: Key) -> bytes:
    """Of a key, the same in every process.

    Raises:
        TypeError: it is no key.
    """
    return hashlib.blake2b(encoded(key), digest_size=DIGEST_BYTES).digest()


def size(key: Key) -> int:
    """What a key takes in memory, bytes."""
    own = sys.getsizeof(key)
    return own + sum(map(size, key)) if isinstance(key, tuple) else own


def encoded(key: Key) -> bytes:
    """A key as bytes, each part with its kind and length: no two keys have one encoding.

    Raises:
        TypeError: it is no key.
    """
    match key:
        case str():
            kind, content = b"s", key.encode("utf-8", "surrogatepass")
        case bytes():
            kind, content = b"b", key
        case int():
            kind, content = b"i", b"%d" % key
        case tuple():
            kind, content = b"t", b"".join(map(encoded, key))
        case _:
            raise TypeError(f"{key!r} is no key of a cache: take a text, a number, bytes, or a tuple of them")
    return b"%s%d:%s" % (kind, len(content), content)


def decoded(data: bytes) -> Key:
    """The key of which these are the bytes.

    Raises:
        ValueError: of none.
    """
    parts = list(_parts(data))
    if len(parts) != 1:
        raise ValueError("these bytes are not one key")
    return parts[0]


def _parts(data: bytes) -> Iterator[Key]:
    while data:
        head, colon, rest = data.partition(b":")
        size = int(head[1:])
        content, data = rest[:size], rest[size:]
        if not colon or len(content) != size:
            raise ValueError("these bytes are cut short")
        match head[:1]:
            case b"s":
                yield content.decode("utf-8", "surrogatepass")
            case b"b":
                yield content
            case b"i":
                yield int(content)
            case b"t":
                yield tuple(_parts(content))
            case kind:
                raise ValueError(f"{kind!r} is no kind of a part of a key")
