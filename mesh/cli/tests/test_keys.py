"""`mesh keys` on a real PostgreSQL and a HOME, where a running mesh would have them."""

import asyncio
import json
import stat

import pytest

from mesh.cli import database as asking
from mesh.cli.failure import Exit
from mesh.local import keys
from mesh.runtime import database


@pytest.fixture
def folder(home):
    """The keys of food, whose key is there and whose data none."""
    keys.ensure_key(home / "keys" / "food")
    return home / "keys" / "food"


@pytest.fixture
def during(postgres_url, folder, monkeypatch):
    """Does something while the service runs, with data keys of three users."""
    monkeypatch.setattr(asking, "_url", lambda _: postgres_url.replace("postgresql:", "postgresql+asyncpg:"))
    monkeypatch.setattr("mesh.runtime.db.housekeeping.ROUND_SECONDS", 0.05)
    monkeypatch.setattr("mesh.cli.keys.POLL_SECONDS", 0.02)

    async def run(do):
        async with database(url=postgres_url, keys=folder) as db:
            async with db.transaction() as connection:
                for user in ("alice", "bob", "carol"):
                    await db.keys.writing(connection, user)
            return await asyncio.to_thread(do)

    return lambda do: asyncio.run(run(do))


def test_a_key_is_its_owners_alone_and_one_that_is_there_stays(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    before = (folder / "0001").read_text()
    keys.ensure_key(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["0001", "current"]
    assert (folder / "0001").read_text() == before


def test_rotate_returns_when_the_running_service_has_taken_the_new_key_for_all(run, during):
    done = during(lambda: run("keys", "rotate", "--json"))
    assert json.loads(done.stdout) == [{"service": "food", "key": "0002", "dataKeys": 3}]
    listed = during(lambda: run("keys", "list", "--json"))
    assert [(row["key"], row["current"], row["dataKeys"]) for row in json.loads(listed.stdout)] == [
        ("0001", False, 0),
        ("0002", True, 3),
    ]
    assert "0002" in during(lambda: run("keys", "list")).stdout


def test_nothing_is_begun_for_an_unknown_service_or_without_a_mesh(run, folder):
    unknown = run("keys", "rotate", "fod")
    assert unknown.exit_code == Exit.USAGE
    assert "did you mean 'food'" in unknown.output
    assert run("keys", "rotate").exit_code == Exit.NOT_RUNNING
    assert not (folder / "0002").exists()
