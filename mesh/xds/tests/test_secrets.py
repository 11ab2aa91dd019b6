"""The control plane sends no secret, and points each proxy at its own identity only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.identity import files, tokens
from mesh.xds.plan import Materials, Node, Plan
from mesh.xds.snapshot import as_json, compile_node
from mesh.xds.tests.lab import LUA

NODES = ("store-0", "store-canary-0", "front-0", "edge-0")


@pytest.fixture(params=NODES)
def sent(
    request: pytest.FixtureRequest, plan: Plan, node: Callable[[str], Node], identity: Path
) -> tuple[str, dict[str, Any]]:
    """The service of a proxy, and all that it is sent; the identity folders are real, and so are the keys in them."""
    service = request.param.partition("-")[0]
    mine = replace(node(request.param), identity_dir=str(identity / service))
    jwks = (identity / "jwks.json").read_text()
    real = Plan(plan.topology, plan.contract, Materials(jwks, LUA), plan.hosts)
    return service, as_json(compile_node(real.node(mine)))


def test_no_resource_names_the_identity_of_another_node(sent: tuple[str, dict[str, Any]], identity: Path) -> None:
    service, resources = sent
    named = {text for _, text in _strings(resources) if str(identity) in text}
    mine = identity / service
    assert named == {str(path) for path in (mine, mine / files.SDS_CERTIFICATE, mine / files.SDS_TRUST)}


def test_no_resource_holds_a_key(sent: tuple[str, dict[str, Any]], identity: Path) -> None:
    """Neither where Envoy would take one, nor the bytes of one that is there, nor the key of user tokens."""
    _, resources = sent
    places = {key for path, _ in _strings(resources) for key in path}
    assert not places & {"private_key", "private_key_provider", "tls_certificates", "tls_certificate", "pkcs12"}
    text = json.dumps(resources)
    keys = [path.read_bytes() for path in identity.glob(f"*/{files.KEY}")]
    assert len(keys) == 4
    for pem in keys:
        assert _middle(pem) not in text
    secret = tokens.signing_key(identity).as_dict(private=True)
    assert secret["d"] not in text
    assert "PRIVATE KEY" not in text


def _strings(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, path)
    elif isinstance(value, str):
        yield path, value


def _middle(pem: bytes) -> str:
    """A line of base64 that no other key has."""
    return pem.splitlines()[2].decode()
