"""Channels into a running mesh, as a signed-in user or as nobody."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from nourish.mesh.v1 import policy_pb2

from mesh.identity import tokens
from mesh.runtime import options

SECONDS = 20.0  # a call that hangs is a failure with a name, and not a test that hangs


def opened(target: str, identity: Path, user: str, scopes: tuple[str, ...]) -> _Channel:
    """A channel whose calls carry the token of `user`, if there is one, with `scopes` or those of the method."""
    how = options.CLIENT if target.startswith("unix:") else ()  # a sidecar's socket has no host name; the edge has
    return _Channel(grpc.aio.insecure_channel(target, options=how), identity, user, scopes)


class _Channel:
    """What a generated stub asks of a channel."""

    def __init__(self, inner: grpc.aio.Channel, identity: Path, user: str, scopes: tuple[str, ...]) -> None:
        self._inner, self._identity, self._user, self._scopes = inner, identity, user, scopes

    def unary_unary(self, path: str, *args: Any, **more: Any) -> Any:
        return self._signed(self._inner.unary_unary(path, *args, **more), path)

    def unary_stream(self, path: str, *args: Any, **more: Any) -> Any:
        return self._signed(self._inner.unary_stream(path, *args, **more), path)

    def stream_unary(self, path: str, *args: Any, **more: Any) -> Any:
        return self._signed(self._inner.stream_unary(path, *args, **more), path)

    def stream_stream(self, path: str, *args: Any, **more: Any) -> Any:
        return self._signed(self._inner.stream_stream(path, *args, **more), path)

    def _signed(self, call: Callable[..., Any], path: str) -> Callable[..., Any]:
        def signed(*request: Any, timeout: float = SECONDS, metadata: Any = (), **more: Any) -> Any:
            sent = [*(metadata or ())]
            if self._user:
                token = _token(self._identity, self._user, self._scopes or _scopes(path))
                sent.append(("authorization", f"Bearer {token}"))
            return call(*request, timeout=timeout, metadata=sent, **more)

        return signed


@cache
def _token(identity: Path, user: str, scopes: tuple[str, ...]) -> str:
    return tokens.mint(identity, user, scopes)


def _scopes(path: str) -> tuple[str, ...]:
    """Those that a method asks for, by its contract."""
    method = descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))
    return tuple(method.GetOptions().Extensions[policy_pb2.method].scopes)
