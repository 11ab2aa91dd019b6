"""`python jobs_crashing.py URL`: for each step of a job a worker that dies there; prints the ids of the jobs."""

import asyncio
import os
import signal
import sys

import sqlalchemy as sa
from nourish.food.v1.food_pb2 import GetFoodRequest
from pgqueuer import Queries

from mesh.runtime import database, jobs
from mesh.runtime.jobs import store

STEPS = (
    "start.before",
    "start.after",
    "method",
    "effect",
    "end.before",
    "end.after",
    "commit.after",
    "log_jobs.before",
)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function, when):
    async def wrapped(*args, **kwargs):
        if when == "before":
            die()
        result = await function(*args, **kwargs)
        die()
        return result

    return wrapped


class Doing:
    def __init__(self, step):
        self.step = step

    @jobs.job(GetFoodRequest)
    async def do(self, argument, job):
        if self.step == "method":
            die()
        async with job.transaction() as connection:
            await connection.execute(sa.text("INSERT INTO effect VALUES (:job)"), {"job": job.id})
            if self.step == "effect":
                die()
            await job.succeed()
        if self.step == "commit.after":
            die()


async def child(url, step):
    name, _, when = step.partition(".")
    for owner in (store, Queries):
        if when and hasattr(owner, name):
            setattr(owner, name, dying(getattr(owner, name), when))
    async with database(url=url, pool=4) as db, jobs.work(db, Doing(step), lease=600):
        async with db.transaction() as connection:
            await jobs.enqueue(connection, GetFoodRequest(name="foods/x"), id=step)
        await asyncio.sleep(60)


async def prepare(url):
    """Makes the table, and does one job, so that a forked worker finds all that is slow done."""
    async with database(url=url, pool=4) as db:
        async with db.transaction() as connection:
            await connection.execute(sa.text("CREATE TABLE effect (job text)"))
        async with jobs.work(db, Doing("none")):
            async with db.transaction() as connection:
                await jobs.enqueue(connection, GetFoodRequest(name="foods/x"))
            async with asyncio.timeout(20), db.connection() as connection:
                while (await connection.execute(sa.text("SELECT count(*) FROM pgqueuer"))).scalar_one():
                    await asyncio.sleep(0.02)
        async with db.transaction() as connection:
            await connection.execute(sa.text("TRUNCATE effect, runtime_job CASCADE"))


def forked(url, step):
    pid = os.fork()
    if not pid:
        asyncio.run(child(url, step))
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"{step}: not killed"
    print(step)


asyncio.run(prepare(sys.argv[1]))
for step in STEPS:
    forked(sys.argv[1], step)
