"""What this process counts, for Prometheus and OTLP alike.

Counting a call is a few additions on the event loop; all else is done by whoever reads. What other parts know already
is not counted again: they give a function that reads it.
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

# Seconds; the last bucket is what took longer.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CODES = {code.value[0]: "".join(w.title() for w in code.name.split("_")) for code in grpc.StatusCode}
CODES[0] = "OK"

Labels = tuple[tuple[str, str], ...]
Read = Callable[[], "float | Mapping[Labels, float]"]

_log = logging.getLogger("mesh.runtime")


@dataclass(frozen=True)
class Histogram:
    """How many values fell into each bucket of BOUNDS, and their sum."""

    buckets: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.buckets)


@dataclass(frozen=True)
class Family:
    """All values of one name. `kind` is Prometheus's word: counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    values: Mapping[Labels, float | Histogram]


@dataclass(slots=True)
class Calls:
    """What is known of the calls of one method: how many, how they ended, how long they took."""

    labels: Labels
    started: int = 0
    handled: dict[int, int] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def ended(self, code: int, seconds: float) -> None:
        """A call that was counted as started has ended."""
        self.handled[code] = self.handled.get(code, 0) + 1
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


_calls: dict[str, Calls] = {}
_read: dict[str, tuple[str, str, Read]] = {}


def calls(path: str, kind: str) -> Calls:
    """The counts of a method of this process; `kind` is unary, client_stream, server_stream or bidi_stream."""
    if path not in _calls:
        service, _, method = path.strip("/").partition("/")
        _calls[path] = Calls((("grpc_type", kind), ("grpc_service", service), ("grpc_method", method)))
    return _calls[path]


def gauge(name: str, help: str, read: Read) -> None:
    """Shows what `read` gives, a number or one by labels, each time that somebody looks; takes the name's place."""
    _read[name] = ("gauge", help, read)


def counter(name: str, help: str, read: Read) -> None:
    """As `gauge`, for what only grows while this process runs; the name ends in _total."""
    _read[name] = ("counter", help, read)


class Tally:
    """A counter of what happens now and then, by labels: `HANDLED.add(group="planner", outcome="ok")`."""

    def __init__(self, name: str, help: str) -> None:
        self._counts: dict[Labels, float] = {}
        counter(name, help, self._counts.copy)

    def add(self, **labels: str) -> None:
        """It has happened once more."""
        key = tuple(labels.items())
        self._counts[key] = self._counts.get(key, 0.0) + 1


def families() -> Iterator[Family]:
    """All that this process counts, as it is now."""
    yield from _of_calls(list(_calls.values()))
    for name, (kind, about, read) in list(_read.items()):
        try:
            found = read()
        except Exception:  # noqa: BLE001 - one that fails must not hide the others
            _log.exception("a figure cannot be read", extra={"figure": name})
            continue
        yield Family(name, kind, about, dict(found) if isinstance(found, Mapping) else {(): found})


def _resident_bytes() -> float | Mapping[Labels, float]:
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return {}


counter("process_cpu_seconds_total", "CPU time of this process.", time.process_time)
gauge("process_resident_memory_bytes", "Memory of this process.", _resident_bytes)


def _of_calls(known: Iterable[Calls]) -> Iterator[Family]:
    used = [calls for calls in known if calls.started]
    started = {c.labels: float(c.started) for c in used}
    yield Family("grpc_server_started_total", "counter", "Calls that began.", started)
    handled = {
        (*c.labels, ("grpc_code", CODES.get(code, str(code)))): float(n)
        for c in used
        for code, n in c.handled.copy().items()
    }
    yield Family("grpc_server_handled_total", "counter", "Calls that ended, by how.", handled)
    at_work = {c.labels: float(max(c.started - sum(c.handled.copy().values()), 0)) for c in used}
    yield Family("grpc_server_in_flight", "gauge", "Calls that run now.", at_work)
    took = {c.labels: Histogram(tuple(c.buckets), c.seconds) for c in used}
    yield Family("grpc_server_handling_seconds", "histogram", "How long calls took.", took)


def text() -> str:
    """The Prometheus text format, version 0.0.4."""
    lines: list[str] = []
    for family in families():
        lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}")
        for labels, value in family.values.items():
            if isinstance(value, Histogram):
                lines += _histogram(family.name, labels, value)
            else:
                lines.append(_line(family.name, labels, value))
    return "\n".join(lines) + "\n"


def _histogram(name: str, labels: Labels, value: Histogram) -> Iterator[str]:
    below = 0
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), value.buckets, strict=True):
        below += count
        yield _line(f"{name}_bucket", (*labels, ("le", bound)), below)
    yield _line(f"{name}_sum", labels, value.sum)
    yield _line(f"{name}_count", labels, below)


def _line(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
