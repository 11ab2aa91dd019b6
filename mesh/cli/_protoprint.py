"""Prints a FileDescriptorProto as `.proto` source.

The protovalidate wheel carries `buf/validate/validate.proto` as a descriptor only; buf wants sources. Covers what that
file uses: proto2 messages, enums, oneofs, extensions, extension ranges and (custom) options.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import descriptor_pb2 as d
from google.protobuf import text_encoding, text_format
from google.protobuf.message import Message

_TYPES = {v: k.removeprefix("TYPE_").lower() for k, v in d.FieldDescriptorProto.Type.items()}
_LABELS = {v: k.removeprefix("LABEL_").lower() for k, v in d.FieldDescriptorProto.Label.items()}


def print_file(file: d.FileDescriptorProto) -> str:
    """Returns the source of `file`; its options must be parsed in a pool that knows their extensions."""
    lines = [f'syntax = "{file.syntax or "proto2"}";', f"package {file.package};"]
    lines += [f'import "{name}";' for name in file.dependency]
    lines += [f"option {name} = {value};" for name, value in _options(file.options)]
    for extendee in dict.fromkeys(e.extendee for e in file.extension):
        lines.append(f"extend {extendee} {{")
        lines += ["  " + _field(f, in_oneof=False) for f in file.extension if f.extendee == extendee]
        lines.append("}")
    for enum in file.enum_type:
        lines += _enum(enum)
    for message in file.message_type:
        lines += _message(message)
    return "\n".join(lines) + "\n"


def _options(options: Message) -> Iterator[tuple[str, str]]:
    for field, value in options.ListFields():
        name = f"({field.full_name})" if field.is_extension else field.name
        for item in value if field.is_repeated else [value]:
            if field.message_type:
                yield name, "{ " + text_format.MessageToString(item, as_one_line=True) + " }"
            elif field.enum_type:
                yield name, field.enum_type.values_by_number[item].name
            elif isinstance(item, bool):
                yield name, str(item).lower()
            elif isinstance(item, str):
                yield name, '"' + text_encoding.CEscape(item.encode(), False) + '"'
            else:
                yield name, str(item)


def _field(field: d.FieldDescriptorProto, *, in_oneof: bool) -> str:
    kind = field.type_name or _TYPES[field.type]
    options = [f"{name} = {value}" for name, value in _options(field.options)]
    if field.HasField("default_value"):
        options.insert(0, f"default = {field.default_value}")
    tail = f" [{', '.join(options)}]" if options else ""
    label = "" if in_oneof else _LABELS[field.label] + " "
    return f"{label}{kind} {field.name} = {field.number}{tail};"


def _enum(enum: d.EnumDescriptorProto) -> list[str]:
    return [f"enum {enum.name} {{", *(f"  {v.name} = {v.number};" for v in enum.value), *_reserved(enum), "}"]


def _reserved(holder: d.EnumDescriptorProto | d.DescriptorProto) -> list[str]:
    exclusive = holder.DESCRIPTOR.name == "DescriptorProto"  # a message range excludes its end, an enum range does not
    ranges = [f"{r.start} to {r.end - 1 if exclusive else r.end}" for r in holder.reserved_range]
    lines = [f"  reserved {', '.join(ranges)};"] if ranges else []
    if holder.reserved_name:
        lines.append("  reserved " + ", ".join(f'"{n}"' for n in holder.reserved_name) + ";")
    return lines


def _message(message: d.DescriptorProto) -> list[str]:
    lines = [f"message {message.name} {{"]
    lines += [f"  option {name} = {value};" for name, value in _options(message.options)]
    for nested in message.nested_type:
        lines += ["  " + line for line in _message(nested)]
    for enum in message.enum_type:
        lines += ["  " + line for line in _enum(enum)]
    for index, oneof in enumerate(message.oneof_decl):
        lines.append(f"  oneof {oneof.name} {{")
        lines += [f"    option {name} = {value};" for name, value in _options(oneof.options)]
        members = [f for f in message.field if f.HasField("oneof_index") and f.oneof_index == index]
        lines += ["    " + _field(f, in_oneof=True) for f in members]
        lines.append("  }")
    lines += ["  " + _field(f, in_oneof=False) for f in message.field if not f.HasField("oneof_index")]
    for r in message.extension_range:
        end = "max" if r.end > 536870911 else str(r.end - 1)
        lines.append(f"  extensions {r.start} to {end};")
    return [*lines, *_reserved(message), "}"]
