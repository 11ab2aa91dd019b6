"""Stands before every handler as the inbound sidecar would: who calls, on whose behalf, and may they."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from mesh.runtime import auth
from mesh.runtime.proxyless import credentials
from mesh.runtime.proxyless.inbound import Inbound
from mesh.runtime.proxyless.tokens import Claims, TokenError

PRIVATE = ("/grpc.health.v1.Health/", "/grpc.reflection.")
SPIFFE_ID = "peer_spiffe_id"  # gRPC's word for the one URI in a certificate that it has verified
if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

# Headers that only the mesh may set.
OURS = ("x-nourish-", "x-envoy-", auth.CERTIFICATE_HEADER)
LULL_SECONDS, POLL_SECONDS = 0.2, 0.02

_MAKE: dict[tuple[bool, bool], tuple[str, Callable[..., Handler]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class RefusedError(Exception):
    """A call that the rules do not allow."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Guard:
    """Lets through what the rules allow. The handler sees the headers that a sidecar would have left and set."""

    def __init__(self, inbound: Inbound, identity: Path) -> None:
        self._inbound, self._identity = inbound, identity
        self._running = 0
        self._last = 0.0

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Lets the mesh in, by mTLS alone; the port, which the kernel may have chosen.

        Raises:
            RuntimeError: the address is taken.
            OSError: there is no identity.
        """
        return server.add_secure_port(address, credentials.server(self._identity))

    async def lull(self, seconds: float) -> None:
        """Returns when nothing runs and nobody has called for a moment: who was told to stay away has heard it."""
        self._last = time.monotonic()
        deadline = self._last + seconds
        while self._running or time.monotonic() - self._last < LULL_SECONDS:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(POLL_SECONDS)

    def door(self, server: grpc.aio.Server) -> Door:
        """Where to register handlers at the server, so that none stands outside."""
        return Door(self, server)

    def before(self, path: str, handler: Any) -> Handler:
        """The handler of a method, behind the guard."""
        kind, make = _MAKE[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind)

        async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._counted():
                async for answer in behaviour(request, await self._admitted(path, context)):
                    yield answer

        async def answer(request: Any, context: Any) -> Any:
            with self._counted():
                return await behaviour(request, await self._admitted(path, context))

        wrapped = answers if inspect.isasyncgenfunction(behaviour) else answer
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        self._last = time.monotonic()
        try:
            yield
        finally:
            self._running -= 1

    async def _admitted(self, path: str, context: Any) -> _Admitted:
        try:
            return _Admitted(context, self._admit(path, context))
        except RefusedError as refusal:
            await context.abort(refusal.code, refusal.message)
            raise

    def _admit(self, path: str, context: Any) -> tuple[tuple[str, str | bytes], ...]:
        """The headers for the handler; refuses what may not be called."""
        caller = _caller(context.auth_context())
        sent = context.invocation_metadata() or ()
        if caller is None:  # on the private socket whoever started the process asks how and what it is
            if not (path.startswith(PRIVATE) and context.peer().startswith("unix:")):
                raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, "the caller has no identity of this mesh")
            return tuple(sent)
        rules = self._inbound.rules
        if rules is None or not rules.allow(caller, path):
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, f"{caller} may not call {path}")
        try:
            claims = rules.tokens.verify(_value(sent, auth.AUTHORIZATION_HEADER))
        except TokenError as error:
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, f"the token is not valid: {error}") from None
        return tuple(_headers(sent, caller, claims))


class Door:
    """Where handlers are registered at a server, each behind the guard. An interceptor would cost every call more."""

    def __init__(self, guard: Guard, server: grpc.aio.Server) -> None:
        self._guard, self._server = guard, server

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """As the server's."""
        self._server.add_generic_rpc_handlers(tuple(_Guarded(self._guard, handler) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """As the server's."""
        guarded = {name: self._guard.before(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, guarded)


class _Guarded(grpc.GenericRpcHandler):
    def __init__(self, guard: Guard, handler: grpc.GenericRpcHandler) -> None:
        self._guard, self._handler = guard, handler
        self._known: dict[str, Handler] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        path = str(details.method)
        if path not in self._known:
            found = self._handler.service(details)
            if found is None:
                return None
            self._known[path] = self._guard.before(path, found)
        return self._known[path]


class _Admitted:
    """The context of a call, with the headers that are known to be true."""

    __slots__ = ("_context", "_metadata")

    def __init__(self, context: Any, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._context, self._metadata = context, metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _caller(peer: Any) -> str | None:
    ids = peer.get(SPIFFE_ID, ())
    return ids[0].decode() if len(ids) == 1 else None


def _value(sent: Iterable[tuple[str, str | bytes]], name: str) -> str:
    for key, value in sent:
        if key == name and isinstance(value, str):
            return value
    return ""


def _headers(
    sent: Iterable[tuple[str, str | bytes]], caller: str, claims: Claims | None
) -> list[tuple[str, str | bytes]]:
    found = [(key, value) for key, value in sent if not key.startswith(OURS) or key == auth.CANARY_HEADER]
    if not _value(found, auth.REQUEST_ID_HEADER):
        # No secret, and so without uuid4's system call, which some sandboxes make dearer than the call itself.
        found.append((auth.REQUEST_ID_HEADER, str(uuid.UUID(int=random.getrandbits(128), version=4))))
    found.append((auth.CERTIFICATE_HEADER, f"URI={caller}"))
    if claims:
        found += ((auth.USER_HEADER, claims.user), (auth.SCOPES_HEADER, claims.scopes))
    return found
