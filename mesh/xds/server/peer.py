"""Who is at the other end of a stream, and whether it may be the node that it claims to be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mesh.identity.spiffe import SpiffeId
from mesh.topology import Topology
from mesh.xds.plan import Node

HEADER = "x-forwarded-client-cert"


def refusal(node: Node, metadata: Iterable[Any] | None, topology: Topology | None) -> str:
    """Why this peer must not be served as `node`; empty if it may.

    In a cluster the Envoy before the control plane sets the header, and removes what a client sent by that name. No
    header is the private socket: whoever can open it owns the mesh.
    """
    uris = identities(metadata)
    if uris is None:
        return ""
    claim = f"node {node.id} claims to be {node.service!r}"
    if len(uris) != 1:
        return f"{claim}, and its certificate names {len(uris)} identities: {', '.join(uris) or 'none'}"
    try:
        identity = SpiffeId.parse(uris[0])
    except ValueError as error:
        return f"{claim}: {error}"
    # Before the first values the trust domain and namespace are what the Envoy in front lets through.
    right = str(identity) == topology.spiffe_id(node.service) if topology else identity.service == node.service
    return "" if right else f"{claim}, and its certificate is that of {identity}"


def service(metadata: Iterable[Any] | None, topology: Topology) -> str | None:
    """The service that the peer's certificate names; None at the private socket, where nobody has one.

    Raises:
        ValueError: it names no identity of this mesh, or several.
    """
    uris = identities(metadata)
    if uris is None:
        return None
    prefix = topology.spiffe_id("")
    if len(uris) != 1 or not uris[0].startswith(prefix):
        raise ValueError("the certificate names no identity of this mesh")
    return uris[0].removeprefix(prefix)


def identities(metadata: Iterable[Any] | None) -> list[str] | None:
    """The URIs that the peer's certificate names; None at the private socket, where nobody sets the header."""
    headers = [str(value) for key, value in metadata or () if key == HEADER]
    parts = [part for text in headers for part in text.replace(",", ";").split(";")]
    return [part[4:].strip('"') for part in parts if part[:4] == "URI="] if headers else None
