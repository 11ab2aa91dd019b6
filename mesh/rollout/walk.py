"""A rollout as a state machine: from what is known to the next action. Pure, and all of it fits in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mesh.rollout.guards import Outcome

Phase = Literal["walking", "undoing", "promoted", "undone"]


@dataclass(frozen=True)
class Walk:
    """How far a rollout is. `step` indexes `steps`; seconds throughout; `reference` is stable's last full sample."""

    service: str
    steps: tuple[int, ...]
    guards: tuple[str, ...]
    interval: float
    patience: float
    drain: float
    phase: Phase = "walking"
    step: int = 0
    reason: str = ""
    reference: dict[str, Any] = field(default_factory=dict)
    values_file: str = ""  # that the last weight is written into

    @property
    def weight(self) -> int:
        """The canary's weight that this state asks for."""
        return 0 if self.phase in ("undoing", "undone") else self.steps[self.step]

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase in ("promoted", "undone")

    def undo(self, reason: str) -> Walk:
        """Back to weight 0."""
        return replace(self, phase="undoing", reason=reason)

    def shifted(self) -> Walk:
        """The proxies have `weight`."""
        return replace(self, phase="undone") if self.phase == "undoing" else self

    def advance(self, outcome: Outcome, texts: list[str], seconds: float) -> Walk | None:
        """After `seconds` at this weight: the next state, or None to go on watching."""
        if outcome is Outcome.BAD:
            return self.undo("; ".join(texts))
        if seconds < self.interval:
            return None
        if outcome is Outcome.UNSURE:
            late = seconds >= self.interval + self.patience
            return self.undo(f"not shown good within {seconds:.0f} s: " + "; ".join(texts)) if late else None
        if self.step + 1 < len(self.steps):
            return replace(self, step=self.step + 1, reason="; ".join(texts))
        return replace(self, phase="promoted", reason="; ".join(texts))

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Walk:
        """Reads what `to_json` gave."""
        return cls(**{**raw, "steps": tuple(raw["steps"]), "guards": tuple(raw["guards"])})


def parse_steps(text: str) -> tuple[int, ...]:
    """Reads "1,10,50,100".

    Raises:
        ValueError: not rising whole percents from 1 to 100.
    """
    parts = [part.strip().removesuffix("%").strip() for part in text.split(",")]
    steps = tuple(int(part) for part in parts if part.isdecimal())
    if len(steps) != len(parts) or any(not 1 <= s <= 100 for s in steps) or list(steps) != sorted(set(steps)):
        raise ValueError(f"{text!r}: steps are rising whole percents from 1 to 100, as in 1,10,50,100")
    return steps
