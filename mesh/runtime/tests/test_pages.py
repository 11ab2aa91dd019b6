"""Page tokens."""

import base64
from datetime import timedelta

import pytest
from nourish.food.v1.food_pb2 import ListFoodsRequest

from mesh.runtime import pages
from mesh.runtime.auth import Principal
from mesh.runtime.errors import ServiceError
from mesh.runtime.testing import stopped_clock


@pytest.fixture(autouse=True)
def key():
    pages.configure(b"k" * 32)


@pytest.fixture
def time():
    with stopped_clock() as clock:
        yield clock


def test_a_token_gives_its_cursor_back_for_the_same_arguments():
    token = pages.sign({"after": "Ögonion", "id": 7}, scope=ListFoodsRequest(category="Soup"))
    again = ListFoodsRequest(category="Soup", page_token=token, page_size=9)
    assert pages.verify(token, scope=again) == {"after": "Ögonion", "id": 7}


CHANGES = ["other arguments", "other user", "flipped", "truncated", "garbage", "other key", "expired", "longer life"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_token_is_refused_when_it_was_not_made_for_this(change, monkeypatch, time):
    token, scope = (
        pages.sign({"after": "x"}, scope=ListFoodsRequest(category="Soup")),
        ListFoodsRequest(category="Soup"),
    )
    match change:
        case "other arguments":
            scope = ListFoodsRequest(category="Fish")
        case "other user":
            monkeypatch.setattr(pages, "principal", lambda: Principal("bob", frozenset(), "edge"))
        case "expired":
            time.now += timedelta(seconds=pages.LIFE_SECONDS + 1)
        case "longer life":
            raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            raw[pages._TAG_BYTES] += 1
            token = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        case "flipped":
            token = ("A" if token[0] != "A" else "B") + token[1:]
        case "truncated":
            token = token[:-4]
        case "garbage":
            token = "%%%"
        case "other key":
            pages.configure(b"o" * 32)
    with pytest.raises(ServiceError) as refused:
        pages.verify(token, scope=scope)
    assert refused.value.violations[0][0] == "page_token"


def test_a_page_is_cut_from_what_was_found_and_points_behind_its_last_row():
    scope = ListFoodsRequest(category="Soup")
    page, token = pages.cut([1, 2, 3], 2, lambda row: {"after": row}, scope=scope)
    assert (page, pages.verify(token, scope=scope)) == ([1, 2], {"after": 2})
    assert pages.cut([1, 2], 2, lambda row: {"after": row}, scope=scope) == ([1, 2], "")
    assert pages.cut([], 2, lambda row: {"after": row}, scope=scope) == ([], "")
