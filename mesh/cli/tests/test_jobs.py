"""`mesh jobs` on a real PostgreSQL, where a running mesh would have it."""

import asyncio
import json

import pytest
from nourish.food.v1.food_pb2 import GetFoodRequest

from mesh.cli import database as asking
from mesh.cli.failure import Exit
from mesh.runtime import database, errors, jobs
from mesh.runtime.jobs import store


class Failing:
    """Does no job."""

    broken = True

    @jobs.job(GetFoodRequest)
    async def do(self, argument, job):
        if self.broken:
            raise errors.not_found("foods/secret")


@pytest.fixture
def service(postgres_url, monkeypatch):
    """A service whose only job has failed; gives what runs its workers until no job is left to do."""
    failing = Failing()
    monkeypatch.setattr(asking, "_url", lambda _: postgres_url.replace("postgresql:", "postgresql+asyncpg:"))

    async def work(*arguments):
        async with database(url=postgres_url) as db, jobs.work(db, failing):
            async with db.transaction() as connection:
                ids = [await jobs.enqueue(connection, argument) for argument in arguments]
            async with asyncio.timeout(20):
                while await left(db):
                    await asyncio.sleep(0.02)
        return ids

    async def left(db):
        async with db.connection() as connection:
            return [r for r in await store.newest(connection, None, 10) if not r.ended]

    def run(*arguments, broken=True):
        failing.broken = broken
        return asyncio.run(work(*arguments))

    return run


def test_a_failed_job_is_listed_shown_and_done_again(run, service):
    (id_,) = service(GetFoodRequest(name="foods/secret"))
    (listed,) = json.loads(run("jobs", "list", "food", "--state", "failed", "--json").stdout)
    assert (listed["id"], listed["state"], listed["attempts"]) == (id_, "failed", 1)
    shown = json.loads(run("jobs", "show", "food", id_, "--json").stdout)
    assert shown["argument"] == {"name": "foods/secret"}
    assert "does not exist" in shown["reason"]
    assert "does not exist" in run("jobs", "show", "food", id_).stdout
    assert run("jobs", "retry", "food", id_).exit_code == Exit.OK
    service(broken=False)
    assert json.loads(run("jobs", "show", "food", id_, "--json").stdout)["state"] == "succeeded"
    refused = run("jobs", "retry", "food", id_)
    assert (refused.exit_code, "neither failed nor cancelled" in refused.stderr) == (Exit.FAILED, True)


def test_a_job_that_is_not_there_is_said_so(run, service):
    service()
    done = run("jobs", "cancel", "food", "none")
    assert (done.exit_code, "no job none" in done.stderr) == (Exit.FAILED, True)
