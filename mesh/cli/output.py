"""What the command prints for people and for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Wide enough that nothing wraps when the output goes to a file or to grep.
UNBOUNDED = 400


def console() -> Console:
    """Standard output: as wide as the terminal, without wrapping if it is none."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else UNBOUNDED)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines; cells may have rich's markup."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def print_json(value: Any) -> None:
    """Prints one JSON document: indented, in colour if a person looks."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if sys.stdout.isatty():
        console().print_json(text, ensure_ascii=False)
    else:
        click.echo(text)


def span(seconds: float) -> str:
    """A time span in one unit: "143 ms", "2.5 s", "42 min", "3 h", "9 d"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def ago(moment: datetime) -> str:
    """How long it is since a moment, as a span."""
    return span((datetime.now(UTC) - moment).total_seconds())


def until(moment: datetime) -> str:
    """How far away `moment` is: "in 42 min", "3 s ago"."""
    seconds = (moment - datetime.now(UTC)).total_seconds()
    return f"in {span(seconds)}" if seconds >= 0 else f"{span(-seconds)} ago"
