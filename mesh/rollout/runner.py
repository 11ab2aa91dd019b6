"""Carries a walk out: writes what it is about to do, does it, looks, and decides again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from mesh.rollout.files import Files
from mesh.rollout.guards import Guard, Outcome, judge
from mesh.rollout.observe import Observer
from mesh.rollout.samples import Sample
from mesh.rollout.walk import Walk

POLL_SECONDS = 0.5
SAY_SECONDS = 5.0
ABSENT_SECONDS = 5.0  # a canary instance that is not ready for so long is lost

Shift = Callable[[str, int], Awaitable[list[str]]]
Say = Callable[[dict[str, Any]], None]


class Runner:
    """One process that walks. `shift` brings a weight into force in every proxy; `say` shows a line of the log."""

    def __init__(self, files: Files, observer: Observer, shift: Shift, say: Say) -> None:
        self._files, self._observer, self._shift, self._say = files, observer, shift, say
        self._interrupted = asyncio.Event()

    def interrupt(self) -> None:
        """Rolls back at the next look."""
        self._interrupted.set()

    async def run(self, walk: Walk) -> Walk:
        """Walks until it is promoted or undone. May be given a state that a killed process left: each act repeats."""
        shifted = -1
        while True:
            self._files.write(walk)
            if walk.over:
                self._tell(walk.phase, weight=walk.weight, why=walk.reason)
                return walk
            if walk.weight != shifted:
                self._tell("shift", weight=walk.weight, why=walk.reason)
                changes = await self._shift(walk.service, walk.weight)
                self._tell("shifted", weight=walk.weight, changes=changes)
                shifted = walk.weight
                await self._drain(walk)
            walk = walk.shifted() if walk.phase == "undoing" else await self._watch(walk)

    async def _watch(self, walk: Walk) -> Walk:
        guards = tuple(map(Guard.parse, walk.guards))
        began = said = present = time.monotonic()
        before = await self._observer.read()
        while True:
            await self._pause()
            seconds = time.monotonic() - began
            if self._interrupted.is_set():
                return walk.undo("interrupted")
            present = present if (absent := self._observer.absent()) else time.monotonic()
            if time.monotonic() - present > ABSENT_SECONDS:
                return walk.undo(f"not ready: {', '.join(absent)}")
            reading = await self._observer.read()
            canary, stable = reading.since(before, "canary"), reading.since(before, "stable")
            if walk.weight == 100 and walk.reference:  # stable has no calls any more: compare with its last ones
                stable = Sample.from_json(walk.reference)
            final = seconds >= walk.interval
            outcome, texts = judge(guards, canary, stable, final=final)
            if changed := walk.advance(outcome, texts, seconds):
                return changed if walk.weight == 100 else replace(changed, reference=stable.to_json())
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                word = "holding" if final and outcome is Outcome.UNSURE else "watching"
                self._tell(word, weight=walk.weight, seconds=round(seconds, 1), why="; ".join(texts))

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._interrupted.wait(), POLL_SECONDS)
        except TimeoutError:
            return

    async def _drain(self, walk: Walk) -> None:
        """Waits for the calls on a subset that gets no more."""
        old = {0: "canary", 100: "stable"}.get(walk.weight)
        if old is None:
            return
        deadline, first = time.monotonic() + walk.drain, True
        while left := await self._observer.active(old):
            if first:
                self._tell("draining", subset=old, calls=left)
            if time.monotonic() > deadline:
                self._tell("still running", subset=old, calls=left)
                return
            first = False
            await asyncio.sleep(POLL_SECONDS)

    def _tell(self, event: str, **facts: Any) -> None:
        self._say(self._files.tell(event, **facts))
