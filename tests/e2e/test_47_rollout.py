"""A good canary is walked from 0 to 100 % by `mesh rollout`, watched by Envoy's statistics, and loses no request."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.e2e.harness import under_load


@pytest.fixture(autouse=True)
def at_0_and_then_as_shipped(mesh):
    """Food's canary at 0 %; the shipped values afterwards."""
    mesh.run("apply", "--set", "services.food.canary.weight=0")
    yield
    mesh.run("rollout", "food", "--abort", expect=None)
    mesh.run("apply")


async def test_a_good_canary_goes_from_0_to_100_under_load_without_a_failed_request(mesh):
    """Its contract is asked for by reflection first: the option that turns that off is not given."""
    command = ("rollout", "food", "--to", "canary", "--steps", "20,100", "--interval", "3s", "--patience", "40s")

    async def read(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1})

    async def roll_out() -> None:
        guards = ("--guard", "error_rate<1%", "--guard", "p50<3x")
        lines = (await asyncio.to_thread(mesh.run, *command, *guards, "--json", timeout=100)).stdout.splitlines()
        events = [json.loads(line) for line in lines]
        assert [e["weight"] for e in events if e["event"] == "shift"] == [20, 100]
        assert events[-1]["event"] == "promoted"
        assert "canary 0.0% of" in events[-1]["why"]

    load = await under_load(read, roll_out)
    assert load.failures == []
    assert len(load.statuses) > 100
    assert "promoted, canary 100 %" in mesh.run("rollout", "food", "--status").stdout
