"""A control plane with an empty memory takes from no proxy the endpoints that it was never told of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from google.rpc import status_pb2
from nourish.mesh.v1 import registry_pb2

from mesh.topology import Canary, Service
from mesh.xds import fleet, server
from mesh.xds.incremental import Incremental
from mesh.xds.plan import Host, Node, Plan
from mesh.xds.recovery import Recovery
from mesh.xds.snapshot import CDS, EDS, LDS, RDS, Snapshot, compile_node
from mesh.xds.stream import StateOfTheWorld
from mesh.xds.tests.lab import Lab, call, poll
from mesh.xds.tests.test_mesh import GET, start, values
from mesh.xds.tests.test_stream import FakeProxy

ALL = tuple(Host("store", f"store-{n}", "stable", f"10.0.0.{n + 1}", 15006) for n in range(3))


@pytest.fixture
def snapshot(plan: Plan, node: Callable[[str], Node]) -> Callable[..., Snapshot]:
    """Compiles front-0 with so many stores behind it."""

    def make(hosts: int, retries: int = 100) -> Snapshot:
        store = Service("store", canary=Canary(0, 0))
        store = replace(store, limits=replace(store.limits, max_requests=retries))
        topology = replace(plan.topology, services={"store": store, "front": Service("front", ("store",))})
        return compile_node(replace(plan, topology=topology, hosts=ALL[:hosts]).node(node("front-0")))

    return make


def back(before: Snapshot, now: Snapshot, recovery: Recovery) -> FakeProxy:
    """A proxy that was given `before`, on its first stream to a control plane that knows `now`."""
    proxy = FakeProxy(Incremental())
    proxy.names[EDS] = {"store.stable"}
    proxy.stream.publish(before)
    proxy.ask(CDS)
    proxy.run()
    proxy.stream, proxy.asked, proxy.log = Incremental(keeps=recovery.keeps), {}, []
    proxy.stream.publish(now)
    for kind in (CDS, LDS, EDS, RDS):
        assert kind not in (LDS, EDS) or list(proxy.stream.responses()) == []  # it is yet to say what it has
        proxy.ask(kind, held=True)
    return proxy


def test_fewer_endpoints_wait_until_the_grace_is_over(snapshot: Callable[..., Snapshot]) -> None:
    recovery = Recovery()
    proxy = back(snapshot(3), snapshot(2), recovery)
    assert proxy.run() == []
    assert proxy.stream.settled
    recovery.over = True
    proxy.stream.publish(snapshot(2))
    assert proxy.run() == ["eds"]


def test_no_endpoints_at_all_wait_for_ever(snapshot: Callable[..., Snapshot]) -> None:
    recovery = Recovery()
    recovery.over = True
    proxy = back(snapshot(3), snapshot(0), recovery)
    assert proxy.run() == []
    proxy.stream.publish(snapshot(1))
    assert proxy.run() == ["eds"]


def test_as_many_or_more_are_sent_at_once(snapshot: Callable[..., Snapshot]) -> None:
    assert back(snapshot(1), snapshot(3), Recovery()).run() == ["eds"]
    assert back(snapshot(3), snapshot(3), Recovery()).run() == []


def test_what_was_withdrawn_here_goes_at_once(snapshot: Callable[..., Snapshot]) -> None:
    """An instance that is about to stop must not get calls because another is not back yet."""
    recovery = Recovery()
    proxy = back(snapshot(3), snapshot(2), recovery)
    recovery.note(ALL[:2], ALL[:1])
    proxy.stream.publish(snapshot(1))
    assert proxy.run() == ["eds"]
    recovery.note(ALL[:1], ())
    proxy.stream.publish(snapshot(0))
    assert proxy.run() == ["eds"]


def test_a_changed_cluster_waits_with_its_endpoints(snapshot: Callable[..., Snapshot]) -> None:
    """Sent without them it would warm for ever; once they are known it comes first."""
    proxy = back(snapshot(3), snapshot(2, retries=7), Recovery())
    assert proxy.run() == []
    proxy.stream.publish(snapshot(3, retries=7))
    assert proxy.run() == ["cds", "eds"]
    assert proxy.stream.settled


def test_a_client_that_does_not_say_how_many_keeps_them_for_the_grace(snapshot: Callable[..., Snapshot]) -> None:
    """gRPC's own client names the version of a type alone."""
    recovery = Recovery()
    proxy = FakeProxy(StateOfTheWorld(keeps=recovery.keeps))
    proxy.names[EDS] = {"store.stable"}
    proxy.stream.publish(snapshot(2))
    proxy.ask(CDS, version="old")
    proxy.ask(EDS, version="old")
    assert "eds" not in proxy.run()
    recovery.over = True
    proxy.stream.publish(snapshot(2))
    assert "eds" in proxy.run()
    assert proxy.stream.settled


def test_a_proxy_that_refused_its_first_clusters_is_sent_better_ones(snapshot: Callable[..., Snapshot]) -> None:
    """It never comes to ask for endpoints, and must not be waited for."""
    stream = Incremental()
    stream.publish(snapshot(1))
    stream.request(DeltaDiscoveryRequest(type_url=CDS, resource_names_subscribe=["*"]))
    error = status_pb2.Status(code=3, message="bad")
    while bad := list(stream.responses()):  # all of them, then each alone
        stream.request(DeltaDiscoveryRequest(type_url=CDS, response_nonce=bad[0].nonce, error_detail=error))
    stream.publish(snapshot(1, retries=7))
    (better,) = stream.responses()
    assert "store.stable" in [r.name for r in better.resources]


async def test_sources_come_back_one_by_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart a real Envoy has both instances, reported by two sources, all the time and in any order."""
    await start(lab, "store-0", "store-1", "front-0", weight=0)
    await lab.stop_control()
    await lab.start_control()
    await poll(lambda: lab.connected("front-0"))
    assert (await lab.apply(values(0))).applied

    async def report(source: str, *ids: str, **fields: int) -> None:
        request = registry_pb2.ReportEndpointsRequest(source=source, wait=True)
        for id in ids:
            port = await lab.proxies[id].port()
            request.endpoints.add(service="store", instance=id, subset="stable", address="127.0.0.1", port=port)
        request.lease.FromSeconds(fields.get("lease", 60))
        assert not (await lab.registry.ReportEndpoints(request, timeout=15)).waiting

    front = lab.proxies["front-0"]
    updates = await front.stat("cluster.store.stable.update_success")
    await lab.report()  # a runner that has none yet
    await report("one", "store-1")
    await lab.healthy("front-0", "store-0", "store-1")
    assert await front.stat("cluster.store.stable.update_success") == updates
    await report("two", "store-0", lease=1)
    await lab.healthy("front-0", "store-1")  # its lease ended here
    async with front.channel() as channel:
        assert await call(channel, GET) == b"store-1"


async def test_after_the_grace_a_source_that_is_not_back_is_gone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await start(lab, "store-0", "store-1", "front-0", weight=0)
    await lab.stop_control()
    monkeypatch.setattr(server, "GRACE_SECONDS", 1.0)
    await lab.start_control()
    await poll(lambda: lab.connected("front-0"))
    assert (await lab.apply(values(0))).applied
    await lab.report("store-1")
    await lab.healthy("front-0", "store-1")


async def test_a_proxy_that_is_long_gone_is_forgotten(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id would otherwise be looked at by every edit for as long as the control plane runs."""
    await start(lab, "store-0", weight=0)
    await lab.proxies["store-0"].stop()

    async def gone() -> bool:
        return not await lab.connected("store-0")

    await poll(gone)
    await lab.proxy("front-0")
    await poll(lambda: lab.connected("front-0"))
    assert await lab.known() == {"front-0", "store-0"}
    monkeypatch.setattr(fleet, "FORGOTTEN_SECONDS", 0.0)
    await lab.proxy("front-1")
    await poll(lambda: lab.connected("front-1"))
    assert await lab.known() == {"front-0", "front-1"}
