"""A recording: a JSON line that says what it is of, then a JSON line a call."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mesh.contract import Contract

FORMAT = 1


class RecordingError(Exception):
    """The file is no recording, or was cut; says where."""


@dataclass(frozen=True)
class Header:
    """What a recording is of. `contract` is the digest of the contracts that its calls were read by."""

    service: str
    contract: str
    time: str
    share: float
    format: int = FORMAT


@dataclass(frozen=True)
class Recorded:
    """One call. `answer` is None unless `code` is OK; `ms` is until the answer's headers, at the callee's sidecar.

    `user` says that a user's token came along, `masked` which of the request's fields were taken out.
    """

    method: str
    request: dict[str, Any]
    code: str
    answer: dict[str, Any] | None
    ms: float
    user: bool
    masked: tuple[str, ...]


def digest(contract: Contract) -> str:
    """Names the contracts: the same for the same descriptors."""
    return hashlib.sha256(contract.descriptors.SerializeToString(deterministic=True)).hexdigest()[:16]


def line(part: Header | Recorded) -> str:
    """A line of the file."""
    return json.dumps(asdict(part), ensure_ascii=False) + "\n"


def read(path: Path) -> tuple[Header, list[Recorded]]:
    """Reads a file.

    Raises:
        RecordingError: a line is not what it should be.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        lines = list(file)
    header = _line(path, 1, lines[0] if lines else "", Header)
    if header.format != FORMAT:
        raise RecordingError(f"{path}:1: is of format {header.format}, and this command reads {FORMAT}")
    return header, [_line(path, number, text, Recorded) for number, text in enumerate(lines[1:], start=2)]


def _line(path: Path, number: int, text: str, kind: Any) -> Any:
    try:
        return kind(**json.loads(text))
    except (ValueError, TypeError):
        what = "recording's first line" if kind is Header else "recorded call"
        raise RecordingError(f"{path}:{number}: is no {what}: record anew with `mesh record SERVICE`") from None
