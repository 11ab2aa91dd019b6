"""Processes that publish and handle events and are killed at a named point; the bench runs a thousand of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import asyncpg
import nats.aio.msg
import protovalidate
import sqlalchemy as sa
from nourish.food.v1.food_pb2 import FoodsImported
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.runtime import database, events
from mesh.runtime.db import Database
from mesh.runtime.events import consumer, dead, relay, server

TABLES = (
    "CREATE TABLE IF NOT EXISTS fact (key text, number int, PRIMARY KEY (key, number))",
    "CREATE TABLE IF NOT EXISTS effect (id serial, key text, number int)",
)
KEYS, EACH = ("a", "b", "c"), 3
# Before and after each write of the way from one service to the other.
POINTS = tuple(
    f"{when} {what}"
    for what in ("fact", "commit of the fact", "send", "delete of the sent", "effect", "commit of the effect", "ack")
    for when in ("before", "after")
)
DEAD_POINTS = ("before burying", "after burying", "before term", "after term")
SECONDS = 60  # a process that takes longer has lost something, and is ended by SIGALRM


class Forks:
    """Starts processes by forking one that has loaded all they need: one at a time, in 20 ms."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, published_in: str, handled_in: str, url: str, **how: Any) -> None:
        """Starts a process that publishes the facts not there yet, and handles events until each had its effect.

        Args:
            published_in: the database of the service that publishes.
            handled_in: that of the one that handles.
            url: of the events server.
            how: the point at which it shall `die` and the `nth` time there; how many facts there are of `each` key;
                whether fact 0 is `poison`.
        """
        assert self._process.stdin
        self._process.stdin.write(json.dumps([published_in, handled_in, url, how]) + "\n")
        self._process.stdin.flush()

    def code(self) -> int:
        """Waits for its end: its exit code, or less the signal that ended it."""
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def run(self, published_in: str, handled_in: str, url: str, **how: Any) -> int:
        """Both."""
        self.start(published_in, handled_in, url, **how)
        return self.code()


@contextmanager
def forks() -> Iterator[Forks]:
    """A process to fork from."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-m", __name__], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Forks(process)
        finally:
            process.kill()


def _fork_forever() -> None:
    create_async_engine("postgresql+asyncpg://")  # loads what else each process would load
    import_module("alembic.command")
    protovalidate.validate(FoodsImported(data="a"))
    for line in sys.stdin:
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        signal.alarm(SECONDS)
        published_in, handled_in, url, how = json.loads(line)
        try:
            asyncio.run(_work(published_in, handled_in, url, **how))
        except (OSError, asyncpg.PostgresError, sa.exc.DBAPIError):
            os._exit(1)  # the database is not there at its start: a runner starts it again
        os._exit(0)


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """What a query gives; nothing while the server or the table is not there."""
    try:
        connection = await asyncpg.connect(url)
    except (OSError, asyncpg.PostgresError):
        return []
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    except asyncpg.PostgresError:
        return []
    finally:
        await connection.close()


async def faults(published_in: str, handled_in: str, *, each: int = EACH, poison: bool = False) -> list[str]:
    """What is lost, doubled or out of order, when all is over."""
    effects = await rows(handled_in, "SELECT key, number FROM effect ORDER BY id")
    wanted = {(key, number) for key in KEYS for number in range(each) if not (poison and number == 0)}
    found = [f"lost {fact}" for fact in wanted - set(effects)]
    found += [f"{count} times {fact}" for fact, count in Counter(effects).items() if count > 1]
    found += [f"{key} out of order" for key in KEYS if (n := [b for a, b in effects if a == key]) != sorted(n)]
    return found + [f"in the outbox: {row}" for row in await rows(published_in, "SELECT id FROM runtime_outbox")]


def _bomb(point: str, nth: int) -> Callable[[str], None]:
    hits = Counter()

    def hit(name: str) -> None:
        hits[name] += 1
        if name == point and hits[name] == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    return hit


def _around(owner: Any, name: str, what: Callable[..., str], hit: Callable[[str], None]) -> None:
    """Hits before and after each call of a method; `what` names the write by the arguments, "" for none."""
    inner = getattr(owner, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not (write := what(*args)):
            return await inner(*args, **kwargs)
        hit(f"before {write}")
        answer = await inner(*args, **kwargs)
        hit(f"after {write}")
        return answer

    setattr(owner, name, wrapped)


def _arm(hit: Callable[[str], None]) -> None:
    _around(server.Server, "publish", lambda _, subject, *__: "burying" if subject.startswith("dead") else "send", hit)
    _around(
        relay.asyncpg.Connection, "execute", lambda _, sql, *__: "delete of the sent" if sql == relay._SENT else "", hit
    )
    _around(consumer.GroupConsumer, "_once", lambda *_: "commit of the effect", hit)
    _around(nats.aio.msg.Msg, "ack", lambda *_: "ack", hit)
    _around(nats.aio.msg.Msg, "term", lambda *_: "term", hit)


async def _work(
    published_in: str, handled_in: str, url: str, *, die: str = "", nth: int = 1, each: int = EACH, poison: bool = False
) -> None:
    hit = _bomb(die, nth)

    class Effects:
        @events.subscribe(
            FoodsImported,
            group="effects",
            attempts=1000,
            redeliver_after=0.25,
            backoff=events.Backoff("fixed", first=0.01),
        )
        async def take(self, event: FoodsImported, connection: Any) -> None:
            hit("before effect")
            if poison and event.foods == 0:
                raise events.Rejected("none at all")
            values = {"k": event.data, "n": event.foods}
            await connection.execute(sa.text("INSERT INTO effect (key, number) VALUES (:k, :n)"), values)
            hit("after effect")

    _arm(hit)
    async with database(url=published_in, pool=4) as facts, database(url=handled_in, pool=9) as effects:
        async with facts.transaction() as one, effects.transaction() as two:
            await one.execute(sa.text(TABLES[0]))
            await two.execute(sa.text(TABLES[1]))
        async with events.carry(facts, url=url), events.carry(effects, Effects(), url=url):
            await asyncio.gather(*(_publish(facts, key, each, hit) for key in KEYS))
            while not await _over(facts, effects, len(KEYS) * (each - poison)):
                await asyncio.sleep(0.03)


async def _over(facts: Database, effects: Database, wanted: int) -> bool:
    try:
        async with facts.connection() as one, effects.connection() as two:
            waiting = (await one.execute(sa.text("SELECT count(*) FROM runtime_outbox"))).scalar_one()
            return not waiting and (await two.execute(sa.text("SELECT count(*) FROM effect"))).scalar_one() >= wanted
    except (OSError, asyncpg.PostgresError):
        return False


async def _publish(db: Database, key: str, each: int, hit: Callable[[str], None]) -> None:
    """Adds the facts of one key, each with its event, until all are there."""
    last = sa.text("SELECT coalesce(max(number) + 1, 0) FROM fact WHERE key = :k")
    insert = sa.text("INSERT INTO fact VALUES (:k, :n)")
    while True:
        try:
            async with db.transaction() as connection:
                number = (await connection.execute(last, {"k": key})).scalar_one()
                if number >= each:
                    return
                hit("before fact")
                await connection.execute(insert, {"k": key, "n": number})
                await events.publish(connection, FoodsImported(data=key, foods=number))
                hit("after fact")
                hit("before commit of the fact")
            hit("after commit of the fact")
        except (OSError, asyncpg.PostgresError):
            await asyncio.sleep(0.02)


async def dead_letters(url: str) -> list[tuple[str, str]]:
    """The dead letters: group and reason."""
    made = server.Server()
    await made.connect(url, "test")
    try:
        return [(letter.group, letter.reason) async for letter in dead.letters(made)]
    finally:
        await made.close()


if __name__ == "__main__":
    _fork_forever()
