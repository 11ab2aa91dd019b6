"""Endpoints out of a cluster's EndpointSlices: what they mean, and that they are followed through every trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.contract import Contract
from mesh.xds.endpoint_slices import hosts
from mesh.xds.fleet import Fleet
from mesh.xds.plan import Host, Materials
from mesh.xds.server import kubernetes
from mesh.xds.server.kubernetes import EndpointSlices
from mesh.xds.tests.kube_api import KubeApi, bookmark, endpoint, endpoint_slice, event, kube_api, status
from mesh.xds.tests.lab import Lab, call, poll
from mesh.xds.tests.test_mesh import GET, values

ONE, TWO = endpoint("store-a", "10.0.0.1", zone="eu-1a"), endpoint("store-b", "10.0.0.2")


def conditions(ready: bool | None, serving: bool | None, terminating: bool | None) -> dict[str, Any]:
    found = {"ready": ready, "serving": serving, "terminating": terminating}
    return {"conditions": {key: value for key, value in found.items() if value is not None}}


def test_a_slice_gives_hosts_by_the_charts_labels() -> None:
    found = hosts(
        [
            endpoint_slice("store-canary-x", 1, endpoint("store-c", "10.0.0.3"), subset="canary"),
            endpoint_slice("store-x", 1, TWO, ONE),
            endpoint_slice("store-y", 1),
            endpoint_slice("empty-x", 1, endpoints=None, ports=None),
            endpoint_slice("other-x", 1, endpoint("o", "10.0.0.9"), subset="blue"),
        ]
    )
    assert found == [
        Host("store", "store-c", "canary", "10.0.0.3", 8080),
        Host("store", "store-a", "stable", "10.0.0.1", 8080, zone="eu-1a"),
        Host("store", "store-b", "stable", "10.0.0.2", 8080),
    ]


@pytest.mark.parametrize(
    ("ready", "serving", "terminating", "health"),
    [
        (True, True, False, "healthy"),
        (None, None, None, "healthy"),  # not known counts as ready
        (True, None, None, "healthy"),
        (False, False, False, "unhealthy"),
        (False, True, True, "draining"),
        (False, None, True, None),
        (False, False, True, None),
    ],
)
def test_conditions_are_health(ready: bool, serving: bool, terminating: bool, health: str | None) -> None:
    pod = endpoint("store-a", "10.0.0.1", **conditions(ready, serving, terminating))
    assert [h.health for h in hosts([endpoint_slice("store-x", 1, pod)])] == ([health] if health else [])


def test_an_instance_in_several_slices_counts_once() -> None:
    """Where they disagree it is what takes least; of two address families it is IPv4, and IPv6 if there is no other."""
    leaving = {**TWO, **conditions(ready=False, serving=True, terminating=True)}
    six, alone = endpoint("store-a", "fd00::1"), endpoint("store-c", "fd00::3")
    named = {"addressType": "FQDN"}
    found = hosts(
        [
            endpoint_slice("store-v6", 1, six, alone, addressType="IPv6"),
            endpoint_slice("store-x", 1, ONE, TWO),
            endpoint_slice("store-y", 1, leaving),
            endpoint_slice("store-z", 1, endpoint("store-d", "store.example"), **named),
        ]
    )
    assert [(h.instance, h.address, h.health) for h in found] == [
        ("store-a", "10.0.0.1", "healthy"),
        ("store-b", "10.0.0.2", "draining"),
        ("store-c", "fd00::3", "healthy"),
    ]


@pytest.fixture
async def api(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubeApi]:
    (short_dir / "account").mkdir()
    async with kube_api(short_dir / "account") as served:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(served.port))
        monkeypatch.setattr(kubernetes, "FIRST_DELAY", 0.02)
        yield served


@pytest.fixture
async def fleet(api: KubeApi, contract: Contract) -> AsyncIterator[Fleet]:
    """What follows the API; it starts with the first turn of the loop."""
    made = Fleet(contract, Materials("{}"))
    following = asyncio.create_task(EndpointSlices(made, api.account).forever())
    yield made
    following.cancel()
    await asyncio.wait([following])


async def settles(fleet: Fleet, *instances: str) -> None:
    async def check() -> bool:
        return tuple(h.instance for h in fleet.hosts.get("kubernetes", ())) == instances and bool(fleet.hosts)

    await poll(check)


async def watched(api: KubeApi, count: int) -> None:
    async def check() -> bool:
        return api.opened >= count

    await poll(check)


async def test_lists_by_pages_and_follows_every_change(api: KubeApi, fleet: Fleet) -> None:
    """Added, changed and deleted slices; events and bookmarks move the version that the next watch begins at."""
    api.page, api.slices = 1, [endpoint_slice("store-x", 7, ONE), endpoint_slice("store-y", 8, TWO)]
    await settles(fleet, "store-a", "store-b")
    await watched(api, 1)
    assert api.watches == ["10"]
    third = endpoint("store-c", "10.0.0.3")
    api.tell(event("ADDED", endpoint_slice("store-z", 11, third)))
    await settles(fleet, "store-a", "store-b", "store-c")
    api.tell(event("MODIFIED", endpoint_slice("store-z", 12)), event("DELETED", endpoint_slice("store-x", 13, ONE)))
    await settles(fleet, "store-b")
    api.tell(bookmark(20))
    api.end_watch()
    await watched(api, 2)
    assert api.watches[1] == "20"
    assert api.lists == 1


async def test_a_cut_connection_is_taken_up_where_it_ended(api: KubeApi, fleet: Fleet) -> None:
    """What was known stays meanwhile, through refusals too; nothing is listed again."""
    api.slices = [endpoint_slice("store-x", 7, ONE)]
    await settles(fleet, "store-a")
    await watched(api, 1)
    api.tell(event("ADDED", endpoint_slice("store-y", 15, TWO)))
    await settles(fleet, "store-a", "store-b")
    api.refusals = [503, 403]
    api.cut()
    await watched(api, 2)
    assert api.watches[1:] == ["15", "15", "15"]
    await settles(fleet, "store-a", "store-b")
    api.tell(event("DELETED", endpoint_slice("store-y", 16, TWO)))
    await settles(fleet, "store-a")
    assert api.lists == 1


@pytest.mark.parametrize("how", ["event", "answer"])
async def test_a_version_that_is_too_old_lists_all_again(api: KubeApi, fleet: Fleet, how: str) -> None:
    api.slices = [endpoint_slice("store-x", 7, ONE)]
    await settles(fleet, "store-a")
    await watched(api, 1)
    api.slices, api.version = [endpoint_slice("store-y", 90, TWO)], 99
    if how == "event":
        api.tell(event("ERROR", status(410, "Expired")))
    else:
        api.refusals = [410]
        api.end_watch()
    await settles(fleet, "store-b")
    await watched(api, 2)
    assert (api.lists, api.watches[-1]) == (2, "99")


async def test_a_renewed_token_is_read_again(api: KubeApi, fleet: Fleet) -> None:
    """The kubelet renews it in its file; the old one ends."""
    api.slices = [endpoint_slice("store-x", 7, ONE)]
    await settles(fleet, "store-a")
    await watched(api, 1)
    api.token = "second"
    api.end_watch()

    async def refused() -> bool:
        return len(api.asked) > 3

    await poll(refused)
    api.write_account()
    await watched(api, 2)
    api.tell(event("MODIFIED", endpoint_slice("store-x", 30, ONE, TWO)))
    await settles(fleet, "store-a", "store-b")


async def test_an_answer_that_is_none_changes_nothing(api: KubeApi, fleet: Fleet) -> None:
    api.slices = [endpoint_slice("store-x", 7, ONE)]
    await settles(fleet, "store-a")
    await watched(api, 1)
    api.tell({"type": "ADDED", "object": None})
    await watched(api, 2)
    api.tell(event("ADDED", {"metadata": {"name": "odd", "resourceVersion": "31", "labels": "none"}}))
    api.tell(event("DELETED", {"metadata": {"name": "odd", "resourceVersion": "32"}}))
    api.tell(event("ADDED", endpoint_slice("store-y", 33, TWO)))
    await settles(fleet, "store-a", "store-b")
    assert api.lists == 1


async def test_a_proxy_calls_the_pods_that_the_cluster_has(api: KubeApi, lab: Lab) -> None:
    """From the API to what a real Envoy does: a ready pod is called, a terminating one finishes and gets no more."""
    await lab.stop_control()
    await lab.start_control(account=api.account)
    assert (await lab.apply(values(0))).applied
    api.slices = [endpoint_slice("store-x", 7)]
    for id in ("store-0", "store-1", "front-0"):
        await lab.proxy(id)
        await lab.app(id)
    await watched(api, 1)
    pods = {}
    for id in ("store-0", "store-1"):
        port = [{"name": "grpc", "port": await lab.proxies[id].port(), "protocol": "TCP"}]
        pods[id] = {"endpoints": [endpoint(id, "127.0.0.1", zone="eu-1a")], "ports": port}
    api.tell(*(event("ADDED", endpoint_slice(f"{id}-x", n, **pods[id])) for n, id in enumerate(pods, start=20)))
    await lab.healthy("front-0", *pods)
    async with lab.proxies["front-0"].channel() as channel:
        assert {await call(channel, GET) for _ in range(30)} == {b"store-0", b"store-1"}
        ending = {"endpoints": [endpoint("store-0", "127.0.0.1", **conditions(False, True, True))]}
        api.tell(event("MODIFIED", endpoint_slice("store-0-x", 30, **{**pods["store-0"], **ending})))

        async def draining() -> bool:
            clusters = (await lab.proxies["front-0"].admin("/clusters?format=json"))["cluster_statuses"]
            found = {h["hostname"]: h for c in clusters for h in c.get("host_statuses", ()) if "hostname" in h}
            return found["store-0"]["health_status"]["eds_health_status"] == "DRAINING"

        await poll(draining)
        assert {await call(channel, GET) for _ in range(30)} == {b"store-1"}
    api.tell(event("DELETED", endpoint_slice("store-0-x", 31)))
    await lab.healthy("front-0", "store-1")
