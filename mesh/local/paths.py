"""Where everything of one mesh lies on a laptop: state in HOME, sockets in RUN."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.local.errors import DiskFullError, StateError

# Sockets lie in /tmp and not in XDG_RUNTIME_DIR: that folder goes away at logout, and a detached mesh stays.
RUN_PARENT = Path("/tmp")  # noqa: S108 - made with mkdir(0700) and verified below
FIRST_START_BYTES = 2_000_000_000  # the USDA rows with their indexes, twice, and the write-ahead log
LATER_START_BYTES = 200_000_000
OWNED = (
    "postgres", "nats", "log", "identity", "keys", "cache", "recordings", "rollouts",
    "values.yaml", "state.json", "lock",
)  # fmt: skip


@dataclass(frozen=True)
class Paths:
    """The layout of one mesh. HOME is `$MESH_HOME` or `<root>/.mesh`; RUN follows from it, short enough for sockets."""

    home: Path

    @classmethod
    def of(cls, root: Path, env: Mapping[str, str] = os.environ) -> Paths:
        """The paths of the mesh of the work tree `root`."""
        return cls.at(Path(env.get("MESH_HOME") or root / ".mesh"))

    @classmethod
    def at(cls, home: Path) -> Paths:
        """The paths of the mesh that keeps its state in `home`."""
        return cls(home.resolve())

    @property
    def run(self) -> Path:
        """The folder of the sockets: the same for the same HOME, its own for each."""
        return RUN_PARENT / f"nourish-{hashlib.sha256(os.fsencode(self.home)).hexdigest()[:8]}"

    @property
    def runner_socket(self) -> Path:
        """Where the runner takes `mesh restart`."""
        return self.run / "runner.sock"

    @property
    def control_socket(self) -> Path:
        """The control plane: ADS and the ControlService."""
        return self.run / "control.sock"

    @property
    def postgres_sockets(self) -> Path:
        """The folder of PostgreSQL's socket; it belongs to the user that PostgreSQL runs as."""
        return self.run / "pg"

    @property
    def events_url(self) -> Path:
        """The address of the events server in use, with what lets in, for `mesh events`."""
        return self.home / "nats" / "url"

    @property
    def identity(self) -> Path:
        """The local CA, certificates, token keys."""
        return self.home / "identity"

    @property
    def keys(self) -> Path:
        """The keys that encrypt what services store of sensitive fields, a folder a service."""
        return self.home / "keys"

    @property
    def cache(self) -> Path:
        """What services may make again: parsers' models, converted data files."""
        return self.home / "cache"

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.home / "log"

    @property
    def recordings(self) -> Path:
        """Recorded calls, one file a recording."""
        return self.home / "recordings"

    @property
    def values(self) -> Path:
        """The values in force: what the last successful apply amounted to."""
        return self.home / "values.yaml"

    @property
    def state(self) -> Path:
        """A snapshot of what runs, for `mesh status`."""
        return self.home / "state.json"

    @property
    def rollouts(self) -> Path:
        """Rollouts: how far each is, and what it did and why."""
        return self.home / "rollouts"

    @property
    def lock(self) -> Path:
        """Held by the one runner of this HOME; says who it is."""
        return self.home / "lock"

    def instance(self, instance: str) -> Path:
        """The folder of one instance's sockets and bootstrap."""
        return self.run / instance

    def app_socket(self, instance: str) -> Path:
        """Where the app listens; only its sidecar connects."""
        return self.instance(instance) / "app.sock"

    def egress_socket(self, instance: str) -> Path:
        """Where the sidecar takes the app's calls."""
        return self.instance(instance) / "egress.sock"

    def xds_bootstrap(self, instance: str) -> Path:
        """gRPC's own, of an instance without a proxy."""
        return self.instance(instance) / "bootstrap.json"

    def admin_socket(self, instance: str) -> Path:
        """Envoy's admin interface."""
        return self.instance(instance) / "admin.sock"

    def telemetry_socket(self, instance: str) -> Path:
        """Where the app says what it counts, and lets itself be looked into."""
        return self.instance(instance) / "telemetry.sock"

    def app_log(self, instance: str) -> Path:
        """What the app prints."""
        return self.logs / f"{instance}.log"

    def envoy_log(self, instance: str) -> Path:
        """What its Envoy prints, with the access log."""
        return self.logs / f"{instance}.envoy.log"

    def prepare_home(self) -> None:
        """Makes HOME with its folders, for the owner alone, and checks that the disk has room.

        Raises:
            DiskFullError: too little is free for what the first (or a later) start writes.
            StateError: HOME cannot be made or written.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.logs, self.identity, self.cache):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot make {self.home}: {error.strerror}; MESH_HOME moves it") from None
        needed = LATER_START_BYTES if (self.home / "postgres" / "data").exists() else FIRST_START_BYTES
        free = shutil.disk_usage(self.home).free
        if free < needed:
            raise DiskFullError(
                f"the disk that holds {self.home} has {free / 1e9:.1f} GB free, and starting needs {needed / 1e9:.1f}: "
                "free some room, or set MESH_HOME to a folder on another disk"
            )

    def prepare_run(self) -> None:
        """Makes RUN empty and private.

        Raises:
            StateError: another user made it first, or others may enter it.
        """
        self.run.mkdir(mode=0o700, exist_ok=True)
        found = self.run.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise StateError(
                f"{self.run} is not a private folder of this user (somebody else may have made it): "
                "remove it, or set MESH_HOME to another folder"
            )
        self.remove_run()
        self.run.mkdir(mode=0o700)

    def remove_run(self) -> None:
        """Removes RUN, if it is this user's."""
        if self.run.exists() and self.run.lstat().st_uid == os.geteuid():
            shutil.rmtree(self.run, ignore_errors=True)

    def wipe(self) -> None:
        """Removes all that the mesh keeps in HOME, and HOME itself unless something else lies there."""
        for name in OWNED:
            path = self.home / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if self.home.exists() and not any(self.home.iterdir()):
            self.home.rmdir()


def edge_port(default: int, env: Mapping[str, str] = os.environ) -> int:
    """The edge's port: MESH_PORT, or the values' own.

    Raises:
        StateError: MESH_PORT is not a port number.
    """
    text = env.get("MESH_PORT") or str(default)
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise StateError(f"MESH_PORT is {text!r}: it must be a port number from 1 to 65535")
    return int(text)
