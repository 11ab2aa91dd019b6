"""`python -m bench.proxies unix:/path`: simulated proxies, each with a connection and an incremental ADS stream.

Each asks and acknowledges in Envoy's order, takes everything and serves nothing. A line on stdin is answered with what
all of them were sent since the last one, by service.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import grpc
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import Node
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.service.discovery.v3.ads_pb2_grpc import AggregatedDiscoveryServiceStub
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from mesh.topology import Instance, Subset
from mesh.xds.snapshot import CDS, EDS, LDS
from mesh.xds.stream import POINTS_AT

PROXIES = int(os.environ.get("BENCH_PROXIES", "1000"))
PERCENT: dict[tuple[str, Subset], int] = {
    ("nutrition", "stable"): 60,
    ("food", "stable"): 26,
    ("food", "canary"): 3,
    ("profile", "stable"): 1,
    ("edge", "stable"): 10,
}
COUNTS = {kind: PROXIES * percent // 100 for kind, percent in PERCENT.items()}
INBOUND = 15006
BASE_SECONDS, MAX_SECONDS = 0.2, 5.0  # of the bootstrap's back-off
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))

Sent = defaultdict[str, Counter[str]]  # by service: responses, resources and bytes


def instances() -> list[Instance]:
    """Whose proxies they are."""
    infix = {"stable": "", "canary": "canary-"}
    return [
        Instance(f"{s}-{infix[subset]}{n}", s, subset) for (s, subset), count in COUNTS.items() for n in range(count)
    ]


class Proxy:
    """What one proxy has, which it keeps when its stream ends."""

    def __init__(self, instance: Instance, sent: Sent) -> None:
        self._instance = instance
        self._sent = sent
        self._held: dict[str, dict[str, str]] = {}  # versions, by type and name
        self._named: dict[str, dict[str, frozenset[str]]] = {
            CDS: {},
            LDS: {},
        }  # what each cluster or listener points at

    async def forever(self, address: str) -> None:
        """Connects, again after each end of the stream, with Envoy's jittered back-off."""
        interval = BASE_SECONDS
        while True:
            try:
                async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
                    stream = AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
                    await self._resume(stream)
                    async for response in stream:
                        interval = BASE_SECONDS
                        await self._take(stream, response)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass
            await asyncio.sleep(random.uniform(0, interval))
            interval = min(interval * 2, MAX_SECONDS)

    async def _resume(self, stream: Any) -> None:
        """Asks for all that it has, by versions; a new one for clusters."""
        node: Node | None = _node(self._instance)
        for kind in self._held or [CDS]:
            held = self._held.setdefault(kind, {})
            names = ["*"] if kind in POINTS_AT else sorted(held)
            request = DeltaDiscoveryRequest(node=node, type_url=kind, resource_names_subscribe=names)
            request.initial_resource_versions.update({name: version for name, version in held.items() if version})
            await stream.write(request)
            node = None

    async def _take(self, stream: Any, response: DeltaDiscoveryResponse) -> None:
        kind = response.type_url
        self._sent[self._instance.service].update(
            responses=1, resources=len(response.resources), bytes=response.ByteSize()
        )
        for resource in response.resources:
            self._held[kind][resource.name] = resource.version
            if kind in POINTS_AT:
                self._named[kind][resource.name] = _points_at(kind, resource.resource.value)
        for name in response.removed_resources:
            self._held[kind].pop(name, None)
            self._named.get(kind, {}).pop(name, None)
        if kind in POINTS_AT:
            await self._follow(stream, kind)
        await stream.write(DeltaDiscoveryRequest(type_url=kind, response_nonce=response.nonce))
        if LDS not in self._held and (kind == EDS or EDS not in self._held):
            self._held[LDS] = {}
            await stream.write(DeltaDiscoveryRequest(type_url=LDS, resource_names_subscribe=["*"]))

    async def _follow(self, stream: Any, kind: str) -> None:
        """Asks for what clusters or listeners have come to point at, and no longer for the rest."""
        wanted, pointed_at = frozenset[str]().union(*self._named[kind].values()), POINTS_AT[kind]
        known = self._held.get(pointed_at, {})
        added, removed = sorted(wanted - known.keys()), sorted(known.keys() - wanted)
        if added or removed:
            self._held[pointed_at] = {name: known.get(name, "") for name in wanted}
            await stream.write(
                DeltaDiscoveryRequest(
                    type_url=pointed_at, resource_names_subscribe=added, resource_names_unsubscribe=removed
                )
            )


def _node(instance: Instance) -> Node:
    run = "/run/nourish"
    node = Node(id=instance.id, cluster=instance.service)
    node.metadata.update(
        {
            "service": instance.service,
            "subset": instance.subset,
            "app_socket": f"{run}/app.sock",
            "egress_socket": f"{run}/egress.sock",
            "identity_dir": f"{run}/identity",
            "inbound_address": "0.0.0.0",
            "inbound_port": INBOUND,
        }
    )
    return node


@cache
def _points_at(kind: str, content: bytes) -> frozenset[str]:
    """The load assignment of a cluster, or the routes of a listener."""
    if kind == CDS:
        cluster = Cluster.FromString(content)
        return frozenset([cluster.name] if cluster.type == Cluster.DiscoveryType.EDS else [])
    found, manager = set(), HttpConnectionManager()
    for chain in Listener.FromString(content).filter_chains:
        for each in chain.filters:
            if each.typed_config.Unpack(manager) and manager.HasField("rds"):
                found.add(manager.rds.route_config_name)
    return frozenset(found)


async def _run(address: str) -> None:
    sent: Sent = defaultdict(Counter)
    tasks = [asyncio.create_task(Proxy(instance, sent).forever(address)) for instance in instances()]
    while await asyncio.to_thread(sys.stdin.readline):
        if broken := [task for task in tasks if task.done()]:
            broken[0].result()
        print(json.dumps(sent), flush=True)
        sent.clear()
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1]))
