"""nutrition and profile take the mesh without a sidecar, food keeps its own: nobody notices but whoever looks."""

import asyncio

import httpx
import pytest

from tests.e2e.harness import under_load, wait_until

RECIPE = {"lines": ["2 cups chopped onions"], "servings": 2}
BARE = ("nutrition", "profile")
EDIT = {"nutrition": {"dataPlane": "proxyless"}, "profile": {"dataPlane": "proxyless", "replicas": 2}}


def planes(mesh) -> dict[str, set[str]]:
    """How the ready instances of each service take the mesh."""
    found: dict[str, set[str]] = {}
    for i in mesh.state()["instances"]:
        found.setdefault(i["service"], set()).add(i["data_plane"] if i["ready"] else "not ready")
    return found


def settled(mesh, plane: str, instances: int) -> bool:
    running = sum(i["service"] in BARE for i in mesh.state()["instances"]) == instances
    return running and all(planes(mesh)[service] == {plane} for service in BARE)


@pytest.fixture(scope="module")
def mesh(mesh):
    mesh.apply({"services": EDIT})
    wait_until(lambda: settled(mesh, "proxyless", 3), 120, "instances without a proxy")
    yield mesh
    mesh.run("apply")
    wait_until(lambda: settled(mesh, "sidecar", 2), 120, "instances with a proxy")


def test_the_edge_calls_it_and_it_calls_a_service_behind_a_sidecar(mesh):
    answer = httpx.post(f"{mesh.url}/api/v1/nutrition:analyze", json=RECIPE, timeout=20)
    assert answer.status_code == 200
    assert answer.json()["lines"][0]["food"].startswith("foods/usda-")


def test_it_verifies_the_users_token_itself(mesh):
    url = f"{mesh.url}/api/v1/profiles"
    assert httpx.get(url, headers=mesh.token("bare", "profile.read")).json() == {"profiles": [], "nextPageToken": ""}
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers=mesh.token("bare", "other")).status_code == 403


def test_status_says_what_it_is_and_that_it_has_its_configuration(mesh):
    shown = mesh.run("status").stdout
    assert shown.count("proxyless") == 3
    proxies = {p["node"]: p for p in mesh.json("status")["proxies"]}
    assert all(proxies[id]["synced"] for id in ("nutrition-0", "profile-0", "profile-1"))


@pytest.mark.parametrize(
    "command",
    [
        ("record", "nutrition", "--for", "1s"),
        ("rollout", "profile", "--to", "canary", "--no-contract-check"),
        ("call", "food", "ListFoods", "--as", "nutrition"),
    ],
)
def test_what_needs_a_sidecar_is_refused(mesh, command):
    assert "is proxyless" in mesh.run(*command, expect=2).stderr


async def test_restarts_and_rotations_lose_no_request(mesh):
    token = mesh.token("bare", "profile.read")

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"{mesh.url}/api/v1/profiles", headers=token)

    async def disturb() -> None:
        for command in (("restart", "profile"), ("certificates", "rotate")):
            await asyncio.to_thread(mesh.json, *command)

    load = await under_load(ask, disturb, callers=4)
    assert load.failures == []
    assert len(load.statuses) > 50
