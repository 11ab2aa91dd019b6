"""`mesh up` in the foreground: one runner a HOME, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from mesh.local import envoy, nats, postgres
from mesh.local.background import clear
from mesh.local.errors import PortTakenError, RefusedError
from mesh.local.events import Event
from mesh.local.lock import Lock
from mesh.local.paths import Paths, edge_port
from mesh.local.process import explain
from mesh.local.supervisor import Mesh
from mesh.values import ValuesError, load, read

OnEvent = Callable[[Event], None]


async def up(root: Path, *, services: tuple[str, ...] | None, values: list[Path], on_event: OnEvent) -> None:
    """Runs the mesh of the work tree `root` until SIGINT or SIGTERM; a second signal ends it at once.

    Args:
        services: these and all they call; None for all.
        values: values files in the order Helm would overlay them, `helm/values.yaml` first.
        on_event: told of each step; `up` when the edge serves.

    Raises:
        AlreadyRunningError, PortTakenError, DiskFullError, MissingWheelError, StateError, StartError, RefusedError:
            as their names say, before anything is started where that can be known; nothing is left running.
    """
    try:
        await _up(root, services, values, on_event)
    except ValuesError as error:
        raise RefusedError(str(error)) from None
    except OSError as error:
        raise explain(error) from None


async def _up(root: Path, services: tuple[str, ...] | None, values: list[Path], on_event: OnEvent) -> None:
    paths, files = Paths.of(root), read(values)
    envoy.binary()
    postgres.binaries()
    nats.binary()
    port = edge_port(load(files).edge.port)
    paths.prepare_home()
    with Lock(paths.lock) as held:
        check_port(port)
        clear(paths)
        paths.prepare_run()
        stop = _on_signals()
        mesh = Mesh(root, paths, files, port=port, only=services, on_event=on_event)
        try:
            held.describe(mesh.edge)
            if await _until(mesh.start(), stop):
                on_event(Event("up", "mesh", mesh.edge))
                await stop.wait()
        finally:
            await mesh.stop()
            paths.state.unlink(missing_ok=True)
            paths.remove_run()
        on_event(Event("stopped", "mesh"))


def check_port(port: int) -> None:
    """Finds out whether the edge may listen on 127.0.0.1:`port`.

    Raises:
        PortTakenError: it may not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is taken by another process" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
            raise PortTakenError(f"port {port} {why}: free it, or choose another with MESH_PORT=<port>") from None


def _on_signals() -> asyncio.Event:
    """Set by the first SIGINT, SIGTERM or SIGHUP. The second ends this process, and so its children."""
    stop = asyncio.Event()

    def handle() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, handle)
    return stop


async def _until(work: object, stop: asyncio.Event) -> bool:
    """Does `work` unless `stop` is set first; returns whether it was done."""
    doing, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())  # type: ignore[call-overload]
    try:
        await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
        return bool(doing.done())
    finally:
        doing.cancel()
        stopping.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)
