"""The model of `services.<name>.traffic` in the values: what the mesh does to the calls of one service. Frozen."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal


@dataclass(frozen=True)
class Delay:
    """Calls that wait before they reach the application: so long, so many percent of them."""

    milliseconds: int = 0
    percent: int = 100


@dataclass(frozen=True)
class Abort:
    """Calls that the application never sees: answered with this gRPC status, so many percent of them."""

    status: str = "UNAVAILABLE"
    percent: int = 100


@dataclass(frozen=True)
class FaultHeader:
    """What the fault header must say: this text, or all of it as this RE2 expression has it."""

    exact: str = ""
    regex: str = ""


@dataclass(frozen=True)
class Faults:
    """Faults on purpose, at one subset or all of them; if `header` is set, only for calls whose header says so."""

    delay: Delay | None = None
    abort: Abort | None = None
    header: FaultHeader | None = None
    subset: Literal["all", "stable", "canary"] = "all"


@dataclass(frozen=True)
class Outliers:
    """When an instance that answers badly is left alone, for how long, and how many of a subset at most."""

    consecutive_errors: int = 5
    ejection_seconds: int = 5
    max_ejection_seconds: int = 60
    max_ejection_percent: int = 50


@dataclass(frozen=True)
class Mirror:
    """The percent of calls without side effects that the canary gets a copy of; nobody sees its answers."""

    percent: int = 0


@dataclass(frozen=True)
class Rate:
    """So many calls a second for each instance, and so many at once after a pause."""

    per_second: int = 1
    burst: int = 1


@dataclass(frozen=True)
class Rates:
    """By the rate class that the contract gives a method; none has no limit."""

    read: Rate | None = None
    search: Rate | None = None
    write: Rate | None = None
    heavy: Rate | None = None

    @property
    def limited(self) -> dict[str, Rate]:
        """The classes that have a limit."""
        return {f.name: rate for f in fields(self) if (rate := getattr(self, f.name))}


@dataclass(frozen=True)
class Concurrency:
    """Whether each instance finds out how many calls at once it takes well and sheds the rest; never below `least`."""

    adaptive: bool = False
    least: int = 20


@dataclass(frozen=True)
class Traffic:
    """All of it; each part does nothing, or what is usual, unless the values say otherwise."""

    faults: Faults = field(default_factory=Faults)
    outliers: Outliers = field(default_factory=Outliers)
    mirror: Mirror = field(default_factory=Mirror)
    rates: Rates = field(default_factory=Rates)
    balancing: Literal["leastRequest", "roundRobin", "random", "ringHash"] = "leastRequest"
    concurrency: Concurrency = field(default_factory=Concurrency)
    zone: Literal["any", "own"] = "any"
