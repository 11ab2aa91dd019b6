"""`mesh call`: one call of any method, without generated stubs."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import print_json
from mesh.cli.place import json_option, need_sidecar, paths, state
from mesh.cli.token import Span

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from grpc.aio import AioRpcError

    from mesh.contract import Contract, Method
    from mesh.dynamic import Codec

REQUEST_ID = "x-request-id"
_HINTS = {
    "UNAUTHENTICATED": "sign in with --user NAME",
    "PERMISSION_DENIED": "`mesh routes {service}` shows who may call it: `calls` in the values, scopes in the contract",
    "UNAVAILABLE": "`mesh status` shows what is down",
    "DEADLINE_EXCEEDED": "--timeout gives it more; `mesh status` shows what is slow to start",
    "UNIMPLEMENTED": "does the running version know the method? `mesh routes {service}`",
    "INTERNAL": "`mesh logs {service}` has the cause under the request id",
    "UNKNOWN": "`mesh logs {service}` may have the cause",
}


@click.command("call")
@click.argument("service")
@click.argument("method")
@click.argument("request_json", metavar="[JSON]", default="{}")
@click.option(
    "--as", "caller", metavar="CALLER", help="Call as this service, by its sidecar; without: as a client, by the edge."
)
@click.option("--user", help="Sign in as this user, with --scope or the scopes that the method asks for.")
@click.option("--scope", "scopes", multiple=True, help="A scope for --user. Repeatable.")
@click.option("--token", help="Send this token instead.")
@click.option("-H", "--header", "headers", multiple=True, metavar="K:V", help="Send a header too. Repeatable.")
@click.option("--timeout", type=Span(), help="Instead of the contract's deadline: 0.5s, 2m.")
@json_option
def command(
    *,
    service: str,
    method: str,
    request_json: str,
    caller: str | None,
    user: str | None,
    scopes: tuple[str, ...],
    token: str | None,
    headers: tuple[str, ...],
    timeout: timedelta | None,
    as_json: bool,
) -> None:
    """Call any method with a JSON request.

    JSON is the request of METHOD of SERVICE, or "-" to read it from standard input; the answer is printed as JSON.

    For example: mesh call food ListFoods '{"pageSize": 3}'
    """
    from mesh.contract import Contract
    from mesh.dynamic import Codec, pool

    contract = Contract.read()
    found = find(contract, service, method)
    codec = Codec(pool(contract.descriptors), found)
    text = sys.stdin.read() if request_json == "-" else request_json
    try:
        request = codec.parse(text)
    except ValueError as error:
        raise Failure(f"the request is no {found.input_type}: {error}", Exit.USAGE) from None
    sent = metadata(found, user, scopes, token, headers)
    call = Call(found, codec, target(found, service, caller), sent, seconds(found, timeout))
    try:
        asyncio.run(_print_answers(call, request))
    except CallError as error:
        _report(error, service, as_json)


@dataclass(frozen=True)
class Call:
    """All that a call needs but its request."""

    method: Method
    codec: Codec
    target: str
    metadata: list[tuple[str, str]]
    seconds: float

    async def answers(self, request: Message) -> AsyncIterator[Message]:
        """Sends the request and yields what comes back: one message, or a stream of them.

        Raises:
            CallError: the call failed.
        """
        import grpc

        async with grpc.aio.insecure_channel(self.target) as channel:
            kind = (self.method.path, self.codec.serialize, self.codec.deserialize)
            try:
                if self.method.server_streaming:
                    stream = channel.unary_stream(*kind)
                    async for answer in stream(request, timeout=self.seconds, metadata=self.metadata):
                        yield answer
                else:
                    yield await channel.unary_unary(*kind)(request, timeout=self.seconds, metadata=self.metadata)
            except grpc.aio.AioRpcError as error:
                raise CallError.of(error, dict(self.metadata).get(REQUEST_ID, "")) from None


class CallError(Exception):
    """A call that failed. `reason` is the contract's, "NOT_FOUND"; empty if a proxy answered."""

    def __init__(self, code: str, message: str, reason: str, request_id: str, violations: list[str]) -> None:
        super().__init__(message)
        self.code, self.message, self.reason = code, message, reason
        self.request_id, self.violations = request_id, violations

    @classmethod
    def of(cls, error: AioRpcError, request_id: str) -> CallError:
        """Reads google.rpc.Status out of the trailers, and the request id from wherever it is."""
        from google.rpc import error_details_pb2, status_pb2

        trailers = dict([*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())])
        raw = trailers.get("grpc-status-details-bin")
        status = status_pb2.Status.FromString(raw) if isinstance(raw, bytes) else status_pb2.Status()
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        asked = error_details_pb2.RequestInfo(request_id=str(trailers.get(REQUEST_ID, request_id)))
        for detail in status.details:
            for known in (info, bad, asked):
                detail.Unpack(known)
        violations = [f"{v.field}: {v.description}" if v.field else v.description for v in bad.field_violations]
        return cls(error.code().name, error.details() or "no details", info.reason, asked.request_id, violations)


def find(contract: Contract, service: str, method: str) -> Method:
    """The method by its mesh service and its name (case does not matter).

    Raises:
        Failure: there is none; says which there are.
    """
    from mesh.topology import did_you_mean

    methods = contract.methods.get(service)
    if methods is None:
        raise Failure(f"there is no service {service!r}{did_you_mean(service, contract.methods)}", Exit.USAGE)
    found = next((m for m in methods if m.name.lower() == method.lower()), None)
    if found is None:
        raise Failure(
            f"{service} has no method {method!r}{did_you_mean(method, [m.name for m in methods])}", Exit.USAGE
        )
    if found.client_streaming:
        raise Failure(f"{found.name} takes a stream of requests, and this command sends one", Exit.USAGE)
    return found


def target(method: Method, service: str, caller: str | None) -> str:
    """Where the call goes in: the edge, or the socket on which the caller's sidecar takes its calls.

    Raises:
        Failure: the mesh does not run, has no such caller, or the edge does not offer the method.
    """
    runs = state()
    if caller is None:
        if not method.exposed:
            hint = f"call it as a service: --as CALLER; `mesh routes {service}` shows which may"
            raise Failure(f"the edge does not offer {method.name}", Exit.USAGE, hint)
        return runs.edge.removeprefix("http://")
    instances = [i for i in runs.instances if caller in (i.id, i.service) and i.service != "edge"]
    if not instances:
        running = ", ".join(dict.fromkeys(i.service for i in runs.instances if i.service != "edge"))
        raise Failure(f"no instance of {caller!r} runs", Exit.NOT_RUNNING, f"those run: {running}")
    chosen = next((i for i in instances if i.ready), instances[0])
    need_sidecar(chosen.service, "through which to call")
    return f"unix:{paths().egress_socket(chosen.id)}"


def metadata(
    method: Method, user: str | None, scopes: tuple[str, ...], token: str | None, headers: tuple[str, ...]
) -> list[tuple[str, str]]:
    """What is sent beside the request.

    Raises:
        click.UsageError: options contradict one another.
    """
    from mesh.identity import tokens

    sent = [(REQUEST_ID, str(uuid.uuid4()))]
    if token and user is not None:
        raise click.UsageError("--token and --user exclude each other")
    if scopes and user is None:
        raise click.UsageError("--scope goes with --user")
    if user is not None:
        try:
            token = tokens.mint(paths().identity, user, scopes or method.scopes)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    if token:
        sent.append(("authorization", f"Bearer {token}"))
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"{header!r} is no header: write name:value")
        sent.append((name.strip().lower(), value.strip()))
    return sent


def seconds(method: Method, timeout: timedelta | None) -> float:
    """How long the call may take: as asked, or as its contract says."""
    return timeout.total_seconds() if timeout else method.deadline_seconds


async def _print_answers(call: Call, request: Message) -> None:
    async for answer in call.answers(request):
        print_json(call.codec.to_json(answer))


def _report(error: CallError, service: str, as_json: bool) -> None:
    hint = _HINTS.get(error.code, "").format(service=service)
    if as_json:
        content: dict[str, Any] = {"code": error.code, "message": error.message, "reason": error.reason}
        print_json({**content, "violations": error.violations, "requestId": error.request_id, "hint": hint})
        raise click.exceptions.Exit(Exit.FAILED)
    reason = f" ({error.reason})" if error.reason and error.reason != error.code else ""
    lines = [f"{error.code}{reason}: {error.message}", *(f"  {violation}" for violation in error.violations)]
    lines.append(f"  request id {error.request_id}")
    raise Failure("\n".join(lines), hint=hint)
