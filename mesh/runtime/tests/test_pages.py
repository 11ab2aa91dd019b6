"""Page tokens."""

import pytest
from nourish.food.v1.food_pb2 import ListFoodsRequest

from mesh.runtime import pages
from mesh.runtime.errors import ServiceError


@pytest.fixture(autouse=True)
def key():
    pages.configure(b"k" * 32)


def test_a_token_gives_its_cursor_back_for_the_same_arguments():
    token = pages.sign({"after": "Ögonion", "id": 7}, scope=ListFoodsRequest(category="Soup"))
    again = ListFoodsRequest(category="Soup", page_token=token, page_size=9)
    assert pages.verify(token, scope=again) == {"after": "Ögonion", "id": 7}


@pytest.mark.parametrize("change", ["other arguments", "flipped", "truncated", "garbage", "other key"])
def test_a_token_is_refused_when_it_was_not_made_for_this(change):
    token, scope = (
        pages.sign({"after": "x"}, scope=ListFoodsRequest(category="Soup")),
        ListFoodsRequest(category="Soup"),
    )
    match change:
        case "other arguments":
            scope = ListFoodsRequest(category="Fish")
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
