"""Takes out of a message what the contract marks sensitive, and all that the contract does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import any_pb2, message_factory
from google.protobuf.message import DecodeError, Message
from nourish.mesh.v1 import policy_pb2

Field = Any  # a FieldDescriptor: protobuf has two classes of that name, and its types give now one, now both
ANY = "google.protobuf.Any"


def is_sensitive(field: Field) -> bool:
    """Whether the contract marks it as personal or secret."""
    return bool(field.GetOptions().Extensions[policy_pb2.field].sensitive)


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


def mask(message: Message) -> list[str]:
    """Clears the message's sensitive fields in place, at any depth, and says which by path.

    A field is cleared and not replaced: a made-up value could be taken for a true one. Unknown fields are dropped, for
    nothing says that they are not sensitive; so is the value of an Any whose type the contract does not have.
    """
    masked = list(_masked(message, ""))
    message.DiscardUnknownFields()
    return masked


def _masked(message: Message, prefix: str) -> Iterator[str]:
    if message.DESCRIPTOR.full_name == ANY:
        yield from _masked_any(message, prefix)
        return
    for field, value in message.ListFields():
        path = f"{prefix}.{field.name}" if prefix else field.name
        if is_sensitive(field):
            message.ClearField(field.name)
            yield path
        else:
            for name, part in _messages(field, value, path):
                yield from _masked(part, name)


def _masked_any(message: Any, prefix: str) -> Iterator[str]:
    held = unpacked(message)
    if held is None:
        if message.value:
            message.ClearField("value")
            yield prefix
        return
    yield from _masked(held, prefix)
    held.DiscardUnknownFields()
    message.value = held.SerializeToString(deterministic=True)


def _messages(field: Field, value: Any, path: str) -> Iterator[tuple[str, Message]]:
    """The messages that a field holds, each with its path."""
    if field.message_type is None:
        return
    if is_map(field):
        if field.message_type.fields_by_name["value"].message_type is not None:
            for key in value:
                yield f"{path}[{key}]", value[key]
    elif field.is_repeated:
        for index, part in enumerate(value):
            yield f"{path}[{index}]", part
    else:
        yield path, value
