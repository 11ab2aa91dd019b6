"""Makes recorded calls of what Envoy's tap shows: read by the contract, and masked."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from google.protobuf.message import DecodeError, Message
from grpc import StatusCode

from mesh.contract import Method
from mesh.dynamic import Codec
from mesh.replay import frames
from mesh.replay.recording import Recorded
from mesh.runtime.sensitive import mask

# How a call ends that would end so again. All else is the moment's: a deadline, an overload, a user's rights.
SETTLED = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE")
_CODES = {str(code.value[0]): code.name for code in StatusCode}


class UnusableError(Exception):
    """A call that is not recorded; says why in a word or three."""


class Recorder:
    """Counts and hands on what it is shown, until it has `limit` calls."""

    def __init__(self, methods: Mapping[str, Codec], write: Callable[[Recorded], None], limit: int) -> None:
        self._methods, self._write, self._limit = methods, write, limit
        self.recorded: Counter[str] = Counter()  # by method's path
        self.skipped: Counter[str] = Counter()  # by reason

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return self.recorded.total() >= self._limit

    def take(self, trace: dict[str, Any]) -> None:
        """Records a call of the tap, or counts why not."""
        if self.full:
            return
        try:
            call = recorded(trace, self._methods)
        except UnusableError as reason:
            self.skipped[str(reason)] += 1
            return
        self._write(call)
        self.recorded[call.method] += 1


def recordable(method: Method) -> bool:
    """Whether its calls may be sent again: one request, one answer, and nothing changes by it."""
    return method.idempotency == "no_side_effects" and not (method.client_streaming or method.server_streaming)


def recorded(trace: dict[str, Any], methods: Mapping[str, Codec]) -> Recorded:
    """The call of a buffered trace, without what the contract marks sensitive. Of its headers nothing is kept.

    Raises:
        UnusableError: it was cut, failed, or cannot be read.
    """
    asked, answered = (trace["http_buffered_trace"].get(side, {}) for side in ("request", "response"))
    sent = _fields(asked.get("headers"))
    code = _code({**_fields(answered.get("headers")), **_fields(answered.get("trailers"))})
    if code not in SETTLED:
        raise UnusableError(f"failed with {code}")
    codec = methods[sent[":path"]]
    request = _message(asked, codec.deserialize_request)
    answer = _message(answered, codec.deserialize) if code == "OK" else None
    masked = mask(request)
    if answer is not None:
        mask(answer)
    try:
        told = codec.to_json(request, defaults=False)
        heard = None if answer is None else codec.to_json(answer, defaults=False)
    except ValueError:
        raise UnusableError("not readable by the contract") from None
    began, ended = (datetime.fromisoformat(side["headers_received_time"]) for side in (asked, answered))
    ms = round((ended - began).total_seconds() * 1000, 3)
    return Recorded(codec.method.path, told, code, heard, ms, "authorization" in sent, tuple(masked))


def _fields(headers: list[dict[str, str]] | None) -> dict[str, str]:
    return {header["key"]: header["value"] for header in headers or ()}


def _code(ended: dict[str, str]) -> str:
    """The gRPC status; a call that ended without one was cancelled."""
    return _CODES.get(ended.get("grpc-status", ""), "CANCELLED")


def _message(side: dict[str, Any], parse: Callable[[bytes], Message]) -> Message:
    body = side.get("body") or {}
    if body.get("truncated"):
        raise UnusableError("too large")
    try:
        found = frames.messages(base64.b64decode(body.get("as_bytes", "")))
        if len(found) != 1:
            raise UnusableError("not one message")
        return parse(found[0])
    except (frames.FrameError, DecodeError):
        raise UnusableError("not readable by the contract") from None
