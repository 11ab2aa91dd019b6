"""An edit of the values as a transaction: checked, pushed, acknowledged by every proxy, or undone."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from nourish.mesh.v1 import control_pb2

from mesh import values
from mesh.topology import Topology
from mesh.xds import changes, pb
from mesh.xds.fleet import Fleet, Proxy
from mesh.xds.plan import PlanError
from mesh.xds.server.blame import Blame, suspects
from mesh.xds.server.progress import Progress, all_settled
from mesh.xds.server.settings import InForce
from mesh.xds.server.validate import NotJudgedError, Validator
from mesh.xds.snapshot import SnapshotError

log = logging.getLogger(__name__)

RESTORE_SECONDS = 5.0
COUNTED = 12  # differences of one edit whose reach is counted: each costs a compile of every kind of proxy


@dataclass(frozen=True)
class Edit:
    """What is asked for. `base` is the revision that it was made from, empty for whichever is in force."""

    files: list[values.ValuesFile]  # in the order Helm would overlay them
    seconds: float  # how long to wait for the proxies
    dry_run: bool = False  # check and describe, and push nothing
    base: str = ""


class Edits:
    """The one door for values, whoever brings them. One edit at a time: all of it, or none."""

    def __init__(self, fleet: Fleet, progress: Progress, validator: Validator) -> None:
        self._fleet = fleet
        self._progress = progress
        self._validator = validator
        self._blame = Blame(fleet, validator)
        self.in_force = InForce()
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[control_pb2.ApplyValuesResponse]] = set()

    async def apply(self, edit: Edit) -> control_pb2.ApplyValuesResponse:
        """Brings `edit` into force, or says why not; finished or undone even if the caller does not wait."""
        task = asyncio.create_task(self._apply(edit))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _apply(self, edit: Edit) -> control_pb2.ApplyValuesResponse:
        async with self._lock:
            try:
                self._still(edit.base)
                topology = await self._check(edit.files)
                described = self._describe(topology)
                if edit.dry_run:
                    return self._answer(self._fleet.topology, applied=False, changes=described)
                return await self._push(topology, described, edit)
            except (values.ValuesError, SnapshotError) as error:
                return self._answer(self._fleet.topology, applied=False, errors=error.problems)
            except NotJudgedError as error:
                unknown = f"{error}: the edit was not judged, and nothing was changed; apply it again"
                return self._answer(self._fleet.topology, applied=False, errors=[unknown], again=True)

    def _still(self, base: str) -> None:
        now = changes.revision(self._fleet.topology) if self._fleet.topology else ""
        if base and base != now:
            raise values.ValuesError(
                [
                    f"another edit came between: {now or 'nothing'} is in force, and this one was made from {base}; "
                    "see what it would change now with `mesh apply --dry-run`, then apply it again"
                ]
            )

    async def _check(self, files: list[values.ValuesFile]) -> Topology:
        topology = values.load(files)
        if problems := values.check(topology, self._fleet.contract):
            raise values.ValuesError([_placed(problem, files) for problem in problems])
        old = self._fleet.topology
        try:
            self._fleet.check(topology)
            kinds = self._fleet.kinds(topology)
        except (SnapshotError, PlanError) as error:
            raise values.ValuesError(suspects(changes.differences(old, topology), files, [str(error)])) from error
        if refusals := await self._validator.refusals(kinds.values()):
            texts = list(dict.fromkeys(refusals.values()))
            raise values.ValuesError(await self._blame.refused(old, topology, files, texts))
        return topology

    def _describe(self, topology: Topology) -> list[str]:
        """A sentence for each difference, with how many connected proxies it reaches."""
        old = self._fleet.topology
        found = changes.differences(old, topology)
        if old is None or len(found) > COUNTED:
            return [str(change) for change in found]
        before = self._fleet.kinds(old)
        return [f"{change}{self._reach(old, change, before)}" for change in found]

    def _reach(self, old: Topology, change: changes.Change, before: dict[Any, Any]) -> str:
        try:
            after = self._fleet.kinds(change.alone(old))
        except (SnapshotError, PlanError, KeyError, TypeError):  # it means nothing without the others
            return ""
        count = self._fleet.connected(
            kind for kind in before if kind in after and before[kind].versions != after[kind].versions
        )
        return f", {count} {'proxy' if count == 1 else 'proxies'}" if count else ", no proxy"

    async def _push(self, topology: Topology, described: list[str], edit: Edit) -> control_pb2.ApplyValuesResponse:
        good, started = self._fleet.topology, time.monotonic()
        before = {p.node.id: p.refusals for p in self._fleet.proxies.values()}
        changed = self._fleet.adopt(topology)

        def refused() -> list[str]:
            new = {p.node.id: p.refusals - before.get(p.node.id, frozenset()) for p in self._fleet.proxies.values()}
            return [f"{node} refused it: {text}" for node, refusals in new.items() for _, text in sorted(refusals)]

        await self._progress.until(lambda: bool(refused()) or all_settled(changed), edit.seconds)
        took = time.monotonic() - started
        silent = [p for p in changed if not p.settled]
        if errors := refused() or [f"{p.node.id} did not answer within {edit.seconds:g} s" for p in silent]:
            named = suspects(changes.differences(good, topology), edit.files, errors)
            return await self._restore(good, named, silent, again=not refused())
        answer = self._answer(topology, applied=True, changes=described, proxies=[p.node.id for p in changed])
        answer.converged_in.CopyFrom(pb.seconds(took))
        self.in_force.put(topology)
        return answer

    async def _restore(
        self, good: Topology | None, errors: list[str], silent: list[Proxy], *, again: bool
    ) -> control_pb2.ApplyValuesResponse:
        changed = [proxy for proxy in self._fleet.adopt(good) if proxy not in silent]
        await self._progress.until(lambda: all_settled(changed), RESTORE_SECONDS)
        log.error("edit undone: %s", "; ".join(errors))
        return self._answer(good, applied=False, errors=errors, again=again)

    def _answer(self, topology: Topology | None, **fields: Any) -> control_pb2.ApplyValuesResponse:
        revision = changes.revision(topology) if topology else ""
        return control_pb2.ApplyValuesResponse(revision=revision, **fields)


def _placed(problem: str, files: list[values.ValuesFile]) -> str:
    """A sentence that begins with a path, with the file and line of that path before it."""
    path = problem.partition(":")[0]
    return f"{values.locate(files, *path.split('.'))}: {problem}"
