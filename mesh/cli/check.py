"""`mesh check`: are the values and the contracts sound? Needs no running mesh."""

from __future__ import annotations

from pathlib import Path

import click

from mesh.cli.failure import Exit, refused
from mesh.cli.output import print_json
from mesh.cli.place import json_option, read_values, values_options


@click.command("check")
@values_options
@json_option
def command(overlays: tuple[Path, ...], sets: tuple[str, ...], as_json: bool) -> None:
    """Check the values and the contracts.

    Says which file and line is wrong and what to do about it; changes nothing.
    """
    problems, summary = find_problems(overlays, sets)
    if as_json:
        print_json({"ok": not problems, "problems": problems})
        raise click.exceptions.Exit(Exit.REFUSED if problems else Exit.OK)
    if problems:
        raise refused(problems)
    click.echo(summary)


def find_problems(overlays: tuple[Path, ...], sets: tuple[str, ...]) -> tuple[list[str], str]:
    """Every problem, a sentence each; and one line on what there is."""
    from mesh import values
    from mesh.contract import Contract, ContractError

    problems: list[str] = []
    topology = contract = None
    try:
        topology = values.load(read_values(overlays, sets))
    except values.ValuesError as error:
        problems += error.problems
    try:
        contract = Contract.read()
    except ContractError as error:
        problems += error.problems
    if topology is None or contract is None:
        return problems, ""
    problems += values.check(topology, contract)
    methods = sum(len(of_service) for of_service in contract.methods.values())
    exposed = sum(len(of_service) for of_service in contract.exposed_methods().values())
    return problems, f"ok: {len(topology.services)} services, {methods} methods, {exposed} of them offered at the edge"
