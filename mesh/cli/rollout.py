"""`mesh rollout`: a canary's weight by steps, watched, and taken back by itself when it is bad."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import canary
from mesh.cli.failure import Exit, Failure, refused
from mesh.cli.output import console, print_json, span
from mesh.cli.place import json_option, need_sidecar, paths, state
from mesh.cli.token import Span

if TYPE_CHECKING:
    from mesh.rollout.files import Files
    from mesh.rollout.walk import Walk

APPLY_SECONDS = 10.0
# The median too: it shows a canary that is slower throughout where noise hides that from a high percentile.
DEFAULT_GUARDS = ("error_rate<1%", "p50<1.5x", "p99<1.5x")


@click.command("rollout")
@click.argument("service")
@click.option("--to", type=click.Choice(["canary", "stable"]), help="Which subset shall take all calls.")
@click.option("--steps", default="1,10,50,100", show_default=True, help="The canary's weights, percent.")
@click.option("--interval", type=Span(), default="20s", show_default=True, help="How long to watch each step.")
@click.option(
    "--guard",
    "guards",
    multiple=True,
    default=DEFAULT_GUARDS,
    show_default=True,
    help="What must hold: error_rate<1%, error_rate<+0.5% and p99<1.3x (against stable), p50<200ms. Repeatable.",
)
@click.option("--patience", type=Span(), default="10m", show_default=True, help="How long to wait for enough calls.")
@click.option("--drain", type=Span(), default="30s", show_default=True, help="How long old calls may go on.")
@click.option("--status", "act", flag_value="status", help="Say how far the last rollout is; change nothing.")
@click.option("--abort", "act", flag_value="abort", help="Bring the canary back to 0 %.")
@click.option("--resume", "act", flag_value="resume", help="Go on where a rollout was interrupted.")
@click.option(
    "--write-values",
    "values_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Write the weight that it ends with into this values file, whose layout stays.",
)
@canary.no_check_option
@json_option
def command(
    *,
    service: str,
    to: str | None,
    steps: str,
    interval: timedelta,
    guards: tuple[str, ...],
    patience: timedelta,
    drain: timedelta,
    act: str | None,
    values_file: Path | None,
    no_contract_check: bool,
    as_json: bool,
) -> None:
    """Shift calls to a canary by steps while it is as good as stable; take them back when it is not.

    Envoy's own statistics decide. A killed rollout goes on with --resume, or is undone with --abort. Exit code 1: the
    canary was taken back.
    """
    from mesh.rollout.files import Files
    from mesh.rollout.guards import Guard
    from mesh.rollout.walk import Walk, parse_steps

    if act is None and to is None:
        raise click.UsageError("say --to canary or --to stable, or --status, --abort or --resume")
    try:
        asked = Walk(
            service, parse_steps(steps), tuple(Guard.parse(g).text for g in guards),
            interval.total_seconds(), patience.total_seconds(), drain.total_seconds(),
            values_file=str(values_file.absolute()) if values_file else "",
        )  # fmt: skip
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    files = Files(paths().rollouts, service)
    if act == "status":
        _status(files, service, as_json)
        return
    state()
    with files.locked():
        walk = _begin(files.read(), asked, act, to)
        if walk.phase == "walking":
            need_sidecar(service, "that counts how its calls end")
        if walk.values_file:
            _write_values(Path(walk.values_file), service, None)
        if walk.phase == "walking" and not no_contract_check:
            _check_contract(service)
        done = asyncio.run(_run(files, walk, as_json))
        if done.values_file:
            _write_values(Path(done.values_file), service, done.weight)
    if done.phase == "undone" and act != "abort" and to != "stable":
        raise Failure(f"{service}: the canary is back at 0 %: {done.reason}", Exit.FAILED)


def _begin(found: Walk | None, asked: Walk, act: str | None, to: str | None) -> Walk:
    """The state to start from: a new one, or what was left, with the values file that is named now or was then."""
    open_walk = found if found and not found.over else None
    if open_walk and asked.values_file:
        open_walk = replace(open_walk, values_file=asked.values_file)
    if to == "stable" or act == "abort":
        return (open_walk or asked).undo("asked for")
    if act == "resume" and open_walk is None:
        raise Failure(f"no rollout of {asked.service} is open", Exit.USAGE, "begin one with --to canary")
    if open_walk is None:
        return asked
    same = (open_walk.steps, open_walk.guards) == (asked.steps, asked.guards)
    if act != "resume" and not same:
        hint = "go on with --resume, or take it back with --abort"
        raise Failure(f"another rollout of {asked.service} is open, at {open_walk.weight} %", Exit.REFUSED, hint)
    return open_walk


def _check_contract(service: str) -> None:
    from mesh import values

    topology = values.load(canary.in_force())
    if service not in topology.services:
        raise Failure(f"there is no service {service!r}", Exit.USAGE)
    canary.check(topology, [service])


def _write_values(path: Path, service: str, weight: int | None) -> None:
    """Writes the weight; None only finds out whether it could."""
    from mesh.values import edit, layers

    keys = ("services", service, "canary", "weight")
    try:
        edit.write(path, keys, weight)
    except (edit.EditError, layers.YamlError) as error:
        raise Failure(str(error), Exit.REFUSED) from None


async def _shift(service: str, weight: int) -> list[str]:
    """Lays one weight over the values in force, by the door that `mesh apply` takes."""
    from mesh.cli.apply import apply, record

    files = canary.in_force(f"services.{service}.canary.weight={weight}")
    answer = await apply(files, APPLY_SECONDS)
    if answer.errors:
        raise refused(list(answer.errors))
    record(files, paths().values)
    return list(answer.changes)


async def _run(files: Files, walk: Walk, as_json: bool) -> Walk:
    from mesh.rollout.observe import Observer
    from mesh.rollout.runner import Runner

    runner = Runner(files, Observer(paths(), walk.service), _shift, _print_json if as_json else _print)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, runner.interrupt)
    return await runner.run(walk)


def _status(files: Files, service: str, as_json: bool) -> None:
    walk = files.read()
    if as_json:
        print_json(walk.to_json() if walk else None)
    elif walk is None:
        console().print(f"{service} was never rolled out")
    else:
        why = f": {walk.reason}" if walk.reason else ""
        console().print(f"{service}: {walk.phase}, canary {walk.weight} %{why}", markup=False)


def _print_json(entry: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(entry, ensure_ascii=False))


def _print(entry: dict[str, Any]) -> None:
    event, weight, why = entry["event"], entry.get("weight"), entry.get("why") or ""
    match event:
        case "shift":
            line = f"canary to {weight} %" + (f": {why}" if why else "")
        case "shifted":
            line = "; ".join(entry["changes"]) or f"every proxy has {weight} % already"
        case "draining" | "still running":
            line = f"{event}: {entry['calls']} calls on {entry['subset']}"
        case "promoted":
            line = f"promoted at {weight} %: {why}; commit services.{entry['service']}.canary.weight: {weight}"
        case "undone":
            line = f"back at 0 %: {why}; commit services.{entry['service']}.canary.weight: 0"
        case _:
            line = f"{event} at {weight} % for {span(entry['seconds'])}: {why or 'all guards hold so far'}"
    console().print(f"{entry['time'][11:19]}  {line}", markup=False)
