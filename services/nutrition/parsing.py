"""Ingredient lines as people write them -> what, how much, in which state.

The reading itself is ingredient-parser-nlp's (a conditional random field trained on recipes). Its own mapping to FDC
foods is not used: measured here it adds 30 MB, 4.6 s of start and 70 ms a line, and maps to foods that our data lacks.
"""

import logging
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.nutrition import tagger
from services.nutrition.words import plain, singular, tokens, words_of

if TYPE_CHECKING:
    from ingredient_parser.dataclasses import ParsedIngredient

_log = logging.getLogger(__name__)

# Numbers in words that the parser leaves as text, and abbreviations that it does not know with a full stop.
_NUMBERS = (
    (re.compile(r"\b(?:one|a) half\b|\bhalf (?:an?|of an?|the)\b|^half\b", re.I), "1/2"),
    (re.compile(r"\b(?:one|a) quarter of an?\b", re.I), "1/4"),
    (re.compile(r"\bhalf a dozen\b", re.I), "6"),
    (re.compile(r"\b(?:one|a|1) dozen\b", re.I), "12"),
    (re.compile(r"\b(?:two|2) dozen\b", re.I), "24"),
    (re.compile(r"\b(tbsps?|tbs|tsps?|oz|lbs?|pkg|qt|pt|g|kg|ml)\.", re.I), r"\1"),
    (re.compile(r"\ba couple(?: of)?\b", re.I), "2"),
)
_UNITS = {"tin": "can", "rib": "stalk", "rasher": "slice", "sachet": "packet", "pack": "package", "pkg": "package"}
_PINT = {"tablespoon": "tbsp", "teaspoon": "tsp", "gram": "g", "kilogram": "kg", "ounce": "oz", "pound": "lb"}
_PINT |= {"milliliter": "ml", "centiliter": "cl", "deciliter": "dl", "liter": "l", "fluid_ounce": "fl oz"}
# More than this of anything is no recipe, and its nutrients would not fit their limits.
_MOST = 100_000
# What holds a stated weight: "2 cans (14 oz)" is twice 14 oz, but "2 cups (300 g)" is 300 g.
_CONTAINERS = words_of("bag block bottle box can carton container jar loaf package packet pouch tub tube")
_STATES = {
    "canned": frozenset({"canned", "tinned"}),
    "frozen": frozenset({"frozen"}),
    "dried": frozenset({"dried", "dehydrated"}),
    "cooked": frozenset({"cooked", "boiled", "roasted", "steamed", "baked", "grilled", "fried", "leftover"}),
    "fresh": frozenset({"fresh"}),
}
# Herbs by these measures are fresh ones.
_FRESH_UNITS = frozenset({"bunch", "sprig", "leaf", "handful", "stem", "cup"})


@dataclass(frozen=True)
class Amount:
    """One amount of a line: `quantity` of `unit`; `grams` or `ml` is all of it if it is a weight or a volume."""

    quantity: float
    unit: str
    grams: float | None = None
    ml: float | None = None
    each: bool = False  # says what one of a count or container holds


@dataclass(frozen=True)
class Line:
    """What was read from a line. `amounts` are different ways to say the same amount, the first first."""

    text: str
    name: str
    names: tuple[str, ...]
    amounts: tuple[Amount, ...]
    size: str
    preparation: str
    state: str
    words: frozenset[str]

    @property
    def amount(self) -> Amount | None:
        """The amount that the line gives first."""
        return self.amounts[0] if self.amounts else None


def load(cache_dir: Path) -> None:
    """Makes the parser ready: the tagger in `cache_dir`, then the library and its model (about 1.5 s of CPU, once).

    Raises:
        OSError: the cache folder cannot be written.
        LookupError: NLTK does not find the tagger there; nothing is ever downloaded.
    """
    import nltk.data  # noqa: PLC0415 - NLTK must know the folder before the parser is imported

    folder = str(tagger.ensure_tagger(cache_dir))
    if folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)
    for part in ("classes", "tagdict", "weights"):
        nltk.data.find(  # type: ignore[no-untyped-call]
            f"taggers/{tagger.NAME}/{tagger.NAME}.{part}.json"
        )
    _library()("1 cup flour")


def parse(text: str) -> Line:
    """Reads one line; about 3 ms of CPU. What cannot be read has no name. `load` must have been called."""
    prepared = text
    for pattern, number in _NUMBERS:
        prepared = pattern.sub(number, prepared)
    try:
        return _to_line(text, _library()(prepared))
    except Exception as error:  # noqa: BLE001 - the library fails on odd text in many ways: "1/0 cup" divides by zero
        _log.info("a line could not be read", extra={"error": type(error).__name__})
        return Line(text, "", (), (), "", "", "", frozenset())


@cache
def _library() -> "Any":
    from ingredient_parser import parse_ingredient  # noqa: PLC0415 - imported once the tagger is in place

    return parse_ingredient


def _to_line(text: str, parsed: "ParsedIngredient") -> Line:
    preparation = parsed.preparation.text if parsed.preparation else ""
    comment = parsed.comment.text if parsed.comment else ""
    names = tuple(n.text for n in parsed.name)
    name = _part(names[0] if names else "", preparation)
    amounts = tuple(a for a in map(_amount, parsed.amount) if a is not None)
    words = frozenset(tokens(" ".join((name, preparation, comment)))) | frozenset(plain(text).replace(",", " ").split())
    size, amounts = _sized(amounts)
    unit = amounts[0].unit if amounts else ""
    return Line(
        text=text,
        name=name,
        names=names,
        amounts=amounts,
        size=f"{parsed.size.text.lower() if parsed.size else ''} {size}".strip(),
        preparation=preparation,
        state=_state(words, unit),
        words=words,
    )


def _sized(amounts: tuple[Amount, ...]) -> tuple[str, tuple[Amount, ...]]:
    """ "1 large head": the size belongs to the food, the unit is a head."""
    if not amounts:
        return "", amounts
    size, _, unit = amounts[0].unit.rpartition(" ")
    if size not in {"small", "medium", "large"}:
        return "", amounts
    return size, (replace(amounts[0], unit=_UNITS.get(unit, unit)), *amounts[1:])


def _part(name: str, preparation: str) -> str:
    """ "juice of" a lemon, or a lemon "juiced", is lemon juice; likewise its zest."""
    done = tokens(preparation)
    if len(tokens(name)) != 1:
        return name
    if "juice" in done or "juiced" in done:
        return f"{singular(name.lower())} juice"
    if "zest" in done or "zested" in done:
        return f"{singular(name.lower())} zest"
    return name


def _state(words: frozenset[str], unit: str) -> str:
    if unit == "can":
        return "canned"
    for state, signs in _STATES.items():
        if words & signs:
            return state
    return "fresh" if unit in _FRESH_UNITS else ""


def _amount(parsed: "Any") -> Amount | None:
    """One parsed amount, ranges as their middle; None if it is not a number."""
    if hasattr(parsed, "amounts"):  # "1 lb 2 oz", "1 cup plus 2 tablespoons"
        parts = [a for a in map(_amount, parsed.amounts) if a is not None]
        return _sum(parts, -1 if parsed.subtractive else 1)
    try:
        quantity = float(parsed.quantity + parsed.quantity_max) / 2
    except (TypeError, ValueError, OverflowError):
        return None
    if not 0 < quantity <= _MOST:
        return None
    if isinstance(parsed.unit, str):
        unit = singular(plain(parsed.unit)).strip()
        return Amount(quantity, _UNITS.get(unit, unit), each=bool(parsed.SINGULAR))
    grams, ml = (_convert(quantity, parsed.unit, to) for to in ("gram", "milliliter"))
    unit = str(parsed.unit)
    return Amount(quantity, _PINT.get(unit, unit), grams, ml, each=bool(parsed.SINGULAR))


def _convert(quantity: float, unit: "Any", to: str) -> float | None:
    """Mass and volume by pint's definitions (NIST Handbook 44: 1 cup = 236.588 ml, 1 oz = 28.3495 g)."""
    if not unit.is_compatible_with(to):
        return None
    return float((quantity * unit).to(to).magnitude)


def _sum(parts: list[Amount], sign: int) -> Amount | None:
    if not parts:
        return None
    first, rest = parts[0], parts[1:]
    grams, ml = first.grams, first.ml
    for part in rest:
        grams = None if grams is None or part.grams is None else grams + sign * part.grams
        ml = None if ml is None or part.ml is None else ml + sign * part.ml
    whole, base = (grams, first.grams) if grams is not None else (ml, first.ml)
    quantity = first.quantity * whole / base if whole is not None and base else first.quantity
    return Amount(quantity, first.unit, grams, ml)


def contents(line: Line) -> Amount | None:
    """The weight or volume that the line itself states, of all of it: 28 oz of 2 cans of 14 oz. None if it has none."""
    count = next((a for a in line.amounts if a.grams is None and a.ml is None), None)
    stated = sorted((a for a in line.amounts if a is not count), key=lambda a: (a.grams is None, line.amounts.index(a)))
    if not stated:
        return None
    best = stated[0]
    times = count.quantity if count and (best.each or count.unit in _CONTAINERS) else 1.0
    scaled = [None if v is None else v * times for v in (best.grams, best.ml)]
    return Amount(best.quantity * times, best.unit, scaled[0], scaled[1])
