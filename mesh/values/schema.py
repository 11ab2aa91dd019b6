"""Holds values against their JSON Schema, and says what is wrong in the words of who wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from jsonschema import Draft7Validator, ValidationError

from mesh.topology import did_you_mean
from mesh.values.layers import Node, Origin
from mesh.values.strvals import show

Path = tuple[str | int, ...]

_TYPES = {
    "object": "a map",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with the value at `path`, and where that was written; the sentence begins with a path."""

    path: Path
    origin: Origin
    sentence: str

    @classmethod
    def at(cls, path: Path, origin: Origin, fault: str) -> Problem:
        """A problem whose sentence is the value's path and the fault."""
        return cls(path, origin, f"{show(path)}: {fault}" if path else fault)


def find_problems(validator: Draft7Validator, node: Node) -> list[Problem]:
    """All that the schema refuses."""
    return [problem for error in validator.iter_errors(node.plain()) for problem in _explain(error, node)]


def without(node: Node, problems: list[Problem]) -> Node:
    """The values without those that have problems, so that the rest can be looked at."""
    for problem in problems:
        node = _removed(node, problem.path)
    return node


def _removed(node: Node, path: Path) -> Node:
    if not path:
        return Node({}, node.origin)
    head, *tail = path
    if not isinstance(node.value, dict) or head not in node.value:
        return node if isinstance(node.value, dict) else Node({}, node.origin)
    children: dict[Any, Node] = dict(node.value)
    if tail and isinstance(children[head].value, dict):
        children[head] = _removed(children[head], tuple(tail))
    else:
        del children[head]
    return Node(children, node.origin)


def _explain(error: ValidationError, node: Node) -> Iterator[Problem]:
    path: Path = tuple(error.absolute_path)
    schema, value = cast(Any, error.schema), cast(Any, error.instance)
    if "propertyNames" in error.absolute_schema_path:
        key = (*path, value)
        yield Problem.at(key, node.locate(key), f"is no {schema['title'].lower()}. {schema['description']}")
    elif error.validator == "additionalProperties":
        known = schema["properties"]
        for key in (key for key in value if key not in known):
            fault = f"unknown key {key!r}{did_you_mean(key, known)}"
            place = Problem.at(path, node.locate((*path, key)), fault)
            yield Problem((*path, key), place.origin, place.sentence)
    else:
        say = _FAULTS.get(str(error.validator), lambda value, _: f"{_brief(value)} does not fit")
        fault = say(value, error.validator_value)
        about = (
            f". {schema['description']}" if error.validator in ("type", "pattern") and "description" in schema else ""
        )
        yield Problem.at(path, node.locate(path), fault + about)


def _type(value: Any, wanted: str | list[str]) -> str:
    *others, last = (_TYPES[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted))
    kinds = f"{', '.join(others)} or {last}" if others else last
    return f"is empty; it takes {kinds}" if value is None else f"{_brief(value)} is not {kinds}"


def _too_many(value: Any, limit: int) -> str:
    return f"has {' and '.join(value)}; it takes {limit} of them" if limit == 1 else f"has more than {limit} keys"


def _meant(value: Any, known: list[str]) -> str:
    hint = did_you_mean(str(value), known)
    return hint if "did you mean" in hint else ""


def _brief(value: Any) -> str:
    match value:
        case dict():
            return "a map"
        case list():
            return "a list"
        case bool():
            return str(value).lower()
        case str() if len(value) > 60:
            return f"{value[:60]!r}…"
    return repr(value)


# By the schema's keyword: a value and the keyword's argument to a sentence.
_FAULTS: dict[str, Callable[[Any, Any], str]] = {
    "type": _type,
    "enum": lambda value, known: f"{_brief(value)} is none of {', '.join(known)}{_meant(value, known)}",
    "minimum": lambda value, limit: f"{value} is less than the minimum of {limit}",
    "maximum": lambda value, limit: f"{value} is more than the maximum of {limit}",
    "uniqueItems": lambda value, _: f"names {next(v for v in value if value.count(v) > 1)!r} twice",
    "required": lambda value, names: f"{next(name for name in names if name not in value)!r} is missing",
    "maxLength": lambda value, limit: f"has {len(value)} characters, more than the maximum of {limit}",
    "maxProperties": _too_many,
    "minProperties": lambda _value, _limit: "is empty",
    "minItems": lambda _value, _limit: "is empty",
}
