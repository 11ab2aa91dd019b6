"""Changes one value in the text of a values file, and nothing else: comments, quotes, order and layout stay."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml

from mesh.values import layers


class EditError(Exception):
    """The value cannot be changed there; says why and what to do."""


def write(path: Path, keys: tuple[str, ...], value: int | None) -> None:
    """Changes the value at `keys` on disk, in one step; None changes nothing, and raises what a value would.

    Raises:
        EditError: the file does not hold it as a scalar of its own, or cannot be read or written.
        layers.YamlError: the file is not YAML.
    """
    real = path.resolve()
    draft = real.with_name(f".{real.name}.new")
    try:
        with real.open(encoding="utf-8", newline="") as file:
            text = changed(str(path), file.read(), keys, value or 0)
        if value is None:
            return
        with draft.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(real, draft)
        draft.replace(real)
    except (OSError, UnicodeDecodeError) as error:
        raise EditError(f"{path}: {error}") from None


def changed(path: str, text: str, keys: tuple[str, ...], value: int) -> str:
    """The text with the value at `keys` replaced.

    Raises:
        EditError: it is not there, is no plain scalar, or stands for others too.
        layers.YamlError: the text is not YAML.
    """
    layers.parse(path, text)  # says what is wrong better than what follows
    name, root = ".".join(keys), yaml.compose(text, Loader=yaml.BaseLoader)
    node: yaml.Node | None = root
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [child for name_node, child in pairs if name_node.value == key]
        if not found:
            raise EditError(f"{path}: {name} is not written here: add `{keys[-1]}: {value}` to {'.'.join(keys[:-1])}")
        node, where = found[0], f"{path}:{found[0].start_mark.line + 1}: {name}"
        if _uses(root, found[0]) > 1:
            raise EditError(f"{where} is shared by an anchor: edit it by hand")
    if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">"):
        raise EditError(f"{where} is no number: edit it by hand")
    start, end = node.start_mark.index, node.end_mark.index
    result = text[:start] + (str(value) if end > start else f" {value}") + text[end:]
    if _only_change(path, text, result, keys, value):
        return result
    raise EditError(f"{where} is written in a way that only a person should edit")


def _uses(root: yaml.Node | None, wanted: yaml.Node) -> int:
    """How often a node is part of the document: an alias is the same node again."""
    count, left = 0, [root]
    while left:
        node = left.pop()
        if node is wanted:
            count += 1
        elif isinstance(node, yaml.MappingNode):
            left += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
    return count


def _only_change(path: str, before: str, after: str, keys: tuple[str, ...], value: int) -> bool:
    expected = layers.parse(path, before).plain()
    holder = expected
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    try:
        return bool(layers.parse(path, after).plain() == expected)
    except layers.YamlError:
        return False
