"""Child processes and what they cost, read from /proc."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 30.0


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that these processes have used so far."""
    return sum(_ticks(pid) for pid in pids) / TICKS


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def scheduled_seconds(pids: list[int]) -> float:
    """The same to the nanosecond, for short spans; without threads that have ended."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def resident_mb(pid: int) -> float:
    """Proportional set size in MB: memory shared with others is counted in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextlib.contextmanager
def server(*arguments: str, ready: Path) -> Iterator[int]:
    """Runs `python -m <arguments>` until it has made the file or socket `ready`; gives its pid, ends it afterwards."""
    log = ready.with_suffix(".log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{arguments[0]} did not start")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        log.close()


@dataclass(frozen=True)
class Mesh:
    """A mesh that runs: its state folder and its edge's port."""

    home: Path
    port: int


@contextlib.contextmanager
def mesh(folder: Path, *services: str) -> Iterator[Mesh]:
    """Runs these services of the mesh (all if none is named) with a port of its own; state lies in `folder`."""
    home = Path(os.environ.get("BENCH_MESH_HOME", folder / "mesh"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "MESH_HOME": str(home), "MESH_PORT": str(port)}
    command = [sys.executable, "-m", "mesh.cli"]
    try:
        up = [*command, "up", "--detach", *services]
        subprocess.run(up, env=environment, check=True, stdout=subprocess.DEVNULL)
        yield Mesh(home, port)
    finally:
        subprocess.run([*command, "down"], env=environment, check=False, stdout=subprocess.DEVNULL)
