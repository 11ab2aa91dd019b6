"""How large a call may be, at the callee's sidecar. More: RESOURCE_EXHAUSTED, in words, never a reset.

gRPC itself, at both ends, takes no message over 4 MiB; only less is work for a sidecar, which must hold what it
measures. A stream is not held: there the limit is gRPC's.
"""

from __future__ import annotations

from typing import Any

from envoy.extensions.common.async_files.v3.async_file_manager_pb2 import AsyncFileManagerConfig
from envoy.extensions.filters.http.file_system_buffer.v3.file_system_buffer_pb2 import (
    BufferBehavior,
    FileSystemBufferFilterConfig,
    StreamConfig,
)
from google.protobuf import wrappers_pb2

from mesh.contract import Method
from mesh.topology import MESSAGE_BYTES
from mesh.xds import pb
from mesh.xds.plan import NodePlan

# Despite its name it keeps all in memory: no more is allowed than that. The buffer filter knows requests alone, and its
# limit would hold for the response too.
FILTER = "envoy.filters.http.file_system_buffer"


def hold(node: NodePlan) -> Any | None:
    """Sleeps until a route says how much is held. None without a limit: Envoy calls the filter unfinished."""
    if node.limits.max_request_bytes == node.limits.max_response_bytes == MESSAGE_BYTES:
        return None
    return pb.sleeping(FILTER, FileSystemBufferFilterConfig())


def settings(node: NodePlan, method: Method) -> dict[str, Any]:
    """Holds what has a limit below gRPC's; by the filter's name, empty if nothing has."""
    limits = node.limits
    request = MESSAGE_BYTES if method.client_streaming else limits.max_request_bytes
    response = MESSAGE_BYTES if method.server_streaming else limits.max_response_bytes
    if request == response == MESSAGE_BYTES:
        return {}
    # It wants a thread for files that it never has.
    threads = AsyncFileManagerConfig(thread_pool=AsyncFileManagerConfig.ThreadPool(thread_count=1))
    config = FileSystemBufferFilterConfig(manager_config=threads, request=_held(request), response=_held(response))
    return {FILTER: pb.pack(config)}


def _held(limit: int) -> StreamConfig:
    if limit == MESSAGE_BYTES:
        return StreamConfig(behavior=BufferBehavior(bypass=BufferBehavior.Bypass()))
    return StreamConfig(
        behavior=BufferBehavior(fully_buffer=BufferBehavior.FullyBuffer()),
        memory_buffer_bytes_limit=wrappers_pb2.UInt64Value(value=limit),
        storage_buffer_bytes_limit=wrappers_pb2.UInt64Value(value=0),
    )
