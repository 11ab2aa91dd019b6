"""`mesh replay`: sends recorded calls to the canary and says what it answers otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import print_json
from mesh.cli.place import json_option, need_sidecar, paths, state

if TYPE_CHECKING:
    from mesh.contract import Contract
    from mesh.dynamic import Codec
    from mesh.replay.play import Against, Replay, Report
    from mesh.replay.recording import Recorded
    from mesh.topology import Subset

_SHOWN = 20  # differing calls; --json has all


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--to", type=click.Choice(["canary", "stable"]), default="canary", show_default=True, help="Whom to ask.")
@click.option(
    "--against",
    type=click.Choice(["recorded", "stable"]),
    default="recorded",
    show_default=True,
    help="Compare with the recorded answers, or with stable's, asked at the same moment.",
)
@click.option("--as", "caller", metavar="CALLER", help="Call as this service; without: the first that may.")
@click.option("--user", help="Sign in as this user for the calls that were a user's; without, they are left out.")
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, help="Relative, for floating-point fields: 1e-6.")
@click.option("--concurrency", type=click.IntRange(1, 100), default=8, show_default=True, help="Calls at a time.")
@json_option
def command(
    *,
    file: Path,
    to: Subset,
    against: Against,
    caller: str | None,
    user: str | None,
    tolerance: float,
    concurrency: int,
    as_json: bool,
) -> None:
    """Send the calls of a recording again and compare the answers.

    FILE is what `mesh record` wrote. Fields that the contract marks volatile do not count, and values of sensitive ones
    are not shown. Exits with 11 if an answer differs.
    """
    from mesh.contract import Contract
    from mesh.replay.play import Replay
    from mesh.replay.recording import RecordingError, digest, read

    try:
        header, calls = read(file)
    except RecordingError as error:
        raise Failure(str(error), Exit.USAGE) from None
    contract = Contract.read()
    if header.service not in contract.methods:
        raise Failure(f"{file}:1: there is no service {header.service!r} any more", Exit.USAGE)
    if header.contract != digest(contract):
        click.echo("the contracts have changed since this was recorded: new fields count as differences", err=True)
    for subset in {to, against} - {"recorded"}:
        _require(header.service, subset)
    entry = _entry(header.service, caller)
    token = _tokens(user) if user is not None else None
    replay = Replay(_methods(contract, header.service), to, against, tolerance, token)
    report = asyncio.run(_run(replay, entry, calls, concurrency))
    _require(header.service, to)  # it may have gone meanwhile, and the other subset stands in for it
    _print(report, as_json)
    if report.differing:
        raise click.exceptions.Exit(Exit.DIFFERS)
    if not report.compared:
        raise Failure("no call was compared", hint="the counts above say why")


def _require(service: str, subset: str) -> None:
    """That an instance of the subset is ready: without one, the other subset would answer for it."""
    if not any(i.ready for i in state().instances if (i.service, i.subset) == (service, subset)):
        raise Failure(f"{service} has no {subset} that is ready", Exit.NOT_RUNNING, "`mesh status` shows what runs")


def _entry(service: str, caller: str | None) -> str:
    """The socket on which a caller's sidecar takes its calls."""
    from mesh import values

    callers = values.load(values.read([paths().values])).callers.get(service, ())
    if caller is not None and caller not in callers:
        raise Failure(f"{caller!r} may not call {service}", Exit.USAGE, f"those may: {', '.join(callers) or 'none'}")
    ready = [i for i in state().instances if i.ready and i.service in ((caller,) if caller else callers)]
    if not ready:
        raise Failure(f"no service that may call {service} is ready", Exit.NOT_RUNNING, "`mesh routes` shows who may")
    with_sidecar = [i for i in ready if i.data_plane == "sidecar"]
    if not with_sidecar:
        need_sidecar(ready[0].service, "through which to call")
    return f"unix:{paths().egress_socket(with_sidecar[0].id)}"


def _methods(contract: Contract, service: str) -> dict[str, Codec]:
    from mesh.dynamic import Codec, pool
    from mesh.replay.record import recordable

    types = pool(contract.descriptors)
    return {m.path: Codec(types, m) for m in contract.methods[service] if recordable(m)}


async def _run(replay: Replay, entry: str, calls: list[Recorded], concurrency: int) -> Report:
    import grpc

    async with grpc.aio.insecure_channel(entry) as channel:
        return await replay.run(channel, calls, concurrency)


def _tokens(user: str) -> Callable[[tuple[str, ...]], str]:
    """The authorization of the user with the scopes that a method asks for."""
    from mesh.identity import tokens

    @cache
    def token(scopes: tuple[str, ...]) -> str:
        try:
            return f"Bearer {tokens.mint(paths().identity, user, scopes)}"
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    return token


def _print(report: Report, as_json: bool) -> None:
    from mesh.replay.play import percentile

    times = {side: {f"p{p}": round(percentile(ms, p), 1) for p in (50, 99)} for side, ms in report.ms.items()}
    if as_json:
        differing = [asdict(outcome) for outcome in report.differing]
        content = {"compared": report.compared, "differing": differing, "skipped": dict(report.skipped), "ms": times}
        print_json(json.loads(json.dumps(content, default=str)))
        return
    for outcome in report.differing[:_SHOWN]:
        click.secho(f"line {outcome.line}: {outcome.method}", fg="red")
        for difference in outcome.differences:
            click.echo(f"  {difference.path}: {_value(difference.left)} -> {_value(difference.right)}")
    if len(report.differing) > _SHOWN:
        click.echo(f"and {len(report.differing) - _SHOWN} more: --json has them all")
    click.echo(f"{report.compared} calls compared, {len(report.differing)} answered otherwise")
    for reason, count in report.skipped.items():
        click.echo(f"{count} left out: {reason}")
    for side, found in times.items():
        where = " (at the sidecar of the service)" if side == "recorded" else ""
        click.echo(f"{side}{where}: p50 {found['p50']} ms, p99 {found['p99']} ms")


def _value(value: Any) -> str:
    return "missing" if value is None else repr(value)
