"""What each proxy is told, to the letter. A difference that is meant is written with `GOLDEN=write pytest mesh/xds`."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.xds.plan import Node, Plan
from mesh.xds.snapshot import as_json, compile_node
from mesh.xds.tests.lab import ENVOY

GOLDEN = Path(__file__).parent / "golden"
NODES = ("store-0", "front-0")
PROXYLESS = "front-proxyless"


@pytest.mark.parametrize("id", [*NODES, PROXYLESS])
def test_compiles_to_golden(id: str, plan: Plan, node: Callable[[str], Node]) -> None:
    """The compiler gives exactly what was last looked at and committed."""
    of = Node.without_proxy(id, "front", "stable") if id == PROXYLESS else node(id)
    text = json.dumps(as_json(compile_node(plan.node(of))), indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{id}.json"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_order_of_values_does_not_matter(plan: Plan, node: Callable[[str], Node]) -> None:
    """Compiling twice gives the same versions, whatever the order in which endpoints were reported."""
    other = Plan(plan.topology, plan.contract, plan.materials, plan.hosts[::-1])
    assert compile_node(plan.node(node("front-0"))).versions == compile_node(other.node(node("front-0"))).versions


@pytest.mark.parametrize("id", NODES)
def test_envoy_accepts_golden(id: str, short_dir: Path, identity: Path) -> None:
    """`envoy --mode validate` takes each golden file."""
    text = (GOLDEN / f"{id}.json").read_text().replace("/run/nourish/identity", str(identity / id.partition("-")[0]))
    jwks = json.dumps((identity / "jwks.json").read_text())
    config = short_dir / "envoy.json"
    config.write_text(json.dumps(_as_bootstrap(json.loads(text.replace(json.dumps('{"keys":[]}'), jwks)))))
    done = subprocess.run([ENVOY, "--mode", "validate", "-c", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _as_bootstrap(resources: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The resources as static ones, routes in their listeners: Envoy cannot validate what it would have to fetch."""
    routes = {route["name"]: route for route in resources["rds"]}
    listeners = copy.deepcopy(resources["lds"])
    for listener in listeners:
        for chain in listener["filter_chains"]:
            http = chain["filters"][0]["typed_config"]
            http["route_config"] = routes[http.pop("rds")["route_config_name"]]
    ads = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "app"}}],
    }
    return {
        "node": {"id": "golden", "cluster": "golden"},
        "admin": {"address": {"pipe": {"path": "@golden"}}},
        "dynamic_resources": {"ads_config": ads},
        "static_resources": {"listeners": listeners, "clusters": resources["cds"]},
    }
