"""Idempotency by request_id, on a real PostgreSQL: `say` is what the calls change."""

import asyncio
import uuid

import grpc
import pytest
import sqlalchemy as sa

from mesh.runtime import answers, errors
from mesh.runtime.db import database
from mesh.runtime.server import build_server
from mesh.runtime.testing import as_user, serve_in_memory
from mesh.runtime.tests.talk import Line, Refused, SayRequest, Servicer, Stub

ALICE, BOB = as_user("alice"), as_user("bob")


class Talk(Servicer):
    """Adds a row for each call and answers with how many there are; fails or waits where the text says so."""

    def __init__(self, db):
        self.db = db
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def Say(self, request, context):
        async with self.db.transaction() as connection:
            await connection.execute(sa.text("INSERT INTO said VALUES (:text)"), {"text": request.text})
        match request.text:
            case "refused":
                raise errors.failed_precondition("not now")
            case "slow":
                self.begun.set()
                await self.go.wait()
            case "tasks":
                await asyncio.gather(*(self.add(f"task {n}") for n in range(3)))
            case "undone":
                with pytest.raises(sa.exc.DBAPIError):
                    await self.add("one", "SELECT nonsense")
        async with self.db.connection() as connection:
            counted = (await connection.execute(sa.text("SELECT count(*) FROM said"))).scalar_one()
        async with self.db.raw() as connection:
            assert await connection.fetchval("SELECT count(*) FROM said") >= counted
        return Line(text=str(counted))

    async def add(self, text, then="SELECT 1"):
        async with self.db.transaction() as connection:
            await connection.execute(sa.text("INSERT INTO said VALUES (:text)"), {"text": text})
            await connection.execute(sa.text(then))


@pytest.fixture
async def db(postgres_url):
    async with database(url=postgres_url, pool=3) as opened:
        await execute(opened, "CREATE TABLE said (text text)")
        yield opened


@pytest.fixture
def talk(db):
    return Talk(db)


@pytest.fixture
async def stub(talk):
    async with serve_in_memory(talk) as channel:
        yield Stub(channel)


async def execute(db, sql):
    async with db.transaction() as connection:
        return await connection.execute(sa.text(sql))


async def said(db):
    return (await execute(db, "SELECT text FROM said")).scalars().all()


def say(stub, text, request_id, user=ALICE):
    return stub.Say(SayRequest(text=text, request_id=request_id), metadata=user)


@pytest.fixture
def request_id():
    return str(uuid.uuid4())


async def test_a_repeat_is_answered_as_the_first_was_and_changes_nothing(stub, db, request_id):
    first = await say(stub, "a", request_id)
    await say(stub, "b", str(uuid.uuid4()))
    assert await say(stub, "a", request_id.upper()) == first
    assert await said(db) == ["a", "b"]


async def test_without_a_request_id_each_call_counts(stub, db):
    for _ in range(2):
        await say(stub, "a", "")
    assert await said(db) == ["a", "a"]


async def test_the_same_id_with_another_body_is_refused(stub, db, request_id):
    await say(stub, "a", request_id)
    with Refused() as refused:
        await say(stub, "b", request_id)
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert refused.details["BadRequest"].field_violations[0].field == "request_id"
    assert await said(db) == ["a"]


async def test_two_users_with_one_request_id_do_not_see_each_others_answer(stub, db, request_id):
    answers = [(await say(stub, "a", request_id, user)).text for user in (ALICE, BOB, as_user("", caller="planner"))]
    assert answers == ["1", "2", "3"]
    assert [(await say(stub, "a", request_id, user)).text for user in (BOB, ALICE)] == ["2", "1"]


async def test_repeats_that_come_while_the_first_runs_wait_for_its_answer(stub, talk, db, request_id):
    first = asyncio.ensure_future(say(stub, "slow", request_id))
    await asyncio.wait_for(talk.begun.wait(), 20)
    repeats = [asyncio.ensure_future(say(stub, "slow", request_id)) for _ in range(6)]  # more than connections
    await waiting_for_a_lock(db.engine.url)
    talk.go.set()
    assert {(await call).text for call in (first, *repeats)} == {"1"}
    assert await said(db) == ["slow"]


async def waiting_for_a_lock(url):
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    engine = sa.ext.asyncio.create_async_engine(url)
    async with engine.connect() as connection, asyncio.timeout(20):
        while not (await connection.execute(sa.text(query))).scalar_one():
            await asyncio.sleep(0.02)
            await connection.rollback()
    await engine.dispose()


async def test_a_call_that_fails_changes_nothing_and_leaves_its_id_free(stub, db, request_id):
    with Refused():
        await say(stub, "refused", request_id)
    assert await said(db) == []
    assert (await say(stub, "a", request_id)).text == "1"


async def test_a_caller_that_goes_away_leaves_its_id_free(stub, talk, db, request_id):
    call = say(stub, "slow", request_id)
    await asyncio.wait_for(talk.begun.wait(), 20)
    call.cancel()
    talk.go.set()
    assert (await say(stub, "slow", request_id)).text == "1"
    assert await said(db) == ["slow"]


async def test_when_the_answer_cannot_be_kept_the_change_is_not_made(stub, db, request_id):
    await execute(db, "ALTER TABLE runtime_answer ADD CHECK (answer IS NULL)")
    with Refused() as refused:
        await say(stub, "a", request_id)
    assert refused.code == grpc.StatusCode.INTERNAL
    assert await said(db) == []


async def test_tasks_of_one_call_take_turns_in_its_transaction(stub, db, request_id):
    assert (await say(stub, "tasks", request_id)).text == "4"
    assert sorted(await said(db)) == ["task 0", "task 1", "task 2", "tasks"]


async def test_a_task_that_a_call_left_behind_goes_on_by_itself(db):
    """What it is at when the call ends is a part of it; what it begins after is its own."""
    inside, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def left_behind():
        async with db.transaction() as connection:
            inside.set()
            await go.wait()
            await connection.execute(sa.text("INSERT INTO said VALUES ('within')"))
        await ended.wait()
        async with db.transaction() as connection:
            await connection.execute(sa.text("INSERT INTO said VALUES ('after')"))

    async with db.unit_of_work():
        task = asyncio.create_task(left_behind())
        await inside.wait()
        asyncio.get_running_loop().call_later(0.05, go.set)
    assert await said(db) == ["within"]
    ended.set()
    await task
    assert await said(db) == ["within", "after"]


async def test_a_task_that_comes_while_its_call_ends_is_told_so(db):
    inside, go, late = asyncio.Event(), asyncio.Event(), []

    async def add():
        async with db.transaction():
            inside.set()
            await go.wait()

    def end():
        late.append(asyncio.ensure_future(add()))
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, go.set)

    async with db.unit_of_work():
        first = asyncio.create_task(add())
        await inside.wait()
        asyncio.get_running_loop().call_later(0.02, end)
    await first
    with pytest.raises(ConnectionError, match="has ended"):
        await asyncio.wait_for(late[0], 20)


async def test_a_block_that_fails_and_is_caught_takes_back_its_own_part_alone(stub, db, request_id):
    assert (await say(stub, "undone", request_id)).text == "1"
    assert await said(db) == ["undone"]


async def test_as_many_calls_as_you_like_need_one_connection_each(stub, db):
    """Were the blocks inside a call to take a second one, ten calls on three connections would wait for ever."""
    await asyncio.wait_for(asyncio.gather(*(say(stub, "a", str(uuid.uuid4())) for _ in range(10))), 30)
    assert len(await said(db)) == 10


async def test_an_answer_is_forgotten_after_its_time_and_cleared_away(stub, db, request_id):
    for n in range(3):
        await say(stub, "old", str(uuid.uuid4()), as_user(f"u{n}"))
    assert (await say(stub, "a", request_id)).text == "4"
    await execute(db, "UPDATE runtime_answer SET create_time = now() - interval '1 day 1 s'")
    assert (await say(stub, "b", request_id)).text == "5"
    assert (await say(stub, "b", request_id)).text == "5"
    assert (await execute(db, "SELECT count(*) FROM runtime_answer")).scalar_one() == 1
    assert answers.LIFE.days == 1


async def test_a_service_whose_method_takes_a_request_id_does_not_start_without_a_database():
    with pytest.raises(RuntimeError, match="TalkService/Say takes a request_id"):
        build_server(Talk(None))


async def test_a_test_without_a_database_keeps_answers_in_memory(request_id):
    class Fake(Servicer):
        said = 0

        async def Say(self, request, context):
            self.said += 1
            return Line(text=str(self.said))

    async with serve_in_memory(Fake()) as channel:
        stub = Stub(channel)
        answers = await asyncio.gather(*(say(stub, "a", request_id, user) for user in (ALICE, BOB, ALICE)))
        alice, bob, again = (answer.text for answer in answers)
        assert {alice, bob} == {"1", "2"}
        assert again == alice
        with Refused() as refused:
            await say(stub, "b", request_id)
        assert refused.reason == "REQUEST_ID_REUSED"
