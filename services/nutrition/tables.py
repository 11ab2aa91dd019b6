"""The data of this service: what cooks call foods, and what household measures of them weigh.

`foods.csv`: names (first the one that `measures.csv` knows), their state, the USDA name that a dietitian takes.
A name after `~` may mean other foods too: the food is the usual one, or stands in for one that our data lacks.
`measures.csv`: the weight in grams of one measure of a food; the first row of a measure is its usual form. `SR 11282`
is a portion of NDB number 11282 in the USDA National Nutrient Database for Standard Reference (its WEIGHT file), `CSV`
one that FoodData Central's own row carries, and an estimate says what it rests on. The measure `drained` is the
percentage of a can's net weight that is left when its liquid is poured off.
`categories.csv`: grams a cup by words of USDA's food category, for foods that no measure is known of.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services.nutrition.words import tokens

_DATA = Path(__file__).parent / "data"
_SOURCES = {"SR ": "USDA SR Legacy ", "CSV ": "USDA FoodData Central, "}


@dataclass(frozen=True)
class Alias:
    """What a cook's name means: `kind` is how our measures call it, `wording` how USDA does."""

    kind: str
    wording: str
    stand_in: bool


@dataclass(frozen=True)
class Measure:
    """One measure of a food weighs `grams`; `form` is the form it is in ("chopped"), empty if any."""

    unit: str
    form: str
    grams: float
    source: str

    @property
    def estimated(self) -> bool:
        """Whether it is our estimate, not a published figure."""
        return self.source.startswith("estimate")

    def describe(self) -> str:
        """The measure in words: "1 cup, chopped = 160 g (USDA SR Legacy 11282)"."""
        unit = "1 piece" if self.unit == "each" else f"1 {self.unit}"
        return f"{unit}{', ' if self.form else ''}{self.form} = {self.grams:g} g ({self.source})"


@cache
def aliases() -> Mapping[tuple[tuple[str, ...], str], Alias]:
    """By the words of a name and a state ("" for any): what it means."""
    found: dict[tuple[tuple[str, ...], str], Alias] = {}
    for row in _rows("foods.csv"):
        names = row["names"].split(" / ")
        for name in names:
            alias = Alias(kind=names[0].lstrip("~"), wording=row["food"], stand_in=name.startswith("~"))
            found.setdefault((tokens(name), row["state"]), alias)
    return found


@cache
def measures() -> Mapping[tuple[str, ...], tuple[Measure, ...]]:
    """By the words of a food: its measures, in the order of the file."""
    found: dict[tuple[str, ...], list[Measure]] = {}
    for row in _rows("measures.csv"):
        measure = Measure(row["measure"], row["form"], float(row["grams"]), _cited(row["source"]))
        found.setdefault(tokens(row["food"]), []).append(measure)
    return {food: tuple(rows) for food, rows in found.items()}


@cache
def categories() -> tuple[tuple[frozenset[str], float, str], ...]:
    """(words of a category, grams a cup, source), first come first served."""
    return tuple((frozenset(tokens(r["words"])), float(r["grams"]), r["source"]) for r in _rows("categories.csv"))


def _cited(source: str) -> str:
    for short, full in _SOURCES.items():
        if source.startswith(short):
            return full + source.removeprefix(short)
    return source


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (_DATA / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
