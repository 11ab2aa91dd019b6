"""Jobs on a real PostgreSQL: what is enqueued, when, by whom and how often it is done."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.empty_pb2 import Empty
from nourish.food.v1.food_pb2 import (
    DeleteFoodRequest,
    GetFoodRequest,
    ImportFoodsMetadata,
    ImportFoodsResponse,
    ListFoodsRequest,
)
from nourish.food.v1.operation_pb2_grpc import OperationServiceServicer, OperationServiceStub
from nourish.type.v1 import operations_pb2

from mesh.runtime import auth, database, errors, jobs
from mesh.runtime.testing import as_user, serve_in_memory

CRASHING = Path(__file__).parent / "jobs_crashing.py"
SOON = jobs.Backoff("fixed", first=0.01, limit=0.01)


def get(name="x"):
    return GetFoodRequest(name=f"foods/{name}")


class Doing:
    """Does jobs, each by a function that a test gives."""

    def __init__(self, do=None):
        self.do = do
        self.done = []
        self.at_once = self.most = 0

    @jobs.job(GetFoodRequest, tries=3, backoff=SOON, seconds=30)
    async def first(self, argument, job):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            response = await self.do(argument, job) if self.do else None
            self.done.append(argument.name.removeprefix("foods/"))
            return response
        finally:
            self.at_once -= 1


class Limited(Doing):
    @jobs.job(DeleteFoodRequest, limit=2)
    async def second(self, argument, job):
        return await self.first(argument, job)


@pytest.fixture
async def db(postgres_url, monkeypatch):
    monkeypatch.setattr("mesh.runtime.jobs.workers.POLL_SECONDS", 0.1)
    async with database(url=postgres_url, pool=8) as db:
        yield db


async def ask(db, *arguments, **options):
    async with db.transaction() as connection:
        return [await jobs.enqueue(connection, argument, **options) for argument in arguments]


async def rows(
    db, statement="SELECT id, state, attempt, failures, detail, error FROM runtime_job ORDER BY create_time"
):
    async with db.connection() as connection:
        return (await connection.execute(sa.text(statement))).all()


async def until(check, seconds=20):
    async with asyncio.timeout(seconds):
        while not (found := await check()):
            await asyncio.sleep(0.02)
    return found


async def ended(db):
    """All jobs, once none is left to do."""

    async def check():
        found = await rows(db)
        return found if all(r.state in ("succeeded", "failed", "cancelled") for r in found) else None

    return await until(check)


async def test_a_job_runs_if_its_transaction_commits_and_never_if_it_is_rolled_back(db):
    doing = Doing()
    async with jobs.work(db, doing):
        with pytest.raises(RuntimeError):
            async with db.transaction() as connection:
                await jobs.enqueue(connection, get("undone"))
                raise RuntimeError
        await ask(db, get("done"))
        await ended(db)
    assert doing.done == ["done"]


async def test_a_second_job_of_the_same_id_is_none(db):
    doing = Doing()
    async with jobs.work(db, doing):
        await ask(db, get("one"), id="a")
        await ended(db)
        await ask(db, get("two"), id="a")
        await ask(db, get("three"), id="b")
        await ended(db)
    assert doing.done == ["one", "three"]


async def test_the_higher_priority_comes_first_and_nothing_before_its_time(db):
    doing = Doing()
    async with jobs.work(db, doing, workers=0):
        await ask(db, get("low"))
        await ask(db, get("high"), priority=9)
        await ask(db, get("later"), priority=99, run_at=datetime.now(UTC) + timedelta(hours=1))
    async with jobs.work(db, doing, workers=1):
        await until(lambda: asyncio.sleep(0, len(doing.done) == 2))
    assert doing.done == ["high", "low"]
    assert [r.state for r in await rows(db)].count("queued") == 1


async def test_of_a_limited_kind_no_more_run_at_once_over_two_processes(db):
    pause = asyncio.Event()

    async def wait(argument, job):
        await asyncio.wait_for(pause.wait(), 20)

    doing = Limited(wait)  # stands for both processes, and counts what runs in either
    async with jobs.work(db, doing), jobs.work(db, doing):
        await ask(db, *(DeleteFoodRequest(name=f"foods/{n}") for n in range(6)))
        await until(lambda: asyncio.sleep(0, doing.at_once == 2))
        # The queue is asked again at each change of it: this one comes behind all six.
        await ask(db, get("unlimited"))
        await until(lambda: asyncio.sleep(0, doing.at_once == 3))
        pause.set()
        await ended(db)
    assert doing.most == 3
    assert len(doing.done) == 7


async def test_of_the_jobs_with_one_key_one_runs_at_a_time(db):
    async def wait(argument, job):
        await asyncio.sleep(0.01)

    doing = Doing(wait)
    async with jobs.work(db, doing), jobs.work(db, doing):
        await ask(db, *(get(n) for n in range(3)), key="alice")
        found = await ended(db)
    assert doing.most == 1
    assert [r.failures for r in found] == [0, 0, 0]


async def test_a_failure_is_tried_again_and_the_last_one_is_kept_with_its_reason(db):
    async def fail(argument, job):
        raise LookupError("no such secret table")

    async with jobs.work(db, Doing(fail)):
        (id_,) = await ask(db, get())
        (row,) = await ended(db)
    assert (row.id, row.state, row.attempt, row.failures) == (id_, "failed", 3, 3)
    assert row.detail == "LookupError: no such secret table"
    assert b"secret" not in row.error, "an operation shows this to its user"


async def test_what_the_caller_did_wrong_is_not_tried_again(db):
    async def fail(argument, job):
        raise errors.not_found(argument.name)

    async with jobs.work(db, Doing(fail)):
        await ask(db, get())
        (row,) = await ended(db)
    assert (row.state, row.attempt) == ("failed", 1)


async def test_an_attempt_that_takes_too_long_is_a_failure(db):
    class Slow:
        @jobs.job(GetFoodRequest, tries=1, seconds=0.05)
        async def slow(self, argument, job):
            await asyncio.sleep(60)

    async with jobs.work(db, Slow()):
        await ask(db, get())
        (row,) = await ended(db)
    assert (row.state, row.detail) == ("failed", "TimeoutError: ")


async def test_a_job_runs_as_the_user_and_request_that_asked_for_it(db):
    seen = []

    async def look(argument, job):
        call = auth.current.get()
        seen.append((auth.principal().user, call.request_id, call.headers["traceparent"], auth.AUTHORIZATION_HEADER))
        assert auth.AUTHORIZATION_HEADER not in call.headers

    headers = dict([*as_user("alice"), ("x-request-id", "r1"), ("traceparent", "t1"), ("authorization", "Bearer x")])
    async with jobs.work(db, Doing(look)):
        token = auth.current.set(auth.CallInfo(headers=headers))
        await ask(db, get())
        auth.current.reset(token)
        await ended(db)
    assert seen == [("alice", "r1", "t1", "authorization")]


async def test_a_scheduled_job_runs_once_at_each_time_over_two_instances(db):
    times = []

    class Ticking:
        def __init__(self):
            self.times = times

        @jobs.job(ListFoodsRequest, cron="* * * * * *")
        async def tick(self, argument, job):
            self.times.append(job.id)

    async with jobs.work(db, Ticking()), jobs.work(db, Ticking()):
        await until(lambda: asyncio.sleep(0, len(times) >= 3))
    assert len(set(times)) == len(times)


async def test_what_a_stopping_process_cannot_finish_another_does_and_it_is_no_failure(db, monkeypatch):
    monkeypatch.setattr("mesh.runtime.jobs.workers.DRAIN_SECONDS", 0.1)
    began = asyncio.Event()

    async def hang(argument, job):
        began.set()
        await asyncio.sleep(60)

    async with jobs.work(db, Doing(hang)):
        await ask(db, get())
        await began.wait()
    second = Doing()
    async with jobs.work(db, second):
        (row,) = await ended(db)
    assert (row.state, row.attempt, row.failures, second.done) == ("succeeded", 2, 0, ["x"])


async def test_a_process_taken_for_dead_keeps_nothing_of_what_it_does_then(db, monkeypatch):
    """Its lease is over while it hangs, and another does the job: what it writes when it wakes up is undone."""
    began, taken, woke, outcomes = asyncio.Event(), asyncio.Event(), asyncio.Event(), []

    async def first(argument, job):
        began.set()
        await asyncio.wait_for(taken.wait(), 20)
        try:
            async with job.transaction():
                outcomes.append("wrote")
        except jobs.Superseded:
            outcomes.append("superseded")
            raise
        finally:
            woke.set()

    async def second(argument, job):
        taken.set()
        await asyncio.wait_for(woke.wait(), 20)

    monkeypatch.setattr("mesh.runtime.jobs.workers.POLL_SECONDS", 600)  # it hangs
    async with jobs.work(db, Doing(first)):
        await ask(db, get())
        await began.wait()
        async with db.transaction() as connection:
            await connection.execute(sa.text("UPDATE pgqueuer SET heartbeat = now() - interval '1 hour'"))
        monkeypatch.setattr("mesh.runtime.jobs.workers.POLL_SECONDS", 0.1)
        async with jobs.work(db, Doing(second)):
            (row,) = await ended(db)
    assert (outcomes, row.state, row.attempt) == (["superseded"], "succeeded", 2)


async def test_what_has_lost_its_place_in_the_queue_gets_another(db):
    doing = Doing()
    async with jobs.work(db, doing, workers=0):
        await ask(db, get())
        async with db.transaction() as connection:
            await connection.execute(sa.text("DELETE FROM pgqueuer"))
    async with jobs.work(db, doing):
        await ended(db)
    assert doing.done == ["x"]


async def test_workers_outlive_their_connections(db, postgres_url):
    doing = Doing()
    async with jobs.work(db, doing):
        await ask(db, get("before"))
        await ended(db)
        async with database(url=postgres_url) as other, other.connection() as connection:
            await connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%pgqueuer%'"
                )
            )
        await until(lambda: _asked(db))
        await ended(db)
    assert doing.done == ["before", "after"]


async def _asked(db):
    try:
        return await ask(db, get("after"), id="after")
    except ConnectionError:  # the pool's connections were ended as well
        return None


# --- kill -9 ----------------------------------------------------------------------------------------------------------


async def test_a_worker_killed_at_any_step_loses_nothing_and_its_effect_is_there_once(db, postgres_url):
    """Each job's first worker is killed at another step: before and after each write, and in between."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CRASHING),
        postgres_url,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    steps = (await asyncio.wait_for(process.stdout.read(), 60)).decode().split()
    assert await process.wait() == 0
    assert len(steps) == 8

    async def effect(argument, job):
        async with job.transaction() as connection:
            await connection.execute(sa.text("INSERT INTO effect VALUES (:job)"), {"job": job.id})
            await job.succeed()

    async with jobs.work(db, Doing(effect), lease=0.5):
        found = await ended(db)
        left = "SELECT count(*) FROM pgqueuer"
        await until(lambda: _none(db, left))
    assert {r.id: r.state for r in found} == dict.fromkeys(steps, "succeeded")
    assert sorted(r.job for r in await rows(db, "SELECT job FROM effect")) == sorted(steps)


async def _none(db, count):
    return (await rows(db, count))[0][0] == 0


async def test_a_job_that_kills_its_process_each_time_ends_as_failed(db):
    async with jobs.work(db, Doing(), workers=0):
        await ask(db, get())
    async with db.transaction() as connection:  # as three killed processes leave it
        await connection.execute(sa.text("UPDATE runtime_job SET state = 'running', attempt = 3, failures = 2"))
    doing = Doing()
    async with jobs.work(db, doing):
        (row,) = await ended(db)
    assert (row.state, row.detail, doing.done) == ("failed", "its process died in each of 3 attempts", [])


# --- Operations -------------------------------------------------------------------------------------------------------


class OperationService(jobs.Operations, OperationServiceServicer):
    """Of the food service."""


@asynccontextmanager
async def operations(db, do):
    async with jobs.work(db, Doing(do)), serve_in_memory(OperationService(db)) as channel:
        yield OperationServiceStub(channel)


async def begin(db, user="alice"):
    token = auth.current.set(auth.CallInfo(headers=dict(as_user(user))))
    async with db.transaction() as connection:
        operation = await jobs.begin(connection, get())
    auth.current.reset(token)
    return operation.name


def named(kind, name):
    return getattr(operations_pb2, f"{kind}OperationRequest")(name=name)


ALICE = as_user("alice")


async def test_an_operation_shows_its_progress_and_its_response(db):
    go_on = asyncio.Event()

    async def do(argument, job):
        await job.report(ImportFoodsMetadata(done=1, total=2))
        await asyncio.wait_for(go_on.wait(), 20)
        assert job.progress(ImportFoodsMetadata).done == 1
        return ImportFoodsResponse(names=["foods/a"])

    async with operations(db, do) as stub:
        name = await begin(db)
        assert name.startswith("operations/food/")
        watched = []
        async for operation in stub.WatchOperation(named("Watch", name), metadata=ALICE):
            metadata = ImportFoodsMetadata()
            operation.metadata.Unpack(metadata)
            watched.append((operation.done, metadata.done))
            if metadata.done:
                go_on.set()
        done = await stub.WaitOperation(named("Wait", name), metadata=ALICE)
        response = ImportFoodsResponse()
        assert done.response.Unpack(response)
    assert watched[-2:] == [(False, 1), (True, 1)]
    assert list(response.names) == ["foods/a"]


async def test_an_operation_that_runs_is_cancelled_at_its_next_report(db):
    began = asyncio.Event()

    async def do(argument, job):
        began.set()
        while True:
            await job.report()
            await asyncio.sleep(0.01)

    async with operations(db, do) as stub:
        name = await begin(db)
        await began.wait()
        await stub.CancelOperation(named("Cancel", name), metadata=ALICE)
        operation = await stub.WaitOperation(named("Wait", name), metadata=ALICE)
        assert (operation.done, operation.error.code) == (True, grpc.StatusCode.CANCELLED.value[0])
        assert await stub.DeleteOperation(named("Delete", name), metadata=ALICE) == Empty()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetOperation(named("Get", name), metadata=ALICE)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_an_operation_that_waits_is_cancelled_at_once_and_never_runs(db):
    doing = Doing()
    async with jobs.work(db, doing, workers=0), serve_in_memory(OperationService(db)) as channel:
        stub, name = OperationServiceStub(channel), await begin(db)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DeleteOperation(named("Delete", name), metadata=ALICE)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        await stub.CancelOperation(named("Cancel", name), metadata=ALICE)
        assert (await stub.GetOperation(named("Get", name), metadata=ALICE)).done
    async with jobs.work(db, doing):
        await until(lambda: _none(db, "SELECT count(*) FROM pgqueuer"))
    assert doing.done == []


@pytest.mark.parametrize("method", ["Get", "Cancel", "Delete", "Wait", "Watch"])
async def test_an_operation_of_another_user_does_not_exist(db, method):
    async with jobs.work(db, Doing(), workers=0), serve_in_memory(OperationService(db)) as channel:
        stub, name = OperationServiceStub(channel), await begin(db)
        call = getattr(stub, f"{method}Operation")(named(method, name), metadata=as_user("mallory"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [item async for item in call] if method == "Watch" else await call
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert not (await stub.GetOperation(named("Get", name), metadata=ALICE)).done


async def test_a_user_lists_the_own_operations_newest_first_and_no_other_jobs(db):
    async with jobs.work(db, Doing(), workers=0), serve_in_memory(OperationService(db)) as channel:
        names = [await begin(db) for _ in range(3)]
        await begin(db, "mallory")
        await ask(db, get())
        stub, listed, token = OperationServiceStub(channel), [], ""
        while token or not listed:
            request = operations_pb2.ListOperationsRequest(page_size=2, page_token=token)
            page = await stub.ListOperations(request, metadata=ALICE)
            listed += [operation.name for operation in page.operations]
            token = page.next_page_token
    assert listed == names[::-1]
