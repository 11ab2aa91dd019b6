"""What the outside may reach: an allow-list, taken from the contract."""

from __future__ import annotations

from google.protobuf import descriptor_pb2

from mesh.contract import Method
from mesh.xds.plan import NodePlan

# The transcoder prints the details of an error only if it knows their types.
ERROR_DETAILS = "google/rpc/error_details.proto"


def methods(node: NodePlan) -> tuple[Method, ...]:
    """The exposed methods of every service, and of the edge's own application."""
    offered = [*node.methods, *(method for callee in node.callees for method in callee.methods)]
    return tuple(method for method in offered if method.exposed)


def services(node: NodePlan) -> tuple[str, ...]:
    """Full names of the proto services that have an exposed method."""
    return tuple(dict.fromkeys(method.service for method in methods(node)))


def descriptors(node: NodePlan) -> descriptor_pb2.FileDescriptorSet:
    """The files that define those services, with all they import, and no comments: a proxy holds each byte twice."""
    files = {file.name: file for file in node.descriptors.file}
    wanted = {name for name, file in files.items() if _full_names(file) & set(services(node))}
    needed: set[str] = set()
    waiting = [*wanted, *({ERROR_DETAILS} & files.keys())]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(files[name].dependency)
    found = descriptor_pb2.FileDescriptorSet(file=[file for name, file in files.items() if name in needed])
    for file in found.file:
        file.ClearField("source_code_info")
    return found


def _full_names(file: descriptor_pb2.FileDescriptorProto) -> set[str]:
    return {f"{file.package}.{service.name}" for service in file.service}
