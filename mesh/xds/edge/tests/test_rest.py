"""REST at a real edge: what passes, what is refused, and that every refusal has the one shape."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from joserfc import jwt

from mesh.identity import tokens
from mesh.xds.edge.tests.running_edge import Edge, details
from mesh.xds.edge.tests.shelf import BIG

pytestmark = pytest.mark.asyncio(loop_scope="session")

INVALID, UNKNOWN_PATH = (400, 3, "INVALID_ARGUMENT"), (404, 12, "UNIMPLEMENTED")
NOT_ALLOWED, TOO_LARGE = (405, 12, "UNIMPLEMENTED"), (413, 8, "RESOURCE_EXHAUSTED")
NO_TOKEN, FORBIDDEN = (401, 16, "UNAUTHENTICATED"), (403, 7, "PERMISSION_DENIED")
UNAVAILABLE, LATE = (503, 14, "UNAVAILABLE"), (504, 4, "DEADLINE_EXCEEDED")
JSON = {"content-type": "application/json"}
BOOKS, RENAME = "/api/v1/books", "/api/v1/books/7:rename"


def refused(answer: Any, expected: tuple[int, int, str]) -> dict[str, Any]:
    """The answer's details, if it is this refusal in the one shape, with the request id of its header."""
    found = details(answer.text)
    assert (answer.status_code, found["code"], found["reason"]) == expected, answer.text
    assert found["id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    return found


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/api/v1/nope", UNKNOWN_PATH),
        ("GET", "/nope", UNKNOWN_PATH),
        ("POST", "/api/v1/books/7:eat", UNKNOWN_PATH),
        ("POST", "/nourish.shelf.v1.ShelfService/ListBooks", UNKNOWN_PATH),
        ("DELETE", "/api/v1/books?x=a:b/c", NOT_ALLOWED),
        ("GET", "/api/v1/books/7:rename", NOT_ALLOWED),
        ("GET", "/api/v1/books?zz=1", INVALID),
        ("GET", "/api/v1/books?pageSize=many", INVALID),
        ("GET", "/api/v1/fail/details", (404, 5, "NOT_FOUND")),
        ("GET", "/api/v1/fail/details-headers", (404, 5, "NOT_FOUND")),
        ("GET", "/api/v1/fail/plain?code=14", UNAVAILABLE),
        ("GET", "/api/v1/fail/plain-headers?code=14", UNAVAILABLE),
        ("GET", "/api/v1/fail/plain?code=7", FORBIDDEN),
        ("GET", "/api/v1/fail/plain?code=16", NO_TOKEN),
        ("GET", "/api/v1/fail/plain?code=12", (501, 12, "UNIMPLEMENTED")),
        ("GET", "/api/v1/fail/crash", (500, 13, "INTERNAL")),
        ("GET", "/api/v1/fail/slow", LATE),
        ("GET", "/health", UNAVAILABLE),
        ("GET", "/api/v1/books:watch", (404, 5, "NOT_FOUND")),
    ],
)
async def test_a_failure_has_its_status_code_and_reason(
    edge: Edge, method: str, path: str, expected: tuple[int, int, str]
) -> None:
    """Whoever fails, the transcoder, Envoy, the application with or without details: one shape."""
    refused(await edge(method, path), expected)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("DELETE", BOOKS, "GET, POST"), ("PUT", "/api/v1/books/7/", "GET, PATCH"), ("GET", RENAME, "POST")],
)
async def test_a_wrong_method_is_told_the_right_ones(edge: Edge, method: str, path: str, allow: str) -> None:
    answer = await edge(method, path)
    refused(answer, NOT_ALLOWED)
    assert answer.headers["allow"] == allow


DEEP = 40
RICH = {
    "page_by_label": {"k": {"title": "t", "widthCm": 1.5}},
    "labels": {"a b": "b"},
    "extra": {"q": {"z": [1, {"r": None}]}},
    "anyValue": [1, {"x": []}],
    "anyList": [{}],
    "createTime": "2026-01-02T03:04:05Z",
    "readingTime": "3.5s",
    "mask": "a,b.c",
    "note": "n",
    "niceName": "q",
    "nothing": {},
    "lent": True,
    "notes": {"1": {"a": 1}},
    "sequel": {"sequel": {"name": "p"}},
    "cover": "aGk=",
    "kind": "KIND_NOVEL",
    "printed": {"title": "t", "width_cm": -1.5e3},
    "words": BIG,
    "tags": None,
    "blob": {"@type": "type.googleapis.com/nourish.shelf.v1.Page", "title": "t"},
    "displayName": "é\n\\ \U0001f600",
}


@pytest.mark.parametrize("text", [json.dumps(RICH), json.dumps(RICH, ensure_ascii=False, indent=2), "{}", "", "null"])
async def test_good_json_of_every_kind_passes(edge: Edge, text: str) -> None:
    """Under JSON names and proto names, escaped or not."""
    answer = await edge("POST", BOOKS, content=text.encode(), headers=JSON)
    assert answer.status_code == 200, answer.text
    if "words" in text:
        book = answer.json()["book"]
        assert (book["words"], book["niceName"], book["displayName"]) == (str(BIG), "q", RICH["displayName"])


BAD_JSON = {
    "unknown field": '{"bogus":1}',
    "unknown nested field": '{"sequel":{"sequel":{"x":1}}}',
    "unknown field in a list": '{"pages":[{"title":"g"},{"x":1}]}',
    "unknown field in a map": '{"pageByLabel":{"k":{"x":1}}}',
    "unknown field in a oneof": '{"printed":{"x":1}}',
    "unknown field in Empty": '{"nothing":{"x":1}}',
    "escaped field": '{"display\\u004eame":"a"}',
    "field of the request around it": '{"book":{"name":"x"}}',
    "field set twice": '{"tags":[],"tags":[]}',
    "field set under both names": '{"displayName":"a","display_name":"b"}',
    "key set twice in a map": '{"labels":{"a":"1","a":"2"}}',
    "both of a oneof": '{"isbn":"a","printed":{}}',
    "malformed": '{"displayName":',
    "unquoted key": '{displayName:"a"}',
    "single quotes": "{'displayName':'a'}",
    "trailing comma": '{"displayName":"a",}',
    "text after": "{}x",
    "word": '{"lent":trueish}',
    "leading zero": '{"words":01}',
    "list for a single value": '{"displayName":["a"]}',
    "single value for a list": '{"tags":"a"}',
    "object for a scalar": '{"createTime":{}}',
    "text for a number": '{"words":"abc"}',
    "number for text": '{"displayName":5}',
    "too deep": '{"sequel":' * DEEP + "{}" + "}" * DEEP,
    "too deep in a Struct": '{"extra":' + '{"a":' * DEEP + "1" + "}" * (DEEP + 1),
    "too many values": '{"anyList":[' + "1," * 20_000 + "1]}",
    "NUL": '{"displayName":"\\u0000"}',
    "bad escape": '{"displayName":"\\q"}',
    "bad UTF-8": b'{"displayName":"\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "blank": "  ",
    "unknown enum": '{"kind":"NOPE"}',
    "number too large": '{"words":99999999999999999999}',
}


@pytest.mark.parametrize("what", BAD_JSON)
async def test_bad_json_is_refused(edge: Edge, what: str) -> None:
    found = refused(await edge("POST", BOOKS, content=BAD_JSON[what], headers=JSON), INVALID)
    assert "field" not in what.partition(" ")[2][:5] or "field" in found["message"].lower()


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status"),
    [
        ("POST", BOOKS, "{}", "text/plain", 415),
        ("POST", BOOKS, "{}", "", 415),
        ("GET", BOOKS, '{"pageSize":1}', "application/json", 400),
        ("POST", RENAME, '{"name":"books/9"}', "application/json", 400),
        ("POST", RENAME, '{"name":"books/7"}', "application/json; charset=utf-8", 200),
        ("POST", BOOKS + "/", "{}", "APPLICATION/JSON", 200),
        ("PUT", BOOKS, "{}", "application/json", 405),
        ("POST", "/api/v1/nope", "{}", "application/json", 404),
    ],
)
async def test_a_body_where_and_as_it_belongs(
    edge: Edge, method: str, path: str, body: str, kind: str, status: int
) -> None:
    """Of the right type, on a method that takes one, and not against the path."""
    answer = await edge(method, path, content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code == status, answer.text
    if status != 200:
        details(answer.text)


@pytest.mark.parametrize(
    "kind", ["application/grpcx", "application/grpc; a", "application/grpc-web+x", "application/grpc+json"]
)
async def test_no_content_type_leads_round_the_json_check(edge: Edge, kind: str) -> None:
    answer = await edge("POST", BOOKS, content='{"bogus":1}', headers={"content-type": kind})
    assert answer.status_code >= 400 or answer.headers.get("grpc-status") not in (None, "0")


async def test_a_body_that_http2_does_not_announce_is_refused_too(edge: Edge) -> None:
    """The transcoder would merge it into the request of a GET."""

    async def body() -> AsyncIterator[bytes]:
        yield b'{"pageSize":1}'

    async with httpx.AsyncClient(base_url=edge.http.base_url, http1=False, http2=True) as client:
        assert (await client.get(BOOKS)).status_code == 200
        refused(await client.request("GET", BOOKS, content=body()), TOO_LARGE)
        refused(await client.request("DELETE", BOOKS, content=body()), NOT_ALLOWED)
        posted = await client.request("POST", BOOKS, content=body(), headers=JSON)
        assert refused(posted, INVALID)["message"] == 'Unknown field "pageSize".'


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_is_refused_before_it_is_held(edge: Edge, chunked: bool) -> None:
    """11 MB, with and without a length; one that fits passes."""
    body = b'{"displayName":"' + b"x" * (11 << 20) + b'"}'
    length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    head = b"POST /api/v1/books HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%b\r\n\r\n" % length
    start = b"%x\r\n%b\r\n" % (2 << 20, body[: 2 << 20]) if chunked else body[: 2 << 20]
    status, headers, answer = await edge.raw(head + start)
    found = details(answer)
    assert (status, found["code"], found["reason"], found["id"]) == (*TOO_LARGE, headers["x-request-id"])
    good = await edge("POST", BOOKS, content=b'{"displayName":"' + b"x" * 1_000_000 + b'"}', headers=JSON)
    assert good.status_code == 200


async def test_a_large_answer_passes(edge: Edge) -> None:
    """Over the connection's buffer, over 1 MiB."""
    answer = await edge("GET", f"{BOOKS}?pageSize=12000")
    assert len(answer.json()["books"]) == 12000


@pytest.mark.parametrize("what", ["none", "expired", "of another key", "rubbish"])
async def test_a_bad_token_is_refused_even_where_none_is_needed(
    edge: Edge, bad_tokens: dict[str, str], what: str
) -> None:
    answer = await edge("GET", "/api/v1/books/7", bad_tokens[what])
    found = refused(answer, NO_TOKEN)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert ("expired" in found["message"]) == (what == "expired")
    public = await edge("GET", BOOKS, bad_tokens[what])
    assert public.status_code == (200 if what == "none" else 401)


@pytest.mark.parametrize("claims", [{"aud": "others"}, {"iss": "https://elsewhere"}, {"exp": None}])
async def test_a_token_for_others_or_for_ever_is_refused(edge: Edge, folder: Any, claims: dict[str, Any]) -> None:
    good = {"iss": tokens.ISSUER, "aud": tokens.AUDIENCE, "sub": "alice", "exp": 1 << 33}
    key = tokens.signing_key(folder)
    token = jwt.encode({"alg": "ES256", "kid": key.kid}, {k: v for k, v in (good | claims).items() if v}, key)
    refused(await edge("GET", "/api/v1/books/7", token), NO_TOKEN)


async def test_a_scope_is_asked_for_at_the_edge(edge: Edge, folder: Any, token: str) -> None:
    path = "/api/v1/books/7?updateMask=displayName"
    for scopes in ([], ["book.read", "book.writer"]):
        other = tokens.mint(folder, "bob", scopes)
        refused(await edge("PATCH", path, other, content='{"displayName":"a"}', headers=JSON), FORBIDDEN)
    answer = await edge("PATCH", path, token, content='{"displayName":"a"}', headers=JSON)
    seen = answer.json()
    assert (seen["book"]["name"], seen["book"]["displayName"], seen["updateMask"]) == ("books/7", "a", "displayName")
    collision = await edge("PATCH", path, token, content='{"name":"books/9"}', headers=JSON)
    refused(collision, INVALID)


async def test_an_application_error_keeps_its_details(edge: Edge) -> None:
    found = details((await edge("GET", "/api/v1/fail/details")).text)
    assert found["by_type"]["BadRequest"]["fieldViolations"][0]["field"] == "name"
    assert found["message"] == "There is no such book."


STATUS_OF = {1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501}
STATUS_OF |= {13: 500, 14: 503, 15: 500, 16: 401}


async def test_a_grpc_code_has_its_http_status(edge: Edge) -> None:
    """As google/rpc/code.proto says."""
    found = {n: (await edge("GET", f"/api/v1/fail/details?code={n}")).status_code for n in STATUS_OF}
    assert found == STATUS_OF


async def test_a_stream_is_one_json_object_a_line(edge: Edge) -> None:
    answer = await edge("GET", "/api/v1/books:watch?pageSize=3")
    assert [json.loads(line)["name"] for line in answer.text.splitlines()] == ["books/0", "books/1", "books/2"]
