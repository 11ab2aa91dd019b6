"""Where the command works: the tree, its state, the values it reads, and the options that verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli.failure import Exit, Failure, not_running

if TYPE_CHECKING:
    from mesh.local.events import State
    from mesh.local.paths import Paths
    from mesh.values import ValuesFile

F = TypeVar("F", bound=Callable[..., Any])

ROOT = Path(__file__).resolve().parents[2]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
always_json_option = click.option("--json", is_flag=True, expose_value=False, help="Nothing else is printed anyway.")


overlays_option = click.option(
    "-f",
    "--values",
    "overlays",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Lay a file over helm/values.yaml, as Helm does. Repeatable.",
)
_sets_option = click.option(
    "--set", "sets", multiple=True, metavar="A.B=C", help="Lay one value over all files, as Helm does. Repeatable."
)


def values_options(function: F) -> F:
    """`-f` and `--set`."""
    return overlays_option(_sets_option(function))


def read_values(overlays: tuple[Path, ...] = (), sets: tuple[str, ...] = ()) -> list[ValuesFile]:
    """helm/values.yaml, the overlays and the assignments, with paths as the user would write them.

    Raises:
        mesh.values.ValuesError: a file cannot be read, or an assignment is malformed.
    """
    from mesh import values

    return values.read([shown(values.CHART_VALUES), *overlays], list(sets))


def shown(path: Path) -> Path:
    """`path` relative to where the user is, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def paths() -> Paths:
    """The layout of this tree's mesh."""
    from mesh.local.paths import Paths

    return Paths.of(ROOT, os.environ)


def state() -> State:
    """What runs.

    Raises:
        Failure: nothing does.
    """
    from mesh.local.events import read_state

    found = read_state(paths().state)
    if found is None:
        raise not_running(paths().home)
    return found


def need_sidecar(service: str, why: str) -> None:
    """That instances of a service have sidecars.

    Raises:
        Failure: one has none; `why` says for what it would be needed.
    """
    if bare := next((i.id for i in state().instances if i.service == service and i.data_plane == "proxyless"), None):
        hint = "docs/runbooks/proxyless.md says what goes with it, and what does not"
        raise Failure(f"{bare} is proxyless: there is no sidecar {why}", Exit.USAGE, hint)
