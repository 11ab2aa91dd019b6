"""`mesh sagas`: changes of several services: how far each is, forward or back; taken up again where one waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mesh.cli.failure import Failure
from mesh.cli.jobs import ask
from mesh.cli.output import ago, console, print_json, table
from mesh.cli.place import json_option

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from mesh.runtime.sagas.store import Row, StepRow

STATES = ("running", "compensating", "succeeded", "compensated", "parked")


@click.group("sagas")
def command() -> None:
    """List the sagas of a service, show the steps of one, have a parked one go on or settle its step; with --json."""


@command.command("list")
@click.argument("service")
@click.option("--state", "wanted", type=click.Choice(STATES), help="Only those.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@json_option
def list_(service: str, wanted: str | None, limit: int, as_json: bool) -> None:
    """List the sagas of SERVICE that have begun, the newest first."""
    from mesh.runtime.sagas import store

    rows = ask(service, lambda connection: store.newest(connection, wanted, limit))
    if as_json:
        print_json([_summary(row) for row in rows])
    elif not rows:
        click.echo("no sagas")
    else:
        columns = ("ID", "SAGA", "STATE", "SINCE", "REASON")
        console().print(table(columns, (_line(row) for row in rows)))


@command.command("show")
@click.argument("service")
@click.argument("id_", metavar="ID")
@json_option
def show(service: str, id_: str, as_json: bool) -> None:
    """Show a saga of SERVICE: its steps that have begun, and why it was turned back or parked.

    What it is about says `mesh jobs show SERVICE ID`: a saga is a job.
    """
    from mesh.runtime.sagas import store

    async def read(connection: AsyncConnection) -> tuple[Row | None, list[StepRow]]:
        return await store.get(connection, id_), await store.steps(connection, id_)

    row, steps = ask(service, read)
    if row is None:
        raise _unknown(service, id_)
    if as_json:
        print_json({**_summary(row), "steps": [_step(step) for step in steps]})
        return
    click.echo(f"{row.kind}, {row.shown_state}, since {ago(row.create_time)}")
    if row.detail:
        click.secho(row.detail, fg="red")
    lines = ((s.name, s.state, str(s.tries), ago(s.update_time), s.detail or "") for s in steps)
    console().print(table(("STEP", "STATE", "TRIES", "SINCE", "LAST FAILURE"), lines))


@command.command("retry")
@click.argument("service")
@click.argument("id_", metavar="ID")
@json_option
def retry(service: str, id_: str, as_json: bool) -> None:
    """Have a parked saga of SERVICE go on, in the direction in which it was going, with all its tries anew."""
    ask(service, lambda connection: _go_on(connection, service, id_))
    _print_done(id_, f"{id_} is queued", as_json=as_json)


@command.command("settle")
@click.argument("service")
@click.argument("id_", metavar="ID")
@json_option
def settle(service: str, id_: str, as_json: bool) -> None:
    """Say that what a parked saga of SERVICE waits for was done by hand, and have it go on behind that."""
    from mesh.runtime.sagas import store

    async def settled(connection: AsyncConnection) -> str:
        step = await store.settle(connection, id_)
        await _go_on(connection, service, id_)
        if step is None:
            raise Failure(f"the saga {id_} waits for no step", hint=f"see `mesh sagas show {service} {id_}`")
        return step

    step = ask(service, settled)
    _print_done(id_, f"{id_} is queued: {step} counts as settled", as_json=as_json)


async def _go_on(connection: AsyncConnection, service: str, id_: str) -> None:
    from datetime import timedelta

    from mesh.runtime.jobs import queue
    from mesh.runtime.jobs import store as jobs
    from mesh.runtime.sagas import store

    row = await store.get(connection, id_)
    if row is None:
        raise _unknown(service, id_)
    found = await jobs.again(connection, id_) if row.parked else None
    if not found:
        hint = f"see `mesh sagas show {service} {id_}`"
        raise Failure(f"the saga {id_} is {row.shown_state}: only a parked one waits for a human", hint=hint)
    await queue.place(connection, id_, *found, timedelta(0))


def _print_done(id_: str, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": id_, "done": "queued"})
    else:
        click.echo(text)


def _unknown(service: str, id_: str) -> Failure:
    return Failure(f"{service} has no saga {id_}", hint=f"see `mesh sagas list {service}`")


def _summary(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "state": row.shown_state,
        "direction": "back" if row.state in ("compensating", "compensated") else "forward",
        "reason": row.detail or "",
        "createTime": row.create_time.isoformat(),
        "updateTime": row.update_time.isoformat(),
    }


def _step(step: StepRow) -> dict[str, Any]:
    return {
        "step": step.name,
        "state": step.state,
        "tries": step.tries,
        "reason": step.detail or "",
        "startTime": step.start_time.isoformat(),
        "updateTime": step.update_time.isoformat(),
    }


def _line(row: Row) -> tuple[str, ...]:
    return row.id, row.kind, row.shown_state, ago(row.create_time), row.detail or ""
