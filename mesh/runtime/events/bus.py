"""`carry`: the relay and all consumers of one process, in the background, for as long as a block runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from mesh.runtime.backoff import Backoff
from mesh.runtime.db import Database
from mesh.runtime.environment import environment, required
from mesh.runtime.events import subjects
from mesh.runtime.events.consumer import GroupConsumer, InstanceConsumer, Work
from mesh.runtime.events.relay import Relay
from mesh.runtime.events.server import Server
from mesh.runtime.events.subscriptions import marked

AGAIN = Backoff("exponential", first=0.1, limit=5.0)
STOP_SECONDS = 4.0  # of the 20 that a process has, 15 are for calls

_log = logging.getLogger("mesh.runtime.events")


class Part(Protocol):
    """Something that runs until it is stopped, and may be run again when it failed."""

    async def run(self) -> None:
        """Works until it is stopped or has done all."""

    def stop(self) -> None:
        """Ends `run` soon."""


class Events:
    """What carries events in this process."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def check(self) -> None:
        """Returns if the events server is there. Without it calls are served all the same, and events wait.

        Raises:
            ConnectionError: it is not.
        """
        if not self._server.connected:
            raise ConnectionError("the events server cannot be reached")


@asynccontextmanager
async def carry(db: Database | None, *subscribers: object, url: str | None = None) -> AsyncIterator[Events]:
    """Relays what the service publishes and gives `subscribers` what they take, while the block runs.

    It begins whether or not the events server is there, and catches up when it is. The end lets running handlers
    finish, and sends what the outbox holds, for a few seconds.

    Args:
        db: the service's database; None for one that only observes.
        subscribers: objects with methods marked by `subscribe` or `observe`.
        url: `nats://...`; the runner's NOURISH_EVENTS_URL if not given.

    Raises:
        RuntimeError: no URL.
        TypeError: a method subscribes, and there is no database to note what was handled.
    """
    address = url or required(environment().events_url, "NOURISH_EVENTS_URL")
    server = Server()
    parts = list(_parts(server, db, subscribers))
    running = asyncio.create_task(_run(server, address, parts), name="events")
    try:
        yield Events(server)
    finally:
        for part in parts:
            part.stop()
        try:
            if server.connected:
                await asyncio.wait_for(asyncio.shield(running), STOP_SECONDS)
        except TimeoutError:
            _log.warning("events were still being handled or sent: they will be again")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await server.close()


def _parts(server: Server, db: Database | None, subscribers: Sequence[object]) -> Iterator[Part]:
    work = Work.on(db) if db else None
    if db:
        yield Relay(db, server)
    for subscriber in subscribers:
        for subscription, handle in marked(subscriber):
            if subscription.every_instance:
                yield InstanceConsumer(server, subscription, handle)
            elif work is None:
                raise TypeError(f"{subscription.name}: `subscribe` needs a database; `observe` does not")
            else:
                group = subscription.group or required(environment().service, "NOURISH_SERVICE")
                for partition in range(subjects.PARTITIONS):
                    yield GroupConsumer(server, subscription, handle, work, group=group, partition=partition)


async def _run(server: Server, address: str, parts: Sequence[Part]) -> None:
    await server.connect(address, environment().instance)
    await asyncio.gather(*(keep(part) for part in parts))


async def keep(part: Part) -> None:
    """Runs a part until it ends by itself; after a failure again, with back-off."""
    failures = 0
    while True:
        began = asyncio.get_running_loop().time()
        try:
            await part.run()
        except Exception as error:  # noqa: BLE001 - an engine that is not there must not end the others
            failures = failures + 1 if asyncio.get_running_loop().time() - began < AGAIN.limit else 1
            _log.warning("events wait for an engine", extra={"part": type(part).__name__, "error": repr(error)})
            await asyncio.sleep(AGAIN.seconds(failures))
        else:
            return
