"""What a sidecar says when it answers by itself: a plain sentence, never the engine's own words.

For gRPC the body becomes grpc-message, and Envoy maps the HTTP status to a gRPC status.
"""

from __future__ import annotations

from envoy.config.accesslog.v3.accesslog_pb2 import (
    AccessLogFilter,
    AndFilter,
    ComparisonFilter,
    ExtensionFilter,
    ResponseFlagFilter,
    StatusCodeFilter,
)
from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    LocalReplyConfig,
    ResponseMapper,
)
from google.rpc import code_pb2

from mesh.xds import pb
from mesh.xds.policies import retries

SENTENCES = {
    401: "A valid user token is needed.",
    403: "This caller may not use this method.",
    404: "There is no such method.",
    408: "The deadline passed.",
    413: "The request is larger than the service takes.",
    429: "The service takes no more such calls now; try again later.",
    503: "The service cannot be reached now.",
    504: "The deadline passed.",
}

# Envoy has no HTTP status that it maps to this one.
EXHAUSTED = pb.header("grpc-status", str(code_pb2.RESOURCE_EXHAUSTED))


def inbound() -> LocalReplyConfig:
    """First what callers may repeat: a call that found no application (flag UF) or that lost it on the way (UC, UR)."""
    signs = [_sign(retries.NOT_STARTED, "UF"), _sign(retries.BROKEN, "UC", "UR")]
    # So says the filter of `sizes`, and nothing else.
    too_large = AndFilter(filters=[status(500), cel("response.code_details == ''")])
    response = ResponseMapper(
        filter=AccessLogFilter(and_filter=too_large),
        body_format_override=_text("The response is larger than the service may give."),
        headers_to_add=[EXHAUSTED],
    )
    return LocalReplyConfig(mappers=[*signs, response, *_sentences()])


def _sign(header: str, *flags: str) -> ResponseMapper:
    return ResponseMapper(
        filter=AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=flags)),
        headers_to_add=[pb.header(header, "1")],
        body_format_override=_text(SENTENCES[503]),
    )


def egress() -> LocalReplyConfig:
    """Plain sentences."""
    return LocalReplyConfig(mappers=_sentences())


def _sentences() -> list[ResponseMapper]:
    return [
        ResponseMapper(
            filter=status(code),
            body_format_override=_text(sentence),
            headers_to_add=[EXHAUSTED] if code in (413, 429) else [],
        )
        for code, sentence in SENTENCES.items()
    ]


def status(code: int) -> AccessLogFilter:
    """Matches replies with this HTTP status."""
    # Envoy wants a runtime key here; nothing sets it.
    value = base_pb2.RuntimeUInt32(default_value=code, runtime_key="nourish.unused")
    return AccessLogFilter(
        status_code_filter=StatusCodeFilter(comparison=ComparisonFilter(op=ComparisonFilter.Op.EQ, value=value))
    )


def cel(expression: str) -> AccessLogFilter:
    """Matches replies of which this CEL expression is true."""
    config = cel_pb2.ExpressionFilter(expression=expression)
    extension = ExtensionFilter(name="envoy.access_loggers.extension_filters.cel", typed_config=pb.pack(config))
    return AccessLogFilter(extension_filter=extension)


def _text(sentence: str) -> substitution_format_string_pb2.SubstitutionFormatString:
    return substitution_format_string_pb2.SubstitutionFormatString(
        text_format_source=base_pb2.DataSource(inline_string=sentence)
    )
