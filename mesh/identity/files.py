"""How identity material lies on disk, and how it changes without a reader ever seeing half of a change.

A service's folder holds links through `..data` to a folder of one generation, as a Kubernetes secret volume does:

    food/cert.pem -> ..data/cert.pem      food/..data -> ..4f2a91c0/      food/sds-cert.yaml

A new generation is written beside the old one, then `..data` is renamed over: certificate and key change in one step,
and the rename inside the folder is the event that Envoy's `watched_directory` waits for.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

DATA_LINK = "..data"
CERTIFICATE, KEY, TRUST = "cert.pem", "key.pem", "ca.pem"
SDS_CERTIFICATE, SDS_TRUST = "sds-cert.yaml", "sds-ca.yaml"
# The names of the Envoy secrets in the two SDS files.
CERTIFICATE_SECRET, TRUST_SECRET = "identity", "trust"


def publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replaces all of `files` (name to content, readable by the owner only) in `folder` at once.

    Raises:
        OSError: the folder cannot be written; what was there stays in force.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    generation = folder / f"..{secrets.token_hex(4)}"
    generation.mkdir(mode=0o700)
    try:
        for name, content in files.items():
            _write(generation / name, content)
            _link(folder / name, f"{DATA_LINK}/{name}")
        _link(folder / DATA_LINK, generation.name)
    except OSError:
        shutil.rmtree(generation, ignore_errors=True)
        raise
    for old in folder.glob("..*"):
        if old.is_dir() and not old.is_symlink() and old != generation:
            shutil.rmtree(old, ignore_errors=True)


def replace(path: Path, content: bytes) -> None:
    """Writes `path` (mode 0600) so that a reader sees the old content or the new; not at all if it is the same."""
    if path.exists() and path.read_bytes() == content:
        return
    draft = _draft(path)
    try:
        _write(draft, content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def create_once(path: Path, make: Callable[[], bytes]) -> bytes:
    """Writes what `make` gives to `path` (mode 0600) if it is not there; returns what lies there, whoever was first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = _draft(path)
    try:
        if not path.exists():
            _write(draft, make())
            os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
    return path.read_bytes()


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _link(path: Path, target: str) -> None:
    if path.is_symlink() and path.readlink() == Path(target):
        return
    draft = _draft(path)
    draft.symlink_to(target)
    draft.replace(path)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
