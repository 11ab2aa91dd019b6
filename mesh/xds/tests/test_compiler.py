"""The compiler's parts: plan, policies, snapshot checks, and the words for an edit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from mesh.contract import Contract
from mesh.topology import Canary, Limits, Service, Topology
from mesh.traffic import Abort, FaultHeader, Faults, Traffic
from mesh.xds import changes, endpoints, routes
from mesh.xds.fleet import Fleet
from mesh.xds.plan import Host, Node, Plan, PlanError
from mesh.xds.policies import circuit_breakers, headers, rbac, retries, timeouts
from mesh.xds.snapshot import CDS, SnapshotError, check_change, compile_node
from mesh.xds.stream import Stream

METADATA = {
    "service": "store",
    "subset": "stable",
    "app_socket": "/a",
    "egress_socket": "/e",
    "identity_dir": "/i",
    "inbound_address": "127.0.0.1",
    "inbound_port": 0,
}


def envoy_node(**metadata: object) -> Any:
    struct = struct_pb2.Struct()
    struct.update(metadata)
    return base_pb2.Node(id="store-0", metadata=struct)


def test_node_is_read_from_its_bootstrap() -> None:
    assert Node.parse(envoy_node(**METADATA)) == Node("store-0", "store", "stable", "/a", "/e", "/i", "127.0.0.1", 0)


@pytest.mark.parametrize("missing", METADATA)
def test_node_without_a_fact_is_refused(missing: str) -> None:
    rest = {key: value for key, value in METADATA.items() if key != missing}
    with pytest.raises(PlanError, match=missing):
        Node.parse(envoy_node(**rest))


def test_unknown_service_is_refused(plan: Plan, node: Callable[[str], Node]) -> None:
    with pytest.raises(PlanError, match="nobody"):
        plan.node(node("nobody-0"))


def test_sidecar_knows_only_what_it_calls(plan: Plan, node: Callable[[str], Node]) -> None:
    """A callee has no upstream cluster at all; the edge watches every service."""
    names = {id: [t.name for t in plan.node(node(id)).targets] for id in ("store-0", "front-0", "edge-0")}
    assert names["store-0"] == []
    assert names["front-0"] == ["store.stable", "store.canary"]
    assert names["edge-0"] == ["store.stable", "store.canary", "front.stable"]


@pytest.mark.parametrize(
    ("weight", "stable", "canary"),
    [(10, ["s", "c"], ["c", "s"]), (0, ["s"], ["c", "s"]), (100, ["s", "c"], ["c"])],
)
def test_failover_only_to_a_live_subset(plan: Plan, weight: int, stable: list[str], canary: list[str]) -> None:
    """Priorities: its own instances first, then the other subset's if that carries weight."""
    store = Service("store", canary=Canary(1, weight))
    front = Service("front", calls=("store",))
    hosts = (Host("store", "s", "stable", "10.0.0.1", 1), Host("store", "c", "canary", "10.0.0.2", 1))
    mine = replace(plan, topology=Topology({"store": store, "front": front}), hosts=hosts)
    node = mine.node(Node("front-0", "front", "stable", "", "", "", "", 0))
    found = {
        a.cluster_name: [e.lb_endpoints[0].endpoint.hostname for e in a.endpoints] for a in endpoints.assignments(node)
    }
    assert found == {"store.stable": stable, "store.canary": canary}


def test_no_canary_no_cluster_for_it(plan: Plan, node: Callable[[str], Node]) -> None:
    services = {"store": Service("store"), "front": Service("front", calls=("store",))}
    front = replace(plan, topology=Topology(services)).node(node("front-0"))
    assert [t.name for t in front.targets] == ["store.stable"]
    (route,) = routes.call(front.callees[0], front.callees[0].methods[0])
    assert route.route.cluster == "store.stable"


def test_retries_follow_the_contract(contract: Contract) -> None:
    """Only a method that says that a repeat is harmless is repeated after it may have run."""
    get, put, _ = contract.methods["store"]
    conditions = {m.name: set(retries.route(m).retry_policy.retry_on.split(",")) for m in (get, put)}
    assert conditions["GetItem"] - conditions["PutItem"] == {"reset"}
    assert {"connect-failure", "refused-stream", "retriable-headers"} <= conditions["PutItem"]
    ask = contract.methods["front"][0]
    assert ask.idempotency == "idempotent"
    assert retries.route(ask).retry_policy.retry_on == retries.route(get).retry_policy.retry_on


def test_deadline_is_the_contract_s(contract: Contract) -> None:
    action = timeouts.route(contract.methods["store"][2])
    assert action.max_stream_duration.max_stream_duration.ToMilliseconds() == 500
    assert action.max_stream_duration.grpc_timeout_header_max.ToMilliseconds() == 500


def test_limits_reach_the_circuit_breakers(plan: Plan, node: Callable[[str], Node]) -> None:
    front = plan.node(node("front-0"))
    target = replace(front.targets[0], limits=Limits(1, 2, 300))
    (found,) = circuit_breakers.cluster(front, target).circuit_breakers.thresholds
    assert (found.max_connections.value, found.max_pending_requests.value, found.max_requests.value) == (1, 2, 300)
    assert found.retry_budget.budget_percent.value == 20
    assert found.retry_budget.min_retry_concurrency.value == 15


def test_allow_list_is_the_inverse_of_calls(plan: Plan, node: Callable[[str], Node]) -> None:
    """Callers by their exact ids; a service that nobody calls lets in the edge alone."""
    store = json_format.MessageToJson(rbac.peers(plan.node(node("store-0"))))
    assert "spiffe://nourish.local/ns/nourish/sa/front" in store
    front = json_format.MessageToJson(rbac.peers(plan.node(node("front-0"))))
    assert "callers" not in front
    assert "sa/edge" in front


def test_each_route_asks_for_its_methods_scopes(plan: Plan, node: Callable[[str], Node]) -> None:
    store = plan.node(node("store-0"))
    (host,) = routes.inbound(store).virtual_hosts
    asked = {route.name: rbac.SCOPES in route.typed_per_filter_config for route in host.routes}
    assert {m.path[1:]: bool(m.scopes) for m in store.methods}.items() <= asked.items()
    assert {True, False} <= set(asked.values())


@given(st.lists(st.sampled_from(["a.read", "a.readall", "ba.read", "a-read", "a.write"]), max_size=3))
def test_a_scope_is_a_whole_word_of_the_token(carried: list[str]) -> None:
    assert bool(re.fullmatch(rbac.among_words("a.read"), " ".join(carried))) == ("a.read" in carried)


@given(st.text("canryx-", max_size=9))
def test_all_but_one_word(text: str) -> None:
    """The expression that stands in for a look-ahead matches every text but that word."""
    assert bool(re.fullmatch(headers.all_but("canary"), text)) == (text != "canary")


@given(st.text("kaey", max_size=5))
def test_all_but_several_words(text: str) -> None:
    """Also of words that begin alike, or begin one another."""
    words = ("key", "kay", "ke")
    assert bool(re.fullmatch(headers.all_but(*words), text)) == (text not in words)


@pytest.mark.parametrize("text", ["", "c", "canar", "canary", "canaryy", "user", "canary-x", "scopes"])
def test_canary_header_alone_is_kept(text: str) -> None:
    assert bool(re.fullmatch(headers.all_but("canary"), text)) == (text != "canary")


def test_dangling_references_are_refused(
    plan: Plan, node: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A route to a cluster that is not there, or a cluster without endpoints, never reaches a proxy."""
    front = plan.node(node("front-0"))
    monkeypatch.setattr("mesh.xds.endpoints.assignments", lambda _: [])
    with pytest.raises(SnapshotError, match=r"front-0: no endpoints for the cluster 'store.canary'"):
        compile_node(front)
    monkeypatch.setattr("mesh.xds.clusters.clusters", lambda _: [])
    with pytest.raises(SnapshotError, match=r"no cluster 'store.stable', which a route names"):
        compile_node(front)


def test_duplicates_and_lost_routes_are_refused(
    plan: Plan, node: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    front = plan.node(node("front-0"))
    monkeypatch.setattr("mesh.xds.routes.routes", lambda n: [routes.inbound(n), routes.inbound(n)])
    with pytest.raises(SnapshotError) as error:
        compile_node(front)
    assert error.value.problems == [
        "front-0: inbound is there 2 times",
        "front-0: no routes 'egress', which a listener names",
    ]


def test_clusters_do_not_vanish_by_mistake(plan: Plan, node: Callable[[str], Node]) -> None:
    """More than half of a node's clusters go only if the values no longer declare them."""
    full = compile_node(plan.node(node("front-0")))
    emptied = replace(full, resources={**full.resources, CDS: {}})
    with pytest.raises(SnapshotError, match=r"front-0: would drop app, store\.canary, store\.stable"):
        check_change(full, emptied)
    check_change(full, replace(emptied, declared=frozenset()))
    check_change(None, emptied)
    one_less = {name: r for name, r in full.resources[CDS].items() if name != "app"}
    check_change(full, replace(full, resources={**full.resources, CDS: one_less}))


def test_nothing_is_published_before_values_and_endpoints(
    plan: Plan, contract: Contract, node: Callable[[str], Node]
) -> None:
    """A control plane without memory tells nobody anything."""
    fleet, stream = Fleet(contract, plan.materials), Stream()
    proxy = fleet.connect(node("front-0"), stream)
    assert stream.target is None
    assert fleet.adopt(plan.topology) == []
    assert stream.target is None
    assert fleet.report("runner", []) == [proxy]
    assert stream.target is not None
    assert fleet.report("runner", []) == []
    assert fleet.report("runner", plan.hosts) == [proxy]
    assert fleet.report("other", ()) == []  # another source takes nothing away


def test_proxy_of_a_removed_service_keeps_what_it_has(
    plan: Plan, contract: Contract, node: Callable[[str], Node]
) -> None:
    fleet, stream = Fleet(contract, plan.materials), Stream()
    fleet.connect(node("front-0"), stream)
    fleet.report("runner", [])
    fleet.adopt(plan.topology)
    had = stream.target
    fleet.adopt(Topology({"store": plan.topology.services["store"]}))
    assert stream.target is had


def test_edits_in_words(topology: Topology) -> None:
    old = Service("store", canary=Canary(1, 10), replicas=2)
    new = replace(old, canary=Canary(2, 50), replicas=3, limits=Limits(max_requests=7))
    before = Topology({"store": old, "front": Service("front", calls=("store",)), "gone": Service("gone")})
    after = Topology({"store": new, "front": Service("front"), "fresh": Service("fresh")}, namespace="other")
    found = changes.differences(before, after)
    assert [str(change) for change in found] == [
        "store: replicas 2 -> 3",
        "store: canary replicas 1 -> 2",
        "store: canary 10 % -> 50 %",
        "store: limits max requests 1000 -> 7",
        "front: may no longer call store",
        "fresh: added",
        "gone: removed",
        "mesh: namespace nourish -> other",
    ]
    assert found[3].place == ("services", "store", "limits", "maxRequests")
    assert found[2].alone(before).services["store"] == replace(old, canary=Canary(1, 50))
    store = replace(old, traffic=Traffic(Faults(abort=Abort(), header=FaultHeader(regex="a.*"))))
    aborted, header = changes.differences(before, replace(before, services={**before.services, "store": store}))
    assert aborted.place == ("services", "store", "traffic", "faults", "abort")
    assert header.place == ("services", "store", "traffic", "faults", "header", "regex")
    all_made = before
    for change in found:
        all_made = change.alone(all_made)
    assert all_made == after
    assert changes.differences(topology, topology) == []
    assert changes.revision(before) != changes.revision(after)
    assert [str(change) for change in changes.differences(None, topology)] == ["store: added", "front: added"]
