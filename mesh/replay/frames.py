"""gRPC's framing: a flag, a length and a message, as often as there are messages."""

from __future__ import annotations

import struct

_HEAD = struct.Struct(">BI")


class FrameError(Exception):
    """The bytes are not whole, uncompressed gRPC messages."""


def messages(body: bytes) -> list[bytes]:
    """The messages of a body.

    Raises:
        FrameError: the body ends inside a message, or a message is compressed.
    """
    found, at = [], 0
    while at < len(body):
        if len(body) - at < _HEAD.size:
            raise FrameError("the body ends inside a message's head")
        compressed, size = _HEAD.unpack_from(body, at)
        if compressed:
            raise FrameError("the message is compressed")
        at += _HEAD.size
        if len(body) - at < size:
            raise FrameError(f"the body ends after {len(body) - at} of a message's {size} bytes")
        found.append(body[at : at + size])
        at += size
    return found
