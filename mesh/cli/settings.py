"""`mesh settings`: what the values give each service to read, and where that was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mesh.cli.canary import in_force
from mesh.cli.failure import Failure
from mesh.cli.output import console, print_json, table
from mesh.cli.place import json_option, read_values, state

if TYPE_CHECKING:
    from mesh.topology import Topology
    from mesh.values import ValuesFile


@click.command("settings")
@click.argument("services", nargs=-1)
@json_option
def command(services: tuple[str, ...], as_json: bool) -> None:
    """Show the settings in force, and the file and line of each.

    Of SERVICES, or of all. One that was applied with --set or -f stands where the mesh keeps its values.
    """
    from rich.markup import escape

    from mesh import values
    from mesh.topology import did_you_mean

    state()
    files, shipped = in_force(), read_values()
    topology = values.load(files)
    for name in services:
        if name not in topology.services:
            raise Failure(f"there is no service {name!r}{did_you_mean(name, topology.services)}")
    as_shipped = _loaded(shipped)
    rows = [
        (
            service.name,
            key,
            text,
            _origin(service.name, key, shipped if (service.name, key, text) in as_shipped else files),
        )
        for service in topology.services.values()
        if service.name in (services or topology.services)
        for key, text in service.settings.items()
    ]
    if as_json:
        keys = ("service", "setting", "value", "origin")
        print_json([dict(zip(keys, (s, k, json.loads(text), origin), strict=True)) for s, k, text, origin in rows])
    elif rows:
        rows = [(service, key, escape(text), origin) for service, key, text, origin in rows]
        console().print(table(("SERVICE", "SETTING", "VALUE", "WRITTEN IN"), rows))
    else:
        click.echo("the values have no settings: what the code says by default holds")


def _loaded(files: list[ValuesFile]) -> set[tuple[str, str, str]]:
    """Every setting of these files, none if they make no sense."""
    from mesh import values

    try:
        topology: Topology = values.load(files)
    except values.ValuesError:
        return set()
    return {(s.name, key, text) for s in topology.services.values() for key, text in s.settings.items()}


def _origin(service: str, key: str, files: list[ValuesFile]) -> str:
    from mesh import values

    return values.locate(files, "services", service, "settings", key)
