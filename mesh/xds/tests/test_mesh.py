"""Real Envoys under the real control plane."""

from __future__ import annotations

from collections import Counter

from mesh.xds.tests.lab import Lab, call

GET, PUT, SWEEP = (f"/nourish.store.v1.StoreService/{m}" for m in ("GetItem", "PutItem", "Sweep"))
ASK = "/nourish.front.v1.FrontService/Ask"


def values(weight: int = 10, calls: str = "[store]", replicas: int = 1) -> str:
    return f"""
services:
  store:
    canary: {{ replicas: {replicas}, weight: {weight} }}
  front:
    calls: {calls}
"""


async def start(lab: Lab, *ids: str, weight: int = 10) -> None:
    """Brings up a proxy and an application for each instance, and reports the stores."""
    await lab.report()
    assert (await lab.apply(values(weight))).applied
    for id in ids:
        await lab.proxy(id, subset="canary" if "canary" in id else "stable")
    stores = [id for id in ids if id.startswith("store")]
    for id in ids:
        await lab.proxies[id].port()
    assert not (await lab.report(*stores, wait=True)).waiting


async def test_weights(lab: Lab) -> None:
    """Calls cross two sidecars; a new weight reaches the caller as routes alone, shares follow it, and no call is lost."""
    await start(lab, "store-0", "store-canary-0", "front-0")
    for id in ("store-0", "store-canary-0"):
        await lab.app(id)
    await lab.healthy("front-0", "store-0", "store-canary-0")
    async with lab.proxies["front-0"].channel() as channel:
        for weight in (10, 90, 0, 100):
            before = [
                await lab.proxies["front-0"].stat(f"cluster_manager.{s}")
                for s in ("cds.update_success", "cluster_modified")
            ]
            answer = await lab.apply(values(weight))
            assert answer.applied, answer.errors
            if weight != 10:
                assert answer.proxies
            names = Counter([(await call(channel, GET)).decode() for _ in range(300)])
            assert abs(names["store-canary-0"] / 300 - weight / 100) < 0.08, (weight, names)
            print(weight, names, answer, before)
