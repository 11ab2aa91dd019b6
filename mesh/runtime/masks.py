"""Update masks (AIP-134, AIP-161): which fields of a resource a change takes over. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from google.api import field_behavior_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from mesh.runtime import errors

ALL = "*"
# What the contract says that only the service sets (AIP-203), and the etag, which is compared and not set (AIP-154).
_NOT_SET = {field_behavior_pb2.OUTPUT_ONLY, field_behavior_pb2.IDENTIFIER, field_behavior_pb2.IMMUTABLE}
_ETAG = "etag"

M = TypeVar("M", bound=Message)


def merged(stored: M, sent: M, mask: FieldMask, *, field: str = "update_mask") -> M:
    """`stored` with the fields of `sent` that `mask` names; without a mask, with those that are set in `sent`.

    A field that is named and not set is cleared. `*` stands for all fields. `nutrients.fat_g` is that one field of a
    message; of a list only the whole can be named. What only the service sets stays as stored, named or not.

    Args:
        stored: the resource as it is.
        sent: the resource of the request.
        mask: of the request.
        field: its name there, for the error.

    Raises:
        ServiceError: INVALID_ARGUMENT, naming each path that is none.
    """
    paths = _checked(list(mask.paths), stored.DESCRIPTOR, field)
    if ALL in paths:
        paths = settable(stored.DESCRIPTOR)
    elif not paths:
        paths = [found.name for found, _ in sent.ListFields()]
    result = type(stored)()
    result.CopyFrom(stored)
    for path in sorted(paths):  # a message before its fields
        _copy(result, sent, path.split("."))
    return result


def settable(resource: Any) -> list[str]:
    """The fields that a caller may set of the resource with that descriptor, in the order of the contract."""
    return [field.name for field in resource.fields if _is_settable(field)]


def _is_settable(field: Any) -> bool:
    behaviour = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field.name != _ETAG and not _NOT_SET.intersection(behaviour)


def _checked(paths: list[str], resource: Any, field: str) -> list[str]:
    if ALL in paths and len(paths) > 1:
        raise errors.invalid(field, "`*` stands for all fields and must stand alone")
    found = [(field, problem) for path in paths if path != ALL and (problem := _problem(path, resource))]
    if found:
        raise errors.violations(found)
    return paths


def _problem(path: str, resource: Any) -> str:
    at = resource
    *parents, last = path.split(".")
    for name in parents:
        field = at.fields_by_name.get(name)
        if field is None or field.message_type is None or field.is_repeated:
            return f"{path!r} is no field: {at.name} has no {name!r} with fields of its own"
        at = field.message_type
    return "" if last in at.fields_by_name else f"there is no field {path!r}: {at.name} has no {last!r}"


def _copy(target: Message, source: Message, path: Sequence[str]) -> None:
    """Makes the field at `path` in `target` what it is in `source`."""
    name, *rest = path
    field = target.DESCRIPTOR.fields_by_name[name]
    if not _is_settable(field):
        return
    if rest:
        if source.HasField(name) or target.HasField(name):
            _copy(getattr(target, name), getattr(source, name), rest)
        return
    target.ClearField(name)
    if field.is_repeated:
        getattr(target, name).MergeFrom(getattr(source, name))
    elif field.message_type:
        if source.HasField(name):
            getattr(target, name).CopyFrom(getattr(source, name))
    elif not field.has_presence or source.HasField(name):
        setattr(target, name, getattr(source, name))
