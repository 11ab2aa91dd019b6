"""Food with a canary and nutrition that calls it, of real Envoys, laid out as the runner does: for `mesh rollout`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from nourish.mesh.v1 import control_pb2

from mesh.contract import Contract
from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.local.events import InstanceState, ProcessState, State, now
from mesh.local.paths import Paths
from mesh.rollout.files import Files
from mesh.topology import Topology
from mesh.xds.tests.lab import Lab, call

GET = "/nourish.food.v1.FoodService/GetFood"
VALUES = "services:\n  food: { canary: { replicas: 1, weight: 0 } }\n  nutrition: { calls: [food] }\n  profile: {}\n"
IDS = ("food-0", "food-canary-0", "nutrition-0")
HOLD = b"hold"
SECONDS = 0.02  # what a good answer takes


@dataclass
class App:
    """How an instance of food behaves."""

    fail_every: int = 0
    slow: int = 1
    count: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.count += 1
        if request == HOLD:
            await self.held.wait()
        await asyncio.sleep(SECONDS * self.slow)
        if self.fail_every and self.count % self.fail_every == 0:
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        return b""


@dataclass
class Walked:
    """The mesh, and its canary."""

    lab: Lab
    paths: Paths
    canary: App

    async def rollout(self, *flags: str, killed_at: int = 0) -> tuple[int | None, str]:
        """Runs `mesh rollout food` to its end, or kills it at an act; its exit code and what it said."""
        module = ("mesh.rollout.tests.killed", str(killed_at)) if killed_at else ("mesh.cli",)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module, "rollout", "food", "--no-contract-check", *flags),
            env={**os.environ, "MESH_HOME": str(self.paths.home)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out = (await process.communicate())[0].decode()
        if killed_at:
            assert process.returncode == -signal.SIGKILL, out
        return process.returncode, out

    async def weight(self) -> int:
        mesh = await self.lab.control.GetMesh(control_pb2.GetMeshRequest())
        return int(mesh.canary_weights["food"])

    def left(self) -> tuple[str, int]:
        """The phase and weight that the last process wrote."""
        walk = Files(self.paths.rollouts, "food").read()
        assert walk
        return walk.phase, walk.weight

    async def anew(self) -> None:
        """A good canary at 0 %."""
        self.canary.fail_every, self.canary.slow = 0, 1
        self.canary.held.set()
        assert (await self.lab.apply(VALUES)).applied
        self.paths.values.write_text(VALUES)

    async def call(self, request: bytes = b"", **options: object) -> None:
        """One call from nutrition, however it ends."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call(self.channel, GET, request, **options)

    def __post_init__(self) -> None:
        self.channel = self.lab.proxies["nutrition-0"].channel()


@asynccontextmanager
async def walked(home: Path) -> AsyncIterator[Walked]:
    """Starts all; ends it afterwards."""
    paths, canary = Paths.at(home), App()
    paths.run.mkdir(mode=0o700)
    identity = home / "identity"
    authority = CertificateAuthority(identity)
    for service in ("food", "nutrition"):
        authority.issue(service, Topology({}).spiffe_id(service))
    (identity / "jwks.json").write_text(tokens.public_jwks(identity))
    try:
        async with AsyncExitStack() as stack:
            lab = await Lab.start(paths.run, identity, Contract.read(), stack)
            await lab.app("food-0", App().answer)
            await lab.app("food-canary-0", canary.answer)
            await lab.app("nutrition-0")
            await lab.report()
            assert (await lab.apply(VALUES)).applied
            for id in IDS:
                await lab.proxy(id, subset=_subset(id))
            for id in IDS:
                await lab.proxies[id].port()
            await lab.report(*IDS[:2], wait=True)
            await lab.healthy("nutrition-0", *IDS[:2])
            up = ProcessState(os.getpid(), True, 0)
            running = tuple(InstanceState(id, id.partition("-")[0], _subset(id), True, 1, "", up, up) for id in IDS)
            State(os.getpid(), now(), "ready", "", "", str(paths.run), None, up, running).write(paths.state)
            made = Walked(lab, paths, canary)
            await made.anew()
            yield made
            await made.channel.close()
    finally:
        paths.remove_run()


def _subset(id: str) -> str:
    return "canary" if "canary" in id else "stable"
