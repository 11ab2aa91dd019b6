"""An edge in front of a shelf whose canary nobody serves, as any service may be while it is rolled out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from mesh.contract import Contract
from mesh.identity import tokens
from mesh.topology import Canary, Service, Topology
from mesh.xds.edge.tests.running_edge import Edge, bootstrap, running
from mesh.xds.edge.tests.shelf import ROOT, Messages, Shelf, contract
from mesh.xds.pb import seconds
from mesh.xds.plan import Materials, Node, NodePlan, Plan

LUA = {path.name: path.read_text() for path in (ROOT / "envoy").glob("*.lua")}


@pytest.fixture(scope="session")
def shelf_contract() -> Contract:
    return contract()


@pytest.fixture(scope="session")
def messages(shelf_contract: Contract) -> Messages:
    return Messages(shelf_contract)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Short enough a path for Unix sockets."""
    found = Path(tempfile.mkdtemp(prefix="ne-", dir="/tmp"))
    yield found
    shutil.rmtree(found)


@pytest.fixture(scope="session")
def node(shelf_contract: Contract, folder: Path) -> NodePlan:
    topology = Topology(services={"shelf": Service("shelf", canary=Canary(replicas=1, weight=0))})
    plan = Plan(topology, shelf_contract, Materials(tokens.public_jwks(folder), LUA))
    return plan.node(Node("edge-0", "edge", "stable", str(folder / "app.sock"), "", "", "127.0.0.1", 0))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def edge(node: NodePlan, messages: Messages, folder: Path) -> AsyncIterator[Edge]:
    """The edge and the shelf; nobody serves the shelf's canary, nor the edge's own application."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Shelf(messages),))
    server.add_insecure_port(f"unix:{folder}/shelf.sock")
    await server.start()
    sockets = {"shelf.stable": folder / "shelf.sock", "shelf.canary": folder / "none.sock", "app": folder / "app.sock"}
    short = {"request_headers_timeout": seconds(0.5), "request_timeout": seconds(0.8)}
    async with running(bootstrap(node, folder / "admin.sock", sockets, **short), folder) as edge:
        yield edge
    await server.stop(0)


@pytest.fixture(scope="session")
def token(folder: Path) -> str:
    """Of a user with the scope that UpdateBook needs."""
    return tokens.mint(folder, "alice", ["book.read", "book.write"])


@pytest.fixture(scope="session")
def bad_tokens(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "none": "",
        "expired": tokens.mint(folder, "alice", lifetime=timedelta(hours=-1)),
        "of another key": tokens.mint(tmp_path_factory.mktemp("other"), "alice"),
        "rubbish": "x.y.z",
    }
