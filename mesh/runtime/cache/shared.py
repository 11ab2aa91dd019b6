"""The tier that the instances of a service share: a bucket of NATS KV, which may be away at any time."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, KeyNotFoundError, KeyWrongLastSequenceError, NoStreamResponseError
from nats.js.kv import KeyValue

from mesh.runtime.backoff import Backoff
from mesh.runtime.cache import keys
from mesh.runtime.cache.keys import Key
from mesh.runtime.cache.tier import SharedError
from mesh.runtime.events.server import Server

BUCKET_BYTES = 16 << 20  # of one service; full, it gives up what was stored first
# Under the seven days for which events are kept: nobody reads a value that is older than the events which clear it.
BUCKET_SECONDS = 24 * 3600.0
ANSWER_SECONDS = 0.05  # a load is usually as quick as what takes longer
FAILURES = 3  # in a row: then nobody asks for a while
AWAY = Backoff("exponential", first=0.5, limit=10.0)


class Bucket:
    """The bucket of one service. It never takes longer than `seconds`, and is not asked while it is away."""

    def __init__(self, server: Server, service: str, seconds: float = ANSWER_SECONDS) -> None:
        self._server = server
        self._seconds = seconds
        self._name = f"cache-{service}"
        self._circuit = Circuit()
        self._values: KeyValue | None = None
        self._gone = asyncio.Event()
        self._subject = f"{self._name}.forgotten"
        self._own = secrets.token_bytes(8)  # what this process tells begins with it
        self.listeners: dict[str, Callable[[Key], None]] = {}  # by space

    async def run(self) -> None:
        """Hears what others forget; makes the bucket, and again whenever it is gone: it is in the server's memory.

        Raises:
            Error, OSError, TimeoutError: it cannot be made now; run it again.
        """
        await self._server.hear(self._subject, self._told)
        while True:
            await self.open()
            await self._gone.wait()
            self._gone.clear()

    def stop(self) -> None:
        """It has nothing to finish."""

    async def open(self) -> None:
        """Makes the bucket unless it is there.

        Raises:
            Error, OSError, TimeoutError: it cannot be made now.
        """
        config = bucket_config(self._name)
        try:
            await self._server.streams.add_stream(config)
        except BadRequestError:  # it has other settings
            await self._server.streams.update_stream(config)
        stream = self._server.jetstream(self._seconds)
        self._values = KeyValue(self._name, str(config.name), f"$KV.{self._name}.", stream, direct=True)

    @property
    def usable(self) -> bool:
        """Whether it is worth asking."""
        return self._values is not None and self._server.connected and self._circuit.closed()

    async def get(self, key: str) -> tuple[bytes | None, int]:
        """What is stored, None if nothing, and as which revision of the key: 0 if there never was one.

        Raises:
            SharedError: no answer in time.
        """
        assert self._values is not None
        try:
            entry = await self._values.get(key)
            value, revision = entry.value or b"", entry.revision
        except KeyNotFoundError as error:  # deleted, it has a revision too
            value, revision = None, error.entry.revision if error.entry else 0
        except (NatsError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        self._circuit.succeeded()
        return value, revision or 0

    async def put(self, key: str, data: bytes, revision: int) -> None:
        """Stores a value, unless there is another revision by now.

        Raises:
            SharedError: as far as is known, it did not.
        """
        assert self._values is not None
        try:
            await self._values.update(key, data, last=revision)
        except KeyWrongLastSequenceError:
            pass
        except (NatsError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        self._circuit.succeeded()

    async def delete(self, key: str) -> None:
        """Stores that there is nothing.

        Raises:
            SharedError: as far as is known, it did not.
        """
        assert self._values is not None
        try:
            await self._values.delete(key)
        except (NatsError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        self._circuit.succeeded()

    async def tell(self, space: str, key: Key) -> None:
        """Tells the other processes that a key of theirs is forgotten: those that hear it now.

        Raises:
            SharedError: this process is not connected.
        """
        try:
            await self._server.tell(self._subject, self._own + space.encode() + b" " + keys.encoded(key))
        except (NatsError, OSError) as error:
            raise self._failed(error) from error

    async def _told(self, message: Msg) -> None:
        space, _, key = message.data[len(self._own) :].partition(b" ")
        forget = self.listeners.get(space.decode(errors="replace"))
        if forget and not message.data.startswith(self._own):
            with suppress(ValueError):  # nobody's key
                forget(keys.decoded(key))

    def _failed(self, error: Exception) -> SharedError:
        self._circuit.failed()
        if isinstance(error, NoRespondersError | NoStreamResponseError):
            self._values = None
            self._gone.set()
        return SharedError(repr(error))


class Circuit:
    """Open after FAILURES in a row, for longer each time; then one may try."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._again = 0.0

    def closed(self) -> bool:
        """Whether to ask. While it is open, true for one in a while, whose success closes it."""
        if self._failures < FAILURES:
            return True
        if self._clock() < self._again:
            return False
        self._wait()
        return True

    def failed(self) -> None:
        """One more."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._wait()

    def succeeded(self) -> None:
        """It is there."""
        self._failures = 0

    def _wait(self) -> None:
        self._again = self._clock() + AWAY.seconds(self._failures - FAILURES + 1)


def bucket_config(name: str) -> StreamConfig:
    """The stream below a bucket, as `nats kv` makes it but for one thing: full, it forgets the oldest."""
    return StreamConfig(
        name=f"KV_{name}",
        description="what instances of a service have cached for one another",
        subjects=[f"$KV.{name}.>"],
        storage=StorageType.MEMORY,
        max_bytes=BUCKET_BYTES,
        max_age=BUCKET_SECONDS,
        max_msgs_per_subject=1,
        discard=DiscardPolicy.OLD,
        allow_direct=True,
        allow_rollup_hdrs=True,
        duplicate_window=1.0,
    )
