"""One JSON line a call, on standard output: who called what, how it ended, and why."""

from __future__ import annotations

from envoy.config.accesslog.v3.accesslog_pb2 import (
    AccessLog,
    AccessLogFilter,
    GrpcStatusFilter,
    HeaderFilter,
    OrFilter,
)
from envoy.config.core.v3 import substitution_format_string_pb2
from envoy.extensions.access_loggers.stream.v3 import stream_pb2
from google.protobuf import struct_pb2

from mesh.xds import pb
from mesh.xds.policies.rbac import HEALTH

# What is the same in every line of a listener, or can be reckoned from the others, is left out: each word of a line is
# formatted for every call, which is most of what a line costs.
FIELDS = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "method": "%REQ(:PATH)%",
    "status": "%GRPC_STATUS%",
    "ms": "%DURATION%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
}
CALLER = {"caller": "%DOWNSTREAM_PEER_URI_SAN%"}
CALLEE = {
    "cluster": "%UPSTREAM_CLUSTER%",
    "upstream": "%UPSTREAM_HOST%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
}


def log(direction: str, **fields: str) -> AccessLog:
    """The log of a listener. Good answers to health checks are left out: there are many and they say nothing."""
    form = struct_pb2.Struct()
    form.update({"log": direction, **FIELDS, **fields})
    config = stream_pb2.StdoutAccessLog(
        log_format=substitution_format_string_pb2.SubstitutionFormatString(json_format=form, omit_empty_values=True)
    )
    return AccessLog(name="envoy.access_loggers.stdout", filter=_worth_a_line(), typed_config=pb.pack(config))


def _worth_a_line() -> AccessLogFilter:
    health = pb.header_is(":path", pb.prefix(HEALTH))
    health.invert_match = True
    failed = GrpcStatusFilter(statuses=[GrpcStatusFilter.Status.OK], exclude=True)
    return AccessLogFilter(
        or_filter=OrFilter(
            filters=[
                AccessLogFilter(header_filter=HeaderFilter(header=health)),
                AccessLogFilter(grpc_status_filter=failed),
            ]
        )
    )
