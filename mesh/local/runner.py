"""`mesh up` and `mesh down`: one runner a HOME, in the foreground or behind a parent that waits until it is ready."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mesh.local import lock
from mesh.local.control import mark
from mesh.local.errors import AlreadyRunningError, DiskFullError, LocalError, PortTakenError, RefusedError, StartError
from mesh.local.events import Event
from mesh.local.lock import Lock
from mesh.local.paths import Paths, edge_port
from mesh.local.process import end_leftovers, explain, rotate, tail
from mesh.local.supervisor import Mesh
from mesh.values import ValuesError, load, read

DOWN_SECONDS = 60.0
POLL_SECONDS = 0.05

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
    port = edge_port(load(files).edge.port)
    paths.prepare_home()
    with Lock(paths.lock) as held:
        check_port(port)
        _clear(paths)
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


async def detach(root: Path, *, services: tuple[str, ...] | None, values: list[Path], on_event: OnEvent) -> None:
    """Runs `up` in the background, passes its events on, and returns when the edge serves.

    Raises:
        LocalError: it did not come up; nothing is left running. The exit code is that of the cause.
    """
    paths = Paths.of(root)
    paths.prepare_home()
    log = paths.logs / "mesh.log"
    rotate(log)
    read_end, write_end = os.pipe()
    request = {"root": str(root), "services": services, "values": [str(v.resolve()) for v in values]}
    argv = [sys.executable, "-m", "mesh.local", json.dumps(request), str(write_end)]
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=root,
            pass_fds=(write_end,),
            start_new_session=True,
        )
    os.close(write_end)
    try:
        await _relay(read_end, on_event, log)
    except BaseException:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise


async def down(home: Path, *, wipe: bool) -> bool:
    """Stops the mesh of `home`, and with `wipe` forgets its state. Returns whether one was running.

    Raises:
        LocalError: it did not end in a minute.
    """
    paths = Paths.at(home)
    running = False
    deadline = time.monotonic() + DOWN_SECONDS
    while holder := lock.read(paths.lock):
        if not running:
            os.kill(holder.pid, signal.SIGTERM)
            running = True
        if time.monotonic() > deadline:
            raise LocalError(f"the runner (pid {holder.pid}) does not end; {paths.logs / 'mesh.log'} may say why")
        await asyncio.sleep(POLL_SECONDS)
    if paths.home.is_dir():
        with Lock(paths.lock):
            _clear(paths)
            if wipe:
                paths.wipe()
    return running


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


def _clear(paths: Paths) -> None:
    """Removes what a killed runner left: processes that its children started, sockets, the snapshot."""
    for name, value in mark(paths).items():
        end_leftovers(f"{name}={value}")
    paths.remove_run()
    paths.state.unlink(missing_ok=True)


def _on_signals() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM. At the second, this process ends and the death signal ends its children."""
    stop = asyncio.Event()

    def handle() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
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


async def _relay(read_end: int, on_event: OnEvent, log: Path) -> None:
    """Passes on the child's events until it is up."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb"))
    try:
        while line := await reader.readline():
            event = Event.from_json(line.decode())
            if event.kind == "failed":
                raise _failure(event)
            on_event(event)
            if event.kind == "up":
                return
    finally:
        transport.close()
    raise StartError(f"the runner ended before the mesh was ready; {log} ends with:\n{tail(log)}")


def _failure(event: Event) -> LocalError:
    kinds: dict[int, type[LocalError]] = {
        kind.exit_code: kind for kind in (AlreadyRunningError, PortTakenError, DiskFullError, RefusedError, StartError)
    }
    error = kinds.get(event.exit_code, LocalError)(event.text)
    error.exit_code = event.exit_code
    return error
