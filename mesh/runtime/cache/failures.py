"""The one failure that a cache remembers: that something does not exist."""

from __future__ import annotations

from copy import copy

import grpc
from grpc.aio import AioRpcError

from mesh.runtime.errors import ServiceError

NotFound = ServiceError | AioRpcError


def not_found(error: BaseException) -> NotFound | None:
    """The error if it says NOT_FOUND, whether this service says it or one that it called."""
    if isinstance(error, ServiceError):
        return error if error.code is grpc.StatusCode.NOT_FOUND else None
    if isinstance(error, AioRpcError):
        return error if error.code() is grpc.StatusCode.NOT_FOUND else None
    return None


def again(error: NotFound) -> NotFound:
    """The same error, to be raised anew: one that is raised twice collects the traces of both."""
    if isinstance(error, AioRpcError):
        return copy(error)
    return ServiceError(
        error.reason,
        error.message,
        metadata=error.metadata,
        violations=error.violations,
        retry_seconds=error.retry_seconds,
    )
