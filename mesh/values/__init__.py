"""Reads values files as Helm does: overlays in order, knows the line of every value, refuses what makes no sense.

The first file is the chart's own (`helm/values.yaml`), the others are laid over it as `helm -f a -f b --set c=d` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonschema import Draft7Validator

from mesh.contract import Contract
from mesh.topology import (
    EDGE,
    Canary,
    DatabaseServer,
    Edge,
    EventsServer,
    Image,
    Limits,
    Service,
    ServiceDatabase,
    Telemetry,
    Topology,
    did_you_mean,
)
from mesh.traffic import Traffic
from mesh.values import layers, proxyless, sense, strvals
from mesh.values.layers import Node, Origin, YamlError
from mesh.values.schema import Problem, find_problems, without

CHART_VALUES = Path(__file__).resolve().parents[2] / "helm" / "values.yaml"
SCHEMA = CHART_VALUES.with_name("values.schema.json")


@dataclass(frozen=True)
class ValuesFile:
    """One values file: `path` for messages, `text` its YAML. An assignment is one too, with the path "--set a.b=c"."""

    path: str
    text: str


class ValuesError(Exception):
    """The values are refused; `problems` lists each as "file:line: what is wrong and what to do"."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def merge(files: list[ValuesFile]) -> dict[str, Any]:
    """The effective values: files overlaid in order, exactly as `helm -f a -f b` does (null removes a key).

    Raises:
        ValuesError: a file is not YAML, or no map; with the file and line of every problem.
    """
    plain: dict[str, Any] = layers.overlay(_parse(files)).plain()
    return plain


def load(files: list[ValuesFile]) -> Topology:
    """Merges, validates against helm/values.schema.json and for sense (calls, cycles, weights), and builds the model.

    Raises:
        ValuesError: with the file and line of every problem.
    """
    nodes = _parse(files)
    node = layers.overlay(nodes)
    dropped = [
        Problem.at(path, origin, "is empty, and Helm drops what is empty; write {} to take all defaults")
        for path, origin in layers.nulls(nodes[0])
    ]
    problems = dropped + find_problems(_validator(), node)
    topology = build(without(node, problems).plain())
    problems += sense.find_problems(topology, node, problems)
    problems = sense.misspelt(topology, nodes[0], problems, node) + problems
    if problems:
        raise ValuesError(
            _sorted([problem.origin for problem in problems], [f"{p.origin}: {p.sentence}" for p in problems], files)
        )
    return topology


def read(paths: list[Path], sets: list[str] | None = None) -> list[ValuesFile]:
    """Reads files from disk; `sets` are `a.b=c` assignments as `helm --set` takes them, appended as last overlays.

    Raises:
        ValuesError: a file cannot be read, or an assignment is malformed.
    """
    files: list[ValuesFile] = []
    problems: list[str] = []
    for path in paths:
        try:
            files.append(ValuesFile(str(path), path.read_text(encoding="utf-8")))
        except OSError as error:
            problems.append(f"{path}: {(error.strerror or str(error)).lower()}")
        except UnicodeDecodeError:
            problems.append(f"{path}: is not UTF-8 text")
    if problems:
        raise ValuesError(problems)
    return [*files, *_assignments(files, sets or [])]


def build(values: dict[str, Any]) -> Topology:
    """The model of effective values that the schema has accepted; what they leave out takes its default."""
    return Topology(
        services={name: _service(name, stanza) for name, stanza in values.get("services", {}).items()},
        edge=_edge(values.get("edge", {})),
        database=_made(DatabaseServer, values.get("database", {})),
        events=EventsServer(**_arguments(values.get("events", {}))),
        telemetry=Telemetry(**_arguments(values.get("telemetry", {}))),
        image=Image(**_arguments(values.get("image", {}))),
        **_arguments({key: values[key] for key in ("namespace", "trustDomain") if key in values}),
    )


def dump(values: dict[str, Any]) -> str:
    """YAML that reads back as the same values, here and in Helm: a tag of "12e5" keeps its quotation marks."""
    return layers.dump(values)


def locate(files: list[ValuesFile], *path: str | int) -> str:
    """Where an effective value was written, "helm/values.yaml:26": for messages about what came of it.

    Raises:
        ValuesError: a file is not YAML.
    """
    return str(layers.overlay(_parse(files)).locate(path))


def check(topology: Topology, contract: Contract) -> list[str]:
    """What the values and the contracts disagree on, a sentence each: a stanza without a package, or the reverse."""
    packages = {name for name in contract.methods if name != EDGE}
    stray = [
        f"services.{name}: there is no contract for it; add protos/nourish/{name}/v1/{name}.proto with a service"
        f"{did_you_mean(name, packages) if packages else ''}"
        for name in topology.services
        if name not in packages
    ]
    missing = [
        f"services.{name}: is missing, but protos/nourish/{name} holds its contract; add `{name}: {{}}` to the values"
        for name in sorted(packages - set(topology.services))
    ]
    return stray + missing + proxyless.hedged(topology, contract)


def _parse(files: list[ValuesFile]) -> list[Node]:
    if not files:
        raise ValuesError(["no values: give at least one file"])
    nodes: list[Node] = []
    found: list[tuple[Origin, str]] = []
    for file in files:
        try:
            nodes.append(layers.parse(file.path, file.text))
        except YamlError as error:
            found += error.problems
    if found:
        origins = [origin for origin, _ in found]
        raise ValuesError(_sorted(origins, [f"{origin}: {problem}" for origin, problem in found], files))
    return nodes


def _sorted(origins: list[Origin], sentences: list[str], files: list[ValuesFile]) -> list[str]:
    """The sentences once each, in the order of the files and lines that they are about."""
    rank = {file.path: position for position, file in enumerate(files)}
    ordered = sorted(zip(origins, sentences, strict=True), key=lambda pair: (rank[pair[0].path], pair[0].line))
    return list(dict.fromkeys(sentence for _, sentence in ordered))


def _assignments(files: list[ValuesFile], sets: list[str]) -> list[ValuesFile]:
    if not sets:
        return []
    user = layers.user_values(_parse(files)[1:])
    overlays: list[ValuesFile] = []
    problems: list[str] = []
    for expression in sets:
        path = f"--set {expression}"
        try:
            overlay = strvals.parse(expression, user.plain())
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        overlays.append(ValuesFile(path, json.dumps(overlay, ensure_ascii=False)))
        user = layers.user_values([user, layers.parse(path, overlays[-1].text)])
    if problems:
        raise ValuesError(problems)
    return overlays


@cache
def _validator() -> Draft7Validator:
    return Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _edge(stanza: dict[str, Any]) -> Edge:
    known = {"hosts": tuple(stanza["hosts"])} if "hosts" in stanza else {}
    return Edge(**{**_arguments(stanza), **known})


def _service(name: str, stanza: dict[str, Any]) -> Service:
    known = {
        "calls": tuple(stanza.get("calls", ())),
        "canary": Canary(**_arguments(stanza.get("canary", {}))),
        "limits": Limits(**_arguments(stanza.get("limits", {}))),
        "traffic": _made(Traffic, stanza.get("traffic", {})),
        **{key: _texts(stanza.get(key, {})) for key in ("settings", "flags")},
        "database": ServiceDatabase(**_arguments(stanza["database"])) if "database" in stanza else None,
        "events": stanza.get("events", False) is not False,
    }
    return Service(name, **{**_arguments(stanza), **known})


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass of the model, and those that it holds."""
    hints = get_type_hints(kind)
    arguments = _arguments(values)
    for name, value in arguments.items():
        if part := next((hint for hint in (hints[name], *get_args(hints[name])) if is_dataclass(hint)), None):
            arguments[name] = _made(part, value)
        elif isinstance(value, list):
            arguments[name] = tuple(value)
    return kind(**arguments)


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Values by the model's names: `poolSize` is `pool_size`."""
    return {"".join(f"_{c.lower()}" if c.isupper() else c for c in key): value for key, value in values.items()}
