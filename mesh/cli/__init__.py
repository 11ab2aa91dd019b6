"""The `mesh` command: one file a verb. What a verb needs it imports when it runs, so that `mesh --help` is quick."""

from mesh.cli.app import main

__all__ = ["main"]
