"""gRPC and gRPC-Web at a real edge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from mesh.xds.edge.tests.running_edge import Edge
from mesh.xds.edge.tests.shelf import SERVICE, Messages

pytestmark = pytest.mark.asyncio(loop_scope="session")

BIG_NAME = "x" * (11 << 20)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
        yield channel


def why(metadata: Any) -> tuple[str, str, str]:
    """Message, reason and request id of the status details among headers or trailers."""
    packed = next(value for key, value in metadata if key == "grpc-status-details-bin")
    status = status_pb2.Status.FromString(packed)
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert any(detail.Unpack(request) for detail in status.details)
    assert info.domain == "nourish.local"
    return status.message, info.reason, request.request_id


@pytest.mark.parametrize(
    ("path", "request_fields", "signed_in", "code", "reason"),
    [
        (f"/{SERVICE}/GetBook", {}, False, "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (f"/{SERVICE}/Fail", {"how": "details"}, False, "NOT_FOUND", "NOT_FOUND"),
        (f"/{SERVICE}/Fail", {"how": "details-headers"}, False, "NOT_FOUND", "NOT_FOUND"),
        (f"/{SERVICE}/Fail", {"how": "plain", "code": 14}, False, "UNAVAILABLE", "UNAVAILABLE"),
        (f"/{SERVICE}/Fail", {"how": "plain-headers", "code": 9}, False, "FAILED_PRECONDITION", "FAILED_PRECONDITION"),
        (f"/{SERVICE}/Fail", {"how": "crash"}, False, "INTERNAL", "INTERNAL"),
        (f"/{SERVICE}/Fail", {"how": "slow"}, False, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        (f"/{SERVICE}/CreateBook", {"book": {"name": BIG_NAME}}, False, "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
        ("/nourish.mesh.v1.EdgeService/GetHealth", {}, False, "UNAVAILABLE", "UNAVAILABLE"),
        # Not on the allow-list.
        (f"/{SERVICE}/Sweep", {}, True, "UNIMPLEMENTED", "UNIMPLEMENTED"),
        (f"/{SERVICE}/Nothing", {}, True, "UNIMPLEMENTED", "UNIMPLEMENTED"),
        ("/grpc.health.v1.Health/Check", {}, True, "UNIMPLEMENTED", "UNIMPLEMENTED"),
        ("/grpc.reflection.v1alpha.ServerReflection/Info", {}, True, "UNIMPLEMENTED", "UNIMPLEMENTED"),
    ],
)
async def test_a_failure_has_its_code_and_details(
    channel: grpc.aio.Channel,
    messages: Messages,
    token: str,
    path: str,
    request_fields: dict[str, Any],
    signed_in: bool,
    code: str,
    reason: str,
) -> None:
    """Of an application, a proxy or a library: the same details, and no engine's words."""
    kinds = {"Fail": "FailRequest", "CreateBook": "CreateBookRequest"}
    request = getattr(messages, kinds.get(path.rpartition("/")[2], "GetBookRequest"))(**request_fields)
    metadata = (("authorization", f"Bearer {token}"),) if signed_in else ()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(path)(request.SerializeToString(), metadata=metadata, timeout=9)
    error = caught.value
    everything = [*error.initial_metadata(), *error.trailing_metadata()]
    message, found, request_id = why(everything)
    assert (error.code().name, found) == (code, reason)
    assert message == error.details()
    assert "secret" not in message
    assert request_id == dict(everything)["x-request-id"]


async def test_a_call_passes(channel: grpc.aio.Channel, messages: Messages, token: str) -> None:
    call = channel.unary_unary(f"/{SERVICE}/GetBook", response_deserializer=messages.Seen.FromString)
    request = messages.GetBookRequest(name="books/1").SerializeToString()
    seen = await call(request, metadata=(("authorization", f"Bearer {token}"),))
    assert seen.name == "books/1"


async def test_a_stream_passes(channel: grpc.aio.Channel, messages: Messages) -> None:
    call = channel.unary_stream(f"/{SERVICE}/WatchBooks", response_deserializer=messages.Book.FromString)
    request = messages.ListBooksRequest(page_size=3).SerializeToString()
    assert [book.name async for book in call(request)] == ["books/0", "books/1", "books/2"]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    ("method", "signed_in", "fields", "status"),
    [
        ("GetBook", True, {"name": "books/1"}, 0),
        ("WatchBooks", True, {"page_size": 3}, 0),
        ("GetBook", False, {}, 16),
        ("Sweep", True, {}, 12),
        ("Fail", False, {"how": "details"}, 5),
        ("Fail", False, {"how": "plain-headers"}, 5),
        ("Fail", False, {"how": "slow"}, 4),
    ],
)
async def test_grpc_web(
    edge: Edge, messages: Messages, token: str, text: bool, method: str, signed_in: bool, fields: Any, status: int
) -> None:
    """Binary and text: HTTP 200 with a gRPC status, which has details if it is not OK."""
    kinds = {"Fail": "FailRequest", "WatchBooks": "ListBooksRequest"}
    request = getattr(messages, kinds.get(method, "GetBookRequest"))(**fields).SerializeToString()
    found, headers = await edge.web(f"/{SERVICE}/{method}", request, token if signed_in else "", text=text)
    assert int(headers["grpc-status"]) == status
    assert ("grpc-status-details-bin" in headers) == (status != 0)
    assert len(found) == (0 if status else fields.get("page_size", 1))
