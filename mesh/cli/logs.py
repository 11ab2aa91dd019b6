"""`mesh logs`: what the processes print, put together in order of time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import click

from mesh.cli.failure import Failure
from mesh.cli.place import json_option, paths

POLL_SECONDS = 0.2
TAIL_BYTES = 4_000_000  # no more than this is read of the end of each file
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
_LEVELS = {"ERROR": "red", "CRITICAL": "red", "WARNING": "yellow"}
# Envoy: [2026-11-22 22:10:30.604][…] ; PostgreSQL: 2026-11-22 22:10:30.604 UTC [pid] ; JSON carries "time".
_STAMP = re.compile(r"\[?(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d+))?")
# What stands first in a line for people: an app's message, an access log's call, or a runner's event.
_MESSAGE = ("message", "log", "method", "status", "kind", "subject", "text")
# What an access log says of every call that went well, and what people need least.
_USUAL = {"flags": "-", "details": "via_upstream", "http_status": 200, "attempts": 1}
_ASIDE = ("request", "received_bytes", "sent_bytes")
_SHOWN_APART = (*_MESSAGE, "time", "level", "instance", "logger", "exception")


@click.command("logs")
@click.argument("names", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed from now on.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="So many last lines in all.")
@json_option
def command(names: tuple[str, ...], follow: bool, lines: int, as_json: bool) -> None:
    """Show logs in order of time.

    NAMES are services, instances (food-0), control, postgres, nats or mesh; all of them, if none is named.

    Times are UTC. Each line is that of a process or of its proxy (food-0.envoy). Works also when the mesh is down.
    """
    folder = paths().logs
    tails = {path: Tail(path) for path in select(folder, names)}
    if not tails and not follow:
        there = ", ".join(sorted({path.stem for path in folder.glob("*.log")})) or "none yet"
        raise Failure(f"no log of {' '.join(names) or 'anything'} in {folder}", hint=f"there is: {there}")
    entries = sorted((entry for tail in tails.values() for entry in tail.read()), key=lambda entry: entry.time)
    width = max((len(path.stem) for path in tails), default=0)
    _print(entries[-lines:] if lines else [], width, as_json)
    try:
        while follow:
            for path in select(folder, names):
                tails.setdefault(path, Tail(path))
            new = sorted((entry for tail in tails.values() for entry in tail.read()), key=lambda entry: entry.time)
            _print(new, width, as_json)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        pass


@dataclass(frozen=True)
class Entry:
    """One line of one file; `time` is ISO 8601 in UTC, that of the line before if it has none of its own."""

    source: str
    time: str
    text: str

    @property
    def fields(self) -> dict[str, Any] | None:
        """The line's fields if it is a JSON object."""
        try:
            found = json.loads(self.text) if self.text.startswith("{") else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


@dataclass
class Tail:
    """Reads a file that grows, and starts over when it was replaced or cut."""

    path: Path
    _file: IO[bytes] | None = None
    _inode: int = 0
    _rest: bytes = b""
    _time: str = field(default_factory=lambda: datetime.fromtimestamp(0, UTC).isoformat())

    def read(self) -> Iterator[Entry]:
        """The complete lines that are new."""
        if (file := self._open()) is None:
            return
        lines = (self._rest + file.read()).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                self._time = stamp(text) or self._time
                yield Entry(self.path.stem, self._time, text)

    def _open(self) -> IO[bytes] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        if self._file and self._inode == found.st_ino and self._file.tell() <= found.st_size:
            return self._file
        first = self._file is None
        if self._file:
            self._file.close()
        self._file, self._inode, self._rest = self.path.open("rb"), found.st_ino, b""
        if first and found.st_size > TAIL_BYTES:
            self._file.seek(-TAIL_BYTES, 2)
            self._file.readline()
        return self._file


def select(folder: Path, names: Iterable[str]) -> list[Path]:
    """The log files of services, instances and engines by name; all without a name."""
    wanted = tuple(names)
    return [
        path for path in sorted(folder.glob("*.log")) if not wanted or any(_is_of(path.stem, name) for name in wanted)
    ]


def stamp(line: str) -> str:
    """The time that a line carries, ISO 8601; empty if it has none."""
    if line.startswith("{"):
        try:
            return str(json.loads(line).get("time", "")).replace("Z", "+00:00")
        except (ValueError, AttributeError):
            return ""
    match = _STAMP.match(line)
    return f"{match[1]}T{match[2]}.{match[3] or 0:0<3}+00:00" if match else ""


def render(entry: Entry, width: int) -> str:
    """A line for people: source, time of day, and a JSON line's level, message and other fields."""
    colour = _COLOURS[sum(entry.source.encode()) % len(_COLOURS)]
    head = click.style(f"{entry.source:<{width}}", fg=colour) + click.style(f" {entry.time[11:23]:<12} ", dim=True)
    fields = entry.fields
    if fields is None:
        return head + entry.text
    rest = " ".join(f"{key}={_plain(value)}" for key, value in fields.items() if _is_news(key, value))
    level = str(fields.get("level", ""))
    message = " ".join(str(fields[key]) for key in _MESSAGE if fields.get(key))
    body = f"{click.style(level, fg=_LEVELS.get(level)) + ' ' if level else ''}{message}"
    trace = f"\n{fields['exception']}" if "exception" in fields else ""
    return f"{head}{body.rstrip()} {click.style(rest, dim=True)}".rstrip() + trace


def _is_of(stem: str, name: str) -> bool:
    """`food` has food-0, food-canary-0 and their proxies; `food-0` has food-0 and food-0.envoy."""
    return (
        stem in (name, f"{name}.envoy") or re.fullmatch(rf"{re.escape(name)}(-canary)?-\d+(\.envoy)?", stem) is not None
    )


def _is_news(key: str, value: Any) -> bool:
    return value not in ("", None, _USUAL.get(key)) and key not in (*_SHOWN_APART, *_ASIDE)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)


def _print(entries: list[Entry], width: int, as_json: bool) -> None:
    for entry in entries:
        if as_json:
            line = {"source": entry.source, "time": entry.time, "line": entry.fields or entry.text}
            click.echo(json.dumps(line, ensure_ascii=False))
        else:
            click.echo(render(entry, width))
