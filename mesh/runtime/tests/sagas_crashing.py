"""Two services as processes that die at a named point: orders are placed at one, their saga changes the other."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import nats.aio.msg
import sqlalchemy as sa
from pgqueuer import Queries

from mesh.runtime import answers, database, events, jobs
from mesh.runtime.client import passing_on
from mesh.runtime.events import consumer, relay, server
from mesh.runtime.jobs import store as jobs_store
from mesh.runtime.jobs import workers
from mesh.runtime.sagas import store
from mesh.runtime.server import build_server
from mesh.runtime.tests import shop
from mesh.runtime.tests.forking import Forks, ended

# Before and after each write on the way of an order, by the process that makes it. Within: written, not committed.
LOG = (
    "opening of the log",
    "begin of a do",
    "begin of an undo",
    "note of a do",
    "note of an undo",
    "turn",
    "success",
    "failure",
)
WRITES = {
    "orders": ("order", "start of the job", *LOG, "end of the place", "send", "delete of the sent"),
    "stock": ("movement", "taking back", "answer", "effect", "ack"),
}
POINTS = {
    who: tuple(
        f"{when} {what}"
        for what in whats
        for when in (("before", "within", "after") if what in LOG else ("before", "after"))
    )
    for who, whats in WRITES.items()
}
TABLES = {"orders": (shop.ORDERS,), "stock": shop.STOCK}
REFUSED = ("", "charge", "ship")  # in turn
LEASE = 0.25
SECONDS = 60
TARGET = f"{__name__}:serve"
# INTERNAL: of a database whose socket is away. A repeat with the same request_id is harmless in any case.
NOT_NOW = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL)
AT_ONCE = 12
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50))


async def serve(who: str, place: dict[str, str], die: str, nth: int) -> None:
    """Runs "orders" or "stock" until it comes to the point at which it shall `die` for the `nth` time, or is killed."""
    hit = _bomb(die, nth, place["deaths"])
    _arm(hit)
    workers.POLL_SECONDS = 0.05
    async with database(url=place[who], pool=8) as db:
        async with db.transaction() as connection:
            for statement in TABLES[who]:
                await connection.execute(sa.text(statement))
        if who == "orders":
            channel = passing_on(grpc.aio.insecure_channel(place["stock_socket"], options=RECONNECT))
            served: Any = shop.Orders(db, channel, pivot=False, tries=10_000, undo_tries=10_000)
            async with jobs.work(db, served, lease=LEASE), events.carry(db, url=place["events"]):
                await _listen(served, place["orders_socket"])
        else:
            served = shop.Stock(db)
            async with events.carry(db, served, url=place["events"]):
                await _listen(served, place["stock_socket"])


async def _listen(servicer: object, socket: str) -> None:
    built = build_server(servicer)
    path = socket.removeprefix("unix:")
    built.grpc.add_insecure_port(f"unix:{path}.{os.getpid()}")
    await built.grpc.start()
    os.rename(f"{path}.{os.getpid()}", path)
    signal.alarm(0)
    await asyncio.Event().wait()


def _bomb(point: str, nth: int, deaths: str) -> Callable[[str], None]:
    hits = Counter()

    def hit(name: str) -> None:
        hits[name] += 1
        if name == point and hits[name] == nth:
            with open(deaths, "a") as file:
                file.write(f"{point}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    return hit


def _around(owner: Any, name: str, what: Callable[..., str], hit: Callable[[str], None]) -> None:
    """Hits before and after each call of a method; `what` names the write by the arguments, "" for none."""
    inner = getattr(owner, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not (write := what(*args, **kwargs)):
            return await inner(*args, **kwargs)
        hit(f"before {write}")
        answer = await inner(*args, **kwargs)
        if write in LOG:
            hit(f"within {write}")
            _written.get().append(write)
        else:
            hit(f"after {write}")
        return answer

    setattr(owner, name, wrapped)


_written: ContextVar[list[str]] = ContextVar("written")


def _after_commits(hit: Callable[[str], None]) -> None:
    inner = jobs.Job.transaction

    @asynccontextmanager
    async def wrapped(self: jobs.Job, **kwargs: Any) -> AsyncIterator[Any]:
        _written.set(written := [])
        async with inner(self, **kwargs) as connection:
            yield connection
        for write in written:
            hit(f"after {write}")

    jobs.Job.transaction = wrapped  # type: ignore[method-assign,assignment]


def _arm(hit: Callable[[str], None]) -> None:
    begins = {store.DOING: "begin of a do", store.UNDOING: "begin of an undo"}
    notes = {store.DONE: "note of a do", store.UNDONE: "note of an undo"}
    ends = {jobs_store.SUCCEEDED: "success", jobs_store.FAILED: "failure"}
    _after_commits(hit)
    _around(answers.StoredAnswers, "once", _answered, hit)
    _around(jobs_store, "start", lambda *_: "start of the job", hit)
    _around(store, "open_", lambda *_: "opening of the log", hit)
    _around(store, "begin", lambda _c, _i, _n, _name, state: begins[state], hit)
    _around(store, "note", lambda _c, _i, _n, state, **_: notes.get(state, ""), hit)
    _around(store, "turn", lambda _c, _i, state, *_: "turn" if state == store.COMPENSATING else "", hit)
    _around(jobs_store, "end", lambda _c, _i, _a, state, **_: ends[state], hit)
    _around(Queries, "log_jobs", lambda *_: "end of the place", hit)
    _around(server.Server, "publish", lambda *_: "send", hit)
    _around(
        relay.asyncpg.Connection, "execute", lambda _, sql, *__: "delete of the sent" if sql == relay._SENT else "", hit
    )
    _around(shop.Stock, "_note", lambda *_: "movement", hit)
    _around(shop.Stock, "_take_back", lambda *_: "taking back", hit)
    _around(consumer.GroupConsumer, "_once", lambda *_: "effect", hit)
    _around(nats.aio.msg.Msg, "ack", lambda *_: "ack", hit)


def _answered(_self: Any, method: Any, *_: Any) -> str:
    return "order" if method.path.endswith("Place") else "answer"


class Driver:
    """Places orders, keeps both services running, each with a point at which it dies, and counts what came of it.

    A process that does not come to its point in `patience` seconds is killed where it is.
    """

    def __init__(self, started: Forks, place: dict[str, str], patience: float = 2 * SECONDS) -> None:
        self._forks, self._place, self._patience = started, place, patience
        self._starting = asyncio.Lock()
        self._left = 0  # orders that are not over
        self._stopping = False
        self._pids: dict[str, int] = {}
        self.placed: dict[str, str] = {}  # order: the step that refuses it
        self.elsewhere = 0  # killed for they did not come to their point

    async def run(self, bombs: dict[str, Iterable[tuple[str, int]]], shoppers: int = 6) -> None:
        """Until each service has died at its points; then both run until all orders are over, and are ended."""
        watching = asyncio.create_task(self._watch())
        shopping = [asyncio.create_task(self._shop(number)) for number in range(shoppers)]
        try:
            await asyncio.gather(*(self._die(who, bombs[who]) for who in POINTS))
            self._stopping = True
            await asyncio.gather(*shopping)
            async with asyncio.timeout(SECONDS):
                while await self._unfinished():
                    await self._keep_alive()
                    await asyncio.sleep(0.05)
        finally:
            for task in (watching, *shopping):
                task.cancel()
            for pid in self._pids.values():
                os.kill(pid, signal.SIGKILL)

    def deaths(self) -> Counter[str]:
        """How often a process died at each point so far."""
        path = Path(self._place["deaths"])
        return Counter(path.read_text().splitlines() if path.exists() else ())

    @property
    def killed(self) -> int:
        """How many were."""
        return self.deaths().total() + self.elsewhere

    async def _die(self, who: str, bombs: Iterable[tuple[str, int]]) -> None:
        for point, nth in bombs:
            before, over = self.deaths()[point], True
            while over and self.deaths()[point] == before:  # else it could not start, an engine is away
                await self._start(who, point, nth)
                over = await ended(self._pids[who], self._patience)
            self.elsewhere += not over
        await self._start(who)

    async def _start(self, who: str, die: str = "", nth: int = 1) -> None:
        async with self._starting:
            self._pids[who] = await asyncio.to_thread(self._forks.start, TARGET, who, self._place, die, nth)

    async def _keep_alive(self) -> None:
        for who, pid in self._pids.items():
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                await self._start(who)

    async def _shop(self, shopper: int) -> None:
        async with grpc.aio.insecure_channel(self._place["orders_socket"], options=RECONNECT) as channel:
            stub = shop.pb_grpc.OrderServiceStub(channel)
            for number in itertools.count():
                while self._left > AT_ONCE and not self._stopping:
                    await asyncio.sleep(0.05)
                if self._stopping:
                    return
                refused = REFUSED[number % len(REFUSED)]
                order = shop.pb.Order(id=f"{shopper}-{number}", request_id=f"of {shopper}-{number}", refused=refused)
                while not await _placed(stub, order):
                    await asyncio.sleep(0.02)
                self.placed[order.id] = refused

    async def _watch(self) -> None:
        while True:
            self._left = await _count(self._place["orders"], "SELECT count(*) FROM orders WHERE state = 'placed'")
            await asyncio.sleep(0.1)

    async def _unfinished(self) -> int:
        orders = await _count(
            self._place["orders"],
            "SELECT (SELECT count(*) FROM runtime_job WHERE end_time IS NULL) + (SELECT count(*) FROM runtime_outbox)",
        )
        return orders or max(2 * len(self.placed) - await _count(self._place["stock"], "SELECT count(*) FROM heard"), 0)

    async def faults(self) -> list[str]:
        """What is lost, doubled or half compensated, when all is over."""
        states = dict(await _rows(self._place["orders"], "SELECT id, state FROM orders"))
        sagas = dict(await _rows(self._place["orders"], "SELECT id, state FROM runtime_saga WHERE NOT parked"))
        by_order: dict[str, list[str]] = defaultdict(list)
        for id_, what in await _rows(self._place["stock"], "SELECT id, what FROM movement ORDER BY number"):
            by_order[id_].append(what)
        for id_, what in await _rows(self._place["stock"], "SELECT id, what FROM heard ORDER BY number"):
            by_order[id_].append(what)
        found = [f"doubled: {id_} was never placed" for id_ in states.keys() - self.placed.keys()]
        for id_, refused in self.placed.items():
            state, saga, wanted = WANTED[refused]
            if (states.get(id_), sagas.get(id_)) != (state, saga):
                found.append(f"lost: {id_} is {states.get(id_)}, its saga {sagas.get(id_)}")
            counted, right = Counter(by_order[id_]), Counter(wanted)
            found += [f"doubled: {what} of {id_}" for what in counted - right]
            missing = right - counted
            kind = "half compensated" if missing.keys() & {"refund", "release"} else "lost"
            found += [f"{kind}: {what} of {id_}" for what in missing]
            if not missing and by_order[id_] != wanted:
                found.append(f"out of order: {id_}: {by_order[id_]}")
        return found


# What each order comes to, by the step that refuses it: its state, its saga's, the movements and events in their order.
WANTED = {
    "": ("confirmed", "succeeded", ["reserve", "charge", "ship", "placed", "confirmed"]),
    "charge": ("cancelled", "compensated", ["reserve", "release", "placed", "cancelled"]),
    "ship": ("cancelled", "compensated", ["reserve", "charge", "refund", "release", "placed", "cancelled"]),
}


async def _placed(stub: Any, order: Any) -> bool:
    try:
        await stub.Place(order, timeout=2)
    except grpc.aio.AioRpcError as error:
        if error.code() not in NOT_NOW:
            raise
        return False
    return True


async def _rows(url: str, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def _count(url: str, query: str) -> int:
    """What a query counts; much while the server or a table is not there."""
    try:
        return int((await _rows(url, query))[0][0])
    except (OSError, asyncpg.PostgresError):
        return 2**31
