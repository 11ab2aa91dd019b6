"""Reads Envoy's own statistics. Each instance's sidecar knows what its app answered, whatever its callers retried."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from mesh.admin import Admin, AdminError
from mesh.local.errors import StartError
from mesh.local.events import InstanceState, read_state
from mesh.local.paths import Paths
from mesh.rollout import samples
from mesh.rollout.samples import Sample


@dataclass(frozen=True)
class Reading:
    """Every instance's counters at one moment, and how often callers failed to connect, by subset."""

    instances: dict[str, Sample]
    subsets: dict[str, str]
    refused: dict[str, int]

    def since(self, before: Reading, subset: str) -> Sample:
        """What a subset did after `before`. A connection that failed is a failed call that its sidecar never saw."""
        own = (
            samples.since(before.instances.get(id, Sample()), sample)
            for id, sample in self.instances.items()
            if self.subsets[id] == subset
        )
        lost = max(self.refused.get(subset, 0) - before.refused.get(subset, 0), 0)
        return samples.merged([*own, Sample(lost, lost)])


class Observer:
    """The sidecars of a service and of its callers."""

    def __init__(self, paths: Paths, service: str) -> None:
        self._paths, self._service = paths, service

    def instances(self) -> tuple[InstanceState, ...]:
        """All that run.

        Raises:
            StartError: the mesh ended.
        """
        state = read_state(self._paths.state)
        if state is None:
            raise StartError("the mesh has ended; when it is up again: `mesh rollout --resume`")
        return state.instances

    def absent(self) -> list[str]:
        """Canary instances that are not ready."""
        return [i.id for i in self.instances() if (i.service, i.subset) == (self._service, "canary") and not i.ready]

    async def read(self) -> Reading:
        """All counters now. An instance that does not answer is left out: its callers count what that costs."""
        running = self.instances()
        own = [i for i in running if i.service == self._service]
        found = dict(zip((i.id for i in own), await asyncio.gather(*(self._sample(i.id) for i in own)), strict=True))
        refused = {s: await self._callers(running, s, "upstream_cx_connect_fail") for s in ("stable", "canary")}
        return Reading({k: v for k, v in found.items() if v}, {i.id: i.subset for i in own}, refused)

    async def active(self, subset: str) -> int:
        """Calls of all callers that are still running on a subset."""
        return await self._callers(self.instances(), subset, "upstream_rq_active")

    async def _sample(self, id: str) -> Sample | None:
        path = f"/stats?format=json&histogram_buckets=detailed&filter={samples.STATS}"
        try:
            return samples.parse(await Admin(self._paths.admin_socket(id)).get(path))
        except AdminError:
            return None

    async def _callers(self, running: tuple[InstanceState, ...], subset: str, stat: str) -> int:
        name = rf"^cluster\.{self._service}\.{subset}\.{stat}$"

        async def one(id: str) -> int:
            try:
                answer = await Admin(self._paths.admin_socket(id)).get(f"/stats?format=json&filter={name}")
            except AdminError:
                return 0
            return sum(int(s.get("value", 0)) for s in json.loads(answer)["stats"])

        return sum(await asyncio.gather(*(one(i.id) for i in running)))
