"""The pytest plug-in, there in every environment with this package: real engines, and a real part of the mesh.

    async def test_a_food(mesh_up):
        food = mesh_up("food").stub(FoodServiceStub, user="alice")
        ...

What a fixture needs is loaded when it is used: pytest loads this module in each of its runs.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mesh.local.nats import Nats
    from mesh.local.postgres import Postgres
    from mesh.pytest.kept import Kept
    from mesh.pytest.mesh import Mesh

KEEP_MINUTES = 15.0
LOG_LINES = 40
_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder below it is private
_ROOM_BYTES = 4 << 30
_counter = itertools.count(1)
_KEPT: pytest.StashKey[Kept] = pytest.StashKey()
_LOGS: pytest.StashKey[dict[Path, int]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The hook of pytest."""
    group = parser.getgroup("nourish")
    group.addoption(
        "--mesh-keep",
        metavar="MINUTES",
        type=float,
        default=0.0 if os.environ.get("CI") else KEEP_MINUTES,
        help="how long the mesh of `mesh_up` stays for the next session (default: %(default)s; 0 where CI is set)",
    )
    group.addoption("--mesh-end", action="store_true", help="end the meshes that are kept, and run no test")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """The hook of pytest: `--mesh-end`."""
    if not config.option.mesh_end:
        return None
    from mesh.pytest.kept import end_all

    for home in end_all():
        print(f"ended the mesh of {home}")
    return 0


@pytest.fixture(scope="session")
def mesh_up(pytestconfig: pytest.Config) -> Iterator[Callable[..., Mesh]]:
    """`mesh_up("food", "profile")`: a real mesh with these services and what they call, used again if there is one."""
    from mesh.pytest.kept import Kept

    kept = pytestconfig.stash[_KEPT] = Kept(pytestconfig.option.mesh_keep)
    try:
        yield kept.up
    finally:
        kept.end()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The hook of pytest: notes how far the services' logs are."""
    if (kept := item.config.stash.get(_KEPT, None)) and kept.mesh:
        item.stash[_LOGS] = {path: path.stat().st_size for path in kept.mesh.paths.logs.glob("*.log")}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The hook of pytest: beside a failure stands what the mesh logged meanwhile."""
    report = yield
    kept = item.config.stash.get(_KEPT, None)
    if report.failed and kept and kept.mesh and "mesh_up" in getattr(item, "fixturenames", ()):
        before = item.stash.get(_LOGS, {})
        for path in sorted(kept.mesh.paths.logs.glob("*.log")):
            if new := _since(path, before.get(path, 0)):
                report.sections.append((f"Log of {path.stem} ({path})", new))
    return report


def _since(path: Path, start: int) -> str:
    """The last lines of a log from a place on."""
    with path.open("rb") as log:
        log.seek(start if start <= path.stat().st_size else 0)
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:])


# --- Engines ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_runner() -> Iterator[asyncio.Runner]:
    """The event loop that the session's server belongs to."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def postgres_server(postgres_runner: asyncio.Runner) -> Iterator[Postgres]:
    """One real server for the whole test session, on a Unix socket in a temporary folder."""
    from mesh.local.postgres import Postgres

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
    from mesh.runtime import database

    async def make() -> None:
        async with database(url=await postgres_server.create_database("fresh")):
            pass

    postgres_runner.run(make())
    return "fresh"


@pytest.fixture
def postgres_url(postgres_server: Postgres, postgres_template: str, postgres_runner: asyncio.Runner) -> str:
    """The URL of a fresh database, empty but for what the runtime makes in each."""
    return postgres_runner.run(postgres_server.copy_database(postgres_template, f"test_{next(_counter)}"))


@pytest.fixture
def add_key() -> Callable[[Path], str]:
    """Adds a key to a folder and makes it the one to encrypt with; returns its id."""
    from mesh.local import keys

    return keys.add_key


@pytest.fixture
def keys(tmp_path: Path, add_key: Callable[[Path], str]) -> Path:
    """A folder with a key of the kind that a service gets, for `database(..., keys=keys)`."""
    add_key(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture(scope="session")
def nats_server(postgres_runner: asyncio.Runner) -> Iterator[Nats]:
    """One real NATS server for the whole test session."""
    from mesh.local.nats import Nats

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
    import nats

    async with await nats.connect(url) as connection:
        streams = connection.jetstream()
        for stream in await streams.streams_info():
            await streams.delete_stream(str(stream.config.name))


def _in_memory() -> str | None:
    """A folder in memory if there is room: a score of databases costs 7 s there, and four times that on a busy disk."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    return str(_MEMORY) if roomy else None
