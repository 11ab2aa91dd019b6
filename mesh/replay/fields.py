"""What the contract says of a field: sensitive, volatile; and what kind of field it is."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2, message_factory
from google.protobuf.message import DecodeError, Message
from nourish.mesh.v1 import policy_pb2

Field = Any  # a FieldDescriptor: protobuf has two classes of that name, and its types give now one, now both
ANY = "google.protobuf.Any"


def is_sensitive(field: Field) -> bool:
    """Whether the contract marks it as personal or secret."""
    return bool(field.GetOptions().Extensions[policy_pb2.field].sensitive)


def is_volatile(field: Field) -> bool:
    """Whether it differs between two correct answers."""
    return bool(field.GetOptions().Extensions[policy_pb2.field].volatile)


def is_map(field: Field) -> bool:
    """Whether it is a map; protobuf stores it as a repeated entry."""
    entry = field.message_type
    return bool(entry is not None and entry.GetOptions().map_entry)


def unpacked(message: Message) -> Message | None:
    """What an Any holds; None if its type is not in the contract's pool, or its bytes are not of that type."""
    descriptor: Any = message.DESCRIPTOR
    held = any_pb2.Any.FromString(message.SerializeToString())
    try:
        kind = descriptor.file.pool.FindMessageTypeByName(held.TypeName())
        return message_factory.GetMessageClass(kind).FromString(held.value)
    except (KeyError, DecodeError):
        return None
