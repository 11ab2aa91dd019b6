"""Which variant of a flag a user is given: by the flag alone, and so the same in every process. Pure.

A user has a place from 0 to 100 by a hash, for each flag another one. Each variant with a share has a stretch of its
own, as long as all are given out evenly, and takes its share from the beginning of that; what does not fit there it
takes from the ends of others'. So a share that changes moves as many users as it gains or loses: always with one or two
variants beside the default, with more as long as each fits its stretch.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

Reason = Literal["STATIC", "DEFAULT", "TARGETING_MATCH", "SPLIT"]  # as OpenFeature names them

BOTH = {"enabled": True, "disabled": False}
NEITHER = "disabled"
PLACES = 100.0


class Given(NamedTuple):
    """What somebody is given, and why."""

    variant: str
    value: Any
    reason: Reason


@dataclass(frozen=True)
class Rule:
    """Gives `variant` if all that it names fits."""

    variant: str
    users: frozenset[str] | None
    scopes: frozenset[str]
    attributes: Mapping[str, Collection[Any]]

    def fits(self, user: str, scopes: Collection[str], attributes: Mapping[str, Any]) -> bool:
        """Whether it does."""
        return (
            (self.users is None or user in self.users)
            and self.scopes.issubset(scopes)
            and all(attributes.get(name) in values for name, values in self.attributes.items())
        )


class Flag:
    """One flag, as the values have it."""

    def __init__(self, name: str, said: Mapping[str, Any]) -> None:
        self._name = name
        self.variants: Mapping[str, Any] = said.get("variants", BOTH)
        self._default: str = said.get("default", NEITHER)
        self._rules = [_rule(rule) for rule in said.get("rules", ())]
        others = sorted(set(self.variants) - {self._default})
        shares: Mapping[str, float] = said.get("shares", {})
        self._shared = bool(shares)
        pieces = stretches({variant: shares.get(variant, 0.0) for variant in others})
        self._ends, self._owners = _whole(pieces, self._default)

    def give(self, user: str, scopes: Collection[str] = (), attributes: Mapping[str, Any] | None = None) -> Given:
        """The variant of `user`, "" for nobody: who is not known has no place, and is given the default."""
        for rule in self._rules:
            if rule.fits(user, scopes, attributes or {}):
                return self._given(rule.variant, "TARGETING_MATCH")
        if user and self._shared:
            return self._given(self._owners[bisect_right(self._ends, place(self._name, user))], "SPLIT")
        return self._given(self._default, "DEFAULT" if self._rules or self._shared else "STATIC")

    def _given(self, variant: str, reason: Reason) -> Given:
        return Given(variant, self.variants[variant], reason)


class Piece(NamedTuple):
    """A stretch of places and whose it is."""

    start: float
    end: float
    variant: str


def place(flag: str, user: str) -> float:
    """Where a user stands among all users of a flag, from 0 up to 100."""
    digest = hashlib.blake2b(f"{flag}/{user}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") * PLACES / (1 << 48)


def stretches(shares: Mapping[str, float]) -> list[Piece]:
    """Who has which places, in their order; what nobody has is the default's."""
    width = PLACES / len(shares) if shares else PLACES
    pieces, free = [], {}
    for number, (variant, share) in enumerate(shares.items()):
        start, own = number * width, min(share, width)
        pieces.append(Piece(start, start + own, variant))
        free[variant] = [start + own, start + width]
    for variant, share in shares.items():
        over = share - width
        for left in free.values():
            if over > 0 and left[1] > left[0]:
                taken = min(over, left[1] - left[0])
                pieces.append(Piece(left[1] - taken, left[1], variant))
                left[1] -= taken
                over -= taken
    return sorted(piece for piece in pieces if piece.end > piece.start)


def _whole(pieces: Iterable[Piece], default: str) -> tuple[list[float], list[str]]:
    """Where each stretch ends and whose it is, without gaps."""
    ends, owners = [0.0], [default]
    for piece in pieces:
        ends += [piece.start, piece.end]
        owners += [default, piece.variant]
    ends.append(PLACES)
    owners.append(default)
    real = [n for n, (before, after) in enumerate(pairwise(ends), 1) if after > before]
    return [ends[n] for n in real], [owners[n] for n in real]


def _rule(said: Mapping[str, Any]) -> Rule:
    users = frozenset(said["users"]) if "users" in said else None
    return Rule(said["variant"], users, frozenset(said.get("scopes", ())), said.get("attributes", {}))
