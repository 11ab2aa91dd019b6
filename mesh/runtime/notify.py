"""Tells whoever started this process how far it is, by systemd's sd_notify protocol; a no-op without NOTIFY_SOCKET."""

from __future__ import annotations

import logging
import os
import socket

PORT = "X_MESH_PORT"  # a name of our own, as sd_notify(3) wants them

_log = logging.getLogger(__name__)


def status(text: str) -> None:
    """Says in a line what the process is doing now: "importing USDA foods: 120,000 of 390,381"."""
    _log.info(text)
    _send(f"STATUS={text}")


def ready() -> None:
    """Says that the process serves."""
    _send("READY=1")


def bound(port: int) -> None:
    """Says at which TCP port the process takes calls from the mesh."""
    _send(f"{PORT}={port}")


def stopping() -> None:
    """Says that the process is about to stop."""
    _send("STOPPING=1")


def _send(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:  # the listener is gone: serving matters more than telling
            _log.warning("could not notify the runner", extra={"error": str(error)})
