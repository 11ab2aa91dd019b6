"""The resources of one node at one moment, with content-hash versions, and the checks before any proxy sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf import any_pb2, json_format

from mesh.topology import DataPlane
from mesh.xds import clusters, endpoints, listeners, pb, proxyless, routes
from mesh.xds.plan import NodePlan

PREFIX = "type.googleapis.com/"
CDS = PREFIX + cluster_pb2.Cluster.DESCRIPTOR.full_name
EDS = PREFIX + endpoint_pb2.ClusterLoadAssignment.DESCRIPTOR.full_name
LDS = PREFIX + listener_pb2.Listener.DESCRIPTOR.full_name
RDS = PREFIX + route_pb2.RouteConfiguration.DESCRIPTOR.full_name
# Make before break: what is pointed at comes before what points at it.
ORDER = (CDS, EDS, LDS, RDS)
SHORT = {CDS: "cds", EDS: "eds", LDS: "lds", RDS: "rds"}

Resources = Mapping[str, any_pb2.Any]  # by name


class Versioned(NamedTuple):
    """A resource and the hash of its content. None: a proxy says that it has it, and its content is not known here."""

    version: str
    resource: any_pb2.Any | None


class SnapshotError(Exception):
    """The resources contradict themselves or drop too much; `problems` lists each with its node."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Snapshot:
    """All that one proxy is sent: by type URL, by name. `declared` are the clusters that the topology gives it.

    `hosts` is how many endpoints stand behind each.
    """

    node: str
    resources: Mapping[str, Resources]
    declared: frozenset[str]
    hosts: Mapping[str, int] = field(default_factory=dict)
    data_plane: DataPlane = "sidecar"

    @cached_property
    def versioned(self) -> dict[str, dict[str, Versioned]]:
        """The resources with their versions, hashed once."""
        found = {t: {n: Versioned(_hash(r.value), r) for n, r in self.resources[t].items()} for t in ORDER}
        assigned = found[EDS].items()
        return {**found, EDS: {n: Versioned(f"{e.version}-{self.hosts.get(n, 0)}", e.resource) for n, e in assigned}}

    @cached_property
    def routed(self) -> frozenset[str]:
        """The listeners that name routes: whoever takes one of them wants these, and all that they lead to."""
        found = set()
        for name, resource in self.resources[LDS].items():
            listener = listener_pb2.Listener.FromString(resource.value)
            if any(manager.HasField("rds") for manager in _connection_managers([listener])):
                found.add(name)
        return frozenset(found)

    @cached_property
    def versions(self) -> dict[str, str]:
        """The version of each type as a whole."""
        return {type_url: version(self.versioned[type_url]) for type_url in ORDER}


def version(resources: Mapping[str, Versioned]) -> str:
    """A hash of names and contents: the same for the same meaning, in any process."""
    return _hash("".join(f"{len(name)}:{name}{resources[name].version}" for name in sorted(resources)).encode())


def hosts_in(version: str) -> int | None:
    """How many endpoints an assignment of this version holds: a proxy brings it to a control plane that knows none."""
    count = version.rpartition("-")[2]
    return int(count) if "-" in version and count.isdecimal() else None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def compile_node(plan: NodePlan) -> Snapshot:
    """Compiles and checks the resources of a node.

    Raises:
        SnapshotError: the result contradicts itself.
    """
    found = _resources(plan)
    problems = [p for messages in found.values() for p in _duplicates(messages)]
    problems += _dangling(found[CDS], found[EDS], found[LDS], found[RDS])
    if problems:
        raise SnapshotError([f"{plan.node.id}: {p}" for p in problems])
    packed = {type_url: {_name(m): pb.pack(m) for m in messages} for type_url, messages in found.items()}
    hosts = {t.name: sum(map(len, t.hosts)) for t in plan.targets}
    return Snapshot(plan.node.id, packed, frozenset([clusters.APP, *hosts]), hosts, plan.node.data_plane)


def _resources(plan: NodePlan) -> dict[str, list[Any]]:
    if plan.node.data_plane == "proxyless":
        return {
            CDS: proxyless.clusters(plan),
            EDS: proxyless.assignments(plan),
            LDS: proxyless.listeners(plan),
            RDS: proxyless.routes(plan),
        }
    return {
        CDS: clusters.clusters(plan),
        EDS: endpoints.assignments(plan),
        LDS: listeners.listeners(plan),
        RDS: routes.routes(plan),
    }


def check_change(old: Snapshot | None, new: Snapshot) -> None:
    """Refuses to take away more than half of a node's clusters, unless the topology no longer declares them.

    Raises:
        SnapshotError: naming the clusters that would vanish.
    """
    if old is None:
        return
    before = old.resources[CDS].keys()
    lost = (before - new.resources[CDS].keys()) & new.declared
    if len(lost) * 2 > len(before):
        raise SnapshotError([f"{new.node}: would drop {', '.join(sorted(lost))}, which the values still declare"])


def as_json(snapshot: Snapshot, types: Iterable[str] = ORDER) -> dict[str, list[dict[str, Any]]]:
    """The resources in Envoy's own JSON form, by short type name."""
    found = {type_url: snapshot.resources[type_url] for type_url in types}
    return {SHORT[t]: [_plain(resources[name]) for name in sorted(resources)] for t, resources in found.items()}


def _plain(resource: any_pb2.Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(resource, preserving_proto_field_name=True)
    del found["@type"]
    return found


def _name(message: Any) -> str:
    return str(getattr(message, "cluster_name", "") or message.name)


def _duplicates(messages: Iterable[Any]) -> list[str]:
    names = [_name(m) for m in messages]
    return [f"{name} is there {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1]


def _dangling(cds: list[Any], eds: list[Any], lds: list[Any], rds: list[Any]) -> list[str]:
    known = {clusters.CONTROL, *(c.name for c in cds)}
    wanted = {c.name for c in cds if c.type == cluster_pb2.Cluster.DiscoveryType.EDS}
    assigned = {a.cluster_name for a in eds}
    configured = {r.name for r in rds}
    named = {http.rds.route_config_name for http in _connection_managers(lds) if http.HasField("rds")}
    return [
        *(f"no cluster {n!r}, which a route names" for n in sorted(_destinations(rds) - known)),
        *(f"no endpoints for the cluster {n!r}" for n in sorted(wanted - assigned)),
        *(f"endpoints for {n!r}, which is no EDS cluster" for n in sorted(assigned - wanted)),
        *(f"no routes {n!r}, which a listener names" for n in sorted(named - configured)),
        *(f"routes {n!r}, which no listener names" for n in sorted(configured - named)),
    ]


def _destinations(rds: list[Any]) -> set[str]:
    actions = [r.route for config in rds for host in config.virtual_hosts for r in host.routes if r.HasField("route")]
    single = {a.cluster for a in actions if a.cluster and not a.cluster_not_found_response_code}
    mirrors = {mirror.cluster for a in actions for mirror in a.request_mirror_policies}
    return single | mirrors | {c.name for a in actions for c in a.weighted_clusters.clusters}


def _connection_managers(lds: list[Any]) -> list[Any]:
    configs = [f.typed_config for listener in lds for chain in listener.filter_chains for f in chain.filters]
    configs += [listener.api_listener.api_listener for listener in lds]
    managers = []
    for config in configs:
        http = HttpConnectionManager()
        if config.Unpack(http):
            managers.append(http)
    return managers
