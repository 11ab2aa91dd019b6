"""Where an event goes, by its contract alone: its stream, its subject, the names of those that take it. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf import descriptor
from google.protobuf.message import Message
from nourish.mesh.v1 import policy_pb2

# Events of one partition are handled one after the other, those of one key are in one partition. Another number makes
# new consumers, which begin with all that the streams hold; the inbox knows what was handled.
PARTITIONS = 8
EVENT_HEADER = "nourish-event"  # the event's id, the same however often it is sent
KEY_HEADER = "nourish-key"
TIME_HEADER = "nourish-time"
ONLY_HEADER = "nourish-only"  # the one group that takes it: a dead letter that is replayed
PREFIX = "nourish."
STREAM_PREFIX = "events-"
PLATFORM = "mesh"  # the owner of events that any service publishes


def key_of(message: Message) -> str:
    """The value by which the contract keeps the event's order.

    Raises:
        TypeError: the contract does not mark the message as an event.
    """
    options = message.DESCRIPTOR.GetOptions()
    if not options.HasExtension(policy_pb2.event):
        raise TypeError(f"{message.DESCRIPTOR.full_name} is no event: give it option (nourish.mesh.v1.event)")
    return str(getattr(message, options.Extensions[policy_pb2.event].key))


def one_line(key: str) -> str:
    """A key as a header can hold it: readable, for people; the partition is of the key itself."""
    return key.encode("ascii", "backslashreplace").decode().replace("\r", "\\r").replace("\n", "\\n")


def owner(full_name: str) -> str:
    """The service that publishes an event: "nourish.food.v1.FoodsImported" is food's.

    Raises:
        ValueError: it is no message of a service's package.
    """
    parts = full_name.split(".")
    if len(parts) != 4 or not full_name.startswith(PREFIX):
        raise ValueError(f"{full_name} is no message of a package nourish.<service>.v<n>")
    return parts[1]


def stream(service: str) -> str:
    """The stream of all events of a service."""
    return f"{STREAM_PREFIX}{service}"


def partition(key: str) -> int:
    """The partition of a key, everywhere the same."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % PARTITIONS


def subject(full_name: str, number: int | str) -> str:
    """The subject of an event in a partition, or in all of them ("*")."""
    return f"{full_name}.{number}"


def full_name(subject_: str) -> str:
    """The message's name in a subject."""
    return subject_.rpartition(".")[0]


def taker(group: str, name: str) -> str:
    """A group's name for its handling of an event: what the inbox notes."""
    return f"{group}_{name.removeprefix(PREFIX).replace('.', '-')}"


def consumer(group: str, name: str, number: int) -> str:
    """The durable consumer by which a group takes a partition of an event."""
    return f"{taker(group, name)}_{number}"


def group_of(name: str) -> tuple[str, str]:
    """The group and the event of a consumer's name, such as ("planner", "food-v1-FoodsImported")."""
    group, event, _ = name.split("_", 2)
    return group, event


def descriptor_of(event: type[Message]) -> descriptor.Descriptor:
    """The descriptor of a message class, which must be an event.

    Raises:
        TypeError, ValueError: as `key_of` and `owner` do.
    """
    found: Any = event.DESCRIPTOR
    key_of(event())
    owner(found.full_name)
    return found  # type: ignore[no-any-return]
