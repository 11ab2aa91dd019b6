"""What the runner tells while it works: lines for people and programs, and a snapshot of what runs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Kind = Literal["starting", "status", "ready", "trouble", "stopping", "stopped", "up", "failed"]


def now() -> str:
    """UTC in ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Event:
    """One thing that happened to `subject`: an instance ("food-0"), an engine ("postgres"), "control", or "mesh".

    `up` ends a start and has the edge's URL as its text; `failed` ends it with the reason and the `exit_code`.
    """

    kind: Kind
    subject: str
    text: str = ""
    exit_code: int = 0
    time: str = field(default_factory=now)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Event:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class ProcessState:
    """One process: `up` when it is ready, `restarts` since the mesh started."""

    pid: int | None
    up: bool
    restarts: int


@dataclass(frozen=True)
class InstanceState:
    """One instance: its mesh port on 127.0.0.1, and the last line its app said about itself.

    A proxyless one has no proxy: that is never up.
    """

    id: str
    service: str
    subset: str
    ready: bool
    port: int | None
    status: str
    app: ProcessState
    proxy: ProcessState
    data_plane: str = "sidecar"


@dataclass(frozen=True)
class State:
    """All that runs. `phase` is starting, ready or stopping; `edge` the edge's URL."""

    pid: int
    since: str
    phase: str
    edge: str
    root: str
    run: str
    postgres: ProcessState | None
    control: ProcessState
    instances: tuple[InstanceState, ...]
    nats: ProcessState | None = None

    def write(self, path: Path) -> None:
        """Replaces the snapshot in one step: a reader never sees half of it."""
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.replace(path)


def read_state(path: Path) -> State | None:
    """The snapshot of a mesh that runs; None if there is none, or its runner is gone."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        os.kill(raw["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    postgres = ProcessState(**raw.pop("postgres")) if raw["postgres"] else raw.pop("postgres")
    nats = ProcessState(**raw["nats"]) if raw.get("nats") else None
    control = ProcessState(**raw.pop("control"))
    instances = tuple(
        InstanceState(**{**item, "app": ProcessState(**item["app"]), "proxy": ProcessState(**item["proxy"])})
        for item in raw.pop("instances")
    )
    return State(**{**raw, "nats": nats}, postgres=postgres, control=control, instances=instances)
