"""Reads values files as Helm does: overlay in order, remember where each value came from, refuse what the schema does not know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.topology import Topology


@dataclass(frozen=True)
class ValuesFile:
    """One values file: `path` for messages, `text` its YAML."""

    path: str
    text: str


class ValuesError(Exception):
    """The values are refused; `problems` lists each as "file:line: what is wrong and what to do"."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def merge(files: list[ValuesFile]) -> dict[str, Any]:
    """The effective values: files overlaid in order, exactly as `helm -f a -f b` does (null removes a key)."""
    raise NotImplementedError


def load(files: list[ValuesFile]) -> Topology:
    """Merges, validates against helm/values.schema.json and for sense (calls exist, no cycle, weights), and builds the model.

    Raises:
        ValuesError: with the file and line of every problem.
    """
    raise NotImplementedError


def read(paths: list[Path], sets: list[str] | None = None) -> list[ValuesFile]:
    """Reads files from disk; `sets` are `a.b=c` assignments as `helm --set` takes them, appended as a last overlay."""
    raise NotImplementedError
