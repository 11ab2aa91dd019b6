"""Structured logs: one JSON object a line on standard output, with the instance and the call that it is about.

A message of a contract that is given as an `extra` or argument is shown as its JSON, without its sensitive fields.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from mesh.runtime import auth, sensitive
from mesh.runtime.environment import environment
from mesh.runtime.telemetry import traces

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record and whatever was given as `extra=`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "instance": environment().instance,
            "message": _text(record),
            "logger": record.name,
        }
        line.update(_call())
        line.update({k: _shown(v) for k, v in record.__dict__.items() if k not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_plain, ensure_ascii=False)


def _text(record: logging.LogRecord) -> str:
    if not isinstance(record.args, tuple) or not any(isinstance(arg, Message) for arg in record.args):
        return record.getMessage()
    return str(record.msg) % tuple(_shown(arg) for arg in record.args)


def _shown(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    copy = type(value)()
    copy.CopyFrom(value)
    masked = sensitive.mask(copy)
    try:
        shown = json_format.MessageToDict(copy)
    except TypeError as error:  # an Any of a type that this process does not have
        return f"a {value.DESCRIPTOR.full_name}: {error}"
    return {**shown, "masked": masked} if masked else shown


def _plain(value: object) -> object:
    """What JSON has no form for; a message may lie in a list or in a dictionary."""
    return _shown(value) if isinstance(value, Message) else str(value)


def _call() -> dict[str, str]:
    call = auth.current.get()
    if not call.method:
        return {}
    principal = auth.principal()
    trace_id, span_id = traces.ids()
    facts = {
        "request_id": call.request_id,
        "trace_id": trace_id,
        "span_id": span_id,
        "method": call.method,
        "caller": principal.caller,
        "user": principal.user or "",
    }
    return {name: fact for name, fact in facts.items() if fact}


def configure(level: int = logging.INFO) -> None:
    """Sends all logs of this process to standard output as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for wordy in ("alembic", "pgqueuer"):
        logging.getLogger(wordy).setLevel(logging.WARNING)
