"""Amounts -> grams, in this order: what the line states, a household portion of the matched food, our measures of this
kind of food (densities, pieces), the density of its category. Each answer says what it rests on.

Volumes scale with pint's units (1 cup = 236.588 ml, 1 tbsp = 14.787 ml, 1 tsp = 4.929 ml). Small kitchen measures are
those that measuring spoons are sold as: a dash is 1/8, a pinch 1/16 and a smidgen 1/32 of a teaspoon.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nourish.food.v1 import food_pb2
from nourish.nutrition.v1 import nutrition_pb2 as pb

from services.nutrition import parsing, tables
from services.nutrition.matching import Wanted
from services.nutrition.parsing import Amount, Line
from services.nutrition.tables import Measure
from services.nutrition.words import tokens

CUP_ML = 236.588
_ML = {"cup": CUP_ML, "tbsp": CUP_ML / 16, "tsp": CUP_ML / 48, "fl oz": CUP_ML / 8, "pint": CUP_ML * 2, "ml": 1.0}
_ML |= {"tablespoon": CUP_ML / 16, "teaspoon": CUP_ML / 48, "milliliter": 1.0, "quart": CUP_ML * 4, "l": 1000.0}
# Vague measures, as volumes; what they hold is an estimate.
_VAGUE = {
    "dash": CUP_ML / 48 / 8,
    "pinch": CUP_ML / 48 / 16,
    "smidgen": CUP_ML / 48 / 32,
    "drop": 0.05,
    "splash": CUP_ML / 48,
    "drizzle": CUP_ML / 16,
    "dollop": CUP_ML / 16,
    "knob": CUP_ML / 16,
    "handful": CUP_ML / 2,
    "glass": CUP_ML,
}
_EACH = frozenset({"", "whole", "piece", "each", "unit", "medium", "large", "small"})
_SIZES = ("extra large", "jumbo", "large", "medium", "small")
# Forms of one coarseness weigh the same by the cup.
_FORMS = {
    "diced": "chopped",
    "cubed": "chopped",
    "minced": "chopped",
    "cut": "chopped",
    "grated": "shredded",
    "ground": "ground",
    "julienned": "sliced",
    "rinsed": "drained",
    "half": "halves",
    "floret": "florets",
    "mashed": "mashed",
}
# A portion that is so far from our measure of the same food is an error of its row: "1 cup" of ricotta is not 323 g.
_TOLERANCE = 1.25
_CAN = Measure("can", "", 425, "estimate: a can of 15 oz")
_INCHES = re.compile(r"(\d+(?:\.\d+)?)[ -]?inch")


@dataclass(frozen=True)
class Weight:
    """`grams` of a line, how they were found, and `doubts` if they are an estimate."""

    grams: float
    basis: "pb.WeightBasis.ValueType"
    source: str
    doubts: tuple[str, ...] = ()


def weigh(line: Line, asked: Wanted, food: food_pb2.Food) -> Weight | None:
    """The weight of a line's amount of a food; None if nothing tells it. The line must have an amount."""
    stated, first = parsing.contents(line), line.amount
    if first is None:
        return None
    known = _known(asked)
    if stated is not None and stated.grams is not None:
        return _drained(line, known, stated) or Weight(stated.grams, pb.WEIGHT_BASIS_STATED, "the line itself")
    volume = stated or _vague(first, known)
    if volume is not None and volume.ml is not None:
        return _by_volume(line, volume, volume is not stated, known, food)
    return _by_piece(line, first, asked, known, food)


def _known(asked: Wanted) -> tuple[Measure, ...]:
    """Our measures of this kind of food: of "yellow onion", or else of "onion"."""
    table = tables.measures()
    kinds = (asked.kind, asked.words)
    return next((table[k[i:]] for k in kinds for i in range(len(k)) if k[i:] in table), ())


def _drained(line: Line, known: Sequence[Measure], stated: Amount) -> Weight | None:
    """What is left of a can's net weight when the line says that its liquid is poured off, for foods we know it of."""
    share = next((m for m in known if m.unit == "drained"), None)
    if share is None or "drained" not in line.words or line.state != "canned" or stated.grams is None:
        return None
    text = f"the line itself, drained: {share.grams:g} % of the net weight ({share.source})"
    doubts = ("a can's drained weight varies",)
    return Weight(stated.grams * share.grams / 100, pb.WEIGHT_BASIS_STATED, text, doubts)


def _vague(first: Amount, known: Iterable[Measure]) -> Amount | None:
    """A pinch or a handful as a volume, unless our measures know it as a piece."""
    if first.unit not in _VAGUE or any(m.unit == first.unit for m in known):
        return None
    return Amount(first.quantity, first.unit, ml=first.quantity * _VAGUE[first.unit])


def _by_volume(line: Line, volume: Amount, vague: bool, known: Sequence[Measure], food: food_pb2.Food) -> Weight | None:
    ml = volume.ml or 0.0
    doubts = [f"a {volume.unit} is not an exact measure"] if vague else []
    ours = _best(line, [m for m in known if m.unit in _ML], lambda m: m.unit == volume.unit)
    theirs = _best(line, [m for m in _portions(food) if m.unit in _ML], lambda m: m.unit == volume.unit)
    if theirs and (ours is None or _agree(_density(ours), _density(theirs))):
        text = f"portion of {food.display_name}: {theirs.describe()}"
        return Weight(ml * _density(theirs), pb.WEIGHT_BASIS_PORTION, text, tuple(doubts))
    if ours:
        doubts += ["an estimated density"] if ours.estimated else []
        return Weight(ml * _density(ours), pb.WEIGHT_BASIS_DENSITY, ours.describe(), tuple(doubts))
    category = set(tokens(f"{food.category} {food.display_name}"))
    for words, cup, source in tables.categories():
        if words & category:
            doubts.append("the density of its kind of food")
            return Weight(ml * cup / CUP_ML, pb.WEIGHT_BASIS_DENSITY, f"1 cup = {cup:g} g ({source})", tuple(doubts))
    return None


def _by_piece(line: Line, first: Amount, asked: Wanted, known: Sequence[Measure], food: food_pb2.Food) -> Weight | None:
    unit = _counted(line, first, known)
    inches = _INCHES.search(line.size)
    if inches and (inch := next((m for m in known if m.unit == "inch"), None)):
        grams = first.quantity * float(inches[1]) * inch.grams
        return Weight(grams, pb.WEIGHT_BASIS_PIECE, inch.describe(), ("an estimated piece",))
    size = next((s for s in _SIZES if s in f"{line.size} {first.unit}"), "")
    rows = [m for m in known if m.unit == unit]
    sized = next((m for m in rows if size and m.form == size), None)
    portion = _piece_portion(unit, asked, food)
    if sized is None and portion and _plausible(portion, rows):
        text = f"portion of {food.display_name}: {portion.describe()}"
        return Weight(first.quantity * portion.grams, pb.WEIGHT_BASIS_PORTION, text)
    measure = sized or _best(line, rows, lambda m: not m.form) or (_CAN if unit == "can" else None)
    if measure is None:
        return None
    doubts = ["an estimated piece"] if measure.estimated else []
    if size and measure.form != size:
        doubts.append(f"the weight of a {size} one is not known, a usual one was taken")
    if measure.form in _SIZES and not size and len(rows) > 1:
        doubts.append(f"no size is given, a {measure.form} one was taken")
    return Weight(first.quantity * measure.grams, pb.WEIGHT_BASIS_PIECE, measure.describe(), tuple(doubts))


def _counted(line: Line, first: Amount, known: Iterable[Measure]) -> str:
    """What is counted: "10 basil leaves" are leaves, "2 onions" are each."""
    if first.unit not in _EACH:
        return first.unit
    last = tokens(line.name)[-1:]
    return next((m.unit for m in known if (m.unit,) == last), "each")


def _best(line: Line, rows: Sequence[Measure], preferred: Callable[[Measure], bool]) -> Measure | None:
    """The measure in the form that the line names, then the preferred, then the usual one (the first)."""
    said = {_FORMS.get(w, w) for w in line.words} | {line.state}

    def fit(measure: Measure) -> tuple[int, bool]:
        forms = {_FORMS.get(w, w) for w in measure.form.split()}
        return (2 if forms & said else 1 if not forms else 0), preferred(measure)

    return max(rows, key=fit, default=None)  # the first of equals


def _portions(food: food_pb2.Food) -> list[Measure]:
    """The matched food's household portions as measures of one unit: "1 cup, chopped" and "cup" are a cup."""
    found = []
    for portion in food.portions:
        text = re.match(r"\s*(\d+(?:\.\d+)?)?\s*(fl oz|[A-Za-z]+)[,\s]*(.*)", portion.description)
        if text is None or text[2].lower() in {"undetermined", "serving", "portion", "quantity"}:
            continue
        unit = " ".join(tokens(text[2])) or text[2].lower()
        unit = {"tablespoon": "tbsp", "teaspoon": "tsp", "milliliter": "ml", "fl oz": "fl oz"}.get(unit, unit)
        count = float(text[1] or 1)
        if count > 0:
            found.append(Measure(unit, text[3].strip(), portion.grams / count, "USDA FoodData Central"))
    return found


def _piece_portion(unit: str, asked: Wanted, food: food_pb2.Food) -> Measure | None:
    """A portion that is one piece: a "slice" asked for by that word, or the food by its own name ("Banana", "egg")."""
    names = {asked.words[-1:], asked.kind[-1:], tokens(food.display_name)[:1]}
    for portion in _portions(food):
        if portion.unit == unit or (unit == "each" and (portion.unit,) in names):
            return portion
    return None


def _plausible(portion: Measure, ours: Sequence[Measure]) -> bool:
    return not ours or any(_agree(m.grams, portion.grams) for m in ours)


def _agree(one: float, other: float) -> bool:
    return 1 / _TOLERANCE <= one / other <= _TOLERANCE


def _density(measure: Measure) -> float:
    """Grams a millilitre."""
    return measure.grams / _ML[measure.unit]
