"""What every client may rely on at the edge, by table: conformance/*.yaml, against the whole running mesh."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import code_pb2, error_details_pb2, status_pb2
from nourish.error.v1.reason_pb2 import Reason
from nourish.food.v1 import food_pb2 as _food  # noqa: F401 - makes its messages known
from nourish.profile.v1 import profile_pb2 as _profile  # noqa: F401

TABLES = Path(__file__).parents[1] / "conformance"
ENGINE_WORDS = ("upstream", "envoy", "jwt", "rbac", "sqlalchemy", "asyncpg", "traceback", "python")


def cases(*tables: str) -> list[Any]:
    """The cases of these tables, each with its name as the test's."""
    return [pytest.param(case, id=case["name"]) for t in tables for case in yaml.safe_load((TABLES / t).read_text())]


@pytest.fixture(scope="session")
def sign_in(mesh):
    """Headers for the `as` of a case; tokens are minted once."""
    minted: dict[str, dict[str, str]] = {}

    def headers(who: dict[str, Any] | None) -> dict[str, str]:
        if who is None:
            return {}
        key = json.dumps(who, sort_keys=True)
        if key not in minted:
            made = mesh.token(who["user"], *who.get("scopes", ()), ttl=who.get("ttl", "1h"))
            if who.get("damage"):
                head, dot, signature = made["authorization"].rpartition(".")
                made["authorization"] = head + dot + signature[:8] + signature[8:][::-1]
            minted[key] = made
        return minted[key]

    return headers


def body_of(case: dict[str, Any]) -> dict[str, Any]:
    """The body of a REST case as httpx takes it."""
    if "json" in case:
        return {"json": case["json"]}
    if "body" in case:
        return {"content": case["body"]}
    if "hex" in case:
        return {"content": bytes.fromhex(case["hex"])}
    return {"content": b'{"lines":["' + b"x" * case["bytes"] + b'"]}'} if "bytes" in case else {}


@pytest.mark.parametrize("case", cases("paths.yaml", "bodies.yaml", "tokens.yaml", "applications.yaml"))
def test_rest(mesh, sign_in, case):
    method, path = case["request"].split(" ", 1)
    body = body_of(case)
    kind = {"content-type": "application/json"} if body else {}
    headers = kind | sign_in(case.get("as")) | case.get("headers", {})
    answer = httpx.request(method, mesh.url + path, headers=headers, timeout=20, **body)
    expect = case["expect"]
    assert answer.status_code == expect["status"], answer.text
    for name, value in expect.get("headers", {}).items():
        assert answer.headers[name] == value
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] != headers.get("x-request-id")
    if answer.is_success:
        assert set(expect.get("has", ())) <= answer.json().keys()
        assert expect.get("equals", {}).items() <= answer.json().items()
    else:
        _check_error(answer, expect)


def _check_error(answer: httpx.Response, expect: dict[str, Any]) -> None:
    """The one shape: google.rpc.Status with ErrorInfo and the request id."""
    status = answer.json()
    assert set(status) == {"code", "message", "details"}
    details = {detail["@type"].rpartition(".")[2]: detail for detail in status["details"]}
    assert all(d["@type"].startswith("type.googleapis.com/google.rpc.") for d in details.values())
    info = details["ErrorInfo"]
    assert (code_pb2.Code.Name(status["code"]), info["reason"]) == (expect["code"], expect["reason"]), answer.text
    assert f"REASON_{info['reason']}" in Reason.keys()  # noqa: SIM118 - an enum wrapper is no mapping
    assert info["domain"] == "nourish.local"
    assert isinstance(info["metadata"], dict)
    assert details["RequestInfo"]["requestId"] == answer.headers["x-request-id"]
    assert expect.get("says", "") in status["message"]
    assert not [word for word in ENGINE_WORDS if word in status["message"].lower()]
    if "fields" in expect:
        assert [v["field"] for v in details["BadRequest"]["fieldViolations"]] == expect["fields"]
        assert all(v["description"] for v in details["BadRequest"]["fieldViolations"])


def _request(case: dict[str, Any]) -> bytes:
    if "bytes" in case:
        return b"\x0a" + _varint(case["bytes"]) + b"x" * case["bytes"]
    if "json" not in case:
        return b""
    service, method = case["call"].split("/")
    found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
    request = message_factory.GetMessageClass(found.input_type)()
    return json_format.ParseDict(case["json"], request).SerializeToString()


def _varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out, value = out + bytes([value % 128 | 128]), value // 128
    return out + bytes([value])


def _check_status(metadata: dict[str, Any], code: str, details: bytes | None, expect: dict[str, Any]) -> None:
    assert code == expect["code"], metadata
    if code == "OK":
        return
    assert details is not None, metadata
    status = status_pb2.Status.FromString(details)
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert any(detail.Unpack(request) for detail in status.details)
    assert (code_pb2.Code.Name(status.code), info.reason, info.domain) == (code, expect["reason"], "nourish.local")
    assert request.request_id == metadata["x-request-id"]
    assert not [word for word in ENGINE_WORDS if word in status.message.lower()]


@pytest.mark.parametrize("case", cases("grpc.yaml"))
def test_grpc(mesh, sign_in, case):
    with grpc.insecure_channel(mesh.url.removeprefix("http://")) as channel:
        call = channel.unary_unary(f"/{case['call']}")
        metadata = tuple(sign_in(case.get("as")).items())
        try:
            _, done = call.with_call(_request(case), metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            done = error
    found = dict([*done.initial_metadata(), *done.trailing_metadata()])
    _check_status(found, done.code().name, found.get("grpc-status-details-bin"), case["expect"])


@pytest.mark.parametrize("case", cases("grpc.yaml"))
def test_grpc_web(mesh, sign_in, case):
    message = _request(case)
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **sign_in(case.get("as"))}
    frame = struct.pack(">BI", 0, len(message)) + message
    answer = httpx.post(f"{mesh.url}/{case['call']}", content=frame, headers=headers, timeout=20)
    assert answer.status_code == 200
    found, data = dict(answer.headers), answer.content
    while data:
        flags, size = struct.unpack(">BI", data[:5])
        if flags & 0x80:
            lines = data[5 : 5 + size].decode().strip().splitlines()
            found |= {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines)}
        data = data[5 + size :]
    details = found.get("grpc-status-details-bin")
    unpadded = base64.b64decode(details + "=" * (-len(details) % 4)) if details else None
    _check_status(found, code_pb2.Code.Name(int(found["grpc-status"])), unpadded, case["expect"])
