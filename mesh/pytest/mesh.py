"""A running mesh as a test has it: the `mesh` command, typed stubs, databases, events."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from mesh.local.paths import Paths

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.pytest.capture import Captured
    from mesh.runtime import Database

ROOT = Path(__file__).resolve().parents[2]

Stub = TypeVar("Stub")
E = TypeVar("E", bound="Message")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Mesh:
    """A mesh with its own state folder and port; `root` is the tree that it runs."""

    home: Path
    root: Path = ROOT
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        """The edge."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> Paths:
        """Where its files lie."""
        return Paths.at(self.home)

    # --- The command -------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """What the command is run with; the tree comes first, also when it is a copy."""
        path = f"{self.root}{os.pathsep}{self.root / 'gen/python'}"
        return {**os.environ, "MESH_HOME": str(self.home), "MESH_PORT": str(self.port), "PYTHONPATH": path}

    def command(self, *arguments: str) -> list[str]:
        """The `mesh` command of the tree."""
        return [sys.executable, "-m", "mesh.cli", *arguments]

    def run(self, *arguments: str, expect: int | None = 0, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs `mesh ...`; fails unless it exits with `expect` (None: anything)."""
        command, env = self.command(*arguments), self.environment
        done = subprocess.run(  # noqa: S603 - the tree's own
            command, cwd=self.root, env=env, capture_output=True, text=True, timeout=timeout, check=False
        )
        said = f"mesh {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert expect is None or done.returncode == expect, said
        return done

    def json(self, *arguments: str) -> Any:
        """The command's answer to programs."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def apply(self, values: Mapping[str, Any], *flags: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Applies an overlay of the values; `run("apply")` puts back those of the tree."""
        overlay = self.home / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(values))
        return self.run("apply", "-f", str(overlay), *flags, expect=expect)

    def state(self) -> dict[str, Any]:
        """What the runner says of its processes."""
        found: dict[str, Any] = json.loads(self.paths.state.read_text())
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

    # --- For tests of services ---------------------------------------------------------------------------------------

    def stub(self, kind: Callable[[Any], Stub], *, user: str = "", scopes: tuple[str, ...] = (), via: str = "") -> Stub:
        """A typed async stub through the edge: `mesh.stub(FoodServiceStub, user="alice")`.

        Args:
            kind: a generated stub class.
            user: who is signed in; nobody if not given.
            scopes: of the user's token; those that the method called asks for if not given.
            via: the service through whose sidecar it calls, as that service.
        """
        from mesh.pytest.channel import opened

        target = f"unix:{self.paths.egress_socket(f'{via}-0')}" if via else f"127.0.0.1:{self.port}"
        return kind(opened(target, self.paths.identity, user, scopes))

    def database(self, service: str) -> AbstractAsyncContextManager[Database]:
        """The database of a service: `async with mesh.database("food") as db: ...`.

        Of protected tables it shows what `Rows` or `acting_for` ask for.
        """
        from mesh.local.postgres import Postgres
        from mesh.runtime import database

        url = Postgres(self.home, self.paths.postgres_sockets).url(service)
        return database(url=url, pool=2, keys=self.paths.keys / service)

    @asynccontextmanager
    async def events(self, kind: type[E]) -> AsyncIterator[Captured[E]]:
        """What is published of a kind while the block runs: `async with mesh.events(FoodsImported) as seen: ...`."""
        from mesh.pytest.capture import captured

        async with captured(self.paths.events_url.read_text(), kind) as seen:
            yield seen
