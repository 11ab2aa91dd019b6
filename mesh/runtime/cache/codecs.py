"""Values as bytes: protobuf messages as they are, plain data as msgpack."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import Message

T = TypeVar("T")


class Codec(Protocol[T]):
    """Bytes of one type."""

    @property
    def fingerprint(self) -> bytes:
        """Of the type as it is defined: bytes of another definition are not read as this one."""

    def encode(self, value: T) -> bytes:
        """The value as bytes.

        Raises:
            TypeError: it is no such value.
        """

    def decode(self, data: bytes) -> T:
        """A value of the caller's own.

        Raises:
            ValueError: the bytes are none.
        """


def of(kind: type[T]) -> Codec[T]:
    """The codec of a message class, a dataclass, a NamedTuple, a built-in type or a container of them.

    Raises:
        TypeError: a type that msgpack cannot hold.
    """
    if isinstance(kind, type) and issubclass(kind, Message):
        return _Protobuf(kind)
    return _Msgpack(kind)


class _Protobuf:
    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self.decode = kind.FromString

    @property
    def fingerprint(self) -> bytes:
        parts = sorted(_definitions(self._kind.DESCRIPTOR, set()))
        return hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()

    def encode(self, value: Any) -> bytes:
        if type(value) is not self._kind:
            raise TypeError(f"{type(value).__name__} came where the cache holds {self._kind.__name__}")
        return bytes(value.SerializeToString())


class _Msgpack:
    def __init__(self, kind: Any) -> None:
        import msgspec  # noqa: PLC0415 - only for caches of plain data

        self._kind = kind
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder(kind).decode  # checks what it reads: a ValidationError is a ValueError

    @property
    def fingerprint(self) -> bytes:
        import msgspec  # noqa: PLC0415

        schema = msgspec.json.encode(msgspec.json.schema(self._kind), order="deterministic")
        return hashlib.blake2b(schema, digest_size=8).digest()


def _definitions(found: Descriptor, seen: set[str]) -> Iterator[bytes]:
    """The definitions of a message and of all that it is made of."""
    if found.full_name in seen:
        return
    seen.add(found.full_name)
    yield _definition(found, descriptor_pb2.DescriptorProto())
    for field in found.fields:
        if field.message_type is not None:
            yield from _definitions(field.message_type, seen)
        if field.enum_type is not None and field.enum_type.full_name not in seen:
            seen.add(field.enum_type.full_name)
            yield _definition(field.enum_type, descriptor_pb2.EnumDescriptorProto())


def _definition(found: Descriptor | EnumDescriptor, proto: Any) -> bytes:
    found.CopyToProto(proto)
    return found.full_name.encode() + b"\0" + bytes(proto.SerializeToString(deterministic=True))
