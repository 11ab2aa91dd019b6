"""The `mesh` command: one file a verb. What a verb needs it imports when it runs, so that `mesh --help` is quick."""

from mesh.local.environment import keep_bytecode

keep_bytecode()  # before anything heavy is loaded

from mesh.cli.app import main  # noqa: E402

__all__ = ["main"]
