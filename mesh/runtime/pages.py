"""Opaque page tokens: a signed cursor, good for a while, for the user and for the arguments that it was made for.

The key is made once and kept in the service's own database, so that every instance accepts the others' tokens.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from nourish.error.v1.reason_pb2 import Reason

from mesh.runtime import clock
from mesh.runtime.auth import principal
from mesh.runtime.errors import ServiceError

LIFE_SECONDS = 3 * 24 * 3600  # AIP-158 has tokens expire after some days
_TAG_BYTES = 16
_EXPIRY_BYTES = 5  # seconds since 1970, until the year 36812
_PAGE_FIELDS = ("page_token", "page_size")
_key: bytes | None = None

T = TypeVar("T")


def configure(key: bytes) -> None:
    """Sets the key of this process; `database` does."""
    global _key  # noqa: PLW0603 - one key a process
    _key = key


def sign(cursor: Mapping[str, Any], *, scope: Message | bytes) -> str:
    """Returns the token of the page that starts after `cursor`.

    Args:
        cursor: what the next page needs, JSON values.
        scope: the request; its own page_token and page_size do not count. Or any bytes that must be the same again.
    """
    expiry = int(clock.now().timestamp() + LIFE_SECONDS).to_bytes(_EXPIRY_BYTES, "big")
    payload = expiry + json.dumps(cursor, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(_tag(payload, scope) + payload).decode().rstrip("=")


def cut(
    rows: Sequence[T], size: int, cursor: Callable[[T], Mapping[str, Any]], *, scope: Message | bytes
) -> tuple[Sequence[T], str]:
    """The page of the first `size` of `rows`, which are one more if there are more, and its next_page_token.

    Args:
        rows: what was found, one more than `size` asked for.
        size: of the page.
        cursor: what the next page needs of the last row of this one.
        scope: as `sign` takes it.
    """
    return rows[:size], sign(cursor(rows[size - 1]), scope=scope) if len(rows) > size else ""


def verify(token: str, *, scope: Message | bytes) -> dict[str, Any]:
    """Returns the cursor in `token`.

    Raises:
        ServiceError: PAGE_TOKEN_INVALID, if it was not made by `sign` for the same user and scope, or has expired.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    tag, payload = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
    expiry, cursor = payload[:_EXPIRY_BYTES], payload[_EXPIRY_BYTES:]
    if not cursor or not hmac.compare_digest(tag, _tag(payload, scope)):
        raise _refused("not one this method gave for these arguments")
    if clock.now().timestamp() > int.from_bytes(expiry, "big"):
        raise _refused("expired")
    found: dict[str, Any] = json.loads(cursor)
    return found


def _refused(problem: str) -> ServiceError:
    return ServiceError(
        Reason.REASON_PAGE_TOKEN_INVALID,
        f"page_token is {problem}; start again without it",
        violations=[("page_token", problem)],
    )


def _tag(payload: bytes, scope: Message | bytes) -> bytes:
    if _key is None:
        raise RuntimeError("page tokens need a key: open the service's database first")
    user = (principal().user or "").encode()
    signed = b"".join(len(part).to_bytes(4, "big") + part for part in (user, _scope_bytes(scope), payload))
    return hmac.digest(_key, signed, hashlib.sha256)[:_TAG_BYTES]


def _scope_bytes(scope: Message | bytes) -> bytes:
    if isinstance(scope, bytes):
        return scope
    plain = type(scope)()
    plain.CopyFrom(scope)
    for name in _PAGE_FIELDS:
        if name in plain.DESCRIPTOR.fields_by_name:
            plain.ClearField(name)
    return plain.DESCRIPTOR.full_name.encode() + b"\0" + plain.SerializeToString(deterministic=True)
