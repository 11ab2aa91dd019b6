"""Certificates and their root are replaced while the mesh serves, and nobody notices."""

import asyncio

import httpx

from mesh.identity.ca import read
from tests.e2e.harness import under_load


def roots(mesh) -> list[str]:
    """The roots in force, as `mesh status` shows them."""
    return [root["name"] for root in mesh.json("status")["roots"]]


async def test_a_root_is_replaced_under_load_and_no_request_fails(mesh):
    """Half of the requests keep their connection to the edge, half make a new one."""
    old, asked = roots(mesh), iter(range(1_000_000))
    stale = read(mesh.home / "identity/food")

    async def request(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"connection": "close"} if next(asked) % 2 else {}
        return await client.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 1}, headers=headers)

    async def rotate() -> None:
        await asyncio.to_thread(mesh.run, "certificates", "rotate", "--root")
        await asyncio.to_thread(mesh.run, "certificates", "rotate", "food", "edge")

    load = await under_load(request, rotate)
    assert load.failures == []
    assert len(load.statuses) > 20
    shown = mesh.json("certificates")
    assert [root["name"] for root in shown["roots"]] == [shown["issuer"]] == roots(mesh) != old
    assert {c["issuer"] for c in shown["certificates"].values()} == {shown["issuer"]}
    assert shown["certificates"]["food"]["serial"] != stale.serial


def test_the_proxies_serve_the_certificates_that_are_shown(mesh):
    """By the admin interface of food's own Envoy, not by the files."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=mesh.socket("food-0", "admin"))) as client:
        shown = client.get("http://admin/certs").json()["certificates"]
    served = {c["serial_number"] for entry in shown for c in entry.get("cert_chain", [])}
    assert served == {mesh.json("certificates")["certificates"]["food"]["serial"]}
