"""The group of all verbs, and the one place where exceptions become messages and exit codes."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli.failure import MEANINGS, Exit, Failure, refused


class Mesh(click.Group):
    """Turns what the mesh's parts raise into a `Failure`. Their modules are loaded only if something was raised."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the verb."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if failure := _explained(error):
                raise failure from error
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of a day's work."""
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), meaning) for code, meaning in MEANINGS.items()])


@click.group(cls=Mesh, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Runs and operates the Nourish mesh: services, their proxies, and the edge.

    State lives in .mesh/, or where MESH_HOME says; the edge listens on its port in the values, or on MESH_PORT. Every
    verb prints for people, or with --json for programs.
    """


def _explained(error: Exception) -> Failure | None:
    """What a person should read; None for a defect of ours, which keeps its traceback."""
    from mesh.contract import ContractError
    from mesh.local.errors import LocalError
    from mesh.values import ValuesError

    match error:
        case ValuesError() | ContractError():
            return refused(error.problems)
        case LocalError():
            return Failure(str(error), Exit(error.exit_code))
        case BrokenPipeError():
            return None
        case OSError():
            return Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return _of_call(error)


def _of_call(error: Exception) -> Failure | None:
    from grpc.aio import AioRpcError

    if isinstance(error, AioRpcError):  # only the control plane is called without handling its answer
        return Failure(
            f"the control plane answers {error.code().name}: {error.details()}", hint="see `mesh logs control`"
        )
    return None


def _add_verbs() -> None:
    from mesh.cli import (
        apply,
        call,
        certificates,
        check,
        config,
        down,
        events,
        flags,
        generate,
        jobs,
        keys,
        logs,
        metrics,
        profile,
        record,
        replay,
        restart,
        rollout,
        routes,
        sagas,
        settings,
        status,
        token,
        up,
    )

    for verb in (
        up,
        down,
        status,
        check,
        apply,
        rollout,
        restart,
        routes,
        config,
        settings,
        flags,
        certificates,
        call,
        record,
        replay,
        token,
        events,
        jobs,
        keys,
        sagas,
        logs,
        metrics,
        profile,
        generate,
    ):
        main.add_command(verb.command)


_add_verbs()
