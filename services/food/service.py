"""The gRPC handlers: from requests to the store and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from google.longrunning.operations_pb2 import Operation
from google.protobuf.empty_pb2 import Empty
from nourish.food.v1 import food_pb2_grpc, operation_pb2_grpc
from nourish.food.v1.food_pb2 import (
    BatchGetFoodsRequest,
    BatchGetFoodsResponse,
    CreateFoodRequest,
    DeleteFoodRequest,
    Food,
    FoodsImported,
    GetFoodRequest,
    ImportFoodsMetadata,
    ImportFoodsRequest,
    ImportFoodsResponse,
    ListFoodsRequest,
    ListFoodsResponse,
    SearchFoodsRequest,
    SearchFoodsResponse,
    SearchResult,
    UpdateFoodRequest,
)

from mesh.runtime import Context, errors, etags, jobs, masks, pages
from mesh.runtime.cache import Cache, on
from services.food import domain
from services.food.domain import Content, to_food
from services.food.search import Term
from services.food.store import Cursor, FoodStore, LockedFood

KEEP_SECONDS = 3600  # what changes by an import alone
LIST_PAGE = 50
SEARCH_PAGE = 20
IMPORTED_AT_ONCE = 100


class FoodService(food_pb2_grpc.FoodServiceServicer):
    """Foods of USDA for everybody, and each user's own for that user."""

    def __init__(self, store: FoodStore) -> None:
        self._store = store
        changed = [on(FoodsImported)]
        self._usda = Cache("usda", Food, whose="everybody", ttl=KEEP_SECONDS, missing=60, cleared_by=changed)
        self._terms = Cache("terms", list[Term], whose="everybody", ttl=KEEP_SECONDS, cleared_by=changed)

    async def GetFood(self, request: GetFoodRequest, context: Context) -> Food:
        """Returns one food, USDA's from the cache."""
        if domain.is_usda(_id(request.name)):
            return await self._usda.get(request.name, lambda: self._food(request.name))
        return await self._food(request.name)

    async def _food(self, name: str) -> Food:
        row = await self._store.get(_id(name))
        if row is None:
            raise errors.not_found(name)
        return to_food(row)

    async def ListFoods(self, request: ListFoodsRequest, context: Context) -> ListFoodsResponse:
        """Lists foods by (display_name, name)."""
        after = None
        if request.page_token:
            cursor = pages.verify(request.page_token, scope=request)
            after = cursor["name"], cursor["id"]
        size = request.page_size or LIST_PAGE
        rows = await self._store.page(category=request.category, source=request.source, after=after, limit=size + 1)
        page, token = pages.cut(rows, size, lambda last: {"name": last.display_name, "id": last.id}, scope=request)
        return ListFoodsResponse(foods=[to_food(row) for row in page], next_page_token=token)

    async def SearchFoods(self, request: SearchFoodsRequest, context: Context) -> SearchFoodsResponse:
        """Finds foods by words."""
        after = Cursor(**pages.verify(request.page_token, scope=request)) if request.page_token else None
        size = request.page_size or SEARCH_PAGE
        terms = await self._terms.get(request.query, lambda: self._store.terms(request.query))
        hits = await self._store.search(terms, request.query, sources=request.sources, after=after, limit=size + 1)
        page, token = pages.cut(hits, size, lambda last: last.cursor._asdict(), scope=request)
        results = [SearchResult(food=to_food(hit.row), score=hit.score) for hit in page]
        return SearchFoodsResponse(results=results, next_page_token=token)

    async def BatchGetFoods(self, request: BatchGetFoodsRequest, context: Context) -> BatchGetFoodsResponse:
        """Returns several foods in the order asked."""
        found = await self._store.batch([_id(name) for name in request.names])
        missing = [name for name in dict.fromkeys(request.names) if _id(name) not in found]
        if missing:
            raise errors.not_found(", ".join(missing))
        return BatchGetFoodsResponse(foods=[to_food(found[_id(name)]) for name in request.names])

    async def CreateFood(self, request: CreateFoodRequest, context: Context) -> Food:
        """Adds a food of the caller's own."""
        with _named_fields():
            content = domain.content_of(request.food)
        return to_food(await self._store.create(content))

    async def ImportFoods(self, request: ImportFoodsRequest, context: Context) -> Operation:
        """Begins to add many foods of the caller's own."""
        _contents(request)
        return await self._store.begin_import(request)

    @jobs.job(ImportFoodsRequest, limit=2, seconds=120)
    async def import_foods(self, request: ImportFoodsRequest, job: jobs.Job) -> ImportFoodsResponse:
        """Adds them; goes on where an attempt before left off."""
        contents = {domain.imported_id(job.id, place): c for place, c in enumerate(_contents(request))}
        ids = list(contents)
        done = job.progress(ImportFoodsMetadata).done
        for start in range(done, len(ids), IMPORTED_AT_ONCE):
            batch = ids[start : start + IMPORTED_AT_ONCE]
            async with job.transaction() as connection:
                await self._store.add(connection, {id_: contents[id_] for id_ in batch})
                await job.report(ImportFoodsMetadata(done=start + len(batch), total=len(ids)))
        return ImportFoodsResponse(names=[f"foods/{id_}" for id_ in ids])

    async def UpdateFood(self, request: UpdateFoodRequest, context: Context) -> Food:
        """Changes a food of the caller's own."""
        sent = request.food
        async with self._store.locked(_id(sent.name)) as locked:
            found = _own(locked, sent.name, sent.etag)
            stored = to_food(found.row)
            with _named_fields():
                content = domain.content_of(masks.merged(stored, sent, request.update_mask))
            if content == domain.content_of(stored):
                return stored  # a repeat of what was done already, or nothing to do
            return to_food(await found.update(content))

    async def DeleteFood(self, request: DeleteFoodRequest, context: Context) -> Empty:
        """Deletes a food of the caller's own."""
        async with self._store.locked(_id(request.name)) as locked:
            if locked is None and request.allow_missing:
                return Empty()
            await _own(locked, request.name, request.etag).delete()
            return Empty()


class OperationService(jobs.Operations, operation_pb2_grpc.OperationServiceServicer):
    """Imports under way, each for the user who began it."""


def _contents(request: ImportFoodsRequest) -> list[Content]:
    with _named_fields():
        return [domain.content_of(food) for food in request.foods]


def _id(name: str) -> str:
    return name.removeprefix("foods/")


def _own(locked: LockedFood | None, name: str, etag: str) -> LockedFood:
    """The caller's own food, as the caller knows it, or the error that says why not."""
    if locked is None:
        raise errors.not_found(name)
    if locked.is_usda:
        raise errors.permission_denied(f"{name} is USDA's: add a food of your own instead")
    etags.check(to_food(locked.row), etag)
    return locked


@contextmanager
def _named_fields() -> Iterator[None]:
    try:
        yield
    except domain.InvalidFieldsError as error:
        raise errors.violations(error.found) from None
