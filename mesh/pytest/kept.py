"""The real mesh that tests keep between sessions: started once, used again as long as code and values are the same.

Each session has a mesh to itself, in the first free slot below `.mesh/pytest`: the kernel frees the slot however the
session ends. Nobody has to end a kept mesh: a guard does when no session came for a while (`python -m mesh.pytest`).
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mesh.local.events import read_state
from mesh.local.guard import guard
from mesh.local.lock import held
from mesh.local.paths import Paths
from mesh.pytest.mesh import ROOT, Mesh
from mesh.topology import EDGE

UP_SECONDS = 600.0  # the first start of all imports 390,000 foods
END_SECONDS = 60.0
POLL_SECONDS = 1.0
_RUNS = ("mesh", "services", "gen/python", "gen/descriptors.binpb", "envoy", "helm", "requirements.lock")
_LEFT_OUT = {"tests", "__pycache__", "pytest"}
_MEMORY = "kept.json"


class Slot:
    """A place for one mesh, held by one process at a time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._fd: int | None = None

    def take(self, note: str = "") -> bool:
        """Takes it, unless another process has it, or had it since `note`; waits for one that only ends the mesh."""
        self.home.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.home / "held", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + END_SECONDS
        while self._fd is None:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._fd = fd
            except BlockingIOError:
                if os.pread(fd, 6, 0) != b"ending" or time.monotonic() > deadline:
                    os.close(fd)
                    return False
                time.sleep(0.05)
        if note and self.read() != note:
            self.give()
            return False
        self.sign(str(os.getpid()))
        return True

    def sign(self, text: str) -> str:
        """Notes who has it and since when, and returns the note."""
        assert self._fd is not None
        note = f"{text} {time.time_ns()}"
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, note.encode(), 0)
        return note

    def give(self) -> None:
        """Gives it back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def read(self) -> str:
        """The note of who had it last."""
        return (self.home / "held").read_text()


def folder() -> Path:
    """Where the slots are."""
    return Paths.of(ROOT).home / "pytest"


@dataclass(frozen=True)
class Memory:
    """What is known of the mesh in a slot: of which code it is, its port, the values in force."""

    code: str
    port: int
    values: str

    @classmethod
    def read(cls, home: Path) -> Memory | None:
        """Of the mesh that runs and that nobody has changed; None if there is none."""
        try:
            found = cls(**json.loads((home / _MEMORY).read_text()))
            state, values = read_state(Paths.at(home).state), _digest(Paths.at(home).values.read_bytes())
        except (OSError, ValueError, TypeError, KeyError):
            return None
        whole = state is not None and state.phase == "ready" and all(i.ready for i in state.instances)
        return found if whole and values == found.values else None

    def write(self, home: Path) -> None:
        """Keeps it."""
        (home / _MEMORY).write_text(json.dumps(self.__dict__))


class Kept:
    """This session's mesh. `minutes` is how long it stays behind the session; 0 ends it with the session."""

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._slot: Slot | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._services: frozenset[str] = frozenset()
        self.mesh: Mesh | None = None

    def up(self, *services: str) -> Mesh:
        """A mesh with these services and all that they call; the one there is, if it will do.

        Raises:
            AssertionError: it does not start; the message says why.
        """
        if self.mesh and self._services.issuperset(services):
            return self.mesh
        slot = self._slot = self._slot or self._take()
        code, memory = fingerprint(), Memory.read(slot.home)
        running = _services(slot.home) if memory else frozenset()
        if memory and memory.code == code and running.issuperset(services):
            self.mesh = Mesh(slot.home, port=memory.port)
        else:
            self.mesh = self._start(slot.home, code, running.union(services))
        self._services = _services(slot.home)
        return self.mesh

    def end(self) -> None:
        """The end of the session: the guard sees to the mesh."""
        if self._slot and self._guard and self._guard.stdin:
            self._slot.give()
            self._guard.stdin.close()
            if not self._minutes:
                self._guard.wait(END_SECONDS)

    def _take(self) -> Slot:
        slot = next(slot for number in itertools.count() if (slot := Slot(folder() / str(number))).take())
        note = slot.read()
        ending = [sys.executable, "-m", "mesh.pytest", str(slot.home), note, str(self._minutes)]
        self._guard = guard(ending, cwd=ROOT, env=os.environ)
        return slot

    def _start(self, home: Path, code: str, services: Iterable[str]) -> Mesh:
        mesh = self.mesh or Mesh(home)
        if held(mesh.paths.lock):
            mesh.run("down")
        overlay = home / "overlay.yaml"
        overlay.write_text(json.dumps(_without_canaries()))
        mesh.run("up", "--detach", "-f", str(overlay), *sorted(services), timeout=UP_SECONDS)
        Memory(code, mesh.port, _digest(mesh.paths.values.read_bytes())).write(home)
        return mesh


def end_when_idle(home: Path, note: str, minutes: float) -> None:
    """Ends the mesh in a slot unless another session takes it within `minutes`, whose own guard then sees to it."""
    slot = Slot(home)
    deadline = time.monotonic() + minutes * 60
    while slot.read() == note:
        if time.monotonic() >= deadline:
            if slot.take(note):
                slot.sign("ending")
                end(home)
            return
        time.sleep(POLL_SECONDS)


def end_all() -> list[Path]:
    """Ends all meshes that are kept and that no session uses; returns their folders."""
    slots = [Slot(home) for home in sorted(folder().glob("[0-9]*"))]
    ended = [slot.home for slot in slots if Paths.at(slot.home).lock.exists() and slot.take()]
    for home in ended:
        end(home)
    return ended


def end(home: Path) -> None:
    """Stops the mesh there; its databases stay for the next."""
    Mesh(home).run("down", timeout=END_SECONDS)


def fingerprint() -> str:
    """Of all that a mesh of this tree runs: another one when a file is edited, added or removed."""
    found = hashlib.sha256()
    for start in _RUNS:
        for path in _files(ROOT / start):
            about = path.stat()
            found.update(f"{path} {about.st_mtime_ns} {about.st_size}\n".encode())
    return found.hexdigest()


def _files(start: Path) -> Iterator[Path]:
    if start.is_file():
        yield start
    for folder_, folders, names in os.walk(start):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        yield from (Path(folder_, name) for name in sorted(names))


def _without_canaries() -> dict[str, Any]:
    """An overlay of the values: tests want one version of each service."""
    stanzas: dict[str, Any] = yaml.safe_load((ROOT / "helm/values.yaml").read_text())["services"]
    none = {"canary": {"replicas": 0, "weight": 0}}
    return {"services": {name: none for name, stanza in stanzas.items() if "canary" in stanza}}


def _services(home: Path) -> frozenset[str]:
    """Those that run there."""
    state = read_state(Paths.at(home).state)
    return frozenset(i.service for i in state.instances if i.service != EDGE) if state else frozenset()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
