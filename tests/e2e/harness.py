"""Drives a whole mesh as its user does: by the `mesh` command, REST and the files it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]
UP_SECONDS = 240  # the first start imports 390,000 foods on a machine that also runs the tests


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "the condition") -> Any:
    """Polls until `condition` is truthy and returns it; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)
    return result


@dataclass
class Mesh:
    """A mesh with its own state folder and port."""

    home: Path
    root: Path = ROOT
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        """The edge."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What the command is run with."""
        return {**os.environ, "MESH_HOME": str(self.home), "MESH_PORT": str(self.port), "PYTHONPATH": self.python_path}

    @property
    def python_path(self) -> str:
        """The tree under test comes first, also when it is a copy."""
        return f"{self.root}{os.pathsep}{self.root / 'gen/python'}"

    def command(self, *arguments: str) -> list[str]:
        """The `mesh` command of the tree under test."""
        return [sys.executable, "-m", "mesh.cli", *arguments]

    def run(self, *arguments: str, expect: int | None = 0, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs `mesh ...`; fails unless it exits with `expect` (None: anything)."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if expect is not None:
            assert done.returncode == expect, (
                f"mesh {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def json(self, *arguments: str) -> Any:
        """The command's answer to programs."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def state(self) -> dict[str, Any]:
        """What the runner says of its processes."""
        found: dict[str, Any] = json.loads((self.home / "state.json").read_text())
        return found

    def instance(self, name: str) -> dict[str, Any]:
        """What the runner says of one instance."""
        return next(i for i in self.state()["instances"] if i["id"] == name)

    def socket(self, instance: str, name: str) -> str:
        """The path of an instance's `app`, `egress` or `admin` socket."""
        return f"{self.state()['run']}/{instance}/{name}.sock"

    def token(self, user: str, *scopes: str, ttl: str = "1h") -> dict[str, str]:
        """The header that signs `user` in."""
        flags = [flag for scope in scopes for flag in ("--scope", scope)]
        token = self.run("token", "--user", user, "--ttl", ttl, *flags).stdout.strip()
        return {"authorization": f"Bearer {token}"}

    def apply(self, values: dict[str, Any], *flags: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Applies an overlay of the values."""
        overlay = self.home / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(values))
        return self.run("apply", "-f", str(overlay), *flags, expect=expect)


# Runs what it is given when its standard input ends: when it is told to, or the process that started it is no more.
AFTERWARDS = "import subprocess, sys; sys.stdin.read(); subprocess.call(sys.argv[1:])"


@contextmanager
def running(mesh: Mesh, *services: str) -> Iterator[Mesh]:
    """Starts the mesh in the background; ends it and forgets its state afterwards, even if this process is killed."""
    argv = [sys.executable, "-c", AFTERWARDS, *mesh.command("down", "--wipe")]
    nowhere = subprocess.DEVNULL
    end = subprocess.Popen(
        argv,
        cwd=mesh.root,
        env=mesh.environment,
        stdin=subprocess.PIPE,
        stdout=nowhere,
        stderr=nowhere,
        start_new_session=True,  # Ctrl-C is for the tests
    )
    try:
        mesh.run("up", "--detach", *services, timeout=UP_SECONDS)
        yield mesh
    finally:
        end.communicate(timeout=60)


@dataclass
class Load:
    """Steady REST load and what came of it."""

    statuses: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def _client(callers: int) -> Iterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers)
    yield httpx.AsyncClient(limits=limits, timeout=20)


async def under_load(
    request: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]],
    during: Callable[[], Awaitable[object]],
    callers: int = 8,
) -> Load:
    """Runs `during` while `callers` repeat `request`; every answer that is not 2xx is a failure with its body."""
    load, stop = Load(), asyncio.Event()

    async def caller(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            try:
                answer = await request(client)
                load.statuses.append(answer.status_code)
                if not answer.is_success:
                    load.failures.append(f"{answer.status_code} {answer.text}")
            except httpx.HTTPError as error:
                load.statuses.append(0)
                load.failures.append(repr(error))

    with _client(callers) as client:
        async with client, asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller(client))
            try:
                await during()
            finally:
                stop.set()
    return load
