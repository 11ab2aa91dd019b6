"""Traffic is shifted by editing values: no restart, no lost request, and the command says when every proxy has it."""

import asyncio
import re

import grpc
import httpx
import pytest
from nourish.food.v1.food_pb2 import GetFoodRequest
from nourish.food.v1.food_pb2_grpc import FoodServiceStub

from tests.e2e.harness import under_load

CALLS = 5000


def canary(weight: int, replicas: int = 1) -> dict:
    return {"services": {"food": {"canary": {"replicas": replicas, "weight": weight}}}}


@pytest.fixture(autouse=True)
def values_as_shipped(mesh):
    """Puts the shipped values back."""
    yield
    mesh.run("apply")


@pytest.fixture
def another_weight_first(mesh):
    """So that each edit below is one."""
    mesh.apply(canary(37))


def taken(mesh) -> dict[str, int]:
    """How many calls each subset of `food` has had from the edge, by the edge's own counters."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=mesh.socket("edge-0", "admin"))) as client:
        text = client.get(
            "http://admin/stats", params={"filter": r"^cluster\.food\.(stable|canary)\.upstream_rq_total$"}
        ).text
    return {subset: int(count) for subset, count in re.findall(r"food\.(\w+)\.upstream_rq_total: (\d+)", text)}


def some_food(mesh) -> str:
    """The name of a food."""
    return httpx.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1}).json()["foods"][0]["name"]


async def shares(mesh, calls: int, headers: dict[str, str] | None = None) -> dict[str, float]:
    """Percent of `calls` reads that each subset took."""
    before = taken(mesh)
    name = await asyncio.to_thread(some_food, mesh)
    started = taken(mesh)
    left = iter(range(calls))

    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.port}") as channel:  # a fifth of what REST costs the caller
        foods, request = FoodServiceStub(channel), GetFoodRequest(name=name)

        async def reader() -> None:
            for _ in left:
                await foods.GetFood(request, timeout=20, metadata=tuple((headers or {}).items()))

        await asyncio.gather(*(reader() for _ in range(16)))
    assert sum(started.values()) == sum(before.values()) + 1  # nobody else reads foods through the edge meanwhile
    after = taken(mesh)
    return {subset: 100 * (after[subset] - started[subset]) / calls for subset in after}


@pytest.mark.parametrize("weight", [90, 10, 100])
async def test_a_weight_is_the_share_of_calls_within_3_points(mesh, another_weight_first, weight):
    done = mesh.apply(canary(weight))
    assert re.search(r"\d+(\.\d+)? ?m?s", done.stdout), f"time to converge is printed: {done.stdout}"
    assert (await shares(mesh, CALLS))["canary"] == pytest.approx(weight, abs=3 if weight < 100 else 0)


async def test_shifting_back_and_forth_under_load_loses_no_request(mesh):
    async def read(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1})

    async def shift() -> None:
        for weight in (10, 90, 100, 0, 50):
            await asyncio.to_thread(mesh.apply, canary(weight))

    load = await under_load(read, shift)
    assert load.failures == []
    assert len(load.statuses) > 50


@pytest.mark.parametrize(("choice", "share"), [("always", 100), ("never", 0)])
async def test_a_header_forces_one_subset(mesh, choice, share):
    mesh.apply(canary(50))
    assert (await shares(mesh, 200, {"x-nourish-canary": choice}))["canary"] == share


def test_no_process_is_restarted_by_a_weight(mesh):
    def pids() -> dict[str, tuple[int, int]]:
        return {i["id"]: (i["app"]["pid"], i["proxy"]["pid"]) for i in mesh.state()["instances"]}

    before = pids()
    mesh.apply(canary(40))
    assert pids() == before


def test_a_bad_edit_is_refused_with_its_line_and_changes_nothing(mesh):
    before = mesh.json("status")["revision"]
    overlay = {"services": {"food": {"canary": {"replicas": 1, "weight": 300}}}}
    refused = mesh.apply(overlay, expect=5)
    assert re.search(r"overlay\.yaml:\d+: services\.food\.canary\.weight", refused.stderr)
    assert mesh.json("status")["revision"] == before


def test_a_dry_run_says_what_would_change_and_changes_nothing(mesh):
    before = mesh.json("status")["revision"]
    done = mesh.apply(canary(77), "--dry-run")
    assert "77" in done.stdout
    assert mesh.json("status")["revision"] == before
