"""Two-phase commit over two real databases: both change or neither does, whoever dies when."""

import asyncio

import pytest
import sqlalchemy as sa

from mesh.runtime import database
from mesh.runtime.coordination import commits, prepared, two_phase
from mesh.runtime.coordination.commits import TwoPhase
from mesh.runtime.tests import two_phase_crashing as crashing
from mesh.runtime.tests.forking import ended

TABLES = (
    "DROP TABLE IF EXISTS effect",
    "CREATE TABLE effect (point text UNIQUE DEFERRABLE INITIALLY DEFERRED)",
    "TRUNCATE runtime_decision",
)


@pytest.fixture(scope="module")
def urls(postgres_server, postgres_runner):
    """The own database's and another's."""
    return [postgres_runner.run(postgres_server.create_database(f"two_phase_{name}")) for name in ("own", "other")]


@pytest.fixture
async def two(urls, monkeypatch):
    """Both databases, with an empty table each."""
    monkeypatch.setattr(commits, "GRACE_SECONDS", 0.0)
    async with database(url=urls[1], pool=3) as other, database(url=urls[0], pool=3) as own:
        for db in (own, other):
            async with db.transaction() as connection:
                for statement in TABLES:
                    await connection.execute(sa.text(statement))
        yield own, other


async def rows(db, query="SELECT point FROM effect ORDER BY point"):
    async with db.connection() as connection:
        return [row[0] for row in await connection.execute(sa.text(query))]


async def left(*both):
    """What is prepared or decided still."""
    found = [await rows(db, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") for db in both]
    return [*found[0], *found[1], *await rows(both[0], "SELECT id FROM runtime_decision WHERE committed")]


async def add(connections, point="x", names=("", "other")):
    for name in names:
        await connections[name].execute(sa.text("INSERT INTO effect VALUES (:point)"), {"point": point})


async def test_both_databases_change(two):
    async with TwoPhase(two[0], {"other": two[1]}).transaction() as connections:
        await add(connections)
    assert [await rows(db) for db in two] == [["x"], ["x"]]
    assert await left(*two) == []


async def test_neither_changes_if_the_work_fails_or_one_of_them_refuses_to_commit(two):
    coordinator = TwoPhase(two[0], {"other": two[1]})
    with pytest.raises(LookupError):
        async with coordinator.transaction() as connections:
            await add(connections)
            raise LookupError
    for which in ("other", ""):  # finds its duplicate at its commit, or when it is prepared
        with pytest.raises(sa.exc.IntegrityError):
            async with coordinator.transaction() as connections:
                await add(connections, which)
                await add(connections, which, [which])
    await coordinator.recover()
    assert [await rows(db) for db in two] == [[], []]
    assert await left(*two) == []
    async with coordinator.transaction() as connections:  # the pool's connections are as they were
        await add(connections)
    assert [await rows(db) for db in two] == [["x"], ["x"]]


async def test_one_that_takes_too_long_finds_that_it_was_given_up(two, monkeypatch):
    coordinator, decide = TwoPhase(two[0], {"other": two[1]}), prepared.decide

    async def late(connection, id_, participants, *, commit):
        if commit:
            await coordinator.recover()
        return await decide(connection, id_, participants, commit=commit)

    monkeypatch.setattr(prepared, "decide", late)
    with pytest.raises(Exception, match="another change came between"):
        async with coordinator.transaction() as connections:
            await add(connections)
    assert [await rows(db) for db in two] == [[], []]
    assert await left(*two) == []


async def test_a_process_killed_at_any_point_changes_both_databases_or_neither(two, urls, forker):
    """Before and after each write: what was decided is done by whoever comes next, all else is undone."""
    for point in crashing.POINTS:
        assert await ended(forker.start(f"{crashing.__name__}:change", *urls, point))
    async with two_phase(two[0], other=two[1]):
        async with asyncio.timeout(20):
            while await left(*two):
                await asyncio.sleep(0.02)
    assert [await rows(db) for db in two] == [sorted(crashing.COMMITTED)] * 2


async def test_what_another_service_prepared_is_left_alone_and_shown(two, caplog, monkeypatch):
    monkeypatch.setattr(commits, "ORPHAN_SECONDS", -1.0)
    async with two[1].connection() as connection:
        await prepared.begin(connection)
        await prepared.prepare(connection, "somebody/else/other")
    await TwoPhase(two[0], {"other": two[1]}).recover()
    assert [record.gid for record in caplog.records if "nobody here ends" in record.message] == ["somebody/else/other"]
    async with two[1].connection() as connection:
        assert [found.gid for found in await prepared.all_of(connection)] == ["somebody/else/other"]
        await prepared.end(connection, "somebody/else/other", commit=False)
