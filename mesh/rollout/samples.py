"""What a subset's sidecars counted between two readings: calls, failures, and how long the calls took. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

# Statuses that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
FAILURES = frozenset((2, 4, 12, 13, 14, 15))
STATS = r"^cluster\.app\.(grpc\.[0-9]+|upstream_rq_time)$"
_COUNTER = "cluster.app.grpc."

Buckets = Mapping[float, tuple[float, int]]  # lower bound in ms -> width and count


@dataclass(frozen=True)
class Sample:
    """Calls that ended, the failed ones among them, and the times of all as a histogram."""

    calls: int = 0
    failures: int = 0
    times: Buckets = field(default_factory=dict)

    @property
    def timed(self) -> int:
        """How many times the histogram holds; it lags a few seconds behind `calls`."""
        return sum(count for _, count in self.times.values())

    def at_rank(self, rank: float) -> float:
        """The time in ms that `rank` of the calls were at most, interpolated within its bucket."""
        seen = 0
        for lower, (width, count) in sorted(self.times.items()):
            if count and seen + count >= rank:
                return lower + width * max(rank - seen, 0) / count
            seen += count
        return max((lower + width for lower, (width, _) in self.times.items()), default=0.0)

    def percentile(self, share: float) -> float:
        """The time in ms that this share of the calls were at most."""
        return self.at_rank(max(1, ceil(share * self.timed)))

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"calls": self.calls, "failures": self.failures, "times": [[k, *v] for k, v in self.times.items()]}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Sample:
        """Reads what `to_json` gave."""
        return cls(raw["calls"], raw["failures"], {k: (width, count) for k, width, count in raw["times"]})


def parse(text: bytes | str) -> Sample:
    """Reads Envoy's `/stats?format=json&histogram_buckets=detailed` of one sidecar."""
    calls = failures = 0
    times: dict[float, tuple[float, int]] = {}
    for stat in json.loads(text)["stats"]:
        for histogram in stat.get("histograms", {}).get("details", ()):
            for bucket in histogram.get("totals", ()):
                times[bucket["lower_bound"]] = (bucket["width"], bucket["count"])
        if str(stat.get("name", "")).startswith(_COUNTER):
            calls += stat["value"]
            failures += stat["value"] if int(stat["name"].removeprefix(_COUNTER)) in FAILURES else 0
    return Sample(calls, failures, times)


def since(before: Sample, now: Sample) -> Sample:
    """What came after `before`; all of `now` if the counters began anew with a restarted proxy."""
    if now.calls < before.calls or now.timed < before.timed:
        return now
    times = {k: (width, count - before.times.get(k, (0, 0))[1]) for k, (width, count) in now.times.items()}
    kept = {k: v for k, v in times.items() if v[1] > 0}
    return Sample(now.calls - before.calls, max(now.failures - before.failures, 0), kept)


def merged(samples: Iterable[Sample]) -> Sample:
    """Several instances as one."""
    calls = failures = 0
    times: dict[float, tuple[float, int]] = {}
    for sample in samples:
        calls, failures = calls + sample.calls, failures + sample.failures
        for lower, (width, count) in sample.times.items():
            times[lower] = (width, count + times.get(lower, (width, 0))[1])
    return Sample(calls, failures, times)
