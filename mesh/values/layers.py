"""Layers of values: YAML in which every value knows the line it came from, laid over one another as Helm lays them.

Scalars are read as Helm's YAML library reads them (YAML 1.1 without sexagesimal numbers and dates), keys as JSON has
them. Helm overlays in two steps, and so does this: the values files of the user are merged, where null is a value like
any other; the result is laid over the chart's own values, where null removes a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

_MOST_NODES = 20_000  # a large mesh has 2,000; aliases of aliases can make a small file huge
ASSIGNMENT = "--set "  # how the path of an assignment begins
_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"))
_FALSE = frozenset(("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"))
_BASED = re.compile(r"(?P<sign>[+-]?)0(?:[xX](?P<hex>[0-9a-fA-F]+)|[bB](?P<bin>[01]+)|[oO]?(?P<oct>[0-7]+))")
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][+-]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[+-]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


@dataclass(frozen=True)
class Origin:
    """Where a value was written; `line` counts from 1, 0 means the file as a whole. An assignment has no lines."""

    path: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line and not self.path.startswith(ASSIGNMENT) else self.path


@dataclass(frozen=True)
class Node:
    """A value (a dict or list of nodes, or a scalar) and its origin: the line of its key, or its own in a list."""

    value: Any
    origin: Origin

    def plain(self) -> Any:
        """The value without its origins."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def locate(self, path: tuple[str | int, ...]) -> Origin:
        """The origin of the value at a path, or of the nearest that holds it."""
        node = self
        for part in path:
            try:
                node = node.value[part]
            except (KeyError, IndexError, TypeError):
                break
        return node.origin


class YamlError(Exception):
    """The text is not what we take for YAML; `problems` pairs each origin with a sentence."""

    def __init__(self, problems: list[tuple[Origin, str]]) -> None:
        super().__init__("\n".join(f"{origin}: {problem}" for origin, problem in problems))
        self.problems = problems


class _Loader(yaml.BaseLoader):
    """Gives plain scalars a tag of their own, so that 5 and "5" can be told apart."""


_Loader.add_implicit_resolver(_PLAIN, re.compile(""), None)


def parse(path: str, text: str) -> Node:
    """Reads one file; an empty one is an empty map.

    Raises:
        YamlError: a syntax error, a key given twice, a root that is no map, or a value that JSON cannot hold.
    """
    whole = Origin(path)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError([(Origin(path, mark.line + 1 if mark else 0), _syntax(error))]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(
            [(Origin(path, line), f"the character {chr(error.character)!r} may not stand in YAML")]
        ) from error
    except RecursionError as error:
        raise YamlError([(whole, "is nested too deeply")]) from error
    if root is None:
        return Node({}, whole)
    builder = _Builder(path)
    try:
        node = builder.build(root, Origin(path, 1))
    except RecursionError as error:
        raise YamlError([(whole, "is nested too deeply, or an alias holds itself")]) from error
    if not isinstance(node.value, dict):
        builder.problems.append((node.origin, "values must be a map of names to values"))
    if builder.problems:
        raise YamlError(builder.problems)
    return node


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "is not YAML"
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    if "expected a single document" in f"{error.context} {problem}":
        return "holds more than one document; a values file is one"
    return f"is not YAML: {problem}"


class _Builder:
    """Turns PyYAML's nodes into ours, and collects what is wrong with them."""

    def __init__(self, path: str) -> None:
        self.problems: list[tuple[Origin, str]] = []
        self._path = path
        self._count = 0

    def build(self, node: yaml.Node, origin: Origin) -> Node:
        self._count += 1
        if self._count > _MOST_NODES:
            raise YamlError([(Origin(self._path), f"holds more than {_MOST_NODES} values")])
        match node:
            case yaml.MappingNode():
                return Node(self._map(node), origin)
            case yaml.SequenceNode():
                return Node([self.build(item, self._origin(item)) for item in node.value], origin)
            case _:
                return Node(self._scalar(node), origin)

    def _origin(self, node: yaml.Node) -> Origin:
        return Origin(self._path, node.start_mark.line + 1)

    def _map(self, node: yaml.MappingNode) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            origin = self._origin(key_node)
            if key_node.tag == _PLAIN and key_node.value == "<<":
                merged = {**self._merged(value_node, origin), **merged}
                continue
            key = self._key(key_node)
            if key in own:
                self.problems.append(
                    (origin, f"the key {key!r} stands here again; it is also on line {own[key].origin.line}")
                )
            elif key is not None:
                own[key] = self.build(value_node, origin)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, origin: Origin) -> dict[str, Node]:
        """The keys that `<<` brings in from one map or several, of which the first wins."""
        merged: dict[str, Node] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(source, yaml.MappingNode):
                merged = {**self.build(source, origin).value, **merged}
            else:
                self.problems.append((origin, "'<<' takes a map or a list of maps"))
        return merged

    def _key(self, node: yaml.Node) -> str | None:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if key is None:
            self.problems.append((self._origin(node), "a key must be a name"))
            return None
        return str(key).lower() if isinstance(key, bool) else str(key)

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.problems.append((self._origin(node), "holds half of a character, which no text can"))
        if node.tag == f"{_TAG}str":
            return text
        kind = node.tag.removeprefix(_TAG)
        if kind not in (_PLAIN, "int", "float", "bool", "null"):
            self.problems.append((self._origin(node), f"the tag {node.tag!r} has no meaning here"))
        elif _NO_NUMBER.fullmatch(text):
            self.problems.append((self._origin(node), f"{text} is no number that JSON can hold"))
        return resolve(text)


def resolve(text: str) -> Any:
    """The value of a plain scalar: None, a bool, an int, a float, or the text itself."""
    if text in _NULLS:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    number = _number(text.replace("_", "") if text[0] not in "._" else text)
    return text if number is None else number


def _number(text: str) -> int | float | None:
    if _INTEGER.fullmatch(text):
        return int(text)
    if based := _BASED.fullmatch(text):
        base, digits = next((b, based[k]) for b, k in ((16, "hex"), (2, "bin"), (8, "oct")) if based[k])
        return int(based["sign"] + digits, base)
    if not _FLOAT.fullmatch(text):
        return None
    number = float(text)
    return int(number) if number.is_integer() else number


class _Dumper(yaml.SafeDumper):
    """Quotes what `resolve` would not read as text, which is more than PyYAML itself would quote."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = isinstance(resolve(text), str) and text != "<<" and not _NO_NUMBER.fullmatch(text)
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if plain else "'")


_Dumper.add_representer(str, _represent_text)


def dump(values: dict[str, Any]) -> str:
    """YAML that `parse` reads back as the same values, in the same order."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def overlay(nodes: list[Node]) -> Node:
    """The effective values: the first node is the chart's own, the others are the user's, in order."""
    chart, *user = nodes
    given = Node({}, chart.origin)
    for node in user:
        given = _merge(given, node)
    return _coalesce(given, chart)


def user_values(nodes: list[Node]) -> Node:
    """The user's layers merged, before they are laid over the chart's: null is a value."""
    given = Node({}, Origin(""))
    for node in nodes:
        given = _merge(given, node)
    return given


def _merge(lower: Node, upper: Node) -> Node:
    if not (isinstance(lower.value, dict) and isinstance(upper.value, dict)):
        return upper
    both = {key: _merge(lower.value[key], node) for key, node in upper.value.items() if key in lower.value}
    return Node({**lower.value, **upper.value, **both}, upper.origin)


def _coalesce(user: Node, chart: Node) -> Node:
    result: dict[str, Node] = {}
    for key, default in chart.value.items():
        given = user.value.get(key)
        if given is None:
            if default.value is not None:
                result[key] = _without_nulls(default)
        elif isinstance(given.value, dict) and isinstance(default.value, dict):
            result[key] = _coalesce(given, _without_nulls(default))
        elif given.value is not None:
            result[key] = given
    added = {key: node for key, node in user.value.items() if key not in chart.value}
    return Node({**result, **added}, user.origin)


def _without_nulls(node: Node) -> Node:
    """What Helm does to the maps of a chart's own values: a key that is null is no key."""
    if not isinstance(node.value, dict):
        return node
    kept = {key: _without_nulls(child) for key, child in node.value.items() if child.value is not None}
    return Node(kept, node.origin)


def nulls(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Origin]]:
    """The keys of a map, at any depth, that hold nothing."""
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            if child.value is None:
                yield (*path, key), child.origin
            yield from nulls(child, (*path, key))
