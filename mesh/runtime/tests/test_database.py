"""A service's database, on a real PostgreSQL."""

import asyncio

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.runtime import auth, pages
from mesh.runtime.db import Database, Rows, acting_for, database
from mesh.runtime.db.lost import told_as_lost

MIGRATION = """
import time
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {down}

def upgrade():
    op.execute("{sql}")
    time.sleep(0.2)  # long enough for a second instance to come in between, if it could
"""


@pytest.fixture
def migrations(tmp_path):
    """A migrations folder with one revision."""
    (tmp_path / "versions").mkdir()
    write(tmp_path, "0001", None, "CREATE TABLE food (id int)")
    return tmp_path


def write(folder, revision, down, sql):
    text = MIGRATION.format(revision=revision, down=repr(down), sql=sql)
    (folder / "versions" / f"{revision}.py").write_text(text)


async def test_two_instances_that_start_at_once_migrate_once(migrations, postgres_url):
    async def start():
        async with database(migrations, url=postgres_url, pool=2) as db, db.connection() as connection:
            return (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalars().all()

    assert await asyncio.gather(start(), start(), start()) == [["0001"]] * 3


async def test_a_later_migration_is_applied_on_the_next_start(migrations, postgres_url):
    async with database(migrations, url=postgres_url) as db, db.transaction() as connection:
        await connection.execute(sa.text("INSERT INTO food VALUES (1)"))
    write(migrations, "0002", "0001", "ALTER TABLE food ADD COLUMN name text")
    async with database(migrations, url=postgres_url) as db, db.connection() as connection:
        assert (await connection.execute(sa.text("SELECT id, name FROM food"))).all() == [(1, None)]


async def test_a_start_with_nothing_to_migrate_does_not_ask_alembic(migrations, postgres_url, monkeypatch):
    """To load it is a fifth of a second and a tenth of the memory of a process."""
    async with database(migrations, url=postgres_url):
        pass
    asked = []
    monkeypatch.setattr("alembic.command.upgrade", lambda config, target: asked.append(target))
    async with database(migrations, url=postgres_url):
        assert asked == []
    write(migrations, "0002", "0001", "SELECT 1")
    async with database(migrations, url=postgres_url):
        assert asked == ["head"]


async def test_two_migrations_that_both_follow_one_are_refused(migrations, postgres_url):
    """As two branches that were merged would leave them: which is to be first is for people to say."""
    for revision in ("0002", "0003"):
        write(migrations, revision, "0001", "SELECT 1")
    with pytest.raises(Exception, match=r"(?i)multiple head"):
        async with database(migrations, url=postgres_url):
            pass


async def test_a_transaction_that_fails_leaves_nothing(migrations, postgres_url):
    async with database(migrations, url=postgres_url) as db:
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as connection:
                await connection.execute(sa.text("INSERT INTO food VALUES (1)"))
                raise ZeroDivisionError
        async with db.connection() as connection:
            assert (await connection.execute(sa.text("SELECT count(*) FROM food"))).scalar_one() == 0


async def test_every_instance_accepts_the_page_tokens_of_the_others(migrations, postgres_url):
    async with database(migrations, url=postgres_url):
        token = pages.sign({"after": 1}, scope=b"list")
    pages.configure(b"something else")
    async with database(migrations, url=postgres_url):
        assert pages.verify(token, scope=b"list") == {"after": 1}


async def test_a_cancelled_call_cancels_its_statement(migrations, postgres_url):
    async with database(migrations, url=postgres_url, pool=2) as db:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), db.connection() as connection:
                await connection.execute(sa.text("SELECT pg_sleep(60)"))
        async with asyncio.timeout(5), db.connection() as connection:
            query = sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
                " AND query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()"
            )
            while (await connection.execute(query)).scalar_one():
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("way", ["transaction", "connection", "raw"])
async def test_a_lost_server_is_a_connection_error_and_the_next_call_connects_anew(migrations, postgres_url, way):
    async with database(migrations, url=postgres_url, pool=1) as db:
        with pytest.raises(ConnectionError):
            async with getattr(db, way)() as connection:
                await execute(connection, "SELECT pg_terminate_backend(pg_backend_pid())")
        async with getattr(db, way)() as connection:
            await execute(connection, "SELECT 1")


@pytest.mark.parametrize("way", ["transaction", "connection", "raw"])
async def test_a_defect_in_a_statement_is_not_taken_for_a_lost_server(migrations, postgres_url, way):
    async with database(migrations, url=postgres_url, pool=1) as db:
        with pytest.raises(Exception, match="nonsense") as caught:
            async with getattr(db, way)() as connection:
                await execute(connection, "SELECT nonsense")
        assert not isinstance(caught.value, ConnectionError)


PROTECTED = """
import sqlalchemy as sa
from alembic import op
from mesh.runtime.db import migrating

revision = "0002"
down_revision = "0001"

def upgrade():
    op.execute("CREATE TABLE note (text text, owner text)")
    op.execute("INSERT INTO note VALUES ('old', 'alice')")
    migrating.protect("note")
    op.execute("UPDATE note SET text = 'new'")  # a migration changes everyone's
"""


@pytest.fixture
def protected(migrations):
    (migrations / "versions" / "0002.py").write_text(PROTECTED)
    return migrations


async def test_a_protected_row_is_its_owners_in_every_block_and_in_a_part_of_a_unit_of_work(protected, postgres_url):
    async def seen(block):
        async with block as connection:
            if isinstance(connection, asyncpg.Connection):
                return [row["text"] for row in await connection.fetch("SELECT text FROM note")]
            return (await connection.execute(sa.text("SELECT text FROM note"))).scalars().all()

    async with database(protected, url=postgres_url, pool=1) as db:
        ways = (db.transaction, db.connection, db.read, db.raw)
        for user, texts in (("alice", ["new"]), ("bob", []), ("alice", ["new"]), ("bob' OR true --", [])):
            with auth.acting_for(user):
                assert [await seen(way()) for way in ways] == [texts] * 4
                async with db.unit_of_work():
                    assert [await seen(way()) for way in ways] == [texts] * 4
        assert [await seen(way()) for way in ways] == [[]] * 4
        with auth.acting_for("bob"):
            async with db.unit_of_work():
                async with acting_for("alice"):
                    assert await seen(db.transaction()) == ["new"]
                with pytest.raises(ZeroDivisionError):
                    async with db.connection(Rows.EVERYONES) as connection:
                        assert (await connection.execute(sa.text("SELECT text FROM note"))).scalars().all() == ["new"]
                        raise ZeroDivisionError
                assert await seen(db.transaction()) == []
            async with db.transaction() as connection:
                async with acting_for("alice", connection):
                    assert (await connection.execute(sa.text("SELECT text FROM note"))).scalars().all() == ["new"]
                assert (await connection.execute(sa.text("SELECT text FROM note"))).scalars().all() == []


async def test_what_a_connection_was_told_by_its_user_before_does_not_last(protected, postgres_url):
    async with database(protected, url=postgres_url, pool=1) as db:
        with auth.acting_for("alice"):
            async with db.raw() as connection:
                await connection.execute("SET nourish.rows = '*'")
            async with db.connection() as connection:
                assert (await connection.execute(sa.text("SELECT count(*) FROM note"))).scalar_one() == 1
        async with db.connection() as connection:
            assert (await connection.execute(sa.text("SELECT count(*) FROM note"))).scalar_one() == 0


async def test_a_role_for_which_policies_do_not_hold_is_refused(protected, postgres_url):
    async with database(protected, url=postgres_url):
        pass
    everything = sa.make_url(postgres_url).set(username="postgres").render_as_string()
    with pytest.raises(RuntimeError, match="the database role postgres sees every user's rows"):
        async with database(protected, url=everything):
            pass


async def execute(connection, sql):
    """Runs a statement on either kind of connection."""
    await connection.execute(sql if isinstance(connection, asyncpg.Connection) else sa.text(sql))


async def test_a_server_whose_socket_is_gone_cannot_be_reached_and_a_missing_file_is_no_such_thing(tmp_path):
    gone = Database(create_async_engine(f"postgresql+asyncpg://nobody@/none?host={tmp_path}"))
    with pytest.raises(ConnectionError):
        async with gone.connection():
            pass
    with pytest.raises(FileNotFoundError), told_as_lost():
        (tmp_path / "none").read_bytes()
