"""How a command asks the runner that is up for a restart: a line of JSON, answered by events, a line each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mesh.local.errors import LocalError
from mesh.local.events import Event


class Restart(Protocol):
    """Restarts a service and tells how far it is; raises LocalError."""

    async def __call__(self, service: str, tell: Callable[[Event], None], *, force: bool) -> None:
        """Returns when all of its instances serve again."""


async def serve(socket: Path, restart: Restart) -> None:
    """Answers on `socket`, which its folder keeps private, until cancelled; a restart outlives whoever asked."""
    async with asyncio.TaskGroup() as group:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group.create_task(_answer(reader, writer, restart))

        server = await asyncio.start_unix_server(connected, socket)
        await asyncio.to_thread(socket.chmod, 0o600)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()


async def ask(socket: Path, service: str, *, force: bool) -> AsyncIterator[Event]:
    """What the runner tells; `up` or `failed` is the last. Without either the runner has ended.

    Raises:
        FileNotFoundError, ConnectionRefusedError: no runner listens there.
    """
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(json.dumps({"service": service, "force": force}).encode() + b"\n")
        async for line in reader:
            yield Event.from_json(line.decode())
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, restart: Restart) -> None:
    def tell(event: Event) -> None:
        if not writer.is_closing():
            writer.write(event.to_json().encode() + b"\n")

    subject = "mesh"
    try:
        asked = json.loads(await reader.readline())
        subject = str(asked["service"])
        await restart(subject, tell, force=asked["force"] is True)
        tell(Event("up", subject))
    except LocalError as error:
        tell(Event("failed", subject, str(error), error.exit_code))
    except Exception as error:  # noqa: BLE001 - a defect must not end the others' restarts, nor the mesh
        tell(Event("failed", subject, f"a defect: {error!r}", 1))
    finally:
        with suppress(OSError):
            await writer.drain()
        writer.close()
