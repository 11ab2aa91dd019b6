"""`mesh events`: the streams and who lags behind, and the dead letters: shown, sent again, dropped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli.content import corrected, decoded
from mesh.cli.failure import Exit, Failure
from mesh.cli.output import ago, console, print_json, table
from mesh.cli.place import json_option, paths

if TYPE_CHECKING:
    from mesh.runtime.events.dead import DeadLetter
    from mesh.runtime.events.server import Server

T = TypeVar("T")
CONNECT_SECONDS = 3.0


@click.group("events", invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show what events there are and who lags behind; list, show, replay and drop dead letters."""
    if context.invoked_subcommand is None:
        _list(as_json)


@command.command("list")
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """Show each service's stream, and for each group how many events wait for it."""
    _list(as_json or _outer(context))


@command.command("dead")
@json_option
@click.pass_context
def dead(context: click.Context, as_json: bool) -> None:
    """List the events that a group could not handle, oldest first."""
    found = _ask(_letters)
    if as_json or _outer(context):
        print_json([_summary(letter) for letter in found])
    elif not found:
        click.echo("no dead letters")
    else:
        columns = ("ID", "EVENT", "GROUP", "ATTEMPTS", "SINCE", "REASON")
        console().print(table(columns, (_row(letter) for letter in found)))


@command.command("show")
@click.argument("id_", metavar="ID", type=int)
@json_option
@click.pass_context
def show(context: click.Context, id_: int, as_json: bool) -> None:
    """Show a dead letter: why, whose, and the event by its contract, without the values of sensitive fields."""
    letter = _ask(lambda server: _letter(server, id_))
    content = {**_summary(letter), "headers": _headers(letter), **decoded(letter.event, letter.payload)}
    if as_json or _outer(context):
        print_json(content)
        return
    click.echo(f"{letter.event}, for {letter.group}, failed {letter.attempts} times, the last {_since(letter)} ago")
    click.secho(letter.reason, fg="red")
    for name, value in content["headers"].items():
        click.echo(f"{name}: {value}")
    click.echo(json.dumps(content["content"], indent=2, ensure_ascii=False))
    if content["masked"]:
        click.echo(f"not shown: {', '.join(content['masked'])}")


@command.command("replay")
@click.argument("id_", metavar="ID", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="All of them, oldest first.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Correct a field, with a JSON value or text. Repeatable.",
)
@json_option
@click.pass_context
def replay(context: click.Context, id_: int | None, everything: bool, sets: tuple[str, ...], as_json: bool) -> None:
    """Send a dead letter to its group again, behind what was published since; it is handled once in any case.

    With --set its event is corrected, as the contract allows. Fields that are not shown stay as they are.
    """
    if (id_ is None) == (not everything):
        raise click.UsageError("give the ID of a dead letter, or --all")
    if sets and everything:
        raise click.UsageError("--set corrects one dead letter: give its ID")
    sent = _ask(lambda server: _replay(server, id_, sets))
    _print_done("replayed", sent, as_json or _outer(context))


@command.command("drop")
@click.argument("id_", metavar="ID", type=int)
@json_option
@click.pass_context
def drop(context: click.Context, id_: int, as_json: bool) -> None:
    """Forget a dead letter."""
    _print_done("dropped", _ask(lambda server: _drop(server, id_)), as_json or _outer(context))


@dataclass
class Lag:
    """How far a group is with an event, over all partitions."""

    group: str
    event: str
    waiting: int = 0
    in_hand: int = 0
    again: int = 0


def _outer(context: click.Context) -> bool:
    return bool(context.parent and context.parent.params["as_json"])


def _ask(question: Callable[[Server], Awaitable[T]]) -> T:
    async def asked() -> T:
        async with _server() as server:
            return await question(server)

    return asyncio.run(asked())


@asynccontextmanager
async def _server() -> AsyncIterator[Server]:
    from nats.errors import Error

    from mesh.runtime.events.server import Server

    try:
        url = await asyncio.to_thread(paths().events_url.read_text)
    except FileNotFoundError:
        hint = "`events: {}` in the stanza of a service that has some, then `mesh up`"
        raise Failure("no service of this mesh has had events so far", Exit.NOT_RUNNING, hint) from None
    server = Server()
    try:
        await asyncio.wait_for(server.connect(url, "mesh events"), CONNECT_SECONDS)
        await server.make_stream("")
        yield server
    except (Error, TimeoutError, OSError) as error:
        hint = "is the mesh up? `mesh status`; why it ended: `mesh logs nats`"
        raise Failure(f"the events server does not answer ({error or 'in time'})", Exit.NOT_RUNNING, hint) from None
    finally:
        with suppress(Error, OSError):
            await server.close()


async def _letters(server: Server) -> list[DeadLetter]:
    from mesh.runtime.events import dead as stored

    return [letter async for letter in stored.letters(server)]


async def _letter(server: Server, id_: int) -> DeadLetter:
    from mesh.runtime.events import dead as stored

    if (found := await stored.letter(server, id_)) is None:
        raise Failure(f"there is no dead letter {id_}", Exit.USAGE, "`mesh events dead` lists them")
    return found


async def _replay(server: Server, id_: int | None, sets: tuple[str, ...]) -> list[int]:
    from mesh.runtime.events import dead as stored

    letters = await _letters(server) if id_ is None else [await _letter(server, id_)]
    if sets:
        letters = [_corrected(letter, sets) for letter in letters]
    for letter in letters:
        await stored.replay(server, letter)
    return [letter.id for letter in letters]


def _corrected(letter: DeadLetter, sets: tuple[str, ...]) -> DeadLetter:
    try:
        return letter.corrected(corrected(letter.event, letter.payload, sets))
    except ValueError as error:
        hint = f"`mesh events show {letter.id}` shows it; it stays as it is"
        raise Failure(f"dead letter {letter.id}: {error}", Exit.USAGE, hint) from None


async def _drop(server: Server, id_: int) -> list[int]:
    from mesh.runtime.events import dead as stored

    await stored.drop(server, (await _letter(server, id_)).id)
    return [id_]


async def _state(server: Server) -> tuple[dict[str, dict[str, int]], list[Lag], int]:
    """Events and bytes by service, the groups, and how many dead letters there are."""
    from mesh.runtime.events import subjects
    from mesh.runtime.events.server import DEAD_STREAM

    streams: dict[str, dict[str, int]] = {}
    lags: dict[tuple[str, str], Lag] = {}
    letters = 0
    for stream in await server.streams.streams_info():
        name = str(stream.config.name)
        if name == DEAD_STREAM:
            letters = stream.state.messages
        elif name.startswith(subjects.STREAM_PREFIX):
            service = name.removeprefix(subjects.STREAM_PREFIX)
            streams[service] = {"events": stream.state.messages, "bytes": stream.state.bytes}
            for consumer in await _consumers(server, name):
                group, event = subjects.group_of(consumer.name)
                lag = lags.setdefault((group, event), Lag(group, event))
                lag.waiting += consumer.num_pending or 0
                lag.in_hand += consumer.num_ack_pending or 0
                lag.again += consumer.num_redelivered or 0
    return streams, list(lags.values()), letters


async def _consumers(server: Server, stream: str) -> list[Any]:
    """The groups' consumers of a stream; those of single instances are left out."""
    found: list[Any] = []
    while page := await server.streams.consumers_info(stream, offset=len(found)):
        found += page
    return [consumer for consumer in found if consumer.config.durable_name]


def _list(as_json: bool) -> None:
    streams, lags, letters = _ask(_state)
    if as_json:
        print_json({"streams": streams, "groups": [asdict(lag) for lag in lags], "deadLetters": letters})
        return
    out = console()
    rows = ((name, str(stream["events"]), f"{stream['bytes']:,}") for name, stream in streams.items())
    out.print(table(("EVENTS OF", "KEPT", "BYTES"), rows))
    if lags:
        columns = ("GROUP", "EVENT", "WAITING", "IN HAND", "TRIED AGAIN")
        rows_ = ((lag.group, lag.event, str(lag.waiting), str(lag.in_hand), str(lag.again)) for lag in lags)
        out.print(table(columns, rows_))
    if letters:
        out.print(f"{letters} dead letters: see `mesh events dead`", style="red")


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "event": letter.event,
        "group": letter.group,
        "attempts": letter.attempts,
        "time": letter.time.isoformat() if letter.time else "",
        "reason": letter.reason,
    }


def _headers(letter: DeadLetter) -> dict[str, str]:
    """All but the key, which is a field's value: that is shown or not by its contract."""
    from mesh.runtime.events import subjects

    return {name: value for name, value in letter.headers.items() if name != subjects.KEY_HEADER}


def _row(letter: DeadLetter) -> tuple[str, ...]:
    from rich.markup import escape

    return str(letter.id), letter.event, letter.group, str(letter.attempts), _since(letter), escape(letter.reason)


def _since(letter: DeadLetter) -> str:
    return ago(letter.time) if letter.time else "-"


def _print_done(what: str, ids: list[int], as_json: bool) -> None:
    if as_json:
        print_json({what: ids})
    else:
        click.echo(f"{what} {', '.join(map(str, ids))}" if ids else "no dead letters")
