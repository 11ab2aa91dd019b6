"""The service on a few thousand real rows, through all of the middleware and a real PostgreSQL."""

import asyncio
import math
import uuid
from collections import Counter

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2
from nourish.food.v1.food_pb2 import (
    BatchGetFoodsRequest,
    CreateFoodRequest,
    DeleteFoodRequest,
    Food,
    GetFoodRequest,
    ImportFoodsMetadata,
    ImportFoodsRequest,
    ImportFoodsResponse,
    ListFoodsRequest,
    Portion,
    SearchFoodsRequest,
    Source,
    UpdateFoodRequest,
)
from nourish.food.v1.food_pb2_grpc import FoodServiceStub
from nourish.food.v1.operation_pb2_grpc import OperationServiceStub
from nourish.type.v1.nutrients_pb2 import Nutrients
from nourish.type.v1.operations_pb2 import WaitOperationRequest

from mesh.runtime import database, jobs
from mesh.runtime.testing import as_user, serve_in_memory
from services.food.service import FoodService, OperationService
from services.food.store import FoodStore

GENERIC = {Source.SOURCE_FOUNDATION, Source.SOURCE_SR_LEGACY, Source.SOURCE_SURVEY}
STEW = Food(
    display_name="Grandmother's stew",
    category="Dinners",
    nutrients=Nutrients(energy_kcal=0.1, protein_g=6.3),
    portions=[Portion(description="1 bowl", grams=312.5)],
)


@pytest.fixture
def alice():
    """The metadata of a user nobody else is."""
    return as_user(f"alice-{uuid.uuid4()}", "food.write")


@pytest.fixture
def bob():
    """The metadata of another one."""
    return as_user(f"bob-{uuid.uuid4()}", "food.write")


class Refused:
    """Fails unless the block's call is refused with `code`; then knows why."""

    def __init__(self, code):
        self.code = code

    async def __aenter__(self):
        return self

    async def __aexit__(self, _type, error, _traceback):
        assert isinstance(error, grpc.aio.AioRpcError), "the call was not refused"
        assert error.code() == grpc.StatusCode[self.code], error.details()
        packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
        self.info, self.fields = None, []
        for detail in status_pb2.Status.FromString(packed).details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                self.info = info
            elif detail.Unpack(bad):
                self.fields = [v.field for v in bad.field_violations]
        return True


async def pages(call, request, metadata=()):
    """All the pages of a method."""
    while True:
        response = await call(request, metadata=metadata)
        yield response
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


async def listed(stub, metadata=(), **filters):
    return [food async for page in pages(stub.ListFoods, ListFoodsRequest(**filters), metadata) for food in page.foods]


async def search(stub, query, metadata=(), **options):
    response = await stub.SearchFoods(SearchFoodsRequest(query=query, **options), metadata=metadata)
    return [result.food.display_name for result in response.results]


async def onion(stub):
    return (await stub.SearchFoods(SearchFoodsRequest(query="onion", page_size=1))).results[0].food


# --- Reading ----------------------------------------------------------------------------------------------------------


async def test_a_food_is_what_the_file_says(stub):
    """The row of SR Legacy's "Onions, raw", by hand."""
    food = await stub.GetFood(GetFoodRequest(name=(await onion(stub)).name))
    assert food.display_name == "Onions, raw"
    assert food.source == Source.SOURCE_SR_LEGACY
    assert food.category == "Vegetables and Vegetable Products"
    assert food.nutrients.protein_g == 1.1
    assert food.nutrients.carbohydrate_g == 9.34
    assert food.nutrients.fiber_g == 1.7
    assert not food.nutrients.HasField("iodine_ug")  # not measured is not zero
    assert food.nutrients.HasField("vitamin_b12_ug")
    assert food.nutrients.vitamin_b12_ug == 0
    assert len(food.etag) == 16
    assert food.create_time.seconds > 1_700_000_000


async def test_a_food_that_is_not_there_is_not_found_by_name(stub):
    async with Refused("NOT_FOUND") as refused:
        await stub.GetFood(GetFoodRequest(name="foods/usda-nothing"))
    assert refused.info.metadata["name"] == "foods/usda-nothing"


async def test_a_batch_comes_in_the_order_asked_with_repeats(stub):
    names = [food.name for food in (await stub.ListFoods(ListFoodsRequest(page_size=4))).foods]
    asked = [names[2], names[0], names[2], names[3]]
    response = await stub.BatchGetFoods(BatchGetFoodsRequest(names=asked))
    assert [food.name for food in response.foods] == asked


async def test_a_batch_that_misses_some_names_each_of_them_once(stub):
    good = (await onion(stub)).name
    async with Refused("NOT_FOUND") as refused:
        await stub.BatchGetFoods(BatchGetFoodsRequest(names=["foods/b", good, "foods/a", "foods/b"]))
    assert refused.info.metadata["name"] == "foods/b, foods/a"


VEGETABLES = {"category": "Vegetables and Vegetable Products"}


@pytest.mark.parametrize(
    ("size", "filters"),
    [
        (173, {}),
        (7, {"source": Source.SOURCE_SURVEY}),
        (1, VEGETABLES),
        (3, VEGETABLES | {"source": Source.SOURCE_FOUNDATION}),
    ],
    ids=["all", "source", "category", "both"],
)
async def test_pages_of_any_size_give_every_food_once_in_order(stub, alice, size, filters):
    await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    whole = await listed(stub, alice, page_size=500, **filters)
    keys = [(food.display_name.encode(), food.name) for food in whole]
    assert keys == sorted(set(keys))
    assert [food.name for food in await listed(stub, alice, page_size=size, **filters)] == [f.name for f in whole]
    if "source" in filters:
        assert {food.source for food in whole} == {filters["source"]}
    if "category" in filters:
        assert {food.category for food in whole} == {filters["category"]}


async def test_a_list_without_filters_has_what_the_lists_of_each_source_have(stub):
    everything = await listed(stub, page_size=500)
    by_source = [food for source in (1, 2, 3, 4, 5) for food in await listed(stub, page_size=500, source=source)]
    assert sorted(f.name for f in everything) == sorted(f.name for f in by_source)
    assert {food.source for food in everything} == {1, 2, 3, 4}


async def test_a_page_token_is_good_for_its_own_filter_alone(stub):
    token = (await stub.ListFoods(ListFoodsRequest(page_size=1))).next_page_token
    async with Refused("INVALID_ARGUMENT") as refused:
        await stub.ListFoods(ListFoodsRequest(page_size=1, page_token=token, source=Source.SOURCE_SURVEY))
    assert refused.info.reason == "PAGE_TOKEN_INVALID"


async def test_a_list_of_nothing_is_one_empty_page(stub):
    response = await stub.ListFoods(ListFoodsRequest(category="No such category"))
    assert (list(response.foods), response.next_page_token) == ([], "")
    assert not (await stub.ListFoods(ListFoodsRequest(source=Source.SOURCE_USER))).foods  # nobody's own


# --- Searching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["brocoli", "broccoli", "brocolli", "BROCCOLLI", "Broccoli!"])
async def test_broccoli_is_found_however_it_is_spelled(stub, query):
    assert (await search(stub, query))[0] == "Broccoli, raw"


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("onion", "Onions, raw"),
        ("onions", "Onions, raw"),
        ("raw onion", "Onions, raw"),
        ("red onion", "Onions, red, raw"),
        ("salt", "Salt, table"),
        ("egg", "Egg, whole, raw"),
        ("egg yolk raw", "Egg, yolk, raw, fresh"),
    ],
)
async def test_the_plain_food_comes_first(stub, query, first):
    assert (await search(stub, query))[0] == first


async def test_generic_foods_come_before_branded_ones_and_scores_fall(stub):
    results = [
        result
        async for page in pages(stub.SearchFoods, SearchFoodsRequest(query="onion", page_size=100))
        for result in page.results
    ]
    branded = [result.food.source == Source.SOURCE_BRANDED for result in results]
    assert branded == sorted(branded)
    assert branded[0] is False
    assert branded[-1] is True
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] <= 1


@pytest.mark.parametrize("size", [1, 3, 20, 100])
async def test_pages_of_a_search_of_any_size_give_the_same(stub, alice, size):
    await stub.CreateFood(CreateFoodRequest(food=Food(display_name="Onion stew")), metadata=alice)
    request = SearchFoodsRequest(query="raw onion rings", page_size=100)
    whole = [r.food.name async for page in pages(stub.SearchFoods, request, alice) for r in page.results]
    assert len(whole) == len(set(whole)) > 20
    request = SearchFoodsRequest(query="raw onion rings", page_size=size)
    assert [r.food.name async for page in pages(stub.SearchFoods, request, alice) for r in page.results] == whole


async def test_a_search_keeps_to_the_sources_asked_for(stub):
    for sources in ([Source.SOURCE_BRANDED], [Source.SOURCE_SURVEY, Source.SOURCE_FOUNDATION], [Source.SOURCE_USER]):
        request = SearchFoodsRequest(query="onion", sources=sources, page_size=100)
        found = {result.food.source for result in (await stub.SearchFoods(request)).results}
        assert found == set(sources) - {Source.SOURCE_USER}


async def test_foods_with_some_of_the_words_come_after_those_with_all(stub):
    names = await search(stub, "yellow onion diced", sources=sorted(GENERIC))
    assert names[0] == "Onions, yellow, raw"


async def test_an_unknown_word_may_be_the_beginning_of_one(stub):
    assert (await search(stub, "brocc"))[0] == "Broccoli, raw"


@pytest.mark.parametrize("query", ["and", "!!!", "' \\ | & :* <->", "\U0001d54f", "%", "a" * 200])
async def test_a_query_without_words_finds_nothing_and_breaks_nothing(stub, query):
    assert await search(stub, query) == []


async def test_accents_do_not_matter(stub, alice):
    await stub.CreateFood(CreateFoodRequest(food=Food(display_name="Crème brûlée")), metadata=alice)
    assert await search(stub, "creme brulee", alice) == ["Crème brûlée"]
    assert (await search(stub, "ónions"))[0] == "Onions, raw"


async def test_a_search_token_is_good_for_its_own_query_alone(stub):
    token = (await stub.SearchFoods(SearchFoodsRequest(query="onion"))).next_page_token
    async with Refused("INVALID_ARGUMENT"):
        await stub.SearchFoods(SearchFoodsRequest(query="egg", page_token=token))


# --- A user's own foods -----------------------------------------------------------------------------------------------


async def test_a_food_comes_back_as_it_was_sent(stub, alice):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    assert made.source == Source.SOURCE_USER
    assert made.name.startswith("foods/own-")
    assert made.etag
    assert made.create_time == made.update_time
    assert (made.display_name, made.category) == (STEW.display_name, STEW.category)
    assert (made.nutrients, list(made.portions)) == (STEW.nutrients, list(STEW.portions))
    assert await stub.GetFood(GetFoodRequest(name=made.name), metadata=alice) == made


async def test_only_its_owner_sees_a_food(stub, alice, bob):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    assert made in await listed(stub, alice, source=Source.SOURCE_USER)
    assert made.display_name in await search(stub, "grandmother stew", alice)
    assert list((await stub.BatchGetFoods(BatchGetFoodsRequest(names=[made.name]), metadata=alice)).foods) == [made]
    for other in (bob, ()):
        async with Refused("NOT_FOUND"):
            await stub.GetFood(GetFoodRequest(name=made.name), metadata=other)
        async with Refused("NOT_FOUND"):
            await stub.BatchGetFoods(BatchGetFoodsRequest(names=[made.name]), metadata=other)
        assert await listed(stub, other, source=Source.SOURCE_USER) == []
        assert made.display_name not in await search(stub, "grandmother stew", other)
    async with Refused("NOT_FOUND"):
        await stub.UpdateFood(UpdateFoodRequest(food=Food(name=made.name, display_name="Mine")), metadata=bob)
    async with Refused("NOT_FOUND"):
        await stub.DeleteFood(DeleteFoodRequest(name=made.name), metadata=bob)
    await stub.DeleteFood(DeleteFoodRequest(name=made.name, allow_missing=True), metadata=bob)  # and does nothing
    assert await stub.GetFood(GetFoodRequest(name=made.name), metadata=alice) == made


async def test_an_own_food_is_found_in_spite_of_typing_errors(stub, alice):
    await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    assert (await search(stub, "granmothers stew", alice))[0] == STEW.display_name


async def test_changing_usda_s_foods_is_not_permitted(stub, alice):
    name = (await onion(stub)).name
    async with Refused("PERMISSION_DENIED"):
        await stub.UpdateFood(UpdateFoodRequest(food=Food(name=name, display_name="Mine")), metadata=alice)
    async with Refused("PERMISSION_DENIED"):
        await stub.DeleteFood(DeleteFoodRequest(name=name, allow_missing=True), metadata=alice)


@pytest.mark.parametrize("metadata", [(), as_user("alice", "profile.write")], ids=["nobody", "without the scope"])
async def test_writing_takes_a_user_with_the_scope(stub, metadata):
    for call, request in (
        (stub.CreateFood, CreateFoodRequest(food=STEW)),
        (stub.UpdateFood, UpdateFoodRequest(food=Food(name="foods/own-1", display_name="x"))),
        (stub.DeleteFood, DeleteFoodRequest(name="foods/own-1")),
    ):
        async with Refused("PERMISSION_DENIED" if metadata else "UNAUTHENTICATED"):
            await call(request, metadata=metadata)


async def test_an_update_changes_what_the_mask_names_and_the_etag(stub, alice):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    sent = Food(name=made.name, display_name="ignored", category="Soups", nutrients=Nutrients(fat_g=2))
    mask = FieldMask(paths=["category", "nutrients.fat_g"])
    changed = await stub.UpdateFood(UpdateFoodRequest(food=sent, update_mask=mask), metadata=alice)
    assert (changed.display_name, changed.category) == (STEW.display_name, "Soups")
    assert changed.nutrients == Nutrients(energy_kcal=0.1, protein_g=6.3, fat_g=2)
    assert changed.etag != made.etag
    assert changed.create_time == made.create_time
    assert changed.update_time.ToNanoseconds() > made.update_time.ToNanoseconds()
    assert await stub.GetFood(GetFoodRequest(name=made.name), metadata=alice) == changed


async def test_an_update_under_another_etag_is_refused_and_changes_nothing(stub, alice):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    first = Food(name=made.name, display_name="First", etag=made.etag)
    changed = await stub.UpdateFood(UpdateFoodRequest(food=first), metadata=alice)
    async with Refused("ABORTED") as refused:
        second = Food(name=made.name, display_name="Second", etag=made.etag)
        await stub.UpdateFood(UpdateFoodRequest(food=second), metadata=alice)
    assert refused.info.reason == "ETAG_MISMATCH"
    async with Refused("ABORTED"):
        await stub.DeleteFood(DeleteFoodRequest(name=made.name, etag=made.etag), metadata=alice)
    assert await stub.GetFood(GetFoodRequest(name=made.name), metadata=alice) == changed


async def test_of_updates_at_once_under_one_etag_one_wins(stub, alice):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)

    async def rename(number):
        food = Food(name=made.name, display_name=f"Stew {number}", etag=made.etag)
        return await stub.UpdateFood(UpdateFoodRequest(food=food), metadata=alice)

    results = await asyncio.gather(*map(rename, range(8)), return_exceptions=True)
    won = [r for r in results if isinstance(r, Food)]
    assert len(won) == 1
    assert {r.code() for r in results if r not in won} == {grpc.StatusCode.ABORTED}
    assert await stub.GetFood(GetFoodRequest(name=made.name), metadata=alice) == won[0]


async def test_an_update_that_changes_nothing_leaves_the_etag(stub, alice):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    again = await stub.UpdateFood(UpdateFoodRequest(food=Food(name=made.name, category="Dinners")), metadata=alice)
    assert again == made


async def test_bad_paths_of_a_mask_are_named(stub, alice):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    sent = Food(name=made.name, display_name="x")
    for paths, count in ((["colour", "display_name", "nutrients.salt"], 2), (["*", "display_name"], 1)):
        async with Refused("INVALID_ARGUMENT") as refused:
            mask = FieldMask(paths=paths)
            await stub.UpdateFood(UpdateFoodRequest(food=sent, update_mask=mask), metadata=alice)
        assert refused.fields == ["update_mask"] * count


async def test_a_star_without_a_name_is_refused(stub, alice):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    async with Refused("INVALID_ARGUMENT") as refused:
        request = UpdateFoodRequest(food=Food(name=made.name, category="x"), update_mask=FieldMask(paths=["*"]))
        await stub.UpdateFood(request, metadata=alice)
    assert refused.fields == ["food.display_name"]


async def test_a_deleted_food_is_gone(stub, alice):
    made = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
    await stub.DeleteFood(DeleteFoodRequest(name=made.name, etag=made.etag), metadata=alice)
    async with Refused("NOT_FOUND"):
        await stub.GetFood(GetFoodRequest(name=made.name), metadata=alice)
    async with Refused("NOT_FOUND"):
        await stub.DeleteFood(DeleteFoodRequest(name=made.name), metadata=alice)
    await stub.DeleteFood(DeleteFoodRequest(name=made.name, allow_missing=True), metadata=alice)


@pytest.mark.parametrize(
    "food",
    [
        Food(display_name="  "),
        Food(display_name="x", nutrients=Nutrients(fat_g=math.nan)),
        Food(display_name="x", nutrients=Nutrients(fat_g=math.inf)),
        Food(display_name="x", nutrients=Nutrients(fat_g=-1)),
        Food(display_name="x", portions=[Portion(description="cup", grams=math.nan)]),
        Food(display_name="x", portions=[Portion(description="cup", grams=math.inf)]),
        Food(display_name="x\0y"),
    ],
)
async def test_what_is_no_food_is_refused_naming_the_field(stub, alice, food):
    async with Refused("INVALID_ARGUMENT") as refused:
        await stub.CreateFood(CreateFoodRequest(food=food), metadata=alice)
    assert refused.fields


async def test_a_repeat_with_the_same_request_id_adds_nothing(stub, alice, bob):
    request = CreateFoodRequest(food=STEW, request_id=str(uuid.uuid4()))
    made = await stub.CreateFood(request, metadata=alice)
    assert await stub.CreateFood(request, metadata=alice) == made
    assert await listed(stub, alice, source=Source.SOURCE_USER) == [made]
    assert (await stub.CreateFood(request, metadata=bob)).name != made.name  # the id is the user's own
    request.food.display_name = "Another"
    async with Refused("ALREADY_EXISTS") as refused:
        await stub.CreateFood(request, metadata=alice)
    assert refused.fields == ["request_id"]


async def test_repeats_at_once_add_one_food(stub, alice):
    request = CreateFoodRequest(food=STEW, request_id=str(uuid.uuid4()))
    made = await asyncio.gather(*(stub.CreateFood(request, metadata=alice) for _ in range(8)))
    assert len({food.name for food in made}) == 1
    assert await listed(stub, alice, source=Source.SOURCE_USER) == [made[0]]


async def test_a_creation_that_was_refused_leaves_its_request_id_free(stub, alice):
    request = CreateFoodRequest(food=Food(display_name=" "), request_id=str(uuid.uuid4()))
    async with Refused("INVALID_ARGUMENT"):
        await stub.CreateFood(request, metadata=alice)
    request.food.CopyFrom(STEW)
    assert (await stub.CreateFood(request, metadata=alice)).display_name == STEW.display_name


async def test_without_a_request_id_two_creations_are_two_foods(stub, alice):
    made = [await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice) for _ in range(2)]
    assert {food.name for food in made} == {food.name for food in await listed(stub, alice, source=Source.SOURCE_USER)}
    assert made[0].name != made[1].name


async def test_many_foods_are_imported_as_an_operation(sample_url, alice, bob):
    foods = [Food(display_name=f"Dish {n}") for n in range(250)]
    async with database(url=sample_url) as db:
        service = FoodService(FoodStore(db))
        async with jobs.work(db, service), serve_in_memory(service, OperationService(db)) as channel:
            stub, operations = FoodServiceStub(channel), OperationServiceStub(channel)
            begun = await stub.ImportFoods(ImportFoodsRequest(foods=foods), metadata=alice)
            wait = WaitOperationRequest(name=begun.name)
            operation = await operations.WaitOperation(wait, metadata=alice)
            response, metadata = ImportFoodsResponse(), ImportFoodsMetadata()
            assert operation.response.Unpack(response)
            assert operation.metadata.Unpack(metadata)
            assert (metadata.done, metadata.total) == (250, 250)
            found = {food.name: food.display_name for food in await listed(stub, alice, source=Source.SOURCE_USER)}
            assert [found[name] for name in response.names] == [food.display_name for food in foods]
            async with Refused("NOT_FOUND"):
                await operations.WaitOperation(wait, metadata=bob)
            async with Refused("INVALID_ARGUMENT"):
                await stub.ImportFoods(ImportFoodsRequest(foods=[Food(display_name=" ")]), metadata=alice)


async def test_a_usda_food_and_that_there_is_none_is_kept_in_memory_and_an_own_food_never(sample_url, alice):
    async with database(url=sample_url) as db, serve_in_memory(FoodService(store := CountingStore(db))) as channel:
        stub = FoodServiceStub(channel)
        usda = (await stub.ListFoods(ListFoodsRequest(page_size=1))).foods[0]
        own = await stub.CreateFood(CreateFoodRequest(food=STEW), metadata=alice)
        for name in (usda.name, own.name):
            for _ in range(3):
                assert (await stub.GetFood(GetFoodRequest(name=name), metadata=alice)).name == name
        own_id, usda_id = (name.removeprefix("foods/") for name in (own.name, usda.name))
        for _ in range(2):
            async with Refused("NOT_FOUND"):
                await stub.GetFood(GetFoodRequest(name="foods/usda-0000000000000000"))
    assert (store.reads[usda_id], store.reads[own_id]) == (1, 3)
    assert store.reads["usda-0000000000000000"] == 1


class CountingStore(FoodStore):
    """Counts reads by id."""

    def __init__(self, db):
        super().__init__(db)
        self.reads = Counter()

    async def get(self, id_):
        self.reads[id_] += 1
        return await super().get(id_)
