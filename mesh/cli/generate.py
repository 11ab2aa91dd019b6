"""`mesh gen`: contracts to code. The work is done in gen.py."""

from __future__ import annotations

import click

from mesh.cli.failure import Failure
from mesh.cli.output import print_json
from mesh.cli.place import ROOT, json_option


@click.command("gen")
@click.option(
    "--check", "only_check", is_flag=True, help="Write nothing; fail if gen/ is not what protos/ gives today."
)
@json_option
def command(only_check: bool, as_json: bool) -> None:
    """Generate code from the contracts.

    Writes gen/ from protos/: Python, Go, TypeScript and the descriptor set."""
    from mesh.cli.gen import GenerationError, check, generate

    try:
        if not only_check:
            generate(ROOT / "gen")
        stale = check() if only_check else []
    except GenerationError as error:
        raise Failure(str(error), hint="`make gen` installs what generating needs") from error
    if as_json:
        print_json({"fresh": not stale, "stale": stale})
    if stale:
        listed = "".join(f"\n  gen/{path}" for path in stale)
        raise Failure(f"gen/ is not what protos/ gives:{listed}", hint="run `make gen` and commit the result")
    if not as_json:
        click.echo("gen/ is what protos/ gives" if only_check else "wrote gen/")
