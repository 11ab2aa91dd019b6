"""What tests of services stand on is true itself: the fake is as the store, the clock stops, events are caught."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf import descriptor_pool
from nourish.food.v1.food_pb2 import CreateFoodRequest, Food, FoodsImported

from mesh.runtime import auth, clock, database, errors, events
from mesh.runtime.answers import StoredAnswers
from mesh.runtime.handlers import MethodInfo
from mesh.runtime.testing import MemoryAnswers, Outbox, published, stopped_clock

CREATE = MethodInfo.of(descriptor_pool.Default().FindMethodByName("nourish.food.v1.FoodService.CreateFood"))


@pytest.fixture
async def db(postgres_url):
    async with database(url=postgres_url, pool=3) as opened:
        yield opened


class AnswersSuite:
    """What holds for every store of answers; a subclass says which by its fixture `answers`."""

    @pytest.fixture(autouse=True)
    def request_(self):
        self.request = CreateFoodRequest(food=Food(display_name="Soup"), request_id=str(uuid.uuid4()))
        self.made = 0

    async def make(self):
        self.made += 1
        await asyncio.sleep(0)
        return Food(name=f"foods/{self.made}")

    async def fail(self):
        raise errors.failed_precondition("not now")

    async def test_a_repeat_gets_the_first_answer(self, answers):
        both = [await answers.once(CREATE, self.request, self.make) for _ in range(2)]
        assert [food.name for food in both] == ["foods/1", "foods/1"]

    async def test_repeats_at_once_get_one_answer(self, answers):
        found = await asyncio.gather(*(answers.once(CREATE, self.request, self.make) for _ in range(5)))
        assert {food.name for food in found} == {"foods/1"}

    async def test_another_body_is_refused(self, answers):
        await answers.once(CREATE, self.request, self.make)
        self.request.food.display_name = "Stew"
        with pytest.raises(errors.ServiceError, match="request_id"):
            await answers.once(CREATE, self.request, self.make)
        assert self.made == 1

    async def test_another_user_has_an_answer_of_their_own(self, answers):
        await answers.once(CREATE, self.request, self.make)
        token = auth.current.set(auth.CallInfo(headers={auth.USER_HEADER: "bob"}))
        try:
            assert (await answers.once(CREATE, self.request, self.make)).name == "foods/2"
        finally:
            auth.current.reset(token)

    async def test_a_failure_leaves_the_id_free(self, answers):
        with pytest.raises(errors.ServiceError, match="not now"):
            await answers.once(CREATE, self.request, self.fail)
        assert (await answers.once(CREATE, self.request, self.make)).name == "foods/1"


class TestStoredAnswers(AnswersSuite):
    @pytest.fixture
    def answers(self, db):
        return StoredAnswers(db)


class TestMemoryAnswers(AnswersSuite):
    @pytest.fixture
    def answers(self):
        return MemoryAnswers()


async def test_a_stopped_clock_moves_when_it_is_told_and_wakes_who_waits_for_a_time():
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    with stopped_clock(noon) as stopped:
        assert clock.now() == clock.now() == noon
        waiting = asyncio.create_task(clock.until(noon + timedelta(hours=2)))
        for _ in range(2):
            await asyncio.sleep(0)
            assert not waiting.done()
            stopped.now += timedelta(hours=1)
        await asyncio.wait_for(waiting, 5)
    assert clock.now() > noon + timedelta(hours=2)


async def test_what_was_published_is_read_back_typed_and_what_was_rolled_back_is_not(db):
    async with db.transaction() as connection:
        await events.publish(connection, FoodsImported(data="kept", foods=1))
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as connection:
            await events.publish(connection, FoodsImported(data="undone"))
            1 / 0  # noqa: B018
    assert await published(db) == [FoodsImported(data="kept", foods=1)]


async def test_without_a_database_an_outbox_takes_what_is_published_by_the_same_rules():
    outbox = Outbox()
    await events.publish(outbox, FoodsImported(data="x", foods=2))
    with pytest.raises(ValueError, match="foods"):
        await events.publish(outbox, FoodsImported(data="x", foods=-2))
    with pytest.raises(TypeError, match="no event"):
        await events.publish(outbox, Food())
    assert outbox.events == [FoodsImported(data="x", foods=2)]
