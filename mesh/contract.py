"""The model of the descriptor set: services, methods and their policies. Everything the mesh derives starts here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from google.protobuf import descriptor_pb2

Access = Literal["public", "user", "service"]
Idempotency = Literal["unknown", "no_side_effects", "idempotent"]


@dataclass(frozen=True)
class RestBinding:
    """One google.api.http rule: `verb` "GET", `path` "/api/v1/{name=foods/*}", `body` "", "*" or a field name."""

    verb: str
    path: str
    body: str = ""

    @cached_property
    def regex(self) -> str:
        """A full-match RE2 regex of the paths that this template accepts (query string excluded)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Method:
    """One RPC and its policy. `path` is its gRPC path, "/nourish.food.v1.FoodService/GetFood"."""

    service: str  # full name of the proto service, "nourish.food.v1.FoodService"
    name: str
    path: str
    input_type: str
    output_type: str
    idempotency: Idempotency
    deadline_seconds: float
    access: Access
    scopes: tuple[str, ...] = ()
    rate_class: str = "read"
    cache_seconds: float = 0.0
    hedge_seconds: float = 0.0
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

    # Mesh service name ("food", or "edge" for nourish.mesh.v1.EdgeService) to its methods. ControlService is not listed.
    methods: dict[str, tuple[Method, ...]]
    descriptors: descriptor_pb2.FileDescriptorSet

    @classmethod
    def load(cls, serialized: bytes) -> Contract:
        """Reads a FileDescriptorSet.

        Raises:
            ContractError: a method lacks a policy, or has one that contradicts itself; each is named.
        """
        raise NotImplementedError

    def grpc_services(self, service: str) -> tuple[str, ...]:
        """Full names of the proto services of a mesh service: `food` -> ("nourish.food.v1.FoodService",)."""
        return tuple(dict.fromkeys(m.service for m in self.methods[service]))


class ContractError(Exception):
    """The contracts contradict themselves; `problems` lists each with its method."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
