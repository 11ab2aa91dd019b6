"""`python two_phase_crashing.py URL URL`: for each point of a two-phase commit a process that dies there."""

import asyncio
import logging
import os
import signal
import sys
from importlib import import_module

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.runtime import database
from mesh.runtime.coordination import TwoPhase, prepared

# In their order; from the end of the own transaction on it is committed.
WRITES = ("prepare", "decide", "end", "forget")
POINTS = tuple(f"{when} {what}" for what in WRITES for when in ("before", "after"))
COMMITTED = POINTS[POINTS.index("before end") :]


def arm(point):
    when, what = point.split()
    inner = getattr(prepared, what)

    async def wrapped(*args, **kwargs):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await inner(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(prepared, what, wrapped)


async def change(own_url, other_url, point):
    async with database(url=own_url, pool=2) as own, database(url=other_url, pool=2) as other:
        arm(point)
        async with TwoPhase(own, {"other": other}).transaction() as connections:
            for connection in connections.values():
                await connection.execute(sa.text("INSERT INTO effect VALUES (:p)"), {"p": point})


if __name__ == "__main__":
    logging.disable()
    create_async_engine("postgresql+asyncpg://")  # loads what else each process would load
    import_module("alembic.command")
    for point in POINTS:
        if not (pid := os.fork()):
            signal.alarm(60)
            asyncio.run(change(*sys.argv[1:], point))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(point, os.waitstatus_to_exitcode(status), sep=":", flush=True)
