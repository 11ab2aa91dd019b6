"""`mesh up`: starts the mesh, and says how far it is."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh.cli.output import console, table
from mesh.cli.place import ROOT, json_option, overlays_option, paths, shown

if TYPE_CHECKING:
    from mesh.contract import Contract
    from mesh.local.events import Event, InstanceState, State
    from mesh.topology import Topology

# A process that prepares says more than anybody wants to read: of lines that differ only in their numbers, one in so
# many seconds.
STATUS_SECONDS = 5.0
_NUMBERS = re.compile(r"[\d.,]+")


@click.command("up")
@click.argument("services", nargs=-1)
@click.option("-d", "--detach", is_flag=True, help="Return when all is ready; `mesh down` stops it.")
@overlays_option
@json_option
def command(services: tuple[str, ...], detach: bool, overlays: tuple[Path, ...], as_json: bool) -> None:
    """Start the mesh, or SERVICES and all they need.

    Stays in the foreground; Ctrl-C stops all in order. With --json prints one event a line.
    """
    from mesh import values
    from mesh.local import background

    files = [shown(values.CHART_VALUES), *overlays]
    topology = values.load(values.read(files))
    tell = _printer_of_json() if as_json else Progress(topology, detached=detach)
    start = background.detach
    if not detach:  # only who runs the mesh pays for loading the runner
        from mesh.local import runner

        start = runner.up
    asyncio.run(start(ROOT, services=services or None, values=files, on_event=tell))


class Progress:
    """Tells a person how the start goes, what there is when it is done, and what goes wrong later."""

    def __init__(self, topology: Topology, *, detached: bool) -> None:
        self._topology, self._detached = topology, detached
        self._started = time.monotonic()
        self._last_status: dict[str, tuple[str, float]] = {}
        self._out = console()

    def __call__(self, event: Event) -> None:
        """Prints the event if it says something new."""
        match event.kind:
            case "up":
                self._summary()
            case "trouble":
                self._line(event, f"[yellow]{_escape(event.text)}[/]")
            case "status":
                if self._due(event):
                    self._line(event, f"[dim]{_escape(event.text)}[/]")
            case "ready":
                self._line(event, "[green]ready[/]")
            case _:
                self._line(event, f"{event.kind} {_escape(event.text)}".rstrip())

    def _due(self, event: Event) -> bool:
        words, now = _NUMBERS.sub("", event.text), time.monotonic()
        last_words, last = self._last_status.get(event.subject, ("", 0.0))
        if words == last_words and now - last < STATUS_SECONDS:
            return False
        self._last_status[event.subject] = (words, now)
        return True

    def _line(self, event: Event, text: str) -> None:
        self._out.print(
            f"[dim]{time.monotonic() - self._started:6.1f} s[/]  {event.subject:<16} {text}", soft_wrap=True
        )

    def _summary(self) -> None:
        from mesh.contract import Contract
        from mesh.local.events import read_state

        if (runs := read_state(paths().state)) is None:  # ended in the meantime, and says so itself
            return
        self._out.print()
        self._out.print(table(("SERVICE", "SUBSET", "INSTANCES", "STATE", "CALLS"), rows(runs, self._topology)))
        self._out.print(
            f"\nthe edge is at [bold]{runs.edge}[/]  (ready after {time.monotonic() - self._started:.1f} s)"
        )
        for line in examples(runs, Contract.read()):
            self._out.print(f"  {line}", markup=False, soft_wrap=True)
        self._out.print("`mesh down` stops it" if self._detached else "Ctrl-C stops it", style="dim")


def rows(runs: State, topology: Topology) -> list[tuple[str, ...]]:
    """One row for each subset of each service that runs."""
    groups: dict[tuple[str, str], list[InstanceState]] = {}
    for instance in runs.instances:
        groups.setdefault((instance.service, instance.subset), []).append(instance)
    made: list[tuple[str, ...]] = []
    for (name, subset), members in groups.items():
        ready = sum(member.ready for member in members)
        state = "[green]ready[/]" if ready == len(members) else f"[yellow]{ready} of {len(members)} ready[/]"
        service = topology.services.get(name)
        if service and service.canary.replicas:
            share = f" {service.canary.weight if subset == 'canary' else 100 - service.canary.weight} %"
        else:
            share = ""
        made.append((name, subset + share, str(len(members)), state, ", ".join(service.calls) if service else ""))
    return made


def examples(runs: State, contract: Contract) -> list[str]:
    """Commands that work in this mesh: its health, and a list that anyone may read, if a running service has one."""
    running = {instance.service for instance in runs.instances}
    paths_of_lists = (
        binding.path
        for service, methods in contract.exposed_methods().items()
        for method in methods
        for binding in method.rest
        if service in running and method.access == "public" and method.name.startswith("List")
        if binding.verb == "GET" and "{" not in binding.path
    )
    first = next(paths_of_lists, None)
    return [f"curl '{runs.edge}{first}?pageSize=3'"] * bool(first) + [f"curl {runs.edge}/health"]


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _printer_of_json() -> Callable[[Event], None]:
    return lambda event: click.echo(event.to_json())
