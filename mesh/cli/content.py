"""What the platform keeps for a service as bytes, an event or the argument of a job, shown by its contract."""

from __future__ import annotations

from typing import Any


def decoded(name: str, data: bytes) -> dict[str, Any]:
    """The `content` of a message of the contracts, and which sensitive fields were taken out: `masked`."""
    from google.protobuf import json_format, message_factory
    from google.protobuf.message import DecodeError

    from mesh.contract import Contract
    from mesh.dynamic import pool
    from mesh.runtime.sensitive import mask

    types = pool(Contract.read().descriptors)
    try:
        message = message_factory.GetMessageClass(types.FindMessageTypeByName(name)).FromString(data)
    except KeyError:
        return {"content": f"the contracts have no {name}: {len(data)} bytes", "masked": []}
    except DecodeError:
        return {"content": f"no {name}: {len(data)} bytes", "masked": []}
    masked = mask(message)
    return {"content": json_format.MessageToDict(message, descriptor_pool=types), "masked": masked}
