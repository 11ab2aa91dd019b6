"""A small mesh for the tests: `front` calls `store`, `store` has a canary. Its contracts are made here, not read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh.contract import Contract, Method, RestBinding
from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.topology import Canary, Service, Topology
from mesh.xds.tests import descriptors
from mesh.xds.tests.lab import Lab

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


@pytest.fixture(scope="session")
def contract() -> Contract:
    return Contract(
        methods={
            "store": (
                _method(
                    STORE,
                    "GetItem",
                    idempotency="no_side_effects",
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
def topology() -> Topology:
    return Topology(
        services={
            "store": Service("store", canary=Canary(replicas=1, weight=10)),
            "front": Service("front", calls=("store",)),
        }
    )


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates of front, store, edge and of an intruder whom nobody declares, and the token key."""
    folder = tmp_path_factory.mktemp("identity")
    authority = CertificateAuthority(folder)
    for service in ("front", "store", "edge", "intruder"):
        authority.issue(service, Topology({}).spiffe_id(service))
    (folder / "jwks.json").write_text(tokens.public_jwks(folder))
    return folder


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nx-", dir="/tmp"))
    yield folder
    if not os.environ.get("KEEP_LAB"):
        shutil.rmtree(folder)


@pytest.fixture
async def lab(short_dir: Path, identity: Path, contract: Contract) -> AsyncIterator[Lab]:
    """A running control plane, and the means to start Envoys and applications; all of it ends with the test."""
    async with AsyncExitStack() as stack:
        yield await Lab.start(short_dir, identity, contract, stack)
