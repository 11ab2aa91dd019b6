"""A small mesh for the tests: `front` calls `store`, `store` has a canary. Its contracts are made here, not read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh.contract import Contract, Method, RestBinding
from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.topology import Canary, Service, Topology
from mesh.xds.plan import Host, Materials, Node, Plan
from mesh.xds.tests import descriptors
from mesh.xds.tests.lab import LUA, Lab

STORE, FRONT = "nourish.store.v1.StoreService", "nourish.front.v1.FrontService"


def _method(service: str, name: str, **policy: object) -> Method:
    base = {"idempotency": "unknown", "deadline_seconds": 2.0, "access": "public", **policy}
    package = service.rpartition(".")[0]
    return Method(
        service=service,
        name=name,
        path=f"/{service}/{name}",
        input_type=f"{package}.{name}Request",
        output_type=f"{package}.{name}Response",
        **base,  # type: ignore[arg-type]
    )


def small_contract() -> Contract:
    return Contract(
        methods={
            "store": (
                _method(
                    STORE,
                    "GetItem",
                    idempotency="no_side_effects",
                    hash_key="name",
                    rest=(RestBinding("GET", "/api/v1/{name=items/*}"),),
                ),
                _method(
                    STORE,
                    "PutItem",
                    access="user",
                    scopes=("store.write",),
                    rest=(RestBinding("POST", "/api/v1/items", "item"),),
                ),
                _method(STORE, "Sweep", access="service", deadline_seconds=0.5),
            ),
            "front": (_method(FRONT, "Ask", idempotency="idempotent", rest=(RestBinding("GET", "/api/v1/answers"),)),),
            "edge": (),
        },
        descriptors=descriptors.build(),
    )


@pytest.fixture(scope="session")
def contract() -> Contract:
    return small_contract()


@pytest.fixture(scope="session")
def topology() -> Topology:
    return Topology(
        services={
            "store": Service("store", canary=Canary(replicas=1, weight=10)),
            "front": Service("front", calls=("store",)),
        }
    )


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of front, store, edge and of an intruder whom nobody declares, and the key of user tokens."""
    folder = tmp_path_factory.mktemp("identity")
    authority = CertificateAuthority(folder)
    for service in ("front", "store", "edge", "intruder"):
        authority.issue(service, Topology({}).spiffe_id(service))
    (folder / "jwks.json").write_text(tokens.public_jwks(folder))
    return folder


@pytest.fixture(scope="session")
def plan(topology: Topology, contract: Contract) -> Plan:
    """The small mesh with one instance of each subset, where the goldens were made."""
    hosts = (
        Host("store", "store-0", "stable", "10.0.0.1", 15006),
        Host("store", "store-canary-0", "canary", "10.0.0.2", 15006),
    )
    return Plan(topology, contract, Materials('{"keys":[]}', LUA), hosts)


@pytest.fixture(scope="session")
def node() -> Callable[[str], Node]:
    """Makes a proxy of the small mesh by its id."""

    def make(id: str) -> Node:
        run = "/run/nourish"
        service, subset = id.partition("-")[0], "canary" if "canary" in id else "stable"
        return Node(id, service, subset, f"{run}/app.sock", f"{run}/egress.sock", f"{run}/identity", "0.0.0.0", 15006)

    return make


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nx-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def lab(short_dir: Path, identity: Path, contract: Contract) -> AsyncIterator[Lab]:
    """A running control plane, and the means to start Envoys and applications; all of it ends with the test."""
    async with AsyncExitStack() as stack:
        yield await Lab.start(short_dir, identity, contract, stack)
