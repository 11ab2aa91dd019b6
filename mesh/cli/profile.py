"""`mesh profile`: what a service's process spends its time on, seen from outside while it works."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import console, print_json, table
from mesh.cli.place import json_option, paths, shown, state

if TYPE_CHECKING:
    from mesh.local.events import InstanceState

FORMATS = {".svg": "flamegraph", ".json": "speedscope", ".txt": "raw"}
LONGEST_SECONDS = 3600
GRACE_SECONDS = 30  # to write what was seen


@click.command("profile")
@click.argument("service")
@click.option("--instance", help="This one and no other, food-1; the first that is up, if not given.")
@click.option("--seconds", type=click.IntRange(1, LONGEST_SECONDS), default=10, show_default=True, help="For so long.")
@click.option("--rate", type=click.IntRange(1, 1000), default=100, show_default=True, help="So many looks a second.")
@click.option("--lines", type=click.IntRange(1), default=20, show_default=True, help="The functions that cost most.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a flame graph (.svg), a profile for speedscope.app (.json), or stacks with their counts (.txt).",
)
@json_option
def command(  # noqa: PLR0917 - click gives them by name
    service: str, instance: str | None, seconds: int, rate: int, lines: int, output: Path | None, as_json: bool
) -> None:
    """Show what a process of SERVICE spends its time on.

    OWN is the share of looks in which a function itself was at work, TOTAL that in which it or what it had called was.
    A process that waits is at no work. It runs on meanwhile, a little slower; before and after that it costs nothing.
    """
    if output and output.suffix not in FORMATS:
        raise Failure(f"{output}: the name must end in {', '.join(FORMATS)}", Exit.USAGE)
    chosen = _instance(service, instance)
    if output:
        _record(chosen, seconds, rate, output)
        _say_where(chosen, output, as_json=as_json)
        return
    with tempfile.TemporaryDirectory() as folder:
        stacks = Path(folder) / "stacks.txt"
        _record(chosen, seconds, rate, stacks)
        _print(chosen, stacks.read_text(encoding="utf-8"), seconds * rate, lines, as_json=as_json)


def _instance(service: str, wanted: str | None) -> InstanceState:
    from mesh.topology import did_you_mean

    instances = state().instances
    if service not in (names := {i.service for i in instances}):
        raise Failure(f"there is no service {service!r}{did_you_mean(service, names)}", Exit.USAGE)
    of = [i for i in instances if i.service == service]
    if wanted and wanted not in (ids := {i.id for i in of}):
        raise Failure(f"{service} has no instance {wanted!r}{did_you_mean(wanted, ids)}", Exit.USAGE)
    for i in of:
        if i.app.pid and (i.id == wanted or (not wanted and i.app.up)):
            return i
    raise Failure(f"no process of {wanted or service} is up", Exit.NOT_RUNNING, "see `mesh status`")


def _record(instance: InstanceState, seconds: int, rate: int, output: Path) -> None:
    """Has py-spy look at it.

    Raises:
        Failure: it may not, or cannot.
    """
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        raise Failure("the Python package py-spy is not installed", Exit.NOT_INSTALLED, "run `make up`")
    how = ("--format", FORMATS[output.suffix], "--output", str(output), "--rate", str(rate), "--duration", str(seconds))
    # A table is of functions; a picture may tell their lines apart.
    grain = ("--function",) if output.suffix == ".txt" else ()
    argv = [str(spy), "record", "--pid", str(instance.app.pid), *how, *grain]
    with _let_look(instance.id):
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Failure(f"py-spy did not come to an end with {instance.id}") from None
    if done.returncode or not output.exists():
        raise _explained(instance, done.stderr)


@contextmanager
def _let_look(instance: str) -> Iterator[None]:
    """Where the kernel lets only its parents look into a process (Yama), the process itself lets this command."""
    from mesh.admin import Admin, AdminError

    asked = Admin(paths().telemetry_socket(instance))

    def let(pid: int) -> None:
        with suppress(AdminError):  # one that is just starting; the kernel may let us all the same
            asyncio.run(asked.post(f"/tracer?pid={pid}"))

    let(os.getpid())
    try:
        yield
    finally:
        let(0)


def _explained(instance: InstanceState, said: str) -> Failure:
    first = said.strip().partition("\n")[0].removeprefix("Error: ") or "it does not say why"
    if "permission denied" in first.lower() or "permitted" in said:
        hint = "run it as the user who ran `mesh up`, or as root; some containers let neither"
        return Failure(f"this user may not look into {instance.id} (pid {instance.app.pid})", hint=hint)
    if "python version" in first:
        hint = "`mesh profile` sees Python alone: use the profiler of the service's own language"
        return Failure(f"{instance.id} (pid {instance.app.pid}) is no Python process", hint=hint)
    if "No stack counts" in said:
        return Failure(f"{instance.id} did nothing meanwhile", hint="send it calls meanwhile, or look longer")
    return Failure(f"py-spy cannot look into {instance.id}: {first}", hint=f"see `mesh logs {instance.id}`")


def _say_where(instance: InstanceState, output: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"instance": instance.id, "output": str(output.resolve())})
    elif output.suffix == ".json":
        click.echo(f"{shown(output.resolve())}: open it at https://www.speedscope.app, which keeps it on your machine")
    else:
        click.echo(shown(output.resolve()))


def _print(instance: InstanceState, stacks: str, looks: int, lines: int, *, as_json: bool) -> None:
    own, total, seen = _counted(stacks)
    found = [
        {"function": function, "own": own[function] / looks, "total": total[function] / looks}
        for function, _ in (own + Counter()).most_common(lines)
    ]
    if as_json:
        print_json({"instance": instance.id, "busy": seen / looks, "functions": found})
        return
    click.echo(f"{instance.id} was at work in {seen / looks:.0%} of {looks} looks")
    rows = ((f"{one['own']:.1%}", f"{one['total']:.1%}", str(one["function"])) for one in found)
    if found:
        console().print(table(("OWN", "TOTAL", "FUNCTION"), rows), markup=False)


def _counted(stacks: str) -> tuple[Counter[str], Counter[str], int]:
    """How often each function was at work itself, and how often it or a callee of it; and how many looks there were."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        if frames:
            functions = frames.split(";")
            own[functions[-1]] += int(count)
            total.update(dict.fromkeys(functions, int(count)))
    return own, total, own.total()
