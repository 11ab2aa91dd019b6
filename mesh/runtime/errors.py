"""The one exception a service raises, and the one place where it becomes a status.

A reason of `nourish/error/v1/reason.proto` decides the code. Everything else that escapes a handler becomes INTERNAL
with a fixed text: what an engine says is logged beside the request id and never sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from nourish.error.v1 import reason_pb2
from nourish.error.v1.reason_pb2 import Reason

DOMAIN = "nourish.local"
STATUS_DETAILS = "grpc-status-details-bin"
INTERNAL_TEXT = "internal error; quote the request id when you report it"

_CODES = {v.number: v.GetOptions().Extensions[reason_pb2.code] for v in Reason.DESCRIPTOR.values}
# The first reason of a code stands for the code.
_REASONS = {_CODES[v.number]: Reason.Value(v.name) for v in reversed(Reason.DESCRIPTOR.values) if v.number}
GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}  # by number
# A failed call to another service is told on as it is when the caller can act on it; the rest is a defect of ours.
_PASSED_ON = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
    }
)


class ServiceError(Exception):
    """A failure the caller may act on.

    Args:
        reason: why, from the contract; decides the status code.
        message: one sentence for people, without secrets.
        metadata: facts for programs, sent as ErrorInfo.metadata.
        violations: (field, description) pairs, sent as BadRequest.
        retry_seconds: when to call again at the earliest, sent as RetryInfo.
    """

    def __init__(
        self,
        reason: Reason.ValueType,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        retry_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_seconds = retry_seconds

    @property
    def code(self) -> grpc.StatusCode:
        """The status code that the contract gives this reason."""
        return GRPC_CODES[_CODES[self.reason]]


def not_found(name: str) -> ServiceError:
    """`name` does not exist, or is not the caller's to see."""
    return ServiceError(Reason.REASON_NOT_FOUND, f"{name} does not exist", metadata={"name": name})


def already_exists(name: str) -> ServiceError:
    """`name` is there already."""
    return ServiceError(Reason.REASON_ALREADY_EXISTS, f"{name} exists already", metadata={"name": name})


def invalid(field: str, description: str) -> ServiceError:
    """One field is not acceptable."""
    return violations([(field, description)])


def violations(found: Sequence[tuple[str, str]]) -> ServiceError:
    """Several fields are not acceptable: (field, description) pairs."""
    text = "; ".join(f"{field}: {description}" if field else description for field, description in found)
    return ServiceError(Reason.REASON_INVALID_ARGUMENT, text, violations=found)


def etag_mismatch(name: str) -> ServiceError:
    """Somebody changed `name` in between."""
    text = f"{name} has changed since it was read: read it again and repeat the change"
    return ServiceError(Reason.REASON_ETAG_MISMATCH, text, metadata={"name": name})


def request_id_reused() -> ServiceError:
    """The request_id came before with another body."""
    return ServiceError(
        Reason.REASON_REQUEST_ID_REUSED,
        "request_id was used before with another body: make a new one for each new request",
        violations=[("request_id", "was used before with another body")],
    )


def conflict() -> ServiceError:
    """Another change of the same rows came between; nothing was changed."""
    return ServiceError(Reason.REASON_CONFLICT, "another change came between: repeat the call")


def overloaded(retry_seconds: float) -> ServiceError:
    """As much runs here as may; nothing was done for this call."""
    text = _FIXED_TEXTS[grpc.StatusCode.RESOURCE_EXHAUSTED]
    return ServiceError(Reason.REASON_RESOURCE_EXHAUSTED, text, retry_seconds=retry_seconds)


def failed_precondition(message: str) -> ServiceError:
    """What the call needs is not complete yet."""
    return ServiceError(Reason.REASON_FAILED_PRECONDITION, message)


def permission_denied(message: str) -> ServiceError:
    """The verified caller or user may not do this."""
    return ServiceError(Reason.REASON_PERMISSION_DENIED, message)


def unauthenticated(message: str = "this needs a signed-in user: send `Authorization: Bearer <token>`") -> ServiceError:
    """No verified user came with the call."""
    return ServiceError(Reason.REASON_UNAUTHENTICATED, message)


def from_exception(error: BaseException) -> ServiceError | status_pb2.Status | None:
    """What an exception that left a handler means for the caller; None if it is a defect of ours."""
    while isinstance(error, BaseExceptionGroup):  # of a TaskGroup: the first failure cancelled the others
        error = error.exceptions[0]
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, TimeoutError):
        return deadline_exceeded()
    if isinstance(error, ConnectionError):
        return unavailable()
    sqlstate = getattr(getattr(error, "orig", error), "sqlstate", None)  # SQLAlchemy's exceptions wrap the driver's
    return _from_sqlstate(sqlstate) if isinstance(sqlstate, str) else None


def _from_sqlstate(sqlstate: str) -> ServiceError | None:
    """PostgreSQL's classes of errors that a caller can act on; its texts name tables, and stay here."""
    match sqlstate:
        case "23505":  # unique_violation
            return ServiceError(Reason.REASON_ALREADY_EXISTS, "it exists already")
        case "40001" | "40P01" | "55P03":  # serialization_failure, deadlock_detected, lock_not_available
            return conflict()
        case "57014":  # query_canceled: the statement took too long
            return deadline_exceeded()
        case "22021" | "22P05":  # character_not_in_repertoire, untranslatable_character
            return violations([("", "a text has a character that cannot be stored")])
    # Connections, resources, operator intervention; read_only_sql_transaction: a standby that was the primary.
    return unavailable() if sqlstate[:2] in ("08", "53", "57") or sqlstate == "25006" else None


def without_rows(error: BaseException | None) -> None:
    """Takes the row that a database error is about out of it, before it is logged: PostgreSQL adds it as a detail."""
    while error is not None:
        if getattr(error, "detail", None):
            error.detail = None  # type: ignore[attr-defined]
        error = error.__cause__ or error.__context__


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError | status_pb2.Status | None:
    """What a failed call to another service means for our caller; None if it is a defect of ours."""
    if error.code() not in _PASSED_ON:
        return None
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    reason = _REASONS[error.code().value[0]]
    return ServiceError(reason, _FIXED_TEXTS.get(error.code(), error.details() or "the call failed"))


# A proxy's own words for these name engines and addresses.
_FIXED_TEXTS = {
    grpc.StatusCode.UNAVAILABLE: "a service needed for the answer is not available now; retry with back-off",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the deadline passed before the answer",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "too many calls; slow down",
}


def deadline_exceeded() -> ServiceError:
    """The time for the call ran out."""
    return ServiceError(Reason.REASON_DEADLINE_EXCEEDED, _FIXED_TEXTS[grpc.StatusCode.DEADLINE_EXCEEDED])


def unavailable() -> ServiceError:
    """An engine or a service needed for the answer cannot be reached now."""
    return ServiceError(Reason.REASON_UNAVAILABLE, _FIXED_TEXTS[grpc.StatusCode.UNAVAILABLE])


def unimplemented(method: str) -> ServiceError:
    """The contract has the method, this process does not."""
    return ServiceError(Reason.REASON_UNIMPLEMENTED, f"{method} is not implemented", metadata={"method": method})


def internal() -> ServiceError:
    """A defect on our side; the original is in the log."""
    return ServiceError(Reason.REASON_INTERNAL, INTERNAL_TEXT)


def to_status(error: ServiceError, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status of an error: ErrorInfo, the violations if any, and the request id."""
    name = Reason.Name(error.reason).removeprefix("REASON_")
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=name, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        found = [{"field": field, "description": description} for field, description in error.violations]
        details.append(error_details_pb2.BadRequest(field_violations=found))
    if error.retry_seconds:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_seconds * 1000))
        details.append(retry)
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
