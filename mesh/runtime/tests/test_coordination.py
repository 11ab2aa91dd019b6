"""Locks, semaphores and leaders on a real PostgreSQL, and with processes that are killed and stopped."""

import asyncio
import os
import signal
from contextlib import suppress
from contextvars import Context
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa

from mesh.runtime import database, errors
from mesh.runtime.coordination import Locks, Lost, Taken, admit, lead
from mesh.runtime.testing import serve_in_memory
from mesh.runtime.tests.talk import Line, Refused, SayRequest, Servicer, Stub

EMPTY = (
    "TRUNCATE runtime_lease, runtime_fence, runtime_answer",
    "ALTER SEQUENCE runtime_lease_token RESTART",
    "DROP TABLE IF EXISTS written",
)


@pytest.fixture(scope="module")
def url(postgres_server, postgres_runner):
    """One database for all tests of this file."""
    return postgres_runner.run(postgres_server.create_database("coordination"))


@pytest.fixture
async def db(url):
    async with database(url=url, pool=10) as db:
        for statement in EMPTY:
            await change(db, statement)
        yield db


async def rows(db, query, **values):
    async with db.connection() as connection:
        return [tuple(row) for row in await connection.execute(sa.text(query), values)]


async def change(db, statement):
    async with db.transaction() as connection:
        await connection.execute(sa.text(statement))


async def until(check, seconds=20):
    async with asyncio.timeout(seconds):
        while not (found := await check()):
            await asyncio.sleep(0.02)
    return found


async def test_one_holds_a_lock_at_a_time_and_each_has_a_higher_token(db):
    inside, tokens = [], []

    async def work(locks):
        async with locks.hold("a") as held:
            inside.append(held)
            assert len(inside) == 1
            tokens.append(held.token)
            await asyncio.sleep(0.01)
            inside.remove(held)

    one, two = Locks(db), Locks(db)  # as two processes have them
    await asyncio.gather(*(work(locks) for locks in (one, two) for _ in range(4)))
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 8


async def test_who_does_not_want_to_wait_is_told_that_the_lock_is_taken_and_other_locks_are_free(db):
    locks = Locks(db)
    async with locks.hold("a"):
        with pytest.raises(Taken):
            async with locks.hold("a", wait=0):
                pass
        async with locks.hold("b", wait=0):
            pass
    async with locks.hold("a", wait=0):
        pass


async def test_a_lock_outlives_its_first_lease_as_long_as_its_block_runs(db):
    locks = Locks(db, life=2.0)
    async with locks.hold("a") as held:
        first = await rows(db, "SELECT expire_time FROM runtime_lease")
        await until(lambda: _is_over(db, first[0][0]))
        with pytest.raises(Taken):
            async with locks.hold("a", wait=0):
                pass
        async with held.transaction():
            pass


async def _is_over(db, time):
    return (await rows(db, "SELECT clock_timestamp() > :time", time=time))[0][0]


async def test_a_holder_whose_lease_passed_to_another_writes_nothing_and_ends(db):
    """As after a stop of the whole process: by the database's clock its lease is over."""
    await change(db, "CREATE TABLE written (token bigint)")
    locks, late = Locks(db, life=60), []
    with pytest.raises(Lost):
        async with locks.hold("a") as old:
            await change(db, "UPDATE runtime_lease SET expire_time = clock_timestamp()")
            async with locks.hold("a") as new:
                assert new.token > old.token
                async with new.transaction() as connection:
                    await connection.execute(sa.text("INSERT INTO written VALUES (:token)"), {"token": new.token})
            late.append("woke up")
            async with old.transaction() as connection:
                await connection.execute(sa.text("INSERT INTO written VALUES (:token)"), {"token": old.token})
            late.append("wrote")
    assert (late, await rows(db, "SELECT token FROM written")) == (["woke up"], [(new.token,)])


async def test_work_that_cannot_renew_its_lease_is_cancelled_before_anybody_takes_it(db):
    locks = Locks(db, life=1.5)
    async with db.transaction() as connection:
        with pytest.raises(Lost):
            async with locks.hold("a"):
                await connection.execute(sa.text("LOCK runtime_lease IN SHARE ROW EXCLUSIVE MODE"))
                try:
                    await asyncio.sleep(20)
                finally:
                    await connection.commit()


async def test_nobody_takes_a_lock_while_its_holder_is_in_its_transaction_though_the_lease_is_over(db):
    locks = Locks(db, life=60)
    async with locks.hold("a") as held:
        async with held.transaction():
            await change(db, "UPDATE runtime_lease SET expire_time = clock_timestamp()")  # as a renewal: not held up

            async def take():
                async with locks.hold("a") as other:
                    return other.token

            taking = asyncio.create_task(take())
            await until(lambda: rows(db, "SELECT 1 FROM pg_locks WHERE NOT granted"))
            assert not taking.done()
        assert await taking > held.token


async def test_in_a_call_with_a_request_id_others_see_at_once_that_the_lock_is_held_and_given_back(db):
    locks, seen = Locks(db), []

    class Talk(Servicer):
        async def Say(self, request, context):
            async with locks.hold("a"):
                seen.append(await taken())
            seen.append(await taken())
            return Line()

    async def taken():
        return await asyncio.create_task(try_it(), context=Context())

    async def try_it():
        with suppress(Taken):
            async with locks.hold("a", wait=0):
                return False
        return True

    async with serve_in_memory(Talk()) as channel:
        await Stub(channel).Say(SayRequest(request_id="r1"))
    assert seen == [True, False]


async def test_a_handler_that_finds_a_lock_taken_or_lost_needs_no_code_for_it(db):
    locks = Locks(db, life=60)

    class Talk(Servicer):
        async def Hear(self, request, context):
            async with locks.hold("a", wait=0 if request.text == "taken" else None):
                await change(db, "UPDATE runtime_lease SET expire_time = clock_timestamp()")
                async with locks.hold("a") as held, held.transaction():
                    raise Lost("a")

    async with serve_in_memory(Talk()) as channel:
        with Refused() as lost:
            await Stub(channel).Hear(Line(text="lost"))
        async with locks.hold("a"):
            with Refused() as taken:
                await Stub(channel).Hear(Line(text="taken"))
    assert (lost.code, taken.code) == (grpc.StatusCode.ABORTED, grpc.StatusCode.ABORTED)


async def test_of_a_semaphore_no_more_than_its_places_are_held_over_all_processes(db):
    inside, most = 0, 0

    async def work(locks):
        nonlocal inside, most
        async with locks.semaphore("s", 3):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.02)
            inside -= 1

    one, two = Locks(db), Locks(db)
    await asyncio.gather(*(work(locks) for locks in (one, two) for _ in range(6)))
    assert most == 3


async def test_a_place_whose_holder_died_is_free_when_its_lease_is_over(db):
    locks = Locks(db)
    async with locks.semaphore("s", 2) as one, locks.semaphore("s", 2) as two:
        assert {one.place, two.place} == {0, 1}
        with pytest.raises(Taken):
            async with locks.semaphore("s", 2, wait=0):
                pass
    dead = "INSERT INTO runtime_lease VALUES ('d', 0, 'dead', 0, clock_timestamp() + interval '0.3 s')"
    await change(db, dead)  # as a process leaves it that was killed
    async with locks.semaphore("d", 1):
        assert await rows(db, "SELECT holder <> 'dead' FROM runtime_lease WHERE name = 'd'") == [(True,)]


async def test_elsewhere_the_token_of_an_earlier_holder_is_refused(db):
    async with db.transaction() as connection:
        for token in (5, 5, 7):
            await admit(connection, "a", token)
        await admit(connection, "b", 6)
    with pytest.raises(errors.ServiceError, match="passed to another"):
        async with db.transaction() as connection:
            await admit(connection, "a", 6)


async def test_what_nobody_wanted_for_a_day_is_forgotten_and_tokens_rise_all_the_same(db):
    locks = Locks(db)
    async with locks.hold("old") as old:
        pass
    await change(db, "UPDATE runtime_lease SET expire_time = now() - interval '2 days'")
    async with locks.hold("other"):
        pass
    assert await rows(db, "SELECT name FROM runtime_lease") == [("other",)]
    async with locks.hold("old") as new:
        assert new.token > old.token


async def test_a_leader_whose_work_fails_gives_the_lead_back_and_stands_again(db, monkeypatch):
    monkeypatch.setattr("mesh.runtime.coordination.leader._BACKOFF", errors_soon())
    led = []

    async def work(held):
        led.append(held.token)
        raise RuntimeError

    async with lead(db, "a", work):
        await until(lambda: asyncio.sleep(0, len(led) >= 3))
    assert led == sorted(set(led))
    async with Locks(db).hold("a", wait=0):
        pass


def errors_soon():
    from mesh.runtime.backoff import Backoff

    return Backoff("fixed", first=0.01, limit=0.01)


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def standing(db, url, forker):
    """Two processes that stand for one lead; gives their pids."""
    await change(db, "CREATE TABLE acted (id serial, pid int, token bigint)")
    await change(db, "CREATE TABLE lost (id serial, pid int, token bigint)")
    pids = [forker.start("mesh.runtime.tests.leader_crashing:stand", url, 1.5) for _ in "ab"]
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def acting(db, *, but=0):
    """The process that acted last, once one did that is another than that one."""
    query = "SELECT pid FROM acted WHERE pid <> :but ORDER BY id DESC LIMIT 1"
    return (await until(lambda: rows(db, query, but=but)))[0][0]


async def test_a_leader_stopped_in_its_transaction_writes_nothing_when_it_wakes_and_a_killed_one_is_followed(
    db, standing
):
    await until(lambda: asyncio.sleep(0, any(_stopped(pid) for pid in standing)))
    first = next(pid for pid in standing if _stopped(pid))
    second = await acting(db, but=first)
    os.kill(first, signal.SIGCONT)
    await until(lambda: rows(db, "SELECT 1 FROM lost WHERE pid = :pid", pid=first))
    assert await rows(db, "SELECT count(*) FROM acted WHERE token = 1") == [(4,)]
    os.kill(second, signal.SIGKILL)
    newest = "SELECT 1 FROM acted WHERE pid = :pid AND token > (SELECT max(token) FROM acted WHERE pid <> :pid)"
    await until(lambda: rows(db, newest, pid=first))
    tokens = [token for (token,) in await rows(db, "SELECT token FROM acted ORDER BY id")]
    assert tokens == sorted(tokens), "what a leader writes is behind all that earlier ones wrote"


def _stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
