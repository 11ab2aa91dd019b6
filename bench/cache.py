"""Caches: what a hit costs beside cachetools and bare NATS KV, how often each policy hits, and what services gain."""

from __future__ import annotations

import asyncio
import csv
import itertools
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import nats
import yaml
from cachetools import LFUCache, LRUCache
from nourish.food.v1.food_pb2 import Food, GetFoodRequest, Portion, SearchFoodsRequest
from nourish.food.v1.food_pb2_grpc import FoodServiceStub
from nourish.nutrition.v1.nutrition_pb2 import AnalyzeIngredientsRequest
from nourish.nutrition.v1.nutrition_pb2_grpc import NutritionServiceStub
from nourish.profile.v1.profile_pb2_grpc import ProfileServiceStub

from bench.report import goals
from mesh.local.nats import Nats
from mesh.local.postgres import Postgres
from mesh.runtime import database
from mesh.runtime.cache import Cache, link, policies
from mesh.runtime.cache.entry import Entry
from mesh.runtime.testing import serve_in_memory

ROUNDS, HITS, SHARED_HITS, KEYS = 7, 20_000, 500, 200
TRACE, ROOM, ENTRY = 60_000, 400, 1000
BRANDED_ROWS = 20  # of so many one is imported
LINES = Path(__file__).parents[1] / "services/nutrition/tests/lines.yaml"
# What, dividend, divisor, the goal.
RATIOS = (
    ("cachetools LRU and the message read / a hit with ARC, time", "bare_lru", "arc", 0.4),
    ("bare KV get and the message read / a shared hit, time", "bare_kv", "shared", 0.6),
)
LABELS = {
    "dict": "bare: dict, a number",
    "lru_alone": "bare: cachetools LRU, a number",
    "parse": "bare: the message read from its bytes",
    "bare_lru": "bare: cachetools LRU, and the message read",
    "bare_lfu": "bare: cachetools LFU, and the message read",
    "arc": "`cache.get`, ARC",
    "lru": "`cache.get`, LRU",
    "lfu": "`cache.get`, LFU",
    "bare_kv": "bare nats-py: KV get, and the message read",
    "shared": "`cache.get`, from the shared tier",
}
GAINS = {
    "get_food": "food: GetFood of a USDA food",
    "search_foods": "food: SearchFoods, 20 results",
    "analyze": "nutrition: AnalyzeIngredients, a line",
}


def run() -> dict[str, Any]:
    """Measures each beside its bare engine, in turn."""
    folder = Path(tempfile.mkdtemp(prefix="nourish-bench-"))
    try:
        return {**asyncio.run(_run(folder)), "hit_ratios": _hit_ratios(), "calls": HITS}
    finally:
        shutil.rmtree(folder)


def report(results: dict[str, Any]) -> list[str]:
    """Costs, ratios, hit ratios and gains."""
    found = results["ratios"]
    rows = [(what, found[what], f">= {goal:.2f}", found[what] >= goal) for what, *_, goal in RATIOS]
    lines = [
        "## Caches",
        "",
        f"A food of {results['bytes']} bytes; medians of {ROUNDS} rounds of {results['calls']:,} hits in turn.",
        "",
        "| | microseconds |",
        "| --- | ---: |",
        *(f"| {label} | {results['us'][key]:,.2f} |" for key, label in LABELS.items()),
        "",
        *goals(rows),
        "",
        f"Hits of 100 requests, room for {ROOM} entries (memory that their lists take is not counted here):",
        "",
        "| trace | LRU | LFU | ARC |",
        "| --- | ---: | ---: | ---: |",
    ]
    for trace, hits in results["hit_ratios"].items():
        lines.append(f"| {trace} | {hits['lru']:.1f} | {hits['lfu']:.1f} | {hits['arc']:.1f} |")
    lines += ["", "What the services gain, in memory and without proxies:", ""]
    lines += ["| | loaded, ms | from the cache, ms |", "| --- | ---: | ---: |"]
    for key, label in GAINS.items():
        lines.append(f"| {label} | {results['gains'][key]['loaded']:.2f} | {results['gains'][key]['cached']:.2f} |")
    return lines


async def _run(folder: Path) -> dict[str, Any]:
    (folder / "run").mkdir()
    servers = Nats(folder, {}), Postgres(folder / "postgres", folder / "run")
    await asyncio.gather(*(server.start() for server in servers))
    try:
        async with _shared(servers[0].url) as shared:
            rounds = [{**_bare(), **await _ours(), **await shared()} for _ in range(ROUNDS)]
        gains = await _gains(servers[1], folder)
    finally:
        await asyncio.gather(*(server.stop() for server in servers))
    return {
        "us": {key: median(found[key] for found in rounds) for key in rounds[0]},
        "ratios": {what: median(r[a] / r[b] for r in rounds) for what, a, b, _ in RATIOS},
        "bytes": len(FOOD),
        "gains": gains,
    }


def _food() -> bytes:
    food = Food(
        name="foods/usda-0123456789abcdef", display_name="Onions, raw", category="Vegetables", source="SOURCE_SR_LEGACY"
    )
    for number, field in enumerate(food.nutrients.DESCRIPTOR.fields):
        setattr(food.nutrients, field.name, number + 0.25)
    food.portions.extend(Portion(description=f"{number} cup, chopped", grams=160.0) for number in range(4))
    return food.SerializeToString()


FOOD = _food()
NAMES = [f"foods/usda-{number:016x}" for number in range(KEYS)]
ASKED = [NAMES[number * 7 % KEYS] for number in range(HITS)]


def _timed(work: Callable[[str], object]) -> float:
    """Microseconds a key."""
    began = time.perf_counter()
    for name in ASKED:
        work(name)
    return (time.perf_counter() - began) / HITS * 1e6


def _bare() -> dict[str, float]:
    plain = dict.fromkeys(NAMES, 1)
    numbers: LRUCache[str, int] = LRUCache(KEYS)
    lru: LRUCache[str, bytes] = LRUCache(KEYS)
    lfu: LFUCache[str, bytes] = LFUCache(KEYS)
    for name in NAMES:
        numbers[name], lru[name], lfu[name] = 1, FOOD, FOOD
    return {
        "dict": _timed(lambda name: plain[name]),
        "lru_alone": _timed(lambda name: numbers[name]),
        "parse": _timed(lambda _: Food.FromString(FOOD)),
        "bare_lru": _timed(lambda name: Food.FromString(lru[name])),
        "bare_lfu": _timed(lambda name: Food.FromString(lfu[name])),
    }


async def _load() -> Food:
    return Food.FromString(FOOD)


async def _ours() -> dict[str, float]:
    found = {}
    for policy in ("arc", "lru", "lfu"):
        cache = Cache("bench", Food, whose="everybody", ttl=600, policy=policy)  # type: ignore[arg-type]
        for name in NAMES:
            await cache.get(name, _load)
        began = time.perf_counter()
        for name in ASKED:
            await cache.get(name, _load)
        found[policy] = (time.perf_counter() - began) / HITS * 1e6
        assert cache.statistics().hits == HITS
    return found


@asynccontextmanager
async def _shared(url: str) -> Any:
    """What measures one round: a cache without room in memory, beside the bucket that it has."""
    cache = Cache("bench", Food, whose="everybody", ttl=600, max_bytes=0, shared=True)
    async with link.linked([cache], url, service="bench", seconds=5.0), await nats.connect(url) as connection:
        while cache.statistics().shared_hits == 0:
            for name in NAMES:
                await cache.get(name, _load)
        bucket = await connection.jetstream().key_value("cache-bench")
        await bucket.put("bare", FOOD)

        async def measure() -> dict[str, float]:
            before = cache.statistics().shared_hits
            bare = await _each(lambda _: _read(bucket))
            ours = await _each(lambda name: cache.get(name, _load))
            assert cache.statistics().shared_hits == before + SHARED_HITS
            return {"bare_kv": bare, "shared": ours}

        yield measure


async def _read(bucket: Any) -> Food:
    return Food.FromString((await bucket.get("bare")).value)


async def _each(work: Callable[[str], Awaitable[object]]) -> float:
    began = time.perf_counter()
    for name in ASKED[:SHARED_HITS]:
        await work(name)
    return (time.perf_counter() - began) / SHARED_HITS * 1e6


# --- Hit ratios -------------------------------------------------------------------------------------------------------


def _hit_ratios() -> dict[str, dict[str, float]]:
    chance = random.Random(7)
    zipf = list(_zipf(chance, 8000))
    scans = list(_scanned(chance))
    moving = [key + 4000 * (number * 6 // TRACE) for number, key in enumerate(_zipf(chance, 4000))]
    traces = {
        "Zipf (1.0), 8,000 keys": zipf,
        "Zipf (1.0), and a scan of 1,500 after each 3,000": scans,
        "Zipf (1.0), other keys after each 10,000": moving,
    }
    return {name: {policy: _hits(policy, trace) for policy in policies.ENTRY_BYTES} for name, trace in traces.items()}


def _zipf(chance: random.Random, keys: int) -> Iterator[int]:
    weights = list(itertools.accumulate(1 / rank for rank in range(1, keys + 1)))
    return iter(chance.choices(range(keys), cum_weights=weights, k=TRACE))


def _scanned(chance: random.Random) -> Iterator[int]:
    once = itertools.count(1_000_000)
    for number, key in enumerate(_zipf(chance, 8000)):
        yield key
        if number % 3000 == 2999:
            yield from itertools.islice(once, 1500)


def _hits(policy: policies.PolicyName, trace: Sequence[int]) -> float:
    """Of 100 requests; ARC's room is what it has for entries, its history besides."""
    share = policies.HISTORY_SHARE
    room = ROOM * ENTRY * share // (share - 1) if policy == "arc" else ROOM * ENTRY
    entries, hits = policies.of(policy, room + 1), 0
    for key in trace:
        if entries.get(key) is not None:
            hits += 1
            continue
        entry = Entry(b"", 0.0, 0.0)
        entry.size = ENTRY
        entries.put(key, entry)
    return 100 * hits / len(trace)


# --- What services gain -----------------------------------------------------------------------------------------------


async def _gains(postgres: Postgres, folder: Path) -> Mapping[str, Mapping[str, float]]:
    """The services as they are, asked for the same twice: what the second time costs, of what was loaded the first."""
    from services.food import usda
    from services.food.service import FoodService
    from services.food.store import FoodStore
    from services.nutrition import parsing
    from services.nutrition.service import NutritionService

    migrations = Path(usda.__file__).parent / "migrations"
    parsing.load(folder / "parser")
    async with database(migrations, url=await postgres.create_database("food"), pool=4) as db:
        await usda.import_usda(db, progress=lambda _: None, path=_sample(usda.data_file(), folder))
        async with serve_in_memory(FoodService(FoodStore(db))) as channel:
            food = FoodServiceStub(channel)
            service = NutritionService(food, ProfileServiceStub(channel))
            async with serve_in_memory(service) as nutrition_channel:
                return await _twice(food, NutritionServiceStub(nutrition_channel))


async def _twice(food: Any, nutrition: Any) -> Mapping[str, Mapping[str, float]]:
    lines = [entry[0] for entry in yaml.safe_load(LINES.read_text())][:60]
    words = [" ".join(line.split()[-2:]) for line in lines]
    found = (await food.SearchFoods(SearchFoodsRequest(query="raw", page_size=60))).results
    names = [result.food.name for result in found]
    work: Mapping[str, Sequence[Callable[[], Awaitable[object]]]] = {
        "get_food": [lambda n=n: food.GetFood(GetFoodRequest(name=n)) for n in names],
        "search_foods": [lambda w=w: food.SearchFoods(SearchFoodsRequest(query=w)) for w in words],
        "analyze": [lambda t=t: nutrition.AnalyzeIngredients(AnalyzeIngredientsRequest(lines=[t])) for t in lines],
    }
    return {key: {"loaded": await _ms(calls), "cached": await _ms(calls)} for key, calls in work.items()}


async def _ms(calls: Sequence[Callable[[], Awaitable[object]]]) -> float:
    """The median, for the first of all pays for connections."""
    took = []
    for call in calls:
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return 1000 * median(took)


def _sample(source: Path, folder: Path) -> Path:
    """All generic foods, and some branded ones."""
    path, branded = folder / "sample.csv", itertools.count()
    with source.open(newline="", encoding="utf-8") as file, path.open("w", newline="", encoding="utf-8") as target:
        reader, writer = csv.reader(file), csv.writer(target)
        writer.writerow(next(reader))
        writer.writerows(row for row in reader if row[1] != "branded_food" or next(branded) % BRANDED_ROWS == 0)
    return path
