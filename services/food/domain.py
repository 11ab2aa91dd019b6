"""What a food is and what may be believed of one. No I/O."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from nourish.food.v1.food_pb2 import Food, Portion, Source
from nourish.type.v1.nutrients_pb2 import Nutrients

# The place of a nutrient in every stored array is its field number less one: Energy first, Selenium last.
NUTRIENTS = tuple(f.name for f in sorted(Nutrients.DESCRIPTOR.fields, key=lambda f: f.number))
ENERGY, CARBOHYDRATE, SUGARS_NLEA, FIBER, SUGARS, FIBER_AOAC, FAT, CHOLESTEROL, SATURATED = range(9)
PROTEIN, SODIUM = 12, 32

# Looked up once: the enum's own attribute access costs as much as judging a figure.
GENERIC = (Source.SOURCE_FOUNDATION, Source.SOURCE_SR_LEGACY, Source.SOURCE_SURVEY)
BRANDED, USER = Source.SOURCE_BRANDED, Source.SOURCE_USER

Figures = Sequence[float | None]

# --- What may be believed -------------------------------------------------------------------------------------------

# A label rounds each figure per serving and the rounding is then scaled to 100 g, hence 5 g of slack per 100 g.
_MASS_LIMIT_G = 105.0
# Pure fat has 902 kcal per 100 g (Merrill and Watt, USDA Handbook 74), plus the same 5 %.
_ENERGY_LIMIT_KCAL = 950.0
# Table salt is 39.3 % sodium.
_SODIUM_LIMIT_MG = 41_500.0
_VALUE_LIMIT = 1_000_000.0  # the contract's limit on every nutrient
_ENERGY_SLACK_KCAL = 20.0  # less than that apart is rounding, however large the ratio
_grams = itemgetter(*(i for i, name in enumerate(NUTRIENTS) if name.endswith("_g")))
_milligrams = itemgetter(*(i for i, name in enumerate(NUTRIENTS) if name.endswith("_mg")))


def fault(figures: Figures, *, labelled: bool) -> str | None:
    """Says why the figures of 100 g cannot be true, or None if they can.

    Args:
        figures: the 39 nutrients, each in its own unit, None if not measured.
        labelled: the figures are a label's. Only then is energy held against the general Atwater factors (4 kcal per g
            of protein and carbohydrate, 9 of fat): USDA's own generic figures include alcohol, organic acids and
            polyols, which no column here carries, so that wine and erythritol would be thrown out with the errors.
    """
    filled = [value or 0.0 for value in figures]
    if min(filled) < 0.0:
        return "negative"
    if max(filled) > _VALUE_LIMIT or not math.isfinite(sum(filled)):
        return "beyond any food"
    macros = filled[CARBOHYDRATE] + filled[FAT] + filled[PROTEIN]
    if macros > _MASS_LIMIT_G or max(_grams(filled)) > _MASS_LIMIT_G or max(_milligrams(filled)) > _MASS_LIMIT_G * 1000:
        return "over 100 g in 100 g"
    if filled[ENERGY] > _ENERGY_LIMIT_KCAL or filled[SODIUM] > _SODIUM_LIMIT_MG:
        return "beyond any food"
    if _part_exceeds(figures[SUGARS], figures[CARBOHYDRATE]) or _part_exceeds(figures[SATURATED], figures[FAT]):
        return "part larger than the whole"
    return "energy over 2x off Atwater" if labelled and _energy_off(figures) else None


def _part_exceeds(part: float | None, whole: float | None) -> bool:
    return part is not None and whole is not None and part > whole + 5.0


def _energy_off(figures: Figures) -> bool:
    energy, carbohydrate, fat, protein = (figures[i] for i in (ENERGY, CARBOHYDRATE, FAT, PROTEIN))
    if energy is None or carbohydrate is None or fat is None or protein is None:
        return False
    most = 4.0 * (carbohydrate + protein) + 9.0 * fat
    least = most - 4.0 * min(figures[FIBER] or 0.0, carbohydrate)  # a label may count fibre as nothing
    return (energy > 2.0 * most and energy - most > _ENERGY_SLACK_KCAL) or (
        energy < least / 2.0 and least - energy > _ENERGY_SLACK_KCAL
    )


# --- How plain a food is ----------------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z0-9]+")
_BRAND = re.compile(r"\b(?!NFS\b|USDA\b)[A-Z][A-Z']{2,}\b")
# What a cook means who says no more, against what he would have said.
_PLAIN = frozenset(
    {"raw", "fresh", "whole", "nfs", "plain", "table", "granulated", "unprepared", "white", "yellow", "all", "purpose"}
    | {"regular", "wheat"}
)
_PARTICULAR = frozenset(
    {"babyfood", "baby", "infant", "toddler", "imitation", "substitute", "meatless", "diet", "restaurant", "fast"}
    | {"reduced", "low", "light", "lowfat", "nonfat", "free", "sweetened", "flavored", "added", "with", "stuffed"}
    | {"dehydrated", "freeze", "dried", "dry", "powder", "powdered", "canned", "frozen", "pickled", "smoked", "candied"}
    | {"breaded", "fried", "battered", "creamed", "glazed", "ingredient", "industrial", "mix", "wild", "native", "game"}
    | {"sauce", "gravy", "dessert", "snack", "juice", "soup", "salad", "sandwich", "pie", "cake", "roll", "bread"}
    | {"cracker", "rings", "dip", "spread", "topping", "ns", "meatball", "nuggets", "nugget", "coated"}
    | {"giblets", "liver", "heart", "gizzard", "neck", "back", "tail", "feet", "bones", "babyfood", "eskimo"}
    | {"benedict", "scalloped", "malted", "dessert", "alaska", "can", "solids", "substitutes", "salted"}
)
_SPECIAL_CATEGORIES = (
    "Not included in a food category",
    "American Indian/Alaska Native Foods",
    "Baby Foods",
    "Fast Foods",
    "Restaurant Foods",
)


def plainness(source: int, name: str, category: str, figures: Figures) -> float:
    """How likely this is the food meant by a query that says no more than its name: 0 to 1, by rules of thumb."""
    score = 0.7 - 0.02 * name.count(" ") - 0.05 * ("(" in name)
    if source != BRANDED:
        words = set(_WORD.findall(name.lower()))
        score += 0.1 * min(2, len(words & _PLAIN)) + 0.03 * ("raw" in words)
        score -= 0.25 * min(2, len(words & _PARTICULAR))
        if _BRAND.search(name):
            score -= 0.3  # a brand among the generic foods
        if category.startswith(_SPECIAL_CATEGORIES):
            score -= 0.3
    if figures[ENERGY] is None:
        score -= 0.3  # useless for most of what a food is looked up for
    score += 0.1 * (1.0 - figures.count(None) / len(NUTRIENTS))
    return round(min(1.0, max(0.0, score)), 4)


# --- Identity ---------------------------------------------------------------------------------------------------------


_USDA = "usda-"


def usda_id(source: int, name: str, figures: str) -> str:
    """The id of a USDA food, the same on every install: a hash of what makes it this food.

    A generic food is its name; many branded foods share a name, so the figures count for them as well.
    """
    key = f"{source}\0{name}\0{figures if source == BRANDED else ''}"
    return _USDA + short_hash(key)


def is_usda(id_: str) -> bool:
    """Whether an id is of a USDA food, if of any."""
    return id_.startswith(_USDA)


def new_user_id() -> str:
    """A fresh id for a user's own food."""
    return "own-" + secrets.token_hex(10)


def imported_id(job: str, place: int) -> str:
    """The id of the food at a place of an import: the same whenever the import is tried again."""
    return f"own-{short_hash(f'{job} {place}')}"


def new_etag() -> str:
    """A fresh etag; never one that the food had before."""
    return secrets.token_hex(8)


def short_hash(text: str) -> str:
    """64 bits of BLAKE2b in hexadecimal: among 400,000 foods, two alike are a matter of 1 in 200 million."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# --- Stored rows and messages -----------------------------------------------------------------------------------------


class FoodRow(NamedTuple):
    """A row of the store; its columns are the fields, in this order."""

    id: str
    source: int
    display_name: str
    category: str
    nutrients: list[float | None]
    portion_names: list[str]
    portion_grams: list[float]
    etag: str
    create_time: datetime
    update_time: datetime


def to_food(row: FoodRow) -> Food:
    """The message of a stored row."""
    return Food(
        name="foods/" + row.id,
        display_name=row.display_name,
        category=row.category,
        source=row.source,  # type: ignore[arg-type]
        nutrients=Nutrients(**{k: v for k, v in zip(NUTRIENTS, row.nutrients, strict=True) if v is not None}),
        portions=[Portion(description=d, grams=g) for d, g in zip(row.portion_names, row.portion_grams, strict=True)],
        etag=row.etag,
        create_time=_timestamp(row.create_time),
        update_time=_timestamp(row.update_time),
    )


def _timestamp(time: datetime) -> Timestamp:
    return Timestamp(seconds=int(time.timestamp()), nanos=time.microsecond * 1000)  # a fifth of FromDatetime's cost


class Content(NamedTuple):
    """What a user may set of a food, as it is stored."""

    display_name: str
    category: str
    nutrients: list[float | None]
    portion_names: list[str]
    portion_grams: list[float]


def content_of(food: Food) -> Content:
    """The settable part of a message.

    Raises:
        InvalidFieldsError: no name but white space, or a figure that is no number.
    """
    nutrients = [getattr(food.nutrients, k) if food.nutrients.HasField(k) else None for k in NUTRIENTS]  # type: ignore[arg-type]
    found = [
        (f"food.nutrients.{k}", "must be a finite number")
        for k, v in zip(NUTRIENTS, nutrients, strict=True)
        if v is not None and not math.isfinite(v)
    ]
    found += [
        (f"food.portions[{i}].grams", "must be a finite number")
        for i, portion in enumerate(food.portions)
        if not math.isfinite(portion.grams)
    ]
    name = " ".join(food.display_name.split())
    if not name:
        found.append(("food.display_name", "is required"))
    if found:
        raise InvalidFieldsError(found)
    return Content(
        display_name=name,
        category=" ".join(food.category.split()),
        nutrients=nutrients,
        portion_names=[p.description for p in food.portions],
        portion_grams=[p.grams for p in food.portions],
    )


class InvalidFieldsError(ValueError):
    """Fields that are not acceptable, as (field, description) pairs."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__(found)
        self.found = found
