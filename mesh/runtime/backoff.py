"""How long to wait before the next try: four named policies, with jitter. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Policy = Literal["exponential", "linear", "fibonacci", "fixed"]


def exponential(attempt: int) -> float:
    """1, 2, 4, 8, ..."""
    return 2.0 ** min(attempt - 1, 64)  # far beyond every limit


def linear(attempt: int) -> float:
    """1, 2, 3, 4, ..."""
    return float(attempt)


def fibonacci(attempt: int) -> float:
    """1, 1, 2, 3, 5, 8, ..."""
    last, this = 0, 1
    for _ in range(min(attempt, 90) - 1):
        last, this = this, last + this
    return float(this)


def fixed(_attempt: int) -> float:
    """1, 1, 1, 1, ..."""
    return 1.0


POLICIES: Mapping[Policy, Callable[[int], float]] = {
    "exponential": exponential,
    "linear": linear,
    "fibonacci": fibonacci,
    "fixed": fixed,
}


@dataclass(frozen=True)
class Backoff:
    """Waits of `first` seconds times what the policy gives, at most `limit`, less up to the share `jitter` of it.

    The jitter keeps those that failed together from trying again together.
    """

    policy: Policy = "exponential"
    first: float = 0.5
    limit: float = 60.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"there is no back-off policy {self.policy!r}: take one of {', '.join(POLICIES)}")
        if not 0 < self.first <= self.limit or not 0 <= self.jitter <= 1:
            raise ValueError("a back-off needs 0 < first <= limit and a jitter from 0 to 1")

    def seconds(self, attempt: int, chance: Callable[[], float] = random.random) -> float:
        """The wait after so many failed attempts, 1 or more; `chance` gives a number from 0 to 1."""
        full = min(self.limit, self.first * POLICIES[self.policy](attempt))
        return full * (1 - self.jitter * chance())
