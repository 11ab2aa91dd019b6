"""Back-off, subjects, subscriptions: what needs no engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nourish.food.v1.food_pb2 import Food, FoodsImported

from mesh.runtime import events
from mesh.runtime.backoff import POLICIES
from mesh.runtime.events import Backoff, subjects
from mesh.runtime.events.subscriptions import marked


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        ("exponential", [1, 2, 4, 8, 16, 20]),
        ("linear", [1, 2, 3, 4, 5, 6]),
        ("fibonacci", [1, 1, 2, 3, 5, 8]),
        ("fixed", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_each_policy_has_its_series_up_to_the_limit(policy, waits):
    backoff = Backoff(policy, first=0.5, limit=10, jitter=0)
    assert [backoff.seconds(attempt) * 2 for attempt in range(1, 7)] == waits


@given(st.sampled_from(sorted(POLICIES)), st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_jitter_shortens_a_wait_by_at_most_its_share_and_no_wait_is_over_the_limit(policy, attempt, jitter, chance):
    full = Backoff(policy, first=0.1, limit=60, jitter=0).seconds(attempt)
    wait = Backoff(policy, first=0.1, limit=60, jitter=jitter).seconds(attempt, lambda: chance)
    assert full * (1 - jitter) - 1e-9 <= wait <= full <= 60


@pytest.mark.parametrize(
    "wrong", [{"policy": "random"}, {"first": 0}, {"first": 9, "limit": 3}, {"jitter": 2}], ids=str
)
def test_a_backoff_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="back-off"):
        Backoff(**wrong)


def test_an_event_goes_by_its_full_name_to_its_services_stream():
    name = FoodsImported.DESCRIPTOR.full_name
    assert subjects.subject(name, 3) == "nourish.food.v1.FoodsImported.3"
    assert subjects.full_name(subjects.subject(name, 3)) == name
    assert subjects.stream(subjects.owner(name)) == "events-food"
    assert subjects.group_of(subjects.consumer("meal-planner", name, 7)) == ("meal-planner", "food-v1-FoodsImported")


@given(st.text())
def test_a_key_is_always_in_the_same_of_the_partitions(key):
    assert 0 <= subjects.partition(key) == subjects.partition(key) < subjects.PARTITIONS


def test_keys_are_spread_over_the_partitions():
    assert {subjects.partition(f"foods/{n}") for n in range(100)} == set(range(subjects.PARTITIONS))


def test_only_what_the_contract_marks_is_an_event():
    with pytest.raises(TypeError, match=r"nourish\.food\.v1\.Food is no event"):
        events.subscribe(Food)
    with pytest.raises(ValueError, match="name of a group"):
        events.subscribe(FoodsImported, group="a.b")


def test_marked_methods_are_found_on_the_object_with_what_was_said_of_them():
    class Both:
        @events.subscribe(FoodsImported, group="planner", attempts=2)
        async def take(self, event, connection):
            pass

        @events.observe(FoodsImported)
        async def see(self, event):
            pass

    both = Both()
    found = {handler.__name__: (s.group, s.every_instance, s.attempts) for s, handler in marked(both)}
    assert found == {"take": ("planner", False, 2), "see": ("", True, 5)}
