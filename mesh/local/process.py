"""Programs that the runner keeps running: notice an exit at once, start again with back-off, stop in order."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from mesh.local import launch
from mesh.local.errors import DiskFullError, LocalError

MAX_LOG_BYTES = 10_000_000
TAIL_LINES, TAIL_BYTES = 15, 20_000
KILL_SECONDS = 5.0
# Start again after 0.25 s, doubling to 15 s, less up to half of it; a run of a minute was a good one.
FIRST_DELAY, MAX_DELAY, GOOD_RUN_SECONDS = 0.25, 15.0, 60.0
FATAL_FAILURES = 3


class Child:
    """One run of a program in a process group of its own, which ends when this process ends."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        log: Path,
        *,
        env: Mapping[str, str],
        cwd: Path = Path("/"),
        death_signal: int = signal.SIGKILL,
        user: tuple[int, int] | None = None,
    ) -> None:
        self._argv = launch.command(argv, death_signal=death_signal, user=user)
        self._log, self._env, self._cwd = log, dict(env), cwd
        self._process: asyncio.subprocess.Process | None = None
        self._offset = 0

    @property
    def pid(self) -> int | None:
        """Its process id, None unless it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Starts it; its output is appended to the log, which is put aside first if it has grown large."""
        rotate(self._log)
        with self._log.open("ab") as log:
            self._offset = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=self._env,
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Returns its exit code (negative: the signal that ended it)."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, grace: float, *signals: signal.Signals) -> None:
        """Sends each signal (SIGTERM if none is given), waits `grace` seconds for each, then kills its whole group."""
        process = self._process
        if process is None:
            return
        try:
            for sign in signals or (signal.SIGTERM,):
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.send_signal(sign)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), grace)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), KILL_SECONDS)

    def tail(self) -> str:
        """The last lines of that, for a message."""
        return tail(self._log, self._offset)


class OneChild:
    """What every program that is one Child at a time has in common; `start` of a subclass sets `_child`."""

    def __init__(self) -> None:
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, None unless it runs."""
        return self._child.pid if self._child else None

    async def wait(self) -> int:
        """Returns the exit code when it ends."""
        assert self._child is not None
        return await self._child.wait()


class Program(Protocol):
    """What a Keeper keeps. A failed or cancelled `start` leaves nothing behind."""

    @property
    def pid(self) -> int | None:
        """Its process id, None unless it runs."""

    async def start(self) -> None:
        """Starts it and returns when it is ready; raises LocalError if it does not get there."""

    async def wait(self) -> int:
        """Returns the exit code when it ends."""

    async def stop(self) -> None:
        """Stops it; harmless if it does not run."""


# kind, name of the program, text
Report = Callable[[Literal["trouble", "ready"], str, str], None]


class Keeper:
    """Keeps one program running, and says at each change whether it is up.

    `report` gets a line for people at each exit and failure, and when it is up again; `changed()` is called when `up`
    turns. A program that never came up is given up after three failures, unless `patient`.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        *,
        changed: Callable[[], None],
        report: Report,
        patient: bool = False,
    ) -> None:
        self.name = name
        self.program = program
        self.up = False
        self.restarts = 0
        self._changed, self._report, self._patient = changed, report, patient
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def start(self, after: asyncio.Future[None] | None = None) -> None:
        """Begins, once `after` is done if given; returns at once."""
        self._task = asyncio.create_task(self._run(after), name=f"keep {self.name}")
        self._task.add_done_callback(self._ended)

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._task is not None

    async def ready(self) -> None:
        """Returns when it was ready for the first time.

        Raises:
            LocalError: it failed for good, or three times, before it ever was; it is not tried again.
        """
        await asyncio.shield(self._first)

    async def stop(self) -> None:
        """Stops the program for good."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._first.cancel()
        self._turn(False)
        await self.program.stop()

    async def _run(self, after: asyncio.Future[None] | None) -> None:
        try:
            if after is not None:
                await asyncio.shield(after)  # others may wait for it too
            await self._keep()
        except LocalError as error:
            self._fail(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A defect of ours must not leave others waiting for ever."""
        if not task.cancelled() and (error := task.exception()):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._first.done():
            self._first.set_exception(error)
            self._first.exception()  # whoever waits gets it; nobody waiting is no error

    async def _keep(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self.program.start()
            except (LocalError, OSError) as error:
                reason = explain(error)
                self._report("trouble", self.name, str(reason))
                hopeless = not reason.passing or failures + 1 >= FATAL_FAILURES
                if hopeless and not self._first.done() and not self._patient:
                    reason.args = (f"{self.name}: {reason}",)
                    raise reason from None
            else:
                self._turn(True)
                if self._first.done():
                    self._report("ready", self.name, "again")
                else:
                    self._first.set_result(None)
                code = await self.program.wait()
                self._turn(False)
                self._report("trouble", self.name, f"ended ({describe_exit(code)}), starting it again")
                await self.program.stop()  # what is left of its process group
            failures = 0 if time.monotonic() - began > GOOD_RUN_SECONDS else failures + 1
            self.restarts += 1
            await asyncio.sleep(backoff(failures))

    def _turn(self, up: bool) -> None:
        if self.up != up:
            self.up = up
            self._changed()


def explain(error: LocalError | OSError) -> LocalError:
    """An error as a person can use it."""
    if isinstance(error, LocalError):
        return error
    if error.errno == errno.ENOSPC:
        return DiskFullError(f"the disk is full ({error.filename}): free some room and start again")
    return LocalError(str(error))


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, with jitter so that not all start as one."""
    delay = min(MAX_DELAY, FIRST_DELAY * 2.0 ** max(0, failures - 1))
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


def describe_exit(code: int) -> str:
    """An exit code for people."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def tail(log: Path, offset: int = 0) -> str:
    """The last lines of a log, of what was written after `offset`."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()[-TAIL_LINES:]
        return "\n".join(readable(line) for line in lines)
    return ""


def readable(line: str) -> str:
    """A line of a log for a person: of a structured one, its message and what the error in it was."""
    try:
        entry = json.loads(line)
        error = str(entry.get("exception", "")).strip().rpartition("\n")[2]
        return str(entry["message"]) + (f": {error}" if error else "")
    except (ValueError, KeyError, AttributeError, TypeError):
        return line


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended, and whose parent has not looked yet, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return sys.platform != "linux"


def rotate(log: Path) -> None:
    """Puts a large log aside as `<name>.1`; one old file is kept."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.rename(log.with_name(log.name + ".1"))


def end_leftovers(marker: str) -> list[int]:
    """Kills every process of this user whose environment holds `marker` ("NAME=value"), and returns their ids.

    The children of a killed runner end by themselves; theirs (worker pools) may not. The marker names one RUN folder.
    """
    if sys.platform != "linux":
        return []
    ended = []
    wanted = marker.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
                    ended.append(int(entry.name))
    return ended
