"""Messages of any method, made from the descriptor set at run time."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from mesh.contract import Method


class Codec:
    """Translates between JSON and the wire for one method."""

    def __init__(self, descriptors: descriptor_pb2.FileDescriptorSet, method: Method) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptors.file:
            self._pool.Add(file)
        self._request, self._response = (
            message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))
            for name in (method.input_type, method.output_type)
        )

    def parse(self, text: str) -> Message:
        """The request that a JSON document describes.

        Raises:
            ValueError: it is not JSON, or has a field that the request does not.
        """
        try:
            return json_format.Parse(text, self._request(), descriptor_pool=self._pool)
        except json_format.ParseError as error:
            raise ValueError(str(error)) from None

    def to_json(self, message: Message) -> dict[str, Any]:
        """The JSON form of an answer, as REST clients see it."""
        return json_format.MessageToDict(message, always_print_fields_with_no_presence=True, descriptor_pool=self._pool)

    def serialize(self, message: Message) -> bytes:
        """A request's bytes."""
        return message.SerializeToString()

    def deserialize(self, data: bytes) -> Message:
        """An answer out of its bytes."""
        return self._response.FromString(data)
