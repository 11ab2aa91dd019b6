"""What reaches a caller of what went wrong: engines' own words never do."""

import asyncio
import logging

import grpc
import pytest
import sqlalchemy as sa

from mesh.runtime import errors
from mesh.runtime.db import database
from mesh.runtime.testing import serve_in_memory
from mesh.runtime.tests.talk import Line, Refused, Servicer, Stub

SECRET = "secret_table"


class Talk(Servicer):
    """Does what a test gives it."""

    def __init__(self, work):
        self.work = work

    async def Hear(self, request, context):
        await self.work()
        return Line()


async def refusal(work):
    async with serve_in_memory(Talk(work)) as channel:
        with Refused() as refused:
            await Stub(channel).Hear(Line(), metadata=(("x-request-id", "r-1"),), timeout=20)
    assert SECRET not in refused.whole
    assert refused.details["RequestInfo"].request_id == "r-1"
    return refused


@pytest.fixture
async def db(postgres_url):
    async with database(url=postgres_url, pool=3) as opened:
        async with opened.transaction() as connection:
            await connection.execute(sa.text(f"CREATE TABLE {SECRET} (id int PRIMARY KEY, name text)"))
            await connection.execute(sa.text(f"INSERT INTO {SECRET} VALUES (1, 'a'), (2, 'b')"))
        yield opened


ENGINE = {
    f"INSERT INTO {SECRET} VALUES (1)": "ALREADY_EXISTS",
    "SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)": "DEADLINE_EXCEEDED",
    f"SET LOCAL lock_timeout = 1; LOCK {SECRET}": "CONFLICT",
    "SELECT pg_terminate_backend(pg_backend_pid())": "UNAVAILABLE",
    f"SET TRANSACTION READ ONLY; DELETE FROM {SECRET}": "UNAVAILABLE",
    f"SELECT {SECRET}_column FROM {SECRET}": "INTERNAL",
    f"INSERT INTO {SECRET} VALUES (NULL)": "INTERNAL",
}


@pytest.mark.parametrize("way", ["transaction", "raw"])
@pytest.mark.parametrize("sql", ENGINE, ids=ENGINE.values())
async def test_an_error_of_the_database_is_told_by_its_reason_alone(db, sql, way):
    async def work():
        async with db.connection() as other:
            await other.execution_options(isolation_level="READ COMMITTED")
            await other.execute(sa.text(f"SELECT * FROM {SECRET}"))  # a lock in the way of LOCK
            async with getattr(db, way)() as connection:
                if way == "raw":
                    await connection.execute(f"BEGIN; {sql}")
                    return
                for statement in sql.split("; "):
                    await connection.execute(sa.text(statement))

    refused = await refusal(work)
    assert refused.reason == ENGINE[sql]
    assert refused.code == errors.ServiceError(getattr(errors.Reason, f"REASON_{ENGINE[sql]}"), "").code


async def test_a_text_that_cannot_be_stored_is_the_callers_to_mend(db):
    async def work():
        async with db.transaction() as connection:
            await connection.execute(sa.text(f"UPDATE {SECRET} SET name = :name"), {"name": "a\0b"})

    assert (await refusal(work)).reason == "INVALID_ARGUMENT"


@pytest.mark.parametrize("way", ["transaction", "raw"])
async def test_what_people_entered_is_not_logged(db, caplog, way):
    """Neither as the statement's parameter nor in PostgreSQL's "Failing row contains (...)"."""
    entered = "ill" * 3

    async def work():
        async with getattr(db, way)() as connection:
            if way == "raw":
                await connection.execute(f"INSERT INTO {SECRET} VALUES (NULL, $1)", entered)
            else:
                await connection.execute(sa.text(f"INSERT INTO {SECRET} VALUES (NULL, :name)"), {"name": entered})

    await refusal(work)
    assert "not-null constraint" in caplog.text
    assert entered not in caplog.text


async def test_of_two_changes_that_deadlock_one_is_told_to_come_again(db):
    async def change(first, second, mine, other):
        async with db.transaction() as connection:
            update = sa.text(f"UPDATE {SECRET} SET name = 'x' WHERE id = :id")
            await connection.execute(update, {"id": first})
            mine.set()
            await other.wait()
            await connection.execute(update, {"id": second})

    def work(*ids):
        one, two = asyncio.Event(), asyncio.Event()
        return asyncio.gather(change(*ids, one, two), change(*reversed(ids), two, one))

    assert (await refusal(lambda: work(1, 2))).reason == "CONFLICT"


async def test_an_unknown_error_has_a_fixed_text_and_the_original_is_logged(caplog):
    async def work():
        raise RuntimeError(SECRET)

    with caplog.at_level(logging.ERROR, "mesh.runtime"):
        refused = await refusal(work)
    assert (refused.code, refused.text) == (grpc.StatusCode.INTERNAL, errors.INTERNAL_TEXT)
    assert SECRET in str(caplog.records[-1].exc_info[1])


async def test_the_first_failure_of_a_task_group_is_told(caplog):
    async def fails():
        raise errors.not_found("talks/x")

    async def work():
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            group.create_task(fails())

    assert (await refusal(work)).reason == "NOT_FOUND"


async def test_a_cancelled_task_that_a_handler_waited_for_is_answered():
    """gRPC itself would leave the caller to wait for its deadline."""

    async def work():
        task = asyncio.create_task(asyncio.sleep(3600))
        task.cancel()
        await task

    assert (await refusal(work)).reason == "INTERNAL"


async def test_bytes_that_are_no_message_are_refused_without_the_parsers_words():
    async with serve_in_memory(Talk(None)) as channel:
        call = channel.unary_unary("/nourish.talk.v1.TalkService/Hear")
        with Refused() as refused:
            await call(b"\xff\xff\xff")
    assert refused.reason == "INVALID_ARGUMENT"
    assert "DecodeError" not in refused.whole


async def test_a_method_without_code_is_unimplemented():
    async with serve_in_memory(Talk(None)) as channel:
        with Refused() as refused:
            await Stub(channel).Missing(Line())
    assert refused.reason == "UNIMPLEMENTED"
