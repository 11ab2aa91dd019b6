"""The runner's end of sd_notify: a datagram socket an instance, so that senders are told apart by where they send."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

PORT = "X_MESH_PORT"  # of the runtime; its modules would bring all of it


class NotifySocket(asyncio.DatagramProtocol):
    """Takes `READY=1` and `STATUS=...` from one process, as sd_notify(3) defines them, and where it takes calls."""

    def __init__(self, path: Path, on_status: Callable[[str], None]) -> None:
        self.path = path
        self.ready = asyncio.Event()
        self.port: int | None = None  # for calls from the mesh, of a process without a sidecar
        self.heard = 0  # messages so far; a process that speaks is alive
        self._on_status = on_status
        self._transport: asyncio.BaseTransport | None = None

    async def open(self) -> None:
        """Listens, with nothing heard yet."""
        self.close()
        self.ready.clear()
        self.port = None
        self.path.unlink(missing_ok=True)
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=str(self.path), family=socket.AF_UNIX
        )

    def close(self) -> None:
        """Stops listening."""
        if self._transport:
            self._transport.close()
            self._transport = None

    def datagram_received(self, data: bytes, addr: object) -> None:
        """One message: lines of NAME=value."""
        self.heard += 1
        for line in data.decode(errors="replace").splitlines():
            name, _, value = line.partition("=")
            if name == "STATUS":
                self._on_status(value)
            elif name == "READY" and value == "1":
                self.ready.set()
            elif name == PORT and value.isdecimal():
                self.port = int(value)
