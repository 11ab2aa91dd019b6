"""The model of the descriptor set: services, methods and their policies. Everything the mesh derives starts here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.duration_pb2 import Duration
from nourish.mesh.v1 import policy_pb2

from mesh.path_template import PathTemplate

DESCRIPTORS = Path(__file__).resolve().parents[1] / "gen" / "descriptors.binpb"

Access = Literal["public", "user", "service"]
Idempotency = Literal["unknown", "no_side_effects", "idempotent"]

_ACCESS: dict[int, Access] = {
    policy_pb2.ACCESS_PUBLIC: "public",
    policy_pb2.ACCESS_USER: "user",
    policy_pb2.ACCESS_SERVICE: "service",
}
_IDEMPOTENCY: dict[int, Idempotency] = {
    descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN: "unknown",
    descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS: "no_side_effects",
    descriptor_pb2.MethodOptions.IDEMPOTENT: "idempotent",
}
_PACKAGE = re.compile(r"nourish\.(?P<name>[^.]+)\.v[0-9]+")
_NAME = re.compile(r"[a-z][a-z0-9]{0,40}")
_MESH_PACKAGE = "mesh"
_MESH_SERVICES = {"EdgeService": "edge"}  # of the platform's own package, those that instances of the mesh serve
_LONGEST_DEADLINE = 300.0  # seconds; as policy.proto says


@dataclass(frozen=True)
class RestBinding:
    """One google.api.http rule: `verb` "GET", `path` "/api/v1/{name=foods/*}", `body` "", "*" or a field name."""

    verb: str
    path: str
    body: str = ""

    @cached_property
    def template(self) -> PathTemplate:
        """The parsed path.

        Raises:
            ValueError: the path is not a template of google.api.http.
        """
        return PathTemplate.parse(self.path)

    @cached_property
    def regex(self) -> str:
        """A full-match RE2 regex of the paths that this template accepts (query string excluded)."""
        return self.template.regex


@dataclass(frozen=True)
class Method:
    """One RPC and its policy. `path` is its gRPC path, "/nourish.food.v1.FoodService/GetFood"."""

    service: str  # full name of the proto service, "nourish.food.v1.FoodService"
    name: str
    path: str
    input_type: str  # full name of the request's message, "nourish.food.v1.GetFoodRequest"
    output_type: str
    idempotency: Idempotency
    deadline_seconds: float
    access: Access
    scopes: tuple[str, ...] = ()
    rate_class: str = "read"
    cache_seconds: float = 0.0
    hedge_seconds: float = 0.0
    hash_key: str = ""  # the request's field by which calls are kept together, if the values balance so
    rest: tuple[RestBinding, ...] = ()
    client_streaming: bool = False
    server_streaming: bool = False

    @property
    def exposed(self) -> bool:
        """Whether the edge offers it: a REST binding, and public or user access."""
        return bool(self.rest) and self.access != "service"


@dataclass(frozen=True)
class Contract:
    """The contracts of every service of the mesh."""

    # Mesh service name ("food", or "edge" for nourish.mesh.v1.EdgeService) to its methods; without ControlService.
    methods: dict[str, tuple[Method, ...]]
    descriptors: descriptor_pb2.FileDescriptorSet

    @classmethod
    def load(cls, serialized: bytes) -> Contract:
        """Reads a FileDescriptorSet.

        Raises:
            ContractError: a method lacks a policy, or has one that contradicts itself; each is named.
        """
        descriptors = descriptor_pb2.FileDescriptorSet.FromString(serialized)
        fields = _fields(descriptors)
        methods: dict[str, tuple[Method, ...]] = {}
        problems: list[str] = []
        for service, full_name, proto in _services(descriptors):
            if not _NAME.fullmatch(service):
                problems.append(f"{full_name}: the package segment {service!r} is no service name: use a-z and 0-9")
            for method in proto.method:
                found = _method_problems(method, fields)
                problems += [f"{full_name}/{method.name}: {problem}" for problem in found]
                if not found:
                    methods[service] = (*methods.get(service, ()), _method(full_name, method))
        problems += [*_collisions(methods), *_event_problems(descriptors, fields)]
        if problems:
            raise ContractError(problems)
        return cls(methods, descriptors)

    @classmethod
    def read(cls, path: Path = DESCRIPTORS) -> Contract:
        """Loads a descriptor file, by default the repository's own.

        Raises:
            ContractError: as `load` does.
            OSError: the file cannot be read.
        """
        return cls.load(path.read_bytes())

    def grpc_services(self, service: str) -> tuple[str, ...]:
        """Full names of the proto services of a mesh service: `food` -> ("nourish.food.v1.FoodService",)."""
        return tuple(dict.fromkeys(m.service for m in self.methods[service]))

    def method(self, path: str) -> Method:
        """The method of a gRPC path, "/nourish.food.v1.FoodService/GetFood".

        Raises:
            KeyError: no such method.
        """
        return self._by_path[path]

    def exposed_methods(self) -> dict[str, tuple[Method, ...]]:
        """By mesh service, the methods that the edge offers; services that offer none are left out."""
        exposed = {name: tuple(m for m in methods if m.exposed) for name, methods in self.methods.items()}
        return {name: methods for name, methods in exposed.items() if methods}

    @cached_property
    def _by_path(self) -> dict[str, Method]:
        return {m.path: m for methods in self.methods.values() for m in methods}


class ContractError(Exception):
    """The contracts contradict themselves; `problems` lists each with its method."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _services(
    descriptors: descriptor_pb2.FileDescriptorSet,
) -> Iterator[tuple[str, str, descriptor_pb2.ServiceDescriptorProto]]:
    """Mesh name, full name and descriptor of each service; of the platform's own package the edge's alone."""
    for file in descriptors.file:
        package = _PACKAGE.fullmatch(file.package)
        if package is None:
            continue
        for service in file.service:
            if package["name"] != _MESH_PACKAGE:
                yield package["name"], f"{file.package}.{service.name}", service
            elif service.name in _MESH_SERVICES:
                yield _MESH_SERVICES[service.name], f"{file.package}.{service.name}", service


def _method(service: str, proto: descriptor_pb2.MethodDescriptorProto) -> Method:
    policy = proto.options.Extensions[policy_pb2.method]
    rate_class = policy.rate_class or policy_pb2.RATE_CLASS_READ
    return Method(
        service=service,
        name=proto.name,
        path=f"/{service}/{proto.name}",
        input_type=proto.input_type.lstrip("."),
        output_type=proto.output_type.lstrip("."),
        idempotency=_IDEMPOTENCY[proto.options.idempotency_level],
        deadline_seconds=_seconds(policy.deadline),
        access=_ACCESS[policy.access],
        scopes=tuple(policy.scopes),
        rate_class=policy_pb2.RateClass.Name(rate_class).removeprefix("RATE_CLASS_").lower(),
        cache_seconds=_seconds(policy.cache_ttl),
        hedge_seconds=_seconds(policy.hedging.delay),
        hash_key=policy.hash_key,
        rest=_bindings(proto),
        client_streaming=proto.client_streaming,
        server_streaming=proto.server_streaming,
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _bindings(proto: descriptor_pb2.MethodDescriptorProto) -> tuple[RestBinding, ...]:
    http: Any = annotations_pb2.http  # its package types it as a plain FieldDescriptor
    if not proto.options.HasExtension(http):
        return ()
    rule = proto.options.Extensions[http]
    return tuple(_binding(r) for r in (rule, *rule.additional_bindings))


def _binding(rule: http_pb2.HttpRule) -> RestBinding:
    kind = rule.WhichOneof("pattern") or ""
    if kind == "custom":
        return RestBinding(rule.custom.kind, rule.custom.path, rule.body)
    return RestBinding(kind.upper(), getattr(rule, kind) if kind else "", rule.body)


def _method_problems(proto: descriptor_pb2.MethodDescriptorProto, fields: _Fields) -> list[str]:
    """What policy.proto's comments forbid, a sentence each."""
    if not proto.options.HasExtension(policy_pb2.method):
        return ["has no policy: add option (nourish.mesh.v1.method)"]
    return [*_policy_problems(proto), *_hash_key_problems(proto, fields), *_rest_problems(proto, fields)]


def _policy_problems(proto: descriptor_pb2.MethodDescriptorProto) -> list[str]:
    policy = proto.options.Extensions[policy_pb2.method]
    pure = proto.options.idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    cached, hedged = policy.HasField("cache_ttl"), policy.HasField("hedging")
    deadline, cache_ttl, delay = map(_seconds, (policy.deadline, policy.cache_ttl, policy.hedging.delay))
    rules = (
        (
            proto.options.HasField("idempotency_level"),
            "has no idempotency_level: set one, IDEMPOTENCY_UNKNOWN for what must not be repeated",
        ),
        (policy.HasField("deadline"), "has no deadline"),
        (
            0 < deadline <= _LONGEST_DEADLINE or not policy.HasField("deadline"),
            f"the deadline of {deadline:g} s is not above 0 s and at most {_LONGEST_DEADLINE:g} s",
        ),
        (policy.access in _ACCESS, "has no access: set ACCESS_PUBLIC, ACCESS_USER or ACCESS_SERVICE"),
        (
            policy.access == policy_pb2.ACCESS_USER or not policy.scopes,
            "has scopes without ACCESS_USER: only a user's token carries scopes",
        ),
        (
            (pure and policy.access == policy_pb2.ACCESS_PUBLIC) or not cached,
            "has a cache_ttl without NO_SIDE_EFFECTS and ACCESS_PUBLIC: a shared cache would leak or lose",
        ),
        (cache_ttl > 0 or not cached, "has a cache_ttl that is not above 0 s"),
        (pure or not hedged, "is hedged without NO_SIDE_EFFECTS: the second attempt would act twice"),
        (0 < delay < deadline or not hedged, "has a hedging delay that is not above 0 s and below the deadline"),
    )
    return [problem for holds, problem in rules if not holds]


def _hash_key_problems(proto: descriptor_pb2.MethodDescriptorProto, fields: _Fields) -> Iterator[str]:
    key = proto.options.Extensions[policy_pb2.method].hash_key
    if key and proto.client_streaming:
        yield "has a hash_key and streams its requests: there is no one request to take it from"
    if key and fields.get(proto.input_type, {}).get(key) != "":
        yield f"hash_key: {proto.input_type.lstrip('.')} has no scalar field {key!r}"


def _rest_problems(proto: descriptor_pb2.MethodDescriptorProto, fields: _Fields) -> Iterator[str]:
    policy = proto.options.Extensions[policy_pb2.method]
    bindings = _bindings(proto)
    if bindings and policy.access == policy_pb2.ACCESS_SERVICE:
        yield "has a REST binding and ACCESS_SERVICE: the edge never offers it"
    for binding in bindings:
        yield from _binding_problems(binding, proto, fields)


def _binding_problems(
    binding: RestBinding, proto: descriptor_pb2.MethodDescriptorProto, fields: _Fields
) -> Iterator[str]:
    try:
        template = binding.template
    except ValueError as error:
        yield f"REST path {binding.path!r}: {error}"
        return
    health = proto.input_type == ".nourish.mesh.v1.GetHealthRequest" and binding.path == "/health"
    if not binding.path.startswith("/api/v1/") and not health:
        yield f"REST path {binding.path!r} does not begin with /api/v1/"
    if binding.verb == "GET" and proto.options.idempotency_level != descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS:
        yield "is bound to GET without NO_SIDE_EFFECTS: anyone on the way may repeat a GET"
    named = [*template.variables, *([binding.body] if binding.body not in ("", "*") else [])]
    for field in named:
        if not _has_field(proto.input_type, field, fields):
            yield f"REST binding {binding.verb} {binding.path}: {proto.input_type.lstrip('.')} has no field {field!r}"


def _collisions(methods: dict[str, tuple[Method, ...]]) -> list[str]:
    """Pairs of bindings that one request would match both of."""
    bound = [(method, binding) for listed in methods.values() for method in listed for binding in method.rest]
    return [
        f"{method.path[1:]}: {binding.verb} {binding.path} collides with {theirs.path} of {other.path[1:]}"
        for index, (method, binding) in enumerate(bound)
        for other, theirs in bound[:index]
        if binding.verb == theirs.verb and binding.template.overlaps(theirs.template)
    ]


def _event_problems(descriptors: descriptor_pb2.FileDescriptorSet, fields: _Fields) -> Iterator[str]:
    """What policy.proto's comments forbid of events, and what would give them no owner."""
    for file in descriptors.file:
        for message in file.message_type:
            if not message.options.HasExtension(policy_pb2.event):
                continue
            name = f"{file.package}.{message.name}"
            package = _PACKAGE.fullmatch(file.package)
            if package is None:
                yield f"{name}: is an event outside the packages of services: nobody publishes it"
            key = message.options.Extensions[policy_pb2.event].key
            labels = {field.name: field.label for field in message.field}
            if fields[f".{name}"].get(key) != "" or labels[key] == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED:
                yield f"{name}: the key of the event must be one of its singular scalar fields, and is {key!r}"


_Fields = dict[str, dict[str, str]]  # by message ".nourish.food.v1.Food": field name to its message type, or ""


def _fields(descriptors: descriptor_pb2.FileDescriptorSet) -> _Fields:
    found: _Fields = {}

    def add(prefix: str, message: descriptor_pb2.DescriptorProto) -> None:
        name = f"{prefix}.{message.name}"
        found[name] = {field.name: field.type_name for field in message.field}
        for nested in message.nested_type:
            add(name, nested)

    for file in descriptors.file:
        for message in file.message_type:
            add(f".{file.package}", message)
    return found


def _has_field(message: str, path: str, fields: _Fields) -> bool:
    for part in path.split("."):
        if part not in fields.get(message, {}):
            return False
        message = fields[message][part]
    return True
