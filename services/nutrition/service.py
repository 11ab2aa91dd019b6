"""NutritionService: reads the lines, finds their foods through FoodService, adds up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nourish.food.v1 import food_pb2
from nourish.nutrition.v1 import nutrition_pb2 as pb
from nourish.nutrition.v1 import nutrition_pb2_grpc
from nourish.profile.v1 import profile_pb2

from mesh.runtime import Context, auth, blocking
from mesh.runtime.cache import Cache, on
from services.nutrition import matching, parsing, totals
from services.nutrition.analysis import analyse, find
from services.nutrition.matching import Match
from services.nutrition.parsing import Line

if TYPE_CHECKING:  # generated for type checkers alone
    from nourish.food.v1.food_pb2_grpc import FoodServiceAsyncStub
    from nourish.profile.v1.profile_pb2_grpc import ProfileServiceAsyncStub

OWN = (food_pb2.SOURCE_USER,)  # the caller's own foods, which no cache has
CANDIDATES = 50
# Searches of one request that run at once: enough to hide their latency, too few to crowd out other callers of food.
CONCURRENT_SEARCHES = 8

T = TypeVar("T")


class NutritionService(nutrition_pb2_grpc.NutritionServiceServicer):
    """What a recipe contains. `parsing.load` must have been called."""

    def __init__(self, food: FoodServiceAsyncStub, profile: ProfileServiceAsyncStub) -> None:
        self._food = food
        self._profile = profile
        self._searches = Cache(
            "searches",
            food_pb2.SearchFoodsResponse,
            whose="everybody",
            ttl=3600,
            max_bytes=16 << 20,  # some 500 searches
            shared=True,
            cleared_by=[on(food_pb2.FoodsImported)],
        )

    async def AnalyzeIngredients(
        self, request: pb.AnalyzeIngredientsRequest, context: Context
    ) -> pb.AnalyzeIngredientsResponse:
        """Analyses every line; a line that cannot be used says why, a failed call fails the whole.

        Raises:
            ServiceError: UNAUTHENTICATED, a profile was named without a user.
            AioRpcError: what FoodService or ProfileService answered.
        """
        if request.profile:
            auth.user()
        texts = list(dict.fromkeys(request.lines))
        targets = await self._targets(request.profile)
        lines = await self._analyses(texts)
        by_text = dict(zip(texts, lines, strict=True))
        return _response([by_text[text] for text in request.lines], request.servings or 1, targets)

    async def _analyses(self, texts: Sequence[str]) -> list[pb.LineAnalysis]:
        lines = await blocking(_parse, texts)  # the one place where this service blocks: 3 ms of CPU a line
        searches = _Searches(self._food, self._searches)
        return list(await _together(*(_analysis(line, searches) for line in lines)))

    async def _targets(self, profile: str) -> profile_pb2.Targets | None:
        if not profile:
            return None
        return await self._profile.GetTargets(profile_pb2.GetTargetsRequest(name=f"{profile}/targets"))


class _Searches:
    """The searches of one request, a few at a time. Foods that are everybody's are asked for once for all."""

    def __init__(self, food: FoodServiceAsyncStub, known: Cache[food_pb2.SearchFoodsResponse]) -> None:
        self._food = food
        self._known = known
        self._limit = asyncio.Semaphore(CONCURRENT_SEARCHES)

    async def __call__(self, query: str, sources: Sequence[food_pb2.Source.ValueType]) -> Sequence[food_pb2.Food]:
        common = tuple(source for source in sources if source not in OWN)
        found = [await self._known.get((query, *common), lambda: self._ask(query, common))]
        if common != tuple(sources) and auth.principal().user:
            found.append(await self._ask(query, OWN))
        return [result.food for response in found for result in response.results]

    async def _ask(self, query: str, sources: Sequence[food_pb2.Source.ValueType]) -> food_pb2.SearchFoodsResponse:
        async with self._limit:
            request = food_pb2.SearchFoodsRequest(query=query, page_size=CANDIDATES, sources=sources)
            return await self._food.SearchFoods(request)


async def _analysis(line: Line, searches: _Searches) -> pb.LineAnalysis:
    asked = matching.understand(line)
    match: Match | None = await find(asked, searches)
    return analyse(line, asked, match)


def _parse(texts: Sequence[str]) -> list[Line]:
    return [parsing.parse(text) for text in texts]


def _response(
    lines: Sequence[pb.LineAnalysis], servings: int, targets: profile_pb2.Targets | None
) -> pb.AnalyzeIngredientsResponse:
    total = totals.summed(line.nutrients for line in lines if line.used)
    serving = totals.scaled(total, 1 / servings)
    return pb.AnalyzeIngredientsResponse(
        servings=servings,
        total=total,
        per_serving=serving,
        daily_values=totals.shares(serving, targets),
        lines=lines,
        total_grams=totals.tidy(sum(line.grams for line in lines if line.used)),
    )


async def _together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Runs all at once; the first failure is raised as it is and the rest is cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
