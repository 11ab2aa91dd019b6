"""One line of a recipe: from its text to what it adds, with everything that a reader should know about it."""

from collections.abc import Awaitable, Callable, Sequence

from nourish.food.v1 import food_pb2
from nourish.nutrition.v1 import nutrition_pb2 as pb

from services.nutrition import matching, totals
from services.nutrition.matching import Match, Wanted
from services.nutrition.parsing import Line
from services.nutrition.weights import Weight, weigh
from services.nutrition.words import tokens

# Generic foods, and the caller's own if it is a user who has some.
GENERIC = (
    food_pb2.SOURCE_FOUNDATION,
    food_pb2.SOURCE_SR_LEGACY,
    food_pb2.SOURCE_SURVEY,
    food_pb2.SOURCE_USER,
)
BRANDED = (food_pb2.SOURCE_BRANDED,)
NAMED_MISSING = 5
WEIGHT_DIGITS = 5  # two cups weigh 320 g, and not the 320.0003 of going by millilitres

Search = Callable[[str, Sequence["food_pb2.Source.ValueType"]], Awaitable[Sequence[food_pb2.Food]]]


async def find(asked: Wanted, search: Search) -> Match | None:
    """The food a line means, in two searches at most: generic foods; then, if none is surely it, branded ones of that
    name, or for a name that our table knows a part of, what it gives for that part.
    """
    if not asked.query:
        return None
    foods = list(await search(asked.query, GENERIC))
    best = matching.choose(asked, foods)
    if best is not None and best.confidence >= matching.SURE:
        return best
    if not asked.wording:
        foods += await search(asked.query, BRANDED)
    elif asked.extras:
        foods += await search(" ".join(tokens(asked.wording)), GENERIC)
    return matching.choose(asked, foods)


def analyse(line: Line, asked: Wanted, match: Match | None) -> pb.LineAnalysis:
    """What a line adds, given the food that was found for it."""
    answer = pb.LineAnalysis(line=line.text, ingredient=line.name, preparation=line.preparation)
    if line.amount is not None:
        answer.quantity, answer.unit = line.amount.quantity, line.amount.unit
    if len(line.names) > 1:
        _issue(answer, pb.ISSUE_KIND_ALTERNATIVE, _several(line.names))
    if match is None or match.confidence < matching.USED.value:
        _issue(answer, pb.ISSUE_KIND_NO_MATCH, _no_match(line, match))
        return answer
    answer.food, answer.food_display_name = match.food.name, match.food.display_name
    answer.match_confidence = match.confidence
    weight = weigh(line, asked, match.food)
    if line.amount is None:
        _issue(answer, pb.ISSUE_KIND_NO_AMOUNT, f'"{line.text}" gives no amount')
    elif weight is None:
        text = f'"{line.amount.unit or "piece"}" of {match.food.display_name} has no known weight: give grams'
        _issue(answer, pb.ISSUE_KIND_NO_WEIGHT, text)
    else:
        _use(answer, match, weight)
    return answer


def _use(answer: pb.LineAnalysis, match: Match, weight: Weight) -> None:
    answer.used = True
    answer.grams = totals.tidy(weight.grams, WEIGHT_DIGITS)
    answer.weight_basis, answer.weight_source = weight.basis, weight.source
    answer.nutrients.CopyFrom(totals.scaled(match.food.nutrients, answer.grams / 100))
    if match.confidence < matching.SURE:
        reasons = "; ".join(match.doubts) or "its name differs"
        _issue(answer, pb.ISSUE_KIND_WEAK_MATCH, f"taken for {match.food.display_name}: {reasons}")
    if weight.doubts:
        _issue(answer, pb.ISSUE_KIND_ESTIMATED_WEIGHT, "; ".join(weight.doubts))
    if lacking := totals.missing(match.food.nutrients):
        more = f" and {len(lacking) - NAMED_MISSING} more" if len(lacking) > NAMED_MISSING else ""
        text = f"no figures for {', '.join(lacking[:NAMED_MISSING])}{more}"
        _issue(answer, pb.ISSUE_KIND_MISSING_NUTRIENTS, text)


def _issue(answer: pb.LineAnalysis, kind: "pb.IssueKind.ValueType", message: str) -> None:
    answer.issues.add(kind=kind, message=message)


def _several(names: Sequence[str]) -> str:
    listed = ", ".join(f'"{name}"' for name in names)
    return f'the line names {listed}; only "{names[0]}" was taken'


def _no_match(line: Line, match: Match | None) -> str:
    if not line.name:
        return f'"{line.text}" names no food that can be read'
    what = f'"{line.name}"'
    if match is None or match.confidence <= 0:
        return f"no food is called {what}"
    return f"no food is surely {what}; the nearest is {match.food.display_name} ({'; '.join(match.doubts)})"
