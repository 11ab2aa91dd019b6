"""What Kubernetes says of endpoints: EndpointSlices (discovery.k8s.io/v1) of the chart's Services -> hosts."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mesh.topology import SUBSETS
from mesh.xds.plan import Host

# A Service's labels stand on its slices too. The chart gives these to a Service of each subset of each service.
SERVICE, SUBSET = "app.kubernetes.io/name", "nourish.local/subset"
SELECTOR = f"app.kubernetes.io/part-of=nourish,{SUBSET}"
PORT = "grpc"  # its name in the chart
WORST_FIRST = ("unhealthy", "draining", "healthy")


def hosts(slices: Iterable[Mapping[str, Any]]) -> list[Host]:
    """The hosts of all slices, an instance once.

    While slices are balanced an endpoint may stand in two of them, of which one is behind: the worse health counts, so
    that no draining instance gets calls. A pod of two address families is in a slice of each: its IPv4 address is
    taken, which is what the chart's proxies listen on.
    """
    found: dict[tuple[str, str, str], Host] = {}
    for host in (host for each in slices for host in _hosts(each)):
        key = (host.service, host.subset, host.instance)
        found[key] = min(found.get(key, host), host, key=_preferred)
    return [found[key] for key in sorted(found)]


def _preferred(host: Host) -> tuple[bool, int, str]:
    return ":" in host.address, WORST_FIRST.index(host.health), host.address


def _hosts(each: Mapping[str, Any]) -> Iterator[Host]:
    labels = each["metadata"].get("labels") or {}
    service, subset = labels.get(SERVICE, ""), labels.get(SUBSET, "")
    port = next((p["port"] for p in each.get("ports") or () if p.get("name") == PORT and p.get("port")), 0)
    if not service or subset not in SUBSETS or not port:
        return
    for endpoint in each.get("endpoints") or ():
        address, health = endpoint["addresses"][0], _health(endpoint.get("conditions") or {})
        if health and _is_ip(address):  # a slice may hold names: nobody resolves them here
            instance = (endpoint.get("targetRef") or {}).get("name") or address
            yield Host(service, instance, subset, address, port, zone=endpoint.get("zone") or "", health=health)


def _health(conditions: Mapping[str, Any]) -> str:
    """Empty for one that ends and takes nothing any more. What is not said counts as ready, and as not ending."""
    ready = conditions.get("ready")
    serving = conditions.get("serving")
    if serving is None:
        serving = ready is not False
    if conditions.get("terminating"):
        return "draining" if serving else ""
    return "healthy" if ready is not False else "unhealthy"


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
