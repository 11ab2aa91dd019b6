"""`python -m mesh.rollout.tests.killed N ...`: `mesh ...`, killed at its Nth act: a write, before or after a shift."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from mesh.cli import main, rollout
from mesh.rollout.files import Files

left = int(sys.argv.pop(1))
write, shift = Files.write, rollout._shift


def act() -> None:
    global left  # noqa: PLW0603 - one process, one count
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)


def counted_write(*arguments: Any) -> None:
    act()
    write(*arguments)


async def counted_shift(service: str, weight: int) -> list[str]:
    act()
    changes = await shift(service, weight)
    act()
    return changes


Files.write = counted_write  # type: ignore[method-assign]
rollout._shift = counted_shift
main()
