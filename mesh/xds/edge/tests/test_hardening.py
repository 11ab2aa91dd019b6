"""What a hostile client tries at a real edge: forged headers, odd bytes, slowness."""

from __future__ import annotations

import asyncio
import time

import pytest

from mesh.xds.edge.tests.running_edge import Edge, details

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOST = b"Host: localhost\r\nConnection: close\r\n"
GET = b"GET /api/v1/books HTTP/1.1\r\n"
POST = b"POST /api/v1/books HTTP/1.1\r\ncontent-type: application/json\r\n"
FORGED = {
    "x-request-id": "mine",
    "x-forwarded-for": "8.8.8.8",
    "x-forwarded-client-cert": "By=x",
    "x-envoy-attempt-count": "9",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-internal": "true",
    "x-envoy-original-path": "/z",
    "x-user-id": "root",
    "x-jwt-payload": "e30",
    "x-b3-traceid": "1",
    "x-nourish-user": "root",
    "x-nourish-scopes": "all",
    "x-nourish-canaries": "a",
    "x-nourish-status": "500",
}


ODD = {
    "headers that never end": (GET + b"Host: localhost\r\n", 408),
    "body that never ends": (POST + HOST + b"content-length: 9\r\n\r\n{", 408),
    "escaped slash": (b"GET /api/v1/books/a%2fb HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "escaped dots": (b"GET /api/v1/books/%2e%2e%2fx HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "underscore in a header": (GET + b"x_a: 1\r\n" + HOST + b"\r\n", 400),
    "large headers": (GET + b"".join(b"x-%d: %b\r\n" % (n, b"y" * 8000) for n in range(9)) + HOST + b"\r\n", 431),
    "many headers": (GET + b"".join(b"x-%d: 1\r\n" % n for n in range(150)) + HOST + b"\r\n", 431),
    "other host": (GET + b"Host: evil.example\r\nConnection: close\r\n\r\n", 421),
    "two hosts": (GET + b"Host: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n", 421),
    "no host": (GET + b"Connection: close\r\n\r\n", 400),
    "two lengths": (POST + HOST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "rubbish": (b"\x00\x01rubbish\r\n\r\n", 400),
    "HTTP/1.0": (b"GET /api/v1/books HTTP/1.0\r\nHost: localhost\r\n\r\n", 426),
}


@pytest.mark.parametrize("what", ODD)
async def test_odd_bytes_are_refused_in_the_one_shape(edge: Edge, what: str) -> None:
    """Also what Envoy refuses before it has given the request an id."""
    data, status = ODD[what]
    found, headers, body = await edge.raw(data)
    assert found == status
    assert details(body)["id"] == headers["x-request-id"]


async def test_forged_headers_reach_nobody(edge: Edge, token: str) -> None:
    answer = await edge("GET", "/api/v1/books/1", token, headers=FORGED | {"x-nourish-canary": "never"})
    seen = answer.json()["metadata"]
    assert {key for key, value in FORGED.items() if seen.get(key) == value} == set()
    assert (seen["x-nourish-user"], seen["x-nourish-scopes"]) == ("alice", "book.read book.write")
    assert seen["x-request-id"] == answer.headers["x-request-id"]
    assert seen["x-nourish-canary"] == "never"
    assert seen["authorization"] == f"Bearer {token}"  # the sidecar behind this verifies it again


async def test_without_a_token_nobody_is_somebody(edge: Edge) -> None:
    answer = await edge("POST", "/api/v1/books", headers=FORGED)
    assert not {"x-nourish-user", "x-nourish-scopes"} & answer.json()["metadata"].keys()


async def test_the_canary_can_be_asked_for(edge: Edge) -> None:
    """Nobody serves it in this test."""
    answer = await edge("GET", "/api/v1/books", headers={"x-nourish-canary": "always"})
    assert (answer.status_code, details(answer.text)["reason"]) == (503, "UNAVAILABLE")


@pytest.mark.parametrize(("asked", "least", "most"), [("999S", 4, 5), ("", 4, 5), ("2S", 1, 2)])
async def test_the_nearer_deadline_holds(edge: Edge, token: str, asked: str, least: float, most: float) -> None:
    """The contract's 5 s, or the client's own if it is nearer."""
    headers = {"grpc-timeout": asked} if asked else {}
    answer = await edge("GET", "/api/v1/books/1", token, headers=headers)
    assert least < answer.json()["secondsLeft"] <= most


async def test_a_client_s_deadline_ends_the_call(edge: Edge) -> None:
    start = time.monotonic()
    answer = await edge("GET", "/api/v1/fail/slow", headers={"grpc-timeout": "100m"})
    assert (answer.status_code, details(answer.text)["reason"]) == (504, "DEADLINE_EXCEEDED")
    assert time.monotonic() - start < 0.45


@pytest.mark.parametrize(("origin", "allowed"), [("http://localhost:5173", True), ("http://evil.example", False)])
async def test_pages_of_this_machine_may_read_answers_and_errors(edge: Edge, origin: str, allowed: bool) -> None:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    for answer in (
        await edge("OPTIONS", "/api/v1/books", headers=asked),
        await edge("GET", "/api/v1/books", headers={"origin": origin}),
        await edge("GET", "/api/v1/books/1", headers={"origin": origin}),
    ):
        assert (answer.headers.get("access-control-allow-origin") == origin) == allowed


async def test_no_lua_failed(edge: Edge) -> None:
    """Envoy lets a request pass on which Lua failed: the check must not rely on it."""
    await asyncio.sleep(0)
    assert "[lua]" not in edge.log.read_text()


async def test_the_log_tells_request_method_and_outcome_but_no_query(edge: Edge) -> None:
    answer = await edge("GET", "/api/v1/books?pageSize=1")
    end = time.monotonic() + 15
    while answer.headers["x-request-id"] not in edge.log.read_text():
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    line = next(line for line in edge.log.read_text().splitlines() if answer.headers["x-request-id"] in line)
    assert '"request":"GET /api/v1/books"' in line
    assert '"method":"nourish.shelf.v1.ShelfService/ListBooks"' in line
    assert "pageSize" not in line
