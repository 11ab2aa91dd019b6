"""A few thousand real rows of the USDA file, and a service that holds them."""

import re
from contextlib import asynccontextmanager
from pathlib import Path

from nourish.food.v1.food_pb2_grpc import FoodServiceStub

from mesh.runtime import database
from mesh.runtime.testing import serve_in_memory
from services.food import usda
from services.food.service import FoodService
from services.food.store import FoodStore

MIGRATIONS = Path(usda.__file__).parent / "migrations"
SAMPLED = re.compile(
    r"^onions?\b|broccoli, |bison|wine,|cheerios|^milk chocolate$|^eggs?, |mozz?arella cheese|^salt|^$", re.IGNORECASE
)


def quiet(_text):
    """No progress."""


async def load(url, path, **options):
    """Imports a file; returns the state it ends in."""
    async with database(MIGRATIONS, url=url, pool=2) as db:
        return await usda.import_usda(db, progress=options.pop("progress", quiet), path=path, **options)


@asynccontextmanager
async def serving(url):
    """A stub of the service on the database `url`."""
    async with database(url=url, pool=4) as db, serve_in_memory(FoodService(FoodStore(db))) as channel:
        yield FoodServiceStub(channel)
