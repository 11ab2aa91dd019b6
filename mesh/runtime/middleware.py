"""What happens around every handler. MIDDLEWARE is the whole list, outermost first.

Each entry wraps a handler once, at registration, so that a call costs a chain of awaits and no look-ups. It is the same
list for calls and streams: `handlers` gives both one shape.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import protovalidate
from google.rpc import status_pb2

from mesh.runtime import auth, errors
from mesh.runtime.answers import Answers
from mesh.runtime.auth import CallInfo
from mesh.runtime.errors import ServiceError
from mesh.runtime.handlers import MALFORMED, Context, Handler, MethodInfo
from mesh.runtime.running import Running
from mesh.runtime.telemetry import metrics, traces

_log = logging.getLogger("mesh.runtime")
_validator = protovalidate.Validator()
_KEPT = frozenset((*auth.PASSED_ON, auth.USER_HEADER, auth.SCOPES_HEADER, auth.CERTIFICATE_HEADER))


@dataclass(frozen=True)
class Server:
    """What the methods of one server share."""

    running: Running
    answers: Answers | None = None  # None for a service without a database


def with_call_info(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Makes headers and deadline of the call known to the task: `auth`, logs and outgoing calls read them."""
    longest = method.deadline_seconds

    async def wrapped(request: Any, context: Context) -> Any:
        remaining = context.time_remaining()
        bounded = remaining is not None
        headers = {k: v for k, v in context.invocation_metadata() or () if k in _KEPT and isinstance(v, str)}
        if remaining is None or remaining <= 0 or (longest and remaining > longest):
            remaining = longest
        deadline = asyncio.get_running_loop().time() + remaining if remaining else 0.0
        token = auth.current.set(CallInfo(deadline, headers, bounded, method.path))
        try:
            return await handler(request, context)
        finally:
            auth.current.reset(token)

    return wrapped


def with_telemetry(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Counts the call, how it ends and how long it takes; makes it a span if its trace is recorded."""
    calls = metrics.calls(method.path, method.kind)
    name, attributes = traces.named(method.path)

    async def wrapped(request: Any, context: Context) -> Any:
        calls.started += 1
        began = time.perf_counter()
        span = traces.begun(name, traces.SERVER, *attributes)
        if span:
            auth.current.get().headers[auth.TRACE_HEADER] = span.header
        cancelled = 0
        try:
            return await handler(request, context)
        except asyncio.CancelledError:
            cancelled = traces.LATE if auth.time_left() == 0 else traces.CANCELLED
            raise
        finally:
            code = cancelled or _code(context)
            calls.ended(code, time.perf_counter() - began)
            if span:
                span.answered(code)

    return wrapped


def _code(context: Context) -> int:
    """With which gRPC's code a call ends, whoever set it."""
    code = context.code() or 0
    return code if isinstance(code, int) else int(code.value[0])


def with_errors(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Turns every exception into one status; see `errors`."""

    async def wrapped(request: Any, context: Context) -> Any:
        try:
            return await handler(request, context)
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError as error:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr] # a handler runs in a task
                raise
            status = _status_of(error)  # of something that the handler waited for; gRPC would never answer
        except Exception as error:  # noqa: BLE001 - the one place where anything may arrive
            status = _status_of(error)
        metadata = ((errors.STATUS_DETAILS, status.SerializeToString()),)
        await context.abort(errors.GRPC_CODES[status.code], status.message, metadata)

    return wrapped


def _status_of(error: BaseException) -> status_pb2.Status:
    known = errors.from_exception(error)
    errors.without_rows(error)
    if known is None:
        _log.error("unexpected error", exc_info=error)
        known = errors.internal()
    elif isinstance(error, grpc.aio.AioRpcError):
        _log.warning("a call to another service failed", extra={"error": str(error)})
    elif not isinstance(error, ServiceError | TimeoutError):
        _log.warning("an engine failed", exc_info=error)
    if isinstance(known, status_pb2.Status):
        return known
    return errors.to_status(known, auth.current.get().request_id)


def with_limit(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Refuses a call before any work when as many run as may; the caller is told when to try again."""
    running, stream = server.running, method.streams

    async def wrapped(request: Any, context: Context) -> Any:
        running.enter(stream=stream)
        try:
            return await handler(request, context)
        finally:
            running.leave(stream=stream)

    return wrapped


def with_drain(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Bounds how long a stream still runs once the process is told to stop; a call has its deadline."""
    if not method.streams:
        return handler

    async def wrapped(request: Any, context: Context) -> Any:
        async with server.running.until_drained():
            return await handler(request, context)

    return wrapped


def with_deadline(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Stops the handler, and its database statement, when the caller's deadline or the contract's has passed."""

    async def wrapped(request: Any, context: Context) -> Any:
        info = auth.current.get()
        if info.bounded:
            return await handler(request, context)
        async with asyncio.timeout_at(info.deadline or None):
            return await handler(request, context)

    return wrapped


def with_principal(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Refuses a user's method without a user or its scopes; the sidecar does too, this holds without one."""
    if not method.needs_user:
        return handler

    async def wrapped(request: Any, context: Context) -> Any:
        auth.user()
        if method.scopes and not method.scopes <= auth.principal().scopes:
            missing = ", ".join(sorted(method.scopes - auth.principal().scopes))
            raise errors.permission_denied(f"the token lacks the scope {missing}")
        return await handler(request, context)

    return wrapped


def with_validation(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Refuses a request that breaks the field limits of the contract, naming every field.

    A stream is judged message by message, as the handler iterates over it: one that reads by `context.read` goes round
    this.
    """

    async def each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            _validate(request)
            yield request

    async def one(request: Any, context: Context) -> Any:
        _validate(request)
        return await handler(request, context)

    async def stream(requests: AsyncIterator[Any], context: Context) -> Any:
        return await handler(each(requests), context)

    return stream if method.streams_requests else one


def _validate(request: Any) -> None:
    if request is MALFORMED:
        raise errors.invalid("", "the request is not a message of the contract's type")
    try:
        _validator.validate(request)
    except protovalidate.ValidationError as error:
        raise errors.violations([_violation(v.proto) for v in error.violations]) from None


def _violation(violation: Any) -> tuple[str, str]:
    path = ""
    for element in violation.field.elements:
        path += ("." if path else "") + element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path, violation.message or violation.rule_id


def with_idempotency(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Answers a repeat, by its request_id, with what the first call was answered; see `answers`."""
    answers = server.answers
    if answers is None or not method.takes_request_id:
        return handler

    async def wrapped(request: Any, context: Context) -> Any:
        if not request.request_id:
            return await handler(request, context)
        return await answers.once(method, request, lambda: handler(request, context))

    return wrapped


Middleware = Callable[[Handler, MethodInfo, Server], Handler]
MIDDLEWARE: tuple[Middleware, ...] = (
    with_call_info,
    with_telemetry,
    with_errors,
    with_limit,
    with_deadline,
    with_drain,
    with_principal,
    with_validation,
    with_idempotency,
)


def wrap(handler: Handler, method: MethodInfo, server: Server) -> Handler:
    """Returns `handler` with all of MIDDLEWARE around it."""
    for middleware in reversed(MIDDLEWARE):
        handler = middleware(handler, method, server)
    return handler
