"""Compares two answers to one call, field by field, as the contract says: volatile fields do not count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mesh.replay.fields import is_volatile
from mesh.runtime.sensitive import ANY, Field, is_map, is_sensitive, unpacked

HIDDEN = "(sensitive)"


@dataclass(frozen=True)
class Difference:
    """One field that differs; None where it is missing. Values of sensitive fields are not shown."""

    path: str
    left: Any
    right: Any


def differences(left: Message, right: Message, tolerance: float = 0.0) -> list[Difference]:
    """What differs between two messages of one type. `tolerance` is relative, for floating-point fields."""
    return list(_messages(left, right, "", tolerance))


def _messages(left: Message, right: Message, prefix: str, tolerance: float) -> Iterator[Difference]:
    if left.DESCRIPTOR.full_name == ANY:
        yield from _anys(left, right, prefix, tolerance)
        return
    unknown = _unknown(left), _unknown(right)
    if unknown[0] != unknown[1]:
        yield Difference(_join(prefix, "(unknown fields)"), sorted(unknown[0]), sorted(unknown[1]))
    for field in left.DESCRIPTOR.fields:
        if is_volatile(field):
            continue
        found = list(_field(field, left, right, _join(prefix, field.name), tolerance))
        if found and is_sensitive(field):
            yield Difference(_join(prefix, field.name), HIDDEN, HIDDEN)
        else:
            yield from found


def _anys(left: Any, right: Any, prefix: str, tolerance: float) -> Iterator[Difference]:
    """What two Any hold. Bytes that the contract cannot read are not shown: they may hold sensitive fields."""
    mine, yours = unpacked(left), unpacked(right)
    if left.type_url != right.type_url:
        yield Difference(_join(prefix, "type_url"), left.type_url, right.type_url)
    elif mine is not None and yours is not None:
        yield from _messages(mine, yours, prefix, tolerance)
    elif left.value != right.value:
        yield Difference(_join(prefix, "value"), HIDDEN, HIDDEN)


def _field(field: Field, left: Any, right: Any, path: str, tolerance: float) -> Iterator[Difference]:
    mine, yours = getattr(left, field.name), getattr(right, field.name)
    if is_map(field):
        value = field.message_type.fields_by_name["value"]
        yield from _keyed(value, dict(mine), dict(yours), path, tolerance)
    elif field.is_repeated:
        yield from _repeated(field, list(mine), list(yours), path, tolerance)
    elif field.has_presence:
        one = mine if left.HasField(field.name) else None
        other = yours if right.HasField(field.name) else None
        yield from _values(field, one, other, path, tolerance)
    else:
        yield from _values(field, mine, yours, path, tolerance)


def _repeated(field: Field, left: Any, right: Any, path: str, tolerance: float) -> Iterator[Difference]:
    """Resources are aligned by their names, so that one more at the top is one difference; all else by place."""
    names = [_name(item) for item in left], [_name(item) for item in right]
    if not all(all(n) and len(set(n)) == len(n) for n in names):
        yield from _keyed(field, dict(enumerate(left)), dict(enumerate(right)), path, tolerance)
        return
    mine, yours = dict(zip(names[0], left, strict=True)), dict(zip(names[1], right, strict=True))
    yield from _keyed(field, mine, yours, path, tolerance)
    order = [n for n in names[0] if n in yours], [n for n in names[1] if n in mine]
    if order[0] != order[1]:
        yield Difference(f"{path}(order)", *order)


def _keyed(field: Field, left: Any, right: Any, path: str, tolerance: float) -> Iterator[Difference]:
    for key in {**left, **right}:
        yield from _values(field, left.get(key), right.get(key), f"{path}[{key}]", tolerance)


def _values(field: Field, left: Any, right: Any, path: str, tolerance: float) -> Iterator[Difference]:
    if left is None or right is None:
        if left is not right:
            yield Difference(path, _shown(left), _shown(right))
    elif field.message_type is not None:
        yield from _messages(left, right, path, tolerance)
    elif not _same(left, right, tolerance):
        yield Difference(path, left, right)


def _same(left: Any, right: Any, tolerance: float) -> bool:
    if isinstance(left, float):
        return math.isclose(left, right, rel_tol=tolerance) or (math.isnan(left) and math.isnan(right))
    return bool(left == right)


def _shown(value: Any) -> Any:
    """Whole messages are not printed: they may hold sensitive fields."""
    return f"({value.DESCRIPTOR.name})" if isinstance(value, Message) else value


def _name(item: Any) -> str:
    """The resource name of a message, or of the resource that it holds first: a search result's food."""
    if not isinstance(item, Message):
        return ""
    field = item.DESCRIPTOR.fields_by_name.get("name")
    if field is not None and not is_sensitive(field):
        return str(item.name)  # type: ignore[attr-defined]
    held = next((v for f, v in item.ListFields() if f.message_type and not f.is_repeated and not is_sensitive(f)), None)
    return _name(held)


def _unknown(message: Message) -> set[int]:
    fields: Any = UnknownFieldSet(message)  # its types lack the iteration
    return {field.field_number for field in fields}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
