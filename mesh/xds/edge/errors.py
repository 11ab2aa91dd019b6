"""What the edge says when it answers by itself: the one error shape, never the engine's own words.

    {"code": 5, "message": "...", "details": [{"@type": ".../google.rpc.ErrorInfo", "reason": "...",
     "domain": "nourish.local", "metadata": {}}, {"@type": ".../google.rpc.RequestInfo", "requestId": "..."}]}

Reasons are those of nourish/error/v1/reason.proto, and its code goes with each. REST gets this as a body by the mappers
below; gRPC and gRPC-Web get the same as status, message and details by `envoy/grpc_status.lua`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLogFilter, AndFilter, HeaderFilter
from envoy.config.core.v3 import base_pb2
from envoy.config.core.v3.substitution_format_string_pb2 import SubstitutionFormatString
from envoy.config.route.v3.route_components_pb2 import HeaderMatcher
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    LocalReplyConfig,
    ResponseMapper,
)
from google.protobuf import struct_pb2
from google.rpc import code_pb2
from nourish.error.v1 import reason_pb2
from nourish.error.v1.reason_pb2 import Reason

from mesh.contract import Method
from mesh.xds import pb
from mesh.xds.policies.local_replies import cel, status

DOMAIN = "nourish.local"
TYPE = "type.googleapis.com/google.rpc."
REQUEST_ID = "%REQ(X-REQUEST-ID)%"
STATUS = "x-nourish-status"  # tells grpc_status.lua the HTTP status of a reply

# By HTTP status: why, and what people read.
HTTP: dict[int, tuple[Reason.ValueType, str]] = {
    400: (Reason.REASON_INVALID_ARGUMENT, "The request is not valid."),
    401: (Reason.REASON_UNAUTHENTICATED, "A valid user token is needed."),
    403: (Reason.REASON_PERMISSION_DENIED, "The user token does not allow this: it may lack a scope."),
    404: (Reason.REASON_UNIMPLEMENTED, "There is no such path or method."),
    405: (Reason.REASON_UNIMPLEMENTED, "This path does not take this HTTP method: see Allow."),
    408: (Reason.REASON_DEADLINE_EXCEEDED, "The request took too long to arrive."),
    413: (Reason.REASON_RESOURCE_EXHAUSTED, "The request is too large."),
    415: (Reason.REASON_INVALID_ARGUMENT, "The body must be application/json."),
    421: (Reason.REASON_UNIMPLEMENTED, "This host name is not served here."),
    426: (Reason.REASON_INVALID_ARGUMENT, "This version of HTTP is not served."),
    429: (Reason.REASON_RESOURCE_EXHAUSTED, "Too many requests: slow down."),
    431: (Reason.REASON_RESOURCE_EXHAUSTED, "The request headers are too large."),
    500: (Reason.REASON_INTERNAL, "Something went wrong on our side: quote the request id when you report it."),
    501: (Reason.REASON_UNIMPLEMENTED, "This is not served."),
    502: (Reason.REASON_UNAVAILABLE, "The service cannot be reached now: try again."),
    503: (Reason.REASON_UNAVAILABLE, "The service cannot be reached now: try again."),
    504: (Reason.REASON_DEADLINE_EXCEEDED, "The deadline passed before the answer."),
}
# By gRPC code, of an error that came without details: so from a proxy or a library, not from an application of ours.
GRPC: dict[int, tuple[Reason.ValueType, str]] = {
    code_pb2.CANCELLED: (Reason.REASON_CANCELLED, "The caller went away."),
    code_pb2.UNKNOWN: HTTP[500],
    code_pb2.INVALID_ARGUMENT: HTTP[400],
    code_pb2.DEADLINE_EXCEEDED: HTTP[504],
    code_pb2.NOT_FOUND: (Reason.REASON_NOT_FOUND, "This does not exist."),
    code_pb2.ALREADY_EXISTS: (Reason.REASON_ALREADY_EXISTS, "This exists already."),
    code_pb2.PERMISSION_DENIED: (Reason.REASON_PERMISSION_DENIED, "This is not allowed."),
    code_pb2.RESOURCE_EXHAUSTED: (Reason.REASON_RESOURCE_EXHAUSTED, "A limit is reached: slow down."),
    code_pb2.FAILED_PRECONDITION: (Reason.REASON_FAILED_PRECONDITION, "The present state does not allow this."),
    code_pb2.ABORTED: (Reason.REASON_ETAG_MISMATCH, "It was changed in between: read it again."),
    code_pb2.OUT_OF_RANGE: HTTP[400],
    code_pb2.UNIMPLEMENTED: HTTP[404],
    code_pb2.INTERNAL: HTTP[500],
    code_pb2.UNAVAILABLE: HTTP[503],
    code_pb2.DATA_LOSS: HTTP[500],
    code_pb2.UNAUTHENTICATED: HTTP[401],
}
# Envoy answers these before it has given the request an id.
EARLY = (400, 408, 413, 426, 431)
PATHS_AT_ONCE = 4  # in one regular expression: Envoy refuses larger ones, and seven of ours were


def code(reason: Reason.ValueType) -> int:
    """The google.rpc.Code that the contract gives a reason."""
    return int(Reason.DESCRIPTOR.values_by_number[reason].GetOptions().Extensions[reason_pb2.code])


def name(reason: Reason.ValueType) -> str:
    """As it is sent: without the prefix."""
    return Reason.Name(reason).removeprefix("REASON_")


def tables() -> str:
    """Lua source that defines HTTP and GRPC for grpc_status.lua: `{code, reason, message}` by status."""
    return "".join(
        f"local {title} = {{\n"
        + "".join(f'  [{key}] = {{{code(why)}, "{name(why)}", "{text}"}},\n' for key, (why, text) in table.items())
        + "}\n"
        for title, table in (("HTTP", HTTP), ("GRPC", GRPC))
    )


def replies(methods: Iterable[Method]) -> LocalReplyConfig:
    """The first mapper that matches decides."""
    mappers = [_grpc(), *_early(), *_not_allowed(methods), _explained(), *_tokens()]
    mappers += [_mapper(status(number), number, bearer=number == 401) for number in HTTP]
    return LocalReplyConfig(mappers=mappers, body_format=_shape(500))


def _grpc() -> ResponseMapper:
    """For gRPC a body would become grpc-message: leave it empty, and let the Lua filter word it."""
    # The transcoder has changed the content type of a REST request, and kept its path in x-envoy-original-path.
    kinds = HeaderMatcher(name="content-type", string_match=pb.regex(r"application/grpc(?:\+.*|-web.*)?"))
    transcoded = HeaderMatcher(name="x-envoy-original-path", present_match=True, invert_match=True)
    empty = SubstitutionFormatString(text_format_source=base_pb2.DataSource(inline_string="%LOCAL_REPLY_BODY%"))
    return ResponseMapper(
        filter=_all(_header(kinds), _header(transcoded)),
        body=base_pb2.DataSource(inline_string=""),
        body_format_override=empty,
        headers_to_add=[pb.header(STATUS, "%RESPONSE_CODE%")],
    )


def _early() -> Iterator[ResponseMapper]:
    """Makes the id there and then; the body is formatted after the header is added."""
    missing = _header(HeaderMatcher(name="x-request-id", present_match=True, invert_match=True))
    for number in EARLY:
        mapper = _mapper(_all(status(number), missing), number, request_id="%RESP(X-REQUEST-ID)%")
        mapper.headers_to_add.append(pb.header("x-request-id", "%UNIQUE_ID%"))
        yield mapper


def _not_allowed(methods: Iterable[Method]) -> Iterator[ResponseMapper]:
    """404 on a path that exists is 405, with what the path does take. One mapper for some paths that take the same."""
    verbs: dict[str, set[str]] = defaultdict(set)
    for binding in (b for method in methods for b in method.rest):
        verbs[binding.regex].add(binding.verb)
    paths: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in sorted(verbs):
        paths[tuple(sorted(verbs[path]))].append(path)
    groups = sorted(paths.items())
    pieces = [(t, g[i : i + PATHS_AT_ONCE]) for t, g in groups for i in range(0, len(g), PATHS_AT_ONCE)]
    for taken, group in pieces:
        # The transcoder takes a trailing slash too.
        there = HeaderMatcher(name=":path", string_match=pb.regex(rf"(?:{'|'.join(group)})/?(?:\?.*)?"))
        other = HeaderMatcher(name=":method", string_match=pb.regex("|".join(taken)), invert_match=True)
        mapper = _mapper(_all(status(404), _header(there), _header(other)), 405)
        mapper.status_code.CopyFrom(pb.uint32(405))
        mapper.headers_to_add.append(pb.header("allow", ", ".join(taken)))
        yield mapper


def _explained() -> ResponseMapper:
    """The JSON check and the transcoder say what is wrong with the request, and nothing of the engine."""
    explained = "response.code_details == 'lua_response' || response.code_details.contains('json_transcode_failure')"
    return _mapper(_all(status(400), cel(explained)), 400, text="%LOCAL_REPLY_BODY%")


def _tokens() -> Iterator[ResponseMapper]:
    expired = cel("response.code_details.contains('expired')")
    yield _mapper(_all(status(401), expired), 401, text="The user token has expired.", bearer=True)
    # For another audience's token Envoy says 403; here it is as good as none.
    stranger = cel("response.code_details.startsWith('jwt_authn_access_denied')")
    mapper = _mapper(_all(status(403), stranger), 401, bearer=True)
    mapper.status_code.CopyFrom(pb.uint32(401))
    yield mapper


def _mapper(
    matches: AccessLogFilter, number: int, *, text: str = "", request_id: str = REQUEST_ID, bearer: bool = False
) -> ResponseMapper:
    headers = [pb.header("www-authenticate", "Bearer")] if bearer else []
    body = _shape(number, text, request_id)
    return ResponseMapper(filter=matches, body_format_override=body, headers_to_add=headers)


def _shape(number: int, text: str = "", request_id: str = REQUEST_ID) -> SubstitutionFormatString:
    reason, sentence = HTTP[number]
    info: dict[str, Any] = {"@type": TYPE + "ErrorInfo", "reason": name(reason), "domain": DOMAIN, "metadata": {}}
    request: dict[str, Any] = {"@type": TYPE + "RequestInfo", "requestId": request_id, "servingData": ""}
    form = struct_pb2.Struct()
    form.update({"code": code(reason), "message": text or sentence, "details": [info, request]})
    return SubstitutionFormatString(json_format=form, content_type="application/json")


def _all(*filters: AccessLogFilter) -> AccessLogFilter:
    return AccessLogFilter(and_filter=AndFilter(filters=filters))


def _header(matcher: HeaderMatcher) -> AccessLogFilter:
    return AccessLogFilter(header_filter=HeaderFilter(header=matcher))
