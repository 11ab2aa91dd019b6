"""Spans. Which traces are recorded is decided where they begin, at the edge; here the caller's word counts.

The context is the W3C header `traceparent` of the call at work. Of a trace that is not recorded the header is passed
on as it came, and no span is made.
"""

from __future__ import annotations

import dataclasses
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mesh.runtime import auth

_RECORDED = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f][13579bdf]")
_WELL_FORMED = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
OK, CANCELLED, LATE = 0, 1, 4  # gRPC's codes
# Of a server these are failures; the others say what is wrong with the request.
_FAILURES = {
    2: "UNKNOWN",
    LATE: "DEADLINE_EXCEEDED",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
}
INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(1, 6)  # as OTLP numbers them

Attribute = tuple[str, str | int]


@dataclass(slots=True)
class Span:
    """One piece of work. `error` is empty unless it failed."""

    trace_id: str
    parent_id: str
    name: str
    kind: int
    attributes: list[Attribute]
    span_id: str = field(default_factory=lambda: f"{random.getrandbits(64) or 1:016x}")
    start: int = field(default_factory=time.time_ns)
    end: int = 0
    error: str = ""

    @property
    def header(self) -> str:
        """The `traceparent` of what is done within it."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    def answered(self, code: int) -> None:
        """The call that it stands for has ended with this gRPC code."""
        self.attributes.append(("rpc.grpc.status_code", code))
        failed = code != OK if self.kind == CLIENT else code in _FAILURES
        self.ended(_FAILURES.get(code, f"code {code}") if failed else "")

    def ended(self, error: str = "") -> None:
        """It is over: hands it to whoever sends it away."""
        self.end, self.error = time.time_ns(), error
        if _record:
            _record(self)


Record = Callable[[Span], None]
_record: Record | None = None
_share = 0.0


def record_with(record: Record | None, share: float = 0.0) -> None:
    """From now on `record` gets every span; of the traces that begin in this process, `share` are recorded."""
    global _record, _share
    _record, _share = record, share


def named(path: str) -> tuple[str, tuple[Attribute, ...]]:
    """The name and attributes of a span of a call, by OpenTelemetry's conventions."""
    service, _, method = path.strip("/").partition("/")
    return f"{service}/{method}", (("rpc.system", "grpc"), ("rpc.service", service), ("rpc.method", method))


def begun(name: str, kind: int, *attributes: Attribute) -> Span | None:
    """A span within the call at work, or None: nothing is recorded of it."""
    if _record is None:
        return None
    info = auth.current.get()
    parent = info.headers.get(auth.TRACE_HEADER)
    if parent is None:
        if random.random() >= _share:  # noqa: S311 - no secret
            return None
        trace_id, parent_id = f"{random.getrandbits(128) or 1:032x}", ""
    elif found := _RECORDED.fullmatch(parent):
        trace_id, parent_id = found.groups()
    else:
        return None
    about = [*attributes, ("request_id", info.request_id)] if info.request_id else [*attributes]
    return Span(trace_id, parent_id, name, kind, about)


def ids() -> tuple[str, str]:
    """The trace and span that the current call belongs to; both empty if to none."""
    found = _WELL_FORMED.fullmatch(auth.current.get().headers.get(auth.TRACE_HEADER, ""))
    return (found[1], found[2]) if found else ("", "")


@contextmanager
def span(name: str, kind: int = INTERNAL, **attributes: str | int) -> Iterator[Span | None]:
    """Makes the block a span of its own in the current call's trace; its calls, events and jobs are its children."""
    made = begun(name, kind, *attributes.items())
    if made is None:
        yield None
        return
    info = auth.current.get()
    token = auth.current.set(dataclasses.replace(info, headers={**info.headers, auth.TRACE_HEADER: made.header}))
    error = ""
    try:
        yield made
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        auth.current.reset(token)
        made.ended(error)
