"""The runner behind `mesh up --detach`: tells its parent until the mesh is up, and its log always."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path

from mesh.local.errors import LocalError
from mesh.local.events import Event
from mesh.local.runner import up


class Teller:
    """Writes events as JSON lines to standard output (the log), and to the parent's pipe while it listens."""

    def __init__(self, descriptor: int) -> None:
        self._parent: int | None = descriptor

    def __call__(self, event: Event) -> None:
        """Tells of one event; neither a full disk nor a parent that went away stops the mesh."""
        with suppress(OSError):
            print(event.to_json(), flush=True)  # noqa: T201 - the log
        if self._parent is None:
            return
        try:
            os.write(self._parent, event.to_json().encode() + b"\n")
            last = event.kind in ("up", "failed")
        except BrokenPipeError:
            last = True
        if last:
            os.close(self._parent)
            self._parent = None


def main(request: str, descriptor: str) -> int:
    """Runs what `background.detach` asks for until told to stop; returns the exit code."""
    asked, tell = json.loads(request), Teller(int(descriptor))
    services = tuple(asked["services"]) if asked["services"] else None
    try:
        asyncio.run(up(Path(asked["root"]), services=services, values=[*map(Path, asked["values"])], on_event=tell))
    except LocalError as error:
        tell(Event("failed", "mesh", str(error), error.exit_code))
        return error.exit_code
    return 0
