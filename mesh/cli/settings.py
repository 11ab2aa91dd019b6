"""`mesh settings`: what the values give each service to read, and where that was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

import click

from mesh.cli.canary import in_force
from mesh.cli.failure import Failure
from mesh.cli.output import console, print_json, table
from mesh.cli.place import json_option, read_values, state

if TYPE_CHECKING:
    from mesh.topology import Service, Topology
    from mesh.values import ValuesFile

Kind = Literal["settings", "flags"]


@click.command("settings")
@click.argument("services", nargs=-1)
@json_option
def command(services: tuple[str, ...], as_json: bool) -> None:
    """Show the settings in force, and the file and line of each.

    Of SERVICES, or of all. One that was applied with --set or -f stands where the mesh keeps its values.
    """
    show("settings", services, as_json)


def show(kind: Kind, services: tuple[str, ...], as_json: bool) -> None:
    """Prints what the values in force have of a kind, each with where it was written."""
    from rich.markup import escape

    from mesh import values
    from mesh.topology import did_you_mean

    state()
    files, shipped = in_force(), read_values()
    topology = values.load(files)
    for name in services:
        if name not in topology.services:
            raise Failure(f"there is no service {name!r}{did_you_mean(name, topology.services)}")
    as_shipped = _loaded(kind, shipped)
    rows = [
        (
            service.name,
            key,
            text,
            values.locate(
                shipped if (service.name, key, text) in as_shipped else files, "services", service.name, kind, key
            ),
        )
        for service in topology.services.values()
        if service.name in (services or topology.services)
        for key, text in _of(kind, service).items()
    ]
    name = kind.removesuffix("s")
    if as_json:
        keys = ("service", name, "value", "origin")
        print_json([dict(zip(keys, (s, k, json.loads(text), origin), strict=True)) for s, k, text, origin in rows])
    elif rows:
        rows = [(service, key, escape(text), origin) for service, key, text, origin in rows]
        console().print(table(("SERVICE", name.upper(), "VALUE", "WRITTEN IN"), rows))
    else:
        click.echo(f"the values have no {kind}: what the code says by default holds")


def _of(kind: Kind, service: Service) -> dict[str, str]:
    return service.settings if kind == "settings" else service.flags


def _loaded(kind: Kind, files: list[ValuesFile]) -> set[tuple[str, str, str]]:
    """Every one of these files, none if they make no sense."""
    from mesh import values

    try:
        topology: Topology = values.load(files)
    except values.ValuesError:
        return set()
    return {(s.name, key, text) for s in topology.services.values() for key, text in _of(kind, s).items()}
