"""The ADS state machine, without a socket: what is sent when, and what is believed of what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from google.rpc import status_pb2

from mesh.topology import Canary, Service
from mesh.xds.incremental import Incremental
from mesh.xds.plan import Node, Plan
from mesh.xds.snapshot import CDS, EDS, LDS, RDS, SHORT, Snapshot, compile_node
from mesh.xds.stream import StateOfTheWorld, Stream

VARIANT: type[Stream] = StateOfTheWorld
NAMES = {CDS: (), LDS: (), EDS: ("store.stable", "store.canary"), RDS: ("inbound", "egress")}


class FakeProxy:
    """Answers as Envoy does: asks for what it was told of, acknowledges, or refuses the types or names in `refuses`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.delta = isinstance(stream, Incremental)
        self.log: list[str] = []
        self.names = {kind: set(names) for kind, names in NAMES.items()}
        self.asked: dict[str, set[str]] = {}
        self.held: dict[str, dict[str, str]] = {kind: {} for kind in NAMES}
        self.refuses: set[str] = set()

    def ask(self, kind: str, *, nonce: str = "", version: str = "", error: str = "", held: bool = False) -> None:
        detail = status_pb2.Status(code=3, message=error) if error else None
        before, names = self.asked.get(kind, set()), self.names[kind]
        self.asked[kind] = set(names)
        common: dict[str, Any] = {"type_url": kind, "response_nonce": nonce, "error_detail": detail}
        if self.delta:
            added, removed, known = sorted(names - before), sorted(before - names), self.held[kind] if held else {}
            common |= {"resource_names_subscribe": added, "resource_names_unsubscribe": removed}
            self.stream.request(DeltaDiscoveryRequest(**common, initial_resource_versions=known))
        else:
            self.stream.request(DiscoveryRequest(**common, resource_names=sorted(names), version_info=version))

    def answer(self, response: Any) -> None:
        kind, held = response.type_url, self.held[response.type_url]
        bad = kind in self.refuses or bool(self.refuses & set(resource_names(response)))
        if not self.delta:
            held.clear()
        if not bad:
            held.update({n: r.version if self.delta else "" for n, r in zip_names(response)})
        for name in response.removed_resources if self.delta else ():
            held.pop(name, None)
        if kind == CDS:
            eds = set(held) - {"app", "support"} if self.delta else set(resource_names(response)) - {"app", "support"}
            if eds != self.names[EDS] or EDS not in self.asked:
                self.names[EDS] = eds
                self.ask(EDS)
        if kind == LDS and RDS not in self.asked:
            self.ask(RDS)
        version = "" if self.delta else response.version_info
        self.ask(kind, nonce=response.nonce, version=version, error="bad" if bad else "")
        if kind == EDS and LDS not in self.asked:
            self.ask(LDS)

    def run(self) -> list[str]:
        """Answers until there is nothing more to answer; gives the types sent, in order."""
        sent: list[str] = []
        while responses := list(self.stream.responses()):
            for response in responses:
                sent.append(SHORT[response.type_url])
                self.log.append(f"{sent[-1]} {','.join(resource_names(response))}")
                if gone := getattr(response, "removed_resources", ()):
                    self.log.append(f"removed {','.join(gone)}")
                self.answer(response)
            assert len(sent) < 20, sent
        return sent


def zip_names(response: Any) -> list[tuple[str, Any]]:
    delta = hasattr(response, "removed_resources") and hasattr(response, "system_version_info")
    return [(r.name if delta else _name(r.value, response.type_url), r) for r in response.resources]


def version_of(response: Any) -> str:
    return str(getattr(response, "system_version_info", "") or getattr(response, "version_info", ""))


def resource_names(response: Any) -> list[str]:
    return [name for name, _ in zip_names(response)]


def _name(value: bytes, kind: str) -> str:
    from envoy.config.cluster.v3 import cluster_pb2
    from envoy.config.endpoint.v3 import endpoint_pb2
    from envoy.config.listener.v3 import listener_pb2
    from envoy.config.route.v3 import route_pb2

    if kind == EDS:
        return str(endpoint_pb2.ClusterLoadAssignment.FromString(value).cluster_name)
    types = {CDS: cluster_pb2.Cluster, LDS: listener_pb2.Listener, RDS: route_pb2.RouteConfiguration}
    return str(types[kind].FromString(value).name)


@pytest.fixture(params=[StateOfTheWorld, Incremental], ids=["sotw", "delta"], autouse=True)
def variant(request: pytest.FixtureRequest) -> type[Stream]:
    """Every fact here holds for both variants."""
    global VARIANT  # noqa: PLW0603
    VARIANT = request.param
    return VARIANT


@pytest.fixture
def snapshot(plan: Plan, node: Callable[[str], Node]) -> Callable[..., Snapshot]:
    """Compiles front-0 with other facts."""

    def make(weight: int = 10, replicas: int = 1, calls: tuple[str, ...] = ("store",), hosts: int = 2) -> Snapshot:
        store = Service("store", canary=Canary(replicas, weight))
        topology = replace(plan.topology, services={"store": store, "front": Service("front", calls)})
        return compile_node(replace(plan, topology=topology, hosts=plan.hosts[:hosts]).node(node("front-0")))

    return make


def connected(snapshot: Snapshot) -> FakeProxy:
    stream = VARIANT()
    stream.publish(snapshot)
    proxy = FakeProxy(stream)
    proxy.ask(CDS)
    proxy.run()
    assert stream.settled
    proxy.log.clear()
    return proxy


def test_first_push_is_in_order(snapshot: Callable[..., Snapshot]) -> None:
    """What is pointed at is sent before what points at it, and nothing is sent before there is a snapshot."""
    stream = VARIANT()
    proxy = FakeProxy(stream)
    proxy.ask(CDS)
    assert proxy.run() == []
    assert not stream.settled
    stream.publish(snapshot())
    assert proxy.run() == ["cds", "eds", "lds", "rds"]
    assert stream.settled
    assert stream.versions == {SHORT[kind]: version for kind, version in snapshot().versions.items()}


def test_a_weight_is_routes_alone(snapshot: Callable[..., Snapshot]) -> None:
    proxy = connected(snapshot(weight=10))
    proxy.stream.publish(snapshot(weight=20))
    assert proxy.run() == ["rds"]


def test_endpoints_alone(snapshot: Callable[..., Snapshot]) -> None:
    proxy = connected(snapshot(hosts=2))
    proxy.stream.publish(snapshot(hosts=1))
    assert proxy.run() == ["eds"]
    proxy.stream.publish(snapshot(hosts=1))
    assert proxy.run() == []


def test_clusters_are_removed_last(snapshot: Callable[..., Snapshot]) -> None:
    """A cluster goes only when no route can point at it any more, and comes before a route does."""
    proxy = connected(snapshot(weight=0, replicas=1))
    proxy.stream.publish(snapshot(weight=0, replicas=0))
    assert proxy.run() == ["rds", "cds"]
    assert proxy.log[1:] == (["cds ", "removed store.canary"] if proxy.delta else ["cds app,store.stable,support"])
    proxy.stream.publish(snapshot(weight=0, replicas=1))
    assert proxy.run()[:2] == ["cds", "eds"]
    assert proxy.log[-1].startswith("rds")
    assert proxy.stream.settled


def test_all_clusters_away_and_back(snapshot: Callable[..., Snapshot]) -> None:
    """A proxy that drops its last cluster does not answer to endpoints any more: nobody waits for it."""
    proxy = connected(snapshot())
    proxy.stream.publish(snapshot(calls=()))
    assert proxy.run() == ["rds", "cds"]
    assert proxy.stream.settled
    proxy.stream.publish(snapshot())
    assert proxy.run()[:2] == ["cds", "eds"]
    assert proxy.stream.settled


def test_endpoints_follow_a_changed_cluster(plan: Plan, snapshot: Callable[..., Snapshot]) -> None:
    """Envoy warms a changed cluster until its endpoints come again, though they are the same, and then acknowledges."""
    proxy = connected(snapshot())
    target = snapshot()
    changed = dict(target.resources[CDS])
    changed["store.stable"] = changed["store.canary"]
    proxy.stream.publish(replace(target, resources={**target.resources, CDS: changed}))
    first, second = proxy.stream.responses()
    assert [SHORT[r.type_url] for r in (first, second)] == ["cds", "eds"]
    assert version_of(second) == target.versions[EDS]
    assert not proxy.stream.settled


def test_refusal_is_recorded_and_not_repeated(snapshot: Callable[..., Snapshot]) -> None:
    """A refused type is not sent again until it changes; the good types go on; a good answer closes the refusal."""
    proxy = connected(snapshot())
    proxy.refuses = {CDS}
    proxy.stream.publish(snapshot(weight=50, replicas=0, calls=()))
    assert proxy.run() == ["rds", "cds"]
    assert proxy.stream.errors == {"cds": "bad"}
    assert proxy.stream.settled
    assert proxy.run() == []
    first = proxy.stream.refusals
    proxy.stream.publish(snapshot())
    assert proxy.stream.refusals == first  # nothing has been sent yet
    responses = list(proxy.stream.responses())
    assert proxy.stream.refusals == frozenset()  # what it says to the new one is not known yet
    for response in responses:
        proxy.answer(response)
    proxy.run()
    assert proxy.stream.refusals != first  # refused again, another nonce
    proxy.refuses = set()
    proxy.stream.publish(snapshot(calls=()))
    proxy.run()
    assert proxy.stream.errors == {}


def test_stale_answers_are_ignored(snapshot: Callable[..., Snapshot]) -> None:
    """An answer to a response that was replaced says nothing of the new one."""
    proxy = connected(snapshot(weight=10))
    proxy.stream.publish(snapshot(weight=20))
    (old,) = proxy.stream.responses()
    proxy.ask(RDS, nonce="0", error="to something else")
    assert proxy.stream.errors == {}
    assert not proxy.stream.settled
    proxy.stream.publish(snapshot(weight=30))
    assert list(proxy.stream.responses()) == []  # one at a time
    proxy.ask(RDS, nonce=old.nonce, version=version_of(old))
    (new,) = proxy.stream.responses()
    assert new.nonce != old.nonce
    assert version_of(new) == snapshot(weight=30).versions[RDS]
    proxy.ask(RDS, nonce=old.nonce, error="late")
    assert not proxy.stream.settled
    proxy.ask(RDS, nonce=new.nonce)
    assert proxy.stream.settled
    assert proxy.stream.versions["rds"] == version_of(new)


def test_unknown_types_are_left_alone(snapshot: Callable[..., Snapshot]) -> None:
    proxy = connected(snapshot())
    proxy.stream.request(DiscoveryRequest(type_url="type.googleapis.com/envoy.service.runtime.v3.Runtime"))
    assert proxy.run() == []
    assert proxy.stream.settled


def test_publish_wakes() -> None:
    woken = []
    VARIANT(lambda: woken.append(True)).publish(Snapshot("x", {CDS: {}, EDS: {}, LDS: {}, RDS: {}}, frozenset()))
    assert woken == [True]


def test_reconnected_proxy_is_sent_nothing_again(snapshot: Callable[..., Snapshot], variant: type[Stream]) -> None:
    """A proxy that says what it has gets what changed, and loses last what is gone; with all of it, it gets nothing."""
    if variant is StateOfTheWorld:
        pytest.skip("only the incremental variant names versions")
    proxy = connected(snapshot(weight=10))

    def reconnect(to: Snapshot) -> list[str]:
        proxy.stream, proxy.asked, proxy.log = variant(), {}, []
        proxy.stream.publish(to)
        for kind in (CDS, EDS, LDS, RDS):
            proxy.ask(kind, held=True)
        return proxy.run()

    assert reconnect(snapshot(weight=10)) == []
    assert proxy.stream.settled
    assert proxy.stream.versions.keys() == {"cds", "eds", "lds", "rds"}
    assert reconnect(snapshot(weight=30)) == ["rds"]
    assert reconnect(snapshot(weight=0, replicas=0))[-2:] == ["rds", "cds"]
    assert proxy.log[-1] == "removed store.canary"
    assert proxy.stream.settled


def test_one_bad_resource_holds_back_no_good_one(snapshot: Callable[..., Snapshot], variant: type[Stream]) -> None:
    """Refused together, sent again apart: the good are taken, the bad stays refused, and endpoints go on."""
    if variant is StateOfTheWorld:
        pytest.skip("a refusal there is of the whole type")
    proxy = connected(snapshot())
    proxy.stream.publish(snapshot(calls=()))
    proxy.run()
    proxy.refuses = {"store.canary"}
    proxy.stream.publish(snapshot())
    proxy.run()
    assert proxy.stream.errors == {"cds": "bad"}
    assert proxy.stream.settled
    assert set(proxy.held[CDS]) == {"app", "support", "store.stable"}
    proxy.stream.publish(snapshot(hosts=0))
    assert "eds" in proxy.run()
    assert proxy.stream.settled
