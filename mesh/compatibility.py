"""Whether a service's contract still serves callers that were built with another version of it. Pure.

Wire and JSON: what a caller sends must be understood, and what it is sent must be what it expects.
"""

from __future__ import annotations

from collections.abc import Iterator

from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

_TYPES = {
    v.number: v.name.removeprefix("TYPE_").lower() for v in descriptor_pb2.FieldDescriptorProto.Type.DESCRIPTOR.values
}


def violations(known: ServiceDescriptor, served: ServiceDescriptor) -> list[str]:
    """What breaks callers that know a service as `known` when it is served as `served`, a sentence each."""
    return list(dict.fromkeys(_service(known, served)))


def _service(known: ServiceDescriptor, served: ServiceDescriptor) -> Iterator[str]:
    for name, method in known.methods_by_name.items():
        other = served.methods_by_name.get(name)
        if other is None:
            yield f"{known.full_name}: the method {name} is gone"
        else:
            yield from _method(method, other)


def _method(known: MethodDescriptor, served: MethodDescriptor) -> Iterator[str]:
    for side in ("client_streaming", "server_streaming"):
        if getattr(known, side) != getattr(served, side):
            now = "a stream" if getattr(served, side) else "one message"
            yield f"{known.full_name}: its {'requests' if side[0] == 'c' else 'answers'} are now {now}"
    yield from _message(known.input_type, served.input_type, True, set())
    yield from _message(known.output_type, served.output_type, False, set())


def _message(known: Descriptor, served: Descriptor, asked: bool, seen: set[str]) -> Iterator[str]:
    if known.full_name in seen:
        return
    seen.add(known.full_name)
    if known.full_name != served.full_name:
        yield f"{known.full_name} is now {served.full_name}"
    for number, field in known.fields_by_number.items():
        other = served.fields_by_number.get(number)
        if other is None:
            moved = served.fields_by_name.get(field.name)
            yield f"{field.full_name}: " + (
                f"its number {number} is now {moved.number}" if moved else f"the field {number} is gone"
            )
        else:
            yield from _field(field, other, asked, seen)
    if asked:
        for number, field in served.fields_by_number.items():
            old = known.fields_by_number.get(number)
            if _required(field) and not (old and _required(old)):
                yield f"{field.full_name}: callers must now set it"


def _field(known: FieldDescriptor, served: FieldDescriptor, asked: bool, seen: set[str]) -> Iterator[str]:
    if known.json_name != served.json_name:
        yield f"{known.full_name}: its JSON name {known.json_name} is now {served.json_name}"
    if known.is_repeated != served.is_repeated:
        yield f"{known.full_name}: is now {'a list' if served.is_repeated else 'one value'}"
    if known.type != served.type:
        yield f"{known.full_name}: its type {_TYPES[known.type]} is now {_TYPES[served.type]}"
    elif known.enum_type and served.enum_type:
        yield from _enum(known.enum_type, served.enum_type)
    elif known.message_type and served.message_type:
        yield from _message(known.message_type, served.message_type, asked, seen)
    if (known.containing_oneof and known.containing_oneof.name) != (
        served.containing_oneof and served.containing_oneof.name
    ):
        yield f"{known.full_name}: moved into or out of a oneof"


def _enum(known: EnumDescriptor, served: EnumDescriptor) -> Iterator[str]:
    for number, value in known.values_by_number.items():
        other = served.values_by_number.get(number)
        if other is None:
            yield f"{known.full_name}: the value {value.name} is gone"
        elif value.name not in served.values_by_name:
            yield f"{known.full_name}: the value {value.name} is now {other.name}"


def _required(field: FieldDescriptor) -> bool:
    """By buf.validate; read anew, for the options of another pool are other classes."""
    options = descriptor_pb2.FieldOptions.FromString(field.GetOptions().SerializeToString())
    return bool(options.Extensions[validate_pb2.field].required)
