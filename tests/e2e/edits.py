"""Random edits of the values, made from their schema: a key that is added to it is covered without being listed."""

import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import yaml

from tests.e2e.harness import ROOT

Path = tuple[str, ...]

SHIPPED = (ROOT / "helm/values.yaml").read_text()
SCHEMA = json.loads((ROOT / "helm/values.schema.json").read_text())
SERVICES = yaml.safe_load(SHIPPED)["services"]
WITHOUT_CANARY = [name for name, stanza in SERVICES.items() if not stanza.get("canary", {}).get("replicas")]

# What no valid edit touches, and why. A bad one may: it is refused.
KEPT_OUT = {
    "namespace": "a part of every identity: all certificates are made anew",
    "trustDomain": "as the namespace",
    "image.*": "of a cluster alone",
    "edge.port": "where the load goes",
    "edge.hosts": "the name that the load asks for",
    "*.replicas": "starts and ends processes",
    "*.lang": "starts and ends processes",
    "*.dataPlane": "starts and ends processes",
    "*.events": "starts and ends processes",
    "database.*": "starts and ends processes",
    "events.*": "starts and ends processes",
    "services.*.database.*": "starts and ends processes",
    "telemetry.otlp": "nobody takes traces there",
    "services.*.calls": "takes away the calls that the load needs",
    **{f"services.{name}.canary.weight": "there is no instance to take it" for name in WITHOUT_CANARY},
    **{f"services.{name}.traffic.mirror.percent": "there is no instance to take it" for name in WITHOUT_CANARY},
}
# The least that does not refuse the load on purpose.
AT_LEAST = {
    "services.*.limits.max*Bytes": 1_000_000,
    "services.*.limits.*": 50,
    "services.*.traffic.rates.*": 10_000,
    "services.*.traffic.concurrency.least": 50,
}


def places(schema: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Whatever may be written, with its schema: maps and what they hold; the services are those that are shipped.

    Not the flags: the parts of one must agree, and they have tests of their own.
    """
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    yield path, schema
    for key, child in schema.get("properties", {}).items():
        if key == "flags":
            continue
        yield from places(child, (*path, key))
    if isinstance(child := schema.get("additionalProperties"), dict):
        for name in SERVICES if path == ("services",) else ("anything",):
            yield from places(child, (*path, name))


PLACES = dict(places(SCHEMA))
MAPS = [path for path, schema in PLACES.items() if schema.get("type") == "object"]
LEAVES = [path for path in PLACES if path not in MAPS]
EDITABLE = [path for path in LEAVES if not any(fnmatch(".".join(path), pattern) for pattern in KEPT_OUT)]


def valid(rng: random.Random, beside: Path = ()) -> dict[str, Any]:
    """One to three values that the mesh must take, none in the stanza of `beside`."""
    overlay: dict[str, Any] = {}
    for path in rng.sample([p for p in EDITABLE if p[:2] != beside[:2]], rng.randint(1, 3)):
        put(overlay, path, value(rng, path))
    complete(rng, overlay)
    for stanza in overlay.get("services", {}).values():
        make_sense(stanza.get("traffic", {}))
    return overlay


def put(overlay: dict[str, Any], path: Path, new: Any) -> None:
    for key in path[:-1]:
        overlay = overlay.setdefault(key, {})
    overlay[path[-1]] = new


def value(rng: random.Random, path: Path) -> Any:
    """A value that the schema takes at `path`."""
    least = next((n for pattern, n in AT_LEAST.items() if fnmatch(".".join(path), pattern)), 0)
    match PLACES[path]:
        case {"enum": words}:
            return rng.choice(words)
        case {"type": ["string", "number", "boolean"]}:
            return rng.choice([word(rng), rng.randint(0, 9), rng.random(), True])
        case {"type": "boolean"}:
            return rng.choice([True, False])
        case {"type": "integer", "minimum": low, "maximum": high}:
            low = max(low, least)
            return rng.choice([low, high, rng.randint(low, high)])
        case {"type": "number", "minimum": low, "maximum": high}:
            return rng.choice([low, high, rng.uniform(low, high)])
        case {"type": "string"} as schema if "pattern" not in schema:
            return word(rng)
    raise NotImplementedError(f"{'.'.join(path)}: say in value() what it takes, or in KEPT_OUT why no edit touches it")


def word(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=12))


def complete(rng: random.Random, overlay: dict[str, Any], path: Path = ()) -> None:
    """Adds what a map must have, and takes away what it may not have besides."""
    schema = PLACES.get(path, {})
    for key in schema.get("required", []) if path else []:
        overlay.setdefault(key, value(rng, (*path, key)))
    while len(overlay) > schema.get("maxProperties", len(overlay)):
        overlay.popitem()
    for key, child in overlay.items():
        if isinstance(child, dict):
            complete(rng, child, (*path, key))


def make_sense(traffic: dict[str, Any]) -> None:
    """What the schema cannot say. And a fault is for calls with a header that the load's have not, or for none."""
    faults = traffic.get("faults", {})
    if "header" in faults and not {"abort", "delay"} & faults.keys():
        faults["abort"] = {}
    if "header" not in faults:
        for fault in {"abort", "delay"} & faults.keys():
            faults[fault]["percent"] = 0
    outliers = traffic.get("outliers", {})
    if outliers.get("ejectionSeconds", 5) > outliers.get("maxEjectionSeconds", 60):
        outliers["maxEjectionSeconds"] = outliers["ejectionSeconds"] = max(outliers.values())


@dataclass(frozen=True)
class Bad:
    """A bad edit: what its refusal says after file and line, and a word that stands on that line."""

    overlay: dict[str, Any]
    says: str
    word: str


def bad(rng: random.Random, number: int) -> Bad:
    """One value that must be refused, of each kind in turn, among others that are valid."""
    broken = KINDS[number % len(KINDS)](rng)
    overlay = valid(rng, beside=broken.path)
    put(overlay, broken.path, broken.new)
    complete(rng, overlay)
    return Bad(overlay, broken.says or f"{'.'.join(broken.path)}: ", broken.word or broken.path[-1])


@dataclass(frozen=True)
class Broken:
    """What is written where; and what is said, and the word on the line, if that is not the path and its last key."""

    path: Path
    new: Any
    says: str = ""
    word: str = ""


def any_service(rng: random.Random) -> Path:
    return "services", rng.choice(list(SERVICES))


def wrong_type(rng: random.Random) -> Broken:
    path = rng.choice(LEAVES)
    kind = PLACES[path].get("type")
    others = [word(rng), 1.5, True, [1]] if kind == "integer" else [[1]] if isinstance(kind, list) else [17]
    return Broken(path, rng.choice([{"a": 1}, *others]))


def unknown_key(rng: random.Random) -> Broken:
    path, key = rng.choice([path for path in MAPS if path[-1:] != ("settings",)]), word(rng)
    if path == ("services",):
        return Broken((*path, key), {})
    return Broken((*path, key), 1, f"{'.'.join(path)}: unknown key '{key}'".removeprefix(": "))


def unknown_service(rng: random.Random) -> Broken:
    path, ghost = (*any_service(rng), "calls"), word(rng)
    known = SERVICES[path[1]].get("calls", [])
    return Broken(path, [*known, ghost], f"{'.'.join(path)}[{len(known)}]: there is no service '{ghost}'", ghost)


def weight(rng: random.Random) -> Broken:
    return Broken((*any_service(rng), "canary", "weight"), 300)


def cycle(rng: random.Random) -> Broken:
    caller, callee = rng.choice([(name, c) for name, stanza in SERVICES.items() for c in stanza.get("calls", [])])
    return Broken(("services", callee, "calls"), [caller], f"services.{callee}.calls: form a cycle: ")


def out_of_bounds(rng: random.Random) -> Broken:
    path = rng.choice([path for path in LEAVES if "minimum" in PLACES[path]])
    return Broken(path, rng.choice([PLACES[path]["minimum"] - 1, PLACES[path]["maximum"] + 1]))


def no_such_word(rng: random.Random) -> Broken:
    return Broken(rng.choice([path for path in LEAVES if "enum" in PLACES[path]]), word(rng))


def refused_by_envoy(rng: random.Random) -> Broken:
    path = (*any_service(rng), "traffic", "faults")
    regex = rng.choice(["(", "[a", "*", "a{9999}", "(?<=a)b"])
    says = f"{'.'.join(path)}.header.regex: Envoy refuses it: "
    return Broken(path, {"abort": {}, "header": {"regex": regex}}, says, "regex")


KINDS: list[Callable[[random.Random], Broken]] = [
    wrong_type,
    unknown_key,
    unknown_service,
    weight,
    cycle,
    out_of_bounds,
    no_such_word,
    refused_by_envoy,
]
