"""The runner behind `mesh up --detach`: `python -m mesh.local <request as JSON> <descriptor to write events to>`."""

import asyncio
import json
import os
import sys
from pathlib import Path

from mesh.local.errors import LocalError
from mesh.local.events import Event
from mesh.local.runner import up


def main(request: str, descriptor: str) -> int:
    """Runs until told to stop; events go to the parent until the mesh is up, and to the log always."""
    asked = json.loads(request)
    parent: list[int] = [int(descriptor)]

    def tell(event: Event) -> None:
        print(event.to_json(), flush=True)  # noqa: T201 - the log
        if parent:
            try:
                os.write(parent[0], event.to_json().encode() + b"\n")
            except BrokenPipeError:
                parent.clear()
            if event.kind in ("up", "failed"):
                os.close(parent.pop())

    services = tuple(asked["services"]) if asked["services"] else None
    try:
        asyncio.run(up(Path(asked["root"]), services=services, values=[*map(Path, asked["values"])], on_event=tell))
    except LocalError as error:
        tell(Event("failed", "mesh", str(error), error.exit_code))
        return error.exit_code
    return 0


sys.exit(main(*sys.argv[1:]))
