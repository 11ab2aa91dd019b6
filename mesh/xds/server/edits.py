"""An edit of the values as a transaction: checked, pushed, acknowledged by every proxy, or undone."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from nourish.mesh.v1 import control_pb2

from mesh import values
from mesh.topology import Topology
from mesh.xds import changes, pb
from mesh.xds.fleet import Fleet, Proxy
from mesh.xds.server.progress import Progress, all_settled
from mesh.xds.snapshot import SnapshotError

log = logging.getLogger(__name__)

RESTORE_SECONDS = 5.0


class Edits:
    """The one door for values, whoever brings them. One edit at a time: all of it, or none."""

    def __init__(self, fleet: Fleet, progress: Progress) -> None:
        self._fleet = fleet
        self._progress = progress
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[control_pb2.ApplyValuesResponse]] = set()

    async def apply(
        self, files: list[values.ValuesFile], seconds: float, *, dry_run: bool = False
    ) -> control_pb2.ApplyValuesResponse:
        """Brings `files` into force, or says why not; finished or undone even if the caller does not wait.

        Args:
            files: in the order Helm would overlay them.
            seconds: how long to wait for the proxies.
            dry_run: check and describe, and push nothing.
        """
        edit = asyncio.create_task(self._apply(files, seconds, dry_run))
        self._running.add(edit)
        edit.add_done_callback(self._running.discard)
        return await asyncio.shield(edit)

    async def _apply(
        self, files: list[values.ValuesFile], seconds: float, dry_run: bool
    ) -> control_pb2.ApplyValuesResponse:
        async with self._lock:
            try:
                topology = self._check(files)
                described = changes.describe(self._fleet.topology, topology)
                if dry_run:
                    return self._answer(self._fleet.topology, applied=False, changes=described)
                return await self._push(topology, described, seconds)
            except (values.ValuesError, SnapshotError) as error:
                return self._answer(self._fleet.topology, applied=False, errors=error.problems)

    def _check(self, files: list[values.ValuesFile]) -> Topology:
        topology = values.load(files)
        problems = values.check(topology, self._fleet.contract)
        if problems:
            raise values.ValuesError(problems)
        self._fleet.check(topology)
        return topology

    async def _push(self, topology: Topology, described: list[str], seconds: float) -> control_pb2.ApplyValuesResponse:
        good, started = self._fleet.topology, time.monotonic()
        before = {p.node.id: p.refusals for p in self._fleet.proxies.values()}
        changed = self._fleet.adopt(topology)

        def refused() -> list[str]:
            new = {p.node.id: p.refusals - before.get(p.node.id, frozenset()) for p in self._fleet.proxies.values()}
            return [f"{node} refused it: {text}" for node, refusals in new.items() for _, text in sorted(refusals)]

        await self._progress.until(lambda: bool(refused()) or all_settled(changed), seconds)
        took = time.monotonic() - started
        silent = [p for p in changed if not p.settled]
        if errors := refused() or [f"{p.node.id} did not answer within {seconds:g} s" for p in silent]:
            return await self._restore(good, errors, silent)
        answer = self._answer(topology, applied=True, changes=described, proxies=[p.node.id for p in changed])
        answer.converged_in.CopyFrom(pb.seconds(took))
        return answer

    async def _restore(
        self, good: Topology | None, errors: list[str], silent: list[Proxy]
    ) -> control_pb2.ApplyValuesResponse:
        changed = [proxy for proxy in self._fleet.adopt(good) if proxy not in silent]
        await self._progress.until(lambda: all_settled(changed), RESTORE_SECONDS)
        log.error("edit undone: %s", "; ".join(errors))
        return self._answer(good, applied=False, errors=errors)

    def _answer(self, topology: Topology | None, **fields: Any) -> control_pb2.ApplyValuesResponse:
        revision = changes.revision(topology) if topology else ""
        return control_pb2.ApplyValuesResponse(revision=revision, **fields)
