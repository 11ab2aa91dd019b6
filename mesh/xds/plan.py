"""Topology + contract + endpoints -> what each proxy serves and whom it calls. The compiler reads nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from google.protobuf import descriptor_pb2, json_format

from mesh.contract import Contract, Method
from mesh.topology import EDGE, SUBSETS, DataPlane, Edge, Limits, Service, Subset, Telemetry, Topology
from mesh.traffic import Traffic


class PlanError(Exception):
    """A node cannot be planned: its bootstrap lacks a fact, or the topology does not know its service."""


@dataclass(frozen=True)
class Node:
    """A proxy, as its bootstrap names it. Sockets and the identity folder are paths on the proxy's own machine."""

    id: str
    service: str
    subset: str
    app_socket: str
    egress_socket: str
    identity_dir: str
    inbound_address: str
    inbound_port: int  # 0: the kernel chooses, and the proxy keeps it
    zone: str = ""
    admin_socket: str = ""
    telemetry_socket: str = ""
    metrics_port: int = 0  # 0: as with inbound_port
    data_plane: DataPlane = "sidecar"  # proxyless: a gRPC process by itself, of which the places above are not known

    @cached_property
    def anonymous(self) -> Node:
        """The same for all that differ in their id alone: no resource can come to depend on an id."""
        return replace(self, id=f"{self.service}.{self.subset}")

    @classmethod
    def without_proxy(cls, id: str, service: str, subset: str) -> Node:
        """A process that is its own proxy."""
        return cls(id, service, subset, "", "", "", "", 0, data_plane="proxyless")

    @classmethod
    def parse(cls, node: Any) -> Node:
        """Reads an `envoy.config.core.v3.Node`.

        Raises:
            PlanError: a key of the metadata is missing or is not of its type.
        """
        metadata = json_format.MessageToDict(node.metadata)
        try:
            if metadata.get("data_plane") == "proxyless":
                return cls.without_proxy(node.id, str(metadata["service"]), str(metadata["subset"]))
            return cls(
                id=node.id,
                service=str(metadata["service"]),
                subset=str(metadata["subset"]),
                app_socket=str(metadata["app_socket"]),
                egress_socket=str(metadata["egress_socket"]),
                identity_dir=str(metadata["identity_dir"]),
                inbound_address=str(metadata["inbound_address"]),
                inbound_port=int(metadata["inbound_port"]),
                zone=node.locality.zone,
                admin_socket=str(metadata.get("admin_socket", "")),  # these three a proxy of yesterday does not say
                telemetry_socket=str(metadata.get("telemetry_socket", "")),
                metrics_port=int(metadata.get("metrics_port", 0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"node {node.id or '(no id)'}: bad bootstrap metadata: {error!r}") from None


@dataclass(frozen=True)
class Host:
    """An instance that may be sent traffic: where its sidecar's inbound listener is bound."""

    service: str
    instance: str
    subset: str
    address: str
    port: int
    zone: str = ""
    health: str = "healthy"  # as its source sees it: healthy, draining or unhealthy


@dataclass(frozen=True)
class Target:
    """One subset of a callee, as one upstream cluster. `hosts` is by priority: its own, then those it fails over to."""

    service: str
    subset: Subset
    spiffe_id: str
    limits: Limits
    hosts: tuple[tuple[Host, ...], ...]
    traffic: Traffic

    @property
    def name(self) -> str:
        """The cluster name, "food.stable"."""
        return f"{self.service}.{self.subset}"


@dataclass(frozen=True)
class Callee:
    """A service that a node may call, by which methods, and where the calls go. `weight` is the canary's percent."""

    service: str
    methods: tuple[Method, ...]
    targets: tuple[Target, ...]
    weight: int
    sticky: str
    traffic: Traffic


@dataclass(frozen=True)
class Materials:
    """Files that the control plane delivers inside configuration: the JWKS, and Lua sources by file name."""

    jwks: str
    lua: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodePlan:
    """All that one proxy is told. Identities are SPIFFE ids."""

    node: Node
    methods: tuple[Method, ...]  # what the application behind it serves
    limits: Limits
    traffic: Traffic
    callers: tuple[str, ...]
    edge_id: str
    trust_prefix: str  # every identity of this mesh starts with it
    callees: tuple[Callee, ...]
    materials: Materials
    edge: Edge
    telemetry: Telemetry
    descriptors: descriptor_pb2.FileDescriptorSet

    @property
    def is_edge(self) -> bool:
        """Whether this proxy is the way in from the outside."""
        return self.node.service == EDGE

    @property
    def grpc_services(self) -> tuple[str, ...]:
        """Full names of the proto services behind this proxy."""
        return tuple(dict.fromkeys(m.service for m in self.methods))

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every upstream cluster of this proxy."""
        return tuple(target for callee in self.callees for target in callee.targets)


@dataclass(frozen=True)
class Plan:
    """The mesh at one moment: everything a compile depends on."""

    topology: Topology
    contract: Contract
    materials: Materials
    hosts: tuple[Host, ...] = ()

    def node(self, node: Node) -> NodePlan:
        """What this proxy is told.

        Raises:
            PlanError: the topology has no such service.
        """
        service = Service(EDGE) if node.service == EDGE else self.topology.services.get(node.service)
        if service is None:
            raise PlanError(f"node {node.id}: no service {node.service!r} in the values")
        # The edge watches every service, so that its health answer covers all; its routes offer exposed methods only.
        calls = tuple(self.topology.services) if node.service == EDGE else service.calls
        return NodePlan(
            node=node,
            methods=self.contract.methods.get(node.service, ()),
            limits=service.limits,
            traffic=service.traffic,
            callers=tuple(map(self.topology.spiffe_id, self.topology.callers.get(node.service, ()))),
            edge_id=self.topology.spiffe_id(EDGE),
            trust_prefix=self.topology.spiffe_id(""),
            callees=tuple(self._callees[name] for name in calls),
            materials=self.materials,
            edge=self.topology.edge,
            telemetry=self.topology.telemetry,
            descriptors=self.contract.descriptors,
        )

    @cached_property
    def _callees(self) -> dict[str, Callee]:
        return {service.name: self._callee(service) for service in self.topology.services.values()}

    def _callee(self, service: Service) -> Callee:
        present: tuple[Subset, ...] = SUBSETS if service.canary.replicas or service.canary.weight else ("stable",)
        return Callee(
            service=service.name,
            methods=self.contract.methods.get(service.name, ()),
            targets=tuple(self._target(service, subset) for subset in present),
            weight=service.canary.weight,
            sticky=service.canary.sticky,
            traffic=service.traffic,
        )

    def _target(self, service: Service, subset: Subset) -> Target:
        # A subset without live weight gets no other subset's calls: an unproven canary must not see them by a failover.
        spare = tuple(s for s in service.live_subsets if s != subset)
        return Target(
            service=service.name,
            subset=subset,
            spiffe_id=self.topology.spiffe_id(service.name),
            limits=service.limits,
            hosts=tuple(self._hosts(service.name, s) for s in (subset, *spare)),
            traffic=service.traffic,
        )

    def _hosts(self, service: str, subset: Subset) -> tuple[Host, ...]:
        return tuple(sorted((h for h in self.hosts if h.service == service and h.subset == subset), key=_by_instance))


def _by_instance(host: Host) -> tuple[str, str, int]:
    return host.instance, host.address, host.port
