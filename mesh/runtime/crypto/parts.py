"""The two parts of a message: what the contract marks sensitive, and the rest. Pure."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from google.protobuf import any_pb2, descriptor_pool
from google.protobuf.message import Message

from mesh.runtime.sensitive import ANY, Field, is_sensitive

M = TypeVar("M", bound=Message)


@cache
def has_sensitive(descriptor: Any) -> bool:
    """Whether the contract marks a field of such a message, at any depth."""
    return any(is_sensitive(field) for kind in _within(descriptor) for field in kind.fields)


@cache
def may_be_sensitive(descriptor: Any) -> bool:
    """Whether it has such a field, or holds anything whatever."""
    return has_sensitive(descriptor) or any(kind.full_name == ANY for kind in _within(descriptor))


def _within(descriptor: Any) -> list[Any]:
    """The kinds of messages that such a message is made of."""
    found, waiting = {}, [descriptor]
    while waiting:
        kind = waiting.pop()
        if kind.full_name not in found:
            found[kind.full_name] = kind
            waiting += [field.message_type for field in kind.fields if field.message_type]
    return list(found.values())


def take_out(message: M) -> M:
    """Moves what is sensitive out of `message` into another, which merged into it gives the whole again.

    A list or map of messages with sensitive fields is moved as a whole: merged lists would be twice as long.
    """
    taken = type(message)()
    if message.DESCRIPTOR.full_name == ANY:
        _take_held(message, taken)
        return taken
    for field, value in message.ListFields():
        kind = field.message_type
        if is_sensitive(field) or (field.is_repeated and kind and may_be_sensitive(kind)):
            _move(message, taken, field)
        elif kind and not field.is_repeated and may_be_sensitive(kind):
            part = take_out(value)
            if part.ByteSize():
                getattr(taken, field.name).CopyFrom(part)
    return taken


def _take_held(message: Any, taken: Any) -> None:
    """Of an Any the value, if it is sensitive or nobody knows."""
    held = any_pb2.Any(type_url=message.type_url)
    try:
        kind = descriptor_pool.Default().FindMessageTypeByName(held.TypeName())
    except KeyError:
        kind = None
    if kind is None or may_be_sensitive(kind):
        taken.value = message.value
        message.ClearField("value")


def _move(message: Message, taken: Message, field: Field) -> None:
    name = field.name
    if field.is_repeated:
        getattr(taken, name).MergeFrom(getattr(message, name))
    elif field.message_type:
        getattr(taken, name).CopyFrom(getattr(message, name))
    else:
        setattr(taken, name, getattr(message, name))
    message.ClearField(name)
