"""The control plane is frozen for a minute, killed, and started with an empty memory, while the mesh answers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import load, processes
from mesh.admin import Admin, AdminError

FROZEN_SECONDS = float(os.environ.get("BENCH_FROZEN_SECONDS", "60"))
BACK_SECONDS, SETTLED_SECONDS = 60.0, 10.0
SAMPLE_SECONDS = 0.5
CLUSTER, LISTENER = "cluster_manager.cluster", "listener_manager.listener"
CONNECTS, STREAM = "cluster.xds.upstream_cx_total", "control_plane.connected_state"


def run() -> dict[str, Any]:
    """Freezes, kills, waits until all are back; returns what was answered, what proxies had, and their connects."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder, processes.mesh(Path(folder)) as mesh:
        return asyncio.run(_Outage(mesh).run())


def report(results: dict[str, Any]) -> list[str]:
    """Counts, and the goals."""
    r = results
    failed = "met" if r["failed"] == 0 else "NOT met"
    lost = "met" if not r["lost"] else "NOT met"
    return [
        "## The control plane frozen, killed, started with an empty memory",
        "",
        f"SIGSTOP for {r['frozen_seconds']:.0f} s, then SIGKILL; the runner starts it again and tells it values and "
        f"endpoints. {r['proxies']} proxies, through the edge: {r['kept']:,} requests on kept connections and "
        f"{r['new']:,} on new ones answered, {r['failed']} failed (goal: 0, {failed}).",
        f"Proxies whose clusters, listeners, routes or hosts are not what they were: {len(r['lost'])} (goal: 0, "
        f"{lost}); clusters or listeners removed or changed at any moment between: {r['moved']}.",
        f"All were connected again {r['back_seconds']:.1f} s after the kill, by {r['connects']['total']} connections "
        f"opened in all, at most {r['connects']['most']} by one proxy and {r['connects']['busiest']} within any "
        f"{SAMPLE_SECONDS:g} s; while it was frozen, {r['connects']['frozen']}.",
        *(f"- {reason}: {count}" for reason, count in r["failures"].items()),
    ]


class _Outage:
    def __init__(self, mesh: processes.Mesh) -> None:
        self._mesh = mesh
        state = self._state()
        run = Path(state["run"])
        self._admins = {i["id"]: Admin(run / i["id"] / "admin.sock") for i in state["instances"]}
        self._answers, self._failures = Counter(kept=0, new=0), Counter[str]()
        self._done = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        async with asyncio.TaskGroup() as group:
            for reader in load.readers(self._mesh.port, self._answers, self._failures, self._done):
                group.create_task(reader)
            try:
                measured = await self._measure()
            finally:
                self._done.set()
        return {**measured, **self._answers, "failed": self._failures.total(), "failures": dict(self._failures)}

    async def _measure(self) -> dict[str, Any]:
        pid = int(self._state()["control"]["pid"])
        before, moves, connects = await self._all(_has), await self._all(_moves), await self._all(_connects)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(FROZEN_SECONDS)
        samples = [connects, await self._all(_connects)]
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while not await self._back(pid):
            if time.monotonic() > killed + BACK_SECONDS:
                raise RuntimeError(f"not every proxy was connected again within {BACK_SECONDS:g} s")
            await asyncio.sleep(SAMPLE_SECONDS)
            samples.append(await self._all(_connects))
        back = time.monotonic() - killed
        await asyncio.sleep(SETTLED_SECONDS)  # what would be sent to them has been
        after, moved = await self._all(_has), await self._all(_moves)
        steps = [{i: b[i] - a[i] for i in a} for a, b in pairwise(samples)]
        each = {i: samples[-1][i] - connects[i] for i in connects}
        return {
            "frozen_seconds": FROZEN_SECONDS,
            "proxies": len(self._admins),
            "lost": [i for i in before if before[i] != after[i]],
            "moved": sum(moved[i] - moves[i] for i in moves),
            "back_seconds": back,
            "connects": {
                "frozen": sum(steps[0].values()),
                "total": sum(each.values()),
                "most": max(each.values()),
                "busiest": max(sum(step.values()) for step in steps[1:]),
            },
        }

    async def _back(self, killed: int) -> bool:
        """Whether there is another control plane, with every proxy on a stream to it."""
        control = self._state()["control"]
        if not control["up"] or control["pid"] in (None, killed):
            return False
        return all((await self._all(_connected)).values())

    async def _all(self, ask: Any) -> dict[str, Any]:
        return {id: await ask(admin) for id, admin in self._admins.items()}

    def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._mesh.home / "state.json").read_text())
        return found


async def _has(admin: Admin) -> dict[str, Any]:
    """What a proxy has, by name and version, and the hosts of each cluster."""
    found: dict[str, Any] = {}
    for config in json.loads(await admin.get("/config_dump"))["configs"]:
        for key, entries in config.items():
            if key.startswith("dynamic_"):
                found[key] = sorted(json.dumps(e.get("version_info", e.get("name"))) for e in entries)
    statuses = json.loads(await admin.get("/clusters?format=json"))["cluster_statuses"]
    found["hosts"] = {c["name"]: sorted(_hosts(c)) for c in statuses}
    return found


def _hosts(cluster: dict[str, Any]) -> Iterable[str]:
    return (json.dumps(host["address"], sort_keys=True) for host in cluster.get("host_statuses", ()))


async def _moves(admin: Admin) -> int:
    names = [f"{kind}_{what}" for kind in (CLUSTER, LISTENER) for what in ("removed", "modified")]
    return sum([await _stat(admin, name) for name in names])


async def _connects(admin: Admin) -> int:
    return await _stat(admin, CONNECTS)


async def _connected(admin: Admin) -> bool:
    try:
        return bool(await _stat(admin, STREAM))
    except AdminError:
        return False


async def _stat(admin: Admin, name: str) -> int:
    text = (await admin.get(f"/stats?filter=^{name}$")).decode()
    return int(text.rpartition(":")[2] or 0)
