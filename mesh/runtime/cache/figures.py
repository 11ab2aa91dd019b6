"""What the caches of a process count, for Prometheus: cache_hits_total{cache="foods"}."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

from mesh.runtime import telemetry
from mesh.runtime.cache.cache import caches
from mesh.runtime.cache.statistics import Statistics

_NOW = ("entries", "bytes", "max_bytes")  # the others only grow


def show() -> None:
    """Shows the statistics of every cache from now on, also of those that are made later."""
    for figure in (field.name for field in fields(Statistics)):
        read = partial(_read, figure)
        if figure in _NOW:
            telemetry.gauge(f"cache_{figure}", f"{figure} of a cache, as mesh.runtime.cache says.", read)
        else:
            telemetry.counter(f"cache_{figure}_total", f"{figure} of a cache, as mesh.runtime.cache says.", read)


def _read(figure: str) -> dict[telemetry.Labels, float]:
    return {(("cache", cache.name),): getattr(cache.statistics(), figure) for cache in caches()}
