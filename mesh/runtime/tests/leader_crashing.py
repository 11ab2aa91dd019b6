"""A process that stands for a lead; the leader writes who it is, and the first stops itself (SIGSTOP) as it writes.

What only the leader may write it writes in its transaction, into `acted`; when its work is cancelled it writes into
`lost`.
"""

import asyncio
import os
import signal

import sqlalchemy as sa

from mesh.runtime import database
from mesh.runtime.coordination import lead


async def stand(url, life):
    async with database(url=url, pool=4) as db:

        async def work(held):
            acts, who = 0, {"pid": os.getpid(), "token": held.token}
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
            await asyncio.Event().wait()
