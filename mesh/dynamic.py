"""Messages of any method, made from the descriptor set at run time."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from mesh.contract import Method


def pool(descriptors: descriptor_pb2.FileDescriptorSet) -> descriptor_pool.DescriptorPool:
    """The types of a descriptor set, apart from those of the generated modules."""
    made = descriptor_pool.DescriptorPool()
    for file in descriptors.file:
        made.Add(file)
    return made


class Codec:
    """Translates between JSON and the wire for one method."""

    def __init__(self, types: descriptor_pool.DescriptorPool, method: Method) -> None:
        self._pool = types
        self.method = method
        self._request, self._response = (
            message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))
            for name in (method.input_type, method.output_type)
        )

    def parse(self, text: str) -> Message:
        """The request that a JSON document describes.

        Raises:
            ValueError: it is not JSON, or has a field that the request does not.
        """
        return self._parse(text, self._request())

    def parse_answer(self, text: str) -> Message:
        """The answer that a JSON document describes; raises as `parse` does."""
        return self._parse(text, self._response())

    def to_json(self, message: Message, *, defaults: bool = True) -> dict[str, Any]:
        """The JSON form of a message, as REST clients see it; `defaults` says whether with the fields that are unset.

        Raises:
            ValueError: it holds an Any of a type that the descriptors do not have.
        """
        try:
            return json_format.MessageToDict(
                message, always_print_fields_with_no_presence=defaults, descriptor_pool=self._pool
            )
        except TypeError as error:
            raise ValueError(str(error)) from None

    def serialize(self, message: Message) -> bytes:
        """A request's bytes."""
        return message.SerializeToString()

    def deserialize(self, data: bytes) -> Message:
        """An answer out of its bytes."""
        return self._response.FromString(data)

    def deserialize_request(self, data: bytes) -> Message:
        """A request out of its bytes."""
        return self._request.FromString(data)

    def _parse(self, text: str, message: Message) -> Message:
        try:
            return json_format.Parse(text, message, descriptor_pool=self._pool)
        except json_format.ParseError as error:
            raise ValueError(str(error)) from None
