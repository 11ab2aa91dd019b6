"""Events on a real NATS and a real PostgreSQL: once, in order, whatever dies."""

import asyncio
import time
from collections import Counter

import asyncpg
import pytest
import sqlalchemy as sa
from nourish.food.v1.food_pb2 import Food, FoodsImported

from mesh.runtime import auth, database, events
from mesh.runtime.events import Backoff, dead
from mesh.runtime.events.server import Server

QUICK = Backoff("fixed", first=0.01, jitter=0)


async def until(done, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := await done() if asyncio.iscoroutinefunction(done) else done()):
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)
    return found


class Diary:
    """Writes down what it is told, in its own table."""

    failing = 0

    @events.subscribe(FoodsImported, group="diary", attempts=3, backoff=QUICK, redeliver_after=1.0)
    async def note(self, event, connection):
        await connection.execute(
            sa.text("INSERT INTO note VALUES (DEFAULT, :k, :n)"), {"k": event.data, "n": event.foods}
        )
        self.request_id = auth.current.get().request_id
        if self.failing:
            self.failing -= 1
            raise LookupError("no such page")


@pytest.fixture
async def db(postgres_url):
    async with database(url=postgres_url, pool=12) as opened:
        async with opened.transaction() as connection:
            await connection.execute(sa.text("CREATE TABLE note (id serial, key text, number int)"))
        yield opened


@pytest.fixture
async def server(events_url):
    """What `mesh events` connects with."""
    made = Server()
    await made.connect(events_url, "test")
    yield made
    await made.close()


async def publish(db, key, *numbers):
    for number in numbers:
        async with db.transaction() as connection:
            await events.publish(connection, FoodsImported(data=key, foods=number))


async def notes(db):
    async with db.connection() as connection:
        return [tuple(row) for row in await connection.execute(sa.text("SELECT key, number FROM note ORDER BY id"))]


async def count(db, table):
    async with db.connection() as connection:
        return (await connection.execute(sa.text(f"SELECT count(*) FROM {table}"))).scalar_one()


async def test_an_event_is_handled_with_the_request_id_of_who_published_it(db, events_url):
    diary = Diary()
    async with events.carry(db, diary, url=events_url):
        token = auth.current.set(auth.CallInfo(headers={"x-request-id": "r-1", "authorization": "Bearer secret"}))
        await publish(db, "a", 7)
        auth.current.reset(token)
        await until(lambda: getattr(diary, "request_id", None))
        assert diary.request_id == "r-1"
        await until_notes(db, [("a", 7)])


async def until_notes(db, wanted):
    async def done():
        return await notes(db) == wanted

    await until(done)


async def test_a_transaction_that_fails_publishes_nothing(db, events_url):
    async with events.carry(db, Diary(), url=events_url):
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as connection:
                await events.publish(connection, FoodsImported(data="a", foods=1))
                raise ZeroDivisionError
        await publish(db, "a", 2)
        await until_notes(db, [("a", 2)])


async def test_what_was_published_before_anything_carried_is_handled(db, events_url):
    async with events.carry(db, url="nats://127.0.0.1:1") as without:
        await publish(db, "a", 1)
        with pytest.raises(ConnectionError):
            await without.check()
    assert await count(db, "runtime_outbox") == 1
    async with events.carry(db, Diary(), url=events_url) as carried:
        await until_notes(db, [("a", 1)])
        await carried.check()


async def test_order_by_key_holds_over_two_relays_two_consumers_failures_and_a_lost_relay(db, events_url, postgres_url):
    """The relay that leads loses its connection in the middle; each key has a failure on its way."""
    keys, each = [f"key-{n}" for n in range(12)], 12
    diary = Diary()
    diary.failing = 6
    async with database(url=postgres_url, pool=12) as other:
        async with events.carry(db, diary, url=events_url), events.carry(other, Diary(), url=events_url):
            publishing = [asyncio.create_task(publish((db, other)[n % 2], k, *range(each))) for n, k in enumerate(keys)]
            await asyncio.sleep(0)
            await end_relays(postgres_url)
            await asyncio.gather(*publishing)

            async def all_there():
                return len(await notes(db)) >= len(keys) * each

            await until(all_there)
    found = await notes(db)
    assert {k: [n for key, n in found if key == k] for k in keys} == {key: [*range(each)] for key in keys}
    assert await count(db, "runtime_outbox") == 0


async def end_relays(url):
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::bigint::oid"
        " AND objid = $2::bigint::oid",
        0x72656C6179 >> 32,
        0x72656C6179 & 0xFFFFFFFF,
    )
    await connection.close()


async def test_a_poison_event_becomes_a_dead_letter_that_a_mended_handler_takes(db, events_url, server):
    diary = Diary()
    diary.failing = 3
    async with events.carry(db, diary, url=events_url):
        await publish(db, "a", 1, 2)
        await until_notes(db, [("a", 2)])  # one that follows is not held up for ever
        (letter,) = [found async for found in dead.letters(server)]
        assert (letter.event, letter.group, letter.attempts) == ("nourish.food.v1.FoodsImported", "diary", 3)
        assert letter.reason == "LookupError: no such page"
        assert FoodsImported.FromString(letter.payload).foods == 1
        await dead.replay(server, letter)
        await dead.replay(server, letter) if await dead.letter(server, letter.id) else None
        await until_notes(db, [("a", 2), ("a", 1)])
        assert [found async for found in dead.letters(server)] == []


async def test_a_replay_is_for_the_group_that_failed_and_handled_once_however_often_it_is_sent(db, events_url, server):
    class Other:
        @events.subscribe(FoodsImported, group="other")
        async def note(self, event, connection):
            await connection.execute(sa.text("INSERT INTO note VALUES (DEFAULT, 'other', :n)"), {"n": event.foods})

    diary = Diary()
    diary.failing = 3
    async with events.carry(db, diary, Other(), url=events_url):
        await publish(db, "a", 1)

        async def buried():
            return [found async for found in dead.letters(server)]

        await server.make_stream("")
        (letter,) = await until(buried)
        headers = {**letter.headers, "nourish-only": "diary"}
        for number in range(3):
            await server.publish(letter.subject, letter.payload, headers, f"again/{number}")
        await publish(db, "a", 2)

        async def after():
            return Counter(await notes(db))[("a", 2)]

        await until(after)

    assert Counter(await notes(db)) == {("a", 1): 1, ("a", 2): 1, ("other", 1): 1, ("other", 2): 1}


async def test_bytes_that_are_no_such_event_are_buried_at_once(db, events_url, server):
    async with events.carry(db, Diary(), url=events_url):
        await server.publish("nourish.food.v1.FoodsImported.0", b"\xff\xff", {}, "bad")
        await server.make_stream("")

        async def buried():
            return [found async for found in dead.letters(server)]

        (letter,) = await until(buried)
        assert letter.attempts == 1
        assert "is no nourish.food.v1.FoodsImported" in letter.reason


async def test_every_instance_observes_what_is_published_while_it_lives(db, events_url):
    class Keeper:
        def __init__(self):
            self.seen = []

        @events.observe(FoodsImported, attempts=2, backoff=QUICK)
        async def drop(self, event):
            self.seen.append(event.foods)
            if event.foods == 1 and self.seen.count(1) == 1:
                raise LookupError

    one, two = Keeper(), Keeper()
    async with events.carry(db, one, url=events_url), events.carry(None, two, url=events_url):
        await publish(db, "a", 1, 2)
        await until(lambda: one.seen == [1, 1, 2] and two.seen == [1, 1, 2])


async def test_a_handler_that_takes_longer_than_the_server_waits_is_not_doubled(db, events_url):
    class Slow:
        begun = 0

        @events.subscribe(FoodsImported, group="slow", redeliver_after=0.3)
        async def note(self, event, connection):
            self.begun += 1
            await connection.execute(sa.text("SELECT pg_sleep(0.8)"))
            await connection.execute(sa.text("INSERT INTO note VALUES (DEFAULT, 'slow', 1)"))

    slow = Slow()
    async with events.carry(db, slow, url=events_url):
        await publish(db, "a", 1)
        await until_notes(db, [("slow", 1)])
    assert slow.begun == 1


async def test_the_end_lets_a_running_handler_finish_and_gives_back_the_rest(db, events_url):
    class Slow:
        @events.subscribe(FoodsImported, group="slow", redeliver_after=3600)  # what is not given back does not come
        async def note(self, event, connection):
            begun.set()
            await connection.execute(sa.text("SELECT pg_sleep(0.2)"))
            await connection.execute(sa.text("INSERT INTO note VALUES (DEFAULT, :k, :n)"), {"k": "a", "n": event.foods})

    begun = asyncio.Event()
    async with events.carry(db, Slow(), url=events_url):
        await publish(db, "a", 1, 2)
        await begun.wait()
    assert await notes(db) == [("a", 1)]
    async with events.carry(db, Slow(), url=events_url):
        await until_notes(db, [("a", 1), ("a", 2)])


async def test_only_events_of_the_contract_within_its_limits_are_published(db, events_url):
    async with events.carry(db, url=events_url), db.transaction() as connection:
        with pytest.raises(TypeError, match=r"nourish.food.v1.Food is no event"):
            await events.publish(connection, Food())
        with pytest.raises(Exception, match="data"):
            await events.publish(connection, FoodsImported(data=""))


async def test_a_method_that_needs_a_database_is_refused_without_one(events_url):
    with pytest.raises(TypeError, match="needs a database"):
        async with events.carry(None, Diary(), url=events_url):
            pass


async def test_who_publishes_for_a_key_waits_for_who_did_before_to_commit(db, events_url):
    """Else the second could commit first, and be sent first, with what the first was about to say."""

    async def waits():
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with db.connection() as connection:
            return (await connection.execute(sa.text(query))).scalar_one()

    async with db.transaction() as connection:
        await events.publish(connection, FoodsImported(data="a", foods=1))
        second = asyncio.create_task(publish(db, "a", 2))
        await publish(db, "b", 3)  # another key does not wait
        await until(waits)
    await second
    async with events.carry(db, Diary(), url=events_url):

        async def all_there():
            return len(await notes(db)) == 3

        await until(all_there)
    assert [number for key, number in await notes(db) if key == "a"] == [1, 2]


async def test_handlers_leave_half_of_the_pool_to_calls(postgres_url, events_url):
    class Slow:
        begun = 0

        @events.subscribe(FoodsImported, group="slow")
        async def take(self, event, connection):
            self.begun += 1
            await go_on.wait()

    go_on, slow = asyncio.Event(), Slow()
    async with database(url=postgres_url, pool=4) as db, events.carry(db, slow, url=events_url):
        for number in range(12):
            await publish(db, f"key-{number}", number)
        await until(lambda: slow.begun == 2)
        await publish(db, "more", 1, 2, 3)
        assert slow.begun == 2
        go_on.set()
        await until(lambda: slow.begun == 15)
