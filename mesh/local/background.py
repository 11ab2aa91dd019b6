"""`mesh up --detach` and `mesh down`: the runner seen from outside. Loads nothing heavy: here is only waiting to do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mesh.local import lock
from mesh.local.environment import MARK, mark, python_environment
from mesh.local.errors import (
    AlreadyRunningError,
    DiskFullError,
    LocalError,
    PortTakenError,
    RefusedError,
    StartError,
    StateError,
)
from mesh.local.events import Event
from mesh.local.lock import Lock
from mesh.local.paths import Paths
from mesh.local.process import end_leftovers, is_alive, rotate, tail

KINDS: tuple[type[LocalError], ...] = (
    AlreadyRunningError,
    DiskFullError,
    PortTakenError,
    RefusedError,
    StartError,
    StateError,
)
DOWN_SECONDS = 60.0
POLL_SECONDS = 0.05

OnEvent = Callable[[Event], None]


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
    environment = python_environment(root, paths)
    del environment[MARK]  # it is the runner, and not one of the processes that the next runner may end
    argv = [sys.executable, "-m", "mesh.local", json.dumps(request), str(write_end)]
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=root,
            env=environment,
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
    holder = lock.read(paths.lock)
    if holder:
        os.kill(holder.pid, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_SECONDS
        while is_alive(holder.pid):
            if time.monotonic() > deadline:
                raise LocalError(f"the runner (pid {holder.pid}) does not end; {paths.logs / 'mesh.log'} may say why")
            await asyncio.sleep(POLL_SECONDS)
    if paths.home.is_dir():
        with Lock(paths.lock):
            clear(paths)
            if wipe:
                paths.wipe()
    return holder is not None


def clear(paths: Paths) -> None:
    """Removes what a killed runner left: processes that its children started, sockets, the snapshot."""
    for name, value in mark(paths).items():
        end_leftovers(f"{name}={value}")
    paths.remove_run()
    paths.state.unlink(missing_ok=True)


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
    kind = next((kind for kind in KINDS if kind.exit_code == event.exit_code), LocalError)
    error = kind(event.text)
    error.exit_code = event.exit_code
    return error
