"""The contract of talk.proto, compiled on the spot as others are, and what tests read of a failed call."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def compiled(name: str) -> tuple[Any, Any]:
    """The modules of a contract in this folder."""
    packages = Path(sysconfig.get_paths()["purelib"])
    with tempfile.TemporaryDirectory() as folder:
        includes = (HERE, ROOT / "protos", ROOT / ".deps/protos", packages / "grpc_tools/_proto", packages)
        flags = [*(f"-I{path}" for path in includes), f"--python_out={folder}", f"--grpc_python_out={folder}"]
        assert protoc.main(["protoc", *flags, f"{name}.proto"]) == 0
        sys.path.insert(0, folder)
        try:
            return import_module(f"{name}_pb2"), import_module(f"{name}_pb2_grpc")
        finally:
            sys.path.remove(folder)


pb, pb_grpc = compiled("talk")
Line, SayRequest = pb.Line, pb.SayRequest
Servicer, Stub = pb_grpc.TalkServiceServicer, pb_grpc.TalkServiceStub
_KINDS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RequestInfo,
    error_details_pb2.RetryInfo,
)


class Refused:
    """A block that fails: then `code`, `text`, and the details by the name of their message."""

    def __enter__(self) -> Refused:
        self._raises = pytest.raises(grpc.aio.AioRpcError)
        self._caught = self._raises.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool:
        done = self._raises.__exit__(*error)
        found = self._caught.value
        self.code, self.text, self.whole = found.code(), found.details(), f"{found} {found.trailing_metadata()}"
        self.details: dict[str, Any] = {}
        trailers = dict(found.trailing_metadata())
        for packed in status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b"")).details:
            for kind in _KINDS:
                detail = kind()
                if packed.Unpack(detail):
                    self.details[kind.__name__] = detail
        return done

    @property
    def reason(self) -> str:
        return self.details["ErrorInfo"].reason
