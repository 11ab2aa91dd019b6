"""`python coordination_processes.py URL LIFE`: two processes that stand for one lead; the leader writes who it is.

Prints the pid of each. What only the leader may write it writes in its transaction, into `acted`; when its work is
cancelled it writes into `lost`. The first leader stops itself (SIGSTOP) in a transaction.
"""

import asyncio
import logging
import os
import signal
import sys
from importlib import import_module

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.runtime import database
from mesh.runtime.coordination import lead


async def stand(url, life):
    async with database(url=url, pool=4) as db:

        async def work(held):
            acts = 0
            who = {"pid": os.getpid(), "token": held.token}
            try:
                while True:
                    async with held.transaction() as connection:
                        if held.token == 1 and (acts := acts + 1) == 5:
                            os.kill(os.getpid(), signal.SIGSTOP)
                        await connection.execute(sa.text("INSERT INTO acted (pid, token) VALUES (:pid, :token)"), who)
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                async with asyncio.timeout(5), db.connection() as connection:
                    await connection.execute(sa.text("INSERT INTO lost (pid, token) VALUES (:pid, :token)"), who)
                raise

        async with lead(db, "acting", work, life=life):
            await asyncio.sleep(60)


if __name__ == "__main__":
    logging.disable()
    create_async_engine("postgresql+asyncpg://")  # loads what else each process would load
    import_module("alembic.command")
    for _ in range(2):
        if not (pid := os.fork()):
            signal.alarm(60)
            asyncio.run(stand(sys.argv[1], float(sys.argv[2])))
            os._exit(0)
        print(pid, flush=True)
    sys.stdin.read()  # until the test ends
