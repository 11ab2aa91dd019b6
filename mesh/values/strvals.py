"""`--set` assignments in Helm's grammar: `a.b=c,d={1,x},e[0].f=true`; a backslash takes the next character as it is.

Helm's documentation ("The Format and Limitations of --set") gives the common cases; `tests/test_values_as_helm.py`
compares the rest with Helm's own engine.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

_INTEGER = re.compile(r"[+-]?[0-9]+")
_LARGEST_INTEGER = 2**63
_LARGEST_INDEX = 65_536
_DEEPEST = 30  # nested names, as Helm allows

Key = tuple[str | int, ...]


def parse(expression: str, base: dict[str, Any]) -> dict[str, Any]:
    """The overlay that an expression makes over `base`, the values so far: what it sets and nothing else.

    `base` matters to list indexes alone: setting `a[1]` keeps the `a[0]` of the base.

    Raises:
        ValueError: the expression is malformed; the message says what is wrong with it.
    """
    result = copy.deepcopy(base)
    overlay: dict[str, Any] = {}
    for key, value in _Reader(expression).assignments():
        _assign(result, key, value)
        names = key[: next((i for i, part in enumerate(key) if isinstance(part, int)), len(key))]
        _assign(overlay, names, _at(result, names))
    return overlay


def _at(value: Any, key: Key) -> Any:
    for part in key:
        value = value[part]
    return value


def _assign(into: dict[str, Any], key: Key, value: Any) -> None:
    holder: Any = into
    for position, part in enumerate(key):
        last = position == len(key) - 1
        fresh: Any = value if last else [] if isinstance(key[position + 1], int) else {}
        if isinstance(part, int):
            holder.extend([None] * (part + 1 - len(holder)))
            present = holder[part]
        else:
            present = holder.get(part)
        if last or present is None:
            holder[part] = present = fresh
        elif type(present) is not type(fresh):
            raise ValueError(f"{show(key[: position + 1])} is not a {'list' if isinstance(fresh, list) else 'map'}")
        holder = present


def show(key: Key) -> str:
    """A key as people write it: `("a", 0, "b")` is `a[0].b`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def assignments(self) -> Iterator[tuple[Key, Any]]:
        while self._at < len(self._text):
            key = self._key()
            if self._text[self._at : self._at + 1] == "{":
                self._at += 1
                yield key, self._list(key)
            else:
                yield key, _typed(self._until(",")[0])

    def _key(self) -> Key:
        """Reads up to and with the "=" of an assignment."""
        key: list[str | int] = []
        stop = "."
        while stop in (".", "["):
            if stop == "[":
                key.append(self._index())
                name, stop = self._until(".=[")
                if name:
                    raise ValueError(f"{name!r} follows the index of {show(tuple(key))}")
            else:
                name, stop = self._until(".=[,")
                if not name:
                    raise ValueError("a name is missing")
                key.append(name)
            if sum(isinstance(part, str) for part in key) > _DEEPEST:
                raise ValueError(f"more than {_DEEPEST} nested names")
        if stop != "=":
            raise ValueError(f"{show(tuple(key))} has no value; write name=value")
        return tuple(key)

    def _index(self) -> int:
        text, stop = self._until("]")
        if stop != "]" or not re.fullmatch(r"[0-9]{1,6}", text) or int(text) > _LARGEST_INDEX:
            raise ValueError(f"[{text}] is not an index from 0 to {_LARGEST_INDEX}")
        return int(text)

    def _list(self, key: Key) -> list[Any]:
        items = []
        stop = ","
        while stop == ",":
            text, stop = self._until(",}")
            items.append(_typed(text))
        if stop != "}":
            raise ValueError(f"the list of {show(key)} has no '}}'")
        if self._at < len(self._text) and self._text[self._at] != ",":
            raise ValueError(f"{self._text[self._at :]!r} follows the list of {show(key)}")
        self._at += 1
        return items

    def _until(self, stops: str) -> tuple[str, str]:
        """The text up to one of `stops`, and that stop ("" at the end)."""
        text = ""
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character in stops:
                return text, character
            if character == "\\":
                character = self._text[self._at : self._at + 1]
                self._at += 1
            text += character
        return text, ""


def _typed(text: str) -> Any:
    match text.lower():
        case "true":
            return True
        case "false":
            return False
        case "null":
            return None
    # A number that begins with 0 stays a string, as an image tag or a postcode means it.
    whole = _INTEGER.fullmatch(text) and (text == "0" or not text.startswith("0"))
    if whole and -_LARGEST_INTEGER <= int(text) < _LARGEST_INTEGER:
        return int(text)
    return text
