"""`mesh sagas` on a real PostgreSQL, where a running mesh would have it."""

import asyncio
import json

import pytest
from nourish.food.v1.food_pb2 import GetFoodRequest

from mesh.cli import database as asking
from mesh.cli.failure import Exit
from mesh.runtime import database, errors, jobs, sagas
from mesh.runtime.jobs import store


class Ordering:
    """Reserves what it cannot charge, and cannot release until it is mended."""

    mended = False

    @sagas.saga(GetFoodRequest)
    def order(self):
        return sagas.step(self.reserve, self.release, undo_tries=1), sagas.step(self.charge)

    async def reserve(self, food, call):
        pass

    async def release(self, food, call):
        if not self.mended:
            raise errors.failed_precondition("the shop is closed")

    async def charge(self, food, call):
        raise errors.failed_precondition("no money")


@pytest.fixture
def work(postgres_url, monkeypatch):
    """Runs a service's workers until its jobs have ended; a saga is started first, if it is given an id."""
    ordering = Ordering()
    monkeypatch.setattr(asking, "_url", lambda _: postgres_url.replace("postgresql:", "postgresql+asyncpg:"))

    async def left(db):
        async with db.connection() as connection:
            return [r for r in await store.newest(connection, None, 10) if not r.ended] or (
                await connection.exec_driver_sql("SELECT 1 FROM pgqueuer")
            ).all()

    async def run(id_):
        async with database(url=postgres_url) as db, jobs.work(db, ordering):
            if id_:
                async with db.transaction() as connection:
                    await jobs.enqueue(connection, GetFoodRequest(name="foods/x"), id=id_)
            async with asyncio.timeout(20):
                while await left(db):
                    await asyncio.sleep(0.02)

    def work(id_="", *, mended=False):
        ordering.mended = mended
        asyncio.run(run(id_))

    return work


def test_a_parked_saga_is_listed_shown_and_goes_on(run, work):
    work("o1")
    (listed,) = json.loads(run("sagas", "list", "shop", "--state", "parked", "--json").stdout)
    assert (listed["id"], listed["state"], listed["direction"]) == ("o1", "parked", "back")
    assert "o1" in run("sagas", "list", "shop").stdout
    shown = json.loads(run("sagas", "show", "shop", "o1", "--json").stdout)
    assert "no money" in shown["reason"]
    assert [(s["step"], s["state"]) for s in shown["steps"]] == [("reserve", "undoing"), ("charge", "refused")]
    assert "the shop is closed" in run("sagas", "show", "shop", "o1").stdout
    assert run("sagas", "retry", "shop", "o1").exit_code == Exit.OK
    work(mended=True)
    assert json.loads(run("sagas", "show", "shop", "o1", "--json").stdout)["state"] == "compensated"
    refused = run("sagas", "retry", "shop", "o1")
    assert (refused.exit_code, "only a parked one" in refused.stderr) == (Exit.FAILED, True)


def test_a_step_that_was_undone_by_hand_is_settled_and_the_saga_goes_on_behind_it(run, work):
    work("o1")
    assert "reserve counts as settled" in run("sagas", "settle", "shop", "o1").stdout
    work()
    shown = json.loads(run("sagas", "show", "shop", "o1", "--json").stdout)
    assert (shown["state"], shown["steps"][0]["state"]) == ("compensated", "undone")


def test_a_saga_that_is_not_there_is_said_so(run, work):
    work()
    for what in ("show", "retry", "settle"):
        done = run("sagas", what, "shop", "none")
        assert (done.exit_code, "no saga none" in done.stderr) == (Exit.FAILED, True)
