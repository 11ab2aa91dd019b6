"""`mesh flags`: the feature flags of each service, and where each was written."""

from __future__ import annotations

import click

from mesh.cli.place import json_option
from mesh.cli.settings import show


@click.command("flags")
@click.argument("services", nargs=-1)
@json_option
def command(services: tuple[str, ...], as_json: bool) -> None:
    """Show the feature flags in force, and the file and line of each.

    Of SERVICES, or of all. To give one to 10 percent of the users:
    mesh apply --set services.food.flags.NAME.shares.enabled=10
    """
    show("flags", services, as_json)
