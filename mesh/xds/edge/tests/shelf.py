"""The contract of shelf.proto, compiled on the spot, and an application that serves it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2

from mesh.contract import Contract
from mesh.xds.edge import reach

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
SERVICE = "nourish.shelf.v1.ShelfService"
BIG = 9007199254740993  # 2**53 + 1: not a double
ENGINE_TEXT = "upstream connect error or disconnect/reset before headers: secret"


def contract() -> Contract:
    """The shelf and the edge's own service."""
    packages = sysconfig.get_paths()["purelib"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "shelf.binpb"
        folders = (HERE, ROOT / "protos", packages, Path(packages) / "grpc_tools/_proto")
        includes = [f"-I{folder}" for folder in folders]
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            *includes,
            "--include_imports",
            f"--descriptor_set_out={out}",
        ]
        subprocess.run([*command, "shelf.proto", "nourish/mesh/v1/edge.proto", reach.ERROR_DETAILS], check=True)
        return Contract.load(out.read_bytes())


class Messages:
    """Message classes by name, `messages.Book`."""

    def __init__(self, contract: Contract) -> None:
        self.pool = descriptor_pool.DescriptorPool()
        for file in contract.descriptors.file:
            self.pool.Add(file)

    def __getattr__(self, name: str) -> Any:
        found = self.pool.FindMessageTypeByName(f"nourish.shelf.v1.{name}")
        return message_factory.GetMessageClass(found)


class Shelf(grpc.GenericRpcHandler):
    """Answers what it was given, or fails in the way it was asked to."""

    def __init__(self, messages: Messages) -> None:
        self.messages = messages

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        service, name = details.method[1:].split("/")
        if service != SERVICE:
            return None
        method = self.messages.pool.FindServiceByName(SERVICE).FindMethodByName(name)
        handler = {"Fail": self.fail, "ListBooks": self.list, "WatchBooks": self.watch}.get(name, self.echo)
        make = grpc.unary_stream_rpc_method_handler if name == "WatchBooks" else grpc.unary_unary_rpc_method_handler
        request = message_factory.GetMessageClass(method.input_type)
        return make(handler, request.FromString, lambda message: message.SerializeToString())

    async def echo(self, request: Any, context: Any) -> Any:
        seen = self.messages.Seen(metadata={k: str(v) for k, v in context.invocation_metadata()})
        seen.seconds_left = context.time_remaining() or 0
        for field, value in request.ListFields():
            if field.name in ("name", "edition"):
                setattr(seen, field.name, value)
            elif field.name in ("book", "update_mask"):
                getattr(seen, field.name).CopyFrom(value)
        return seen

    async def list(self, request: Any, _: Any) -> Any:
        books = [
            self.messages.Book(name=f"books/{n}", display_name="x" * 90, words=BIG) for n in range(request.page_size)
        ]
        return self.messages.ListBooksResponse(books=books)

    async def watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if not request.page_size:
            await context.abort(grpc.StatusCode.NOT_FOUND, ENGINE_TEXT)
        for n in range(request.page_size):
            yield self.messages.Book(name=f"books/{n}")

    async def fail(self, request: Any, context: Any) -> Any:
        code = next(c for c in grpc.StatusCode if c.value[0] == (request.code or 5))
        if request.how == "crash":
            raise RuntimeError(ENGINE_TEXT)
        if request.how == "slow":
            await asyncio.sleep(30)
        if "headers" in request.how:
            await context.send_initial_metadata((("x-early", "1"),))
        if "details" not in request.how:
            await context.abort(code, ENGINE_TEXT)
        headers = dict(context.invocation_metadata())
        status = status_pb2.Status(code=code.value[0], message="There is no such book.")
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="nourish.local"))
        violation = error_details_pb2.BadRequest.FieldViolation(field="name", description="is none")
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        status.details.add().Pack(error_details_pb2.RequestInfo(request_id=headers["x-request-id"]))
        await context.abort(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
