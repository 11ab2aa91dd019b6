"""Health that means it: a process is SERVING while what it needs works.

The rule. A need is an engine that this process itself holds: its database, its event stream. Other services are none:
a call to one that is down fails by itself, and a chain of processes that declare themselves ill for one another would
take down all that still works. A need that fails once is not news: only FAILURES checks in a row, some seconds, make
the process NOT_SERVING, and one good check makes it SERVING again. When every instance of a service is ill at once,
for they share an engine, the sidecars still send to them rather than to nobody, so that what needs no engine answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

SECONDS = 2.0  # between checks, and the most that one may take
FAILURES = 3

Check = Callable[[], Awaitable[None]]

_needs: dict[str, list[Check]] = {}
_log = logging.getLogger("mesh.runtime")


@contextmanager
def needing(name: str, check: Check) -> Iterator[None]:
    """Makes `check`, which raises what is wrong, a part of this process's health while the block runs."""
    _needs.setdefault(name, []).append(check)
    try:
        yield
    finally:
        _needs[name].remove(check)


class Watch:
    """Checks the needs of this process in turns, and sets what its health service answers for `services`."""

    def __init__(self, checks: HealthServicer, services: Sequence[str]) -> None:
        self._checks = checks
        self._services = services
        self._failures: dict[str, int] = {}
        self._serving = True

    async def run(self, seconds: float = SECONDS) -> None:
        """Checks until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await self.check(seconds)

    async def check(self, seconds: float = SECONDS) -> None:
        """Checks everything once, each for so long at most."""
        found = {name: await _problem(checks, seconds) for name, checks in _needs.items()}
        for name, problem in found.items():
            self._failures[name] = self._failures.get(name, 0) + 1 if problem else 0
        down = {name: found[name] for name in found if self._failures[name] >= FAILURES}
        if down and self._serving:
            _log.error("not serving: what this process needs does not work", extra={"needs": down})
        elif not down and not self._serving:
            _log.info("serving again")
        if bool(down) == self._serving:
            self._serving = not down
            await self._tell()

    async def _tell(self) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if self._serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._services:
            await self._checks.set(name, status)


async def _problem(checks: Sequence[Check], seconds: float) -> str:
    try:
        async with asyncio.timeout(seconds):
            for check in checks:
                await check()
    except Exception as error:  # noqa: BLE001 - whatever it is, it does not work
        return f"{type(error).__name__}: {error}"
    return ""
