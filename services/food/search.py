"""What a search looks for: the words of a query, with the spellings that each may stand for. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import OSA

# Below four letters one error makes another word; from eight on, people make two.
_MIN_LETTERS = 4
_TWO_ERRORS_FROM = 7
_MAX_SPELLINGS = 4
# A word that this many foods have is one, however rare; fewer are as likely a label's own typing error.
KNOWN_FOODS = 5
MAX_WORDS = 12
# Labels repeat their errors ("mozarella"): one letter from a word that so many times more foods have, it is that word.
_FAR_MORE_USUAL = 20


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A word of the vocabulary that looks like one of the query.

    Attributes:
        word: as foods spell it.
        stem: what it has in common with its other forms.
        generic: how many generic foods have it.
        total: how many USDA foods have it.
    """

    word: str
    stem: str
    generic: int
    total: int


@dataclass(frozen=True, slots=True)
class Term:
    """One word of a query and the words it may be a misspelling of, best first; all as stems.

    Attributes:
        word: as typed.
        known: that it is a word of the vocabulary; any other may also be the beginning of one.
        spellings: what it may stand for.
        closeness: of the spellings, 0 to 1; a word as typed has 1.
    """

    word: str
    known: bool
    spellings: tuple[str, ...] = ()
    closeness: float = 1.0


def term(typed: str, stem: str, *, generic: int, total: int, neighbours: Sequence[Neighbour]) -> Term:
    """Decides what a word of a query stands for.

    Args:
        typed: the word.
        stem: of it.
        generic: generic foods that have it.
        total: USDA foods that have it.
        neighbours: words that look alike, in any order.
    """
    known = bool(generic) or total >= KNOWN_FOODS
    if generic or len(typed) < _MIN_LETTERS or not typed.isalpha():
        return Term(stem, known)
    errors = 2 if len(typed) >= _TWO_ERRORS_FROM and not known else 1
    usual = [n for n in neighbours if n.total >= _FAR_MORE_USUAL * total and n.stem != stem]
    distances = ((OSA.distance(typed, n.word, score_cutoff=errors), n) for n in usual)
    near = sorted((d, not n.generic, -n.total, n.stem) for d, n in distances if d <= errors)
    if not near:
        return Term(stem, known)
    best = near[0][0]
    spellings = tuple(dict.fromkeys(s for d, _, _, s in near if d == best))[:_MAX_SPELLINGS]
    return Term(stem, known, spellings, closeness=round(1.0 - best / len(typed), 3))


def lexemes(term_: Term, weights: str = "") -> str:
    """PostgreSQL's tsquery text for a term in any of its spellings.

    With `weights` "A" it counts only before the first comma of a name.
    A word that is not known may also be the beginning of one.
    """
    flags = ("*" if not term_.known else "") + weights
    texts = [_quoted(term_.word) + (":" + flags if flags else "")]
    texts += [_quoted(word) + (":" + weights if weights else "") for word in term_.spellings]
    return "(" + " | ".join(texts) + ")"


def as_typed(term_: Term) -> str:
    """The tsquery text for the word as typed alone."""
    return _quoted(term_.word)


def matching(terms: Sequence[Term], *, any_of: bool = False) -> str:
    """The tsquery text for foods that have every term (or any)."""
    return (" | " if any_of else " & ").join(map(lexemes, terms))


def _quoted(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"
