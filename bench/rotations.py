"""100 rotations of every leaf and one of the root, while the mesh answers through its edge.

Values are edited all the time: each edit replaces the cluster that leads to food, and with it the mTLS connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.protobuf.duration_pb2 import Duration
from nourish.mesh.v1.control_pb2 import ApplyValuesRequest, ValuesFile
from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub

from bench import load, processes
from mesh.admin import Admin
from mesh.identity.ca import CertificateAuthority
from mesh.identity.rotation import rotate_root, settle
from mesh.local.certificates import lagging
from mesh.local.paths import Paths

ROTATIONS = int(os.environ.get("BENCH_ROTATIONS", "100"))
REQUESTS_PER_ROTATION = 30
FOODS = ("food-0", "food-canary-0")
EDIT_SECONDS, POLL_SECONDS = 20, 0.05


def run() -> dict[str, Any]:
    """Rotates; returns how many requests were answered and how many failed, and over how many mTLS handshakes."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder, processes.mesh(Path(folder), "food") as mesh:
        return asyncio.run(_rotate(Paths.at(mesh.home), mesh.port))


def report(results: dict[str, Any]) -> list[str]:
    """The counts."""
    failed, r = results["failed"], results
    goal = "met" if failed == 0 else "NOT met"
    return [
        "## Certificates rotated under load",
        "",
        f"{r['rotations']} rotations of every leaf and one of the root, through the edge: {r['kept']:,} requests on "
        f"kept connections and {r['new']:,} on new ones answered, {failed} failed (goal: 0, {goal}).",
        f"{r['edits']} edits of values meanwhile made the edge connect anew: food's sidecars took {r['handshakes']:,} "
        "mTLS handshakes.",
    ]


async def _rotate(paths: Paths, port: int) -> dict[str, Any]:
    counts, failures, done = Counter(kept=0, new=0, edits=0), Counter[str](), asyncio.Event()
    authority = CertificateAuthority(paths.identity)
    before = await _handshakes(paths)
    async with _until_left(done, _edits(paths, counts, done), *load.readers(port, counts, failures, done)):
        for _ in range(ROTATIONS):
            for identity in authority.issued():
                await asyncio.to_thread(authority.issue, identity.service, identity.spiffe_id)
            await settle(lambda: lagging(paths))
            await _answered(counts, failures, REQUESTS_PER_ROTATION)
        await rotate_root(authority, lambda: lagging(paths), lambda _: None)
    handshakes = await _handshakes(paths) - before
    return {"rotations": ROTATIONS, **counts, "failed": failures.total(), "handshakes": handshakes}


async def _answered(counts: Counter[str], failures: Counter[str], more: int) -> None:
    """Waits for so many more requests, so that each certificate is used by some."""

    def ended() -> int:
        return counts["kept"] + counts["new"] + failures.total()

    enough = ended() + more
    while ended() < enough:  # noqa: ASYNC110 - a count has no event
        await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def _until_left(done: asyncio.Event, *works: Any) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)
        try:
            yield
        finally:
            done.set()


async def _edits(paths: Paths, counts: Counter[str], done: asyncio.Event) -> None:
    """Changes a limit of food again and again, so that every phase of a rotation sees new connections."""
    values = yaml.safe_load(paths.values.read_text())
    limits = values["services"]["food"].setdefault("limits", {})
    async with grpc.aio.insecure_channel(f"unix:{paths.control_socket}") as channel:
        stub = ControlServiceStub(channel)
        while not done.is_set():
            limits["maxRequests"] = 1001 + counts["edits"] % 2
            file = ValuesFile(path="values.yaml", content=yaml.safe_dump(values))
            request = ApplyValuesRequest(files=[file], timeout=Duration(seconds=EDIT_SECONDS))
            answer = await stub.ApplyValues(request, timeout=EDIT_SECONDS + 5)
            if not answer.applied:
                raise RuntimeError("; ".join(answer.errors))
            counts["edits"] += 1


async def _handshakes(paths: Paths) -> int:
    """How many mTLS handshakes food's sidecars have taken."""
    query = urllib.parse.urlencode({"format": "json", "filter": r"^listener\..*ssl\.handshake$"})
    answers = [await Admin(paths.admin_socket(food)).get(f"/stats?{query}") for food in FOODS]
    return sum(int(stat["value"]) for answer in answers for stat in json.loads(answer)["stats"])
