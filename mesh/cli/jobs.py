"""`mesh jobs`: what a service is to do later: listed, shown, done again, stopped."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli.content import decoded
from mesh.cli.database import asked
from mesh.cli.failure import Failure
from mesh.cli.output import ago, console, print_json, table
from mesh.cli.place import json_option

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from mesh.runtime.jobs.store import Row

T = TypeVar("T")
STATES = ("queued", "running", "succeeded", "failed", "cancelled")


@click.group("jobs")
def command() -> None:
    """List the jobs of a service, show one, have it done again, or stop it; each takes --json."""


@command.command("list")
@click.argument("service")
@click.option("--state", "wanted", type=click.Choice(STATES), help="Only those.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@json_option
def list_(service: str, wanted: str | None, limit: int, as_json: bool) -> None:
    """List the jobs of SERVICE, the newest first."""
    from mesh.runtime.jobs import store

    rows = ask(service, lambda connection: store.newest(connection, wanted, limit))
    if as_json:
        print_json([_summary(row) for row in rows])
    elif not rows:
        click.echo("no jobs")
    else:
        columns = ("ID", "JOB", "STATE", "ATTEMPTS", "SINCE", "REASON")
        console().print(table(columns, (_line(row) for row in rows)))


@command.command("show")
@click.argument("service")
@click.argument("id_", metavar="ID")
@json_option
def show(service: str, id_: str, as_json: bool) -> None:
    """Show a job of SERVICE: what it is to do, how far it is, why it failed; no values of sensitive fields."""
    from mesh.runtime.jobs import store

    row = ask(service, lambda connection: store.get(connection, id_))
    if row is None:
        raise _unknown(service, id_)
    found = decoded(row.kind, row.argument)
    argument, masked = found["content"], found["masked"]
    if as_json:
        print_json({**_summary(row), "argument": argument, "masked": masked})
        return
    click.echo(f"{row.kind}, {row.state}, {row.attempt} attempts, since {ago(row.create_time)}")
    if row.detail:
        click.secho(row.detail, fg="red")
    for name, value in _summary(row)["headers"].items():
        click.echo(f"{name}: {value}")
    click.echo(json.dumps(argument, indent=2, ensure_ascii=False))
    if masked:
        click.echo(f"not shown: {', '.join(masked)}")


@command.command("retry")
@click.argument("service")
@click.argument("id_", metavar="ID")
@json_option
def retry(service: str, id_: str, as_json: bool) -> None:
    """Have a failed or cancelled job of SERVICE done again, from the last progress that it kept."""
    from datetime import timedelta

    from mesh.runtime.jobs import queue, store

    async def again(connection: AsyncConnection) -> bool:
        found = await store.again(connection, id_)
        if found:
            await queue.place(connection, id_, *found, timedelta(0))
        return found is not None

    _change(service, id_, again, "queued", "is neither failed nor cancelled", as_json=as_json)


@command.command("cancel")
@click.argument("service")
@click.argument("id_", metavar="ID")
@json_option
def cancel(service: str, id_: str, as_json: bool) -> None:
    """Stop a job of SERVICE: at once if it waits, at its next report if it runs."""
    from mesh.runtime.jobs import running, store

    error = running.CANCELLED.SerializeToString()
    _change(service, id_, lambda c: store.cancel(c, id_, error), "told to stop", "has ended already", as_json=as_json)


def _change(
    service: str,
    id_: str,
    make: Callable[[AsyncConnection], Awaitable[bool]],
    done: str,
    why_not: str,
    *,
    as_json: bool,
) -> None:
    from mesh.runtime.jobs import store

    if not ask(service, make):
        if ask(service, lambda connection: store.get(connection, id_)) is None:
            raise _unknown(service, id_)
        raise Failure(f"the job {id_} {why_not}", hint=f"see `mesh jobs show {service} {id_}`")
    if as_json:
        print_json({"id": id_, "done": done})
    else:
        click.echo(f"{id_} is {done}")


def ask(service: str, question: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """As `asked`.

    Raises:
        Failure: the mesh does not run, or the service has no jobs.
    """
    import sqlalchemy as sa

    async def ask(connection: AsyncConnection) -> T:
        if not (await connection.execute(sa.text("SELECT to_regclass('pgqueuer')"))).scalar_one():
            raise Failure(f"{service} has no jobs")
        return await question(connection)

    return asked(service, ask)


def _unknown(service: str, id_: str) -> Failure:
    return Failure(f"{service} has no job {id_}", hint=f"see `mesh jobs list {service}`")


def _summary(row: Row) -> dict[str, Any]:
    times = {name: getattr(row, name) for name in ("create_time", "run_time", "start_time", "end_time")}
    return {
        "id": row.id,
        "kind": row.kind,
        "key": row.key,
        "owner": row.owner,
        "priority": row.priority,
        "state": row.state,
        "attempts": row.attempt,
        "failures": row.failures,
        "cancelRequested": row.cancel_requested,
        "reason": row.detail or "",
        "headers": json.loads(row.headers),
        **{name: time.isoformat() for name, time in times.items() if time},
    }


def _line(row: Row) -> tuple[str, ...]:
    return row.id, row.kind, row.state, str(row.attempt), ago(row.create_time), row.detail or ""
