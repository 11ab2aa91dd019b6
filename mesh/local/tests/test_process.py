"""Supervised processes, on real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.local import process
from mesh.local.errors import DiskFullError, StartError, StateError
from mesh.local.process import Child, Keeper

STUBBORN = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
PARENT = (  # starts a grandchild that would stay, and says its number
    "import subprocess,sys,time;"
    "p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(600)']);"
    "print(p.pid, flush=True); time.sleep(600)"
)


async def until(done: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


def python(code: str, log: Path, **env: str) -> Child:
    return Child([sys.executable, "-c", code], log, env=env)


class Flaky:
    """A program that fails to start so many times, and then runs."""

    def __init__(self, log: Path, failures: int, error: Exception | None = None) -> None:
        self.starts, self.failures, self.error = 0, failures, error or StartError("not yet")
        self.child = python("import time; time.sleep(600)", log)

    @property
    def pid(self) -> int | None:
        return self.child.pid

    async def start(self) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise self.error
        await self.child.start()

    async def wait(self) -> int:
        return await self.child.wait()

    async def stop(self) -> None:
        await self.child.stop(1)


def keep(program: Flaky, events: list[str] | None = None) -> Keeper:
    told = events if events is not None else []
    keeper = Keeper("x", program, changed=lambda: None, report=lambda _, __, text: told.append(text))
    keeper.start()
    return keeper


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FIRST_DELAY", 0.01)


async def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    child = python(STUBBORN, tmp_path / "log")
    await child.start()
    await until(lambda: "on" in child.tail())
    await child.stop(0.1)
    assert await child.wait() == -signal.SIGKILL


async def test_stopping_ends_what_the_process_itself_has_started(tmp_path: Path) -> None:
    child = python(PARENT, tmp_path / "log")
    await child.start()
    await until(child.tail)
    grandchild = int(child.tail())
    await child.stop(5)
    await until(lambda: not process.is_alive(grandchild))


async def test_a_program_that_does_not_exist_says_so_in_its_log(tmp_path: Path) -> None:
    child = Child(["/no/such/program"], tmp_path / "log", env={})
    await child.start()
    assert await child.wait() == 127
    assert "cannot run /no/such/program: No such file or directory" in child.tail()


async def test_a_child_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    code = (
        "import asyncio,sys,pathlib; from mesh.local.process import Child\n"
        "async def main():\n c = Child([sys.executable,'-c',sys.argv[1]], pathlib.Path(sys.argv[2]), env={})\n"
        " await c.start(); print(c.pid, flush=True); await asyncio.sleep(600)\nasyncio.run(main())"
    )
    argv = [sys.executable, "-c", code, STUBBORN, str(tmp_path / "log")]
    runner = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert runner.stdout
    pid = int(await runner.stdout.readline())
    assert process.is_alive(pid)
    runner.kill()
    await runner.wait()
    await until(lambda: not process.is_alive(pid))


async def test_leftovers_are_found_by_their_mark_alone(tmp_path: Path) -> None:
    marked, other = python(STUBBORN, tmp_path / "a", MARK="mine"), python(STUBBORN, tmp_path / "b", MARK="mine2")
    await marked.start()
    await other.start()
    await until(lambda: "on" in marked.tail() and "on" in other.tail())
    assert process.end_leftovers("MARK=mine") == [marked.pid]
    assert await marked.wait() == -signal.SIGKILL
    assert other.pid
    await other.stop(0)


async def test_a_program_that_ends_is_noticed_at_once_and_started_again(tmp_path: Path) -> None:
    program, events = Flaky(tmp_path / "log", failures=0), list[str]()
    keeper = keep(program, events)
    await keeper.ready()
    first = program.pid
    assert first
    os.kill(first, signal.SIGKILL)
    await until(lambda: keeper.up and program.pid not in (None, first))
    assert events == ["ended (killed by SIGKILL), starting it again", "again"]
    assert keeper.restarts == 1
    await keeper.stop()
    assert program.pid is None
    assert not keeper.up


async def test_a_program_may_fail_twice_before_it_is_up(tmp_path: Path) -> None:
    program = Flaky(tmp_path / "log", failures=2)
    keeper = keep(program)
    await keeper.ready()
    assert program.starts == 3
    await keeper.stop()


async def test_a_program_that_fails_three_times_at_first_is_given_up(tmp_path: Path) -> None:
    program = Flaky(tmp_path / "log", failures=9)
    keeper = keep(program)
    with pytest.raises(StartError, match="not yet"):
        await keeper.ready()
    assert program.starts == 3
    await keeper.stop()


async def test_what_will_not_pass_is_not_tried_again(tmp_path: Path) -> None:
    program = Flaky(tmp_path / "log", failures=9, error=StateError("another version"))
    keeper = keep(program)
    with pytest.raises(StateError):
        await keeper.ready()
    assert program.starts == 1
    await keeper.stop()


async def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    keeper = keep(Flaky(tmp_path / "log", failures=9, error=OSError(28, "No space left on device", "/x")))
    with pytest.raises(DiskFullError, match="/x"):
        await keeper.ready()
    await keeper.stop()


def test_backoff_doubles_with_jitter_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FIRST_DELAY", 0.25)
    for failures, longest in ((1, 0.25), (2, 0.5), (4, 2.0), (50, process.MAX_DELAY)):
        delays = [process.backoff(failures) for _ in range(50)]
        assert longest / 2 <= min(delays) < max(delays) <= longest


async def test_a_large_log_is_put_aside_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 10)
    log = tmp_path / "log"
    log.write_text("old and large enough")
    child = python("print('new')", log)
    await child.start()
    await child.wait()
    assert log.read_text() == "new\n"
    assert (tmp_path / "log.1").read_text() == "old and large enough"


def test_a_structured_log_line_is_shown_as_its_message_and_its_error() -> None:
    line = '{"message": "the service stopped", "exception": "Traceback ...\\n  File ...\\nTypeError: not a str"}'
    assert process.readable(line) == "the service stopped: TypeError: not a str"
    for plain in ("plain text", "[1]", "3", '{"other": 1}'):
        assert process.readable(plain) == plain


async def test_a_patient_keeper_does_not_give_up(tmp_path: Path) -> None:
    program = Flaky(tmp_path / "log", failures=5)
    keeper = Keeper("x", program, changed=lambda: None, report=lambda *_: None, patient=True)
    keeper.start()
    await keeper.ready()
    assert program.starts == 6
    await keeper.stop()
