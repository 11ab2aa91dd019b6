"""The `mesh rollout` command over real Envoys: a bad canary is taken back, a good one goes to 100 %."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from mesh.contract import Contract
from mesh.local.events import InstanceState, ProcessState, State, now
from mesh.local.paths import Paths
from mesh.rollout.files import Files
from mesh.xds.tests.lab import Lab, call, poll

GET = "/nourish.store.v1.StoreService/GetItem"
VALUES = "services:\n  store:\n    canary: { replicas: 1, weight: 0 }\n  front:\n    calls: [store]\n"
IDS = ("store-0", "store-canary-0", "front-0")


@dataclass
class Canary:
    """How the canary behaves."""

    fail_every: int = 0
    slow: int = 1
    count: int = field(default=0)

    async def answer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.count += 1
        await asyncio.sleep(0.02 * self.slow)
        if self.fail_every and self.count % self.fail_every == 0:
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        return b"store-canary-0"


@dataclass
class Walked:
    lab: Lab
    paths: Paths
    canary: Canary

    async def start(self, *more: str) -> asyncio.subprocess.Process:
        flags = ("--to", "canary", "--steps", "30,100", "--interval", "3s", "--guard", "error_rate<1%")
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mesh.cli", "rollout", "store", "--no-contract-check", *(more or flags)),
            *(() if more else ("--guard", "p99<1.6x")),
            env={**os.environ, "MESH_HOME": str(self.paths.home)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def weight(self) -> int:
        from nourish.mesh.v1 import control_pb2

        mesh = await self.lab.control.GetMesh(control_pb2.GetMeshRequest())
        return int(mesh.canary_weights["store"])


@pytest.fixture
async def walked(tmp_path: Path, identity: Path, contract: Contract) -> AsyncIterator[Walked]:
    """A mesh with a canary at 0 %, laid out as the runner does, under steady load."""
    paths, canary = Paths.at(tmp_path), Canary()
    paths.run.mkdir(mode=0o700)
    try:
        async with AsyncExitStack() as stack:
            lab = await Lab.start(paths.run, identity, contract, stack)
            await lab.app("store-0", Canary().answer)
            await lab.app("store-canary-0", canary.answer)
            await lab.app("front-0")
            await lab.report()
            assert (await lab.apply(VALUES)).applied
            paths.values.write_text(VALUES)
            for id in IDS:
                await lab.proxy(id, subset="canary" if "canary" in id else "stable")
            for id in IDS:
                await lab.proxies[id].port()
            await lab.report(*IDS[:2], wait=True)
            await lab.healthy("front-0", *IDS[:2])
            up = ProcessState(os.getpid(), True, 0)
            running = tuple(
                InstanceState(i, i.partition("-")[0], "canary" if "canary" in i else "stable", True, 1, "", up, up)
                for i in IDS
            )
            State(os.getpid(), now(), "ready", "", "", str(paths.run), None, up, running).write(paths.state)
            loads = [asyncio.create_task(_load(lab)) for _ in range(4)]
            yield Walked(lab, paths, canary)
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
    finally:
        paths.remove_run()


async def _load(lab: Lab) -> None:
    async with lab.proxies["front-0"].channel() as channel:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call(channel, GET)


@pytest.mark.parametrize(("fail_every", "slow", "guard"), [(5, 1, "error_rate"), (0, 3, "p99")])
async def test_a_bad_canary_is_taken_back(walked: Walked, fail_every: int, slow: int, guard: str) -> None:
    walked.canary.fail_every, walked.canary.slow = fail_every, slow
    process = await walked.start()
    out = (await process.communicate())[0].decode()
    assert process.returncode == 1, out
    assert f"back at 0 %: {guard}" in out
    assert await walked.weight() == 0


async def test_a_good_canary_goes_on_after_a_kill_and_reaches_100(walked: Walked) -> None:
    """Killed while it watches the first step; what it left says where it was."""
    process = await walked.start()
    await poll(lambda: _is(walked, 30))
    process.kill()
    await process.wait()
    left = Files(walked.paths.rollouts, "store").read()
    assert left
    assert (left.phase, left.weight) == ("walking", 30)
    process = await walked.start("--resume")
    out = (await process.communicate())[0].decode()
    assert process.returncode == 0, out
    assert await walked.weight() == 100
    events = [json.loads(line)["event"] for line in Files(walked.paths.rollouts, "store").log.read_text().splitlines()]
    assert events[-1] == "promoted"


async def test_a_killed_rollout_is_undone(walked: Walked) -> None:
    process = await walked.start()
    await poll(lambda: _is(walked, 30))
    process.kill()
    await process.wait()
    process = await walked.start("--abort")
    out = (await process.communicate())[0].decode()
    assert process.returncode == 0, out
    assert await walked.weight() == 0


async def _is(walked: Walked, weight: int) -> bool:
    return await walked.weight() == weight
