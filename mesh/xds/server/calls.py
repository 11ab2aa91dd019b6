"""What every method of the control plane's own API does with a call: check the request, keep within its deadline."""

from __future__ import annotations

from typing import Any

import grpc
import protovalidate
from google.protobuf.message import Message

MARGIN_SECONDS = 0.5  # an answer must leave before its caller gives up

Context = grpc.aio.ServicerContext[Any, Any]


def at_most(seconds: float, context: Context) -> float:
    """So many seconds, or what the caller's deadline leaves."""
    left = context.time_remaining()
    return seconds if left is None else max(0.0, min(seconds, left - MARGIN_SECONDS))


async def validate(request: Message, context: Context) -> None:
    """Ends the call with INVALID_ARGUMENT unless the request is as its contract says."""
    try:
        protovalidate.validate(request)
    except protovalidate.ValidationError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
