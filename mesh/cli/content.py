"""What the platform keeps for a service as bytes, an event or the argument of a job, shown by its contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message


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


def corrected(name: str, data: bytes, assignments: Sequence[str]) -> Message:
    """The message with some fields set anew, each by `path.to.field=JSON`; what is no JSON is a text, null clears.

    All else stays as it is, what the contract does not know too.

    Raises:
        ValueError: it is no such message, has no such field, or breaks the contract's limits with it.
    """
    import protovalidate
    from google.protobuf import json_format, message_factory
    from google.protobuf.message import DecodeError

    from mesh.contract import Contract
    from mesh.dynamic import pool

    types = pool(Contract.read().descriptors)
    try:
        message = message_factory.GetMessageClass(types.FindMessageTypeByName(name)).FromString(data)
        for assignment in assignments:
            json_format.ParseDict(_nested(assignment), message, descriptor_pool=types)
        protovalidate.validate(message)
    except KeyError:
        raise ValueError(f"the contracts have no {name}") from None
    except DecodeError:
        raise ValueError(f"it is no {name}: nothing of it can be kept") from None
    except (json_format.ParseError, protovalidate.ValidationError) as error:
        raise ValueError(f"that makes no {name}: {error}") from None
    return message


def _nested(assignment: str) -> dict[str, Any]:
    """ "a.b=1" as {"a": {"b": 1}}."""
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")):
        raise ValueError(f"{assignment!r} sets nothing: write field=value")
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = text
    for part in reversed(path.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]
