"""A node is served only to whoever holds its service's certificate."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mesh.topology import Topology
from mesh.xds.plan import Node
from mesh.xds.server.peer import HEADER, refusal

FRONT, STORE = (f"URI=spiffe://nourish.local/ns/nourish/sa/{name}" for name in ("front", "store"))


@pytest.mark.parametrize("values", [True, False])
def test_own_identity_or_private_socket(node: Callable[[str], Node], topology: Topology, values: bool) -> None:
    """The service's own certificate passes, before the first values too, and so does the private socket."""
    known = topology if values else None
    assert refusal(node("front-0"), [(HEADER, f"By=x;Hash=y;{FRONT}")], known) == ""
    assert refusal(node("front-0"), [("user-agent", "envoy")], known) == ""


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (STORE, "that of spiffe://nourish.local/ns/nourish/sa/store"),
        (f"{FRONT},{STORE}", "2 identities"),
        ("", "0 identities"),
        ("Hash=y", "0 identities"),
        (FRONT.replace("/ns/nourish/", "/ns/other/"), "ns/other"),
        ("URI=front", "is not spiffe://"),
    ],
)
def test_others_are_refused(node: Callable[[str], Node], topology: Topology, header: str, says: str) -> None:
    """Another service's certificate, several, none, another namespace's: refused, and the refusal names it."""
    text = refusal(node("front-0"), [(HEADER, header)], topology)
    assert text.startswith("node front-0 claims to be 'front'")
    assert says in text
