"""Events in the whole mesh: the server comes back by itself, no call fails meanwhile, what was published stays."""

import asyncio
import os
import signal

import httpx

from tests.e2e.harness import under_load, wait_until


def back(mesh, killed):
    nats = mesh.state()["nats"]
    return nats and nats["up"] and nats["pid"] != killed


async def test_a_killed_events_server_costs_no_request_and_no_event(mesh):
    before = mesh.json("events")
    assert before["streams"]["food"]["events"] >= 1  # the import of the first start
    assert before["deadLetters"] == 0
    killed = mesh.state()["nats"]["pid"]

    async def read(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1})

    async def kill() -> None:
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: back(mesh, killed), what="NATS again")

    load = await under_load(read, kill, callers=2)
    assert load.failures == []
    assert mesh.json("events") == before
    assert "NATS pid" in mesh.run("status").stdout
