"""Caches of several processes on a real NATS: what one loads others have, events clear all, an outage stops nobody."""

import asyncio
import os
import signal
import uuid
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from nourish.food.v1.food_pb2 import Food, FoodsImported, SearchFoodsResponse

from mesh.local import nats as nats_of_the_runner
from mesh.local.nats import SETTINGS, USER, Nats
from mesh.runtime.cache import Cache, keys, link, on, shared
from mesh.runtime.cache.clearing import Heard
from mesh.runtime.cache.shared import AWAY, BUCKET_BYTES, FAILURES, Bucket, Circuit
from mesh.runtime.cache.statistics import Statistics
from mesh.runtime.cache.tier import Tier, space
from mesh.runtime.events import subjects
from mesh.runtime.events.server import Server

PATIENT = 10.0  # for an answer: what is tested is which, on a machine that does much else


class Source:
    """What all processes load from."""

    def __init__(self):
        self.version, self.loads = 1, Counter()
        self.gate = asyncio.Event()
        self.gate.set()

    def of(self, key):
        async def load():
            self.loads[key] += 1
            loaded = Food(name=key, etag=str(self.version))
            await self.gate.wait()
            return loaded

        return load


async def until(done):
    async with asyncio.timeout(20):
        while not (await done() if asyncio.iscoroutinefunction(done) else done()):
            await asyncio.sleep(0.005)


@pytest.fixture
def source():
    return Source()


@pytest.fixture
async def server(events_url):
    made = Server()
    await made.connect(events_url, "test")
    yield made
    await made.close()


def foods(kind=Food, **options):
    options.setdefault("cleared_by", [on(FoodsImported, lambda event: event.data or None)])
    return Cache("foods", kind, **{"whose": "everybody", "ttl": 100, "shared": True, **options})


@asynccontextmanager
async def processes(url, *caches, subset="stable", seconds=PATIENT):
    """Each cache as if it were in a process of its own, once it has the shared tier."""
    async with AsyncExitStack() as stack:
        for cache in caches:
            await stack.enter_async_context(link.linked([cache], url, service="food", subset=subset, seconds=seconds))
        await until(lambda: all(cache._tier and cache._tier._store.usable for cache in caches))
        yield


async def publish(server, data=""):
    """Publishes that foods were imported; "" for all of them."""
    event = FoodsImported(data=data, foods=1)
    subject = subjects.subject(FoodsImported.DESCRIPTOR.full_name, 3)
    await server.publish(subject, event.SerializeToString(), {}, uuid.uuid4().hex)


async def stored(cache):
    """Waits for what is still being stored."""
    await asyncio.gather(*cache._storing)


async def test_what_one_process_loads_others_have(events_url, source):
    one, other = foods(), foods()
    async with processes(events_url, one, other):
        await one.get("a", source.of("a"))
        await stored(one)
        assert (await other.get("a", source.of("a"))).etag == "1"
        await other.get("a", source.of("a"))
    assert source.loads["a"] == 1
    counted = other.statistics()
    assert (counted.shared_hits, counted.hits, counted.loads, counted.shared_errors) == (1, 1, 0, 0)


async def test_a_canary_and_another_definition_of_the_type_have_values_of_their_own(events_url, source):
    stable, canary, changed = foods(), foods(), foods(SearchFoodsResponse)
    async with processes(events_url, stable, changed), processes(events_url, canary, subset="canary"):
        await stable.get("a", source.of("a"))
        await stored(stable)
        await canary.get("a", source.of("a"))

        async def search():
            source.loads["search"] += 1
            return SearchFoodsResponse()

        await changed.get("a", search)
    assert source.loads == {"a": 2, "search": 1}


@pytest.mark.parametrize("data", ["a", ""], ids=["a key", "all"])
async def test_an_event_clears_every_process_and_what_they_share(events_url, server, source, data):
    one, other = foods(), foods()
    async with processes(events_url, one, other):
        for key in "ab":
            await one.get(key, source.of(key))
            await stored(one)
            await other.get(key, source.of(key))
        source.version = 2
        await publish(server, data)
        await until(lambda: one.statistics().cleared and other.statistics().cleared)
        for cache in (one, other):
            assert (await cache.get("a", source.of("a"))).etag == "2"
            assert (await cache.get("b", source.of("b"))).etag == ("1" if data else "2")
    assert source.loads["b"] == (1 if data else source.loads["a"])


async def test_what_was_loaded_before_an_event_and_stored_after_it_reaches_nobody_who_heard_it(
    events_url, server, source
):
    slow, other = foods(), foods()
    async with processes(events_url, slow, other):
        source.gate.clear()
        loading = asyncio.create_task(slow.get("a", source.of("a")))
        await until(lambda: source.loads["a"])
        source.version = 2
        await publish(server)
        await until(lambda: slow.statistics().cleared and other.statistics().cleared)
        source.gate.set()
        assert (await loading).etag == "1"
        await stored(slow)
        for cache in (other, slow):
            assert (await cache.get("a", source.of("a"))).etag == "2"


async def store_old(tier, key):
    """As a process does whom the event has not reached."""
    value = Food(etag="0").SerializeToString()
    await tier.put(keys.digest(key), "", value, seconds=100, heard=(0,), revision=0)


async def test_nor_if_the_slow_process_hears_of_it_last_of_all_nor_for_one_that_starts_later(
    events_url, server, source
):
    """Processes hear an event one after the other: here the one that loads has not heard it when it stores."""
    early, late = foods(), foods()
    async with processes(events_url, early):
        await publish(server)
        await until(lambda: early.statistics().cleared)
        behind = Tier(early._tier._store, early._tier._space, Heard(early.cleared_by), Statistics())
        await store_old(behind, "a")
        assert (await behind.get(keys.digest("a"), "")).payload
        assert (await early.get("a", source.of("a"))).etag == "1"
        await stored(early)
        await store_old(behind, "b")
        async with processes(events_url, late):
            assert (await late.get("b", source.of("b"))).etag == "1"
            assert (await late.get("a", source.of("a"))).etag == "1"
    assert source.loads == {"a": 1, "b": 1}


async def test_an_event_that_cannot_be_read_clears_all(events_url, server, source):
    cache = foods()
    async with processes(events_url, cache):
        await cache.get("a", source.of("a"))
        await server.publish(f"{FoodsImported.DESCRIPTOR.full_name}.0", b"\xff\xff", {}, "bad")
        await until(lambda: cache.statistics().cleared)
        assert cache.statistics().entries == 0


async def test_what_one_process_forgets_is_not_shared_any_more(events_url, source):
    one, other = foods(), foods()
    async with processes(events_url, one, other):
        await one.get("a", source.of("a"))
        await stored(one)
        await one.forget("a")
        await other.get("a", source.of("a"))
    assert source.loads["a"] == 2


async def test_what_one_process_forgets_the_memory_of_the_others_forgets_too(events_url, source):
    one, other = foods(), foods()
    async with processes(events_url, one, other):
        for cache in (one, other):
            await cache.get(("a", 1), source.of("a"))
            await stored(cache)
        source.version = 2
        await one.forget(("a", 1))
        await until(lambda: other.statistics().cleared)
        assert (await other.get(("a", 1), source.of("a"))).etag == "2"
        assert one.statistics().cleared == 1


async def test_what_was_being_loaded_when_another_process_forgot_it_is_not_shared(events_url, source):
    slow, forgetful, other = foods(), foods(), foods()
    async with processes(events_url, slow, forgetful, other):
        source.gate.clear()
        loading = asyncio.create_task(slow.get("a", source.of("a")))
        await until(lambda: source.loads["a"])
        source.version = 2
        await forgetful.forget("a")
        source.gate.set()
        await loading
        await stored(slow)
        assert (await other.get("a", source.of("a"))).etag == "2"


async def test_bytes_that_are_no_value_are_as_if_there_were_none(events_url, server, source):
    cache = foods()
    async with processes(events_url, cache):
        tier = cache._tier
        await tier._store.put(tier._key(keys.digest("a")), b"nonsense, of some length, that nobody wrote", 0)
        await tier.put(keys.digest("b"), "", b"\xff\xff", seconds=100, heard=(0,), revision=0)
        for key in "ab":
            assert (await cache.get(key, source.of(key))).etag == "1"
    assert cache.statistics().shared_errors == 2


async def test_while_nats_hangs_or_is_away_calls_go_on_and_it_is_used_again_when_it_is_back(tmp_path, source):
    nats, one, other = Nats(tmp_path, {}), foods(cleared_by=[]), foods(cleared_by=[])
    await nats.start()
    try:
        async with processes(nats.url, one, other, seconds=shared.ANSWER_SECONDS):
            os.kill(nats.pid, signal.SIGSTOP)
            for number in range(20):
                await one.get(number, source.of(str(number)))
            counted = one.statistics()
            assert counted.loads == 20
            assert FAILURES <= counted.shared_errors < 20  # then nobody asks any more
            os.kill(nats.pid, signal.SIGCONT)
            await nats.stop()
            await one.get("away", source.of("away"))
            await nats.start()  # with an empty memory: the bucket is made again

            async def is_shared():
                key = uuid.uuid4().hex
                await one.get(key, source.of(key))
                await stored(one)
                await other.get(key, source.of(key))
                return other.statistics().shared_hits

            await until(is_shared)
    finally:
        await nats.stop()


async def test_a_value_is_shared_until_its_time_is_over(server):
    bucket, now = Bucket(server, "food", PATIENT), [1000.0]
    await bucket.open()
    tier = Tier(bucket, "foods.x", Heard([]), Statistics(), lambda: now[0])
    await tier.put(b"a", "", b"value", seconds=10, heard=(), revision=0)
    now[0] += 6
    assert (found := await tier.get(b"a", "")).payload == b"value"
    assert found.seconds == 4
    now[0] += 4
    assert (await tier.get(b"a", "")).payload is None


async def test_a_full_bucket_forgets_what_was_stored_first(server):
    bucket = Bucket(server, "large", PATIENT)
    await bucket.open()
    values = space("foods", b"x")
    size, fits = 500_000, BUCKET_BYTES // 500_000
    for number in range(fits + 5):
        await bucket.put(f"{values}.{number}", bytes(size), 0)
    assert await bucket.get(f"{values}.0") == (None, 0)
    assert (await bucket.get(f"{values}.{fits + 4}"))[0] == bytes(size)
    state = (await server.streams.stream_info("KV_cache-large")).state
    assert state.bytes <= BUCKET_BYTES


PERMISSIONS = """authorization {{ users: [
  {{ user: "{user}", password: "{password}", permissions: {{
    publish: [
      "$KV.cache-food.>", "$JS.API.STREAM.*.KV_cache-food", "$JS.API.DIRECT.GET.KV_cache-food.>", "cache-food.forgotten"
    ]
    subscribe: ["_INBOX.>", "cache-food.forgotten"]
  }} }},
  {{ user: "all", password: "{password}" }}
] }}"""


async def test_a_nats_user_of_one_service_has_its_bucket_and_no_other(tmp_path, monkeypatch):
    """As a cluster may give them (docs/decisions/0075)."""
    monkeypatch.setattr(nats_of_the_runner, "SETTINGS", SETTINGS.split("authorization")[0] + PERMISSIONS)
    nats, food, everybody = Nats(tmp_path, {}), Server(), Server()
    await nats.start()
    try:
        await food.connect(nats.url, "food")
        await everybody.connect(nats.url.replace(USER, "all"), "all")
        own, others = Bucket(food, "food", PATIENT), Bucket(everybody, "profile", PATIENT)
        await asyncio.gather(own.open(), others.open())
        for bucket in (own, others):
            await bucket.put("a", b"value", 0)
        assert await own.get("a") == (b"value", 1)
        others._values._js = food.jetstream(0.2)
        with pytest.raises(shared.SharedError):
            await others.get("a")
    finally:
        await asyncio.gather(food.close(), everybody.close())
        await nats.stop()


def test_an_open_circuit_lets_one_try_in_a_while_and_closes_when_that_succeeds():
    now = [0.0]
    circuit = Circuit(lambda: now[0])
    for _ in range(shared.FAILURES):
        assert circuit.closed()
        circuit.failed()
    assert not circuit.closed()
    now[0] += AWAY.limit
    assert [circuit.closed(), circuit.closed()] == [True, False]
    circuit.succeeded()
    assert circuit.closed()
