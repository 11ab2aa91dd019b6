"""Sagas on a real PostgreSQL, with a called service that answers each request_id once."""

import asyncio
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa

from mesh.runtime import auth, database, errors, jobs, sagas
from mesh.runtime.jobs import store as jobs_store
from mesh.runtime.sagas import store
from mesh.runtime.testing import serve_in_memory
from mesh.runtime.tests.shop import ORDERS, STOCK, Orders, Stock, pb, pb_grpc
from mesh.runtime.tests.talk import Refused

SOON = jobs.Backoff("fixed", first=0.01, limit=0.01)


class Shop:
    """Both services on one database; `hear` is told of each call before it is made, and may fail."""

    def __init__(self, db):
        self.db, self.calls, self.hear = db, [], None

    def orders(self, channel, **how):
        shop = self

        class Heard(Orders):
            def _change(self, what, order, call):
                shop.calls.append(what)
                if shop.hear:
                    shop.hear(what)
                return super()._change(what, order, call)

        return Heard(self.db, channel, **how)

    async def rows(self, query):
        async with self.db.connection() as connection:
            return [tuple(row) for row in await connection.execute(sa.text(query))]

    async def movements(self):
        return [what for (what,) in await self.rows("SELECT what FROM movement ORDER BY number")]

    async def saga(self, id_="o1"):
        async with self.db.connection() as connection:
            return await store.get(connection, id_)

    async def until(self, *states, id_="o1"):
        """The saga once its job is in one of these states."""
        async with asyncio.timeout(20):
            while (await self.job(id_)).state not in states:
                await asyncio.sleep(0.01)
        return await self.saga(id_)

    async def job(self, id_="o1"):
        async with self.db.connection() as connection:
            return await jobs_store.get(connection, id_)


EMPTY = (
    "TRUNCATE orders, movement, heard, runtime_job, runtime_outbox, runtime_answer CASCADE",
    "DO $$ BEGIN IF to_regclass('pgqueuer') IS NOT NULL THEN TRUNCATE pgqueuer; END IF; END $$",
)


@pytest.fixture(scope="module")
def url(postgres_server, postgres_runner):
    """One database for all tests of this file."""
    return postgres_runner.run(postgres_server.create_database("sagas"))


@pytest.fixture
async def shop(url, monkeypatch):
    monkeypatch.setattr("mesh.runtime.jobs.workers.POLL_SECONDS", 0.05)
    async with database(url=url, pool=8) as db:
        async with db.transaction() as connection:
            for statement in (ORDERS, *STOCK, *EMPTY):
                await connection.execute(sa.text(statement))
        yield Shop(db)


@asynccontextmanager
async def open_(shop, **how):
    async with serve_in_memory(Stock(shop.db)) as channel:
        orders = shop.orders(channel, **how)
        async with jobs.work(shop.db, orders), serve_in_memory(orders) as front:
            yield pb_grpc.OrderServiceStub(front)


async def test_a_saga_does_its_steps_in_order_and_ends_with_its_local_change(shop):
    async with open_(shop) as stub:
        await stub.Place(pb.Order(id="o1", request_id="r1"))
        saga = await shop.until("succeeded")
    assert (saga.state, await shop.movements()) == ("succeeded", ["reserve", "charge", "ship"])
    assert await shop.rows("SELECT state FROM orders") == [("confirmed",)]


async def test_a_call_that_is_rolled_back_starts_no_saga_and_a_repeated_one_no_second(shop):
    async with open_(shop) as stub:
        with Refused():
            await stub.Place(pb.Order(id="o1" * 2**20, request_id="r0"))  # PostgreSQL refuses such a key
        for _ in range(2):
            await stub.Place(pb.Order(id="o1", request_id="r1"))
        await shop.until("succeeded")
    assert await shop.rows("SELECT id FROM runtime_saga") == [("o1",)]


async def test_what_was_done_is_undone_in_reverse_order_when_a_step_is_refused(shop):
    async with open_(shop) as stub:
        await stub.Place(pb.Order(id="o1", refused="ship"))
        saga = await shop.until("failed")
    assert await shop.movements() == ["reserve", "charge", "refund", "release"]
    assert await shop.rows("SELECT state FROM orders") == [("cancelled",)]
    assert (saga.state, "no ship for o1" in saga.detail, saga.parked) == ("compensated", True, False)
    assert (await shop.job()).error == saga.error


async def test_a_step_that_was_refused_at_its_first_try_is_not_undone(shop):
    async with open_(shop) as stub:
        await stub.Place(pb.Order(id="o1", refused="charge"))
        await shop.until("failed")
    assert shop.calls == ["reserve", "charge", "release"]


async def test_a_step_is_tried_again_as_often_as_it_says_and_then_undone_for_it_may_have_been_done(shop):
    def hear(what):
        if what == "charge":
            raise ConnectionError

    shop.hear = hear
    async with open_(shop, tries=3) as stub:
        await stub.Place(pb.Order(id="o1"))
        await shop.until("failed")
    assert shop.calls == ["reserve", "charge", "charge", "charge", "refund", "release"]
    assert await shop.movements() == ["reserve", "release"]  # there was nothing to refund


async def test_a_call_that_arrives_behind_its_own_undoing_is_refused(shop):
    late = pb.Change(order="o1", request_id="r1")
    async with serve_in_memory(Stock(shop.db)) as channel:
        stub = pb_grpc.StockServiceStub(channel)
        await stub.Release(pb.Change(order="o1", request_id="r2", undoes="r1"))
        with Refused() as refused:
            await stub.Reserve(late)
    assert (refused.reason, await shop.movements()) == ("REQUEST_ID_REUSED", [])


async def test_undoing_waits_for_a_call_that_is_under_way(shop):
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Stock):
        async def _note(self, order, what):
            await super()._note(order, what)
            if what == "reserve":
                entered.set()
                await go_on.wait()

    async with serve_in_memory(Slow(shop.db)) as channel:
        stub = pb_grpc.StockServiceStub(channel)
        doing = asyncio.ensure_future(stub.Reserve(pb.Change(order="o1", request_id="r1")))
        await entered.wait()
        undoing = asyncio.ensure_future(stub.Release(pb.Change(order="o1", undoes="r1")))
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        async with asyncio.timeout(20):
            while not await shop.rows(waiting):
                await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(doing, undoing)
    assert await shop.movements() == ["reserve", "release"]


async def test_compensation_that_fails_to_the_end_is_parked_and_goes_on_when_a_human_says_so(shop):
    def hear(what):
        if what == "refund" and not mended:
            raise errors.failed_precondition("the bank is closed")

    mended, shop.hear = False, hear
    async with open_(shop, undo_tries=3) as stub:
        await stub.Place(pb.Order(id="o1", refused="ship"))
        await shop.until("failed")
        assert (await shop.saga()).shown_state == "parked"
        assert shop.calls.count("refund") == 3
        async with shop.db.transaction() as connection:
            await connection.execute(sa.text("UPDATE runtime_job SET end_time = now() - interval '1 year'"))
            await jobs_store.clean(connection)
            assert not await jobs_store.forget(connection, "o1")
        assert await shop.saga(), "what waits for a human is not cleaned away, and no user can delete it"
        mended = True
        async with asyncio.timeout(20):  # the queue's own end of it comes a moment later
            while await shop.rows("SELECT 1 FROM pgqueuer"):
                await asyncio.sleep(0.01)
        async with shop.db.transaction() as connection:
            await jobs_store.again(connection, "o1")
            await jobs.queue.place(connection, "o1", "nourish.shop.v1.Order", 0, jobs_store.timedelta(0))
        assert (await shop.until("failed")).shown_state == "compensated"
    assert await shop.movements() == ["reserve", "charge", "refund", "release"]


async def test_behind_the_pivot_there_is_no_way_back(shop):
    class Stuck(Orders):
        async def confirm(self, order, call):
            raise errors.failed_precondition("cannot be confirmed")

    async with serve_in_memory(Stock(shop.db)) as channel, jobs.work(shop.db, Stuck(shop.db, channel)):
        async with shop.db.transaction() as connection:
            await jobs.enqueue(connection, pb.Order(id="o1"), id="o1")
        saga = await shop.until("failed")
    assert (saga.shown_state, await shop.movements()) == ("parked", ["reserve", "charge", "ship"])


async def test_a_saga_that_is_cancelled_undoes_what_it_did_even_while_it_waits_for_its_next_try(shop):
    waiting = asyncio.Event()

    def hear(what):
        if what == "charge":
            waiting.set()
            raise ConnectionError

    shop.hear = hear
    slow = jobs.Backoff("fixed", first=0.5, limit=0.5, jitter=0)
    async with open_(shop, backoff=slow) as stub:
        await stub.Place(pb.Order(id="o1"))
        await waiting.wait()
        await shop.until("queued")
        async with shop.db.transaction() as connection:
            assert await jobs_store.cancel(connection, "o1", b"")
        saga = await shop.until("cancelled")
    assert (saga.state, await shop.movements()) == ("compensated", ["reserve", "release"])


async def test_a_local_change_whose_commit_was_not_answered_is_not_made_again(shop):
    class Unanswered(Orders):
        async def confirm(self, order, call):
            await super().confirm(order, call)
            call.recorded = False  # as when the connection is lost in its commit
            raise ConnectionError

    async with serve_in_memory(Stock(shop.db)) as channel, jobs.work(shop.db, Unanswered(shop.db, channel)):
        async with shop.db.transaction() as connection:
            await jobs.enqueue(connection, pb.Order(id="o1"), id="o1")
        await shop.until("succeeded")
    assert await shop.rows("SELECT count(*) FROM runtime_outbox") == [(1,)]


async def test_a_saga_that_is_cancelled_behind_its_pivot_goes_on(shop):
    class Cancelled(Orders):
        async def ship(self, order, call):
            async with self.db.transaction() as connection:
                assert await jobs_store.cancel(connection, "o1", b"")
            return await super().ship(order, call)

    async with serve_in_memory(Stock(shop.db)) as channel, jobs.work(shop.db, Cancelled(shop.db, channel)):
        async with shop.db.transaction() as connection:
            await jobs.enqueue(connection, pb.Order(id="o1"), id="o1")
        await shop.until("succeeded")
    assert await shop.movements() == ["reserve", "charge", "ship"]


async def test_a_step_gets_the_responses_of_those_before_it_also_after_a_new_start(shop):
    seen = []

    class Steps:
        @sagas.saga(pb.Order)
        def place(self):
            return sagas.step(self.one), sagas.step(self.two, backoff=SOON)

        async def one(self, order, call):
            seen.append((call.request_id, call.saga))
            return pb.Changed(text="one")

        async def two(self, order, call):
            seen.append(call.response("one", pb.Changed).text)
            if len(seen) == 2:
                raise ConnectionError
            return pb.Changed(text="two")

    async with jobs.work(shop.db, Steps()):
        async with shop.db.transaction() as connection:
            await jobs.enqueue(connection, pb.Order(), id="o1")
        await shop.until("succeeded")
    assert seen[1:] == ["one", "one"]
    assert b"two" in (await shop.job()).response


async def test_a_saga_whose_steps_are_others_now_is_left_to_a_human(shop):
    class Old:
        @sagas.saga(pb.Order)
        def place(self):
            return (sagas.step(self.old, backoff=SOON),)

        async def old(self, order, call):
            began.set()
            raise ConnectionError

    class New(Old):
        @sagas.saga(pb.Order)
        def place(self):
            return (sagas.step(self.old, name="new"),)

    began = asyncio.Event()
    async with jobs.work(shop.db, Old()):
        async with shop.db.transaction() as connection:
            await jobs.enqueue(connection, pb.Order(), id="o1")
        await began.wait()
    async with jobs.work(shop.db, New()):
        assert (await shop.until("failed")).parked
    assert "its step 1 was 'old' when it began" in (await shop.job()).detail


async def test_what_fails_outside_of_a_step_ends_no_saga(shop):
    class Broken:
        @sagas.saga(pb.Order)
        def place(self):
            raise errors.failed_precondition("a step would be refused for good by this")

    async with jobs.work(shop.db, Broken()):
        async with shop.db.transaction() as connection:
            await jobs.enqueue(connection, pb.Order(id="o1"), id="o1")
        async with asyncio.timeout(20):
            while not (await shop.job()).failures:
                await asyncio.sleep(0.01)
        assert (await shop.job()).state == "queued"


async def test_a_saga_runs_as_the_request_that_started_it_and_within_the_time_of_its_step(shop):
    seen = []

    class Steps:
        @sagas.saga(pb.Order)
        def place(self):
            return (sagas.step(self.one, seconds=5),)

        async def one(self, order, call):
            seen.append((auth.current.get().request_id, auth.time_left() <= 5))

    async with jobs.work(shop.db, Steps()):
        token = auth.current.set(auth.CallInfo(headers={auth.REQUEST_ID_HEADER: "r1"}))
        async with shop.db.transaction() as connection:
            await jobs.enqueue(connection, pb.Order(), id="o1")
        auth.current.reset(token)
        await shop.until("succeeded")
    assert seen == [("r1", True)]
