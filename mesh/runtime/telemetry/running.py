"""All of it together, around a process that serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from mesh.runtime.environment import environment
from mesh.runtime.telemetry import private


@asynccontextmanager
async def running() -> AsyncIterator[None]:
    """Tells whoever asks on this process's socket, and sends to the collector if the values name one."""
    where = environment()
    async with AsyncExitStack() as stack:
        if where.telemetry:
            stack.enter_context(private.answering(Path(where.telemetry)))
        if where.otlp:
            from mesh.runtime.telemetry import otlp  # noqa: PLC0415 - its messages cost what few processes need

            await stack.enter_async_context(otlp.sending(where.otlp, where.sampled))
        yield
