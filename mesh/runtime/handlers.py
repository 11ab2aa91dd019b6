"""The four kinds of methods as one kind: every handler takes a request, or an iterator of them, and is awaited.

So each middleware is written once. What a streaming handler yields is written to the stream inside the same await, and
with it within the same deadline, context and error handling.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor, message_factory
from google.protobuf.message import DecodeError, Message
from nourish.mesh.v1 import policy_pb2

from mesh.runtime import errors

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]
if TYPE_CHECKING:
    RpcHandler = grpc.RpcMethodHandler[Any, Any]


@dataclass(frozen=True)
class MethodInfo:
    """What the contract says of the method that is wrapped."""

    path: str
    deadline_seconds: float  # 0 if the contract gives none (health, reflection)
    needs_user: bool
    scopes: frozenset[str]
    response: type[Message]
    streams_requests: bool = False
    streams_responses: bool = False
    takes_request_id: bool = False  # AIP-155: a repeat with the same one is harmless

    @classmethod
    def of(cls, method: descriptor.MethodDescriptor) -> MethodInfo:
        """Reads the policy of a method."""
        policy = method.GetOptions().Extensions[policy_pb2.method]
        streams = method.client_streaming or method.server_streaming
        return cls(
            path=f"/{method.containing_service.full_name}/{method.name}",
            deadline_seconds=policy.deadline.seconds + policy.deadline.nanos / 1e9,
            needs_user=policy.access == policy_pb2.ACCESS_USER,
            scopes=frozenset(policy.scopes),
            response=message_factory.GetMessageClass(method.output_type),
            streams_requests=method.client_streaming,
            streams_responses=method.server_streaming,
            takes_request_id="request_id" in method.input_type.fields_by_name and not streams,
        )

    @property
    def kind(self) -> str:
        """Which of gRPC's four kinds it is, as metrics call them."""
        if self.streams_requests and self.streams_responses:
            return "bidi_stream"
        return "client_stream" if self.streams_requests else "server_stream" if self.streams_responses else "unary"

    @property
    def streams(self) -> bool:
        """Whether either side sends more than one message."""
        return self.streams_requests or self.streams_responses


# Stands for a request whose bytes are no message of the contract's type; validation refuses it.
MALFORMED = object()


def shaped(handler: RpcHandler, method: MethodInfo) -> Handler:
    """The servicer's code behind a registered handler, in the one shape."""
    if not is_implemented(handler):
        return _unimplemented(method)
    code = _code(handler)
    return _writing(code) if method.streams_responses else code


def is_implemented(handler: RpcHandler) -> bool:
    """Whether the code is the servicer's own, not what was generated to say that there is none."""
    return not _code(handler).__module__.endswith("_pb2_grpc")


def _code(handler: RpcHandler) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def register(handler: Handler, like: RpcHandler) -> RpcHandler:
    """What the server takes: `handler` as a method of the kind that `like` is."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[like.request_streaming, like.response_streaming]
    return make(handler, _parsing(like.request_deserializer), like.response_serializer)


def _writing(method: Callable[[Any, Context], Any]) -> Handler:
    async def wrapped(request: Any, context: Context) -> None:
        async with aclosing(method(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return wrapped


def _unimplemented(method: MethodInfo) -> Handler:
    async def wrapped(request: Any, context: Context) -> None:
        raise errors.unimplemented(method.path)

    return wrapped


def _parsing(parse: Any) -> Callable[[bytes], Any]:
    """gRPC would answer UNKNOWN with the parser's own text."""

    def wrapped(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return MALFORMED

    return wrapped
