"""What a rollout leaves on disk: how far it is, what it did and why, and a lock so that only one walks a service."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mesh.local.errors import AlreadyRunningError, StateError
from mesh.local.events import now
from mesh.rollout.walk import Walk


class Files:
    """The files of one service's rollout in HOME/rollouts."""

    def __init__(self, folder: Path, service: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._service = service
        self.state, self.log = folder / f"{service}.json", folder / f"{service}.log"
        self._lock = folder / f"{service}.lock"

    def read(self) -> Walk | None:
        """The last rollout; None if there was none.

        Raises:
            StateError: the file is not one of ours.
        """
        try:
            return Walk.from_json(json.loads(self.state.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"{self.state} is no rollout ({error!r}): remove it and begin anew") from None

    def write(self, walk: Walk) -> None:
        """Replaces the state in one step that outlives a crash: it is written before what it announces is done."""
        draft = self.state.with_suffix(".new")
        with draft.open("w") as file:
            json.dump(walk.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.state)

    def tell(self, event: str, **facts: Any) -> dict[str, Any]:
        """Adds a JSON line to the log, and returns what it holds."""
        entry = {"time": now(), "service": self._service, "event": event, **facts}
        with self.log.open("a") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return entry

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock; the kernel gives it back however this process ends.

        Raises:
            AlreadyRunningError: another process walks this service.
        """
        with self._lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunningError(
                    f"another process rolls {self._service} out: `mesh rollout {self._service} --status` shows how far"
                ) from None
            yield
