"""`mesh routes`: who may call what, and how a call is treated. Read from the values and the contracts alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import policies
from mesh.cli.failure import Failure
from mesh.cli.output import console, print_json, span, table
from mesh.cli.place import json_option, paths, read_values, values_options

if TYPE_CHECKING:
    from mesh.contract import Contract, Method
    from mesh.topology import Service, Topology
    from mesh.values import ValuesFile

# What the caller's sidecar tries again, once, by what the contract says of the method.
_RETRIES = {
    "no_side_effects": "if it fails or did not start",
    "idempotent": "if it fails or did not start",
    "unknown": "if it did not start",
}


@click.command("routes")
@click.argument("services", nargs=-1)
@values_options
@json_option
def command(services: tuple[str, ...], overlays: tuple[Path, ...], sets: tuple[str, ...], as_json: bool) -> None:
    """Show who may call which method, and how.

    Of SERVICES, or of all: callers, access, deadline, retries, REST path, weights, and what else the values do to the
    calls. Reads the values in force if a mesh runs here and neither -f nor --set is given; helm/values.yaml with those
    otherwise.
    """
    from mesh import values
    from mesh.contract import Contract
    from mesh.topology import did_you_mean

    topology, contract = values.load(_values(overlays, sets)), Contract.read()
    for name in services:
        if name not in contract.methods:
            raise Failure(f"there is no service {name!r}{did_you_mean(name, contract.methods)}")
    shown = [entry for name in services or contract.methods for entry in service_routes(name, topology, contract)]
    if as_json:
        print_json([entry.to_json() for entry in shown])
    else:
        _print(shown, topology)


@dataclass(frozen=True)
class Entry:
    """One method of a service with all that was derived for it. `callers` are services, and "edge".

    `stanza` is what the values say of the service; None for the edge itself.
    """

    service: str
    method: Method
    callers: tuple[str, ...]
    stanza: Service | None

    @property
    def access(self) -> str:
        """Who may use it, for people."""
        scopes = f" with {' '.join(self.method.scopes)}" if self.method.scopes else ""
        return {"public": "anyone", "user": "user", "service": "services"}[self.method.access] + scopes

    def to_json(self) -> dict[str, Any]:
        """For programs; times in seconds."""
        method = self.method
        return {
            "service": self.service,
            "method": method.name,
            "path": method.path,
            "callers": list(self.callers),
            "access": method.access,
            "scopes": list(method.scopes),
            "deadlineSeconds": method.deadline_seconds,
            "idempotency": method.idempotency,
            "retries": _RETRIES[method.idempotency],
            "rest": [{"verb": binding.verb, "path": binding.path} for binding in method.rest],
            "policies": policies.as_json(self.stanza, method) if self.stanza else None,
        }


def service_routes(name: str, topology: Topology, contract: Contract) -> list[Entry]:
    """The methods of one service, in the order of its contract."""
    callers = topology.callers.get(name, ())
    return [
        Entry(name, method, (*(("edge",) if method.exposed else ()), *callers), topology.services.get(name))
        for method in contract.methods[name]
    ]


def _values(overlays: tuple[Path, ...], sets: tuple[str, ...]) -> list[ValuesFile]:
    from mesh.local.lock import held
    from mesh.values import read

    in_force = paths().values
    if not overlays and not sets and held(paths().lock) and in_force.exists():
        return read([in_force])
    return read_values(overlays, sets)


def _print(shown: list[Entry], topology: Topology) -> None:
    out = console()
    for name in dict.fromkeys(entry.service for entry in shown):
        service = topology.services.get(name)
        out.print(f"[bold cyan]{name}[/]  {_describe(service) if service else 'the edge itself'}")
        rows = [_row(entry) for entry in shown if entry.service == name]
        out.print(table(("  METHOD", "CALLERS", "ACCESS", "DEADLINE", "TRIED AGAIN", "TREATED", "REST"), rows))
        out.print()


def _describe(service: Service) -> str:
    weights = {"stable": 100 - service.canary.weight, "canary": service.canary.weight}
    replicas = {"stable": service.replicas, "canary": service.canary.replicas}
    shares = [f"{subset} {weights[subset]} % (x{replicas[subset]})" for subset in weights if replicas[subset]]
    calls = f"; calls {', '.join(service.calls)}" if service.calls else ""
    return ", ".join(shares) + calls


def _row(entry: Entry) -> tuple[str, ...]:
    method = entry.method
    rest = ", ".join(f"{binding.verb} {binding.path}" for binding in method.rest)
    return (
        f"  {method.name}",
        ", ".join(entry.callers) or "[dim]nobody[/]",
        entry.access,
        span(method.deadline_seconds),
        _RETRIES[method.idempotency],
        (entry.stanza and policies.in_words(entry.stanza, method)) or "[dim]-[/]",
        rest or "[dim]-[/]",
    )
