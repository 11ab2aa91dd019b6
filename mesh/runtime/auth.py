"""Who calls: the verified user and the calling service.

Both come from headers that only this process's own sidecar can set: it strips what came from outside, verifies the
token and the client certificate, and is the only one that reaches the process's socket.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from mesh.runtime import errors

USER_HEADER = "x-nourish-user"
SCOPES_HEADER = "x-nourish-scopes"
CERTIFICATE_HEADER = "x-forwarded-client-cert"
REQUEST_ID_HEADER = "x-request-id"
AUTHORIZATION_HEADER = "authorization"
CANARY_HEADER = "x-nourish-canary"
FAULT_HEADER = "x-fault"
TRACE_HEADER, TRACE_STATE_HEADER = "traceparent", "tracestate"  # W3C
# Which request it is: goes with all that is done for it, at once and later.
OF_REQUEST = (REQUEST_ID_HEADER, TRACE_HEADER, TRACE_STATE_HEADER)
# With every call that is made for it.
PASSED_ON = (*OF_REQUEST, AUTHORIZATION_HEADER, CANARY_HEADER, FAULT_HEADER)


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a call runs for: `user` if a token was verified, `caller` the service that sent it, such as "edge"."""

    user: str | None
    scopes: frozenset[str]
    caller: str


@dataclass(slots=True)
class CallInfo:
    """What came with the call that this task serves, and what its own calls pass on."""

    deadline: float = 0.0  # event-loop time, which is the monotonic clock; 0 for none
    headers: dict[str, str] = field(default_factory=dict)
    bounded: bool = False  # the caller sent a deadline, at which gRPC itself cancels the handler
    method: str = ""  # "/nourish.food.v1.FoodService/GetFood"

    @property
    def request_id(self) -> str:
        """The id that every log line and error of this request carries."""
        return self.headers.get(REQUEST_ID_HEADER, "")


current: ContextVar[CallInfo] = ContextVar("nourish_call", default=CallInfo())  # noqa: B039 - never mutated


def principal() -> Principal:
    """Returns on whose behalf the current call runs."""
    headers = current.get().headers
    certificate = headers.get(CERTIFICATE_HEADER, "")
    uri = next((part[4:] for part in certificate.split(";") if part.startswith("URI=")), "")
    return Principal(
        user=headers.get(USER_HEADER) or None,
        scopes=frozenset(headers.get(SCOPES_HEADER, "").replace(",", " ").split()),
        caller=uri.rpartition("/sa/")[2],
    )


def time_left() -> float | None:
    """Seconds until the deadline of the current call, None if it has none. In a pool of `mesh.runtime.pools` too."""
    deadline = current.get().deadline
    return max(deadline - time.monotonic(), 0.0) if deadline else None


def user() -> str:
    """Returns the verified user of the current call.

    Raises:
        ServiceError: UNAUTHENTICATED, if there is none.
    """
    name = current.get().headers.get(USER_HEADER)
    if not name:
        raise errors.unauthenticated()
    return name


@contextmanager
def acting_for(user: str) -> Iterator[None]:
    """Makes `user` the verified user of the block; `mesh.runtime.db.acting_for` says when that is right."""
    info = current.get()
    others = () if info.headers.get(USER_HEADER) == user else (AUTHORIZATION_HEADER, SCOPES_HEADER)
    headers = {name: value for name, value in info.headers.items() if name not in others}
    token = current.set(replace(info, headers={**headers, USER_HEADER: user}))
    try:
        yield
    finally:
        current.reset(token)
