"""Sends recorded requests again and compares what comes back."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import grpc
from google.protobuf.message import Message

from mesh.dynamic import Codec
from mesh.replay.diff import Difference, differences
from mesh.replay.record import SETTLED
from mesh.replay.recording import Recorded
from mesh.runtime.sensitive import mask
from mesh.topology import Subset
from mesh.xds.policies.canary import FORCED, HEADER

Against = Literal["recorded", "stable"]
STATUS = "(status)"
_FORCE = {subset: value for value, subset in FORCED.items()}


@dataclass(frozen=True)
class Answer:
    """How a call ended."""

    code: str
    message: Message | None
    ms: float


@dataclass(frozen=True)
class Outcome:
    """A recorded call that was answered otherwise; `line` is its line of the file."""

    line: int
    method: str
    differences: list[Difference]


@dataclass
class Report:
    """What came of a replay. `ms`, by side, are the times of the calls that were compared."""

    compared: int = 0
    differing: list[Outcome] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    ms: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Replay:
    """How to send and compare. `token` gives a user's authorization for a method's scopes, None for no user."""

    methods: Mapping[str, Codec]
    to: Subset
    against: Against
    tolerance: float
    token: Callable[[tuple[str, ...]], str] | None

    async def run(self, channel: grpc.aio.Channel, calls: list[Recorded], concurrency: int) -> Report:
        """Replays all, at most `concurrency` at a time."""
        report, slots = Report(ms={self.against: [], self.to: []}), asyncio.Semaphore(concurrency)

        async def one(line: int, call: Recorded) -> None:
            async with slots:
                await self._one(channel, line, call, report)

        # The file's first line is its header.
        await asyncio.gather(*(one(line, call) for line, call in enumerate(calls, start=2)))
        report.differing.sort(key=lambda outcome: outcome.line)
        return report

    async def _one(self, channel: grpc.aio.Channel, line: int, call: Recorded, report: Report) -> None:
        if reason := self._left_out(call):
            report.skipped[reason] += 1
            return
        codec = self.methods[call.method]
        try:
            request = codec.parse(json.dumps(call.request))
            before = codec.parse_answer(json.dumps(call.answer)) if call.answer is not None else None
        except ValueError:
            report.skipped["not readable by today's contract"] += 1
            return
        if self.against == "recorded":
            left, right = Answer(call.code, before, call.ms), await self._ask(channel, codec, request, call, self.to)
            if right.message is not None:
                mask(right.message)  # as the recorded one was
        else:
            sides = (self._ask(channel, codec, request, call, side) for side in (self.against, self.to))
            left, right = await asyncio.gather(*sides)
        if left.code == right.code and left.code not in SETTLED:
            report.skipped[f"failed on both sides with {left.code}"] += 1
            return
        report.compared += 1
        report.ms[self.against].append(left.ms)
        report.ms[self.to].append(right.ms)
        if found := compare(left, right, self.tolerance):
            report.differing.append(Outcome(line, codec.method.name, found))

    def _left_out(self, call: Recorded) -> str:
        """Why the call is not sent; empty if it is."""
        if call.method not in self.methods:
            return "not NO_SIDE_EFFECTS by today's contract"
        if call.masked and self.against == "recorded":
            return "masked in the request: compare with --against stable"
        if self._is_users(call) and self.token is None:
            return "made for a user: say for whom with --user"
        return ""

    def _is_users(self, call: Recorded) -> bool:
        return call.user or self.methods[call.method].method.access == "user"

    async def _ask(
        self, channel: grpc.aio.Channel, codec: Codec, request: Message, call: Recorded, subset: str
    ) -> Answer:
        method = codec.method
        sent = [("x-request-id", str(uuid.uuid4())), (HEADER, _FORCE[subset])]
        if self.token is not None and self._is_users(call):
            sent.append(("authorization", self.token(method.scopes)))
        send = channel.unary_unary(method.path, codec.serialize, codec.deserialize)
        started = time.perf_counter()
        try:
            answer = await send(request, timeout=method.deadline_seconds, metadata=sent)
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, None, (time.perf_counter() - started) * 1000)
        return Answer("OK", answer, (time.perf_counter() - started) * 1000)


def compare(left: Answer, right: Answer, tolerance: float) -> list[Difference]:
    """What differs between two answers to one request."""
    if left.code != right.code:
        return [Difference(STATUS, left.code, right.code)]
    if left.message is None or right.message is None:
        return []
    return differences(left.message, right.message, tolerance)


def percentile(values: list[float], percent: float) -> float:
    """The nearest rank; 0 if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0
