"""Starts processes by forking one that has loaded all they need: in 20 ms, where Python takes seconds."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

LONGEST_SECONDS = 60  # then a process that was forgotten is ended by SIGALRM; one that is kept puts it off


class Forks:
    """The process to fork from."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, target: str, *arguments: Any) -> int:
        """Runs a coroutine function, "package.module:function", with JSON values; the pid."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([target, *arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def forks() -> Iterator[Forks]:
    """A process to fork from; it ends with the block, what it started does not."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-m", __name__], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Forks(process)
        finally:
            process.kill()


async def ended(pid: int, seconds: float = LONGEST_SECONDS) -> bool:
    """Waits for a process to end; kills it, and says so, if it does not in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, over.set)
    try:
        await asyncio.wait_for(over.wait(), seconds)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        return False
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return True


def _fork_forever() -> None:
    import protovalidate
    from sqlalchemy.ext.asyncio import create_async_engine

    create_async_engine("postgresql+asyncpg://")  # loads what else each process would load
    for module in ("alembic.command", *(f"{__package__}.{name}_crashing" for name in ("sagas", "two_phase", "leader"))):
        import_module(module)
    from mesh.runtime.tests import shop

    protovalidate.validate(shop.pb.Order())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits: they are gone when their pid is
    for line in sys.stdin:
        if child := os.fork():
            print(child, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.alarm(LONGEST_SECONDS)
        logging.disable()
        target, *arguments = json.loads(line)
        module, _, name = target.partition(":")
        try:
            asyncio.run(getattr(import_module(module), name)(*arguments))
        finally:
            os._exit(1)


if __name__ == "__main__":
    _fork_forever()
