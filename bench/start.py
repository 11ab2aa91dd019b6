"""What a Python service costs before it serves: CPU and memory when it says so, and of those what imports take."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import processes
from bench.report import goals
from mesh.local.keys import add_key
from mesh.local.postgres import Postgres

STARTS = int(os.environ.get("BENCH_STARTS", "9"))
SECONDS = 60
GOAL_SECONDS, GOAL_MB = 1.0, 90.0
# By what is written in the table: what a fresh interpreter imports.
IMPORTS = {
    "nothing": "",
    "grpc.aio, protobuf, uvloop": "import grpc.aio, google.protobuf.message, uvloop",
    "sqlalchemy.ext.asyncio": "import sqlalchemy.ext.asyncio",
    "mesh.runtime": "import mesh.runtime",
    "services.profile.service and its store": "import services.profile.service, services.profile.store",
}


@dataclass(frozen=True)
class Start:
    """One start: CPU seconds and resident MB when it said that it serves."""

    seconds: float
    megabytes: float


def run() -> dict[str, Any]:
    """Starts each several times, in turn; returns medians."""
    folder = Path(tempfile.mkdtemp(prefix="nourish-bench-"))
    try:
        return asyncio.run(_run(folder))
    finally:
        shutil.rmtree(folder)


def report(results: dict[str, Any]) -> list[str]:
    """The starts against their goals, and what importing takes."""
    profile = results["profile"]
    rows = [
        ("profile: CPU seconds until it serves", profile["seconds"], GOAL_SECONDS),
        ("profile: resident MB when it serves", profile["megabytes"], GOAL_MB),
    ]
    lines = [
        "## Start of a Python service",
        "",
        "`python -m services.profile`, its database, keys and migrations being there, until it says that it serves: "
        f"medians of {results['count']} starts.",
        "",
        *goals([(what, found, f"<= {goal:.2f}", found <= goal) for what, found, goal in rows]),
        "",
        "| a fresh interpreter imports | CPU s | MB |",
        "| --- | ---: | ---: |",
    ]
    for what, found in results["imports"].items():
        lines.append(f"| {what} | {found['seconds']:.2f} | {found['megabytes']:.0f} |")
    return lines


async def _run(folder: Path) -> dict[str, Any]:
    keys = folder / "keys"
    add_key(keys)
    server = Postgres(folder / "postgres", folder)
    await server.start()
    try:
        environment = {"NOURISH_DATABASE_URL": await server.create_database("profile"), "NOURISH_KEYS_DIR": str(keys)}
        await asyncio.to_thread(_profile, folder, environment)  # migrates
        starts = [await asyncio.to_thread(_profile, folder, environment) for _ in range(STARTS)]
    finally:
        await server.stop()
    return {
        "profile": _medians(starts),
        "imports": {what: _medians([_import(code) for _ in range(STARTS)]) for what, code in IMPORTS.items()},
        "count": STARTS,
    }


def _profile(folder: Path, environment: dict[str, str]) -> Start:
    """One start as the runner makes it, measured when the process says READY."""
    listen = folder / "app.sock"
    given = {**os.environ, **environment, "NOURISH_SERVICE": "profile", "NOURISH_LISTEN": f"unix:{listen}"}
    with _told(folder / "notify.sock") as told:
        given["NOTIFY_SOCKET"] = told.getsockname()
        with (folder / "profile.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "services.profile"], env=given, stdout=log, stderr=log)
        try:
            while "READY=1" not in told.recv(1000).decode():
                pass
            return _read(process.pid)
        except TimeoutError:
            raise RuntimeError(f"profile did not start: {(folder / 'profile.log').read_text()}") from None
        finally:
            process.terminate()
            process.wait()


def _read(pid: int) -> Start:
    return Start(processes.scheduled_seconds([pid]), processes.resident_mb(pid))


@contextmanager
def _told(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(SECONDS)
        try:
            yield told
        finally:
            path.unlink()


def _import(code: str) -> Start:
    """A fresh interpreter that has imported this, and waits."""
    waits = f"{code}\nimport sys\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if not process.stdout.readline():  # type: ignore[union-attr] # it is a pipe
            raise RuntimeError(f"{code}: cannot be imported")
        return _read(process.pid)


def _medians(starts: list[Start]) -> dict[str, float]:
    return {"seconds": median(s.seconds for s in starts), "megabytes": median(s.megabytes for s in starts)}
