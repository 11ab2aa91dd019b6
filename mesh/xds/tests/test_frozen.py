"""A control plane that is stopped in its tracks, killed, and started with an empty memory, under load."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from nourish.mesh.v1 import control_pb2, control_pb2_grpc, registry_pb2_grpc

from mesh.xds.tests.lab import ROOT, Lab, Proxy, call, poll
from mesh.xds.tests.test_mesh import GET, start, values

STORES = ("store-0", "store-1", "store-canary-0")
ALL = (*STORES, "front-0")
# What would move if a proxy lost anything, were it for a moment.
MOVES = (
    "cluster_manager.cluster_(removed|modified)",
    "listener_manager.listener_(removed|modified)",
    ".*membership_change",
)


@asynccontextmanager
async def control_process(lab: Lab) -> AsyncIterator[asyncio.subprocess.Process]:
    """The lab's control plane in a process of its own; what the lab says to it goes there."""
    await lab.stop_control()
    command = ("-m", "mesh.xds.tests.control_process", str(lab.folder / "control.sock"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, str(lab.identity / "jwks.json"), cwd=ROOT, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with grpc.aio.insecure_channel(f"unix:{lab.folder}/control.sock") as channel:
            lab.control = control_pb2_grpc.ControlServiceStub(channel)
            lab.registry = registry_pb2_grpc.RegistryServiceStub(channel)
            await poll(lambda: lab.control.GetMesh(control_pb2.GetMeshRequest(), wait_for_ready=True), 60)
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def has(proxy: Proxy) -> dict[str, Any]:
    """The resources of a proxy, by their versions, and the hosts behind its clusters."""
    dump = await proxy.admin("/config_dump?include_eds")
    found: dict[str, Any] = {}
    for config in dump["configs"]:
        for key, entries in config.items():
            if key.startswith("dynamic_"):
                found[key] = sorted(str(e.get("version_info", e.get("name"))) for e in entries)
    clusters = (await proxy.admin("/clusters?format=json"))["cluster_statuses"]
    found["hosts"] = {c["name"]: sorted(h.get("hostname", "") for h in c.get("host_statuses", ())) for c in clusters}
    return found


async def moved(proxy: Proxy) -> str:
    return str(await proxy.admin(f"/stats?filter=^({MOVES})$"))


async def attempts(lab: Lab, name: str = "cluster.xds.upstream_cx_total") -> dict[str, int]:
    return {id: await lab.proxies[id].stat(name) for id in ALL}


async def test_frozen_killed_and_started_with_an_empty_memory(lab: Lab) -> None:
    """No call fails, no proxy loses anything for a moment, and each comes back by a few attempts of its own."""
    answers: Counter[bytes] = Counter()
    done = asyncio.Event()

    async def client(channel: grpc.aio.Channel) -> None:
        while not done.is_set():
            answers[await call(channel, GET)] += 1

    async def answered(more: int) -> None:
        before = answers.total()

        async def check() -> bool:
            return answers.total() >= before + more

        await poll(check, 60)

    async def failing(before: dict[str, int]) -> bool:
        now = await attempts(lab)
        return all(now[id] >= before[id] + 3 for id in ALL)

    async with lab_under_load(lab) as first, lab.proxies["front-0"].channel() as channel, asyncio.TaskGroup() as group:
        clients = [group.create_task(client(channel)) for _ in range(4)]
        try:
            await answered(100)
            before = {id: (await has(lab.proxies[id]), await moved(lab.proxies[id])) for id in ALL}
            tried = await attempts(lab)
            first.send_signal(signal.SIGSTOP)
            await answered(300)
            assert tried == await attempts(lab)  # nobody gave the silent one up
            first.kill()
            await poll(lambda: failing(tried))
            async with control_process(lab):
                await poll(lambda: lab.connected(*ALL))
                assert (await lab.apply(values(10))).applied
                await lab.report()
                assert not (await lab.report(*STORES, wait=True)).waiting
                await answered(100)
                after = {id: (await has(lab.proxies[id]), await moved(lab.proxies[id])) for id in ALL}
                assert after == before
                now = await attempts(lab)
                assert all(now[id] - tried[id] < 30 for id in ALL), (tried, now)  # without a back-off: thousands
        finally:
            done.set()
            await asyncio.wait(clients)
    assert set(answers) == {id.encode() for id in STORES}


@asynccontextmanager
async def lab_under_load(lab: Lab) -> AsyncIterator[asyncio.subprocess.Process]:
    async with control_process(lab) as process:
        await start(lab, *ALL)
        yield process
