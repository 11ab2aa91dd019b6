"""What a cache says it holds is what it takes, and never more than it may."""

import gc
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nourish.food.v1.food_pb2 import Food

from mesh.runtime.cache import Cache, keys, policies
from mesh.runtime.cache.entry import Entry

NAMES = tuple(policies.ENTRY_BYTES)
ROOM = 350_000


def fill(entries, policy, letters):
    """Three times as much as there is room for."""
    for number in range(3 * ROOM // (300 + letters)):
        key = f"foods/usda-{number:016x}"
        entry = Entry(b"x" * letters + bytes([number % 256]), number + 0.5, number + 1.5)
        entry.size = policies.ENTRY_BYTES[policy] + keys.size(key) + entry.own_size()
        entries.put(key, entry)


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("letters", [20, 300])
def test_it_takes_no_more_memory_than_it_says(policy, letters):
    """With dicts that have just grown, which is when they are emptiest."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    entries = policies.of(policy, ROOM)
    fill(entries, policy, letters)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.6 * entries.bytes <= taken <= entries.bytes <= ROOM
    assert entries.evictions == 3 * ROOM // (300 + letters) - len(entries)


async def test_a_cache_counts_key_value_and_lists_and_refuses_what_is_larger_than_all_its_room():
    cache = Cache("foods", Food, whose="everybody", ttl=60, max_bytes=10_000)

    async def load():
        return Food(display_name="x" * 5000)

    await cache.get(("a", 1), load)
    assert 5000 + 400 < cache.statistics().bytes < 5000 + 700

    async def load_more():
        return Food(display_name="x" * 10_000)

    await cache.get("b", load_more)
    counted = cache.statistics()
    assert (counted.entries, counted.refused, counted.max_bytes) == (1, 1, 10_000)


@pytest.mark.parametrize("policy", NAMES)
@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1200)), max_size=60))
def test_no_policy_passes_its_bound_or_keeps_the_old_of_what_it_refused(policy, steps):
    entries, latest = policies.of(policy, 1000), {}
    for key, size in steps:
        latest[key] = Entry(b"", 0.0, 0.0)
        latest[key].size = size
        kept = entries.put(key, latest[key])
        assert entries.bytes <= 1000
        assert entries.get(key) is (latest[key] if kept else None)


def test_a_policy_that_is_none_is_named():
    with pytest.raises(ValueError, match="arc, lru, lfu"):
        policies.of("fifo", 1)
