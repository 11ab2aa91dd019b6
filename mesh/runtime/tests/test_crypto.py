"""What is sensitive by the contract is told from the rest, encrypted, and found again; on a real PostgreSQL."""

import asyncio

import pytest
import sqlalchemy as sa
from google.longrunning.operations_pb2 import Operation
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from nourish.food.v1.food_pb2 import Food
from nourish.food.v1.operation_pb2_grpc import OperationServiceServicer, OperationServiceStub
from nourish.profile.v1.profile_pb2 import CreateProfileRequest, ListProfilesResponse, Profile
from nourish.type.v1 import operations_pb2

from mesh.runtime import database, jobs, sagas
from mesh.runtime.crypto.parts import may_be_sensitive, take_out
from mesh.runtime.db import acting_for
from mesh.runtime.testing import as_user, serve_in_memory

PROFILE = Profile(name="profiles/1", diet=4, weight_kg=0.0, medications=["warfarin"], birth_date={"year": 1990})


def packed(message):
    found = Any()
    found.Pack(message)
    return found


MESSAGES = [
    PROFILE,
    CreateProfileRequest(profile=PROFILE, request_id="x"),
    ListProfilesResponse(profiles=[PROFILE, Profile(name="profiles/2")], next_page_token="t"),
    packed(PROFILE),
    Operation(name="operations/1", response=packed(PROFILE)),
    Any(type_url="type.googleapis.com/nobody.knows.It", value=b"warfarin"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_the_two_parts_of_a_message_are_the_whole_and_one_has_nothing_sensitive(message):
    rest = type(message)()
    rest.CopyFrom(message)
    taken = take_out(rest)
    assert b"warfarin" in taken.SerializeToString()
    assert b"warfarin" not in rest.SerializeToString()
    assert type(message).FromString(rest.SerializeToString() + taken.SerializeToString()) == message
    assert may_be_sensitive(message.DESCRIPTOR)


def test_a_message_without_sensitive_fields_stays_as_it_is():
    food = Food(name="foods/1", display_name="Onions, raw")
    assert not take_out(food).ByteSize()
    assert not may_be_sensitive(Food.DESCRIPTOR)


@pytest.fixture
async def db(postgres_url, keys, monkeypatch):
    monkeypatch.setattr("mesh.runtime.jobs.workers.POLL_SECONDS", 0.1)
    async with database(url=postgres_url, pool=8, keys=keys) as opened:
        yield opened


async def test_a_stored_message_is_read_by_its_place_and_owner_alone_and_its_open_part_by_anybody(db):
    async with acting_for("alice"), db.transaction() as connection:
        stored = await db.keys.dump(connection, PROFILE, "a/1")
        assert b"warfarin" not in stored
        assert Profile.FromString(stored).diet == 4
        assert not Profile.FromString(stored).medications
        assert Profile.FromString(await db.keys.load(connection, stored, "a/1")) == PROFILE
        for broken, place in ((stored, "a/2"), (stored[:40] + b"x" + stored[41:], "a/1")):
            with pytest.raises((ValueError, DecodeError)):
                Profile.FromString(await db.keys.load(connection, broken, place))
        assert await db.keys.load(connection, PROFILE.SerializeToString(), "a/1") == PROFILE.SerializeToString()


class Advising:
    """A job that is asked for with a profile, reports one and answers with one; it fails at first."""

    @jobs.job(CreateProfileRequest, tries=3, backoff=jobs.Backoff("fixed", first=0.01, limit=0.01))
    async def advise(self, argument, job):
        before = job.progress(Profile)
        await job.report(argument.profile)
        if not before.medications:
            raise RuntimeError
        async with acting_for("somebody else"):
            await job.report(before)
        return before


async def test_a_job_holds_nothing_sensitive_in_the_open_and_its_user_sees_the_whole(db):
    class Serving(jobs.Operations, OperationServiceServicer):
        """Its operations."""

    argument = CreateProfileRequest(profile=Profile(display_name="Gwendolyn", weight_kg=61, medications=["warfarin"]))
    async with jobs.work(db, Advising()), asyncio.timeout(20):
        async with acting_for("alice"), db.transaction() as connection:
            operation = await jobs.begin(connection, argument)
        while not (row := await job_row(db)).end_time:
            await asyncio.sleep(0.02)
    assert (row.state, row.failures) == ("succeeded", 1)
    for stored in (row.argument, row.progress, row.response):
        assert stored
        assert b"warfarin" not in stored
        assert b"Gwendolyn" not in stored
    async with serve_in_memory(Serving(db)) as channel:
        request = operations_pb2.ListOperationsRequest()
        (shown,) = (await OperationServiceStub(channel).ListOperations(request, metadata=as_user("alice"))).operations
    assert shown.name == operation.name
    for held in (shown.response, shown.metadata):
        profile = Profile()
        assert held.Unpack(profile)
        assert profile == argument.profile


async def job_row(db):
    async with db.connection() as connection:
        return (await connection.execute(sa.text("SELECT * FROM runtime_job"))).one()


MOVED = Profile(display_name="Gwendolyn", medications=["warfarin"])


class Moving:
    """A saga whose first step answers with a profile, which the second, tried twice, reads from the log."""

    def __init__(self):
        self.read = []

    @sagas.saga(CreateProfileRequest)
    def move(self):
        backoff = jobs.Backoff("fixed", first=0.01, limit=0.01)
        return [sagas.step(self.take), sagas.step(self.give, backoff=backoff)]

    async def take(self, argument, call):
        return argument.profile

    async def give(self, argument, call):
        self.read.append(call.response("take", Profile))
        if len(self.read) == 1:
            raise RuntimeError


async def test_what_the_step_of_a_saga_answered_is_not_kept_in_the_open_and_later_steps_read_it(db):
    moving = Moving()
    async with jobs.work(db, moving), asyncio.timeout(20):
        async with acting_for("alice"), db.transaction() as connection:
            await jobs.enqueue(connection, CreateProfileRequest(profile=MOVED))
        while not (row := await job_row(db)).end_time:
            await asyncio.sleep(0.02)
    assert (row.state, moving.read) == ("succeeded", [MOVED] * 2)
    async with db.connection() as connection:
        query = sa.text("SELECT response FROM runtime_saga_step WHERE name = 'take'")
        stored = (await connection.execute(query)).scalar_one()
    assert stored
    assert b"warfarin" not in stored
