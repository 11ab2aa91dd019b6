"""The ADS state machine, without a socket: what is sent when, and what is believed of what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.rpc import status_pb2

from mesh.topology import Canary, Service
from mesh.xds.plan import Node, Plan
from mesh.xds.snapshot import CDS, EDS, LDS, RDS, SHORT, Snapshot, compile_node
from mesh.xds.stream import Stream

NAMES = {CDS: (), LDS: (), EDS: ("store.stable", "store.canary"), RDS: ("inbound", "egress")}


class FakeProxy:
    """Answers as Envoy does: asks for what it was told of, acknowledges, or refuses the types in `refuses`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.log: list[str] = []
        self.names = {kind: set(names) for kind, names in NAMES.items()}
        self.asked: set[str] = set()
        self.refuses: set[str] = set()

    def ask(self, kind: str, *, nonce: str = "", version: str = "", error: str = "") -> None:
        self.asked.add(kind)
        detail = status_pb2.Status(code=3, message=error) if error else None
        names = sorted(self.names[kind])
        self.stream.request(
            DiscoveryRequest(
                type_url=kind, resource_names=names, response_nonce=nonce, version_info=version, error_detail=detail
            )
        )

    def answer(self, response: DiscoveryResponse) -> None:
        kind = response.type_url
        if kind == CDS:
            eds = {_name(r.value, CDS) for r in response.resources} - {"app"}
            if eds != self.names[EDS] or EDS not in self.asked:
                self.names[EDS] = eds
                self.ask(EDS)
        if kind == LDS and RDS not in self.asked:
            self.ask(RDS)
        bad = kind in self.refuses
        self.ask(kind, nonce=response.nonce, version=response.version_info, error="bad" if bad else "")
        if kind == EDS and LDS not in self.asked:
            self.ask(LDS)

    def run(self) -> list[str]:
        """Answers until there is nothing more to answer; gives the types sent, in order."""
        sent: list[str] = []
        while responses := list(self.stream.responses()):
            for response in responses:
                sent.append(SHORT[response.type_url])
                self.log.append(f"{sent[-1]} {','.join(_name(r.value, response.type_url) for r in response.resources)}")
                self.answer(response)
            assert len(sent) < 20, sent
        return sent


def _name(value: bytes, kind: str) -> str:
    from envoy.config.cluster.v3 import cluster_pb2
    from envoy.config.endpoint.v3 import endpoint_pb2
    from envoy.config.listener.v3 import listener_pb2
    from envoy.config.route.v3 import route_pb2

    if kind == EDS:
        return str(endpoint_pb2.ClusterLoadAssignment.FromString(value).cluster_name)
    types = {CDS: cluster_pb2.Cluster, LDS: listener_pb2.Listener, RDS: route_pb2.RouteConfiguration}
    return str(types[kind].FromString(value).name)


@pytest.fixture
def snapshot(plan: Plan, node: Callable[[str], Node]) -> Callable[..., Snapshot]:
    """Compiles front-0 with other facts."""

    def make(weight: int = 10, replicas: int = 1, calls: tuple[str, ...] = ("store",), hosts: int = 2) -> Snapshot:
        store = Service("store", canary=Canary(replicas, weight))
        topology = replace(plan.topology, services={"store": store, "front": Service("front", calls)})
        return compile_node(replace(plan, topology=topology, hosts=plan.hosts[:hosts]).node(node("front-0")))

    return make


def connected(snapshot: Snapshot) -> FakeProxy:
    stream = Stream()
    stream.publish(snapshot)
    proxy = FakeProxy(stream)
    proxy.ask(CDS)
    proxy.run()
    assert stream.settled
    proxy.log.clear()
    return proxy


def test_first_push_is_in_order(snapshot: Callable[..., Snapshot]) -> None:
    """What is pointed at is sent before what points at it, and nothing is sent before there is a snapshot."""
    stream = Stream()
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
    assert proxy.log[1] == "cds app,store.stable"
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
    proxy.stream.publish(Snapshot(target.node, {**target.resources, CDS: changed}, target.declared))
    first, second = proxy.stream.responses()
    assert [SHORT[r.type_url] for r in (first, second)] == ["cds", "eds"]
    assert second.version_info == target.versions[EDS]
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
    responses = list(proxy.stream.responses())
    assert proxy.stream.refusals == frozenset()  # what it says to the new one is not known yet
    for response in responses:
        proxy.answer(response)
    proxy.run()
    assert proxy.stream.refusals != first  # refused again, another nonce
    proxy.refuses = set()
    proxy.stream.publish(snapshot(hosts=0, replicas=0, weight=0))
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
    proxy.ask(RDS, nonce=old.nonce, version=old.version_info)
    (new,) = proxy.stream.responses()
    assert new.nonce != old.nonce
    assert new.version_info == snapshot(weight=30).versions[RDS]
    proxy.ask(RDS, nonce=old.nonce, error="late")
    assert not proxy.stream.settled
    proxy.ask(RDS, nonce=new.nonce)
    assert proxy.stream.settled
    assert proxy.stream.versions["rds"] == new.version_info


def test_unknown_types_are_left_alone(snapshot: Callable[..., Snapshot]) -> None:
    proxy = connected(snapshot())
    proxy.stream.request(DiscoveryRequest(type_url="type.googleapis.com/envoy.service.runtime.v3.Runtime"))
    assert proxy.run() == []
    assert proxy.stream.settled


def test_publish_wakes() -> None:
    woken = []
    Stream(lambda: woken.append(True)).publish(Snapshot("x", {CDS: {}, EDS: {}, LDS: {}, RDS: {}}, frozenset()))
    assert woken == [True]
