"""The views that are derived from the values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.topology import Canary, Edge, Instance, Service, ServiceDatabase, Topology, find_cycle


def mesh(**calls: tuple[str, ...]) -> Topology:
    return Topology({name: Service(name, callees) for name, callees in calls.items()})


DIAMOND = mesh(planner=("nutrition", "profile"), nutrition=("food", "profile"), food=(), profile=())


def test_callers_are_the_inverse_of_calls() -> None:
    assert DIAMOND.callers == {
        "planner": (),
        "nutrition": ("planner",),
        "food": ("nutrition",),
        "profile": ("planner", "nutrition"),
    }


def test_callees_start_before_their_callers_and_else_in_the_order_of_the_values() -> None:
    assert DIAMOND.start_order == ("food", "profile", "nutrition", "planner")
    assert mesh(c=(), a=(), b=()).start_order == ("c", "a", "b")


def test_a_cycle_has_no_start_order() -> None:
    with pytest.raises(ValueError, match="a -> b -> a"):
        _ = mesh(a=("b",), b=("a",)).start_order


@pytest.mark.parametrize(
    ("calls", "cycle"),
    [
        ({"a": ("b",), "b": ("c",), "c": ("b",)}, ("b", "c", "b")),
        ({"a": ("a",)}, ("a", "a")),
        ({"a": ("b", "c"), "b": ("c",), "c": ()}, ()),
        ({"a": ("nobody",)}, ()),
        ({}, ()),
    ],
)
def test_a_cycle_is_found_where_there_is_one(calls: dict[str, tuple[str, ...]], cycle: tuple[str, ...]) -> None:
    assert find_cycle(calls) == cycle


def test_a_long_chain_of_diamonds_is_searched_once_per_service() -> None:
    """40 diamonds in a row have 2^40 paths: a search that did not remember would not end."""
    calls: dict[str, tuple[str, ...]] = {f"s{n}": (f"l{n}", f"r{n}") for n in range(40)}
    calls |= {f"{side}{n}": (f"s{n + 1}",) for n in range(40) for side in "lr"}
    chain = mesh(**calls, s40=())
    assert find_cycle(calls) == ()
    assert chain.start_order[0] == "s40"
    assert chain.start_order[-1] == "s0"


def test_instances_are_numbered_by_subset_stable_first() -> None:
    topology = Topology({"food": Service("food", replicas=2, canary=Canary(replicas=1))}, edge=Edge(replicas=2))
    assert topology.instances("food") == (
        Instance("food-0", "food", "stable"),
        Instance("food-1", "food", "stable"),
        Instance("food-canary-0", "food", "canary"),
    )
    assert [instance.id for instance in topology.instances("edge")] == ["edge-0", "edge-1"]


def test_there_are_no_instances_of_a_service_that_does_not_exist() -> None:
    with pytest.raises(KeyError):
        DIAMOND.instances("fod")


@pytest.mark.parametrize(("weight", "live"), [(0, ("stable",)), (1, ("stable", "canary")), (100, ("canary",))])
def test_a_subset_lives_when_it_carries_traffic(weight: int, live: tuple[str, ...]) -> None:
    assert Service("food", canary=Canary(1, weight)).live_subsets == live


def test_pools_count_every_instance_stable_and_canary() -> None:
    food = Service("food", replicas=2, canary=Canary(1, 10), database=ServiceDatabase(5))
    assert Topology({"food": food, "nutrition": Service("nutrition")}).pooled_connections == {"food": 15}
    assert Topology({"food": replace(food, events=True)}).pooled_connections == {"food": 18}  # one more to relay on


def test_services_need_all_they_call_directly_or_not_and_nothing_else() -> None:
    assert list(DIAMOND.needed_by(("nutrition",)).services) == ["nutrition", "food", "profile"]
    assert list(DIAMOND.needed_by(("profile", "food")).services) == ["food", "profile"]
    assert DIAMOND.needed_by(("planner",)) == DIAMOND


def test_needing_a_service_that_does_not_exist_says_which_was_meant() -> None:
    with pytest.raises(ValueError, match="there is no service 'fod'; did you mean 'food'"):
        DIAMOND.needed_by(("fod",))


def test_an_identity_names_trust_domain_namespace_and_service() -> None:
    topology = Topology({}, namespace="prod", trust_domain="example.org")
    assert topology.spiffe_id("food") == "spiffe://example.org/ns/prod/sa/food"
