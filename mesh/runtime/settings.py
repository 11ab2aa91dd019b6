"""`setting`: what the values give this service to read while it runs, always as it is now.

    MIN_SCORE = setting("search.minScore", 0.3, within=(0, 1))
    ...
    if score < MIN_SCORE.value: ...

The name stands in the values under `services.<name>.settings`. Where they do not have it, or there is no mesh, the
default holds; a control plane that is away changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
from nourish.mesh.v1.settings_pb2 import WatchSettingsRequest, WatchSettingsResponse
from nourish.mesh.v1.settings_pb2_grpc import SettingsServiceStub

from mesh.runtime import options
from mesh.runtime.backoff import Backoff
from mesh.runtime.client import egress
from mesh.runtime.environment import environment

if TYPE_CHECKING:
    from nourish.mesh.v1.settings_pb2_grpc import SettingsServiceAsyncStub

SERVICE_HEADER = "x-nourish-service"
FIRST_SECONDS = 1.0  # how long a start waits for its settings
AGAIN = Backoff(first=0.2, limit=5.0)  # between two attempts to watch: as the proxies have it

Scalar = str | float | bool
T = TypeVar("T", bound=Scalar)

_log = logging.getLogger(__name__)
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class Setting(Generic[T]):
    """One setting. `value` has the type of `default`, whatever the values say."""

    def __init__(self, name: str, default: T, within: tuple[float, float] | None) -> None:
        self.name = name
        self.default = default
        self.within = within
        self._value = default
        self._given: Scalar | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def value(self) -> T:
        """As it is now."""
        return self._value

    def changes(self) -> AsyncIterator[T]:
        """Yields each value that it takes from now on; of several in quick succession, the last."""
        return self._changes(self._value)

    async def _changes(self, seen: T) -> AsyncIterator[T]:
        while True:
            while self._value == seen:
                waiter = asyncio.get_running_loop().create_future()
                self._waiting.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiting.discard(waiter)
            seen = self._value
            yield seen

    def take(self, given: Scalar | None) -> None:
        """What the values say now, None if nothing. What is of no use is logged, and the last good value stays."""
        if given == self._given and type(given) is type(self._given):
            return
        self._given = given
        new: Any = self.default if given is None else _converted(given, type(self.default))
        if new is None or (self.within and not self.within[0] <= new <= self.within[1]):
            between = f" from {self.within[0]:g} to {self.within[1]:g}" if self.within and new is not None else ""
            _log.error(
                "%s: %r is not %s%s; it stays %r",
                *(self.name, given, _KINDS[type(self.default)], between, self._value),
            )
        elif new != self._value:
            _log.info("%s: %r -> %r", self.name, self._value, new)
            self._value = new
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(None)


def setting(name: str, default: T, *, within: tuple[float, float] | None = None) -> Setting[T]:
    """Declares a setting, or returns it if it is declared already.

    Args:
        name: as the values have it, "search.minScore".
        default: what holds without it; its type is the setting's.
        within: the least and the greatest number that make sense.

    Raises:
        ValueError: it is declared with another default or other bounds.
    """
    return process.declare(Setting(name, default, within))


class Process:
    """All settings of this process, and what the values say."""

    def __init__(self) -> None:
        self.given: Mapping[str, Scalar] = {}
        self._known: dict[str, Setting[Any]] = {}
        self._unread: list[str] = []
        self._wanted: asyncio.Event | None = None
        self._hearers: list[Callable[[WatchSettingsResponse], None]] = []

    def hear(self, answer: Callable[[WatchSettingsResponse], None]) -> None:
        """Has `answer` called with all that the values say, now and then: for what is more than settings."""
        self._hearers.append(answer)
        if self._wanted:
            self._wanted.set()

    def declare(self, new: Setting[T]) -> Setting[T]:
        """Adds a setting, with what the values say of it already."""
        known = self._known.setdefault(new.name, new)
        if (type(known.default), known.default, known.within) != (type(new.default), new.default, new.within):
            raise ValueError(f"the setting {new.name!r} is declared already, with the default {known.default!r}")
        if known is new:
            known.take(self.given.get(new.name))
            if self._wanted:
                self._wanted.set()
        return known

    def take(self, given: Mapping[str, Scalar]) -> None:
        """All that the values say now."""
        self.given = given
        for name, known in self._known.items():
            known.take(given.get(name))
        unread = sorted(given.keys() - self._known.keys())
        if unread and unread != self._unread:
            _log.warning("nothing here reads %s; there is %s", ", ".join(unread), ", ".join(sorted(self._known)))
        self._unread = unread

    async def follow(self, told: asyncio.Event) -> None:
        """Watches the values for ever. `told` is set when they have been heard, or cannot be."""
        self._wanted = asyncio.Event()
        if not self._known and not self._hearers:  # a service without settings opens no stream
            told.set()
            await self._wanted.wait()
        stub, own_name = _control_plane()
        failures, away = 0, False
        while True:
            try:
                async for answer in stub.WatchSettings(WatchSettingsRequest(), metadata=own_name):
                    if away:
                        _log.info("settings are followed again")
                    failures, away = 0, False
                    self.take(_plain(answer))
                    for hearer in self._hearers:
                        hearer(answer)
                    told.set()
            except grpc.aio.AioRpcError as error:
                if not away:
                    _log.warning("settings stay as they are: %s %s", error.code().name, error.details())
                away = True
            told.set()
            failures += 1
            await asyncio.sleep(AGAIN.seconds(failures))


process = Process()


async def follow() -> asyncio.Task[None] | None:
    """Starts to follow the values. Returns once they are known, or soon after: what is not known has its default."""
    if not environment().egress:
        return None
    told = asyncio.Event()
    task = asyncio.create_task(process.follow(told))
    with suppress(TimeoutError):
        await asyncio.wait_for(told.wait(), FIRST_SECONDS)
    return task


def _control_plane() -> tuple[SettingsServiceAsyncStub, tuple[tuple[str, str], ...]]:
    """Through the sidecar, which says whose process this is; a process without one says so itself, on its socket."""
    if not environment().inbound:
        return SettingsServiceStub(egress()), ()
    from mesh.runtime.proxyless.inbound import Bootstrap  # noqa: PLC0415 - no process behind a sidecar needs it

    channel = grpc.aio.insecure_channel(Bootstrap.load().server, options=options.CLIENT)
    return SettingsServiceStub(channel), ((SERVICE_HEADER, environment().service),)


def _plain(answer: WatchSettingsResponse) -> dict[str, Scalar]:
    kinds = {name: value.WhichOneof("kind") or "" for name, value in answer.settings.items()}
    scalars = ("string_value", "number_value", "bool_value")
    return {name: getattr(answer.settings[name], kind) for name, kind in kinds.items() if kind in scalars}


def _converted(given: Scalar, kind: type) -> Any:
    """`given` as a `kind`; None if it is none. Numbers come as floats, whole or not."""
    if kind in (int, float) and isinstance(given, (int, float)) and not isinstance(given, bool):
        return kind(given) if kind is float or float(given).is_integer() else None
    return given if type(given) is kind else None
