"""What no schema can say of values: that calls exist and form no cycle, that weights have instances, that pools fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from mesh.topology import EDGE, SUBSETS, Service, Topology, did_you_mean, find_cycle
from mesh.values import proxyless
from mesh.values.layers import ASSIGNMENT, Node, resolve
from mesh.values.schema import Path, Problem

# Of a server's max_connections: 3 that PostgreSQL keeps for superusers (superuser_reserved_connections), and 7 for
# migrations, backups and people.
RESERVED_CONNECTIONS = 10
# Of all flags of a service: a quarter of what one message holds, and they are told in one.
FLAGS_LETTERS = 1_000_000


def find_problems(topology: Topology, node: Node, known: list[Problem]) -> list[Problem]:
    """All that makes no sense, but for what only follows from the problems already known."""
    refused = {problem.path[:2] for problem in known}
    found: list[tuple[Path, str]] = []
    for name, service in topology.services.items():
        found += _calls(service, topology)
        if ("services", name) not in refused:
            found += _weights(service)
            found += _traffic(service)
            found += proxyless.refusals(service, topology)
            found += _settings(service, node)
            found += _flags(service)
    others = {name: tuple(c for c in service.calls if c != name) for name, service in topology.services.items()}
    if cycle := find_cycle(others):
        found.append((_closing(cycle, node), f"form a cycle: {' -> '.join(cycle)}"))
    if not known:
        found += _replicas(topology)
        found += _pools(topology)
    return [Problem.at(path, node.locate(path), sentence) for path, sentence in found]


def misspelt(topology: Topology, chart: Node, problems: list[Problem], node: Node) -> list[Problem]:
    """Stanzas with problems that the chart's own values do not have, under a name much like that of one they have."""
    services = chart.value.get("services") if isinstance(chart.value, dict) else None
    known = services.value.keys() if services and isinstance(services.value, dict) else ()
    wrong = {problem.path[1] for problem in problems if problem.path[:1] == ("services",) and len(problem.path) > 1}
    found = []
    for name in topology.services:
        if name in wrong and name not in known and get_close_matches(name, known, n=1):
            path: Path = ("services", name)
            meant = did_you_mean(name, known)
            found.append(Problem.at(path, node.locate(path), f"there is no service {name!r}{meant}"))
    return found


def _calls(service: Service, topology: Topology) -> Iterator[tuple[Path, str]]:
    for position, callee in enumerate(service.calls):
        path = ("services", service.name, "calls", position)
        if callee == EDGE:
            yield path, "no service can call the edge"
        elif callee == service.name:
            yield path, f"{callee!r} is the service itself; it needs no network to call itself"
        elif callee not in topology.services:
            others = topology.services.keys() - {service.name}
            yield path, f"there is no service {callee!r}{did_you_mean(callee, others)}"


def _closing(cycle: tuple[str, ...], node: Node) -> Path:
    """Of the calls that form a cycle, those of the file laid over the others: what it says is what is new."""
    paths: list[Path] = [("services", name, "calls") for name in reversed(cycle[:-1])]
    return next((path for path in paths if node.locate(path).path == node.origin.path), paths[0])


def _weights(service: Service) -> Iterator[tuple[Path, str]]:
    replicas = {"stable": service.replicas, "canary": service.canary.replicas}
    keys: dict[str, Path] = {"stable": ("replicas",), "canary": ("canary", "weight")}
    weights = {"stable": 100 - service.canary.weight, "canary": service.canary.weight}
    for subset in SUBSETS:
        if subset in service.live_subsets and not replicas[subset]:
            key = "replicas" if subset == "stable" else "canary.replicas"
            yield (
                ("services", service.name, *keys[subset]),
                f"{subset} takes {weights[subset]} % of the calls but has no instance; set {key} to 1 or more",
            )


def _traffic(service: Service) -> Iterator[tuple[Path, str]]:
    path: Path = ("services", service.name, "traffic")
    faults = service.traffic.faults
    if faults.header and not (faults.delay or faults.abort):
        yield (*path, "faults"), "has a header but nothing to do: add delay or abort"
    outliers = service.traffic.outliers
    if outliers.max_ejection_seconds < outliers.ejection_seconds:
        fault = f"must be at least as long as the first, {outliers.ejection_seconds} s"
        yield (*path, "outliers", "maxEjectionSeconds"), fault
    if service.traffic.mirror.percent and not service.canary.replicas:
        fault = "the canary has no instance to take the copies; set canary.replicas to 1 or more"
        yield (*path, "mirror", "percent"), fault


def _settings(service: Service, node: Node) -> Iterator[tuple[Path, str]]:
    for key, text in service.settings.items():
        path: Path = ("services", service.name, "settings", key)
        value, assigned = json.loads(text), node.locate(path).path.startswith(ASSIGNMENT)
        if assigned and isinstance(value, str) and isinstance(resolve(value), float):
            yield (
                path,
                f"{value!r} is a text here: as in Helm, --set makes numbers of whole ones alone; use a file and -f",
            )


def _flags(service: Service) -> Iterator[tuple[Path, str]]:
    size = sum(map(len, service.flags.values()))
    if size > FLAGS_LETTERS:
        fault = f"have {size} characters in all, more than the maximum of {FLAGS_LETTERS}: rules are for few users"
        yield ("services", service.name, "flags"), fault
    for name, text in service.flags.items():
        for key, fault in _flag(json.loads(text)):
            yield ("services", service.name, "flags", name, *key), fault


def _flag(flag: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    if ("variants" in flag) != ("default" in flag):
        yield (), "has variants or a default but not both: give both, or neither for enabled and disabled"
        return
    variants = flag.get("variants", {"enabled": True, "disabled": False})
    kinds = {float if type(value) is int else type(value) for value in variants.values()}
    if len(kinds) > 1:
        yield ("variants",), "are of several types: all values are numbers, texts, maps, or true or false"
    shares = flag.get("shares", {})
    if sum(shares.values()) > 100:
        yield ("shares",), f"are {sum(shares.values()):g} percent in all, more than 100"
    rules = [(("rules", place, "variant"), rule["variant"]) for place, rule in enumerate(flag.get("rules", []))]
    named: list[tuple[Path, str]] = [(("default",), flag.get("default", "disabled")), *rules]
    for path, variant in [*named, *((("shares", variant), variant) for variant in shares)]:
        if variant not in variants:
            yield path, f"there is no variant {variant!r}{did_you_mean(variant, variants)}"
        elif path[0] == "shares" and variant == flag.get("default", "disabled"):
            yield path, "is the default, which takes what the others leave: leave it out"


def _replicas(topology: Topology) -> Iterator[tuple[Path, str]]:
    server = topology.database
    if server.replicas and not server.address:
        fault = "the embedded server has no copies; set database.address to the server that these follow"
        yield ("database", "replicas"), fault
    for position, address in enumerate(server.replicas):
        if address == server.address:
            yield ("database", "replicas", position), f"{address} is the server itself, database.address"


def _pools(topology: Topology) -> Iterator[tuple[Path, str]]:
    pools = topology.pooled_connections
    available = topology.database.max_connections - RESERVED_CONNECTIONS
    if sum(pools.values()) <= available:
        return
    terms = " + ".join(f"{name} {_product(topology, name)}" for name in pools)
    where = " here and on each replica" if topology.database.replicas else ""
    yield (
        ("database", "maxConnections"),
        f"the pools of all instances need {sum(pools.values())} connections{where} ({terms}), but {available} are "
        f"there ({topology.database.max_connections} - {RESERVED_CONNECTIONS} in reserve); "
        f"raise it to {sum(pools.values()) + RESERVED_CONNECTIONS} or lower a poolSize",
    )


def _product(topology: Topology, name: str) -> str:
    database = topology.services[name].database
    assert database is not None
    pool = f"({database.pool_size} + 1 for events)" if topology.services[name].events else f"{database.pool_size}"
    return f"{pool} x {len(topology.instances(name))}"
