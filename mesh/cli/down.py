"""`mesh down`: stops what runs."""

from __future__ import annotations

import asyncio

import click

from mesh.cli.output import print_json
from mesh.cli.place import json_option, paths


@click.command("down")
@click.option("--wipe", is_flag=True, help="Forget all state too: databases, certificates, keys, logs.")
@json_option
def command(wipe: bool, as_json: bool) -> None:
    """Stop the mesh.

    Its state stays for the next `mesh up`. It is no error if none runs."""
    from mesh.local import background

    home = paths().home
    stopped = asyncio.run(background.down(home, wipe=wipe))
    if as_json:
        print_json({"stopped": stopped, "wiped": wipe})
        return
    click.echo(f"stopped the mesh of {home}" if stopped else f"no mesh was running in {home}")
    if wipe:
        click.echo("its state is gone")
