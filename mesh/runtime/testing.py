"""For tests of services: a real server on a real channel in this process. Fakes, not mocks.

The plug-in `mesh.pytest` gives what needs engines: the fixtures `postgres_url`, `events_url`, `mesh_up`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message

from mesh.runtime import auth, errors, settings
from mesh.runtime.answers import digest, key_of
from mesh.runtime.client import passing_on
from mesh.runtime.db import current as current_database
from mesh.runtime.handlers import MethodInfo
from mesh.runtime.server import build_server


@asynccontextmanager
async def serve_in_memory(*servicers: object) -> AsyncIterator[grpc.aio.Channel]:
    """Serves with all of the middleware on a private socket; gives the channel to make stubs on.

    Answers to request_ids are kept in the open database, or in memory if a test has none.
    """
    answers = None if current_database() else MemoryAnswers()
    with tempfile.TemporaryDirectory(prefix="nourish-") as folder:
        built = build_server(*servicers, answers=answers)
        built.grpc.add_insecure_port(f"unix:{folder}/app.sock")
        await built.grpc.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/app.sock") as channel:
            try:
                yield passing_on(channel)
            finally:
                await built.grpc.stop(None)


class MemoryAnswers:
    """Keeps what each request_id was answered, for tests of services whose store is a fake."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], tuple[bytes, Message]] = {}
        self._turns: defaultdict[tuple[str, ...], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def once(self, method: MethodInfo, request: Any, make: Callable[[], Awaitable[Message]]) -> Message:
        """As `answers.Answers` says."""
        key, body = tuple(key_of(method, request).values()), digest(request)
        async with self._turns[key]:
            if key not in self._kept:
                self._kept[key] = body, await make()
        earlier, answer = self._kept[key]
        if earlier != body:
            raise errors.request_id_reused()
        return answer


def as_user(user: str, *scopes: str, caller: str = "edge") -> tuple[tuple[str, str], ...]:
    """The metadata that a sidecar would set after verifying the token of `user`."""
    certificate = f"URI=spiffe://nourish.local/ns/nourish/sa/{caller}"
    return (
        (auth.USER_HEADER, user),
        (auth.SCOPES_HEADER, " ".join(scopes)),
        (auth.CERTIFICATE_HEADER, certificate),
    )


@contextmanager
def with_settings(given: Mapping[str, settings.Scalar]) -> Iterator[None]:
    """As if the values said so, `{"search.minScore": 0.5}`, and nothing else."""
    before = settings.process.given
    settings.process.take(given)
    try:
        yield
    finally:
        settings.process.take(before)
