"""The descriptor set of the tests' two services."""

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2, status_pb2

TYPES = descriptor_pb2.FieldDescriptorProto
FIELDS = {
    "GetItemRequest": ["name"],
    "GetItemResponse": ["name", "note"],
    "PutItemRequest": ["item"],
    "PutItemResponse": ["item"],
    "SweepRequest": [],
    "SweepResponse": [],
    "AskRequest": ["question"],
    "AskResponse": ["answer"],
}
REST = {
    "GetItem": ("get", "/api/v1/{name=items/*}", ""),
    "PutItem": ("post", "/api/v1/items", "item"),
    "Ask": ("get", "/api/v1/answers", ""),
}


def build() -> descriptor_pb2.FileDescriptorSet:
    found = descriptor_pb2.FileDescriptorSet()
    modules = (annotations_pb2, http_pb2, status_pb2, error_details_pb2)
    from google.protobuf import any_pb2, duration_pb2

    for module in (descriptor_pb2, any_pb2, duration_pb2, http_pb2, annotations_pb2, status_pb2, error_details_pb2):
        module.DESCRIPTOR.CopyToProto(found.file.add())
    assert modules
    for service, methods in (("store", ("GetItem", "PutItem", "Sweep")), ("front", ("Ask",))):
        _file(found.file.add(), service, methods)
    return found


def _file(file: descriptor_pb2.FileDescriptorProto, service: str, methods: tuple[str, ...]) -> None:
    package = f"nourish.{service}.v1"
    file.name, file.package, file.syntax = f"nourish/{service}/v1/{service}.proto", package, "proto3"
    file.dependency.append("google/api/annotations.proto")
    added = file.service.add(name=f"{service.title()}Service")
    for name in methods:
        for kind in (f"{name}Request", f"{name}Response"):
            message = file.message_type.add(name=kind)
            for number, field in enumerate(FIELDS[kind], start=1):
                message.field.add(
                    name=field, number=number, type=TYPES.TYPE_STRING, label=TYPES.LABEL_OPTIONAL, json_name=field
                )
        method = added.method.add(
            name=name, input_type=f".{package}.{name}Request", output_type=f".{package}.{name}Response"
        )
        if name in REST:
            verb, path, body = REST[name]
            rule = http_pb2.HttpRule(body=body, **{verb: path})
            method.options.Extensions[annotations_pb2.http].CopyFrom(rule)
