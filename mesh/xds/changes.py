"""What an edit of the values means, in words, and each difference by itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from mesh.topology import Topology

Path = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Change:
    """One difference: where in the model, and what was and is there (None: nothing)."""

    path: Path
    old: Any
    new: Any

    @property
    def place(self) -> Path:
        """The path as it is written in values: `pool_size` is `poolSize`, names of services stay.

        If what is new says but one thing, it is that: of a header that was none, its regex.
        """
        named = self.path[:2] if self.path[0] == "services" else ()
        return (*named, *(_camel(part) for part in (*self.path[len(named) :], *_said(self.new))))

    def alone(self, topology: Topology) -> Topology:
        """`topology` with this one change."""
        changed: Topology = _with(topology, self.path, self.new)
        return changed

    def __str__(self) -> str:
        subject = self.path[1] if self.path[0] == "services" else self.path[0]
        what = self.path[2:] if self.path[0] == "services" else self.path[1:]
        if self.path[0] != "services" and not what:
            subject, what = "mesh", self.path
        if not what:
            return f"{subject}: {'added' if self.old is None else 'removed'}"
        if what == ("canary", "weight"):
            return f"{subject}: canary {self.old} % -> {self.new} %"
        if what == ("calls",):
            return f"{subject}: {_calls(self.old, self.new)}"
        if what[0] in ("settings", "flags"):  # JSON texts
            return f"{subject}: {what[0][:-1]} {what[1]} {self.old or 'none'} -> {self.new or 'none'}"
        key = " ".join(part.replace("_", " ") for part in what)
        return f"{subject}: {key} {_show(self.old)} -> {_show(self.new)}"


def revision(topology: Topology) -> str:
    """A hash of the values' meaning: comments, order and layout of the files do not change it."""
    text = json.dumps(asdict(topology), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: Topology | None, new: Topology) -> list[Change]:
    """Every difference of the two, as fine as the model is; without an `old`, a service each."""
    return list(_walk((), old if old is not None else replace(new, services={}), new))


def _walk(path: Path, old: Any, new: Any) -> Iterator[Change]:
    if old == new:
        return
    if is_dataclass(old) and type(old) is type(new):
        for field in fields(old):
            yield from _walk((*path, field.name), getattr(old, field.name), getattr(new, field.name))
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):
            yield from _walk((*path, key), old.get(key), new.get(key))
    else:
        yield Change(path, old, new)


def _with(holder: Any, path: Path, value: Any) -> Any:
    """A copy of `holder` (a dataclass or a dict) in which `path` leads to `value`; None takes a key out of a dict."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(holder, dict):
        new = _with(holder.get(first), rest, value)
        return {k: v for k, v in {**holder, first: new}.items() if v is not None}
    return replace(holder, **{first: _with(getattr(holder, first), rest, value)})


def _said(value: Any) -> Path:
    """The one field in which a part of the model differs from its defaults; empty if there are more, or none."""
    if not is_dataclass(value) or any(field.default is MISSING for field in fields(value)):
        return ()
    said = [field.name for field in fields(value) if getattr(value, field.name) != field.default]
    return tuple(said) if len(said) == 1 else ()


def _calls(old: tuple[str, ...], new: tuple[str, ...]) -> str:
    gained = [f"may call {name}" for name in new if name not in old]
    lost = [f"may no longer call {name}" for name in old if name not in new]
    return ", ".join([*gained, *lost]) or "calls in another order"


def _show(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_show(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
