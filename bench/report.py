"""Writes what was measured: results/<bench>.json for programs, RESULTS.md for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).parent
RESULTS = HERE / "results"


class Bench(Protocol):
    """A module that measures one thing, in one run, and says it in Markdown."""

    def run(self) -> dict[str, Any]:
        """Measures; returns JSON values."""

    def report(self, results: dict[str, Any]) -> list[str]:
        """The lines of its section, heading included."""


def save(name: str, results: dict[str, Any]) -> None:
    """Keeps what one bench measured, with the machine it was measured on."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")


def write(benches: Mapping[str, Bench]) -> str:
    """Writes RESULTS.md from the last results of every bench; returns its text."""
    lines = [
        "# What it costs",
        "",
        "Written by `make bench` (`make bench ONLY=paths` runs one). Compare within a table",
    ]
    lines += ["only: each is one run on one machine."]
    for name, bench in benches.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text())
            lines += ["", *bench.report(results), "", f"Machine: {results['machine']}."]
    text = "\n".join(lines) + "\n"
    (HERE / "RESULTS.md").write_text(text)
    return text


def goals(rows: list[tuple[str, float, str, bool]]) -> list[str]:
    """A table of ratios that are goals: what, ratio, goal, whether it is met."""
    lines = ["| ratio | measured | goal | |", "| --- | ---: | ---: | --- |"]
    return lines + [
        f"| {what} | {ratio:.2f} | {goal} | {'met' if met else 'NOT met'} |" for what, ratio, goal, met in rows
    ]
