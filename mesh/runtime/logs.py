"""Structured logs: one JSON object a line on standard output, with the instance and the call that it is about."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from mesh.runtime import auth
from mesh.runtime.environment import environment

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record and whatever was given as `extra=`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "instance": environment().instance,
            "message": record.getMessage(),
            "logger": record.name,
        }
        line.update(_call())
        line.update({k: v for k, v in record.__dict__.items() if k not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _call() -> dict[str, str]:
    call = auth.current.get()
    if not call.method:
        return {}
    principal = auth.principal()
    facts = {
        "request_id": call.request_id,
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
