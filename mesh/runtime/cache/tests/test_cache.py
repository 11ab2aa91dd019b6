"""What a service sees of a cache: one load for all, old values while new ones come, nobody's rows but one's own."""

import asyncio
from collections import Counter

import grpc
import pytest
from nourish.food.v1.food_pb2 import Food, FoodsImported
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.runtime import auth, cache, errors, unit
from mesh.runtime.cache import Cache, figures, on
from mesh.runtime.telemetry import metrics


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Source:
    """Loads foods, when it may; counts what it loads."""

    def __init__(self):
        self.loads = Counter()
        self.failure = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.version = 1
        self.seen = None

    def of(self, key):
        async def load():
            self.loads[key] += 1
            self.seen = auth.current.get()
            version, failure = self.version, self.failure
            await self.gate.wait()
            if failure:
                raise failure
            return Food(name=key, etag=str(version))

        return load


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def source():
    return Source()


def foods(clock, **options):
    return Cache("foods", Food, **{"whose": "everybody", "ttl": 100, "clock": clock, **options})


async def until(done):
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0)


def as_user(user, *scopes, **headers):
    return auth.current.set(
        auth.CallInfo(
            headers={
                auth.USER_HEADER: user,
                auth.SCOPES_HEADER: " ".join(scopes),
                auth.AUTHORIZATION_HEADER: f"Bearer {user}",
                auth.REQUEST_ID_HEADER: "r-1",
                **headers,
            }
        )
    )


async def test_a_value_is_loaded_once_until_its_time_is_over(clock, source):
    cached = foods(clock)
    for _ in range(3):
        assert (await cached.get("a", source.of("a"))).etag == "1"
    clock.now += 89
    await cached.get("a", source.of("a"))
    assert source.loads["a"] == 1
    clock.now += 12
    await cached.get("a", source.of("a"))
    assert source.loads["a"] == 2
    count = cached.statistics()
    assert (count.hits, count.misses, count.loads, count.entries) == (3, 2, 2, 1)


async def test_who_changes_a_value_changes_their_own(clock, source):
    cached = foods(clock)
    (await cached.get("a", source.of("a"))).etag = "mine"
    (await cached.get("a", source.of("a"))).etag = "mine"
    assert (await cached.get("a", source.of("a"))).etag == "1"


async def test_values_loaded_together_are_not_old_together(clock, source):
    cached = foods(clock)
    for number in range(50):
        await cached.get(number, source.of("a"))
    clock.now += 95
    for number in range(50):
        await cached.get(number, source.of("b"))
    assert 5 < source.loads["b"] < 45


async def test_all_who_ask_at_once_wait_for_one_load(clock, source):
    cached = foods(clock)
    source.gate.clear()
    asking = [asyncio.create_task(cached.get("a", source.of("a"))) for _ in range(10)]
    await until(lambda: source.loads["a"])
    source.gate.set()
    assert {food.etag for food in await asyncio.gather(*asking)} == {"1"}
    assert source.loads["a"] == 1
    assert cached.statistics().joined == 9


async def test_the_first_who_gives_up_leaves_the_load_to_the_others_and_the_last_ends_it(clock, source):
    cached = foods(clock)
    source.gate.clear()
    first, second = (asyncio.create_task(cached.get("a", source.of("a"))) for _ in range(2))
    await until(lambda: cached.statistics().joined)
    first.cancel()
    await asyncio.wait([first])
    third = asyncio.create_task(cached.get("a", source.of("a")))
    await until(lambda: cached.statistics().joined == 2)
    for task in (second, third):
        task.cancel()
    after = asyncio.create_task(cached.get("a", source.of("a")))
    await asyncio.wait([second, third])
    await until(lambda: source.loads["a"] == 2)  # the load that everybody left is no longer joined
    source.gate.set()
    assert (await after).etag == "1"
    assert first.cancelled()
    assert third.cancelled()


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered(clock, source):
    cached = foods(clock, missing=10)
    source.failure = errors.unavailable()
    source.gate.clear()
    asking = [asyncio.create_task(cached.get("a", source.of("a"))) for _ in range(3)]
    await until(lambda: cached.statistics().joined == 2)
    source.gate.set()
    assert [type(found) for found in await asyncio.gather(*asking, return_exceptions=True)] == [errors.ServiceError] * 3
    source.failure = None
    assert (await cached.get("a", source.of("a"))).etag == "1"
    assert cached.statistics().load_errors == 1


async def test_a_load_has_its_time(clock, source):
    cached = foods(clock, seconds=0.01)
    source.gate.clear()
    with pytest.raises(TimeoutError):
        await cached.get("a", source.of("a"))


@pytest.mark.parametrize("own", [True, False])
async def test_that_something_does_not_exist_is_remembered_for_its_own_time(clock, source, own):
    cached = foods(clock, missing=10)
    called = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "no a")
    source.failure = errors.not_found("foods/a") if own else called
    raised = []
    for _ in range(3):
        with pytest.raises(type(source.failure)) as caught:
            await cached.get("a", source.of("a"))
        raised.append(caught.value)
    assert source.loads["a"] == 1
    assert cached.statistics().negative == 2
    assert len(set(map(id, raised))) == 3
    assert {errors.from_exception(each).message for each in raised} == {errors.from_exception(source.failure).message}
    clock.now += 11
    source.failure = None
    assert (await cached.get("a", source.of("a"))).etag == "1"


async def test_an_old_value_is_given_while_a_new_one_is_loaded_once(clock, source):
    cached = foods(clock, stale=50)
    await cached.get("a", source.of("a"))
    clock.now += 101
    source.version = 2
    source.gate.clear()
    for _ in range(3):
        assert (await cached.get("a", source.of("a"))).etag == "1"
    source.gate.set()
    await until(lambda: source.loads["a"] == 2 and not cached._flights)
    assert (await cached.get("a", source.of("a"))).etag == "2"
    assert cached.statistics().stale == 3


async def test_an_old_value_stays_while_it_cannot_be_loaded_and_is_not_asked_for_at_every_call(clock, source):
    cached = foods(clock, stale=50)
    await cached.get("a", source.of("a"))
    clock.now += 101
    source.failure = errors.unavailable()
    for _ in range(5):
        assert (await cached.get("a", source.of("a"))).etag == "1"
        await until(lambda: not cached._flights)
    assert source.loads["a"] == 2
    clock.now += 60
    with pytest.raises(errors.ServiceError):
        await cached.get("a", source.of("a"))


async def test_an_old_value_of_what_is_gone_is_gone(clock, source):
    cached = foods(clock, stale=50)
    await cached.get("a", source.of("a"))
    clock.now += 101
    source.failure = errors.not_found("a")
    await cached.get("a", source.of("a"))
    await until(lambda: not cached._flights)
    with pytest.raises(errors.ServiceError):
        await cached.get("a", source.of("a"))


@pytest.mark.parametrize("everything", [True, False])
async def test_what_was_being_loaded_when_it_was_forgotten_is_not_kept(clock, source, everything):
    cached = foods(clock, cleared_by=[on(FoodsImported)])
    source.gate.clear()
    before = asyncio.create_task(cached.get("a", source.of("a")))
    await until(lambda: source.loads["a"])
    if everything:
        cached.clear_for(0, 1, None)
    else:
        await cached.forget("a")
    source.version = 2
    after = asyncio.create_task(cached.get("a", source.of("a")))
    await until(lambda: source.loads["a"] == 2)
    source.gate.set()
    assert ((await before).etag, (await after).etag) == ("1", "2")
    assert (await cached.get("a", source.of("a"))).etag == "2"
    assert source.loads["a"] == 2


async def test_just_after_an_event_a_value_is_kept_for_a_moment_only(clock, source):
    """The load may have asked somebody whom the event had not reached."""
    cached = foods(clock, cleared_by=[on(FoodsImported, lambda event: event.data)])
    cached.clear_for(0, 7, "a")
    for key in "ab":
        await cached.get(key, source.of(key))
    clock.now += 3
    for key in "ab":
        await cached.get(key, source.of(key))
        clock.now += 30
    for key in "ab":
        await cached.get(key, source.of(key))
    assert source.loads == {"a": 2, "b": 1}


# --- Whose -----------------------------------------------------------------------------------------------------------


async def test_a_load_for_everybody_knows_nobody(clock, source):
    token = as_user("ada", "food.read", **{auth.CERTIFICATE_HEADER: "URI=spiffe://nourish.local/ns/n/sa/edge"})
    await foods(clock).get("a", source.of("a"))
    assert source.seen.headers == {auth.REQUEST_ID_HEADER: "r-1"}
    assert auth.user() == "ada"
    auth.current.reset(token)


async def test_users_have_values_of_their_own(clock, source):
    cached = foods(clock, whose="user")
    for user in ("ada", "bob", "ada"):
        token = as_user(user, "food.read")
        await cached.get("a", source.of("a"))
        assert source.seen.headers[auth.USER_HEADER] == user or user == "ada"
        auth.current.reset(token)
    assert source.loads["a"] == 2
    with pytest.raises(errors.ServiceError) as refused:
        await cached.get("a", source.of("a"))
    assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_of_fewer_scopes_does_not_get_what_another_loaded(clock, source):
    cached = foods(clock, whose="user")
    for scopes in (("food.read", "food.write"), ("food.read",)):
        token = as_user("ada", *scopes)
        await cached.get("a", source.of("a"))
        assert source.seen.headers[auth.SCOPES_HEADER] == " ".join(scopes)
        auth.current.reset(token)
    assert source.loads["a"] == 2


async def test_an_event_must_name_the_user_whose_value_it_clears(clock, source):
    cached = foods(clock, whose="user", cleared_by=[on(FoodsImported, lambda event: event.data)])
    token = as_user("ada")
    await cached.get("a", source.of("a"))
    with pytest.raises(TypeError, match=r"\(user, key\)"):
        cached.clear_for(0, 1, "a")
    cached.clear_for(0, 1, ("bob", "a"))
    assert cached.statistics().entries == 1
    cached.clear_for(0, 2, ("ada", "a"))
    assert cached.statistics().entries == 0
    auth.current.reset(token)


@pytest.mark.parametrize("header", [auth.CANARY_HEADER, auth.FAULT_HEADER])
async def test_who_asks_for_a_canary_or_a_fault_gets_it(clock, source, header):
    cached = foods(clock)
    await cached.get("a", source.of("a"))
    token = as_user("ada", **{header: "always"})
    source.version = 2
    assert (await cached.get("a", source.of("a"))).etag == "2"
    assert source.seen.headers == {auth.REQUEST_ID_HEADER: "r-1", header: "always"}
    auth.current.reset(token)
    assert (await cached.get("a", source.of("a"))).etag == "1"


async def test_a_load_is_no_part_of_the_callers_transaction(clock):
    """What it would read there may be undone, and others would get it all the same."""
    engine = create_async_engine("postgresql+asyncpg://")
    token = unit._current.set(unit.Unit(engine, None))

    async def load():
        return unit.of(engine) is None

    assert not await load()
    assert await Cache("apart", bool, whose="everybody", ttl=100, clock=clock).get("a", load)
    unit._current.reset(token)


def test_a_cache_with_bad_numbers_or_a_bad_name_is_refused():
    with pytest.raises(ValueError, match="no name"):
        Cache("Foods!", Food, whose="everybody", ttl=1)
    with pytest.raises(ValueError, match="ttl"):
        Cache("foods", Food, whose="everybody", ttl=0)
    with pytest.raises(TypeError, match="no event"):
        on(Food)


def test_telemetry_finds_all_caches():
    made = Cache("found", Food, whose="everybody", ttl=1)
    assert made in cache.caches()


async def test_what_a_cache_counts_is_shown_to_prometheus(clock, source):
    found = Cache("shown", Food, whose="everybody", ttl=100, clock=clock)
    figures.show()
    for _ in range(3):
        await found.get("onion", source.of("onion"))
    lines = metrics.text().splitlines()
    assert {'cache_hits_total{cache="shown"} 2', 'cache_misses_total{cache="shown"} 1'} <= set(lines)
    assert [line for line in lines if line.startswith('cache_bytes{cache="shown"}')]
