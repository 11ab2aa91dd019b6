"""What goes with `dataPlane: proxyless`, and what does not: SUPPORT is the whole list.

Values that ask for what gRPC's own xDS cannot do are refused with their path; nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from mesh.contract import Contract
from mesh.topology import Limits, Service, Topology
from mesh.traffic import Faults, Outliers
from mesh.values.schema import Path

# same: as a sidecar does it. differs: it does something else, and says what. refused: values that ask for it are.
SUPPORT: dict[str, tuple[Literal["same", "differs", "refused"], str]] = {
    "mutual TLS": ("same", "the same identity, the callee's exact id, TLS 1.3 with whoever can"),
    "who may call what": ("same", "the control plane's rules, carried out by the runtime"),
    "users' tokens and scopes": ("same", "verified by the runtime with the control plane's keys"),
    "deadlines": ("same", "the contract's, or the caller's when that is nearer"),
    "canary weights and header": ("same", "by gRPC itself"),
    "failing over to the live subset": ("same", "by priorities"),
    "balancing ringHash": ("same", "on a ring of the same size"),
    "balancing roundRobin": ("same", "by gRPC itself"),
    "limits.maxRequests": ("same", "of each process and subset"),
    "faults at a callee with a sidecar": ("same", "they happen there"),
    "rates at a callee with a sidecar": ("same", "they are counted there"),
    "concurrency and sizes at a callee with a sidecar": ("same", "they are limited there"),
    "balancing leastRequest": ("differs", "gRPC has none: its calls go round"),
    "retries": ("differs", "gRPC repeats what certainly did not start, and nothing else"),
    "health": ("differs", "who reports an instance says if it is well, and a connection that breaks; nobody else asks"),
    "ejection": ("differs", "none: gRPC would count every status but OK as a failure, NOT_FOUND too"),
    "a call that `calls` does not name": ("differs", "UNAVAILABLE, where a sidecar says PERMISSION_DENIED"),
    "statistics and access log": ("differs", "the process has none; its callers' and callees' sidecars go on"),
    "balancing random": ("refused", "its caller {caller} is proxyless, and gRPC cannot; take roundRobin or ringHash"),
    "mirroring": ("refused", "its caller {caller} is proxyless, and gRPC sends no copies"),
    "canary.sticky": ("refused", "its caller {caller} is proxyless, and gRPC draws a subset for each call"),
    "traffic.zone": ("refused", "its caller {caller} is proxyless, and is told of no zones"),
    "outliers": ("refused", "its caller {caller} is proxyless, and ejects nobody"),
    "limits.maxConnections": ("refused", "its caller {caller} is proxyless, and gRPC limits calls alone"),
    "limits.maxPendingRequests": ("refused", "its caller {caller} is proxyless, and gRPC limits calls alone"),
    "faults": ("refused", "they happen at a sidecar, and this service is proxyless"),
    "rates": ("refused", "a sidecar counts them, and this service is proxyless"),
    "concurrency": ("refused", "a sidecar sheds calls, and this service is proxyless"),
    "connections and sizes": ("refused", "a sidecar limits them, and this service is proxyless"),
    "hedging": ("refused", "gRPC's xDS has no hedging, which the contract of {method} asks for"),
    "mesh record, mesh rollout": ("refused", "by the command: there is no sidecar to tap, or that counts"),
    "mesh call --as, mesh config --live": ("refused", "by the command: there is no sidecar to ask"),
}

_OF_A_SIDECAR = {
    "connection_seconds": "connectionSeconds",
    "streams_per_connection": "streamsPerConnection",
    "max_request_bytes": "maxRequestBytes",
    "max_response_bytes": "maxResponseBytes",
}


def refusals(service: Service, topology: Topology) -> Iterator[tuple[Path, str]]:
    """What the values ask of a service that it, or a caller of it, cannot do without a sidecar."""
    path: Path = ("services", service.name)
    if service.data_plane == "proxyless":
        if service.traffic.faults != Faults():
            yield (*path, "traffic", "faults"), _sentence("faults")
        if service.traffic.rates.limited:
            yield (*path, "traffic", "rates"), _sentence("rates")
        if service.traffic.concurrency.adaptive:
            yield (*path, "traffic", "concurrency"), _sentence("concurrency")
        for name, key in _OF_A_SIDECAR.items():
            if getattr(service.limits, name) != getattr(Limits(), name):
                yield (*path, "limits", key), _sentence("connections and sizes")
    callers = (topology.services[name] for name in topology.callers[service.name])
    if caller := next((c.name for c in callers if c.data_plane == "proxyless"), None):
        for feature, where in _asked(service):
            yield (*path, *where), _sentence(feature, caller=caller)


def hedged(topology: Topology, contract: Contract) -> list[str]:
    """A sentence for each proxyless service that calls a method which its contract wants hedged."""
    return [
        f"services.{service.name}.dataPlane: {_sentence('hedging', method=method.path[1:])}"
        for service in topology.services.values()
        if service.data_plane == "proxyless"
        for callee in service.calls
        for method in contract.methods.get(callee, ())
        if method.hedge_seconds
    ]


def _asked(service: Service) -> Iterator[tuple[str, Path]]:
    """The features that a caller without a sidecar lacks, as far as the values ask for them."""
    usual = Limits()
    if service.traffic.balancing == "random":
        yield "balancing random", ("traffic", "balancing")
    if service.canary.sticky != "none":
        yield "canary.sticky", ("canary", "sticky")
    if service.traffic.zone != "any":
        yield "traffic.zone", ("traffic", "zone")
    if service.traffic.mirror.percent:
        yield "mirroring", ("traffic", "mirror", "percent")
    if service.traffic.outliers != Outliers():
        yield "outliers", ("traffic", "outliers")
    if service.limits.max_connections != usual.max_connections:
        yield "limits.maxConnections", ("limits", "maxConnections")
    if service.limits.max_pending_requests != usual.max_pending_requests:
        yield "limits.maxPendingRequests", ("limits", "maxPendingRequests")


def _sentence(feature: str, **facts: str) -> str:
    return SUPPORT[feature][1].format(**facts)
