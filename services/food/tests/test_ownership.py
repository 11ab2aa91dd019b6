"""Whose a food is, by the database itself."""

import uuid

import sqlalchemy as sa
from nourish.food.v1.food_pb2 import CreateFoodRequest, Food, ListFoodsRequest
from nourish.food.v1.food_pb2_grpc import FoodServiceStub

from mesh.runtime import database
from mesh.runtime.db import acting_for
from mesh.runtime.testing import as_user, serve_in_memory
from services.food.service import FoodService
from services.food.store import FoodStore
from services.food.tests.sample import MIGRATIONS


async def test_a_query_that_forgets_its_condition_sees_the_users_own_foods_alone(sample_url, stub):
    request = CreateFoodRequest(food=Food(display_name="Stew"))
    users = [f"{name}-{uuid.uuid4()}" for name in ("alice", "bob")]
    made = {user: await stub.CreateFood(request, metadata=as_user(user, "food.write")) for user in users}
    async with database(url=sample_url) as db:
        for user, food in made.items():
            async with acting_for(user), db.connection() as connection:
                found = (await connection.execute(sa.text("SELECT id FROM food WHERE source = 5"))).scalars().all()
            assert found == [food.name.removeprefix("foods/")]
        async with db.connection() as connection:
            assert (await connection.execute(sa.text("SELECT count(*) FROM own_food"))).scalar_one() == 0
            assert (await connection.execute(sa.text("SELECT count(*) > 0 FROM food"))).scalar_one()


async def test_own_foods_of_the_schema_before_are_still_there_and_their_owners(postgres_url, tmp_path):
    old = tmp_path / "versions"
    old.mkdir()
    for path in (MIGRATIONS / "versions").glob("000[12]_*.py"):
        (old / path.name).write_text(path.read_text())
    async with database(tmp_path, url=postgres_url) as db, db.transaction() as connection:
        for id_, owner, source in (("usda-1", "", 1), ("own-1", "alice", 5), ("own-2", "bob", 5)):
            await connection.execute(
                sa.text(
                    "INSERT INTO food (id, owner, source, display_name, nutrients, portion_names, portion_grams, etag,"
                    " plainness) VALUES (:id, :owner, :source, 'Stew', array_fill(NULL::float8, '{39}'), '{}', '{}',"
                    " 'e', 1)"
                ),
                {"id": id_, "owner": owner, "source": source},
            )
    async with database(MIGRATIONS, url=postgres_url) as db, serve_in_memory(FoodService(FoodStore(db))) as channel:
        stub = FoodServiceStub(channel)
        for user, seen in (("alice", ["foods/own-1", "foods/usda-1"]), ("bob", ["foods/own-2", "foods/usda-1"])):
            foods = (await stub.ListFoods(ListFoodsRequest(), metadata=as_user(user))).foods
            assert [food.name for food in foods] == seen
