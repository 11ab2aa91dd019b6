"""Processes die; callers do not notice."""

import asyncio
import os
import signal

import httpx
import pytest

from tests.e2e.harness import under_load, wait_until


@pytest.fixture(autouse=True)
def healthy_again(mesh):
    """Every story leaves all instances serving."""
    yield
    health = f"{mesh.url}/health"
    wait_until(lambda: httpx.get(health).json()["state"] == "HEALTH_STATE_SERVING", 40, "every service to serve again")


@pytest.fixture
def both_subsets_live(mesh):
    """Both instances of `food` take calls, so that each can stand in for the other."""
    mesh.apply({"services": {"food": {"canary": {"replicas": 1, "weight": 50}}}})
    yield
    mesh.run("apply")


def pid_of(mesh, instance: str) -> int:
    return mesh.instance(instance)["app"]["pid"]


@pytest.mark.parametrize("instance", ["food-0", "food-canary-0"])
async def test_killing_an_instance_under_load_fails_no_idempotent_call(mesh, both_subsets_live, instance):
    async def read(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1})

    killed = pid_of(mesh, instance)

    async def kill() -> None:
        await asyncio.to_thread(os.kill, killed, signal.SIGKILL)
        back = lambda: pid_of(mesh, instance) != killed and mesh.instance(instance)["ready"]  # noqa: E731
        await asyncio.to_thread(wait_until, back, 30, "the instance to serve again")

    load = await under_load(read, kill)
    assert load.failures == []
    assert len(load.statuses) > 100


async def test_killing_the_control_plane_is_not_noticed_by_traffic(mesh):
    async def read(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1})

    killed = mesh.state()["control"]["pid"]

    async def kill() -> None:
        await asyncio.to_thread(os.kill, killed, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: mesh.state()["control"]["pid"] != killed, 20, "a new control plane")
        known = len(mesh.state()["instances"])
        synced = lambda: sum(p["synced"] for p in mesh.json("status")["proxies"]) == known  # noqa: E731
        await asyncio.to_thread(wait_until, synced, 30, "every proxy to be in step with the new control plane")

    load = await under_load(read, kill)
    assert load.failures == []


def test_an_edit_right_after_the_control_plane_died_is_kept(mesh):
    killed = mesh.state()["control"]["pid"]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: mesh.state()["control"]["pid"] != killed and mesh.state()["control"]["up"], 20, "a new one")
    done = mesh.apply({"services": {"food": {"canary": {"replicas": 1, "weight": 33}}}})
    assert "33" in done.stdout
    mesh.run("apply")


def test_a_service_that_is_down_altogether_is_unavailable_in_the_one_error_shape(mesh):
    """SIGSTOP: sockets stay open and nothing answers, the worst way of being down."""
    stopped = pid_of(mesh, "profile-0")
    os.kill(stopped, signal.SIGSTOP)
    try:
        headers = mesh.token("alice", "profile.read")
        answer = httpx.get(f"{mesh.url}/api/v1/profiles", headers=headers, timeout=20)
        assert answer.status_code in (503, 504)
        assert answer.json()["details"][0]["reason"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        assert httpx.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1}).status_code == 200
    finally:
        os.kill(stopped, signal.SIGCONT)
