"""The one place for work that would hold up the event loop: threads for what waits, processes for what computes.

Both pools are made on first use and are bounded by the settings: what is over the bound waits for its turn, and is not
begun when the call's deadline has passed before. Work that has begun cannot be stopped from outside; the wait for it
can. `auth` answers inside the work as it does in the handler, `auth.time_left()` too.
"""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from typing import ParamSpec, TypeVar

from mesh.runtime import auth
from mesh.runtime.auth import CallInfo
from mesh.runtime.environment import environment

P = ParamSpec("P")
T = TypeVar("T")


async def blocking(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Does in a thread what blocks: files, libraries that wait, and C code that lets other threads run meanwhile.

    Raises:
        TimeoutError: the deadline of the call passed.
    """
    context = contextvars.copy_context()
    return await _within_deadline(_threads(), lambda: context.run(work, *args, **kwargs))


async def computing(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Does in another process what keeps a core busy in Python. Work, arguments and result are pickled.

    A process imports what the work needs, and `__main__`, which must do nothing when it is imported.

    Raises:
        TimeoutError: the deadline of the call passed.
    """
    return await _within_deadline(_processes(), partial(_carried, auth.current.get(), work, *args, **kwargs))


def _carried(call: CallInfo, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Does work in another process for the call that it is for."""
    token = auth.current.set(call)
    try:
        return work(*args, **kwargs)
    finally:
        auth.current.reset(token)


async def _within_deadline(pool: Executor, work: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(auth.time_left()):
        return await loop.run_in_executor(pool, work)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(environment().threads, thread_name_prefix="blocking")


@cache
def _processes() -> ProcessPoolExecutor:
    # Neither a copy of this process nor its child by fork: gRPC does not survive one.
    return ProcessPoolExecutor(environment().processes, mp_context=multiprocessing.get_context("spawn"))
