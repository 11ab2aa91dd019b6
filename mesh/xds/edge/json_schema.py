"""The tables of `envoy/json_check.lua`: which JSON each REST path takes. Derived from the descriptors.

A spec says what a JSON value may be (null always may):

- `single = true`: a string, number or boolean;
- `list = spec`: a list of such;
- `map = spec`: an object with any keys;
- `fields = {name = {spec, number}}`: a message; a field is there under its JSON name and its proto name.

`PATHS` is a tree of path segments: `l` by literal, `w` for `*`, `ww` for `**`, and `m` the rules by "VERB" or
"VERB:custom verb". A rule has a `spec`, or is `{}` (takes no body), or `{raw=true}` (google.api.HttpBody).
`VERBS` are the custom verbs there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pb2

from mesh.contract import Method, RestBinding

Message = descriptor_pb2.DescriptorProto
Field = descriptor_pb2.FieldDescriptorProto

_WELL_KNOWN = ".google.protobuf."
_SINGLE = {  # messages whose JSON is a single value, https://protobuf.dev/programming-guides/json/
    _WELL_KNOWN + name
    for name in (
        *("Timestamp", "Duration", "FieldMask", "StringValue", "BytesValue", "BoolValue", "Int32Value", "Int64Value"),
        *("UInt32Value", "UInt64Value", "FloatValue", "DoubleValue"),
    )
}
_OPEN = {_WELL_KNOWN + "Value": "ANY", _WELL_KNOWN + "ListValue": "LIST"} | dict.fromkeys(
    (_WELL_KNOWN + "Struct", _WELL_KNOWN + "Any"), "OBJECT"
)
_RAW = ".google.api.HttpBody"
_PRELUDE = """\
local SINGLE, ANY = {single=true}, {single=true}
ANY.list, ANY.map = ANY, ANY
local OBJECT, LIST = {map=ANY}, {list=ANY}
"""


def tables(methods: Iterable[Method], descriptors: descriptor_pb2.FileDescriptorSet) -> str:
    """Lua source that defines PATHS and VERBS for the REST bindings of these methods."""
    types = _Types(descriptors)
    root: dict[str, Any] = {}
    verbs: set[str] = set()
    for method in methods:
        for binding in method.rest:
            template = binding.template
            node = root
            for segment in template.segments:
                node = _child(node, segment)
            verb = f":{template.verb}" if template.verb else ""
            node.setdefault("m", {})[binding.verb + verb] = types.rule(method, binding)
            verbs |= {template.verb} - {""}
    known = "".join(f'["{verb}"]=true,' for verb in sorted(verbs))
    return f"{_PRELUDE}{types.source()}local VERBS = {{{known}}}\nlocal PATHS = {_lua(root)}\n"


def _child(node: dict[str, Any], segment: str) -> dict[str, Any]:
    wildcard = {"*": "w", "**": "ww"}.get(segment)
    children = node if wildcard else node.setdefault("l", {})
    child: dict[str, Any] = children.setdefault(wildcard or segment, {})
    return child


class _Types:
    """The messages met so far, each as one entry of the Lua table T; they may contain one another."""

    def __init__(self, descriptors: descriptor_pb2.FileDescriptorSet) -> None:
        self._messages = {
            name: message
            for file in descriptors.file
            for top in file.message_type
            for name, message in _nested(f".{file.package}" if file.package else "", top)
        }
        self._index: dict[str, int] = {}
        self._lines: list[str] = []

    def rule(self, method: Method, binding: RestBinding) -> str:
        """What the body of a binding may be."""
        message = f".{method.input_type}"
        if not binding.body:
            return "{}"
        if binding.body == "*":
            return "{raw=true}" if message == _RAW else f"{{spec={self._message(message)}}}"
        for part in binding.body.split("."):
            field = next(f for f in self._messages[message].field if f.name == part)
            message = field.type_name
        return "{raw=true}" if field.type_name == _RAW else f"{{spec={self._field(field)}}}"

    def source(self) -> str:
        """The definition of T."""
        empty = "{}," * len(self._index)
        return "\n".join([f"local T = {{{empty}}}", *self._lines, ""])

    def _message(self, name: str) -> str:
        if name in _SINGLE:
            return "SINGLE"
        if name in _OPEN:
            return _OPEN[name]
        if name not in self._index:
            self._index[name] = len(self._index) + 1
            fields = "".join(
                f'["{spelling}"]={{{self._field(field)},{field.number}}},'
                for field in self._messages[name].field
                for spelling in dict.fromkeys((_json_name(field), field.name))
            )
            self._lines.append(f"T[{self._index[name]}].fields = {{{fields}}} -- {name[1:]}")
        return f"T[{self._index[name]}]"

    def _field(self, field: Field) -> str:
        entry = self._messages.get(field.type_name)
        if entry is not None and entry.options.map_entry:
            return f"{{map={self._single(entry.field[1])}}}"
        single = self._single(field)
        return f"{{list={single}}}" if field.label == Field.LABEL_REPEATED else single

    def _single(self, field: Field) -> str:
        return self._message(field.type_name) if field.type == Field.TYPE_MESSAGE else "SINGLE"


def _nested(prefix: str, message: Message) -> Iterator[tuple[str, Message]]:
    name = f"{prefix}.{message.name}"
    yield name, message
    for inner in message.nested_type:
        yield from _nested(name, inner)


def _json_name(field: Field) -> str:
    """As protoc derives it, for descriptors that were not made by protoc."""
    first, *rest = field.name.split("_")
    return field.json_name or first + "".join(word[:1].upper() + word[1:] for word in rest)


def _lua(tree: dict[str, Any] | str) -> str:
    if isinstance(tree, str):
        return tree
    return "{" + "".join(f'["{key}"]={_lua(value)},' for key, value in sorted(tree.items())) + "}"
