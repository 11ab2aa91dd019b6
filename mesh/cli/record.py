"""`mesh record`: keeps a sample of a service's calls, for `mesh replay`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import print_json, span
from mesh.cli.place import json_option, need_sidecar, paths, shown, state
from mesh.cli.token import Span

if TYPE_CHECKING:
    from mesh.replay.record import Recorder
    from mesh.replay.recording import Header, Recorded


class Share(click.ParamType[float]):
    """A share of calls, 0 to 1: written 10% or 0.1."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads it."""
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{text!r} is no share of calls: write 10% or 0.1", param, ctx)
        return share


@click.command("record")
@click.argument("service")
@click.option("--share", type=Share(), default="10%", show_default=True, help="How many of the calls, by request id.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Stop after so many.")
@click.option("--for", "how_long", type=Span(), default="30s", show_default=True, help="Stop after this time.")
@json_option
def command(service: str, share: float, limit: int, how_long: timedelta, as_json: bool) -> None:
    """Record a sample of a service's calls.

    Listens at the sidecars of SERVICE's instances; nothing is restarted and the applications do not notice. Keeps
    NO_SIDE_EFFECTS calls alone, without their headers and without the fields that the contract marks sensitive, in a
    file for you alone. Ctrl-C ends it early and keeps what it has.
    """
    from mesh.contract import Contract
    from mesh.dynamic import Codec, pool
    from mesh.replay.record import Recorder, recordable
    from mesh.replay.recording import Header, digest
    from mesh.topology import did_you_mean

    contract = Contract.read()
    if service not in contract.methods:
        raise Failure(f"there is no service {service!r}{did_you_mean(service, contract.methods)}", Exit.USAGE)
    sockets = _sidecars(service)
    types = pool(contract.descriptors)
    methods = {m.path: Codec(types, m) for m in contract.methods[service] if recordable(m)}
    if not methods:
        raise Failure(f"{service} has no method that may be called again: none is NO_SIDE_EFFECTS", Exit.USAGE)
    header = Header(service, digest(contract), datetime.now(UTC).isoformat(timespec="milliseconds"), share)
    with _file(header) as (path, write):
        recorder = Recorder(methods, write, limit)
        try:
            asyncio.run(_listen(sockets, recorder, list(methods), share, how_long))
        except KeyboardInterrupt:
            click.echo("ended early", err=True)
        if not recorder.recorded:
            path.unlink()
            raise Failure(_nothing(recorder, service, how_long), hint="more of them: --share 100% --for 5m")
    _print(path, recorder, as_json)


def _sidecars(service: str) -> dict[str, Path]:
    """The admin socket of each running instance."""
    where = paths()
    need_sidecar(service, "to record at")
    found = {i.id: where.admin_socket(i.id) for i in state().instances if i.service == service and i.proxy.up}
    if service == "edge" or not found:
        what = "the edge has no sidecar; record a service behind it" if service == "edge" else f"no {service} runs"
        raise Failure(what, Exit.NOT_RUNNING, "`mesh status` shows what runs")
    return found


@contextmanager
def _file(header: Header) -> Iterator[tuple[Path, Callable[[Recorded], None]]]:
    """A new file, and what writes a call into it. Whole lines at once: whatever ends the command, it can be read."""
    from mesh.replay.recording import line

    folder = paths().recordings
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{header.service}-{datetime.fromisoformat(header.time):%Y%m%dT%H%M%S.%f}.jsonl"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", buffering=1) as file:
        file.write(line(header))
        yield path, lambda call: _written(file.write(line(call)))


def _written(_count: int) -> None:
    """The count that `write` returns is nobody's concern."""


async def _listen(
    sockets: dict[str, Path], recorder: Recorder, methods: list[str], share: float, how_long: timedelta
) -> None:
    from mesh.replay.tap import TapError, request, tapped

    async def one(id: str, traces: AsyncIterator[dict[str, Any]]) -> None:
        async for trace in traces:
            recorder.take(trace)
            if recorder.full:
                return
        click.echo(f"the sidecar of {id} ended; the others go on", err=True)

    async with AsyncExitStack() as stack:
        streams = {}
        for id, socket in sockets.items():
            try:
                streams[id] = await stack.enter_async_context(tapped(socket, request(methods, share)))
            except TapError as error:
                hint = "one recording of a service at a time; `mesh status` shows how its sidecars are"
                raise Failure(f"{id} cannot be recorded: {error}", hint=hint) from error
        click.echo(f"recording {100 * share:.3g} % of the calls at {', '.join(streams)}", err=True)
        tasks = [asyncio.create_task(one(id, traces)) for id, traces in streams.items()]
        waiting = set(tasks)
        ends = asyncio.get_running_loop().time() + how_long.total_seconds()
        try:
            while waiting and not recorder.full and (left := ends - asyncio.get_running_loop().time()) > 0:
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _nothing(recorder: Recorder, service: str, how_long: timedelta) -> str:
    text = f"no call of {service} was recorded in {span(how_long.total_seconds())}"
    return f"{text}; not recorded: {_counts(recorder.skipped)}" if recorder.skipped else text


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counted.items())


def _print(path: Path, recorder: Recorder, as_json: bool) -> None:
    by_name = {method.rpartition("/")[2]: count for method, count in recorder.recorded.items()}
    if as_json:
        print_json({"file": str(path), "recorded": by_name, "skipped": dict(recorder.skipped)})
        return
    click.echo(f"{recorder.recorded.total()} calls ({_counts(by_name)}) in {shown(path)}")
    if recorder.skipped:
        click.echo(f"not recorded: {_counts(recorder.skipped)}")
