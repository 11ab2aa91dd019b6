"""Random valid edits lose no request; random bad ones are refused, each with its place, and touch nothing.

A run of the suite makes a sample; EDITS=200 BAD_EDITS=50 makes as many as the design promises (some minutes).
"""

import os
import random
import re
import time
from contextlib import asynccontextmanager
from itertools import cycle

import grpc
import httpx
import pytest
import yaml
from nourish.mesh.v1 import control_pb2
from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub

from tests.e2e import edits
from tests.e2e.harness import under_load

VALID, BAD, CALLERS = int(os.environ.get("EDITS", "20")), int(os.environ.get("BAD_EDITS", "16")), 4
SEED = int(os.environ.get("EDITS_SEED", "45"))  # another one makes other edits


@pytest.fixture
def mesh(mesh):
    """With the shipped values put back."""
    yield mesh
    mesh.run("apply")


@asynccontextmanager
async def control_plane(mesh):
    async with grpc.aio.insecure_channel(f"unix:{mesh.state()['run']}/control.sock") as channel:
        yield ControlServiceStub(channel)


async def apply(control, overlay: str) -> control_pb2.ApplyValuesResponse:
    request = control_pb2.ApplyValuesRequest()
    request.files.add(path="values.yaml", content=edits.SHIPPED)
    request.files.add(path="overlay.yaml", content=overlay)
    return await control.ApplyValues(request, timeout=60)


async def proxies(control) -> tuple[str, dict[str, dict[str, str]]]:
    """The revision in force, and what each proxy has."""
    answer = await control.GetMesh(control_pb2.GetMeshRequest(), timeout=10)
    assert all(proxy.synced and not proxy.error for proxy in answer.proxies)
    return answer.revision, {proxy.node: dict(proxy.versions) for proxy in answer.proxies}


def load(mesh):
    """Calls over one hop and over two, in turn."""
    requests = cycle(
        [
            ("GET", f"{mesh.url}/api/v1/foods?pageSize=1", None),
            ("POST", f"{mesh.url}/api/v1/nutrition:analyze", {"lines": ["100 g granulated sugar"]}),
        ]
    )

    async def request(client: httpx.AsyncClient) -> httpx.Response:
        method, url, body = next(requests)
        return await client.request(method, url, json=body)

    return request


async def test_random_edits_under_load_are_applied_and_lose_no_request(mesh):
    rng = random.Random(SEED)

    async def edit() -> None:
        async with control_plane(mesh) as control:
            for number in range(VALID):
                overlay = yaml.safe_dump(edits.valid(rng))
                answer = await apply(control, overlay)
                assert answer.applied, f"edit {number} of seed {SEED}: {list(answer.errors)}\n{overlay}"

    started = time.monotonic()
    seen = await under_load(load(mesh), edit, CALLERS)
    print(f"{VALID} edits in {time.monotonic() - started:.1f} s, {len(seen.statuses)} requests")
    assert seen.failures == []
    assert len(seen.statuses) > VALID


async def test_random_bad_edits_under_load_are_refused_at_their_place_and_touch_nothing(mesh):
    rng = random.Random(SEED)

    async def edit() -> None:
        async with control_plane(mesh) as control:
            before = await proxies(control)
            for number in range(BAD):
                bad = edits.bad(rng, number)
                overlay = yaml.safe_dump(bad.overlay)
                answer = await apply(control, overlay)
                what = f"edit {number} of seed {SEED}: {list(answer.errors)}\n{overlay}"
                assert (answer.applied, answer.revision) == (False, before[0]), what
                assert {names(error, bad, overlay) for error in answer.errors} == {True}, f"{bad.says}: {what}"
            assert await proxies(control) == before

    started = time.monotonic()
    seen = await under_load(load(mesh), edit, CALLERS)
    print(f"{BAD} bad edits in {time.monotonic() - started:.1f} s, {len(seen.statuses)} requests")
    assert seen.failures == []
    assert len(seen.statuses) > BAD


def names(error: str, bad: edits.Bad, overlay: str) -> bool:
    """Whether it begins with the file, the line that was broken, and the path."""
    place = re.match(r"overlay\.yaml:(\d+): (.*)", error, re.DOTALL)
    return bool(place) and place[2].startswith(bad.says) and bad.word in overlay.splitlines()[int(place[1]) - 1]


def test_random_edits_reach_every_value_that_no_reason_keeps_out():
    """Those to come too: the generator walks the schema."""
    rng = random.Random(SEED)
    written = {path for _ in range(4000) for path in leaves(edits.valid(rng))}
    assert set(edits.EDITABLE) <= written
    assert set(edits.EDITABLE) == written & set(edits.LEAVES)


def leaves(overlay: dict, path: edits.Path = ()) -> list[edits.Path]:
    if not isinstance(overlay, dict):
        return [path]
    return [leaf for key, child in overlay.items() for leaf in leaves(child, (*path, key))]
