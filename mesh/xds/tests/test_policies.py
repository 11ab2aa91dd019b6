"""What each policy of the values adds, to the letter, and what real Envoys make of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.contract import Contract
from mesh.topology import Topology
from mesh.values import ValuesFile, load
from mesh.xds.plan import Host, Materials, Node, Plan
from mesh.xds.snapshot import as_json, compile_node
from mesh.xds.tests.conftest import STORE
from mesh.xds.tests.lab import LUA, Handler, Lab, call, code, poll, status

GOLDEN = Path(__file__).parent / "golden" / "policies"
GET, SWEEP = f"/{STORE}/GetItem", f"/{STORE}/Sweep"
Code = grpc.StatusCode
PEEK = f"/{STORE}/Peek"
# By policy: what is laid over the stanza of `store`, and the proxy that it tells something.
POLICIES = {
    "faults": (
        "traffic: {faults: {delay: {milliseconds: 50, percent: 10}, abort: {status: ABORTED}, header: {regex: a.*}}}",
        "store-0",
    ),
    "outliers": (
        "traffic: {outliers: {consecutiveErrors: 2, ejectionSeconds: 3, maxEjectionSeconds: 9, maxEjectionPercent: 9}}",
        "front-0",
    ),
    "rate_limits": ("traffic: {rates: {read: {perSecond: 10, burst: 20}, heavy: {perSecond: 1}}}", "store-0"),
    "balancing": ("traffic: {balancing: ringHash}", "front-0"),
    "mirroring": ("traffic: {mirror: {percent: 25}}", "front-0"),
    "concurrency": ("traffic: {concurrency: {adaptive: true, least: 5}}", "store-0"),
    "locality": ("traffic: {zone: own}", "front-0"),
    "stickiness": ("canary: {sticky: user}", "front-0"),
    "connections": ("limits: {connectionSeconds: 60, streamsPerConnection: 10}", "store-0"),
    "sizes": ("limits: {maxRequestBytes: 20000, maxResponseBytes: 100000}", "store-0"),
}


@pytest.fixture(scope="session")
def contract(contract: Contract) -> Contract:
    """The small mesh's, with a method that is hedged."""
    peek = replace(contract.method(GET), name="Peek", path=PEEK, rest=(), hedge_seconds=0.2, deadline_seconds=10.0)
    return Contract({**contract.methods, "store": (*contract.methods["store"], peek)}, contract.descriptors)


@pytest.fixture(scope="session")
def plan(topology: Topology, contract: Contract) -> Plan:
    """The small mesh's, with that contract."""
    hosts = tuple(
        Host("store", id, "canary" if "canary" in id else "stable", "10.0.0.1", 15006, zone)
        for id, zone in (("store-0", "a"), ("store-1", "b"), ("store-canary-0", "b"))
    )
    return Plan(topology, contract, Materials('{"keys":[]}', LUA), hosts)


def values(traffic: str) -> str:
    return f"""
services:
  store: {{canary: {{replicas: 1, weight: 10}}, traffic: {{{traffic}}}}}
  front: {{calls: [store]}}
"""


@pytest.mark.parametrize("policy", POLICIES)
def test_adds_what_its_golden_says(policy: str, plan: Plan, node: Callable[[str], Node]) -> None:
    """A policy changes what its golden lists, and nothing else."""
    stanza, id = POLICIES[policy]
    proxy = replace(node(id), zone="a")

    def compiled(stanza: str) -> dict[str, Any]:
        overlay = ValuesFile("overlay.yaml", f"services: {{store: {{{stanza}}}}}")
        topology = load([ValuesFile("values.yaml", values("")), overlay])
        return as_json(compile_node(Plan(topology, plan.contract, plan.materials, plan.hosts).node(proxy)))

    before = dict(_leaves(compiled("")))
    after = dict(_leaves(compiled(stanza)))
    effect = {path: after.get(path) for path in {**before, **after} if before.get(path) != after.get(path)}
    text = json.dumps(effect, indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{policy}.json"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text with its path; what has a name goes by it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{path}/{key}")
    elif isinstance(value, list):
        for position, part in enumerate(value):
            name = part.get("name", position) if isinstance(part, dict) else position
            yield from _leaves(part, f"{path}/{name}")
    else:
        yield path, value


def test_edge_takes_the_fault_header_away(plan: Plan, node: Callable[[str], Node]) -> None:
    """Nobody outside forces a fault, unless the values let them."""

    def removed(edge: str) -> list[str]:
        topology = load([ValuesFile("values.yaml", f"{values('')}\nedge: {{{edge}}}")])
        compiled = as_json(compile_node(Plan(topology, plan.contract, plan.materials).node(node("edge-0"))))
        found: list[str] = compiled["rds"][0].get("request_headers_to_remove", [])
        return found

    assert removed("") == ["x-fault"]
    assert removed("acceptFaultHeader: true") == []


async def start(lab: Lab, *stores: str) -> None:
    """Brings up `front` and these instances of `store`."""
    await lab.report()
    assert (await lab.apply(values(""))).applied
    for id in (*stores, "front-0"):
        await lab.app(id)
        await lab.proxy(id, subset="canary" if "canary" in id else "stable")
    for id in stores:
        await lab.proxies[id].port()
    assert not (await lab.report(*stores, wait=True)).waiting
    await lab.healthy("front-0", *stores)


async def test_policies_in_force(lab: Lab) -> None:
    """Each edit takes effect at real sidecars, without a change of listeners."""
    await start(lab, "store-0", "store-canary-0")
    async with lab.proxies["front-0"].channel() as channel:
        await faults(lab, channel)
        await mirroring(lab, channel)
        await rate_limits(lab, channel)
        await ring_hash(lab, channel)
        await hedging(lab, channel)


async def faults(lab: Lab, channel: grpc.aio.Channel) -> None:
    """A header that matches forces the fault, at the subset named alone; a bad expression is Envoy's to refuse."""
    listeners = await lab.proxies["store-0"].stat("listener_manager.listener_modified")
    bad = "faults: {abort: {status: ABORTED}, header: {regex: '('}}"
    refused = await lab.apply(values(bad))
    assert not refused.applied
    (error,) = refused.errors
    assert error.startswith("values.yaml:3: services.store.traffic.faults.header.regex: Envoy refuses it: missing )")
    forced = "faults: {abort: {status: ABORTED}, header: {regex: 'a.*'}, subset: stable}"
    assert (await lab.apply(values(forced))).applied
    stable, asked = ("x-nourish-canary", "never"), ("x-fault", "abort")
    assert await code(channel, GET, metadata=(stable, asked)) == Code.ABORTED
    assert await call(channel, GET, metadata=(stable, ("x-fault", "no"))) == b"store-0"
    assert await call(channel, GET, metadata=(("x-nourish-canary", "always"), asked)) == b"store-canary-0"
    assert (await lab.apply(values("faults: {abort: {status: UNAVAILABLE}}"))).applied
    lab.apps["store-0"].calls.clear()
    assert await code(channel, GET, metadata=(stable,)) == Code.UNAVAILABLE
    assert not lab.apps["store-0"].calls
    assert (await lab.apply(values(""))).applied
    assert await lab.proxies["store-0"].stat("listener_manager.listener_modified") == listeners


async def mirroring(lab: Lab, channel: grpc.aio.Channel) -> None:
    """The canary gets a copy of each call without side effects and of no other; the caller sees the stable answer."""
    assert (await lab.apply(values("mirror: {percent: 100}"))).applied
    stable, canary = (lab.apps[id].calls for id in ("store-0", "store-canary-0"))
    stable.clear()
    canary.clear()
    never = (("x-nourish-canary", "never"),)
    for path in (SWEEP, GET, GET):
        assert await call(channel, path, metadata=never) == b"store-0"

    async def copied() -> bool:
        return len(canary) >= 2

    await poll(copied)
    assert [path for path, _ in stable] == [SWEEP, GET, GET]
    assert [path for path, _ in canary] == [GET, GET]
    assert await call(channel, GET, metadata=(("x-nourish-canary", "always"),)) == b"store-canary-0"
    assert len(canary) == 3


async def rate_limits(lab: Lab, channel: grpc.aio.Channel) -> None:
    """All methods of a class share a bucket; what does not fit in is told so; health checks do not count."""
    assert (await lab.apply(values("rates: {read: {perSecond: 1, burst: 3}}"))).applied
    never = (("x-nourish-canary", "never"),)
    found = [await status(channel, path, metadata=never) for path in (GET, SWEEP) * 5]
    assert set(found[:3]) == {Code.OK}
    assert found.count(Code.RESOURCE_EXHAUSTED) >= 3
    await lab.healthy("front-0", "store-0", "store-canary-0")
    assert (await lab.apply(values("rates: {write: {perSecond: 1}}"))).applied
    assert {await status(channel, GET, metadata=never) for _ in range(5)} == {Code.OK}


async def ring_hash(lab: Lab, channel: grpc.aio.Channel) -> None:
    """Calls of one key go to one instance, those of many keys to all; the instance does not see the key."""
    await lab.app("store-1")
    await lab.proxy("store-1")
    await lab.report("store-0", "store-1", "store-canary-0", wait=True)
    assert (await lab.apply(values("balancing: ringHash"))).applied
    await lab.healthy("front-0", "store-0", "store-1", "store-canary-0")

    async def taken_by(key: str) -> set[bytes]:
        metadata = (("x-nourish-canary", "never"), ("x-nourish-key", key))
        return {await call(channel, GET, metadata=metadata) for _ in range(3)}

    by_key = [await taken_by(f"key {n}") for n in range(20)]
    assert {len(names) for names in by_key} == {1}
    assert set.union(*by_key) == {b"store-0", b"store-1"}
    assert not any("x-nourish-key" in headers for _, headers in lab.apps["store-1"].calls)


async def hedging(lab: Lab, channel: grpc.aio.Channel) -> None:
    """When the first attempt is slow another instance gets a second one, whose answer the caller gets."""
    tried: list[str] = []
    ended = asyncio.Event()

    def handler(id: str) -> Handler:
        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            tried.append(id)
            if len(tried) == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()
            return id.encode()

        return answer

    for id in ("store-0", "store-1"):
        lab.apps[id].handler = handler(id)
    answer = await call(channel, PEEK, metadata=(("x-nourish-canary", "never"),))
    assert len(tried) == 2
    assert answer.decode() == tried[1] != tried[0]
    await asyncio.wait_for(ended.wait(), 10)
