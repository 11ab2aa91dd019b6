"""How the command fails: a sentence and what to do next on stderr, and an exit code that programs can tell apart."""

from __future__ import annotations

from enum import IntEnum
from typing import IO, Any

import click


class Exit(IntEnum):
    """The exit codes, the same for every verb."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    ALREADY_RUNNING = 4
    REFUSED = 5
    PORT_TAKEN = 6
    DISK_FULL = 7
    NOT_INSTALLED = 8
    STATE = 9
    NOT_READY = 10
    DIFFERS = 11


MEANINGS = {
    Exit.OK: "done",
    Exit.FAILED: "failed; stderr says why",
    Exit.USAGE: "the command line is wrong",
    Exit.NOT_RUNNING: "the mesh, or the part asked for, is not running",
    Exit.ALREADY_RUNNING: "the mesh is running already; nothing was harmed",
    Exit.REFUSED: "the values, the contracts or an edit are refused; what was in force still is",
    Exit.PORT_TAKEN: "another program listens on the edge's port",
    Exit.DISK_FULL: "there is no room for the mesh's state",
    Exit.NOT_INSTALLED: "a package is missing",
    Exit.STATE: "the mesh's state on disk cannot be used",
    Exit.NOT_READY: "a process did not become ready",
    Exit.DIFFERS: "a replay was answered otherwise than before",
}


class Failure(click.ClickException):
    """Ends the command with `code`; `hint` says what to do next."""

    def __init__(self, message: str, code: Exit = Exit.FAILED, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.hint = code, hint

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """The code, as click wants it."""
        return int(self.code)

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints to stderr."""
        click.secho(f"mesh: {self.message}", file=file, err=file is None, fg="red")
        if self.hint:
            click.echo(f"      {self.hint}", file=file, err=file is None)


def not_running(home: object) -> Failure:
    """No mesh runs in this HOME."""
    return Failure(f"no mesh is running in {home}", Exit.NOT_RUNNING, "start one with `mesh up`; MESH_HOME says where")


def refused(problems: list[str]) -> Failure:
    """Values or contracts have problems: one a line."""
    return Failure("refused:\n" + "\n".join(f"  {problem}" for problem in problems), Exit.REFUSED)
