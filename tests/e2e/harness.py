"""Drives a whole mesh as its user does: by the `mesh` command, REST and the files it leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from mesh.local.guard import afterwards
from mesh.pytest.mesh import ROOT, Mesh

__all__ = ["ROOT", "Load", "Mesh", "running", "under_load", "wait_until"]
UP_SECONDS = 240  # the first start imports 390,000 foods on a machine that also runs the tests


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "the condition") -> Any:
    """Polls until `condition` is truthy and returns it; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)
    return result


@contextmanager
def running(mesh: Mesh, *services: str) -> Iterator[Mesh]:
    """Starts the mesh in the background; ends it and forgets its state afterwards, even if this process is killed."""
    with afterwards(mesh.command("down", "--wipe"), cwd=mesh.root, env=mesh.environment):
        mesh.run("up", "--detach", *services, timeout=UP_SECONDS)
        yield mesh


@dataclass
class Load:
    """Steady REST load and what came of it."""

    statuses: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def _client(callers: int) -> Iterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers)
    yield httpx.AsyncClient(limits=limits, timeout=20)


async def under_load(
    request: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]],
    during: Callable[[], Awaitable[object]],
    callers: int = 8,
) -> Load:
    """Runs `during` while `callers` repeat `request`; every answer that is not 2xx is a failure with its body."""
    load, stop = Load(), asyncio.Event()

    async def caller(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            try:
                answer = await request(client)
                load.statuses.append(answer.status_code)
                if not answer.is_success:
                    load.failures.append(f"{answer.status_code} {answer.text}")
            except httpx.HTTPError as error:
                load.statuses.append(0)
                load.failures.append(repr(error))

    with _client(callers) as client:
        async with client, asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller(client))
            try:
                await during()
            finally:
                stop.set()
    return load
