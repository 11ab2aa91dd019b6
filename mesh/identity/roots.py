"""The roots of the local authority on disk. A rotation is a row of single renames, so it can be left at any point.

ca.d/<number>.pem  the key and the certificate of a root, in one file       ca.d/issuer    which of them issues
ca.d/lock          held for each change, by whichever process makes it
ca.d/rotation      held from the first step of a rotation to its last
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from mesh.identity import files

ISSUER, LOCK, ROTATION = "issuer", "lock", "rotation"


@dataclass(frozen=True)
class Root:
    """A root with its key. A newer one has a higher number: times in certificates are whole seconds."""

    number: int
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def common_name(self) -> str:
        """Its name in certificates."""
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    @property
    def expires(self) -> datetime:
        """UTC."""
        return self.certificate.not_valid_after_utc

    def past(self, share: float) -> bool:
        """Whether more than this share of its life is over."""
        begin = self.certificate.not_valid_before_utc
        return datetime.now(UTC) > begin + (self.expires - begin) * share

    @property
    def overdue(self) -> bool:
        """Whether less than a quarter of its life is left: it should have been replaced at half."""
        return self.past(0.75)


class Roots:
    """All roots that are trusted, in `folder`. Nothing is kept in memory: another process may rotate them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other threads and processes from changing roots and leaves; the kernel ends it with its holder."""
        with _flock(self._folder / LOCK, fcntl.LOCK_EX):
            yield

    @contextmanager
    def rotating(self) -> Iterator[None]:
        """Keeps others from rotating: two rotations at once could each drop what the other has just made.

        Raises:
            BlockingIOError: another one is at work.
        """
        with _flock(self._folder / ROTATION, fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    def all(self) -> list[Root]:
        """The roots in force, the newest first.

        Raises:
            ValueError: a file is no root; the message says which.
        """
        found = [_read(path) for path in self._folder.glob("[0-9]*.pem")]
        return sorted(found, key=lambda root: root.number, reverse=True)

    def issuer(self) -> Root | None:
        """The root that issues, or if that is lost the oldest, which all trust; None if there is none at all."""
        roots, name = self.all(), ""
        with suppress(FileNotFoundError):
            name = (self._folder / ISSUER).read_text().strip()
        return next((root for root in roots if str(root.number) == name), roots[-1] if roots else None)

    def add(self, number: int, pem: bytes) -> None:
        """From now on it is trusted, wherever bundles are written."""
        files.replace(self._folder / f"{number}.pem", pem)

    def promote(self, root: Root) -> None:
        """From now on it issues."""
        files.replace(self._folder / ISSUER, b"%d\n" % root.number)

    def drop(self, root: Root) -> None:
        """From now on it is not trusted, and its key is gone."""
        (self._folder / f"{root.number}.pem").unlink(missing_ok=True)


@contextmanager
def _flock(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> Root:
    try:
        pem = path.read_bytes()
        key, certificate = load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ValueError(f"{path} is no root ({error}): remove it; if it was the issuer, a new one is made") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError(f"{path} holds a certificate and not its key: remove it; a new root is made if none is left")
    return Root(int(path.stem), certificate, key)
