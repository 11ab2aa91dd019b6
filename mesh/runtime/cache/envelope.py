"""A value as the shared tier holds it: with how long it is fresh, what was heard before it was loaded, and compressed
if that helps.

    version | flags | events | fresh until (s since 1970) | scope | the last event heard, for each | value
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

VERSION = 1
COMPRESSED = 1
COMPRESS_FROM = 2048
WORTH = 0.9  # compressed it must be smaller than this share
LEVEL = 1
MAX_VALUE_BYTES = 4 << 20  # as read: what claims to be larger is no value of ours
MAX_STORED_BYTES = 512 << 10
_HEAD = struct.Struct(">BBBd8s")


class EnvelopeError(ValueError):
    """The bytes are no envelope, or of another version."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One value.

    Attributes:
        payload: the value as its codec has it.
        fresh: until when, in seconds since 1970.
        scope: the scopes of the user for whom it was loaded.
        heard: for each event that clears the cache, the last that was heard when the load began.
    """

    payload: bytes
    fresh: float
    scope: bytes = b""
    heard: tuple[int, ...] = ()

    def pack(self) -> bytes | None:
        """As bytes; None if they are too many for the shared tier."""
        flags, body = 0, self.payload
        if len(body) > MAX_VALUE_BYTES:
            return None
        if len(body) >= COMPRESS_FROM:
            smaller = zlib.compress(body, LEVEL)
            if len(smaller) < len(body) * WORTH:
                flags, body = COMPRESSED, smaller
        head = _HEAD.pack(VERSION, flags, len(self.heard), self.fresh, self.scope)
        packed = head + struct.pack(f">{len(self.heard)}Q", *self.heard) + body
        return packed if len(packed) <= MAX_STORED_BYTES else None

    @classmethod
    def unpack(cls, data: bytes) -> Envelope:
        """From bytes.

        Raises:
            EnvelopeError: they are none.
        """
        try:
            version, flags, events, fresh, scope = _HEAD.unpack_from(data)
            if version != VERSION:
                raise EnvelopeError(f"version {version}")
            heard = struct.unpack_from(f">{events}Q", data, _HEAD.size)
        except struct.error as error:
            raise EnvelopeError(str(error)) from None
        body = data[_HEAD.size + 8 * events :]
        return cls(_expanded(body) if flags & COMPRESSED else body, fresh, scope, heard)


def scope_digest(scope: str) -> bytes:
    """Eight bytes that stand for the scopes of a user."""
    return hashlib.blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _expanded(body: bytes) -> bytes:
    """Never more than MAX_VALUE_BYTES, whatever the bytes would unfold to."""
    unfolding = zlib.decompressobj()
    try:
        value = unfolding.decompress(body, MAX_VALUE_BYTES + 1)
    except zlib.error as error:
        raise EnvelopeError(str(error)) from None
    if len(value) > MAX_VALUE_BYTES or not unfolding.eof:
        raise EnvelopeError("the value is too large or cut short")
    return value
