"""The model of `helm/values.yaml`: who exists, who calls whom, how many, where traffic goes. Frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Literal

from mesh.traffic import Traffic

Subset = Literal["stable", "canary"]
SUBSETS: tuple[Subset, ...] = ("stable", "canary")
DataPlane = Literal["sidecar", "proxyless"]
EDGE = "edge"
MESSAGE_BYTES = 4 << 20  # what gRPC takes of a message unless told, and all that our services are told
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "nourish.local")


@dataclass(frozen=True)
class Canary:
    """The canary subset of a service: `weight` is the percent of calls it takes, or of users."""

    replicas: int = 0
    weight: int = 0
    sticky: Literal["none", "user"] = "none"


@dataclass(frozen=True)
class ServiceDatabase:
    """A service's own database; `pool_size` is connections per instance."""

    pool_size: int = 5


@dataclass(frozen=True)
class EventsServer:
    """The NATS server: `address` is host:port, empty for the embedded one."""

    address: str = ""


@dataclass(frozen=True)
class Telemetry:
    """Where spans and counts go: `otlp` is host:port of a collector, empty for none; `sampled` the share of traces.

    `port` is where Prometheus reads in a cluster, 0 for nowhere; on a laptop any free one stands for it.
    """

    otlp: str = ""
    sampled: float = 1.0
    port: int = 0


@dataclass(frozen=True)
class Limits:
    """What each caller may have open towards a service, and what the service's own sidecars take of one connection."""

    max_connections: int = 100
    max_pending_requests: int = 200
    max_requests: int = 1000
    connection_seconds: int = 600
    streams_per_connection: int = 1000
    max_request_bytes: int = MESSAGE_BYTES
    max_response_bytes: int = MESSAGE_BYTES


@dataclass(frozen=True)
class Service:
    """One stanza of `services`. `settings` and `flags` are JSON texts by name: in Python 1 and true are equal."""

    name: str
    calls: tuple[str, ...] = ()
    lang: Literal["python"] = "python"
    replicas: int = 1
    canary: Canary = field(default_factory=Canary)
    database: ServiceDatabase | None = None
    limits: Limits = field(default_factory=Limits)
    traffic: Traffic = field(default_factory=Traffic)
    settings: dict[str, str] = field(default_factory=dict)
    data_plane: DataPlane = "sidecar"
    events: bool = False
    flags: dict[str, str] = field(default_factory=dict)

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
    """The edge: its default port, instances, largest request body (bytes), if clients may force faults, its names."""

    port: int = 8080
    replicas: int = 1
    max_request_bytes: int = 1_048_576
    accept_fault_header: bool = False
    hosts: tuple[str, ...] = LOCAL_HOSTS


@dataclass(frozen=True)
class DatabaseServer:
    """The PostgreSQL server: `address` is host:port, empty for the embedded one; `replicas` are read-only copies of it.

    Every instance has a pool of the same size on each, and reads from one that is at most `max_lag_seconds` behind.
    """

    address: str = ""
    max_connections: int = 100
    replicas: tuple[str, ...] = ()
    max_lag_seconds: int = 5


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
    events: EventsServer = field(default_factory=EventsServer)
    telemetry: Telemetry = field(default_factory=Telemetry)
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
        """Service names, callees before callers, otherwise in the order of the values.

        Raises:
            ValueError: the calls form a cycle.
        """
        if cycle := find_cycle({name: service.calls for name, service in self.services.items()}):
            raise ValueError(f"the calls form a cycle: {' -> '.join(cycle)}")
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in order:
                for callee in self.services[name].calls:
                    visit(callee)
                order[name] = None

        for name in self.services:
            visit(name)
        return tuple(order)

    def instances(self, service: str) -> tuple[Instance, ...]:
        """The instances of a service (or of the edge), stable ones first: `food-0`, `food-canary-0`.

        Raises:
            KeyError: no such service.
        """
        if service == EDGE:
            return tuple(Instance(f"{EDGE}-{n}", EDGE, "stable") for n in range(self.edge.replicas))
        stanza = self.services[service]
        stable = [Instance(f"{service}-{n}", service, "stable") for n in range(stanza.replicas)]
        canary = [Instance(f"{service}-canary-{n}", service, "canary") for n in range(stanza.canary.replicas)]
        return (*stable, *canary)

    @cached_property
    def pooled_connections(self) -> dict[str, int]:
        """For each service with a database, the connections that all its instances together may open.

        An instance with events has one more, on which it relays them.
        """
        return {
            name: (service.database.pool_size + service.events) * len(self.instances(name))
            for name, service in self.services.items()
            if service.database
        }

    def needed_by(self, names: tuple[str, ...]) -> Topology:
        """The part of the mesh that these services need: themselves and all they call, directly or not.

        Raises:
            ValueError: no such service; says which name was meant.
        """
        needed: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in self.services:
                raise ValueError(f"there is no service {name!r}{did_you_mean(name, self.services)}")
            if name not in needed:
                needed.add(name)
                waiting.extend(self.services[name].calls)
        return replace(self, services={name: s for name, s in self.services.items() if name in needed})


def find_cycle(calls: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """A cycle among the calls, as `("a", "b", "a")`, or `()`. Calls to what is not a key are passed over."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> tuple[str, ...]:
        if name in path:
            return (*path[path.index(name) :], name)
        if name in done or name not in calls:
            return ()
        path.append(name)
        found = next(filter(None, (visit(callee) for callee in calls[name])), ())
        path.pop()
        done.add(name)
        return found

    return next(filter(None, (visit(name) for name in calls)), ())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known word it resembles, or else all of them."""
    words = sorted(known)
    if close := get_close_matches(word, words, n=1, cutoff=0.6):
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(words)}" if words else ""
