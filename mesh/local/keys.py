"""The keys that encrypt what services store of sensitive fields: made here, read by `mesh.runtime.crypto`."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

KEY_BYTES = 32
CURRENT = "current"  # names the one to encrypt with


def ensure_key(folder: Path) -> None:
    """Puts a first key into a folder that has none."""
    if not folder.exists() or not any(path.name.isdigit() for path in folder.iterdir()):
        add_key(folder)


def add_key(folder: Path) -> str:
    """Puts a new key into `folder`, for the owner alone, and makes it the current one; returns its id."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    id_ = f"{max(numbers, default=0) + 1:04}"
    _write(folder / id_, base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode())
    _write(folder / CURRENT, id_)
    return id_


def _write(path: Path, text: str) -> None:
    """In one step and on the disk: a key that is in use must not be lost with the machine's power."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
