"""Runs a service's `main` as a process: logs, event loop, exit status."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from mesh.runtime import logs, notify


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs `main` on uvloop until it returns or SIGTERM or SIGINT comes; a failure is logged and exits with 1."""
    logs.configure()
    try:
        uvloop.run(_until_signalled(main))
    except asyncio.CancelledError:
        pass  # stopped while it was still starting
    except Exception:
        logging.getLogger(__name__).exception("the service stopped on an error")
        sys.exit(1)


async def _until_signalled(main: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.ensure_future(main())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Cancels a main that is still preparing; `serve` replaces these by its own drain once it serves.
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    finally:
        notify.stopping()
