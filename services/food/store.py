"""All SQL of the service. `food` is a view of USDA's foods and of those of the user of the call, whoever asks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from google.longrunning.operations_pb2 import Operation
from nourish.food.v1.food_pb2 import FoodsImported, ImportFoodsRequest
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import Database, auth, events, jobs
from mesh.runtime.db import mine
from services.food import domain
from services.food.domain import Content, FoodRow
from services.food.search import KNOWN_FOODS, MAX_WORDS, Neighbour, Term, as_typed, lexemes, matching, term

if TYPE_CHECKING:
    import asyncpg

_FIGURES = sa.ARRAY(sa.Float(53))
_C = sa.Text(collation="C")
_metadata = sa.MetaData()


def _foods(name: str) -> sa.Table:
    return sa.Table(
        name,
        _metadata,
        sa.Column("id", _C),
        sa.Column("owner", _C),
        sa.Column("source", sa.SmallInteger),
        sa.Column("display_name", _C),
        sa.Column("category", _C),
        sa.Column("nutrients", _FIGURES),
        sa.Column("portion_names", sa.ARRAY(sa.Text)),
        sa.Column("portion_grams", _FIGURES),
        sa.Column("etag", sa.Text),
        sa.Column("plainness", sa.REAL),
        sa.Column("create_time", sa.DateTime(timezone=True)),
        sa.Column("update_time", sa.DateTime(timezone=True)),
        sa.Column("terms", pg.TSVECTOR),
    )


_food, _own = _foods("food"), _foods("own_food")
_c = _food.c
_ROW = tuple(_c[name] for name in FoodRow._fields)
_OWN_ROW = tuple(_own.c[name] for name in FoodRow._fields)

# Read by the driver itself: the service's most frequent call by far, at a third of the CPU time.
_GET = f"SELECT {', '.join(FoodRow._fields)} FROM food WHERE id = $1"  # noqa: S608 - constants
_BATCH = sa.select(*_ROW).where(_c.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(_C))))
_FIND = sa.select(*_ROW).where(_c.id == sa.bindparam("id"))
_LOCK = sa.select(*_OWN_ROW).where(_own.c.id == sa.bindparam("id")).with_for_update()
# No stop words: they have no stem. Errors are looked for where no generic food has the word.
_WORDS = sa.text(
    """
    SELECT q.word, q.stem, w.generic, w.total,
           n.word AS near_word, n.stem AS near_stem, n.generic AS near_generic, n.total AS near_total
    FROM (
      SELECT lexeme AS word, (ts_lexize('pg_catalog.english_stem', lexeme))[1] AS stem, positions[1] AS place
      FROM unnest(to_tsvector('pg_catalog.simple', food_plain(:query)))
    ) q
    LEFT JOIN food_word w ON w.word = q.stem
    LEFT JOIN LATERAL (
      SELECT * FROM food_word v WHERE coalesce(w.generic, 0) = 0 ORDER BY v.word <-> q.word LIMIT 20
    ) n ON true
    WHERE q.stem IS NOT NULL
    ORDER BY q.place, q.word
    """
)


class Cursor(NamedTuple):
    """The place of a food among the results of a search."""

    tier: int
    rank: int
    id: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A food that a search found, in `TIERS` and with a rank there, the higher the better."""

    row: FoodRow
    tier: int
    rank: int

    @property
    def cursor(self) -> Cursor:
        """Where the next page starts if this is the last of one."""
        return Cursor(self.tier, self.rank, self.row.id)

    @property
    def score(self) -> float:
        """Bands of the tiers, so that what comes first also scores more."""
        low, width = _BANDS[self.tier]
        return round(low + width * self.rank / _RANKS, 6)


# Foods that have every word: generic and own ones, then branded. Then generic with some, and own that look alike.
TIERS = range(3)
_BANDS = ((0.6, 0.4), (0.3, 0.3), (0.0, 0.3))
_RANKS = 1_000_000
_OWN_SIMILARITY = 0.5


class FoodStore:
    """Foods in PostgreSQL: USDA's, and those of the user of the call."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, id_: str) -> FoodRow | None:
        """The food `id_`, None if there is no such."""
        async with self._db.raw() as connection:
            row = await connection.fetchrow(_GET, id_)
            return FoodRow(*row) if row else None

    async def batch(self, ids: Sequence[str]) -> dict[str, FoodRow]:
        """Those of the foods that there are, by id."""
        async with self._db.connection() as connection:
            rows = await connection.execute(_BATCH, {"ids": list(set(ids))})
            return {row.id: FoodRow(*row) for row in rows}

    async def page(self, *, category: str, source: int, after: tuple[str, str] | None, limit: int) -> Sequence[FoodRow]:
        """At most `limit` foods after (display_name, id), in that order; '' and 0 do not filter."""
        statement = page_statement(category=category, source=source, after=after, limit=limit)
        async with self._db.connection() as connection:
            return [FoodRow(*row) for row in await connection.execute(statement)]

    # --- Search -----------------------------------------------------------------------------------------------------

    async def terms(self, query: str) -> list[Term]:
        """The words of a query, stemmed, with the spellings each may stand for; no stop words, at most MAX_WORDS."""
        async with self._db.read() as connection:
            rows = (await connection.execute(_WORDS, {"query": query})).all()
        by_stem: dict[str, list[Any]] = {}
        for row in rows:
            by_stem.setdefault(row.stem, []).append(row)
        return [
            term(
                found[0].word,
                stem,
                generic=found[0].generic or 0,
                total=found[0].total or 0,
                neighbours=[
                    Neighbour(r.near_word, r.near_stem, r.near_generic, r.near_total) for r in found if r.near_word
                ],
            )
            for stem, found in list(by_stem.items())[:MAX_WORDS]
        ]

    async def search(
        self, terms: Sequence[Term], query: str, *, sources: Sequence[int], after: Cursor | None, limit: int
    ) -> list[Hit]:
        """At most `limit` foods that fit, best first, from after `after`.

        Args:
            terms: of `query`.
            query: as typed, for the user's own foods, whose words no vocabulary has.
            sources: only these; all if empty.
            after: the last of the page before.
            limit: at most how many.
        """
        hits: list[Hit] = []
        if not terms:
            return hits
        async with self._db.read() as connection:
            for tier in TIERS[after.tier if after else 0 :]:
                keys = _tier(tier, terms, query, sources)
                if keys is None:
                    continue
                last = after if after and after.tier == tier else None
                rows = await connection.execute(_page(keys, last, limit - len(hits)))
                hits += [Hit(FoodRow(*row[:-1]), tier, row.rank) for row in rows]
                if len(hits) >= limit:
                    break
        return hits

    # --- Users' own foods -------------------------------------------------------------------------------------------

    async def create(self, content: Content) -> FoodRow:
        """Adds a food of the user."""
        values = {"id": domain.new_user_id(), "source": int(domain.USER), **_values(content)}
        async with self._db.transaction() as connection:
            return FoodRow(*(await connection.execute(_own.insert().values(values).returning(*_OWN_ROW))).one())

    async def begin_import(self, request: ImportFoodsRequest) -> Operation:
        """Has the foods of `request` added for the user of this call, whose imports take turns."""
        async with self._db.transaction() as connection:
            return await jobs.begin(connection, request, key=auth.user())

    @staticmethod
    async def add(connection: AsyncConnection, foods: Mapping[str, Content]) -> None:
        """Adds foods of the user by their ids."""
        values = [{"id": id_, "source": int(domain.USER), **_values(content)} for id_, content in foods.items()]
        await connection.execute(_own.insert(), values)

    @asynccontextmanager
    async def locked(self, id_: str) -> AsyncIterator[LockedFood | None]:
        """The food `id_`, locked if it is the user's until the block, which commits, ends; None if there is none."""
        async with self._db.transaction() as connection:
            own = (await connection.execute(_LOCK, {"id": id_})).first()
            found = own or (await connection.execute(_FIND, {"id": id_})).first()
            yield LockedFood(connection, FoodRow(*found), is_usda=own is None) if found else None


class LockedFood:
    """A food that nobody else changes meanwhile."""

    def __init__(self, connection: AsyncConnection, row: FoodRow, *, is_usda: bool) -> None:
        self._connection = connection
        self.row = row
        self.is_usda = is_usda

    async def update(self, content: Content) -> FoodRow:
        """Replaces what a user may set; a new etag and time."""
        change = _own.update().where(_own.c.id == self.row.id).values(update_time=sa.func.now(), **_values(content))
        return FoodRow(*(await self._connection.execute(change.returning(*_OWN_ROW))).one())

    async def delete(self) -> None:
        """Removes it."""
        await self._connection.execute(_own.delete().where(_own.c.id == self.row.id))


def page_statement(*, category: str, source: int, after: tuple[str, str] | None, limit: int) -> sa.Select[Any]:
    """The statement of `FoodStore.page`.

    Each arm (USDA's four sources, the user's own) reads its own stretch of an index, so a late page costs what the
    first does.
    """
    usda = _c.owner == sa.literal_column("''")
    arms = [(usda, s) for s in (*domain.GENERIC, domain.BRANDED)] + [(mine(_food), domain.USER)]
    keys = []
    for owned, arm_source in arms:
        key = sa.select(_c.display_name, _c.id).where(owned, _is(arm_source))
        if category:
            key = key.where(_c.category == category)
        if after:
            key = key.where(sa.tuple_(_c.display_name, _c.id) > sa.tuple_(*map(sa.literal, after)))
        if source in (0, arm_source):
            keys.append(key.order_by(_c.display_name, _c.id).limit(limit).subquery().select())
    found = sa.union_all(*keys).subquery()
    page = sa.select(found).order_by(found.c.display_name, found.c.id).limit(limit).subquery()
    return sa.select(*_ROW).join(page, page.c.id == _c.id).order_by(page.c.display_name, page.c.id)


def _values(content: Content) -> dict[str, Any]:
    plainness = domain.plainness(domain.USER, content.display_name, content.category, content.nutrients)
    return {**content._asdict(), "etag": domain.new_etag(), "plainness": plainness}


def _tsquery(text: str) -> sa.ColumnElement[Any]:
    # A sub-select is read once a statement; a cast of a parameter may be read again for every row.
    return sa.select(sa.cast(sa.literal(text, sa.Text), pg.TSQUERY)).scalar_subquery()


def _has(text: str) -> sa.ColumnElement[bool]:
    return _c.terms.bool_op("@@")(_tsquery(text))


def _tier(tier: int, terms: Sequence[Term], query: str, sources: Sequence[int]) -> sa.Select[tuple[str, int]] | None:
    """(id, rank) of the foods of a tier; None if the filters leave none."""
    wanted = set(sources or (*domain.GENERIC, domain.BRANDED, domain.USER))
    every, some = _has(matching(terms)), _has(matching(terms, any_of=True))
    if tier == 1:
        return _ranked(terms, _in((domain.BRANDED,)), every) if domain.BRANDED in wanted else None
    arms = []
    generic = [s for s in domain.GENERIC if s in wanted]
    if generic and not (tier == 2 and len(terms) == 1):  # some of one word is all of it
        filters = [] if len(generic) == len(domain.GENERIC) else [_in(generic)]
        arms.append(_ranked(terms, _in(domain.GENERIC), *filters, *([every] if tier == 0 else [some, ~every])))
    if domain.USER in wanted:
        own = mine(_food), _is(domain.USER)
        arms.append(_ranked(terms, *own, every) if tier == 0 else _alike(query, *own, ~every))
    if not arms:
        return None
    found = sa.union_all(*arms).subquery()
    return sa.select(found.c.id, found.c.rank)


def _is(source: int) -> sa.ColumnElement[bool]:
    return _in((source,))


def _in(sources: Sequence[int]) -> sa.ColumnElement[bool]:
    """Spelled out, as in the condition of a partial index: the planner cannot see into a parameter."""
    return sa.literal_column("food.source").in_([sa.literal_column(str(int(s))) for s in sources])


def _ranked(terms: Sequence[Term], *conditions: sa.ColumnElement[bool]) -> sa.Select[tuple[str, int]]:
    """(id, rank) of what fulfils the conditions; the rank is 0 to 1,000,000.

    Most counts how much of what stands before the first comma was asked for ("Onions, raw" is onion, "Onion rings" is
    something else), then how much of the whole name, then how plain the food is; all of it less for other spellings.
    """
    head = _sum(_has(lexemes(t, "A")) for t in terms) / sa.func.greatest(_length("a"), 1.0)
    found = _sum(_has(lexemes(t)) for t in terms)
    whole = found / sa.func.greatest(sa.func.length(_c.terms), 1.0)
    closeness: Any = 1.0
    for t in terms:
        if t.spellings:
            closeness = closeness * sa.case((_has(as_typed(t)), 1.0), else_=t.closeness)
    rank = (0.45 * head + 0.15 * whole + 0.4 * _c.plainness) * closeness * found / float(len(terms))
    return sa.select(_c.id, sa.cast(sa.func.round(rank * _RANKS), sa.Integer).label("rank")).where(*conditions)


def _alike(query: str, *conditions: sa.ColumnElement[bool]) -> sa.Select[tuple[str, int]]:
    """(id, rank) of what fulfils the conditions and looks like the query: for names whose words no vocabulary has."""
    likeness = sa.func.word_similarity(query, _c.display_name)
    rank = sa.cast(sa.func.round(likeness * _RANKS), sa.Integer).label("rank")
    return sa.select(_c.id, rank).where(*conditions, likeness > _OWN_SIMILARITY)


def _sum(conditions: Any) -> sa.ColumnElement[Any]:
    return sum((sa.cast(condition, sa.Integer) for condition in conditions), start=sa.literal_column("0.0::float8"))


def _length(weight: str) -> sa.ColumnElement[Any]:
    return sa.func.length(sa.func.ts_filter(_c.terms, sa.literal_column(f"'{{{weight}}}'::\"char\"[]")))


def _page(keys: sa.Select[tuple[str, int]], after: Cursor | None, limit: int) -> sa.Select[Any]:
    found = keys.subquery()
    page = sa.select(found.c.id, found.c.rank)
    if after:
        later = sa.and_(found.c.rank == after.rank, found.c.id > after.id)
        page = page.where(sa.or_(found.c.rank < after.rank, later))
    best = page.order_by(found.c.rank.desc(), found.c.id).limit(limit).subquery()
    return sa.select(*_ROW, best.c.rank).join(best, best.c.id == _c.id).order_by(best.c.rank.desc(), best.c.id)


# --- The import -------------------------------------------------------------------------------------------------------

COPY_COLUMNS = (
    "id", "source", "display_name", "category", "nutrients", "portion_names", "portion_grams", "etag", "plainness",
)  # fmt: skip
_IMPORT_LOCK = 0x75736461  # any constant: the lock is per database
# Built when the table is full, which takes a fraction of the time. `source IN` is spelled as `_in` spells it.
INDEXES = {
    "food_id": "CREATE UNIQUE INDEX IF NOT EXISTS food_id ON usda_food (id)",
    "food_by_name": "CREATE INDEX IF NOT EXISTS food_by_name ON usda_food (owner, source, display_name, id)",
    "food_by_category": "CREATE INDEX IF NOT EXISTS food_by_category"
    " ON usda_food (owner, source, category, display_name, id)",
    "food_generic_terms": "CREATE INDEX IF NOT EXISTS food_generic_terms ON usda_food USING gin (terms)"
    " WHERE source IN (1, 2, 3)",
    "food_branded_terms": "CREATE INDEX IF NOT EXISTS food_branded_terms ON usda_food USING gin (terms)"
    " WHERE source IN (4)",
}
# Stems, and as generic foods spell them: an error shows in the word, not in its stem ("choclate" is no "chocol").
_VOCABULARY = (
    f"""
    INSERT INTO food_word (word, stem, generic, total)
    SELECT word, word, sum(generic), sum(generic + branded) FROM (
      SELECT word, ndoc AS generic, 0 AS branded FROM ts_stat('SELECT terms FROM usda_food WHERE source IN (1, 2, 3)')
      UNION ALL SELECT word, 0, ndoc FROM ts_stat('SELECT terms FROM usda_food WHERE source IN (4)')
    ) GROUP BY word HAVING sum(generic) > 0 OR sum(branded) >= {KNOWN_FOODS}
    """,  # noqa: S608 - a constant of ours
    """
    INSERT INTO food_word (word, stem, generic, total)
    SELECT s.word, w.stem, w.generic, w.total FROM ts_stat(
      'SELECT to_tsvector(''pg_catalog.simple'', food_plain(display_name)) FROM usda_food WHERE source IN (1, 2, 3)'
    ) s JOIN food_word w ON w.word = (ts_lexize('pg_catalog.english_stem', s.word))[1]
    ON CONFLICT DO NOTHING
    """,
)


@dataclass(slots=True)
class ImportState:
    """How far the import is.

    Attributes:
        data: which file, read by which rules.
        rows_read: of the file.
        foods: made of them.
        counts: rows left out and figures mended, by reason.
        finished: indexes and all.
    """

    data: str
    rows_read: int = 0
    foods: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    finished: bool = False


async def import_state(connection: asyncpg.Connection[Any]) -> ImportState | None:
    """The state of the import; None if none has begun."""
    row = await connection.fetchrow("SELECT data, rows_read, foods, counts::text, finish_time FROM usda_import")
    if row is None:
        return None
    counts = Counter(json.loads(row["counts"]))
    return ImportState(row["data"], row["rows_read"], row["foods"], counts, row["finish_time"] is not None)


async def finish_import(db: Database, state: ImportState) -> None:
    """Notes that the import is complete, and tells of it."""
    async with db.transaction() as connection:
        await connection.execute(sa.text("UPDATE usda_import SET finish_time = now()"))
        await events.publish(connection, FoodsImported(data=state.data, foods=state.foods))
    state.finished = True


@asynccontextmanager
async def loader(db: Database) -> AsyncIterator[Loader]:
    """A connection for the import: no statement timeout, indexes by one core alone."""
    async with db.raw() as connection:
        await connection.execute(
            "SET statement_timeout = 0; SET max_parallel_maintenance_workers = 0; SET maintenance_work_mem = '256MB'"
        )
        yield Loader(connection)
        # Not after a failure: the connection then closes, and takes lock and settings with it.
        await connection.execute("SELECT pg_advisory_unlock_all()")
        await connection.execute("RESET ALL")


class Loader:
    """The steps of the import; each leaves the database such that a new process can go on."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    async def try_lock(self) -> bool:
        """Takes the import's lock, which goes with the connection, unless another instance has it."""
        return bool(await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", _IMPORT_LOCK))

    async def state(self) -> ImportState | None:
        """How far whoever has the lock is."""
        return await import_state(self._connection)

    async def begin(self, data: str) -> ImportState:
        """The state of the import of `data`; what there is of other data is thrown away."""
        state = await import_state(self._connection)
        if state and state.data == data:
            return state
        async with self._connection.transaction():
            for index in INDEXES:
                await self._connection.execute(f"DROP INDEX IF EXISTS {index}")
            await self._connection.execute("DELETE FROM usda_food")
            await self._connection.execute("TRUNCATE food_word, usda_import")
            await self._connection.execute("INSERT INTO usda_import (data) VALUES ($1)", data)
        return ImportState(data)

    async def add(self, lines: bytes, state: ImportState) -> None:
        """Adds foods, in COPY's text format, and moves the cursor to `state`, both or neither."""
        async with self._connection.transaction():
            await self._connection.copy_to_table(
                "usda_food", source=BytesIO(lines), columns=COPY_COLUMNS, format="text"
            )
            await self._connection.execute(
                "UPDATE usda_import SET rows_read = $1, foods = $2, counts = $3",
                state.rows_read,
                state.foods,
                json.dumps(state.counts),
            )

    async def finish(self) -> AsyncIterator[str]:
        """Builds indexes and vocabulary, saying before each step what it is."""
        for name, statement in INDEXES.items():
            yield name
            await self._connection.execute(statement)
        yield "vocabulary"
        async with self._connection.transaction():
            await self._connection.execute("TRUNCATE food_word")
            for statement in _VOCABULARY:
                await self._connection.execute(statement)
        yield "statistics"
        await self._connection.execute("VACUUM (ANALYZE) usda_food")
        await self._connection.execute("ANALYZE food_word")
