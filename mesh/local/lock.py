"""One runner a HOME: an flock that the kernel releases however the runner ends."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from mesh.local.errors import AlreadyRunningError


@dataclass(frozen=True)
class Holder:
    """Who runs the mesh of a HOME. `since` is UTC in ISO 8601; `edge` a URL, empty until it is known."""

    pid: int
    since: str
    edge: str = ""


class Lock:
    """Held while a runner lives. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def __enter__(self) -> Lock:
        """Takes the lock.

        Raises:
            AlreadyRunningError: another runner has it; the message says which.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise AlreadyRunningError(_already(self._path.parent, read(self._path))) from None
        self._fd = fd
        self.describe("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the lock back."""
        if self._fd is not None:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def describe(self, edge: str) -> None:
        """Records who holds it, for those who come later."""
        assert self._fd is not None
        holder = Holder(os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"), edge)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(asdict(holder)).encode(), 0)


def held(path: Path) -> bool:
    """Whether a runner holds the lock now."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read(path: Path) -> Holder | None:
    """Who holds the lock; None if nobody does, or its holder has not yet said."""
    deadline = time.monotonic() + 1.0
    while held(path):
        with suppress(OSError, ValueError, TypeError):
            return Holder(**json.loads(path.read_text()))
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return None


def _already(home: Path, holder: Holder | None) -> str:
    who = (
        f"pid {holder.pid}, since {holder.since}" + (f", edge {holder.edge}" if holder.edge else "") if holder else "?"
    )
    return f"the mesh of {home} is already running ({who}): `mesh status` shows it, `mesh down` stops it"
