"""A process that makes a two-phase commit and dies at a point of it."""

import os
import signal

import sqlalchemy as sa

from mesh.runtime import database
from mesh.runtime.coordination import TwoPhase, prepared

# In their order; from the end of the own transaction on it is committed.
WRITES = ("prepare", "decide", "end", "forget")
POINTS = tuple(f"{when} {what}" for what in WRITES for when in ("before", "after"))
COMMITTED = POINTS[POINTS.index("before end") :]


async def change(own_url, other_url, point):
    async with database(url=own_url, pool=2) as own, database(url=other_url, pool=2) as other:
        _arm(point)
        async with TwoPhase(own, {"other": other}).transaction() as connections:
            for connection in connections.values():
                await connection.execute(sa.text("INSERT INTO effect VALUES (:p)"), {"p": point})


def _arm(point):
    when, what = point.split()
    inner = getattr(prepared, what)

    async def wrapped(*args, **kwargs):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await inner(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(prepared, what, wrapped)
