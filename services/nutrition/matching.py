"""Which food a name means: pure scoring of candidates, with a confidence that can be explained.

A name is first looked up in our table of what a dietitian takes for it (`data/foods.csv`). What that table lacks is
matched word by word. A confidence of 1 is certain; each doubt takes its share off, and says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nourish.food.v1 import food_pb2
from rapidfuzz import fuzz, process

from mesh.runtime import setting
from services.nutrition import tables, vocabulary
from services.nutrition.parsing import Line
from services.nutrition.words import tokens

# Under USED a match is not used; under SURE it is used and marked as weak.
USED = setting("matching.minConfidence", 0.5, within=(0, 1))
SURE = 0.75
QUERY_LETTERS = 200  # the contract's limit

_SOURCE_RANK = {
    food_pb2.SOURCE_USER: 4,
    food_pb2.SOURCE_SR_LEGACY: 3,
    food_pb2.SOURCE_FOUNDATION: 3,
    food_pb2.SOURCE_SURVEY: 2,
    food_pb2.SOURCE_BRANDED: 1,
}


@dataclass(frozen=True)
class Wanted:
    """What a line asks for. `wording` is USDA's name for it, empty if our table does not know it."""

    kind: tuple[str, ...]  # how `measures.csv` may know it
    words: tuple[str, ...]  # of the name, noise left out; the last is the head noun
    wording: str
    extras: tuple[str, ...]  # words before what the table knows: ("sweet",) of "sweet potato starch"
    state: str
    doubt: str = ""  # why the table's wording may not be meant

    @property
    def query(self) -> str:
        """What to search for: USDA's name if our table has it, with the words before it; else the name as it is."""
        words = (*self.extras, *tokens(self.wording)) if self.wording else self.words
        return " ".join(words)[:QUERY_LETTERS]


@dataclass(frozen=True)
class Match:
    """A food with how sure it is, 0 to 1, and why not surer."""

    food: food_pb2.Food
    confidence: float
    doubts: tuple[str, ...]


def understand(line: Line) -> Wanted:
    """What the line asks for."""
    return wanted(line.name, line.state)


def wanted(name: str, state: str = "") -> Wanted:
    """What a name asks for in a state ("canned", "cooked", "frozen", "dried", "fresh" or "")."""
    full = tokens(name)
    clean = tuple(w for w in full if w not in vocabulary.NOISE) or full
    for words in (full, clean, _without_cut(full), _without_cut(clean)):
        alias = _alias(words, state)
        if alias:
            return _of(alias, words, (), state)
    clean = _without_cut(clean)
    for start in range(1, len(clean)):
        alias = _alias(clean[start:], state)
        if alias:
            return _of(alias, clean, clean[:start], state)
    return _spelled_otherwise(clean, state) or Wanted(clean, clean, "", (), state)


def choose(asked: Wanted, candidates: Iterable[food_pb2.Food]) -> Match | None:
    """The best of the candidates in whatever order they come; None if there is none. Ties go to the better source."""
    matches = (score(asked, food) for food in candidates)
    return max(matches, key=_preference, default=None)


def score(asked: Wanted, food: food_pb2.Food) -> Match:
    """How well a food fits."""
    if food.source == food_pb2.SOURCE_USER and set(tokens(food.display_name)) == set(asked.words):
        return Match(food, 1.0, ())  # the user's own food of that very name
    by_name = _score_words(asked, asked.words, food)
    if not asked.wording:
        return by_name
    by_table = _score_table(asked, food)
    return max(by_table, by_name, key=lambda m: m.confidence) if asked.extras else by_table


def _preference(match: Match) -> tuple[float, int, int, int, str]:
    food = match.food
    measured = len(food.nutrients.ListFields())
    return match.confidence, _SOURCE_RANK.get(food.source, 0), measured, -len(food.display_name), food.name


def _alias(words: tuple[str, ...], state: str) -> tables.Alias | None:
    known = tables.aliases()
    return known.get((words, state)) or known.get((words, ""))


def _of(alias: tables.Alias, words: tuple[str, ...], extras: tuple[str, ...], state: str) -> Wanted:
    doubt = "a usual food of that name, or the nearest to it, was taken" if alias.stand_in else ""
    return Wanted(tokens(alias.kind), words, alias.wording, extras, state, doubt)


def _without_cut(words: tuple[str, ...]) -> tuple[str, ...]:
    """ "Salmon fillet" is salmon; "lime leaf" is no lime, but "basil leaf" is basil: we know what one weighs."""
    if len(words) < 2 or words[-1] not in vocabulary.CUTS:
        return words
    part = words[-1] in vocabulary.PARTS
    known = tables.measures().get(words[:-1], ())
    return words if part and not any(m.unit == words[-1] for m in known) else words[:-1]


def _spelled_otherwise(words: tuple[str, ...], state: str) -> Wanted | None:
    """A single long word may be a misspelt one of ours: "brocoli"."""
    if len(words) != 1 or len(words[0]) < 6:
        return None
    single = sorted({known[0] for known, _ in tables.aliases() if len(known) == 1})
    found = process.extractOne(words[0], single, scorer=fuzz.ratio, score_cutoff=88)
    alias = _alias((found[0],), state) if found else None
    return replace(_of(alias, words, (), state), doubt="the spelling differs") if alias else None


def _score_table(asked: Wanted, food: food_pb2.Food) -> Match:
    """Against the wording our table gives: it itself is nearly certain, what differs from it loses."""
    target, have = tokens(asked.wording), tokens(food.display_name)
    doubts: list[str] = []
    if target == have:
        confidence = 0.98
    else:
        missing = [w for w in target if w not in have]
        confidence = 0.95 - 0.9 * len(missing) / len(target)
        if target[0] not in have:
            confidence -= 0.3
        confidence -= _surplus(asked, (*target, *asked.extras), food, doubts)
    confidence -= _unmet([w for w in asked.extras if w not in have], doubts)
    if asked.doubt:
        confidence *= 0.76  # under SURE, but in the order of the foods
        doubts.append(asked.doubt)
    return _match(food, confidence, doubts)


def _score_words(asked: Wanted, words: tuple[str, ...], food: food_pb2.Food) -> Match:
    """Word by word: the head noun must be there, first; the other words should be, words of its own should not."""
    have = tokens(food.display_name)
    doubts: list[str] = []
    if not words or not have or not _in(words[-1], have):
        return Match(food, 0.0, ("another kind of food",))
    missing = [w for w in words[:-1] if not _in(w, have)]
    confidence = 0.92 - _unmet(missing, doubts)
    if missing and food.source == food_pb2.SOURCE_BRANDED:
        confidence -= 0.3  # a product is asked for by all of its name, or not at all
    if not _leads(words, have):
        confidence -= 0.25
        doubts.append(f"{words[-1]} is not its main part")
    confidence -= _surplus(asked, words, food, doubts)
    if "raw" in have and asked.state != "cooked":
        confidence += 0.03
    if set(have) == set(words):
        confidence += 0.05
    return _match(food, confidence, doubts)


def _unmet(words: list[str], doubts: list[str]) -> float:
    """What words that the food lacks take off: one makes a match weak, one that is a food itself ("cauliflower rice")
    makes it none.
    """
    if not words:
        return 0.0
    doubts.append(f"nothing for {_quoted(words)}")
    foods = any(((word,), "") in tables.aliases() for word in words)
    return 0.1 + 0.16 * len(words) + (0.3 if foods else 0.0)


def _leads(words: tuple[str, ...], have: tuple[str, ...]) -> bool:
    """Whether the food is called by the head noun, or by the class and then it: "Spices, cumin seed"."""
    lead = next((w for w in have if w not in vocabulary.CLASSES), have[0])
    return _in(have[0], words) or _in(lead, words)


def _surplus(asked: Wanted, words: tuple[str, ...], food: food_pb2.Food, doubts: list[str]) -> float:
    """What the food's own words take off: another state, another dish, a brand."""
    have = set(tokens(food.display_name))
    own = have - set(words)
    off = 0.0
    for state, signs in vocabulary.STATES.items():
        if own & signs and asked.state != state:
            off += 0.25
            doubts.append(f"it is {state}")
        elif asked.state == state and not have & signs:
            off += 0.12
            doubts.append(f"it is not {state}")
        own -= signs
    dishes = {w for w in own & vocabulary.DISH if not any(_same(w, known) for known in words)}
    if dishes:
        off += 0.2 * min(len(dishes), 3)
        doubts.append(f"it is of {_quoted(sorted(dishes))}")
    if own & vocabulary.REGIONAL:
        off += 0.2
    off += min(0.03 * len(own - dishes - vocabulary.NEUTRAL - vocabulary.REGIONAL), 0.18)
    if food.source != food_pb2.SOURCE_BRANDED:  # whose names are all in capitals
        off += 0.25 * any(len(word) > 3 and word.isupper() for word in food.display_name.replace("'", "").split())
    return off


def _match(food: food_pb2.Food, confidence: float, doubts: list[str]) -> Match:
    if food.source == food_pb2.SOURCE_BRANDED:
        confidence -= 0.1
        doubts.append("it is a branded product")
    if not food.nutrients.HasField("energy_kcal"):
        confidence *= 0.3
        doubts.append("its energy is not known")
    return Match(food, round(max(0.0, min(1.0, confidence)), 3), tuple(doubts))


def _in(word: str, others: Iterable[str]) -> bool:
    return any(_same(word, other) for other in others)


def _same(one: str, other: str) -> bool:
    """Equal, or long and equal but for a typing error."""
    return one == other or (len(one) > 4 and len(other) > 4 and fuzz.ratio(one, other) >= 88)


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
