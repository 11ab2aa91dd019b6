"""`mesh metrics`: what a process and its proxy count, and where Prometheus reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import console, print_json, table
from mesh.cli.place import json_option, paths, state

if TYPE_CHECKING:
    from mesh.local.events import InstanceState


@click.command("metrics")
@click.argument("instance", required=False)
@click.option("--proxy", is_flag=True, help="Of its proxy, not of its process.")
@json_option
def command(instance: str | None, proxy: bool, as_json: bool) -> None:
    """Print what INSTANCE (food-0) counts, as Prometheus reads it; without one, show where each may be read.

    The sockets are there always, the port if the values have a telemetry.port.
    """
    instances = {i.id: i for i in state().instances}
    if instance is None:
        _print_places([_places(i) for i in instances.values()], as_json=as_json)
        return
    if instance not in instances:
        from mesh.topology import did_you_mean

        raise Failure(f"there is no instance {instance!r}{did_you_mean(instance, instances)}", Exit.USAGE)
    text = _text(instances[instance], proxy=proxy)
    if as_json:
        print_json({"instance": instance, "text": text})
    else:
        click.echo(text, nl=False)


def _text(instance: InstanceState, *, proxy: bool) -> str:
    from mesh.admin import Admin, AdminError

    where = paths()
    if proxy and instance.data_plane == "proxyless":
        raise Failure(f"{instance.id} is proxyless: it has no proxy that counts", Exit.USAGE)
    socket = where.admin_socket(instance.id) if proxy else where.telemetry_socket(instance.id)
    path = "/stats/prometheus" if proxy else "/metrics"
    try:
        return asyncio.run(Admin(socket).get(path)).decode()
    except AdminError as error:
        hint = f"`mesh status` says whether it is up, `mesh logs {instance.id}` why not"
        raise Failure(f"{instance.id} does not answer ({error})", Exit.NOT_RUNNING, hint) from None


def _places(instance: InstanceState) -> dict[str, str]:
    where, proxyless = paths(), instance.data_plane == "proxyless"
    port = None if proxyless else asyncio.run(_port(instance.id))
    return {
        "instance": instance.id,
        "app": str(where.telemetry_socket(instance.id)),
        "proxy": "" if proxyless else str(where.admin_socket(instance.id)),
        "url": f"http://127.0.0.1:{port}/metrics" if port else "",
    }


async def _port(instance: str) -> int | None:
    from mesh.admin import Admin, AdminError
    from mesh.xds.scraping import METRICS

    try:
        return (await Admin(paths().admin_socket(instance)).listeners()).get(METRICS)
    except AdminError:
        return None


def _print_places(places: list[dict[str, str]], *, as_json: bool) -> None:
    if as_json:
        print_json(places)
        return
    columns = ("INSTANCE", "/metrics OF THE PROCESS", "/stats/prometheus OF ITS PROXY", "BOTH BY TCP")
    console().print(table(columns, ([place or "-" for place in row.values()] for row in places)))
    if places:
        click.echo(f"curl --unix-socket {places[0]['app']} http://localhost/metrics")
