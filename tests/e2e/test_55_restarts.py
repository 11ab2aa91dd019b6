"""A service is restarted while it serves, one instance after the other, and nobody notices."""

import asyncio

import httpx
import pytest

from tests.e2e.harness import under_load

FOODS = ["food-0", "food-canary-0"]
RESTARTS = 2


@pytest.fixture
def both_take_calls(mesh):
    """So that each instance of food stands in for the other."""
    mesh.apply({"services": {"food": {"canary": {"replicas": 1, "weight": 50}}}})
    yield
    mesh.run("apply")


def pids(mesh) -> dict[str, tuple[int, int]]:
    return {i["id"]: (i["app"]["pid"], i["proxy"]["pid"]) for i in mesh.state()["instances"]}


async def test_rolling_restarts_under_load_lose_no_request(mesh, both_take_calls):
    """Half of the requests keep their connection to the edge, half make a new one."""
    before, asked, done = pids(mesh), iter(range(1_000_000)), []

    async def read(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"connection": "close"} if next(asked) % 2 else {}
        return await client.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1}, headers=headers)

    async def restart() -> None:
        for _ in range(RESTARTS):
            done.append(await asyncio.to_thread(mesh.json, "restart", "food"))

    load = await under_load(read, restart)
    assert load.failures == []
    assert len(load.statuses) > 50
    assert [d["restarted"] for d in done] == [FOODS] * RESTARTS
    after = pids(mesh)
    assert not {pid for food in FOODS for pid in before[food]} & {pid for food in FOODS for pid in after[food]}
    assert {i: p for i, p in after.items() if i not in FOODS} == {i: p for i, p in before.items() if i not in FOODS}


def test_a_service_of_one_instance_is_refused_with_what_to_do_and_goes_on_as_it_is(mesh):
    before = pids(mesh)
    refused = mesh.run("restart", "profile", expect=5)
    assert "services.profile.replicas to 2" in refused.stderr
    assert pids(mesh) == before
