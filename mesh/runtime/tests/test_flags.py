"""Feature flags: who is given what, that users keep it, what OpenFeature asks of a provider, exposures told once."""

import asyncio
import logging
import math
import queue
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nourish.mesh.v1.flags_pb2 import FlagExposed
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from mesh.runtime import auth, database, flags
from mesh.runtime.flags.exposures import Exposures
from mesh.runtime.flags.rules import Flag, place, stretches
from mesh.runtime.testing import published, with_flags

USERS = [f"user-{n}" for n in range(10_000)]
HALF = {"shares": {"enabled": 50}}


@contextmanager
def serving(user, *scopes):
    """A call of a verified user."""
    headers = {auth.USER_HEADER: user, auth.SCOPES_HEADER: " ".join(scopes)}
    token = auth.current.set(auth.CallInfo(headers=headers))
    try:
        yield
    finally:
        auth.current.reset(token)


def chi_square(counts, expected):
    return sum((counts[variant] - n) ** 2 / n for variant, n in expected.items())


@pytest.mark.parametrize("name", ["search.newOrder", "a", "listSize"])
def test_users_are_shared_out_as_the_shares_say(name):
    """By chi-square: a fair share is worse than this in one of a thousand flags."""
    flag = Flag(name, {"variants": {"a": 1, "b": 2, "c": 3}, "default": "c", "shares": {"a": 20, "b": 30}})
    counts = Counter(flag.give(user).variant for user in USERS)
    assert chi_square(counts, {"a": 2000, "b": 3000, "c": 5000}) < 13.8


def test_one_flag_says_nothing_of_another():
    """The four groups of two flags are of one size: an experiment does not disturb the next."""
    pairs = Counter((Flag("one", HALF).give(user).value, Flag("two", HALF).give(user).value) for user in USERS)
    assert chi_square(pairs, dict.fromkeys(pairs, 2500)) < 16.3
    assert len(pairs) == 4


def test_a_user_has_the_same_place_in_every_process_and_version():
    places = [place("search.newOrder", user) for user in ("alice", "bob", "Zoë")]
    assert places == pytest.approx([91.46985940774, 60.39817410216, 71.80675328806])


two = st.tuples(st.integers(0, 100), st.integers(0, 100), st.just(()))
five = st.tuples(st.integers(0, 20), st.integers(0, 20), st.tuples(*[st.integers(0, 20)] * 4))


@given(st.one_of(two, five))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_share_that_changes_moves_only_whom_it_must(shares):
    """Beside one other variant, which keeps its users, or four that all have no more than an even share."""
    old, new, others = shares
    rest = dict(zip("bcde", others or [100 - max(old, new)], strict=False))
    before, after = {"a": old, **rest}, {"a": new, **rest}
    moved = sum(
        min(one.end, other.end) - max(one.start, other.start)
        for one in whole(before)
        for other in whole(after)
        if one.variant != other.variant and min(one.end, other.end) > max(one.start, other.start)
    )
    assert math.isclose(moved, abs(new - old), abs_tol=1e-6)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(lambda all_: sum(all_) <= 100))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_each_variant_has_its_share_and_no_place_is_of_two(shares):
    pieces = stretches({str(n): share for n, share in enumerate(shares)})
    assert all(one.end <= other.start + 1e-9 for one, other in pairwise(pieces))
    for n, share in enumerate(shares):
        width = sum(piece.end - piece.start for piece in pieces if piece.variant == str(n))
        assert math.isclose(width, share, abs_tol=1e-6)


def whole(shares):
    """All stretches, those of the default too."""
    from mesh.runtime.flags.rules import Piece

    pieces, reached = [], 0.0
    for piece in stretches(shares):
        pieces += [Piece(reached, piece.start, ""), piece]
        reached = piece.end
    return [*pieces, Piece(reached, 100.0, "")]


RULES = {
    "variants": {"small": 10, "large": 100, "huge": 1000},
    "default": "small",
    "shares": {"large": 100},
    "rules": [
        {"users": ["alice"], "variant": "huge"},
        {"scopes": ["food.write", "food.read"], "attributes": {"country": ["CH", "AT"]}, "variant": "small"},
    ],
}


@pytest.mark.parametrize(
    ("user", "scopes", "attributes", "wanted"),
    [
        ("alice", [], {}, ("huge", 1000, "TARGETING_MATCH")),
        ("bob", [], {}, ("large", 100, "SPLIT")),
        ("bob", ["food.read", "food.write"], {"country": "CH"}, ("small", 10, "TARGETING_MATCH")),
        ("bob", ["food.read", "food.write"], {"country": "DE"}, ("large", 100, "SPLIT")),
        ("bob", ["food.read"], {"country": "CH"}, ("large", 100, "SPLIT")),
        ("", [], {}, ("small", 10, "DEFAULT")),
    ],
)
def test_the_first_rule_that_fits_decides_then_the_share_and_nobody_has_the_default(user, scopes, attributes, wanted):
    assert Flag("listSize", RULES).give(user, scopes, attributes) == wanted


async def test_a_flag_is_for_the_verified_user_of_the_call_and_without_values_it_is_the_default():
    assert (await flags.on("new"), await flags.value("size", 20)) == (False, 20)
    with with_flags({"new": {"rules": [{"users": ["alice"], "variant": "enabled"}]}, "size": 50}):
        with serving("alice"):
            assert (await flags.on("new"), await flags.value("size", 20)) == (True, 50)
        with serving("bob"):
            assert not await flags.on("new")
        assert not await flags.on("new")
    assert not await flags.on("new")


GIVEN = {"yes": True, "text": "a", "whole": 2, "part": 2.5, "map": {"a": [1]}, "half": HALF, "rule": RULES}


@pytest.mark.parametrize(
    ("ask", "name", "default", "wanted"),
    [
        ("boolean", "yes", False, (True, "given", Reason.STATIC, None)),
        ("string", "text", "b", ("a", "given", Reason.STATIC, None)),
        ("integer", "whole", 1, (2, "given", Reason.STATIC, None)),
        ("float", "whole", 1.0, (2.0, "given", Reason.STATIC, None)),
        ("float", "part", 1.0, (2.5, "given", Reason.STATIC, None)),
        ("object", "map", {}, ({"a": [1]}, "given", Reason.STATIC, None)),
        ("integer", "rule", 1, (10, "small", Reason.DEFAULT, None)),
        ("boolean", "none", True, (True, None, Reason.ERROR, ErrorCode.FLAG_NOT_FOUND)),
        ("boolean", "text", True, (True, None, Reason.ERROR, ErrorCode.TYPE_MISMATCH)),
        ("boolean", "whole", True, (True, None, Reason.ERROR, ErrorCode.TYPE_MISMATCH)),
        ("string", "yes", "b", ("b", None, Reason.ERROR, ErrorCode.TYPE_MISMATCH)),
        ("integer", "yes", 1, (1, None, Reason.ERROR, ErrorCode.TYPE_MISMATCH)),
        ("integer", "part", 1, (1, None, Reason.ERROR, ErrorCode.TYPE_MISMATCH)),
        ("float", "text", 1.0, (1.0, None, Reason.ERROR, ErrorCode.TYPE_MISMATCH)),
        ("object", "text", {}, ({}, None, Reason.ERROR, ErrorCode.TYPE_MISMATCH)),
    ],
)
async def test_openfeatures_client_has_value_variant_and_reason_and_on_errors_the_default(ask, name, default, wanted):
    client = api.get_client()
    with with_flags(GIVEN):
        details = getattr(client, f"get_{ask}_details")(name, default)
        later = await getattr(client, f"get_{ask}_details_async")(name, default)
    assert details == later
    assert (details.value, details.variant, details.reason, details.error_code) == wanted
    assert type(details.value) is type(default)
    assert bool(details.error_message) == (details.error_code is not None)


def test_openfeatures_targeting_key_and_attributes_go_before_the_call():
    client = api.get_client()
    with with_flags(GIVEN), serving("bob"):
        assert client.get_integer_value("rule", 1, EvaluationContext("alice")) == 1000
        assert client.get_integer_details("rule", 1).reason == Reason.SPLIT
    assert client.get_provider_status().name == "READY"
    assert client.provider.get_metadata().name == "nourish"


def test_openfeature_is_told_which_flags_changed():
    heard = queue.Queue()  # its handlers run in a thread
    client = api.get_client()

    def hear(details):
        heard.put(details.flags_changed)

    client.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, hear)
    try:
        with with_flags({"a": 1, "b": 2}), with_flags({"a": 1, "b": 3}), with_flags({"a": 1, "b": 3}):
            pass
        assert sorted(heard.get(timeout=5) for _ in range(4)) == [["a", "b"], ["a", "b"], ["b"], ["b"]]
        assert heard.empty()
    finally:
        client.remove_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, hear)


async def test_a_wrong_type_is_logged_once(caplog):
    with with_flags({"size": "large"}):
        assert [await flags.value("size", 20) for _ in range(3)] == [20] * 3
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "the flag 'size' is 'large', and not of the type of 20, which holds"
    ]


@pytest.fixture
async def db(postgres_url):
    async with database(url=postgres_url, pool=3) as opened:
        yield opened


async def exposed(db):
    """Flag, variant and user of each exposure."""
    await flags.settle()
    found = await published(db)
    assert all(isinstance(event, FlagExposed) and event.time.seconds for event in found)
    return sorted((event.flag, event.variant, event.user) for event in found)


async def test_each_user_is_told_of_once_whatever_variant_by_all_processes_together(db):
    wanted = sorted([("new", "enabled" if await given_(user) else "disabled", user) for user in USERS[:20]])
    assert {variant for _, variant, _ in wanted} == {"enabled", "disabled"}
    assert await exposed(db) == wanted
    other = Exposures()
    for flag, variant, user in wanted:
        other.note(flag, variant, user)
    other.note("new", "enabled", "zoe")
    await other.settle()
    assert await exposed(db) == [*wanted, ("new", "enabled", "zoe")]


async def given_(user):
    with with_flags({"new": HALF}), serving(user):
        return {await flags.on("new") for _ in range(3)}.pop()


async def test_what_the_contract_refuses_holds_no_other_up(db, caplog):
    with with_flags({"new": HALF}):
        for user in ("x" * 301, "yara"):
            with serving(user):
                await flags.on("new")
    assert [user for _, _, user in await exposed(db)] == ["yara"]
    assert "an exposure of new cannot be published: user: must be at most 300 characters" in caplog.text


async def test_a_call_that_is_undone_was_exposed_all_the_same(db):
    with with_flags({"new": HALF}), serving("dora"), pytest.raises(ZeroDivisionError):
        async with db.unit_of_work():
            await flags.on("new")
            await flags.settle()
            1 / 0  # noqa: B018
    ((_, _, user),) = await exposed(db)
    assert user == "dora"


async def test_rules_defaults_and_nobody_are_no_exposure(db):
    with with_flags({"rule": RULES, "static": True, "half": HALF}):
        with serving("alice"):
            await flags.value("rule", 1)
            await flags.on("static")
        await flags.on("half")
    assert await exposed(db) == []


async def test_an_exposure_waits_for_a_database_that_fails(db, monkeypatch, caplog):
    """And the call does not."""
    real, failures = db.transaction, [ConnectionError("gone")]
    monkeypatch.setattr(db, "transaction", lambda: failing() if failures else real())

    def failing():
        raise failures.pop()

    with with_flags({"new": HALF}), serving("erin"):
        await asyncio.wait_for(flags.on("new"), 5)
    assert [user for _, _, user in await exposed(db)] == ["erin"]
    assert "exposures of flags wait" in caplog.messages


async def test_without_a_database_flags_hold_and_nothing_is_told():
    with with_flags({"new": {"shares": {"enabled": 100}}}), serving("fred"):
        assert await flags.on("new")
    await flags.settle()
