"""Asks running processes, by gRPC reflection, which contract they serve and with which their callers were built."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from mesh.compatibility import violations
from mesh.contract import Contract
from mesh.local.events import InstanceState
from mesh.local.paths import Paths
from mesh.topology import EDGE

ASK_SECONDS = 5.0


def problems(paths: Paths, running: Sequence[InstanceState], service: str, callers: Collection[str]) -> list[str]:
    """Why the service's canary must not be sent calls of the callers that run; empty if it may."""
    found: list[str] = []
    contract = Contract.read()
    built = DescriptorPool()
    for file in contract.descriptors.file:
        built.Add(file)
    canaries = [i.id for i in running if (i.service, i.subset) == (service, "canary")]
    askers = [i.id for i in running if i.service in callers and i.service != EDGE]
    for name in contract.grpc_services(service):
        known: dict[str, ServiceDescriptor] = {"the edge": built.FindServiceByName(name)}
        known |= {id: d for id in askers if (d := _ask(paths, id, name))}
        for canary in canaries:
            served = _ask(paths, canary, name)
            if served is None:
                found.append(f"{canary} does not say by reflection that it serves {name}")
                continue
            for caller, theirs in known.items():
                found += [f"{canary} breaks {caller}: {problem}" for problem in violations(theirs, served)]
    return list(dict.fromkeys(found))


def _ask(paths: Paths, instance: str, name: str) -> ServiceDescriptor | None:
    """A proto service as an instance's own descriptors have it; None if it has none, or does not answer."""
    with grpc.insecure_channel(f"unix:{paths.app_socket(instance)}") as plain:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(grpc.intercept_channel(plain, _Deadline())))
        try:
            return pool.FindServiceByName(name)
        except (KeyError, grpc.RpcError, TypeError):
            return None


class _Deadline(grpc.StreamStreamClientInterceptor):
    """Bounds each question: a process that hangs does not hang its asker."""

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(client_call_details._replace(timeout=ASK_SECONDS), request_iterator)
