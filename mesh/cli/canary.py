"""What `mesh apply` and `mesh rollout` ask before a canary gets its first call: does its contract serve its callers?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from mesh.cli.failure import refused
from mesh.cli.place import paths, read_values, state

if TYPE_CHECKING:
    from mesh.topology import Topology
    from mesh.values import ValuesFile

no_check_option = click.option(
    "--no-contract-check", is_flag=True, help="Do not compare a canary's contract with its callers'."
)


def in_force(*sets: str) -> list[ValuesFile]:
    """The values that the proxies have, with assignments laid over them."""
    from mesh import values

    path = paths().values
    return values.read([path], list(sets)) if path.exists() else read_values((), sets)


def check_first_calls(files: list[ValuesFile]) -> None:
    """Refuses an edit that gives an incompatible canary its first calls. One that makes no sense has none to give.

    Raises:
        Failure: each incompatibility, a sentence each.
    """
    from mesh import values

    try:
        before, after = values.load(in_force()), values.load(files)
    except values.ValuesError:
        return
    weights = {name: service.canary.weight for name, service in before.services.items()}
    check(after, (name for name, s in after.services.items() if s.canary.weight and not weights.get(name)))


def check(topology: Topology, services: Iterable[str]) -> None:
    """Asks the canaries of these services and their callers, by reflection.

    Raises:
        Failure: each incompatibility, a sentence each.
    """
    from mesh.rollout import contract

    running = state().instances
    if found := [p for s in services for p in contract.problems(paths(), running, s, topology.callers.get(s, ()))]:
        raise refused(found)
