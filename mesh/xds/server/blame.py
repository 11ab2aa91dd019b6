"""Which value an error came of: each difference of an edit is tried by itself, and named with its file and line."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from mesh import values
from mesh.topology import Topology
from mesh.xds.changes import Change, differences
from mesh.xds.fleet import Fleet
from mesh.xds.plan import PlanError
from mesh.xds.server.validate import NotJudgedError, Validator
from mesh.xds.snapshot import SnapshotError

TRIED = 24  # differences; a run of Envoy each
SECONDS = 15.0


class Blame:
    """Finds the values behind a refusal."""

    def __init__(self, fleet: Fleet, validator: Validator) -> None:
        self._fleet = fleet
        self._validator = validator

    async def refused(
        self, old: Topology | None, new: Topology, files: list[values.ValuesFile], errors: list[str]
    ) -> list[str]:
        """`errors` of Envoy's own judgement, each difference tried by itself to find the one that it is about."""
        changes = differences(old, new)
        guilty = {}
        if len(changes) > 1:
            with suppress(TimeoutError, NotJudgedError):
                async with asyncio.timeout(SECONDS):
                    for change in changes[:TRIED]:
                        if text := await self._alone(old or _bare(new), change):
                            guilty[change] = text
        if guilty:
            return [f"{place(change, files)}: Envoy refuses it: {text}" for change, text in guilty.items()]
        return suspects(changes, files, [f"Envoy refuses it: {error}" for error in errors])

    async def _alone(self, old: Topology, change: Change) -> str:
        try:
            kinds = self._fleet.kinds(change.alone(old))
        except SnapshotError as error:
            return "; ".join(error.problems)
        except (PlanError, KeyError, TypeError):  # it means nothing without the others
            return ""
        return "; ".join(dict.fromkeys((await self._validator.refusals(kinds.values())).values()))


def suspects(changes: list[Change], files: list[values.ValuesFile], errors: list[str]) -> list[str]:
    """`errors` with the one value that can be behind them, or with all that may be."""
    places = [place(change, files) for change in changes]
    if len(places) == 1:
        return [f"{places[0]}: {error}" for error in errors]
    if not places:
        return errors
    return [*errors, *(f"{each}: may be the cause, as one of {len(places)} changed values" for each in places)]


def place(change: Change, files: list[values.ValuesFile]) -> str:
    """Where a changed value stands, "helm/values.yaml:26: services.food.canary.weight"."""
    return f"{values.locate(files, *change.place)}: {'.'.join(change.place)}"


def _bare(topology: Topology) -> Topology:
    """The same services with nothing said of them but whom they call."""
    services = {name: type(s)(name, calls=s.calls) for name, s in topology.services.items()}
    return Topology(services, namespace=topology.namespace, trust_domain=topology.trust_domain)
