"""For tests of services: a real server on a real channel in this process, and a real PostgreSQL. Fakes, not mocks.

A pytest plug-in: `pytest_plugins = ["mesh.runtime.testing"]` gives the fixtures `postgres_url`, `keys`
and `events_url`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.message import Message

from mesh.runtime import auth, errors, settings
from mesh.runtime.answers import digest, key_of
from mesh.runtime.client import passing_on
from mesh.runtime.db import current as current_database
from mesh.runtime.db import database
from mesh.runtime.handlers import MethodInfo
from mesh.runtime.server import build_server

if TYPE_CHECKING:
    from mesh.local.nats import Nats
    from mesh.local.postgres import Postgres

_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder below it is private
_ROOM_BYTES = 4 << 30
_counter = itertools.count(1)


@asynccontextmanager
async def serve_in_memory(*servicers: object) -> AsyncIterator[grpc.aio.Channel]:
    """Serves with all of the middleware on a private socket; gives the channel to make stubs on.

    Answers to request_ids are kept in the open database, or in memory if a test has none.
    """
    answers = None if current_database() else MemoryAnswers()
    with tempfile.TemporaryDirectory(prefix="nourish-") as folder:
        built = build_server(*servicers, answers=answers)
        built.grpc.add_insecure_port(f"unix:{folder}/app.sock")
        await built.grpc.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/app.sock") as channel:
            try:
                yield passing_on(channel)
            finally:
                await built.grpc.stop(None)


class MemoryAnswers:
    """Keeps what each request_id was answered, for tests of services whose store is a fake."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], tuple[bytes, Message]] = {}
        self._turns: defaultdict[tuple[str, ...], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def once(self, method: MethodInfo, request: Any, make: Callable[[], Awaitable[Message]]) -> Message:
        """As `answers.Answers` says."""
        key, body = tuple(key_of(method, request).values()), digest(request)
        async with self._turns[key]:
            if key not in self._kept:
                self._kept[key] = body, await make()
        earlier, answer = self._kept[key]
        if earlier != body:
            raise errors.request_id_reused()
        return answer


def as_user(user: str, *scopes: str, caller: str = "edge") -> tuple[tuple[str, str], ...]:
    """The metadata that a sidecar would set after verifying the token of `user`."""
    certificate = f"URI=spiffe://nourish.local/ns/nourish/sa/{caller}"
    return (
        (auth.USER_HEADER, user),
        (auth.SCOPES_HEADER, " ".join(scopes)),
        (auth.CERTIFICATE_HEADER, certificate),
    )


@contextmanager
def with_settings(given: Mapping[str, settings.Scalar]) -> Iterator[None]:
    """As if the values said so, `{"search.minScore": 0.5}`, and nothing else."""
    before = settings.process.given
    settings.process.take(given)
    try:
        yield
    finally:
        settings.process.take(before)


@pytest.fixture(scope="session")
def postgres_runner() -> Iterator[asyncio.Runner]:
    """The event loop that the session's server belongs to."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def postgres_server(postgres_runner: asyncio.Runner) -> Iterator[Postgres]:
    """One real server for the whole test session, on a Unix socket in a temporary folder."""
    from mesh.local.postgres import Postgres  # noqa: PLC0415 - only tests need the runner

    with tempfile.TemporaryDirectory(prefix="nourish-pg-", dir=_in_memory()) as folder:
        home, sockets = Path(folder) / "postgres", Path(folder) / "run"
        sockets.mkdir()
        server = Postgres(home, sockets)
        postgres_runner.run(server.start())
        try:
            yield server
        finally:
            if server.pid:  # nothing is kept: no checkpoint
                os.kill(server.pid, signal.SIGQUIT)
            postgres_runner.run(server.stop())


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Postgres, postgres_runner: asyncio.Runner) -> str:
    """The name of a database with the runtime's own tables: to copy it costs less than to migrate one for each test."""

    async def make() -> None:
        async with database(url=await postgres_server.create_database("fresh")):
            pass

    postgres_runner.run(make())
    return "fresh"


@pytest.fixture
def postgres_url(postgres_server: Postgres, postgres_template: str, postgres_runner: asyncio.Runner) -> str:
    """The URL of a fresh database, empty but for what the runtime makes in each."""
    return postgres_runner.run(postgres_server.copy_database(postgres_template, f"test_{next(_counter)}"))


def add_key(folder: Path) -> str:
    """Adds a key to a folder and makes it the one to encrypt with; returns its id."""
    from mesh.local import keys  # noqa: PLC0415 - only tests need the runner

    return keys.add_key(folder)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a key of the kind that a service gets, for `database(..., keys=keys)`."""
    add_key(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture(scope="session")
def nats_server(postgres_runner: asyncio.Runner) -> Iterator[Nats]:
    """One real NATS server for the whole test session."""
    from mesh.local.nats import Nats  # noqa: PLC0415 - only tests need the runner

    with tempfile.TemporaryDirectory(prefix="nourish-nats-", dir=_in_memory()) as folder:
        server = Nats(Path(folder), {})
        postgres_runner.run(server.start())
        try:
            yield server
        finally:
            postgres_runner.run(server.stop())


@pytest.fixture
def events_url(nats_server: Nats, postgres_runner: asyncio.Runner) -> str:
    """The address of a NATS server without streams."""
    postgres_runner.run(_without_streams(nats_server.url))
    return nats_server.url


async def _without_streams(url: str) -> None:
    import nats  # noqa: PLC0415 - only for tests of events

    async with await nats.connect(url) as connection:
        streams = connection.jetstream()
        for stream in await streams.streams_info():
            await streams.delete_stream(str(stream.config.name))


def _in_memory() -> str | None:
    """A folder in memory if there is room: a score of databases costs 7 s there, and four times that on a busy disk."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    return str(_MEMORY) if roomy else None
