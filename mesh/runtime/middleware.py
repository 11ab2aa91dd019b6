"""What happens around every handler. MIDDLEWARE is the whole list, outermost first.

Each entry wraps a unary handler once, at registration, so that a call costs a chain of awaits and no look-ups.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import protovalidate
from google.protobuf import descriptor
from google.protobuf.message import Message
from google.rpc import status_pb2
from nourish.mesh.v1 import policy_pb2

from mesh.runtime import auth, errors
from mesh.runtime.auth import CallInfo
from mesh.runtime.errors import ServiceError

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]

_log = logging.getLogger("mesh.runtime")
_validator = protovalidate.Validator()
_KEPT = frozenset(
    {
        auth.USER_HEADER,
        auth.SCOPES_HEADER,
        auth.CERTIFICATE_HEADER,
        auth.REQUEST_ID_HEADER,
        auth.AUTHORIZATION_HEADER,
        auth.CANARY_HEADER,
        auth.FAULT_HEADER,
    }
)


@dataclass(frozen=True)
class MethodInfo:
    """What the contract says of the method that is wrapped."""

    path: str
    deadline_seconds: float  # 0 if the contract gives none (health, reflection)
    needs_user: bool
    scopes: frozenset[str]

    @classmethod
    def of(cls, method: descriptor.MethodDescriptor) -> MethodInfo:
        """Reads the policy of a method."""
        policy = method.GetOptions().Extensions[policy_pb2.method]
        return cls(
            path=f"/{method.containing_service.full_name}/{method.name}",
            deadline_seconds=policy.deadline.seconds + policy.deadline.nanos / 1e9,
            needs_user=policy.access == policy_pb2.ACCESS_USER,
            scopes=frozenset(policy.scopes),
        )


def with_call_info(handler: Handler, method: MethodInfo) -> Handler:
    """Makes headers and deadline of the call known to the task: `auth`, logs and outgoing calls read them."""
    longest = method.deadline_seconds

    async def wrapped(request: Any, context: Context) -> Any:
        remaining = context.time_remaining()
        bounded = remaining is not None
        headers = {k: v for k, v in context.invocation_metadata() or () if k in _KEPT and isinstance(v, str)}
        if remaining is None or remaining <= 0 or (longest and remaining > longest):
            remaining = longest
        deadline = asyncio.get_running_loop().time() + remaining if remaining else 0.0
        token = auth.current.set(CallInfo(deadline, headers, bounded))
        try:
            return await handler(request, context)
        finally:
            auth.current.reset(token)

    return wrapped


def with_errors(handler: Handler, method: MethodInfo) -> Handler:
    """Turns every exception into one status; see `errors`."""

    async def wrapped(request: Any, context: Context) -> Any:
        try:
            return await handler(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the one place where anything may arrive
            status = _status_of(error, method)
        metadata = ((errors.STATUS_DETAILS, status.SerializeToString()),)
        await context.abort(errors.GRPC_CODES[status.code], status.message, metadata)

    return wrapped


def _status_of(error: Exception, method: MethodInfo) -> status_pb2.Status:
    known: ServiceError | status_pb2.Status | None
    if isinstance(error, ServiceError):
        known = error
    elif isinstance(error, grpc.aio.AioRpcError):
        known = errors.from_rpc_error(error)
        _log.warning("a call to another service failed", extra={"method": method.path, "error": str(error)})
    elif isinstance(error, TimeoutError):
        known = errors.deadline_exceeded()
    elif isinstance(error, ConnectionError):
        known = errors.unavailable()
        _log.error("an engine is not reachable", extra={"method": method.path}, exc_info=error)
    else:
        known = None
    if known is None:
        _log.error("unexpected error", extra={"method": method.path}, exc_info=error)
        known = errors.internal()
    if isinstance(known, status_pb2.Status):
        return known
    return errors.to_status(known, auth.current.get().request_id)


def with_deadline(handler: Handler, method: MethodInfo) -> Handler:
    """Stops the handler, and its database statement, when the caller's deadline or the contract's has passed."""

    async def wrapped(request: Any, context: Context) -> Any:
        info = auth.current.get()
        if info.bounded:
            return await handler(request, context)
        async with asyncio.timeout_at(info.deadline or None):
            return await handler(request, context)

    return wrapped


def with_principal(handler: Handler, method: MethodInfo) -> Handler:
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


def with_validation(handler: Handler, method: MethodInfo) -> Handler:
    """Refuses a request that breaks the field limits of the contract, naming every field."""

    async def wrapped(request: Message, context: Context) -> Any:
        try:
            _validator.validate(request)
        except protovalidate.ValidationError as error:
            raise errors.violations([_violation(v.proto) for v in error.violations]) from None
        return await handler(request, context)

    return wrapped


def _violation(violation: Any) -> tuple[str, str]:
    path = ""
    for element in violation.field.elements:
        path += ("." if path else "") + element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path, violation.message or violation.rule_id


Middleware = Callable[[Handler, MethodInfo], Handler]
MIDDLEWARE: tuple[Middleware, ...] = (with_call_info, with_errors, with_deadline, with_principal, with_validation)


def wrap(handler: Handler, method: MethodInfo) -> Handler:
    """Returns `handler` with all of MIDDLEWARE around it."""
    for middleware in reversed(MIDDLEWARE):
        handler = middleware(handler, method)
    return handler
