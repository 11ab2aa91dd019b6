"""`mesh apply`: an edit of the values, as one transaction over every proxy."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import canary
from mesh.cli.failure import Exit, Failure, refused
from mesh.cli.output import console, print_json, span
from mesh.cli.place import json_option, paths, read_values, state, values_options
from mesh.cli.token import Span

if TYPE_CHECKING:
    from nourish.mesh.v1 import control_pb2
    from nourish.mesh.v1.control_pb2_grpc import ControlServiceAsyncStub

    from mesh.values import ValuesFile

# What the control plane may need beyond the wait for the proxies: check, compile, and restore if it must.
MARGIN_SECONDS = 20
POLL_SECONDS = 0.05


@click.command("apply")
@values_options
@click.option("--dry-run", is_flag=True, help="Check and say what would change; change nothing.")
@click.option("--timeout", type=Span(), default="10s", show_default=True, help="How long to wait for the proxies.")
@click.option("--wait", is_flag=True, expose_value=False, help="Return when every proxy has it, as it does anyway.")
@click.option("--from", "base", metavar="REVISION", default="", help="Refuse it if another revision is in force.")
@canary.no_check_option
@json_option
def command(
    *,
    overlays: tuple[Path, ...],
    sets: tuple[str, ...],
    dry_run: bool,
    timeout: timedelta,
    base: str,
    no_contract_check: bool,
    as_json: bool,
) -> None:
    """Bring edited values into force in every proxy.

    That is helm/values.yaml, with what is laid over it.

    Returns when every proxy has it. An edit that is wrong, or that a proxy refuses, changes nothing: exit code 5.
    """
    state()
    files = read_values(overlays, sets)
    if not no_contract_check:
        canary.check_first_calls(files)
    answer = asyncio.run(apply(files, timeout.total_seconds(), dry_run=dry_run, base_revision=base))
    if answer.applied:
        record(files, paths().values)
    if as_json:
        _print_json(answer)
    elif not answer.errors:
        _print(answer, dry_run)
    if answer.errors:
        if as_json:
            raise click.exceptions.Exit(Exit.REFUSED)
        raise refused(list(answer.errors))


def record(files: list[ValuesFile], path: Path) -> None:
    """Writes the effective values to `path`, in one step: a restart of the control plane is told these again."""
    from mesh import values

    draft = path.with_suffix(".new")
    header = "# The values in force, written by `mesh apply`, which overwrites it: edit helm/values.yaml.\n"
    draft.write_text(header + values.dump(values.merge(files)))
    draft.replace(path)


async def apply(files: list[ValuesFile], seconds: float, **options: Any) -> control_pb2.ApplyValuesResponse:
    """Sends an edit to the control plane and returns what became of it; `options` are fields of the request."""
    from nourish.mesh.v1 import control_pb2

    from mesh.cli.control import control_plane

    request = control_pb2.ApplyValuesRequest(**options)
    request.timeout.FromTimedelta(timedelta(seconds=seconds))
    for file in files:
        request.files.add(path=file.path, content=file.text)
    async with control_plane(paths()) as stub:
        in_force = await _told_by_the_runner(stub, seconds)
        request.base_revision = request.base_revision or in_force
        return await stub.ApplyValues(request, timeout=seconds + MARGIN_SECONDS)


async def _told_by_the_runner(stub: ControlServiceAsyncStub, seconds: float) -> str:
    """The revision in force, once the runner has given it to a control plane that just started.

    An edit that comes before them would be overwritten by them.
    """
    from nourish.mesh.v1 import control_pb2

    deadline = time.monotonic() + seconds
    while not (revision := (await stub.GetMesh(control_pb2.GetMeshRequest(), timeout=seconds)).revision):
        if time.monotonic() > deadline:
            hint = "the runner has not told it the values in force: `mesh logs mesh`"
            raise Failure("the control plane has just started and has no values yet", Exit.NOT_RUNNING, hint)
        await asyncio.sleep(POLL_SECONDS)
    return revision


def _print_json(answer: control_pb2.ApplyValuesResponse) -> None:
    from google.protobuf.json_format import MessageToDict

    content: dict[str, Any] = MessageToDict(answer, always_print_fields_with_no_presence=True)
    print_json(content)


def _print(answer: control_pb2.ApplyValuesResponse, dry_run: bool) -> None:
    out = console()
    for change in answer.changes:
        out.print(f"  {change}", markup=False)
    if not answer.changes:
        out.print("nothing changes: these values are in force already")
    elif dry_run:
        out.print(f"checked only: nothing was changed. To apply this and no other: --from {answer.revision}")
    elif not answer.HasField("converged_in"):
        out.print(f"sent as {answer.revision} to {len(answer.proxies)} proxies: `mesh status` says who has it")
    else:
        count = len(answer.proxies)
        took = span(answer.converged_in.ToTimedelta().total_seconds())
        proxies = "no proxy had to change" if not count else f"all {count} proxies have it after {took}"
        out.print(f"[green]applied[/] as {answer.revision[:12]}: {proxies}")
