"""`mesh restart`: a service's instances anew, one after the other."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import print_json, span
from mesh.cli.place import json_option, paths, state

if TYPE_CHECKING:
    from mesh.local.events import Event


@click.command("restart")
@click.argument("service")
@click.option("--force", is_flag=True, help="Also if no other instance takes calls meanwhile: there will be a gap.")
@json_option
def command(service: str, force: bool, as_json: bool) -> None:
    """Restart the instances of SERVICE, app and proxy, one after the other, without losing a request.

    The next one is stopped when the proxies of all callers count the one before it healthy. If one does not come back,
    those after it are left alone. The runner goes on if this command is interrupted.
    """
    state()
    began = time.monotonic()
    restarted = asyncio.run(_restart(service, force, quiet=as_json))
    seconds = time.monotonic() - began
    if as_json:
        print_json({"service": service, "restarted": restarted, "seconds": round(seconds, 3)})
    else:
        click.echo(f"restarted {service} in {span(seconds)}")


async def _restart(service: str, force: bool, *, quiet: bool) -> list[str]:
    """Asks the runner and follows it; returns the instances that it restarted."""
    from mesh.local.runner_socket import ask

    restarted: list[str] = []
    try:
        async for event in ask(paths().runner_socket, service, force=force):
            if event.kind == "up":
                return restarted
            if event.kind == "failed":
                raise _failure(event, restarted)
            if event.kind == "ready":
                restarted.append(event.subject)
            if not quiet:
                click.echo(f"{event.subject}: {event.kind}")
    except (FileNotFoundError, ConnectionRefusedError):
        hint = "it starts or stops: `mesh status` says how far it is"
        raise Failure("the runner does not take restarts now", Exit.NOT_READY, hint) from None
    raise Failure("the runner ended before the restart did", Exit.NOT_RUNNING, "`mesh status` says what runs")


def _failure(event: Event, restarted: list[str]) -> Failure:
    done = f"restarted before that: {', '.join(restarted)}" if restarted else "nothing else was restarted"
    return Failure(event.text, Exit(event.exit_code), done)
