"""What the edge is told, to the letter. A difference that is meant is written with `GOLDEN=write pytest mesh/xds`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from nourish.error.v1.reason_pb2 import Reason

from mesh.contract import Contract
from mesh.xds.edge import edge_listener, edge_routes, errors, json_schema, reach
from mesh.xds.edge.tests.running_edge import bootstrap, manager, validate
from mesh.xds.edge.tests.shelf import SERVICE
from mesh.xds.plan import NodePlan

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def plain(node: NodePlan) -> NodePlan:
    """The same node wherever and whenever the tests run."""
    return replace(node, materials=replace(node.materials, jwks='{"keys":[]}'))


def readable(value: Any) -> Any:
    """Without long texts: Lua is read in envoy/, and descriptors are made from the contract."""
    if isinstance(value, dict):
        return {k: "..." if isinstance(v, str) and len(v) > 500 else readable(v) for k, v in value.items()}
    return [readable(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["listener", "routes"])
def test_compiles_to_golden(plain: NodePlan, kind: str) -> None:
    """The compiler gives exactly what was last looked at and committed."""
    message = edge_listener(plain) if kind == "listener" else edge_routes(plain)
    found = readable(json_format.MessageToDict(message, preserving_proto_field_name=True))
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{kind}.json"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_envoy_accepts_it(node: NodePlan, folder: Path) -> None:
    sockets = {target.name: folder / "shelf.sock" for target in node.targets} | {"app": folder / "app.sock"}
    assert validate(bootstrap(node, folder / "admin-validate.sock", sockets), folder) == ""


def test_a_mesh_without_any_reachable_method_still_has_an_edge(node: NodePlan, folder: Path) -> None:
    """As while the first service is being written."""
    empty = replace(node, methods=(), callees=())
    assert validate(bootstrap(empty, folder / "admin-validate.sock", {}), folder) == ""


def test_only_exposed_methods_have_a_route(node: NodePlan) -> None:
    known = edge_routes(node).virtual_hosts[0]
    paths = {route.match.path for route in known.routes if route.match.path}
    assert f"/{SERVICE}/GetBook" in paths
    assert f"/{SERVICE}/Sweep" not in paths
    assert paths == {method.path for method in reach.methods(node)}


def test_every_route_says_what_token_it_wants(node: NodePlan) -> None:
    """The rule behind them would want one anyway; but a public method must not be closed by accident."""
    for host in edge_routes(node).virtual_hosts:
        for route in host.routes:
            assert "envoy.filters.http.jwt_authn" in route.typed_per_filter_config, route.name


def test_descriptors_are_what_the_reachable_services_need(node: NodePlan) -> None:
    found = {file.name for file in reach.descriptors(node).file}
    assert {"shelf.proto", "nourish/mesh/v1/edge.proto", reach.ERROR_DETAILS} <= found
    alone = {file.name for file in reach.descriptors(replace(node, callees=())).file}
    assert "shelf.proto" not in alone


def test_every_status_that_envoy_may_answer_has_words_and_a_reason_of_the_contract() -> None:
    """And the code beside the reason is the one that the contract gives it."""
    for reason, text in [*errors.HTTP.values(), *errors.GRPC.values()]:
        assert Reason.Name(reason) != "REASON_UNSPECIFIED"
        assert text.endswith(".")
        assert '"' not in text
    assert set(errors.GRPC) == set(range(1, 17))


def test_tables_name_fields_by_both_spellings(shelf_contract: Contract) -> None:
    tables = json_schema.tables(shelf_contract.methods["shelf"], shelf_contract.descriptors)
    assert '["displayName"]={SINGLE,2},["display_name"]={SINGLE,2},' in tables
    assert '["niceName"]={SINGLE,21},["renamed"]={SINGLE,21},' in tables
    assert 'local VERBS = {["rename"]=true,["watch"]=true,}' in tables


def test_the_manager_makes_its_own_request_ids(node: NodePlan) -> None:
    """A range that no client has: with an empty list Envoy believes loopback and private addresses."""
    internal = manager(edge_listener(node)).internal_address_config
    assert [r.address_prefix for r in internal.cidr_ranges] == ["255.255.255.255"]


@pytest.mark.parametrize("hosts", [("api.example.org", "*.example.net"), ("*",)])
def test_hosts_are_those_of_the_values(node: NodePlan, folder: Path, hosts: tuple[str, ...]) -> None:
    """Others get 421, unless any will do; Envoy takes both."""
    named = replace(node, edge=replace(node.edge, hosts=hosts))
    known, *others = edge_routes(named).virtual_hosts
    assert tuple(known.domains) == hosts
    assert [host.routes[0].direct_response.status for host in others] == ([] if "*" in hosts else [421])
    assert validate(bootstrap(named, folder / "admin-validate.sock", {}), folder) == ""
