"""`call`: a typed stub on the one channel to the sidecar's egress, which routes by the service name in the path.

Retries, hedging, balancing, mTLS and canaries are the sidecar's, or gRPC's own where there is none; this side only
passes on what belongs to the request that is being served: what is left of its deadline, its user's token, its request
id, its trace, the canary and fault it asks for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import grpc
from google.protobuf import descriptor_pool
from nourish.mesh.v1 import policy_pb2

from mesh.runtime import auth, options
from mesh.runtime.environment import environment, required
from mesh.runtime.telemetry import traces

Stub = TypeVar("Stub")
_KEY_HEADER = "x-nourish-key"
_XDS = "xds:"  # gRPC's own client, without a sidecar


def call(stub: Callable[[grpc.aio.Channel], Stub]) -> Stub:
    """Returns a typed async stub of another service: `call(FoodServiceStub)`.

    Raises:
        RuntimeError: NOURISH_EGRESS is not set.
    """
    return stub(egress())


@cache
def egress() -> grpc.aio.Channel:
    """The channel of this process to the mesh. Opened on first use, never closed before the process ends."""
    target = required(environment().egress, "NOURISH_EGRESS")
    if target.startswith(_XDS):
        credentials = grpc.xds_channel_credentials()
        channel = grpc.aio.secure_channel(target, credentials, options=options.CLIENT_WITHOUT_SIDECAR)
        return passing_on(channel, bounded=True)
    return passing_on(grpc.aio.insecure_channel(target, options=options.CLIENT))


def passing_on(channel: grpc.aio.Channel, *, bounded: bool = False) -> grpc.aio.Channel:
    """Returns `channel` such that every call on it carries what the request being served passes on.

    Args:
        channel: to the mesh.
        bounded: whether the contract's deadline is set here, for want of a sidecar that does.
    """
    return _PassingOn(channel, bounded)


class _PassingOn(grpc.aio.Channel):
    """Wraps the multi-callables: grpc.aio's own interceptors cost a task a call."""

    def __init__(self, channel: grpc.aio.Channel, bounded: bool) -> None:
        self._channel, self._bounded = channel, bounded

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(self._channel.unary_unary(method, *args, **kwargs), method, _policy(method).hash_key)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(self._channel.unary_stream(method, *args, **kwargs), method, _policy(method).hash_key)

    # No key where the requests are a stream: the headers go out before the first of them.

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(self._channel.stream_unary(method, *args, **kwargs), method)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(self._channel.stream_stream(method, *args, **kwargs), method)

    def _wrapped(self, inner: Callable[..., Any], method: str, field: str = "") -> Callable[..., Any]:
        longest = _policy(method).deadline.ToMicroseconds() / 1e6 if self._bounded else 0.0
        return _with_call_info(inner, method, field, longest)

    async def __aenter__(self) -> _PassingOn:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()


@cache
def _policy(path: str) -> policy_pb2.MethodPolicy:
    """What the contract says of a method; nothing, if it is none of ours."""
    try:
        method = descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))
    except KeyError:
        return policy_pb2.MethodPolicy()
    return method.GetOptions().Extensions[policy_pb2.method]


def _hash_key(field: str, request: Any) -> tuple[tuple[str, str], ...]:
    """The header with a digest: a header holds no text of any language, and no log should hold this one."""
    value = getattr(request, field) if field else None
    return ((_KEY_HEADER, hashlib.blake2b(str(value).encode(), digest_size=8).hexdigest()),) if value else ()


def _with_call_info(inner: Callable[..., Any], path: str, field: str, longest: float) -> Callable[..., Any]:
    name, attributes = traces.named(path)

    def multicallable(request: Any = None, *, timeout: float | None = None, metadata: Any = None, **kwargs: Any) -> Any:
        info = auth.current.get()
        if longest:
            timeout = longest if timeout is None else min(timeout, longest)
        if info.deadline:
            left = max(info.deadline - asyncio.get_running_loop().time(), 0.0)
            timeout = left if timeout is None else min(timeout, left)
        passed = [(k, info.headers[k]) for k in auth.PASSED_ON if k in info.headers]
        span = traces.begun(name, traces.CLIENT, *attributes)
        if span:
            passed = [*((k, v) for k, v in passed if k != auth.TRACE_HEADER), (auth.TRACE_HEADER, span.header)]
        call = inner(
            request, timeout=timeout, metadata=(*passed, *_hash_key(field, request), *(metadata or ())), **kwargs
        )
        if span:
            call.add_done_callback(partial(_ended, span))
        return call

    return multicallable


_ending: set[asyncio.Task[None]] = set()


def _ended(span: traces.Span, call: Any) -> None:
    """gRPC tells how a call ended to a coroutine alone."""

    async def end() -> None:
        span.answered((await call.code()).value[0])

    task = asyncio.get_running_loop().create_task(end())
    _ending.add(task)
    task.add_done_callback(_ending.discard)
