"""All 390,381 rows, as the mesh's first start imported them: counted to the last, searched and paged at full size."""

import pytest
import sqlalchemy as sa
from nourish.food.v1.food_pb2 import ListFoodsRequest, SearchFoodsRequest, Source
from sqlalchemy.dialects import postgresql

from mesh.runtime import database
from mesh.runtime.db import acting_for
from services.food.store import import_state, page_statement
from services.food.tests.sample import serving

ROWS = 390_381


@pytest.fixture(scope="module")
def url(mesh):
    """Where the foods are."""
    return f"postgresql://food@/food?host={mesh.state()['run']}/pg"


async def test_every_row_is_a_food_or_left_out_for_a_reason(url):
    async with database(url=url, pool=1) as db, db.raw() as connection:
        state = await import_state(connection)
    gone = {reason: n for reason, n in state.counts.items() if reason.startswith(("left out: ", "merged "))}
    assert state.rows_read == ROWS
    assert state.foods + sum(gone.values()) == ROWS
    assert gone["left out: sub_sample_food"] == 791
    assert gone["left out: agricultural_acquisition"] == 641
    assert gone["left out: no name"] == 1
    async with database(url=url, pool=1) as db, db.connection() as connection:
        query = "SELECT source, count(*) FROM food WHERE source < 5 GROUP BY 1"  # without what people entered
        by_source = dict((await connection.execute(sa.text(query))).all())
    assert sum(by_source.values()) == state.foods
    # Not one row of USDA's own foods is bad; of the labels, 2 to 3 in a hundred are.
    assert {s: by_source[s] for s in (1, 2, 3)} == {1: 296, 2: 3068, 3: 3985}
    assert 0.02 < sum(n for reason, n in gone.items() if reason.startswith("left out: ")) / ROWS < 0.03


async def test_no_food_is_kept_whose_energy_is_over_twice_off(url):
    """The rule again, in SQL, on what was stored: energy by fibre counted in full to fibre counted as nothing."""
    query = """
        SELECT count(*) FILTER (WHERE (e > 2 * most AND e - most > 20) OR (e < least / 2 AND least - e > 20)), count(*)
        FROM food, LATERAL (SELECT nutrients[1] AS e, 4 * (nutrients[2] + nutrients[13]) + 9 * nutrients[7] AS most),
          LATERAL (SELECT most - 4 * least(coalesce(nutrients[4], 0), nutrients[2]) AS least)
        WHERE source = 4 AND category !~* '^(alcohol|beer|wine|liquor)' AND e + most IS NOT NULL
    """
    async with database(url=url, pool=1) as db, db.connection() as connection:
        off, checked = (await connection.execute(sa.text(query))).one()
    assert (off, checked > 300_000) == (0, True)


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("brocoli", "Broccoli, raw"),
        ("onion", "Onions, raw"),
        ("choclate milk", "Chocolate milk, NFS"),
        ("olive oil", "Olive oil"),
        ("boneless chicken thighs", "Chicken, thigh, boneless, skinless, raw"),
        ("salmon", "Fish, salmon, raw"),
        ("cinammon", "Spices, cinnamon, ground"),
        ("zuchini", "Squash, summer, zucchini, includes skin, raw"),
        ("chicken thigh", "Chicken, thigh, boneless, skinless, raw"),
        ("mozarella cheese", "Cheese, Mozzarella, NFS"),
    ],
)
async def test_the_generic_plain_food_comes_first_among_all(url, query, first):
    async with serving(url) as stub:
        results = (await stub.SearchFoods(SearchFoodsRequest(query=query))).results
    assert results[0].food.display_name == first
    assert results[0].food.source != Source.SOURCE_BRANDED


@pytest.mark.parametrize("filters", [{}, {"source": 4}, {"category": "Candy"}], ids=["all", "source", "category"])
async def test_a_late_page_reads_no_more_than_the_first(url, filters):
    """Counted in blocks, which no other load on the machine changes."""
    blocks = []
    async with database(url=url, pool=1) as db, acting_for("alice"), db.connection() as connection:
        for after in (None, ("MILK", ""), ("Y", "")):
            options = {"category": "", "source": 0, **filters}
            statement = page_statement(after=after, limit=51, **options)
            text = str(statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))
            plan = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {text}")
            top = plan.scalar_one()[0]["Plan"]
            blocks.append(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
    assert max(blocks) < 400  # 51 rows by id, and the ends of five indexes
    assert max(blocks) <= 1.5 * blocks[0]


async def test_thousands_of_pages_in_a_row_stay_in_order(url):
    async with serving(url) as stub:
        request, last, seen = ListFoodsRequest(page_size=500, category="Candy"), ("", ""), 0
        while True:
            page = await stub.ListFoods(request)
            keys = [(food.display_name, food.name) for food in page.foods]
            assert [last, *keys] == sorted({last, *keys})
            last, seen, request.page_token = keys[-1], seen + len(keys), page.next_page_token
            if not page.next_page_token:
                break
    async with database(url=url, pool=1) as db, db.connection() as connection:
        count = await connection.execute(sa.text("SELECT count(*) FROM food WHERE category = 'Candy' AND source < 5"))
    assert seen == count.scalar_one() > 10_000
