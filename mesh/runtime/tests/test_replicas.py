"""Reads from a real streaming replica of the embedded PostgreSQL."""

import asyncio
import itertools
import os
import signal
import subprocess
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from mesh.local.postgres import Postgres, binaries
from mesh.runtime.db import acting_for, database

STREAMING = {"wal_level": "replica", "max_wal_senders": "4"}
IS_REPLICA = sa.text("SELECT pg_is_in_recovery()")
COUNT = sa.text("SELECT count(*) FROM thing")
ADD = sa.text("INSERT INTO thing VALUES (1)")
counter = itertools.count()


@pytest.fixture(scope="module")
def servers(postgres_runner):
    """A primary, and a copy of it that follows."""
    with tempfile.TemporaryDirectory(prefix="nourish-replica-") as folder:
        root = Path(folder)
        primary, replica = (
            Postgres(root / name, root / f"{name[0]}run", settings=STREAMING) for name in ("one", "two")
        )
        postgres_runner.run(primary.start())
        try:
            copy(root / "orun", root / "two/postgres/data")
            postgres_runner.run(replica.start())
            yield primary, replica
        finally:
            for server in (replica, primary):
                if server.pid:
                    with suppress(ProcessLookupError):  # that a test has killed
                        os.kill(server.pid, signal.SIGQUIT)
                postgres_runner.run(server.stop())


def copy(source, data):
    data.parent.mkdir(parents=True)
    argv = [binaries() / "pg_basebackup", "-h", source, "-U", "postgres", "-D", data, "-c", "fast", "-R", "--no-sync"]
    subprocess.run(argv, check=True)
    if os.geteuid() == 0:
        owner = source.stat()
        for path in (data, *data.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


@pytest.fixture
def url(servers, postgres_runner):
    """Of a new database, that the replica has too once it has followed."""
    return postgres_runner.run(servers[0].create_database(f"db{next(counter)}"))


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("mesh.runtime.db.replicas.ASKED_SECONDS", 0.05)


@asynccontextmanager
async def opened(servers, url, max_lag=60.0):
    """The database with its replica, which takes reads already; a table with one row."""
    copy_url = servers[1].url(url.rpartition("/")[0].split("//")[1].split("@")[0])
    async with database(url=url, pool=3, replicas=[copy_url], max_lag=max_lag) as db:
        async with db.engine.begin() as connection:  # not as a user does it: nobody has to read it from the primary
            await connection.execute(sa.text("CREATE TABLE thing (n int)"))
            await connection.execute(ADD)
        await until(lambda: ask(db, COUNT, replica=True))
        yield db


async def ask(db, statement, *, replica):
    """What `read` answers, if the replica (or the primary) is asked; else None."""
    async with db.read() as connection:
        if (await connection.execute(IS_REPLICA)).scalar_one() is not replica:
            return None
        try:
            return (await connection.execute(statement)).scalar_one()
        except sa.exc.ProgrammingError:  # it has not followed so far
            return None


async def until(check):
    async with asyncio.timeout(20):
        while (found := await check()) is None:
            await asyncio.sleep(0.02)
    return found


async def test_a_read_goes_to_the_replica_and_everything_else_to_the_primary(servers, url):
    async with opened(servers, url) as db:
        assert await ask(db, COUNT, replica=True) == 1
        for way in (db.transaction, db.connection):
            async with way() as connection:
                assert (await connection.execute(IS_REPLICA)).scalar_one() is False
        async with db.read() as connection:
            with pytest.raises(sa.exc.DBAPIError, match="read-only"):
                await connection.execute(ADD)


async def test_whoever_changed_something_reads_it_at_once_and_others_go_on_at_the_replica(servers, url):
    async with opened(servers, url) as db:
        async with acting_for("alice"):
            async with db.transaction() as connection:
                await connection.execute(ADD)
            assert await ask(db, COUNT, replica=False) == 2
        async with acting_for("bob"):
            assert await ask(db, COUNT, replica=True) in (1, 2)
        async with acting_for("carol"), db.unit_of_work() as unit:
            await unit.connection.execute(ADD)
            assert await ask(db, COUNT, replica=False) == 3


async def test_a_replica_that_lags_is_left_alone_until_it_has_caught_up(servers, url):
    async with opened(servers, url, max_lag=0.5) as db:
        await pause(servers[1], "pg_wal_replay_pause()")
        try:
            async with db.engine.begin() as connection:
                await connection.execute(ADD)
            assert await until(lambda: ask(db, COUNT, replica=False)) == 2
        finally:
            await pause(servers[1], "pg_wal_replay_resume()")
        assert await until(lambda: ask(db, COUNT, replica=True)) == 2


async def pause(server, function):
    connection = await server._connect()
    await connection.execute(f"SELECT {function}")
    await connection.close()


async def test_while_nothing_is_written_a_replica_is_fresh(servers, url):
    """Its last transaction gets older and older, and it is no further behind."""
    async with opened(servers, url) as db:
        (replica,) = db.replicas.all
        before = replica.since

        async def later():
            return replica.since > before + 0.3 or None

        assert await until(later)


async def test_a_replica_that_hangs_is_left_alone_until_it_answers(servers, url, monkeypatch):
    monkeypatch.setattr("mesh.runtime.db.replicas.ANSWER_SECONDS", 0.3)
    async with opened(servers, url) as db:
        hanging = processes(servers[1].pid)
        for pid in hanging:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert await until(lambda: at_the_primary(db)) == 1
            assert await ask(db, COUNT, replica=False) == 1
        finally:
            for pid in hanging:
                os.kill(pid, signal.SIGCONT)
        assert await until(lambda: ask(db, COUNT, replica=True)) == 1


async def test_a_replica_that_dies_costs_no_read_but_those_that_it_was_at(servers, url):
    """The last test: nobody starts it again."""
    async with opened(servers, url) as db:
        os.kill(servers[1].pid, signal.SIGQUIT)
        assert await until(lambda: at_the_primary(db)) == 1
        assert await ask(db, COUNT, replica=False) == 1


def processes(postmaster):
    found = subprocess.run(["pgrep", "-P", str(postmaster)], capture_output=True, text=True, check=True)
    return [postmaster, *map(int, found.stdout.split())]


async def at_the_primary(db):
    try:
        async with asyncio.timeout(0.5):
            return await ask(db, COUNT, replica=False)
    except (ConnectionError, TimeoutError):
        return None
