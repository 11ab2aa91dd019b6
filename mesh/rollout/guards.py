"""Guards: what a canary must hold, and whether a sample shows that it does. Pure.

A share of failures is bad when so many would be too unlikely at the limit (the exact binomial tail). Against stable it
is judged by Newcombe's interval for the difference of two proportions (Statistics in Medicine 17, 1998, method 10),
built on Wilson's score interval (JASA 22, 1927).
Percentiles are judged by their distribution-free interval: the number of calls below the true one is binomial.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from math import ceil, exp, inf, log, log1p, sqrt
from statistics import NormalDist

from mesh.rollout.samples import Sample

EARLY_Z = 3.0  # standard deviations; looked at again and again within a step: be sure
FINAL_Z = 1.64  # once its time is over
FEWEST = 20  # calls before anything is said
RATE_CALLS = 50  # calls before an error rate is called good
_FORM = re.compile(r"(error_rate|p\d{2}(?:\.\d+)?)\s*<\s*(\+?)(\d+(?:\.\d+)?)\s*(%|x|ms|s)")


class Outcome(Enum):
    """What a sample shows. UNSURE: too few calls, or too near the limit to say."""

    GOOD, BAD, UNSURE = "good", "bad", "unsure"


@dataclass(frozen=True)
class Verdict:
    """An outcome, and the figures that it rests on as a sentence."""

    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Guard:
    """`metric` below `limit`: a share or ms; `relative` to stable by addition (rates) or multiplication (times)."""

    text: str
    metric: str
    limit: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Guard:
        """Reads "error_rate<1%", "error_rate<+0.5%", "p99<1.3x" or "p50<200ms".

        Raises:
            ValueError: it is none of those; says what is wrong.
        """
        match = _FORM.fullmatch(text.strip())
        if not match:
            raise ValueError(
                f"{text!r} is no guard: write error_rate<1%, error_rate<+0.5% (above stable), p99<1.3x or p50<200ms"
            )
        metric, plus, number, unit = match[1], match[2], float(match[3]), match[4]
        if (metric == "error_rate") != (unit == "%"):
            kind = "percent, as in error_rate<1%" if metric == "error_rate" else "a time or x, as in p99<1.3x, p99<80ms"
            raise ValueError(f"{text!r}: {metric} is measured in {kind}")
        if plus and unit != "%":
            raise ValueError(f"{text!r}: '+' goes with percent; write {metric}<1.3x to compare with stable")
        if not number or (unit == "%" and number >= 100):
            raise ValueError(f"{text!r}: the limit must be above 0" + (" and below 100 %" if unit == "%" else ""))
        scale = {"%": 0.01, "x": 1, "ms": 1, "s": 1000}[unit]
        return cls(text.strip(), metric, number * scale, relative=bool(plus) or unit == "x")

    def judge(self, canary: Sample, stable: Sample, *, final: bool) -> Verdict:
        """What the two samples show; with `final` the step's time is over and a canary that looks good is good."""
        z = FINAL_Z if final else EARLY_Z
        count = canary.calls if self.metric == "error_rate" else canary.timed
        if count < FEWEST:
            return Verdict(Outcome.UNSURE, f"{self.text}: too few calls ({count} of {FEWEST})")
        if self.metric == "error_rate":
            return self._rate(canary, stable, z)
        return self._time(canary, stable, z)

    def _rate(self, canary: Sample, stable: Sample, z: float) -> Verdict:
        if self.relative and stable.calls < FEWEST:
            return Verdict(Outcome.UNSURE, f"{self.text}: stable has too few calls ({stable.calls} of {FEWEST})")
        rate, low = canary.failures / canary.calls, 0.0
        said = f"{self.text}: canary {rate:.1%} of {canary.calls} calls"
        if self.relative:
            theirs, (_, high) = stable.failures / stable.calls, wilson(stable.failures, stable.calls, z)
            said += f", stable {theirs:.1%} of {stable.calls}"
            least, _ = wilson(canary.failures, canary.calls, z)
            low = rate - theirs - sqrt((rate - least) ** 2 + (high - theirs) ** 2)
            rate -= theirs
        elif tail(canary.failures, canary.calls, self.limit) < NormalDist().cdf(-z):
            low = self.limit
        return self._outcome(rate, low, self.limit, (canary.calls, RATE_CALLS), said)

    def _time(self, canary: Sample, stable: Sample, z: float) -> Verdict:
        share = float(self.metric[1:]) / 100
        enough = max(FEWEST, ceil(1 / (1 - share) - 1e-9))
        if self.relative and stable.timed < FEWEST:
            return Verdict(Outcome.UNSURE, f"{self.text}: stable has too few calls ({stable.timed} of {FEWEST})")
        ours, lowest = canary.percentile(share), rank(canary.timed, share, -z)
        low = canary.at_rank(lowest) if lowest >= 1 else 0.0
        said = f"{self.text}: canary {ours:.3g} ms of {canary.timed} calls"
        good = sure = self.limit
        if self.relative:
            theirs = stable.percentile(share)
            highest = rank(stable.timed, share, z)
            good, sure = self.limit * theirs, self.limit * stable.at_rank(highest) if highest <= stable.timed else inf
            said += f", stable {theirs:.3g} ms of {stable.timed}"
        verdict = self._outcome(ours, ours if ours < good else low, sure, (canary.timed, enough), said)
        if verdict.outcome is Outcome.GOOD and ours >= good:
            return Verdict(Outcome.UNSURE, f"{said}: near the limit")
        return verdict

    @staticmethod
    def _outcome(value: float, low: float, limit: float, counted: tuple[int, int], said: str) -> Verdict:
        count, enough = counted
        if low >= limit:
            return Verdict(Outcome.BAD, said)
        if count < enough:
            return Verdict(Outcome.UNSURE, f"{said}: too few calls ({count} of {enough})")
        return Verdict(Outcome.GOOD, said) if value < limit else Verdict(Outcome.UNSURE, f"{said}: near the limit")


def wilson(failures: int, calls: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    share, spread = failures / calls, z * z / calls
    middle = share + spread / 2
    half = z * sqrt(share * (1 - share) / calls + spread / (4 * calls))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def tail(failures: int, calls: int, limit: float) -> float:
    """How likely so many failures or more are when each call fails with probability `limit`."""
    log_odds, term, below = log(limit) - log1p(-limit), calls * log1p(-limit), 0.0
    for count in range(failures):
        below += exp(term)
        term += log((calls - count) / (count + 1)) + log_odds
    return max(1 - below, 0.0)


def rank(count: int, share: float, z: float) -> float:
    """The rank that bounds a percentile, below it with `-z`: so few calls may have none (under 1, or over `count`)."""
    return count * share + z * sqrt(count * share * (1 - share))


def judge(guards: tuple[Guard, ...], canary: Sample, stable: Sample, *, final: bool) -> tuple[Outcome, list[str]]:
    """All guards together: one that is bad makes all bad, one that is unsure makes all unsure."""
    verdicts = [guard.judge(canary, stable, final=final) for guard in guards]
    outcomes = {verdict.outcome for verdict in verdicts}
    for outcome in (Outcome.BAD, Outcome.UNSURE):
        if outcome in outcomes:
            return outcome, [v.text for v in verdicts if v.outcome is outcome]
    return Outcome.GOOD, [verdict.text for verdict in verdicts]
