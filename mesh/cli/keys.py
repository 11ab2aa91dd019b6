"""`mesh keys`: the keys that encrypt what services store of sensitive fields: listed, and given way to new ones."""

from __future__ import annotations

import asyncio
from collections import Counter

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import console, print_json, table
from mesh.cli.place import json_option, paths

POLL_SECONDS = 0.5
WAITED_SECONDS = 600


@click.group("keys")
def command() -> None:
    """List the keys that encrypt sensitive fields at rest, or rotate them; each takes --json."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the keys of each service: which one encrypts, and how many users' data keys each has encrypted."""
    rows = [row for service in _services() for row in _lines(service)]
    if as_json:
        print_json(rows)
    else:
        columns = ("SERVICE", "KEY", "CURRENT", "DATA KEYS")
        lines = ((str(r["service"]), str(r["key"]), "yes" * bool(r["current"]), str(r["dataKeys"])) for r in rows)
        console().print(table(columns, lines))


@command.command("rotate")
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@json_option
def rotate(services: tuple[str, ...], as_json: bool) -> None:
    """Make a new key for each SERVICE (all, if none is named), and wait until all data keys are encrypted by it.

    Services go on meanwhile, and finish by themselves if this is interrupted. The old key's file stays, for backups.
    """
    from mesh.local import keys
    from mesh.topology import did_you_mean

    known = _services()
    for service in services:
        if service not in known:
            raise Failure(f"no service {service!r} has keys{did_you_mean(service, known)}", Exit.USAGE)
    chosen = services or known
    for service in chosen:
        _counted(service)  # if its database is away, nothing is begun
    made = {service: keys.add_key(paths().keys / service) for service in chosen}
    moved = {service: asyncio.run(_taken_over(service, key)) for service, key in made.items()}
    if as_json:
        print_json([{"service": name, "key": key, "dataKeys": moved[name]} for name, key in made.items()])
        return
    for name, key in made.items():
        click.echo(f"{name}: {moved[name]} data keys are encrypted by {key}")


async def _taken_over(service: str, key: str) -> int:
    """How many data keys there are, once all are encrypted by `key`."""
    try:
        async with asyncio.timeout(WAITED_SECONDS):
            while set(counted := await asyncio.to_thread(_counted, service)) - {key}:  # noqa: ASYNC110 - others do it
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        left = counted.total() - counted[key]
        raise Failure(
            f"{service}: {left} data keys are not encrypted by {key} yet; it goes on", hint=f"see `mesh logs {service}`"
        ) from None
    return counted.total()


def _services() -> tuple[str, ...]:
    """Those that the runner has given keys."""
    folder = paths().keys
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.exists() else ()


def _lines(service: str) -> list[dict[str, object]]:
    from mesh.local import keys

    folder = paths().keys / service
    current, counted = (folder / keys.CURRENT).read_text().strip(), _counted(service)
    ids = sorted({*counted, *(path.name for path in folder.iterdir() if path.name.isdigit())})
    return [{"service": service, "key": id_, "current": id_ == current, "dataKeys": counted[id_]} for id_ in ids]


def _counted(service: str) -> Counter[str]:
    """How many data keys are encrypted by which key."""
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection

    from mesh.cli.database import asked

    async def count(connection: AsyncConnection) -> Counter[str]:
        if not (await connection.execute(sa.text("SELECT to_regclass('runtime_data_key')"))).scalar_one():
            return Counter()
        rows = await connection.execute(sa.text("SELECT kek, count(*) FROM runtime_data_key GROUP BY kek"))
        return Counter({row.kek: row.count for row in rows})

    return asked(service, count)
