"""When a process says that it serves."""

import asyncio
import logging
from contextlib import suppress

import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from mesh.runtime.db import database
from mesh.runtime.health import FAILURES, Watch, needing

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def checks():
    made = HealthServicer()
    made._server_status = {"": SERVING, "talk": SERVING}
    return made


@pytest.fixture
def watch(checks):
    return Watch(checks, ("", "talk"))


async def status(checks):
    return {(await checks.Check(health_pb2.HealthCheckRequest(service=name), None)).status for name in ("", "talk")}


async def test_a_need_that_fails_in_a_row_stops_serving_and_one_success_starts_it_again(watch, checks, caplog):
    caplog.set_level(logging.INFO, "mesh.runtime")
    works = False

    async def stream():
        if not works:
            raise OSError("the stream is gone")

    with needing("events", stream):
        for _ in range(FAILURES - 1):
            await watch.check()
            assert await status(checks) == {SERVING}
        await watch.check()
        assert await status(checks) == {NOT_SERVING}
        assert caplog.records[-1].needs == {"events": "OSError: the stream is gone"}
        works = True
        await watch.check()
        assert await status(checks) == {SERVING}
    assert [record.message.partition(":")[0] for record in caplog.records] == ["not serving", "serving again"]


async def test_a_need_that_flaps_changes_nothing(watch, checks):
    turns = iter([True, True, False] * 4)

    async def flaps():
        if next(turns):
            raise OSError

    with needing("events", flaps):
        for _ in range(12):
            await watch.check()
            assert await status(checks) == {SERVING}


async def test_a_need_that_does_not_answer_has_failed(watch, checks):
    with needing("events", asyncio.Event().wait):
        for _ in range(FAILURES):
            await watch.check(seconds=0.01)
    assert await status(checks) == {NOT_SERVING}


async def test_a_database_that_refuses_makes_a_process_ill_until_it_answers(
    watch, checks, postgres_server, postgres_url
):
    async with database(url=postgres_url, pool=1):
        await watch.check()
        assert await status(checks) == {SERVING}
        admin = await postgres_server._connect()
        name = sa.make_url(postgres_url).database
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        for _ in range(FAILURES):
            await watch.check()
        assert await status(checks) == {NOT_SERVING}
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await watch.check()
        assert await status(checks) == {SERVING}
        await admin.close()


async def test_a_database_whose_every_connection_is_at_work_is_not_down(watch, checks, postgres_url):
    async with database(url=postgres_url, pool=1) as db, db.connection():
        for _ in range(FAILURES):
            await watch.check(seconds=0.05)
    assert await status(checks) == {SERVING}


async def test_a_closed_database_is_needed_no_more(watch, checks, postgres_url):
    async with database(url=postgres_url, pool=1):
        pass
    for _ in range(FAILURES):
        await watch.check()
    assert await status(checks) == {SERVING}


async def test_the_watch_goes_on_by_itself(watch, checks):
    async def broken():
        raise OSError

    with needing("events", broken):
        task = asyncio.create_task(watch.run(seconds=0.01))
        async with asyncio.timeout(20):
            while await status(checks) != {NOT_SERVING}:
                await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
