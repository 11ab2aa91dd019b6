"""What the values and the contract together do to the calls of one method, for `mesh routes`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mesh.cli.output import span

if TYPE_CHECKING:
    from mesh.contract import Method
    from mesh.topology import Service
    from mesh.traffic import Faults


def as_json(service: Service, method: Method) -> dict[str, Any]:
    """All of it; null is what does not happen."""
    traffic, limits = service.traffic, service.limits
    rate = traffic.rates.limited.get(method.rate_class)
    faults = traffic.faults if traffic.faults.delay or traffic.faults.abort else None
    return {
        "hedgeSeconds": method.hedge_seconds or None,
        "balancing": {"kind": traffic.balancing, "by": _ring_key(service, method)},
        "zone": traffic.zone,
        "canary": {"weight": service.canary.weight, "sticky": service.canary.sticky},
        "mirrorPercent": _mirrored(service, method),
        "rate": {"class": method.rate_class, "perSecond": rate.per_second, "burst": rate.burst} if rate else None,
        "adaptiveConcurrency": traffic.concurrency.adaptive,
        "faults": asdict(faults) if faults else None,
        "maxRequestBytes": None if method.client_streaming else limits.max_request_bytes,
        "maxResponseBytes": None if method.server_streaming else limits.max_response_bytes,
    }


def in_words(service: Service, method: Method) -> str:
    """What is not the same for every method of every service, a few words each."""
    return ", ".join(_words(service, method))


def _words(service: Service, method: Method) -> Iterator[str]:
    traffic = service.traffic
    if method.hedge_seconds:
        yield f"hedged after {span(method.hedge_seconds)}"
    if key := _ring_key(service, method):
        yield f"ring by {key}"
    elif traffic.balancing not in ("leastRequest", "ringHash"):
        yield {"roundRobin": "round robin", "random": "at random"}[traffic.balancing]
    if traffic.zone == "own":
        yield "own zone first"
    if service.canary.weight:
        yield f"canary {service.canary.weight} %{' of users' if service.canary.sticky == 'user' else ''}"
    if percent := _mirrored(service, method):
        yield f"{percent} % mirrored"
    if rate := traffic.rates.limited.get(method.rate_class):
        yield f"{rate.per_second}/s ({method.rate_class})"
    if traffic.concurrency.adaptive:
        yield "sheds load"
    yield from _faults(traffic.faults)


def _faults(faults: Faults) -> Iterator[str]:
    where = "" if faults.subset == "all" else f" at {faults.subset}"
    when = " if x-fault says so" if faults.header else ""
    if faults.delay:
        yield f"FAULT {faults.delay.percent} % wait {span(faults.delay.milliseconds / 1000)}{where}{when}"
    if faults.abort:
        yield f"FAULT {faults.abort.percent} % {faults.abort.status}{where}{when}"


def _ring_key(service: Service, method: Method) -> str | None:
    return method.hash_key or None if service.traffic.balancing == "ringHash" else None


def _mirrored(service: Service, method: Method) -> int:
    streams = method.client_streaming or method.server_streaming
    possible = service.canary.replicas and method.idempotency == "no_side_effects" and not streams
    return service.traffic.mirror.percent if possible else 0
