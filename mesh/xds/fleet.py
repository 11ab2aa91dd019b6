"""Which proxies there are, what is known of the mesh, and what each proxy shall therefore have. It holds no socket."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mesh.contract import Contract
from mesh.topology import EDGE, SUBSETS, Instance, Topology
from mesh.xds.plan import Host, Materials, Node, Plan, PlanError
from mesh.xds.recovery import Recovery
from mesh.xds.snapshot import Snapshot, SnapshotError, check_change, compile_node
from mesh.xds.stream import Stream

log = logging.getLogger(__name__)

RECENT = 3  # plans whose resources are kept
FORGOTTEN_SECONDS = 600.0  # after its last stream: pods come and go, each with an id of its own
Kind = tuple[str, str]  # service and subset


@dataclass(eq=False)
class Proxy:
    """A proxy that is connected or was. It has two streams only while one instance replaces another."""

    node: Node
    snapshot: Snapshot | None = None
    streams: list[Stream] = field(default_factory=list)
    left: float = 0.0  # when its last stream ended, as `time.monotonic` counts

    @property
    def settled(self) -> bool:
        """Whether every open stream has answered to all of the last snapshot."""
        return all(stream.settled for stream in self.streams)

    @property
    def refusals(self) -> frozenset[tuple[str, str]]:
        """Open refusals, nonce and text."""
        return frozenset().union(*[stream.refusals for stream in self.streams])


class Compiled:
    """The resources of every node under one plan. Instances that differ in their id alone share one snapshot."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._snapshots: dict[Node, Snapshot] = {}

    def node(self, node: Node) -> Snapshot:
        """What this node is to have.

        Raises:
            PlanError: the topology has no such service.
            SnapshotError: the result contradicts itself.
        """
        shared = node.anonymous
        if shared not in self._snapshots:
            self._snapshots[shared] = compile_node(self.plan.node(shared))
        return self._snapshots[shared]


class Fleet:
    """The mesh as it is known now. Nothing is published until there are values and a first report of endpoints."""

    def __init__(self, contract: Contract, materials: Materials) -> None:
        self.contract = contract
        self.topology: Topology | None = None
        self.proxies: dict[str, Proxy] = {}
        self.hosts: dict[str, tuple[Host, ...]] = {}  # by who reported them
        self.recovery = Recovery()
        self._materials = materials
        self._recent: list[Compiled] = []

    @property
    def published(self) -> bool:
        """Whether proxies are told anything yet."""
        return self.topology is not None and bool(self.hosts)

    def connect(self, node: Node, stream: Stream) -> Proxy:
        """A proxy opened a stream. It gets its snapshot now, if there is one for it."""
        gone = time.monotonic() - FORGOTTEN_SECONDS
        self.proxies = {id: p for id, p in self.proxies.items() if p.streams or p.left > gone}
        proxy = self.proxies.setdefault(node.id, Proxy(node))
        proxy.node = node
        proxy.streams.append(stream)
        if self.topology is not None and self.published:
            proxy.snapshot = self._compile(self._compiled(self.topology), node) or proxy.snapshot
        if proxy.snapshot:
            stream.publish(proxy.snapshot)
        return proxy

    def disconnect(self, proxy: Proxy, stream: Stream) -> None:
        """A stream ended."""
        proxy.streams.remove(stream)
        proxy.left = time.monotonic()

    def check(self, topology: Topology) -> None:
        """Compiles for every proxy that is known and every instance that the topology names, and publishes nothing.

        Raises:
            SnapshotError: a proxy's resources would contradict themselves or drop too much.
        """
        compiled = self._compiled(topology)
        for node in self._nodes(topology):
            known = self.proxies.get(node.id)
            check_change(known.snapshot if known else None, compiled.node(node))

    def kinds(self, topology: Topology) -> dict[Kind, Snapshot]:
        """What each kind of proxy would have: proxies of one kind differ in id, sockets and addresses alone.

        Raises:
            SnapshotError: as `check`.
        """
        compiled = self._compiled(topology)
        kinds = [Instance(f"{s}-{subset}", s, subset) for s in topology.services for subset in SUBSETS]
        nodes = [_stand_in(topology, kind) for kind in (*kinds, Instance(EDGE, EDGE, "stable"))]
        return {(node.service, node.subset): compiled.node(node) for node in nodes}

    def connected(self, kinds: Iterable[Kind]) -> int:
        """How many connected proxies are of these kinds."""
        wanted = set(kinds)
        return sum(bool(p.streams) and (p.node.service, p.node.subset) in wanted for p in self.proxies.values())

    def late(self) -> list[Proxy]:
        """The proxies that have not answered to all of their last snapshot."""
        return [proxy for proxy in self.proxies.values() if proxy.snapshot and not proxy.settled]

    def adopt(self, topology: Topology | None) -> list[Proxy]:
        """Takes these values. Returns the connected proxies that are to get something new.

        Raises:
            SnapshotError: as `check`; nothing is changed.
        """
        if topology is not None:
            self.check(topology)
        self.topology = topology
        return self._publish()

    def report(self, source: str, hosts: Iterable[Host]) -> list[Proxy]:
        """Takes all endpoints that one source knows. Returns the connected proxies that are to get something new."""
        before = self._all_hosts()
        self.hosts = {**self.hosts, source: tuple(hosts)}
        self.recovery.note(before, self._all_hosts())
        return self._publish()

    def recovered(self) -> None:
        """The grace after a start is over: whoever keeps more endpoints than are known here gets those that are."""
        self.recovery.over = True
        for proxy in self.proxies.values():
            for stream in proxy.streams:
                if proxy.snapshot:
                    stream.publish(proxy.snapshot)
                if kept := ", ".join(sorted(stream.kept())):
                    log.warning("%s keeps what it had of %s: nobody reports any", proxy.node.id, kept)

    def _publish(self) -> list[Proxy]:
        if self.topology is None or not self.published:
            return []
        compiled, changed = self._compiled(self.topology), []
        for proxy in self.proxies.values():
            snapshot = self._compile(compiled, proxy.node) if proxy.streams else None
            if snapshot is None or (proxy.snapshot and snapshot.versions == proxy.snapshot.versions):
                continue
            proxy.snapshot = snapshot
            for stream in proxy.streams:
                stream.publish(snapshot)
            changed.append(proxy)
        return changed

    def _compile(self, compiled: Compiled, node: Node) -> Snapshot | None:
        """None for a proxy that keeps what it has: its service was removed, or its resources would make no sense."""
        try:
            return compiled.node(node)
        except (PlanError, SnapshotError) as error:
            log.error("%s", error)
            return None

    def _compiled(self, topology: Topology) -> Compiled:
        """One of the last again, if it is of the same values and endpoints: an edit compares old and new."""
        hosts = self._all_hosts()
        for compiled in self._recent:
            if compiled.plan.topology == topology and compiled.plan.hosts == hosts:
                return compiled
        made = Compiled(Plan(topology, self.contract, self._materials, hosts))
        self._recent = [made, *self._recent[: RECENT - 1]]
        return made

    def _all_hosts(self) -> tuple[Host, ...]:
        return tuple(host for reported in self.hosts.values() for host in reported)

    def _nodes(self, topology: Topology) -> list[Node]:
        known = [p.node for p in self.proxies.values() if p.node.service == EDGE or p.node.service in topology.services]
        expected = [i for name in topology.services for i in topology.instances(name)]
        expected.append(Instance(f"{EDGE}-0", EDGE, "stable"))
        return [*known, *(_stand_in(topology, i) for i in expected if i.id not in self.proxies)]


def _stand_in(topology: Topology, instance: Instance) -> Node:
    """A proxy that has not connected yet, as it would be in a cluster."""
    service = topology.services.get(instance.service)
    if service and service.data_plane == "proxyless":
        return Node.without_proxy(instance.id, instance.service, instance.subset)
    run = "/run/nourish"
    node = Node(instance.id, instance.service, instance.subset, f"{run}/app.sock", "", f"{run}/identity", "0.0.0.0", 1)  # noqa: S104
    return replace(node, egress_socket=f"{run}/egress.sock")
