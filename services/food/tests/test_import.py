"""The import: what of the file becomes a food, and that nothing stops it half-way for good."""

import asyncio
import csv
import os
import sys
from collections import Counter

import pytest
import sqlalchemy as sa
from nourish.food.v1.food_pb2 import GetFoodRequest, ListFoodsRequest

from mesh.runtime import database, events
from mesh.runtime.cache import caches
from mesh.runtime.cache.link import linked
from mesh.runtime.db import acting_for
from mesh.runtime.errors import ServiceError
from services.food import domain, usda
from services.food.service import FoodService
from services.food.store import FoodStore
from services.food.tests.sample import MIGRATIONS, load, quiet

HEADER = 6 + 39


def row(name="SOUP", kind="branded_food", category="Soups", portion="1 cup", grams="240.0", **values):
    figures = {"energy_kcal": "50.0", **values}
    return [name, kind, category, portion, grams, "1", *(figures.get(n, "") for n in domain.NUTRIENTS)]


def merged(*rows):
    counts = Counter()
    foods = usda.merge(rows[0][0], list(rows), counts)
    names = ("id", "source", "name", "category", "nutrients", "portions", "grams", "etag", "plainness")
    return [dict(zip(names, line.rstrip("\n").split("\t"), strict=True)) for line in foods], +counts


def test_rows_of_one_name_and_the_same_figures_are_one_food_with_their_portions():
    foods, counts = merged(
        row(category=""), row(portion="1 can", grams="300"), row(portion="1 can", grams="300", category="Other")
    )
    (food,) = foods
    assert (food["portions"], food["grams"], food["category"]) == ('{"1 cup","1 can"}', "{240.0,300.0}", "Soups")
    assert counts == {"merged into a food of the same name and figures": 2}


def test_rows_of_one_name_and_other_figures_or_source_are_other_foods():
    foods, _ = merged(row(), row(energy_kcal="51.0"), row(kind="sr_legacy_food"))
    assert [f["source"] for f in foods] == ["4", "4", "2"]
    assert len({f["id"] for f in foods}) == 3


@pytest.mark.parametrize(
    ("description", "grams", "expected"),
    [
        ("8 OZA", "240.0", ("8 fl oz", 240.0)),
        ("1 ONZ", "26.600000381469727", ("1 oz", 26.6)),
        ("", "28.0", ("1 serving", 28.0)),
        ('1 carrot 7"" long', "78", ('1 carrot 7" long', 78.0)),
        ("undetermined", "160.0", None),
        ("1 BAG", "0.0", None),
        ("undetermined", "inf", None),
        ("2 STICKS", "256113168.0", None),
        ("cup", "", None),
    ],
)
def test_a_portion_is_a_named_measure_with_a_weight(description, grams, expected):
    assert usda._portion(description, grams, Counter()) == expected


def test_samples_of_the_laboratory_and_rows_without_a_name_are_left_out_and_counted():
    foods, counts = merged(row(kind="sub_sample_food"), row(kind="agricultural_acquisition"))
    assert (foods, counts) == ([], {"left out: sub_sample_food": 1, "left out: agricultural_acquisition": 1})
    assert merged(row(name=" "))[1] == {"left out: no name": 1}


def test_carbohydrate_by_difference_just_below_nothing_is_nothing():
    foods, counts = merged(row(kind="foundation_food", carbohydrate_g="-0.4"))
    assert foods[0]["nutrients"].startswith("{50.0,0.0,NULL,")
    assert counts == {"mended: carbohydrate by difference just below 0": 1}
    assert merged(row(carbohydrate_g="-4.0"))[1] == {"left out: negative": 1}


def test_a_paragraph_for_a_category_is_cut_to_what_the_contract_allows():
    category = merged(row(category="Includes any products " * 20))[0][0]["category"]
    assert len(category) <= 120
    assert category.endswith(" Includes…")


def test_a_file_with_other_columns_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        next(usda.read_chunks(tmp_path / "other.csv"))


@pytest.mark.parametrize("chunk_rows", [1, 7, 400, 10**6])
def test_chunks_of_any_size_hold_the_same_foods_and_start_at_whole_names(sample_file, chunk_rows):
    whole = b"".join(c.lines for c in usda.read_chunks(sample_file, chunk_rows=10**6))
    chunks = list(usda.read_chunks(sample_file, chunk_rows=chunk_rows))
    assert b"".join(c.lines for c in chunks) == whole
    half = len(chunks) // 2
    rest = usda.read_chunks(sample_file, skip=sum(c.rows for c in chunks[:half]))
    assert b"".join(c.lines for c in rest) == b"".join(c.lines for c in chunks[half:])


async def contents(url):
    """A fingerprint of every food, of the vocabulary and of the indexes."""
    async with database(url=url, pool=1) as db, db.connection() as connection:
        queries = (
            "SELECT count(*), md5(string_agg(concat_ws('|', id, source, display_name, category, nutrients,"
            " portion_names, portion_grams, etag, plainness, terms), ';' ORDER BY id)) FROM usda_food",
            "SELECT count(*), md5(string_agg(w::text, ';' ORDER BY word)) FROM food_word w",
            "SELECT string_agg(indexdef, ';' ORDER BY indexdef) FROM pg_indexes WHERE tablename = 'usda_food'",
            "SELECT rows_read, foods, counts::text, finish_time IS NOT NULL FROM usda_import",
        )
        return [tuple((await connection.execute(sa.text(query))).one()) for query in queries]


async def test_every_row_of_the_file_is_a_food_or_counted(sample_url, sample_file):
    state = await load(sample_url, sample_file)
    with sample_file.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert state.finished
    assert state.rows_read == len(rows)
    gone = sum(n for reason, n in state.counts.items() if reason.startswith(("left out: ", "merged ")))
    assert state.foods + gone == len(rows)
    assert (await contents(sample_url))[0][0] == state.foods


async def test_a_second_start_imports_nothing(sample_url, sample_file):
    before = await contents(sample_url)
    said = []
    await load(sample_url, sample_file, progress=said.append)
    assert said == []
    assert await contents(sample_url) == before


IMPORT = """
import asyncio, sys
from pathlib import Path
from services.food.tests.sample import load
progress = lambda text: print(text, flush=True)
asyncio.run(load(sys.argv[1], Path(sys.argv[2]), progress=progress, chunk_rows=500))
"""


@pytest.mark.parametrize("lines", [4, 11], ids=["loading", "indexing"])
async def test_an_import_killed_at_any_point_goes_on_and_ends_the_same(sample_url, sample_file, postgres_url, lines):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        IMPORT,
        postgres_url,
        str(sample_file),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        seen = [(await process.stdout.readline()).decode() for _ in range(lines)]
        assert seen[-1], "the import ended before it could be killed"
    finally:
        process.kill()
        await process.wait()
    said = []
    state = await load(postgres_url, sample_file, progress=said.append, chunk_rows=500)
    assert state.finished
    assert seen[0].strip() not in said, "it began again"
    assert await contents(postgres_url) == await contents(sample_url)


async def test_two_instances_that_start_at_once_import_once_and_the_other_shows_it(
    sample_url, sample_file, postgres_url
):
    said = [], []
    await asyncio.gather(*(load(postgres_url, sample_file, progress=s.append, chunk_rows=500) for s in said))
    waited = [any(text.startswith("waiting for another instance: ") for text in s) for s in said]
    assert sorted(waited) == [False, True]
    assert not any(text.startswith("importing") for text in said[waited.index(True)])
    assert await contents(postgres_url) == await contents(sample_url)


async def test_other_data_replaces_usda_s_foods_and_leaves_the_users(sample_file, postgres_url, tmp_path):
    lines = sample_file.read_text().splitlines(keepends=True)
    first = tmp_path / "first.csv"
    first.write_text("".join(lines[:200]))
    async with database(MIGRATIONS, url=postgres_url, pool=2) as db:
        before = await usda.import_usda(db, progress=quiet, path=first)
        async with acting_for("alice"), db.transaction() as connection:
            await connection.execute(
                sa.text(
                    "INSERT INTO own_food"
                    " (id, source, display_name, nutrients, portion_names, portion_grams, etag, plainness)"
                    " VALUES ('own-1', 5, 'Stew', array_fill(NULL::float8, '{39}'), '{}', '{}', 'e', 1)"
                )
            )
        after = await usda.import_usda(db, progress=quiet, path=sample_file)
        async with acting_for("alice"), db.connection() as connection:
            assert (await connection.execute(sa.text("SELECT count(*) FROM food"))).scalar_one() == after.foods + 1
    assert after.foods > before.foods
    assert (await contents(postgres_url))[0][0] == after.foods


async def test_an_instance_drops_what_it_keeps_when_another_imports_other_data(
    sample_file, postgres_url, events_url, tmp_path
):
    lines = sample_file.read_text().splitlines(keepends=True)
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("".join(lines[:100]))
    second.write_text("".join([lines[0], *lines[100:200]]))
    await load(postgres_url, first)
    async with database(url=postgres_url, pool=4) as db:
        service = FoodService(FoodStore(db))
        async with events.carry(db, service, url=events_url), linked(caches(), events_url):
            (food,) = (await service.ListFoods(ListFoodsRequest(page_size=1), None)).foods
            request = GetFoodRequest(name=food.name)
            assert await service.GetFood(request, None) == food
            await load(postgres_url, second)
            with pytest.raises(ServiceError, match="does not exist"):
                async with asyncio.timeout(20):
                    while await service.GetFood(request, None):
                        await asyncio.sleep(0.01)
