"""Dead letters: events that a group could not handle, with the reason; kept until they are replayed or dropped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from mesh.runtime.events import subjects
from mesh.runtime.events.server import DEAD_STREAM, DEAD_SUBJECT, Server

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from nats.aio.msg import Msg

GROUP, REASON, ATTEMPTS, SUBJECT = "nourish-group", "nourish-reason", "nourish-attempts", "nourish-subject"
_OURS = (GROUP, REASON, ATTEMPTS, SUBJECT)
REASON_LETTERS = 500


@dataclass(frozen=True)
class DeadLetter:
    """One of them. `id` is its place in the stream; `headers` are the event's own."""

    id: int
    event: str  # full name of the message
    group: str
    reason: str
    attempts: int
    time: datetime | None
    subject: str
    payload: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def corrected(self, event: Message) -> DeadLetter:
        """The letter with another content: the same event still, in the place of what its key is now."""
        key = subjects.key_of(event)
        return replace(
            self,
            payload=event.SerializeToString(),
            subject=subjects.subject(self.event, subjects.partition(key)),
            headers={**self.headers, subjects.KEY_HEADER: subjects.one_line(key)},
        )


def id_of(message: Msg) -> str:
    """The event's id; one that did not come from an outbox is known by its place in its stream."""
    found = (message.headers or {}).get(subjects.EVENT_HEADER)
    return found or f"{message.metadata.stream}/{message.metadata.sequence.stream}"


async def bury(server: Server, message: Msg, group: str, error: Exception) -> None:
    """Keeps an event that `group` could not handle, once for each time it was sent."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_LETTERS]
    headers = {
        **{key: value for key, value in (message.headers or {}).items() if not key.startswith("Nats-")},
        GROUP: group,
        REASON: reason.encode("ascii", "backslashreplace").decode(),
        ATTEMPTS: str(message.metadata.num_delivered),
        SUBJECT: message.subject,
    }
    place = f"{message.metadata.stream}/{message.metadata.sequence.stream}/{group}"
    await server.publish(f"{DEAD_SUBJECT}.{group}.{message.subject}", message.data, headers, place)


async def letters(server: Server) -> AsyncIterator[DeadLetter]:
    """All of them, oldest first."""
    number = 0
    while True:
        try:
            found = await server.streams.get_msg(
                DEAD_STREAM, seq=number + 1, subject=f"{DEAD_SUBJECT}.>", next=True, direct=True
            )
        except NotFoundError:
            return
        yield _letter(found)
        number = found.seq or number + 1


async def letter(server: Server, id_: int) -> DeadLetter | None:
    """One of them; None if there is no such."""
    try:
        return _letter(await server.streams.get_msg(DEAD_STREAM, seq=id_))
    except NotFoundError:
        return None


async def replay(server: Server, found: DeadLetter) -> None:
    """Sends the event again to the group that failed, behind all that was published since; then the letter is gone.

    However often that is done, the group handles it once.
    """
    headers = {**found.headers, subjects.ONLY_HEADER: found.group}
    await server.publish(found.subject, found.payload, headers, f"replay/{found.id}")
    await drop(server, found.id)


async def drop(server: Server, id_: int) -> None:
    """Forgets a dead letter."""
    await server.streams.delete_msg(DEAD_STREAM, id_)


def _letter(found: RawStreamMsg) -> DeadLetter:
    headers = dict(found.headers or {})
    subject = headers.get(SUBJECT, "")
    return DeadLetter(
        id=found.seq or 0,
        event=subjects.full_name(subject),
        group=headers.get(GROUP, ""),
        reason=headers.get(REASON, ""),
        attempts=int(headers.get(ATTEMPTS, "0")),
        time=found.time,
        subject=subject,
        payload=found.data or b"",
        headers={k: v for k, v in headers.items() if k not in _OURS and not k.startswith("Nats-")},
    )
