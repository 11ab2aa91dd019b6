"""What only the owner of this process may ask: over a Unix socket in the folder that no other user enters.

A thread answers, so that it does while the event loop hangs. It waits without waking, and costs nothing unasked.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh.runtime.telemetry import metrics

_PR_SET_PTRACER = 0x59616D61  # include/uapi/linux/prctl.h; known where Yama is
_SECONDS = 5.0
_MOST_BYTES = 16 << 10
_REQUEST = re.compile(rb"(GET|POST) (/[a-z]*)(?:\?pid=(\d{1,9}))?[^ ]* HTTP/1\.[01]\r\n")


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """Answers on the socket `path` while the block runs: GET /metrics, and POST /tracer?pid=N."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        threading.Thread(target=_accept, args=(listener,), name="telemetry", daemon=True).start()
        try:
            yield
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
            path.unlink(missing_ok=True)


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed
            return
        with connection, suppress(OSError):
            connection.settimeout(_SECONDS)
            _answer(connection)


def _answer(connection: socket.socket) -> None:
    asked = b""
    while b"\r\n\r\n" not in asked:
        if len(asked) > _MOST_BYTES or not (more := connection.recv(4096)):
            return
        asked += more
    status, body = _reply(asked)
    kind = "text/plain; version=0.0.4; charset=utf-8"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode() + body)


def _reply(asked: bytes) -> tuple[str, bytes]:
    found = _REQUEST.match(asked)
    match found.groups() if found else ():
        case (b"GET", b"/metrics", _):
            return "200 OK", metrics.text().encode()
        case (b"POST", b"/tracer", bytes(pid)):
            _let_trace(int(pid))
            return "200 OK", b""
    return "404 Not Found", b"there is GET /metrics and POST /tracer?pid=N\n"


def _let_trace(pid: int) -> None:
    """Lets one process, which may not by its rights alone where Yama is, look into this one; 0 for none any more."""
    import ctypes  # noqa: PLC0415 - for this alone

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, pid, 0, 0, 0)  # fails where nobody needs it
