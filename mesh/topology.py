"""The model of `helm/values.yaml`: who exists, who calls whom, how many, and where traffic goes. Frozen and validated."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Subset = Literal["stable", "canary"]
SUBSETS: tuple[Subset, ...] = ("stable", "canary")
EDGE = "edge"


@dataclass(frozen=True)
class Canary:
    """The canary subset of a service: `weight` is the percent of calls it takes."""

    replicas: int = 0
    weight: int = 0


@dataclass(frozen=True)
class ServiceDatabase:
    """A service's own database; `pool_size` is connections per instance."""

    pool_size: int = 5


@dataclass(frozen=True)
class Limits:
    """Circuit breakers of each cluster that leads to a service."""

    max_connections: int = 100
    max_pending_requests: int = 200
    max_requests: int = 1000


@dataclass(frozen=True)
class Service:
    """One stanza of `services`."""

    name: str
    calls: tuple[str, ...] = ()
    lang: Literal["python", "go", "typescript"] = "python"
    replicas: int = 1
    canary: Canary = field(default_factory=Canary)
    database: ServiceDatabase | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def live_subsets(self) -> tuple[Subset, ...]:
        """The subsets that carry traffic now: a canary of weight 0 does not, nor stable at 100."""
        weights = {"stable": 100 - self.canary.weight, "canary": self.canary.weight}
        return tuple(s for s in SUBSETS if weights[s] > 0)


@dataclass(frozen=True)
class Instance:
    """One instance of a service; `id` is also its sidecar's node id."""

    id: str
    service: str
    subset: Subset


@dataclass(frozen=True)
class Edge:
    """The edge: its default port, instances, and the largest request body it takes (bytes)."""

    port: int = 8080
    replicas: int = 1
    max_request_bytes: int = 1_048_576


@dataclass(frozen=True)
class DatabaseServer:
    """The PostgreSQL server: `address` is host:port, empty for the embedded one."""

    address: str = ""
    max_connections: int = 100


@dataclass(frozen=True)
class Image:
    """The container image that holds every service."""

    repository: str = "nourish"
    tag: str = "latest"


@dataclass(frozen=True)
class Topology:
    """All of the values, with the views that are derived from them."""

    services: dict[str, Service]
    namespace: str = "nourish"
    trust_domain: str = "nourish.local"
    edge: Edge = field(default_factory=Edge)
    database: DatabaseServer = field(default_factory=DatabaseServer)
    image: Image = field(default_factory=Image)

    def spiffe_id(self, service: str) -> str:
        """The SPIFFE id of a service (or of the edge): `spiffe://<trust domain>/ns/<namespace>/sa/<service>`."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{service}"

    @cached_property
    def callers(self) -> dict[str, tuple[str, ...]]:
        """For each service, the services that declare calls to it: the inverse of `calls` (without the edge)."""
        return {name: tuple(s.name for s in self.services.values() if name in s.calls) for name in self.services}

    @cached_property
    def start_order(self) -> tuple[str, ...]:
        """Service names, callees before callers."""
        raise NotImplementedError

    def instances(self, service: str) -> tuple[Instance, ...]:
        """The instances of a service, stable ones first: `food-0`, `food-canary-0`."""
        raise NotImplementedError

    def needed_by(self, names: tuple[str, ...]) -> Topology:
        """The part of the mesh that these services need: themselves and all they call, directly or not."""
        raise NotImplementedError
