"""What is done when a process is gone, however it ends: a guard waits for that, in a session of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Its standard input ends when it is told to, or when the process that started it is no more.
WAIT = "import subprocess, sys; sys.stdin.read(); subprocess.call(sys.argv[1:])"


def guard(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts the process that runs `command` when this one is gone, or when its standard input is closed."""
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-c", WAIT, *command],
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=nowhere,
        stderr=nowhere,
        start_new_session=True,  # Ctrl-C is not for it
    )


@contextmanager
def afterwards(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], seconds: float = 60.0) -> Iterator[None]:
    """Runs `command` at the end of the block, and waits for it; also if this process is killed before.

    Raises:
        TimeoutExpired: it takes longer than `seconds`.
    """
    waiting = guard(command, cwd=cwd, env=env)
    try:
        yield
    finally:
        waiting.communicate(timeout=seconds)
